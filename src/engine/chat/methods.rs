//! Python's methods of str, list and dict that `minijinja_contrib::pycompat` lacks or reads differently, and slicing.
//!
//! ```text
//! 'a,b,c'.rsplit(',', 1)  →  ['a,b', 'c']
//! [1, 2, 3][::-1]         →  [3, 2, 1]
//! ```

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::filters::{check_format, padding};
use super::python::{invalid, is_namespace};
use super::{ATTRIBUTE_METHOD, SLICE_METHOD};

/// A method call that minijinja does not know itself.
pub(super) fn call_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let own = match (name, value.kind()) {
        (SLICE_METHOD, _) => Some(slice(value, args)?),
        (ATTRIBUTE_METHOD, _) => Some(attribute(value, args)?),
        (_, ValueKind::String) => string_method(value.as_str().unwrap_or_default(), name, args)?,
        (_, ValueKind::Seq | ValueKind::Iterable) => list_method(value, name, args)?,
        ("copy", ValueKind::Map) => Some(value.clone()),
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `value[start:stop:step]`.
fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    let bounds = (start, stop, step);
    match value.kind() {
        ValueKind::String => {
            let letters: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            Ok(Value::from(slice_indices(letters.len(), bounds).map(|at| letters[at]).collect::<String>()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let kept: Vec<Value> = slice_indices(items.len(), bounds).map(|at| items[at].clone()).collect();
            Ok(if value.is_tuple() { Value::from(Tuple::from(kept)) } else { Value::from(kept) })
        }
        kind => Err(invalid(format!("a value of type {kind} cannot be sliced"))),
    }
}

/// The indices that Python's `range(*slice(start, stop, step).indices(len))` holds; all are below `len`.
fn slice_indices(len: usize, (start, stop, step): (Option<i64>, Option<i64>, i64)) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |bound: i64| if bound < 0 { bound.saturating_add(len).max(lowest) } else { bound.min(highest) };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (start.map_or(first, bound), stop.map_or(last, bound));
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < stop } else { at > stop })
        .map(|at| at as usize)
}

/// `value.name` where the name is a method of dict.
fn attribute(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (name,): (&str,) = from_args(args)?;
    // A namespace is no dict: its attributes are what the template put there.
    if value.kind() == ValueKind::Map && !is_namespace(value) { Ok(Value::from_object(DictMethod)) } else { value.get_attr(name) }
}

/// A method of dict that nobody calls; it has no attributes and no items.
#[derive(Debug)]
struct DictMethod;

impl Object for DictMethod {
    fn repr(self: &std::sync::Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }
}

/// Python's methods of str that pycompat lacks or reads differently; `None` = ask pycompat.
fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (separator, limit) = split_args(args)?;
            let mut parts = match (separator, name) {
                (Some(""), _) => return Err(invalid("empty separator")),
                (Some(separator), "split") => text.splitn(limit, separator).map(Value::from).collect(),
                (Some(separator), _) => reversed(text.rsplitn(limit, separator).map(Value::from).collect()),
                (None, "split") => split_spaces(text, limit),
                (None, _) => rsplit_spaces(text, limit),
            };
            parts.shrink_to_fit();
            Value::from(parts)
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            Value::from(split_lines(text, keep_ends.unwrap_or(false)))
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
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "title" => Value::from(title(text)),
        "capitalize" => Value::from(capitalize(text)),
        "swapcase" => Value::from(text.chars().flat_map(swap_case).collect::<String>()),
        "casefold" => Value::from(text.to_lowercase()),
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let found = if name == "index" { text.find(part) } else { text.rfind(part) };
            let found = found.ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..found].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", padding('0', width, text)?))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let padding = padding(fill.unwrap_or(' '), width, text)?;
            let letters = padding.chars().count();
            let left = match name {
                "ljust" => 0,
                "rjust" => letters,
                // CPython puts the odd space to the left where the width is odd.
                _ => letters / 2 + (letters & width & 1),
            };
            let left: String = padding.chars().take(left).collect();
            Value::from(format!("{left}{text}{}", &padding[left.len()..]))
        }
        "format" => {
            check_format(text)?;
            return Ok(None);
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (at, part) in parts.try_iter()?.enumerate() {
                let part = part.as_str().ok_or_else(|| invalid(format!("join: item {at}: expected a string, found {}", part.kind())))?;
                joined.push_str(if at == 0 { "" } else { text });
                joined.push_str(part);
            }
            Value::from(joined)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
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
    let is_stripped = |letter: char| chars.map_or(is_space(letter), |chars| chars.contains(letter));
    let text = if left { text.trim_start_matches(is_stripped) } else { text };
    if right { text.trim_end_matches(is_stripped) } else { text }
}

/// `str.isspace`: Unicode's white space and the four separators of ASCII.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// At most `limit` parts between white space; the last keeps its inner and drops its outer space on the left only.
fn split_spaces(text: &str, limit: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() + 1 == limit { None } else { rest.find(is_space) };
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(Value::from(part));
        rest = after.trim_start_matches(is_space);
    }
    parts
}

fn rsplit_spaces(text: &str, limit: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let start = if parts.len() + 1 == limit { None } else { rest.rfind(is_space) };
        let start = start.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
        let (before, part) = rest.split_at(start);
        parts.push(Value::from(part));
        rest = before.trim_end_matches(is_space);
    }
    reversed(parts)
}

fn reversed(mut parts: Vec<Value>) -> Vec<Value> {
    parts.reverse();
    parts
}

pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<Value> {
    let is_end = |letter: char| matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let len = if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep_ends { end + len } else { end }]));
        rest = &rest[end + len..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    lines
}

fn title(text: &str) -> String {
    let mut after_cased = false;
    let mut result = String::with_capacity(text.len());
    for letter in text.chars() {
        if after_cased { result.extend(letter.to_lowercase()) } else { result.extend(title_case(letter)) }
        after_cased = letter.is_lowercase() || letter.is_uppercase();
    }
    result
}

fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| title_case(first).chain(letters.as_str().to_lowercase().chars()).collect())
}

/// `ß` becomes `Ss`, not `SS`. Unicode's four digraphs with a title case of their own become upper case.
fn title_case(letter: char) -> impl Iterator<Item = char> {
    letter.to_uppercase().enumerate().flat_map(|(at, upper)| {
        let lower = (at > 0).then(|| upper.to_lowercase());
        lower.into_iter().flatten().chain((at == 0).then_some(upper))
    })
}

fn swap_case(letter: char) -> Vec<char> {
    if letter.is_uppercase() { letter.to_lowercase().collect() } else { letter.to_uppercase().collect() }
}

fn list_method(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match name {
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|other| other == *item);
            Some(Value::from(found.ok_or_else(|| invalid("the value is not in the list"))?))
        }
        "count" => {
            let (item,): (&Value,) = from_args(args)?;
            Some(Value::from(value.try_iter()?.filter(|other| other == item).count()))
        }
        "copy" => Some(value.clone()),
        _ => None,
    })
}

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
