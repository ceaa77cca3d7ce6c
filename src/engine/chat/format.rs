//! Python's two ways to format: `'%s: %5.2f' % (a, b)`, also as the filter `format`, and `'{}: {:>5}'.format(a, b)`.
//!
//! minijinja writes the numbers; values print as Python's `str` and `repr` have them, which its own forms of lists and dicts are not.
//!
//! ```text
//! '%s %r' % ({'a': 'é'}, 'x')    →  {'a': 'é'} 'x'
//! '{0!r:>5}|{a[k]}'.format('x', a={'k': 1})  →    'x'|1
//! ```

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, Value};

use super::filters::padding;
use super::python::{check_text, invalid, push_escape, repr, to_str};

/// `format % args`: `args` are the items of a tuple, or the one value that is none. `mapping`: that value, if it can be asked for keys;
/// then nobody minds what is left of it.
pub(super) fn printf(format: &str, args: &[Value], mapping: Option<&Value>) -> Result<String, Error> {
    let mut left = args.iter();
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        check_text(&out, 0)?;
        rest = &rest[at + 1..];
        let key = match rest.strip_prefix('(') {
            Some(behind) => {
                let (key, behind) = behind.split_once(')').ok_or_else(|| invalid("format: incomplete format key"))?;
                rest = behind;
                Some(key)
            }
            None => None,
        };
        let end = rest.find(|letter: char| !matches!(letter, '-' | '+' | ' ' | '#' | '.' | '0'..='9')).unwrap_or(rest.len());
        let flags = &rest[..end];
        // A size of C, which says nothing.
        let kind_at = if rest[end..].starts_with(['h', 'l', 'L']) { end + 1 } else { end };
        let Some(kind) = rest[kind_at..].chars().next() else { return Err(invalid("format: incomplete format")) };
        rest = &rest[kind_at + kind.len_utf8()..];
        if kind == '%' && key.is_none() {
            out.push('%');
            continue;
        }
        let arg = match (key, mapping) {
            (Some(key), Some(mapping)) => {
                let found = mapping.get_item(&Value::from(key))?;
                if found.is_undefined() {
                    return Err(invalid(format!("format: the dict has no key {key:?}")));
                }
                found
            }
            (Some(_), None) => return Err(invalid("format: requires a mapping")),
            (None, _) => left.next().cloned().ok_or_else(|| invalid("format: not enough arguments for format string"))?,
        };
        out.push_str(&printf_field(flags, kind, &arg)?);
    }
    out.push_str(rest);
    if mapping.is_none() && left.next().is_some() {
        return Err(invalid("format: not all arguments converted during string formatting"));
    }
    Ok(out)
}

fn printf_field(flags: &str, kind: char, arg: &Value) -> Result<String, Error> {
    let text = match kind {
        's' => to_str(arg)?,
        'r' => repr(arg)?,
        'a' => ascii(&repr(arg)?)?,
        'c' => match (arg.as_str(), u32::try_from(arg.clone()).ok().and_then(char::from_u32)) {
            (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
            (None, Some(letter)) => letter.to_string(),
            _ => return Err(invalid("format: %c requires an integer or a character")),
        },
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = printf_number(kind, arg)?;
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            return formatting::format(FormatStyle::Printf, &format!("%{flags}{kind}"), &[number]);
        }
        _ => return Err(invalid(format!("format: unsupported format character {kind:?}"))),
    };
    let (width, precision) = flags.split_once('.').unwrap_or((flags, ""));
    let text = if flags.contains('.') && kind != 'c' { shortened(&text, precision)? } else { text };
    let fill = padding(' ', size(width.trim_start_matches(['-', '+', ' ', '#', '0']))?, &text)?;
    Ok(if width.contains('-') { text + &fill } else { fill + &text })
}

/// What `%d` and the like take: a boolean is a number, and the integers lose what is behind the point.
fn printf_number(kind: char, arg: &Value) -> Result<Value, Error> {
    let refused = || invalid(format!("format: %{kind}: expected a number, found a value of type {}", arg.kind()));
    match arg.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(arg.is_true()))),
        ValueKind::Number if arg.is_integer() => Ok(arg.clone()),
        ValueKind::Number => {
            let float = f64::try_from(arg.clone())?;
            match kind {
                'd' | 'i' | 'u' if float.is_finite() && float.abs() < 1e38 => Ok(Value::from(float.trunc() as i128)),
                'd' | 'i' | 'u' | 'o' | 'x' | 'X' => Err(refused()),
                _ => Ok(arg.clone()),
            }
        }
        _ => Err(refused()),
    }
}

