//! Jinja2's filters, tests and functions where minijinja's differ, or take a size from the template unseen.
//!
//! ```text
//! {{ 'x'|int(7) }}  →  7
//! {{ undefined|length }}  →  0
//! ```

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, State, Value};

use super::methods::{split_lines, strip};
use super::python::{check_text, invalid, to_str};

/// The filter `string`.
pub(super) fn string_filter(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { to_str(value).map(Value::from) }
}

/// The filter `join`, with the attribute that it may take from each item.
pub(super) fn join_filter(value: &Value, separator: Option<Value>, attribute: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
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

/// The filter `default`: for what is undefined, or with `boolean` for what is false.
pub(super) fn default_filter(value: &Value, default: Option<Value>, boolean: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let boolean = boolean.map_or_else(|| kwargs.get::<Option<bool>>("boolean"), |boolean| Ok(Some(boolean)))?.unwrap_or(false);
    let default = default.map_or_else(|| kwargs.get::<Option<Value>>("default_value"), |default| Ok(Some(default)))?;
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// The filter `length`: 0 for what is undefined.
pub(super) fn length_filter(value: &Value) -> Result<usize, Error> {
    match (value.len(), value.kind()) {
        (Some(len), _) => Ok(len),
        (None, ValueKind::Undefined) => Ok(0),
        (None, ValueKind::Iterable) => Ok(value.try_iter()?.count()),
        (None, kind) => Err(invalid(format!("a value of type {kind} has no length"))),
    }
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

/// The filter `indent`, by a number of spaces or a string.
pub(super) fn indent_filter(value: &Value, width: Option<Value>, first: Option<bool>, blank: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let width = match width {
        Some(width) => width,
        None => kwargs.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = first.map_or_else(|| kwargs.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| kwargs.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let indentation = match (width.as_str(), width.as_i64()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(spaces)) => padding(' ', usize::try_from(spaces).unwrap_or(0), "")?,
        (None, None) => return Err(invalid("indent: width is neither an integer nor a string")),
    };
    let text = to_str(value)? + "\n";
    let mut indented = String::new();
    for (at, line) in split_lines(&text, false).iter().enumerate() {
        let line = line.as_str().unwrap_or_default();
        indented.push_str(if at == 0 { "" } else { "\n" });
        if if at == 0 { first } else { blank || !line.is_empty() } {
            indented.push_str(&indentation);
        }
        indented.push_str(line);
        check_text(&indented, 0)?;
    }
    Ok(Value::from(indented))
}

/// The filters `batch` and `slice`, whose count must not be a size to allocate.
pub(super) fn batch_filter(state: &State, value: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    minijinja::filters::batch(state, value, count, fill_with)
}

pub(super) fn slice_filter(state: &State, value: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    minijinja::filters::slice(state, value, count, fill_with)
}

/// The filter `format`, `'%s'|format(x)`.
pub(super) fn format_filter(format: &str, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    check_format(format)?;
    formatting::format(FormatStyle::Printf, format, &args.into_values()).map(Value::from)
}

/// A width or a precision of five digits is a size that nobody needs.
pub(super) fn check_format(format: &str) -> Result<(), Error> {
    let is_huge = format.split(|letter: char| !letter.is_ascii_digit()).any(|digits| digits.len() > 4);
    if is_huge { Err(invalid("format: a number of more than four digits is not supported")) } else { Ok(()) }
}

fn check_width(width: usize) -> Result<(), Error> {
    if width > MAX_WIDTH { Err(invalid(format!("a size of {width} is not supported (up to {MAX_WIDTH})"))) } else { Ok(()) }
}

/// The function `range`.
pub(super) fn range(start: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, stop) = stop.map_or((0, start), |stop| (start, stop));
    let step = step.unwrap_or(1);
    let (distance, stride) = (i128::from(stop) - i128::from(start), i128::from(step));
    if step == 0 {
        return Err(invalid("range: the step cannot be zero"));
    }
    let len = if (distance < 0) == (step < 0) { (distance.abs() + stride.abs() - 1) / stride.abs() } else { 0 };
    if len > MAX_RANGE {
        return Err(invalid(format!("range: {len} numbers are not supported (up to {MAX_RANGE})")));
    }
    Ok((0..len).filter_map(|at| i64::try_from(i128::from(start) + at * stride).ok()).map(Value::from).collect())
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

/// What is missing to `width` letters.
pub(super) fn padding(fill: char, width: usize, text: &str) -> Result<String, Error> {
    check_width(width)?;
    Ok(std::iter::repeat_n(fill, width.saturating_sub(text.chars().count())).collect())
}

/// A width, a count or an indentation.
const MAX_WIDTH: usize = 1 << 16;
/// As in Jinja2's sandbox.
const MAX_RANGE: i128 = 100_000;
