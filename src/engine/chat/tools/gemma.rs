//! Calls as FunctionGemma and Gemma 4 write them: `call:name{key:<escape>text<escape>,other:1}`.

use serde_json::{Map, Value as Json};

use super::named::{is_name, is_name_begun};
use super::python::Stop;
use super::xml::Arguments;
use super::{Found, close, mark_at, skip_spaces};

/// `quote`: what stands around texts; `end`: behind a call.
pub(super) fn parse(text: &str, quote: &str, end: &str) -> Found {
    let mut found = Found::default();
    let at = skip_spaces(text, 0);
    match mark_at(text, at, "call:") {
        None => return found,
        Some(true) => {}
        Some(false) => return found.invalid(),
    }
    let name_at = at + "call:".len();
    let Some(open) = text[name_at..].find('{').map(|open| name_at + open) else {
        return if is_name_begun(&text[name_at..]) { found } else { found.invalid() };
    };
    let name = text[name_at..open].trim();
    if !is_name(name) {
        return found.invalid();
    }
    let mut arguments = Arguments::of(name);
    match fields(text, open, quote, 0, &mut |key, value| arguments.push(key, &value)) {
        Ok(at) => {
            found.push(arguments.call(true), at);
            found.state = close(text, at, &[end]);
            found
        }
        Err(stop) => {
            found.push(arguments.call(false), 0);
            if stop == Stop::Open { found } else { found.invalid() }
        }
    }
}

/// `{key:value,…}`, up to behind its end.
fn fields(text: &str, at: usize, quote: &str, depth: usize, take: &mut dyn FnMut(&str, Json)) -> Result<usize, Stop> {
    let mut at = skip_spaces(text, at + 1);
    if depth > 64 {
        return Err(Stop::Invalid);
    }
    loop {
        match text[at..].chars().next() {
            None => return Err(Stop::Open),
            Some('}') => return Ok(at + 1),
            Some(_) => {}
        }
        let (key, colon) = match mark_at(text, at, quote) {
            None => return Err(Stop::Open),
            Some(true) => quoted(text, at, quote)?,
            Some(false) => {
                let colon = text[at..].find(':').ok_or(Stop::Open)? + at;
                (text[at..colon].trim(), colon)
            }
        };
        let colon = skip_spaces(text, colon);
        match text[colon..].chars().next() {
            None => return Err(Stop::Open),
            Some(':') => {}
            Some(_) => return Err(Stop::Invalid),
        }
        let (value, end) = value(text, skip_spaces(text, colon + 1), quote, depth + 1)?;
        at = skip_spaces(text, end);
        match text[at..].chars().next() {
            None => return Err(Stop::Open),
            Some(',') => at = skip_spaces(text, at + 1),
            Some('}') => {}
            Some(_) => return Err(Stop::Invalid),
        }
        take(key, value);
    }
}

fn quoted<'t>(text: &'t str, at: usize, quote: &str) -> Result<(&'t str, usize), Stop> {
    let from = at + quote.len();
    let len = text[from..].find(quote).ok_or(Stop::Open)?;
    Ok((&text[from..from + len], from + len + quote.len()))
}

fn value(text: &str, at: usize, quote: &str, depth: usize) -> Result<(Json, usize), Stop> {
    let rest = &text[at..];
    match mark_at(text, at, quote) {
        None => return Err(Stop::Open),
        Some(true) => {
            let (value, end) = quoted(text, at, quote)?;
            return Ok((Json::from(value), end));
        }
        Some(false) => {}
    }
    if rest.starts_with('{') {
        let mut object = Map::new();
        let end = fields(text, at, quote, depth, &mut |key, value| {
            object.insert(key.to_owned(), value);
        })?;
        return Ok((Json::Object(object), end));
    }
    if rest.starts_with('[') {
        if depth > 64 {
            return Err(Stop::Invalid);
        }
        let (mut items, mut at) = (Vec::new(), skip_spaces(text, at + 1));
        loop {
            match text[at..].chars().next() {
                None => return Err(Stop::Open),
                Some(']') => return Ok((Json::Array(items), at + 1)),
                Some(_) => {}
            }
            let (item, end) = value(text, at, quote, depth + 1)?;
            items.push(item);
            at = skip_spaces(text, end);
            match text[at..].chars().next() {
                None => return Err(Stop::Open),
                Some(',') => at = skip_spaces(text, at + 1),
                Some(']') => {}
                Some(_) => return Err(Stop::Invalid),
            }
        }
    }
    // A number, a constant, or a text that the model left without its quotes.
    let len = rest.find([',', '}', ']']).ok_or(Stop::Open)?;
    let bare = rest[..len].trim();
    let value = serde_json::from_str(bare).unwrap_or_else(|_| match bare {
        "True" => Json::Bool(true),
        "False" => Json::Bool(false),
        "None" => Json::Null,
        _ => Json::from(bare),
    });
    Ok((value, at + len))
}