/// `format.format(*args, **kwargs)`.
pub(super) fn str_format(format: &str, args: &[Value]) -> Result<String, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let (mut out, mut rest, mut next) = (String::new(), format, 0);
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        check_text(&out, 0)?;
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = behind;
            continue;
        }
        if brace == "}" {
            return Err(invalid("format: single '}' encountered in format string"));
        }
        let (field, behind) = rest.split_once('}').ok_or_else(|| invalid("format: expected '}' before end of string"))?;
        if field.contains('{') {
            return Err(invalid("format: fields within fields are not supported"));
        }
        rest = behind;
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let path_at = name.find(['.', '[']).unwrap_or(name.len());
        let (name, path) = name.split_at(path_at);
        let missing = |name: &str| invalid(format!("format: no argument for the field {name:?}"));
        let value = match name.parse::<usize>() {
            _ if name.is_empty() => {
                next += 1;
                positional.get(next - 1).cloned().ok_or_else(|| missing(""))?
            }
            Ok(at) => positional.get(at).cloned().ok_or_else(|| missing(name))?,
            Err(_) if named.has(name) => named.get::<Value>(name)?,
            Err(_) => return Err(missing(name)),
        };
        let value = at_path(value, path)?;
        out.push_str(&match conversion {
            "" => str_format_field(spec, &value)?,
            "s" => str_format_field(spec, &Value::from(to_str(&value)?))?,
            "r" => str_format_field(spec, &Value::from(repr(&value)?))?,
            "a" => str_format_field(spec, &Value::from(ascii(&repr(&value)?)?))?,
            other => return Err(invalid(format!("format: unknown conversion {other:?}"))),
        });
    }
    out.push_str(rest);
    Ok(out)
}

/// `.name` and `[key]` behind a field's name.
fn at_path(mut value: Value, mut path: &str) -> Result<Value, Error> {
    while !path.is_empty() {
        if let Some(behind) = path.strip_prefix('[') {
            let (key, behind) = behind.split_once(']').ok_or_else(|| invalid("format: missing ']' in format string"))?;
            let key = key.parse::<u32>().map_or_else(|_| Value::from(key), Value::from);
            (value, path) = (value.get_item(&key)?, behind);
        } else {
            let behind = path.strip_prefix('.').ok_or_else(|| invalid("format: expected '.' or '[' behind ']'"))?;
            let end = behind.find(['.', '[']).unwrap_or(behind.len());
            (value, path) = (value.get_attr(&behind[..end])?, &behind[end..]);
        }
    }
    Ok(value)
}

fn str_format_field(spec: &str, value: &Value) -> Result<String, Error> {
    if spec.is_empty() {
        return to_str(value);
    }
    match value.kind() {
        ValueKind::Bool => str_format_field(spec, &Value::from(i64::from(value.is_true()))),
        ValueKind::Number if spec.ends_with('%') => {
            let number = f64::try_from(value.clone())? * 100.0;
            let (before, precision) = spec[..spec.len() - 1].split_once('.').unwrap_or((&spec[..spec.len() - 1], "6"));
            let digits = before.trim_start_matches(|letter: char| !letter.is_ascii_digit());
            if digits.is_empty() {
                let text = formatting::format(FormatStyle::StrFormat, &format!("{{:{before}.{precision}f}}"), &[number.into()])?;
                return Ok(text + "%");
            }
            Err(invalid("format: a width of a percentage is not supported"))
        }
        ValueKind::Number | ValueKind::String => {
            formatting::format(FormatStyle::StrFormat, &format!("{{:{spec}}}"), std::slice::from_ref(value))
        }
        kind => Err(invalid(format!("format: unsupported format string for a value of type {kind}"))),
    }
}

/// `ascii`: what is none is an escape.
fn ascii(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        check_text(&out, 0)?;
        match u32::from(letter) {
            _ if letter.is_ascii() => out.push(letter),
            code => push_escape(&mut out, code),
        }
    }
    Ok(out)
}

/// The first letters of a text; without a number none.
fn shortened(text: &str, precision: &str) -> Result<String, Error> {
    Ok(text.chars().take(size(precision)?).collect())
}

fn size(digits: &str) -> Result<usize, Error> {
    if digits.is_empty() {
        Ok(0)
    } else {
        digits.parse().map_err(|_| invalid(format!("format: expected a number, found {digits:?}")))
    }
}
