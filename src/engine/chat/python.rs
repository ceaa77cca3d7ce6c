//! Template values as Python has them: how they print, and what may be stored.
//!
//! minijinja's own values print as Python's but for floats. The reference is CPython 3.12 with Jinja2 3.1.6.
//!
//! ```text
//! to_str(0.0000001)        →  "1e-07"
//! to_str(["it's", none])   →  ["it's", None]
//! ```

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::list::{self, List, MAX_DEPTH, Size};
use super::pprint::sorted_keys;
use super::view::View;
use super::{MAX_BYTES, SURROGATES};

/// A JSON value as a template sees it, keys in their order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    measured(json).0
}

/// The messages as a list that knows what it holds.
pub(super) fn from_objects<'j>(
    objects: impl Iterator<Item = std::borrow::Cow<'j, serde_json::Map<String, serde_json::Value>>>,
) -> Value {
    list(objects.map(|fields| measured_fields(&fields))).0
}

fn measured(json: &serde_json::Value) -> (Value, Size) {
    match json {
        serde_json::Value::Null => (Value::from(()), Size::of_text(0)),
        serde_json::Value::Bool(value) => (Value::from(*value), Size::of_text(0)),
        serde_json::Value::Number(number) => {
            let value = match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => Value::from(integer),
                (None, Some(integer)) => Value::from(integer),
                (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
            };
            (value, Size::of_text(0))
        }
        serde_json::Value::String(text) => (Value::from(text.as_str()), Size::of_text(text.len())),
        serde_json::Value::Array(items) => list(items.iter().map(measured)),
        serde_json::Value::Object(fields) => measured_fields(fields),
    }
}

fn list(items: impl Iterator<Item = (Value, Size)>) -> (Value, Size) {
    let mut size = Size::of_text(0).around();
    let mut values = Vec::new();
    for (value, item) in items {
        size = size.beside(item.around());
        values.push(value);
    }
    (List::given(values, size), size)
}

fn measured_fields(fields: &serde_json::Map<String, serde_json::Value>) -> (Value, Size) {
    let mut size = Size::of_text(0).around();
    let value = Value::from_pairs(fields.iter().map(|(key, value)| {
        let (value, item) = measured(value);
        size = size.beside(item.around()).beside(Size::of_text(key.len()));
        (Value::from(key.as_str()), value)
    }));
    (value, size)
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut text = String::new();
            write_repr(&mut text, value, Keys::AsTheyCame, 0)?;
            Ok(text)
        }
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_repr(&mut text, value, Keys::AsTheyCame, 0)?;
    Ok(text)
}

/// `repr(value)` with the keys of dicts sorted.
pub(super) fn repr_sorted(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_repr(&mut text, value, Keys::Sorted, 0)?;
    Ok(text)
}

#[derive(Clone, Copy, PartialEq)]
enum Keys {
    AsTheyCame,
    Sorted,
}

