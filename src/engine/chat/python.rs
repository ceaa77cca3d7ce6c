//! Python's view of template values: how they print, how `json.dumps` writes them, and the methods of str, list and dict.
//!
//! minijinja's own values print as Python's but for floats, and `minijinja_contrib::pycompat` knows most methods; this file
//! holds what they lack. The reference is CPython 3.12 with Jinja2 3.1.6.
//!
//! ```text
//! to_str(0.0000001)            →  "1e-07"
//! to_repr(["it's", none])      →  ["it's", None]
//! dumps({"a": 1.0}, compact)   →  {"a": 1.0}
//! ```

use std::fmt::Write;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::{ATTRIBUTE_METHOD, SLICE_METHOD};

/// A JSON value as a template sees it, keys in their order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => from_fields(fields),
    }
}

/// A JSON object as a template sees it.
pub(super) fn from_fields(fields: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(fields.iter().map(|(key, value)| (Value::from(key.as_str()), from_json(value))))
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut text = String::new();
            write_repr(&mut text, value, 0)?;
            Ok(text)
        }
    }
}

/// `repr(value)`.
fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ")") } else { ('[', "]") };
            out.push(open);
            let mut len = 0;
            for item in value.try_iter()? {
                out.push_str(if len == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1)?;
                len += 1;
            }
            out.push_str(if value.is_tuple() && len == 1 { "," } else { "" });
            out.push_str(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        // Strings, None, booleans and objects without content: minijinja's debug form is Python's repr.
        _ => write!(out, "{value:?}").map_err(|_| invalid("a value that does not print"))?,
    }
    Ok(())
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back, with an exponent outside of `1e-4 <= |x| < 1e16`.
fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    // Rust switches to an exponent at the same bounds and writes `1e-7` where Python has `1e-07`.
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

/// The filter `tojson` of transformers: `json.dumps(value, ensure_ascii=False)` without HTML escaping.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<&Value> = kwargs.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(spaces)) => Some(" ".repeat(spaces.clamp(0, 64) as usize)),
            (None, None) => return Err(invalid("tojson: indent is neither an integer nor a string")),
        },
    };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are not two strings")),
    };
    let style = JsonStyle {
        indent,
        item,
        key,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut text = String::new();
    style.write(&mut text, value, 0)?;
    Ok(Value::from(text))
}

struct JsonStyle {
    indent: Option<String>,
    /// Between two items.
    item: String,
    /// Between a key and its value.
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonStyle {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(out, ('[', ']'), &items, depth, |out, item| self.write(out, item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(out, ('{', '}'), &keys, depth, |out, key| {
                    self.write_string(out, &json_key(key)?);
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Undefined => return Err(invalid("tojson: an undefined value is not JSON")),
            kind => return Err(invalid(format!("tojson: a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (at, item) in items.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { &self.item });
            self.new_line(out, depth + 1);
            write(out, item)?;
        }
        if !items.is_empty() {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if letter < ' ' || (self.ensure_ascii && !(' '..='~').contains(&letter)) => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(letter),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() && float.is_nan() => "NaN".to_owned(),
        Ok(float) if !value.is_integer() && float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => number(value),
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        kind => Err(invalid(format!("tojson: a key of type {kind} is not JSON"))),
    }
}

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
    let is_dict =
        value.kind() == ValueKind::Map && !value.as_object().is_some_and(|object| object.type_name().contains("Namespace"));
    if is_dict { Ok(Value::from_object(DictMethod)) } else { value.get_attr(name) }
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
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (at, part) in parts.try_iter()?.enumerate() {
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

fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
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

fn split_lines(text: &str, keep_ends: bool) -> Vec<Value> {
    let is_end = |letter: char| {
        matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
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
        if after_cased {
            result.extend(letter.to_lowercase())
        } else {
            result.extend(letter.to_uppercase())
        }
        after_cased = letter.is_lowercase() || letter.is_uppercase();
    }
    result
}

fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters.as_str().to_lowercase().chars()).collect())
}

fn swap_case(letter: char) -> Vec<char> {
    if letter.is_uppercase() { letter.to_lowercase().collect() } else { letter.to_uppercase().collect() }
}

/// What is missing to `width` letters.
fn padding(fill: char, width: usize, text: &str) -> Result<String, Error> {
    if width > MAX_WIDTH {
        return Err(invalid(format!("a width of {width} is not supported (up to {MAX_WIDTH})")));
    }
    Ok(std::iter::repeat_n(fill, width.saturating_sub(text.chars().count())).collect())
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

/// The filter `string`.
pub(super) fn string_filter(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { to_str(value).map(Value::from) }
}

/// The filter `join`, with the attribute that it may take from each item.
pub(super) fn join_filter(
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let separator = match separator {
        Some(separator) => separator,
        None => kwargs.get::<Option<Value>>("d")?.unwrap_or_else(|| Value::from("")),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let separator = to_str(&separator)?;
    let mut joined = String::new();
    for (at, item) in value.try_iter()?.enumerate() {
        joined.push_str(if at == 0 { "" } else { &separator });
        match &attribute {
            Some(attribute) => joined.push_str(&to_str(&item.get_item(attribute)?)?),
            None => joined.push_str(&to_str(&item)?),
        }
    }
    Ok(Value::from(joined))
}

/// The filter `trim`.
pub(super) fn trim_filter(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    Ok(Value::from(strip(&to_str(value)?, chars, true, true)))
}

/// The filter `int`: 0 or the default for what is no number.
pub(super) fn int_filter(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0)),
    };
    let base = match base {
        Some(base) => base,
        None => kwargs.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    kwargs.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(invalid(format!("int: base: expected 2 to 36, found {base}")));
    }
    let parsed = match value.as_str() {
        Some(text) => parse_int(text, base),
        None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
        None if value.is_integer() => return Ok(value.clone()),
        None => f64::try_from(value.clone()).ok().filter(|float| float.is_finite()).map(|float| float.trunc() as i128),
    };
    Ok(parsed.map_or(default, Value::from))
}

fn parse_int(text: &str, base: u32) -> Option<i128> {
    let digits = strip(text, None, true, true).replace('_', "").to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
    let float = || digits.parse::<f64>().ok().filter(|float| float.is_finite()).map(|float| float.trunc() as i128);
    i128::from_str_radix(digits, base).ok().or_else(float)
}

/// The filter `float`: 0.0 or the default for what is no number.
pub(super) fn float_filter(value: &Value, default: Option<Value>) -> Value {
    let parsed = match value.as_str() {
        Some(text) => strip(text, None, true, true).replace('_', "").parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// The test `sequence`: in Python whatever has a length and items, so strings and dicts too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map)
}

/// The test `iterable`: not None, other than in minijinja.
pub(super) fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.is_undefined()
}

/// The test `number`: a boolean is one in Python.
pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH { Err(invalid(format!("a value nested more than {MAX_DEPTH} deep is not supported"))) } else { Ok(()) }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// serde_json reads up to 128 levels; a template may nest further.
const MAX_DEPTH: usize = 256;
const MAX_WIDTH: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (47.0, "47.0"),
            (1e-7, "1e-07"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_repr(value), expected);
        }
    }

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
