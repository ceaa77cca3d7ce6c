//! Python's methods of str, list and dict that `minijinja_contrib::pycompat` lacks or reads differently, and slicing.
//!
//! ```text
//! 'a,b,c'.rsplit(',', 1)  →  ['a,b', 'c']
//! [1, 2, 3][::-1]         →  [3, 2, 1]
//! ```

use std::collections::HashSet;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::cases::{capitalize, casefold, swap_case, title};
use super::filters::{charge_matches, check_format, check_width, padding, replace};
use super::format::str_format;
use super::list;
use super::markup::{self, escaped_args};
use super::meter::{Cost, UNITS_PER_BYTE, UNITS_PER_ITEM, UNITS_PER_LETTER, charge, hold, made, read};
use super::operators::equal;
use super::python::{check_text, invalid, is_dict, is_printable};
use super::texts::centred;
use super::view::View;
use super::{ATTRIBUTE_METHOD, ITEM_METHOD, SLICE_METHOD};

/// A method call that minijinja does not know itself.
pub(super) fn call_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    read(state, cost(name, value.kind()), value)?;
    if name == ITEM_METHOD {
        let (key,): (&Value,) = from_args(args)?;
        return item(state, value, key);
    }
    args.iter().try_for_each(|arg| read(state, Cost::Search, arg))?;
    if value.is_safe() && name != SLICE_METHOD {
        return safe_method(state, value, name, args);
    }
    let own = match (name, value.kind()) {
        (SLICE_METHOD, _) => Some(slice(state, value, args)?),
        (ATTRIBUTE_METHOD, _) => Some(attribute(value, args)?),
        (_, ValueKind::String) => string_method(state, value.as_str().unwrap_or_default(), name, args)?,
        (_, ValueKind::Seq | ValueKind::Iterable) => list_method(state, value, name, args)?,
        ("is_integer", ValueKind::Number) if args.is_empty() => {
            let float = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            Some(Value::from(value.is_integer() || (float.is_finite() && float.fract() == 0.0)))
        }
        (_, ValueKind::Map) if is_dict(value) && args.is_empty() => match name {
            "copy" => Some(value.clone()),
            "keys" => Some(View::keys(value)?),
            "values" => Some(View::values(value)?),
            "items" => Some(View::items(value)?),
            _ => None,
        },
        _ => None,
    };
    let result = match own {
        Some(result) => result,
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)?,
    };
    made(state, result)
}

/// A method of safe text: those whose arguments become part of the result escape them, and texts that they give are safe.
fn safe_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = Value::from(value.as_str().unwrap_or_default());
    let args = match (name, args) {
        ("replace", [old, new, rest @ ..]) => [&[old.clone()][..], &escaped_args(std::slice::from_ref(new))?, rest].concat(),
        ("join" | "format" | "ljust" | "rjust" | "center", _) => escaped_args(args)?,
        _ => args.to_vec(),
    };
    let args: Vec<Value> = args.into_iter().map(|arg| if arg.is_safe() { Value::from(arg.as_str()) } else { arg }).collect();
    markup::safe(call_method(state, &text, name, &args)?)
}

/// `value[key]`; what is not there is undefined.
fn item(state: &mut State, value: &Value, key: &Value) -> Result<Value, Error> {
    if key.kind() != ValueKind::Number {
        read(state, Cost::Deep, key)?;
    }
    if value.as_str().is_some() {
        // The letters in front of the place, or all of them for one from the end.
        read(state, Cost::Search, value)?;
    }
    let as_integer = || Value::from(i64::from(key.is_true()));
    let is_float = key.kind() == ValueKind::Number && !key.is_integer();
    match value.kind() {
        ValueKind::Map if is_dict(value) && key.kind() == ValueKind::Bool => {
            let found = value.get_item(key)?;
            if found.is_undefined() { value.get_item(&as_integer()) } else { Ok(found) }
        }
        _ if matches!(View::of(value), Some(View::Dict { .. })) => Ok(Value::UNDEFINED),
        ValueKind::String | ValueKind::Seq if is_float => Ok(Value::UNDEFINED),
        ValueKind::String | ValueKind::Seq if key.kind() == ValueKind::Bool => item(state, value, &as_integer()),
        ValueKind::String if value.is_safe() => markup::safe(value.get_item(key)?),
        _ => value.get_item(key),
    }
}