fn write_repr(out: &mut String, value: &Value, order: Keys, depth: usize) -> Result<(), Error> {
    check_text(out, depth)?;
    if let Some(text) = value.as_str() {
        out.push_str(if value.is_safe() { "Markup(" } else { "" });
        write_text(out, text)?;
        out.push_str(if value.is_safe() { ")" } else { "" });
        return Ok(());
    }
    match View::of(value) {
        Some(View::Dict { name, items }) => {
            out.push_str(name);
            out.push('(');
            write_items(out, items.iter().cloned(), ("[", "]"), order, depth)?;
            out.push(')');
            return Ok(());
        }
        Some(View::Range(range)) => {
            out.push_str(&format!("range({}, {}", range.start, range.stop));
            out.push_str(&if range.step == 1 { ")".to_owned() } else { format!(", {})", range.step) });
            return Ok(());
        }
        None => {}
    }
    match value.kind() {
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.is_tuple() || is_object(value, "GroupTuple");
            let ends = match (is_tuple, value.len()) {
                (true, Some(1)) => ("(", ",)"),
                (true, _) => ("(", ")"),
                (false, _) => ("[", "]"),
            };
            write_items(out, value.try_iter()?, ends, order, depth)?;
        }
        ValueKind::Map if is_object(value, "Loop") => {
            let at = |name: &str| value.get_attr(name).map(|number| number.to_string());
            out.push_str(&format!("<LoopContext {}/{}>", at("index")?, at("length")?));
        }
        ValueKind::Map if is_object(value, "Macro") => {
            out.push_str("<Macro ");
            write_repr(out, &value.get_attr("name")?, order, depth + 1)?;
            out.push('>');
        }
        ValueKind::Map => {
            out.push_str(if is_namespace(value) { "<Namespace {" } else { "{" });
            let keys = if order == Keys::Sorted { sorted_keys(value)? } else { value.try_iter()?.collect() };
            for (at, key) in keys.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_repr(out, key, order, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(key)?, order, depth + 1)?;
            }
            out.push_str(if is_namespace(value) { "}>" } else { "}" });
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        // None, booleans and objects without content: minijinja's debug form is Python's repr.
        _ => write!(out, "{value:?}").map_err(|_| invalid("a value that does not print"))?,
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    items: impl Iterator<Item = Value>,
    (open, close): (&str, &str),
    order: Keys,
    depth: usize,
) -> Result<(), Error> {
    out.push_str(open);
    for (at, item) in items.enumerate() {
        out.push_str(if at == 0 { "" } else { ", " });
        write_repr(out, &item, order, depth + 1)?;
    }
    out.push_str(close);
    Ok(())
}

/// `repr` of a text: what does not print is an escape.
fn write_text(out: &mut String, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        check_text(out, 0)?;
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if letter == quote => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            _ if is_printable(letter) => out.push(letter),
            // Half of a surrogate pair: see `literal`.
            SURROGATES.. => push_escape(out, letter as u32 - SURROGATES as u32 + 0xd800),
            _ => push_escape(out, letter as u32),
        }
    }
    out.push(quote);
    Ok(())
}

/// `\xe9`, `\u65e5` or `\U0001f600`.
pub(super) fn push_escape(out: &mut String, code: u32) {
    let (kind, digits) = match code {
        ..=0xff => ('x', 2),
        0x100..=0xffff => ('u', 4),
        _ => ('U', 8),
    };
    out.extend(['\\', kind]);
    push_digits(out, code, digits);
}

/// The last hexadecimal digits of a number.
pub(super) fn push_digits(out: &mut String, code: u32, digits: u32) {
    out.extend((0..digits).rev().filter_map(|at| char::from_digit((code >> (4 * at)) & 15, 16)));
}

/// `str.isprintable`: Rust's debug form asks the same of a letter that follows another one.
pub(super) fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return !letter.is_ascii_control();
    }
    let mut pair = [b'a'; 5];
    let len = 1 + letter.encode_utf8(&mut pair[1..]).len();
    let shown = std::str::from_utf8(&pair[..len]).map_or(0, |pair| pair.escape_debug().count());
    shown == 2
}

/// Whether a value is a dict of Python: what minijinja calls a map may be a state of its own.
pub(super) fn is_dict(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !["Namespace", "Loop", "Macro"].iter().any(|name| is_object(value, name))
}

/// Whether a value is an object of minijinja's with this name.
fn is_object(value: &Value, name: &str) -> bool {
    value.as_object().is_some_and(|object| object.type_name().starts_with("minijinja") && object.type_name().ends_with(name))
}

pub(super) fn number(value: &Value) -> String {
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

/// A value that `{% set %}` is about to store, if its size is bounded.
///
/// minijinja compares, prints and drops nested values recursively, so their depth must not grow from one `set` to the next.
pub(super) fn check(state: &mut State, value: &Value) -> Result<Value, Error> {
    list::measure(state, value)?;
    Ok(value.clone())
}

/// As [`check`], for an attribute of a namespace: with a namespace in it, it could hold itself.
pub(super) fn check_attribute(state: &mut State, value: &Value) -> Result<Value, Error> {
    list::measure(state, value)?.check_attribute()?;
    Ok(value.clone())
}

pub(super) fn is_namespace(value: &Value) -> bool {
    is_object(value, "Namespace")
}

pub(super) fn check_text(text: &str, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(list::too_deep());
    }
    if text.len() > MAX_BYTES { Err(list::too_large()) } else { Ok(()) }
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

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
}
