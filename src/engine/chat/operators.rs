//! Python's operators. [`source`](super::source) writes them into a template as filters, because minijinja's own have no limits:
//! they copy, search and repeat whatever they are given.
//!
//! ```text
//! {{ a + b }}          →  {{ a |__add__( b) }}
//! {{ 1 < x <= 5 }}     →  {{ 1 |__compare__('<', x ,'<=', 5) }}
//! ```

use minijinja::value::{Rest, Tuple, ValueKind};
use minijinja::{AutoEscape, Error, State, Value};

use super::filters::check_format;
use super::list::{self, check_memory, measure, too_large};
use super::markup::{self, escape_text};
use super::meter::{Cost, UNITS_PER_BYTE, UNITS_PER_ITEM, charge, hold, read, units_of};
use super::python::{invalid, to_str};
use super::view::View;
use super::{MAX_BYTES, format};

/// The filters, and the operators that become them.
pub(super) const ADD: &str = "__add__";
pub(super) const SUBTRACT: &str = "__subtract__";
pub(super) const MULTIPLY: &str = "__multiply__";
pub(super) const DIVIDE: &str = "__divide__";
pub(super) const DIVIDE_FLOOR: &str = "__divide_floor__";
pub(super) const REMAINDER: &str = "__remainder__";
pub(super) const POWER: &str = "__power__";
pub(super) const CONCAT: &str = "__concat__";
pub(super) const COMPARE: &str = "__compare__";

#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    match value.kind() {
        ValueKind::Bool => Some(Number::Int(i128::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Int),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
        _ => None,
    }
}

fn float(number: Number) -> f64 {
    match number {
        Number::Int(value) => value as f64,
        Number::Float(value) => value,
    }
}

fn integer(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

/// An operator of two numbers; what overflows 128 bits is an error.
fn arithmetic(
    name: &str,
    left: &Value,
    right: &Value,
    ints: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    match (number(left), number(right)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => ints(a, b).map(integer).ok_or_else(|| failed(name, left, right)),
        (Some(a), Some(b)) => Ok(Value::from(floats(float(a), float(b)))),
        _ => Err(unsupported(name, left, right)),
    }
}

fn failed(name: &str, left: &Value, right: &Value) -> Error {
    invalid(format!("unable to calculate {left} {name} {right}"))
}

fn unsupported(name: &str, left: &Value, right: &Value) -> Error {
    invalid(format!("tried to use {name} operator on unsupported types {} and {}", left.kind(), right.kind()))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && View::of(value).is_none()
}

/// `left + right`. Text that is marked safe makes the other's text safe by escaping it, as Markup does.
pub(super) fn add(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        charge(state, UNITS_PER_ITEM + 2 * (a.len() + b.len()))?;
        let sum = match (left.is_safe(), right.is_safe()) {
            (false, false) => Value::from(joined(&[a, b])?),
            (true, true) => Value::from_safe_string(joined(&[a, b])?),
            (true, false) => Value::from_safe_string(joined(&[a, &escape_text(b)?])?),
            (false, true) => Value::from_safe_string(joined(&[&escape_text(a)?, b])?),
        };
        hold(state, &sum)?;
        return Ok(sum);
    }
    if left.is_tuple() && right.is_tuple() {
        let mut all = list::items(state, left)?;
        all.extend(list::items(state, right)?);
        let sum = Value::from(Tuple::from(all));
        hold(state, &sum)?;
        return Ok(sum);
    }
    if is_list(left) && is_list(right) && !left.is_tuple() && !right.is_tuple() {
        return list::concat(state, left, right);
    }
    charge(state, UNITS_PER_ITEM)?;
    arithmetic("+", left, right, i128::checked_add, |a, b| a + b)
}

fn joined(parts: &[&str]) -> Result<String, Error> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    if len > MAX_BYTES {
        return Err(too_large());
    }
    // Made, and kept as a value.
    check_memory(2 * len)?;
    Ok(parts.concat())
}

/// `left - right`.
pub(super) fn subtract(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    charge(state, UNITS_PER_ITEM)?;
    arithmetic("-", left, right, i128::checked_sub, |a, b| a - b)
}

