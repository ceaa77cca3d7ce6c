//! Text that is marked safe, as MarkupSafe's `Markup` behaves: what is joined to it is escaped, and what is made of it is safe.
//!
//! ```text
//! {{ 'a<'|safe + '<' }}             →  a<&lt;
//! {{ ('%s<'|safe).upper() % '<' }}  →  &lt;<
//! ```

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::MAX_BYTES;
use super::list::too_large;
use super::python::to_str;

/// `markupsafe.escape`: what is safe stays, all else is printed and escaped.
pub(super) fn escape(value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    escape_text(&to_str(value)?).map(Value::from_safe_string)
}

pub(super) fn escape_text(text: &str) -> Result<String, Error> {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            _ => escaped.push(letter),
        }
        if escaped.len() > MAX_BYTES {
            return Err(too_large());
        }
    }
    Ok(escaped)
}

/// `made`, or each text in it, marked as safe.
pub(super) fn safe(made: Value) -> Result<Value, Error> {
    match (made.as_str(), made.kind()) {
        (Some(_), _) if made.is_safe() => Ok(made),
        (Some(text), _) => Ok(Value::from_safe_string(text.to_owned())),
        (None, ValueKind::Seq) => {
            let items: Result<Vec<Value>, Error> = made.try_iter()?.map(safe).collect();
            Ok(if made.is_tuple() { Value::from(Tuple::from(items?)) } else { Value::from(items?) })
        }
        (None, _) => Ok(made),
    }
}

/// A text made of `value` alone: safe if that is.
pub(super) fn alike(value: &Value, made: String) -> Value {
    if value.is_safe() { Value::from_safe_string(made) } else { Value::from(made) }
}

/// What safe text takes in, by its methods and by `%`: texts are escaped, numbers stay numbers.
pub(super) fn escaped_args(args: &[Value]) -> Result<Vec<Value>, Error> {
    args.iter().map(escaped_arg).collect()
}

fn escaped_arg(arg: &Value) -> Result<Value, Error> {
    match arg.kind() {
        ValueKind::Number | ValueKind::Bool => Ok(arg.clone()),
        ValueKind::Seq if !arg.is_tuple() => {
            let items: Result<Vec<Value>, Error> = arg.try_iter()?.map(|item| escaped_arg(&item)).collect();
            items.map(Value::from)
        }
        _ => escape(arg),
    }
}