/// What a method reads of its value.
fn cost(name: &str, kind: ValueKind) -> Cost {
    match (name, kind) {
        (
            SLICE_METHOD | ITEM_METHOD | ATTRIBUTE_METHOD | "get" | "startswith" | "endswith" | "copy" | "removeprefix"
            | "removesuffix",
            _,
        ) => Cost::Constant,
        (
            "strip" | "lstrip" | "rstrip" | "split" | "rsplit" | "partition" | "rpartition" | "replace" | "find" | "rfind"
            | "index" | "rindex" | "count" | "join" | "isascii",
            ValueKind::String,
        ) => Cost::Search,
        (_, ValueKind::String) => Cost::Letters,
        (_, ValueKind::Map) => Cost::Items,
        // They look at items one by one, and count them.
        _ => Cost::Constant,
    }
}

/// `value[start:stop:step]`.
fn slice(state: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let bounds = (start, stop, step);
    if let Some(text) = value.as_str() {
        read(state, Cost::Letters, value)?;
        if text.is_ascii() && step == 1 {
            let mut indices = slice_indices(text.len(), bounds);
            let (first, count) = (indices.next(), indices.count());
            return Ok(markup::alike(value, first.map_or("", |first| &text[first..=first + count]).to_owned()));
        }
        let len = text.chars().count();
        let mut indices = slice_indices(len, bounds);
        let Some(first) = indices.next() else { return Ok(markup::alike(value, String::new())) };
        let (count, stride) = (1 + indices.count(), usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX));
        let kept: String = if step > 0 {
            text.chars().skip(first).step_by(stride).take(count).collect()
        } else {
            text.chars().rev().skip(len - 1 - first).step_by(stride).take(count).collect()
        };
        return Ok(markup::alike(value, kept));
    }
    match View::of(value) {
        Some(View::Range(range)) => {
            let (start, stop) = slice_bounds(range.len(), bounds);
            return range.sliced(start, stop, step).map(View::range);
        }
        Some(View::Dict { name, .. }) => return Err(invalid(format!("a value of type {name} cannot be sliced"))),
        None => {}
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(invalid(format!("a value of type {} cannot be sliced", value.kind())));
    }
    let mut kept = Vec::new();
    if let (ValueKind::Seq, Some(len)) = (value.kind(), value.len()) {
        for at in slice_indices(len, bounds) {
            charge(state, UNITS_PER_ITEM)?;
            kept.push(value.get_item_by_index(at)?);
        }
    } else {
        let items = list::items(state, value)?;
        kept.extend(slice_indices(items.len(), bounds).map(|at| items[at].clone()));
    }
    Ok(if value.is_tuple() { Value::from(Tuple::from(kept)) } else { Value::from(kept) })
}

/// The indices that Python's `range(*slice(start, stop, step).indices(len))` holds; all are below `len`.
fn slice_indices(len: usize, bounds: (Option<i64>, Option<i64>, i64)) -> impl Iterator<Item = usize> {
    let step = bounds.2;
    let (start, stop) = slice_bounds(len, bounds);
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < stop } else { at > stop })
        .map(|at| at as usize)
}

/// Where such a slice begins, and before what it ends; -1 is before the first item.
fn slice_bounds(len: usize, (start, stop, step): (Option<i64>, Option<i64>, i64)) -> (i64, i64) {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |bound: i64| if bound < 0 { bound.saturating_add(len).max(lowest) } else { bound.min(highest) };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    (start.map_or(first, bound), stop.map_or(last, bound))
}

/// `value.name` where the name is a method of dict.
fn attribute(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (name,): (&str,) = from_args(args)?;
    // A namespace is no dict: its attributes are what the template put there.
    if is_dict(value) { Ok(Value::from_object(DictMethod)) } else { value.get_attr(name) }
}

