//! Jinja2's filters of texts that minijinja lacks.
//!
//! ```text
//! {{ 'one two three'|truncate(9, leeway=0) }}  →  one...
//! {{ 'a b/ü'|urlencode }}                      →  a%20b/%C3%BC
//! ```

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::filters::padding;
use super::markup::{alike, escape_text};
use super::python::{check_text, invalid, to_str};

/// The filter `truncate`: whole words, unless `killwords`; what is longer by up to `leeway` stays.
pub(super) fn truncate(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let length = kwargs.get::<Option<usize>>("length")?.unwrap_or(255);
    let killwords = kwargs.get::<Option<bool>>("killwords")?.unwrap_or(false);
    let end = kwargs.get::<Option<String>>("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = kwargs.get::<Option<usize>>("leeway")?.unwrap_or(5);
    kwargs.assert_all_used()?;
    let text = to_str(value)?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(invalid(format!("truncate: length: expected at least that of {end:?}, found {length}")));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(alike(value, text));
    }
    let kept = text.char_indices().nth(kept).map_or(text.as_str(), |(at, _)| &text[..at]);
    let kept = if killwords { kept } else { kept.rsplit_once(' ').map_or(kept, |(words, _)| words) };
    Ok(alike(value, format!("{kept}{end}")))
}

/// The filter `center`.
pub(super) fn center(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let width = kwargs.get::<Option<usize>>("width")?.unwrap_or(80);
    kwargs.assert_all_used()?;
    Ok(alike(value, centred(&to_str(value)?, width, ' ')?))
}

/// `str.center`: CPython puts the odd space to the left where the width is odd.
pub(super) fn centred(text: &str, width: usize, fill: char) -> Result<String, Error> {
    let padding = padding(fill, width, text)?;
    let letters = padding.chars().count();
    let left: String = padding.chars().take(letters / 2 + (letters & width & 1)).collect();
    Ok(format!("{left}{text}{}", &padding[left.len()..]))
}

/// The filter `wordcount`.
pub(super) fn wordcount(value: &Value) -> Result<usize, Error> {
    let text = to_str(value)?;
    Ok(text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty()).count())
}

/// The filter `forceescape`: what is safe is escaped too.
pub(super) fn force_escape(value: &Value) -> Result<Value, Error> {
    escape_text(&to_str(value)?).map(Value::from_safe_string)
}

/// The filter `urlencode`: of a text, or of pairs as a query.
pub(super) fn urlencode(value: &Value) -> Result<String, Error> {
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            let pair = |key: Value| Ok((key.clone(), value.get_item(&key)?));
            value.try_iter()?.map(pair).collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let pair = |item: Value| Ok((item.get_item_by_index(0)?, item.get_item_by_index(1)?));
            value.try_iter()?.map(pair).collect::<Result<_, Error>>()?
        }
        _ => return quoted(&to_str(value)?, "/", "%20"),
    };
    let mut query = String::new();
    for (key, value) in pairs {
        check_text(&query, 0)?;
        query.push_str(if query.is_empty() { "" } else { "&" });
        query.push_str(&quoted(&to_str(&key)?, "", "+")?);
        query.push('=');
        query.push_str(&quoted(&to_str(&value)?, "", "+")?);
    }
    Ok(query)
}

fn quoted(text: &str, safe: &str, space: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        check_text(&out, 0)?;
        match byte {
            b' ' => out.push_str(space),
            _ if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || safe.as_bytes().contains(&byte) => {
                out.push(char::from(byte));
            }
            _ => out.extend(['%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
        }
    }
    check_text(&out, 0)?;
    Ok(out)
}

const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