/// `left * right`: a product, or a text or list that is repeated.
pub(super) fn multiply(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let times = |value: &Value| match number(value) {
        Some(Number::Int(times)) => Some(usize::try_from(times).unwrap_or(if times < 0 { 0 } else { usize::MAX })),
        _ => None,
    };
    let repeats = |value: &Value| value.as_str().is_some() || is_list(value);
    let (repeated, count) = match (repeats(left), repeats(right)) {
        (true, false) => (left, times(right)),
        (false, true) => (right, times(left)),
        _ => {
            charge(state, UNITS_PER_ITEM)?;
            return arithmetic("*", left, right, i128::checked_mul, |a, b| a * b);
        }
    };
    let count = count.ok_or_else(|| unsupported("*", left, right))?;
    if let Some(text) = repeated.as_str() {
        let len = text.len().saturating_mul(count);
        if len > MAX_BYTES {
            return Err(too_large());
        }
        charge(state, UNITS_PER_ITEM + 2 * len)?;
        check_memory(2 * len)?;
        let product = markup::alike(repeated, text.repeat(count));
        hold(state, &product)?;
        return Ok(product);
    }
    let len = repeated.len().unwrap_or(0).saturating_mul(count);
    charge(state, len.saturating_mul(UNITS_PER_ITEM))?;
    if len > list::MAX_VALUES {
        return Err(too_large());
    }
    check_memory(len.saturating_mul(3 * size_of::<Value>()))?;
    let items = list::items(state, repeated)?;
    let all: Vec<Value> = std::iter::repeat_n(&items, if items.is_empty() { 0 } else { count }).flatten().cloned().collect();
    let value = if repeated.is_tuple() { Value::from(Tuple::from(all)) } else { Value::from(all) };
    measure(state, &value)?;
    hold(state, &value)?;
    Ok(value)
}

/// `left / right`.
pub(super) fn divide(left: &Value, right: &Value) -> Result<Value, Error> {
    match (number(left), number(right).map(float)) {
        (Some(_), Some(0.0)) => Err(failed("/", left, right)),
        (Some(a), Some(b)) => Ok(Value::from(float(a) / b)),
        _ => Err(unsupported("/", left, right)),
    }
}

/// `left // right`, towards minus infinity.
pub(super) fn divide_floor(left: &Value, right: &Value) -> Result<Value, Error> {
    if number(right).map(float) == Some(0.0) {
        return Err(failed("//", left, right));
    }
    let ints = |a: i128, b: i128| {
        let quotient = a.checked_div(b)?;
        Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
    };
    arithmetic("//", left, right, ints, |a, b| float_divmod(a, b).0)
}

/// `left % right`, with the sign of the right; or Python's formatting of a text.
pub(super) fn remainder(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        let args = if right.is_tuple() { list::items(state, right)? } else { vec![right.clone()] };
        check_format(state, format, &args)?;
        let args = if left.is_safe() { markup::escaped_args(&args)? } else { args };
        let mapping = args.first().filter(|arg| !right.is_tuple() && matches!(arg.kind(), ValueKind::Map | ValueKind::Seq));
        let text = markup::alike(left, format::printf(format, &args, mapping)?);
        hold(state, &text)?;
        return Ok(text);
    }
    if number(right).map(float) == Some(0.0) {
        return Err(failed("%", left, right));
    }
    let ints = |a: i128, b: i128| {
        let remainder = a.checked_rem(b).unwrap_or(0);
        Some(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder })
    };
    arithmetic("%", left, right, ints, |a, b| float_divmod(a, b).1)
}

/// CPython's `float_divmod`.
fn float_divmod(a: f64, b: f64) -> (f64, f64) {
    let mut remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder == 0.0 {
        remainder = 0f64.copysign(b);
    } else if (remainder < 0.0) != (b < 0.0) {
        remainder += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0f64.copysign(a / b), remainder);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, remainder)
}

/// `left ** right`.
pub(super) fn power(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(Number::Int(base)), Some(Number::Int(exponent))) = (number(left), number(right))
        && exponent < 0
    {
        return if base == 0 { Err(failed("**", left, right)) } else { Ok(Value::from((base as f64).powf(exponent as f64))) };
    }
    arithmetic("**", left, right, |a, b| a.checked_pow(u32::try_from(b).ok()?), f64::powf)
}

/// `left ~ right`: the texts of both.
pub(super) fn concat(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    read(state, Cost::Deep, left)?;
    read(state, Cost::Deep, right)?;
    let text = match (left.as_str(), right.as_str()) {
        (Some(a), Some(b)) => joined(&[a, b])?,
        _ => joined(&[&to_str(left)?, &to_str(right)?])?,
    };
    charge(state, 2 * text.len())?;
    let is_escaped = !matches!(state.auto_escape(), AutoEscape::None) && (left.is_safe() || right.is_safe());
    if is_escaped {
        return add(state, &markup::escape(left)?, &markup::escape(right)?);
    }
    let text = Value::from(text);
    hold(state, &text)?;
    Ok(text)
}

