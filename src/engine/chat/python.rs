//! Template values as Python has them: how they print, and how large they may grow.
//!
//! minijinja's own values print as Python's but for floats. The reference is CPython 3.12 with Jinja2 3.1.6.
//!
//! ```text
//! to_str(0.0000001)        →  "1e-07"
//! to_str(["it's", none])   →  ["it's", None]
//! ```

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::MAX_BYTES;

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
    check_text(out, depth)?;
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
pub(super) fn check(value: &Value) -> Result<Value, Error> {
    let mut size = Size { values: 0, bytes: 0, may_hold_namespaces: true };
    size.add(value, 0)?;
    Ok(value.clone())
}

/// As [`check`], for an attribute of a namespace: with a namespace in it, it could hold itself.
pub(super) fn check_attribute(value: &Value) -> Result<Value, Error> {
    let mut size = Size { values: 0, bytes: 0, may_hold_namespaces: false };
    size.add(value, 0)?;
    Ok(value.clone())
}

struct Size {
    values: usize,
    bytes: usize,
    may_hold_namespaces: bool,
}

impl Size {
    fn add(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.values += 1;
        self.bytes += value.as_str().map_or(0, str::len);
        if depth > MAX_DEPTH {
            return Err(invalid(format!("a value nested more than {MAX_DEPTH} deep is not supported")));
        }
        if self.values > MAX_VALUES || self.bytes > MAX_BYTES {
            return Err(invalid(format!("a value of more than {MAX_VALUES} items or {MAX_BYTES} bytes is not supported")));
        }
        if !self.may_hold_namespaces && is_namespace(value) {
            return Err(invalid("a namespace in a namespace is not supported"));
        }
        // An iterable of unknown length may be one that can be read only once.
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) || value.len().is_none() {
            return Ok(());
        }
        for item in value.try_iter()? {
            if value.kind() == ValueKind::Map {
                self.add(&value.get_item(&item)?, depth + 1)?;
            }
            self.add(&item, depth + 1)?;
        }
        Ok(())
    }
}

pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().contains("Namespace"))
}

pub(super) fn check_text(text: &str, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("a value nested more than {MAX_DEPTH} deep is not supported")));
    }
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("text of more than {MAX_BYTES} bytes is not supported")));
    }
    Ok(())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// serde_json reads up to 128 levels; a template may nest further.
const MAX_DEPTH: usize = 256;
/// What a value may hold in all.
const MAX_VALUES: usize = 1_000_000;

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