/// A method of dict that nobody calls; it has no attributes and no items.
#[derive(Debug)]
pub(super) struct DictMethod;

impl Object for DictMethod {
    fn repr(self: &std::sync::Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}

/// Python's methods of str that pycompat lacks or reads differently; `None` = ask pycompat.
fn string_method(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            charge(state, chars.map_or(0, |chars| UNITS_PER_STRIPPED * chars.len()))?;
            let stripped = strip(text, chars, name != "rstrip", name != "lstrip");
            charge(state, UNITS_PER_LETTER * (text.len() - stripped.len()))?;
            Value::from(stripped)
        }
        "split" | "rsplit" => {
            let (separator, limit) = split_args(args)?;
            let mut parts = match (separator, name) {
                (Some(""), _) => return Err(invalid("empty separator")),
                (Some(separator), "split") => counted(state, text.splitn(limit, separator))?,
                (Some(separator), _) => reversed(counted(state, text.rsplitn(limit, separator))?),
                (None, "split") => counted(state, split_spaces(text, limit))?,
                (None, _) => reversed(counted(state, rsplit_spaces(text, limit))?),
            };
            parts.shrink_to_fit();
            Value::from(parts)
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            Value::from(counted(state, split_lines(text, keep_ends.unwrap_or(false)))?)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match (separator, found, name) {
                ("", ..) => return Err(invalid("empty separator")),
                (_, Some((before, after)), _) => [before, separator, after],
                (_, None, "partition") => [text, "", ""],
                (_, None, _) => ["", "", text],
            };
            let parts = parts.map(Value::from);
            parts.iter().try_for_each(|part| hold(state, part))?;
            Value::from(Tuple::from(parts))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        // The letters are gone through twice, those of `casefold` through three cases.
        "title" | "capitalize" | "swapcase" => {
            charge(state, UNITS_PER_LETTER * text.len())?;
            Value::from(match name {
                "title" => title(text),
                "capitalize" => capitalize(text),
                _ => swap_case(text),
            })
        }
        "casefold" => {
            charge(state, 3 * UNITS_PER_LETTER * text.len())?;
            Value::from(casefold(text))
        }
        "isprintable" => {
            charge(state, UNITS_PER_LETTER * text.len())?;
            Value::from(text.chars().all(is_printable))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let window = window(state, text, start, end)?;
            let found = window.and_then(|(before, window)| {
                let at = if name.starts_with('r') { window.rfind(part) } else { window.find(part) };
                at.map(|at| before + window[..at].chars().count())
            });
            match found {
                Some(found) => Value::from(found),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            charge_matches(state, text, part)?;
            Value::from(window(state, text, start, end)?.map_or(0, |(_, window)| window.matches(part).count()))
        }
        "startswith" | "endswith" => {
            let (parts, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let window = if start.is_some() || end.is_some() { window(state, text, start, end)? } else { Some((0, text)) };
            let holds = |part: &Value| {
                let part = part.as_str().ok_or_else(|| invalid(format!("{name}: expected a text, found {}", part.kind())))?;
                Ok(window.is_some_and(|(_, window)| match name {
                    "startswith" => window.starts_with(part),
                    _ => window.ends_with(part),
                }))
            };
            if !parts.is_tuple() {
                return holds(parts).map(|holds| Some(Value::from(holds)));
            }
            let mut any = false;
            for part in list::items(state, parts)? {
                any |= holds(&part)?;
            }
            Value::from(any)
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            Value::from(expand_tabs(text, size.unwrap_or(8))?)
        }
        "istitle" => Value::from(is_title(text)),
        "isidentifier" => {
            let is_first = |letter: char| letter == '_' || letter.is_alphabetic();
            let mut letters = text.chars();
            let begins = letters.next().is_some_and(is_first);
            Value::from(begins && letters.all(|letter| letter == '_' || letter.is_alphanumeric()))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", padding('0', width, text)?))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            let (width, fill) = (usize::try_from(width).unwrap_or(0), fill.unwrap_or(' '));
            Value::from(match name {
                "ljust" => format!("{text}{}", padding(fill, width, text)?),
                "rjust" => format!("{}{text}", padding(fill, width, text)?),
                _ => centred(text, width, fill)?,
            })
        }
        "format" => {
            check_format(state, text, args)?;
            Value::from(str_format(text, args)?)
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, text, from, to, count)?
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            read(state, Cost::Deep, parts)?;
            let mut joined = String::new();
            for (at, part) in parts.try_iter()?.enumerate() {
                check_text(&joined, 0)?;
                let part =
                    part.as_str().ok_or_else(|| invalid(format!("join: item {at}: expected a string, found {}", part.kind())))?;
                joined.push_str(if at == 0 { "" } else { text });
                joined.push_str(part);
            }
            Value::from(joined)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// `text[start:end]` and how many letters stand before it; `None` if it begins behind the text, where nothing is found, not even nothing.
fn window<'t>(state: &mut State, text: &'t str, start: Option<i64>, end: Option<i64>) -> Result<Option<(usize, &'t str)>, Error> {
    if start.is_none() && end.is_none() {
        return Ok(Some((0, text)));
    }
    read(state, Cost::Letters, &Value::from(text))?;
    let len = text.chars().count();
    let bound = |bound: i64| if bound < 0 { bound.saturating_add(len as i64).max(0) as usize } else { bound as usize };
    let (start, end) = (start.map_or(0, bound), end.map_or(len, bound).min(len));
    if start > end {
        return Ok(None);
    }
    let byte = |letter: usize| text.char_indices().nth(letter).map_or(text.len(), |(at, _)| at);
    Ok(Some((start, &text[byte(start)..byte(end)])))
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    let (mut out, mut column) = (String::new(), 0);
    for letter in text.chars() {
        match letter {
            '\t' if size > 0 => {
                let fill = size - column % size;
                check_width(fill)?;
                out.extend(std::iter::repeat_n(' ', fill));
                column += fill;
                check_text(&out, 0)?;
            }
            '\t' => {}
            _ => {
                out.push(letter);
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}

/// `str.istitle`: capitals follow what has no case, small letters what has.
fn is_title(text: &str) -> bool {
    let (mut cased, mut any) = (false, false);
    for letter in text.chars() {
        let is_small = letter.is_lowercase();
        if (letter.is_uppercase() && cased) || (is_small && !cased) {
            return false;
        }
        cased = letter.is_uppercase() || is_small;
        any |= cased;
    }
    any
}

/// `(sep, maxsplit)`, the latter as a number of parts.
fn split_args(args: &[Value]) -> Result<(Option<&str>, usize), Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(positional)?;
    // A borrowed keyword argument would not outlive `kwargs`.
    if kwargs.has("sep") {
        return Err(invalid("split: sep must be given without its name"));
    }
    let limit = match limit {
        Some(limit) => limit,
        None => kwargs.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    kwargs.assert_all_used()?;
    Ok((separator, usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1))))
}

pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    // Few are looked through faster than they are looked up.
    let many: Option<HashSet<char>> = chars.filter(|chars| chars.len() > 8).map(|chars| chars.chars().collect());
    let ascii = chars.unwrap_or_default().bytes().filter(u8::is_ascii).fold(0u128, |all, byte| all | (1 << byte));
    let is_stripped = |letter: char| match (&many, chars) {
        (Some(_), _) if letter.is_ascii() => ascii & (1 << (letter as u32)) != 0,
        (Some(many), _) => many.contains(&letter),
        (None, Some(chars)) => chars.contains(letter),
        (None, None) => is_space(letter),
    };
    let text = if left { text.trim_start_matches(is_stripped) } else { text };
    if right { text.trim_end_matches(is_stripped) } else { text }
}

/// `str.isspace`: Unicode's white space and the four separators of ASCII.
pub(super) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// The parts of a text, each counted.
fn counted<'t>(state: &mut State, parts: impl Iterator<Item = &'t str>) -> Result<Vec<Value>, Error> {
    let mut values = Vec::new();
    for part in parts {
        charge(state, UNITS_PER_ITEM + UNITS_PER_BYTE * part.len())?;
        if values.len() == list::MAX_VALUES {
            return Err(list::too_large());
        }
        let part = Value::from(part);
        hold(state, &part)?;
        list::make_room(&mut values)?;
        values.push(part);
    }
    Ok(values)
}

/// At most `limit` parts between white space; the last keeps its inner and drops its outer space on the left only.
fn split_spaces(text: &str, limit: usize) -> impl Iterator<Item = &str> {
    let (mut rest, mut count) = (text.trim_start_matches(is_space), 0);
    std::iter::from_fn(move || {
        count += 1;
        let end = if count == limit { None } else { rest.find(is_space) };
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.trim_start_matches(is_space);
        (!part.is_empty()).then_some(part)
    })
}

/// The last part first.
fn rsplit_spaces(text: &str, limit: usize) -> impl Iterator<Item = &str> {
    let (mut rest, mut count) = (text.trim_end_matches(is_space), 0);
    std::iter::from_fn(move || {
        count += 1;
        let start = if count == limit { None } else { rest.rfind(is_space) };
        let start = start.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
        let (before, part) = rest.split_at(start);
        rest = before.trim_end_matches(is_space);
        (!part.is_empty()).then_some(part)
    })
}

fn reversed(mut parts: Vec<Value>) -> Vec<Value> {
    parts.reverse();
    parts
}

pub(super) fn split_lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let is_end = |letter: char| {
        matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(is_end).unwrap_or(rest.len());
        let len = if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        let line = &rest[..if keep_ends { end + len } else { end }];
        rest = &rest[end + len..];
        Some(line)
    })
}