/// `left < middle <= right`: operators and operands by turns.
pub(super) fn compare(state: &mut State, first: &Value, chain: Rest<Value>) -> Result<bool, Error> {
    let mut left = first;
    for pair in chain.0.chunks_exact(2) {
        let right = &pair[1];
        let holds = match pair[0].as_str().unwrap_or_default() {
            "==" => equal(state, left, right)?,
            "!=" => !equal(state, left, right)?,
            "<" => order(state, left, right)?.is_lt(),
            "<=" => order(state, left, right)?.is_le(),
            ">" => order(state, left, right)?.is_gt(),
            ">=" => order(state, left, right)?.is_ge(),
            "in" => contains(state, left, right)?,
            _ => !contains(state, left, right)?,
        };
        if !holds {
            return Ok(false);
        }
        left = right;
    }
    Ok(true)
}

pub(super) fn equal(state: &mut State, left: &Value, right: &Value) -> Result<bool, Error> {
    charge_comparison(state, left, right)?;
    Ok(match (View::of(left), View::of(right)) {
        (None, None) => left == right,
        (Some(View::Range(a)), Some(View::Range(b))) => a == b || (a.len() == 0 && b.len() == 0),
        // As sets; values are never equal to others.
        (Some(View::Dict { name: a, items }), Some(View::Dict { name: b, items: others })) => {
            // Each may be compared with all others.
            let size = measure(state, left)?;
            charge(state, units_of(size).saturating_mul(1 + others.len()))?;
            a == b && *a != "dict_values" && items.len() == others.len() && items.iter().all(|item| others.contains(item))
        }
        _ => false,
    })
}

pub(super) fn order(state: &mut State, left: &Value, right: &Value) -> Result<std::cmp::Ordering, Error> {
    charge_comparison(state, left, right)?;
    check_order(left, right)?;
    let as_number = |value: &Value| {
        if value.kind() == ValueKind::Bool { Value::from(i64::from(value.is_true())) } else { value.clone() }
    };
    // minijinja sorts booleans before all numbers; they are numbers.
    let is_mixed = (left.kind() == ValueKind::Bool) != (right.kind() == ValueKind::Bool);
    Ok(if is_mixed { as_number(left).cmp(&as_number(right)) } else { left.cmp(right) })
}

/// Python orders numbers, texts, lists and tuples, each among themselves; what lists hold is looked at no further.
pub(super) fn check_order(left: &Value, right: &Value) -> Result<(), Error> {
    let is_list = |value: &Value| value.kind() == ValueKind::Seq && View::of(value).is_none();
    let ordered = (number(left).is_some() && number(right).is_some())
        || (left.as_str().is_some() && right.as_str().is_some())
        || (is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple());
    if ordered { Ok(()) } else { Err(invalid(format!("a {} and a {} have no order", left.kind(), right.kind()))) }
}

/// `needle in haystack`.
pub(super) fn contains(state: &mut State, needle: &Value, haystack: &Value) -> Result<bool, Error> {
    match (haystack.as_str(), haystack.kind()) {
        (Some(text), _) => match needle.as_str() {
            Some(needle) => {
                charge(state, UNITS_PER_ITEM + UNITS_PER_BYTE * (text.len() + needle.len()))?;
                Ok(text.contains(needle))
            }
            None => Err(invalid(format!("a text is searched for a text, found a value of type {}", needle.kind()))),
        },
        (None, ValueKind::Undefined) => Ok(false),
        (None, ValueKind::Seq | ValueKind::Iterable) => {
            for item in haystack.try_iter()? {
                charge(state, UNITS_PER_ITEM)?;
                if equal(state, &item, needle)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        (None, ValueKind::Map) => {
            read(state, Cost::Deep, needle)?;
            Ok(haystack.as_object().is_some_and(|fields| fields.get_value(needle).is_some()))
        }
        (None, ValueKind::Plain) => Ok(false),
        (None, kind) => Err(invalid(format!("cannot perform a containment check on a value of type {kind}"))),
    }
}

/// Two values are compared up to their first difference, at most the smaller of both.
fn charge_comparison(state: &mut State, left: &Value, right: &Value) -> Result<(), Error> {
    let units = match (left.as_str(), right.as_str()) {
        (Some(a), Some(b)) => a.len().min(b.len()) / 8,
        _ if (is_list(left) && is_list(right)) || (left.kind() == ValueKind::Map && right.kind() == ValueKind::Map) => {
            units_of(measure(state, left)?).min(units_of(measure(state, right)?))
        }
        _ => 0,
    };
    charge(state, UNITS_PER_COMPARISON + units)
}

/// Of two values, however small.
const UNITS_PER_COMPARISON: usize = 30;
