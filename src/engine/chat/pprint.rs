//! The filter `pprint`: Python's `pprint.pformat`, letter for letter. Keys are sorted, and lines end before the 80th column.
//!
//! ```text
//! {{ {'b': 1, 'a': [2]}|pprint }}  →  {'a': [2], 'b': 1}
//! ```
//!
//! The reference is `Lib/pprint.py` of CPython 3.12.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::list::measure;
use super::meter::{UNITS_PER_LETTER, UNITS_PER_VALUE, charge, units_of};
use super::python::{check_text, repr_sorted};
use super::view::View;

/// The filter `pprint`.
pub(super) fn pprint(state: &mut State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(state, &mut out, value, 0, 0, 0)?;
    Ok(out)
}

/// `indent`: columns in front of the value; `allowance`: columns that must be left behind it.
fn write(state: &mut State, out: &mut String, value: &Value, indent: usize, allowance: usize, level: usize) -> Result<(), Error> {
    check_text(out, level)?;
    // What is nested is printed once for each list that it lies in.
    let size = measure(state, value)?;
    charge(state, units_of(size).saturating_mul(UNITS_PER_LETTER))?;
    let line = repr_sorted(value)?;
    if line.chars().count() <= WIDTH.saturating_sub(indent + allowance) || View::of(value).is_some() {
        out.push_str(&line);
        return Ok(());
    }
    match (value.as_str(), value.kind()) {
        (Some(text), _) if !value.is_safe() => write_text(state, out, text, indent, allowance, level + 1),
        (None, ValueKind::Map) if super::python::is_dict(value) => {
            let keys = sorted_keys(value)?;
            let last = keys.len().saturating_sub(1);
            out.push('{');
            for (at, key) in keys.iter().enumerate() {
                if at > 0 {
                    new_line(out, indent + 1);
                }
                let key_text = repr_sorted(key)?;
                out.push_str(&key_text);
                out.push_str(": ");
                let behind = if at == last { allowance + 1 } else { 1 };
                write(state, out, &value.get_item(key)?, indent + key_text.chars().count() + 3, behind, level + 1)?;
                out.push_str(if at == last { "" } else { "," });
            }
            out.push('}');
            Ok(())
        }
        (None, ValueKind::Seq) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let (open, close) = match (value.is_tuple(), items.len()) {
                (true, 1) => ('(', ",)"),
                (true, _) => ('(', ")"),
                (false, _) => ('[', "]"),
            };
            let last = items.len().saturating_sub(1);
            out.push(open);
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    new_line(out, indent + 1);
                }
                write(state, out, item, indent + 1, if at == last { allowance + close.len() } else { 1 }, level + 1)?;
                out.push_str(if at == last { "" } else { "," });
            }
            out.push_str(close);
            Ok(())
        }
        _ => {
            out.push_str(&line);
            Ok(())
        }
    }
}

fn new_line(out: &mut String, indent: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A long text: a literal a line, in parentheses where nothing else is around them.
fn write_text(
    state: &mut State,
    out: &mut String,
    text: &str,
    mut indent: usize,
    mut allowance: usize,
    level: usize,
) -> Result<(), Error> {
    if text.is_empty() {
        out.push_str("''");
        return Ok(());
    }
    // A line is printed again with each word that it gets.
    let mut repr = |text: &str| {
        charge(state, 4 * UNITS_PER_VALUE + 2 * UNITS_PER_LETTER * text.len())?;
        repr_sorted(&Value::from(text))
    };
    if level == 1 {
        (indent, allowance) = (indent + 1, allowance + 1);
    }
    let mut literals: Vec<String> = Vec::new();
    let lines: Vec<&str> = super::methods::split_lines(text, true).collect();
    for (at, line) in lines.iter().enumerate() {
        let is_last_line = at + 1 == lines.len();
        let mut most = WIDTH.saturating_sub(indent);
        let whole = repr(line)?;
        if whole.chars().count() <= if is_last_line { most.saturating_sub(allowance) } else { most } {
            literals.push(whole);
            continue;
        }
        // Words with the space behind each.
        let words: Vec<&str> = words(line).collect();
        let mut current = String::new();
        for (at, word) in words.iter().enumerate() {
            let candidate = format!("{current}{word}");
            if at + 1 == words.len() && is_last_line {
                most = most.saturating_sub(allowance);
            }
            if repr(&candidate)?.chars().count() > most {
                if !current.is_empty() {
                    literals.push(repr(&current)?);
                }
                current = (*word).to_owned();
            } else {
                current = candidate;
            }
            check_text(&current, 0)?;
        }
        if !current.is_empty() {
            literals.push(repr(&current)?);
        }
    }
    if let [only] = literals.as_slice() {
        out.push_str(only);
        return Ok(());
    }
    out.push_str(if level == 1 { "(" } else { "" });
    for (at, literal) in literals.iter().enumerate() {
        if at > 0 {
            new_line(out, indent);
        }
        out.push_str(literal);
    }
    out.push_str(if level == 1 { ")" } else { "" });
    Ok(())
}

/// Python's `re.findall(r"\S*\s*", line)`.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let space = rest.find(super::methods::is_space).unwrap_or(rest.len());
        let end = rest[space..].find(|letter| !super::methods::is_space(letter)).map_or(rest.len(), |end| space + end);
        let (word, behind) = rest.split_at(end);
        rest = behind;
        Some(word)
    })
}

/// The keys as `sorted` has them; those of different types by the names of their types.
pub(super) fn sorted_keys(dict: &Value) -> Result<Vec<Value>, Error> {
    let mut keys: Vec<Value> = dict.try_iter()?.collect();
    keys.sort_by(|a, b| match type_name(a).cmp(type_name(b)) {
        Ordering::Equal => match (a.as_str(), b.as_str()) {
            (Some(a), Some(b)) => a.cmp(b),
            _ => a.cmp(b),
        },
        different => different,
    });
    Ok(keys)
}

fn type_name(key: &Value) -> &'static str {
    match key.kind() {
        ValueKind::Bool | ValueKind::Number => "int",
        ValueKind::None => "NoneType",
        ValueKind::String => "str",
        _ => "tuple",
    }
}

const WIDTH: usize = 80;