fn list_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match name {
        "index" => {
            let (item, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let within = if start.is_none() && end.is_none() { None } else { value.len() };
            let (start, end) = within.map_or((0, i64::MAX), |len| slice_bounds(len, (start, end, 1)));
            for (at, other) in value.try_iter()?.enumerate() {
                charge(state, UNITS_PER_ITEM)?;
                if (start..end).contains(&(at as i64)) && equal(state, &other, item)? {
                    return Ok(Some(Value::from(at)));
                }
            }
            return Err(invalid("the value is not in the list"));
        }
        "count" => {
            let (item,): (&Value,) = from_args(args)?;
            let mut count = 0;
            for other in value.try_iter()? {
                charge(state, UNITS_PER_ITEM)?;
                count += usize::from(equal(state, &other, item)?);
            }
            Some(Value::from(count))
        }
        "copy" => Some(value.clone()),
        _ => None,
    })
}

/// A letter that is put among those to look up.
const UNITS_PER_STRIPPED: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_hold_the_indices_of_python() {
        let bounds = [None, Some(i64::MIN), Some(-4), Some(-3), Some(-1), Some(0), Some(1), Some(3), Some(9), Some(i64::MAX)];
        let naive = |len: i64, start: Option<i64>, stop: Option<i64>, step: i64| {
            // Python's documentation: i = start, start + step, … while i is before stop; bounds beyond the ends are cut.
            let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
            let cut = |at: i64| (if at < 0 { at.saturating_add(len) } else { at }).clamp(low, high);
            let mut at = start.map_or(if step > 0 { low } else { high }, cut);
            let stop = stop.map_or(if step > 0 { high } else { low }, cut);
            let mut kept = Vec::new();
            while if step > 0 { at < stop } else { at > stop } {
                kept.push(at as usize);
                at = at.saturating_add(step);
            }
            kept
        };
        for len in [0, 1, 3] {
            for (start, stop) in bounds.iter().flat_map(|start| bounds.iter().map(move |stop| (*start, *stop))) {
                for step in [1, 2, -1, -2, i64::MAX, i64::MIN] {
                    let kept: Vec<usize> = slice_indices(len, (start, stop, step)).collect();
                    assert_eq!(kept, naive(len as i64, start, stop, step), "{len} {start:?} {stop:?} {step}");
                    assert!(kept.iter().all(|&at| at < len));
                }
            }
        }
    }
}
