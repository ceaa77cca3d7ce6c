//! Calls as Python writes them: `[f(a="x", b=[1, None]), g()]`, with or without the brackets.

use serde_json::{Map, Value as Json};

use super::named::is_name;
use super::xml::Arguments;
use super::{Found, Tools, close, mark_at, skip_spaces};

/// `fence`: what may stand before the calls; `closes`: behind them.
pub(super) fn parse(text: &str, tools: &Tools, fence: &str, closes: &[&str]) -> Found {
    let mut found = Found::default();
    let mut at = skip_spaces(text, 0);
    if !fence.is_empty() {
        match mark_at(text, at, fence) {
            None => return found,
            Some(true) => at = skip_spaces(text, at + fence.len()),
            Some(false) => {}
        }
    }
    let is_list = text[at..].starts_with('[');
    if is_list {
        at = skip_spaces(text, at + 1);
    }
    loop {
        let Some(open) = text[at..].find('(').map(|open| at + open) else {
            let begun = text[at..].trim_end();
            return if begun.is_empty() || is_name(begun) { found.begun(begun) } else { found.invalid() };
        };
        let (mut name, mut open) = (text[at..open].trim(), open);
        if !is_name(name) {
            return found.invalid();
        }
        // `print(f(x))` of Gemma's examples is a call of f.
        let mut is_printed = false;
        if name == "print" && !tools.has(name) {
            let inner = skip_spaces(text, open + 1);
            let len = text[inner..].find(|letter: char| !letter.is_alphanumeric() && !"_.".contains(letter));
            let Some(len) = len else { return found.begun(name) };
            is_printed = len > 0 && text[inner + len..].starts_with('(');
            if is_printed {
                (name, open) = (&text[inner..inner + len], inner + len);
            }
        }
        let mut arguments = Arguments::of(name);
        let mut end = match keywords(text, open + 1, tools, name, &mut arguments) {
            Ok(end) => end,
            Err(stop) => {
                found.push(arguments.call(false), 0);
                return if stop == Stop::Open { found } else { found.invalid() };
            }
        };
        let bracket = skip_spaces(text, end);
        if is_printed && text[bracket..].starts_with(')') {
            end = bracket + 1;
        }
        found.push(arguments.call(true), end);
        let next = skip_spaces(text, end);
        match (text[next..].chars().next(), is_list) {
            (None, _) => return found,
            (Some(','), true) => at = skip_spaces(text, next + 1),
            (Some(']'), true) => {
                found.good = next + 1;
                found.state = close(text, next + 1, closes);
                return found;
            }
            (Some(_), true) => return found.invalid(),
            (Some(letter), false) if (letter.is_alphabetic() || letter == '_') && text[end..next].contains('\n') => at = next,
            (Some(_), false) => {
                found.state = close(text, end, closes);
                return found;
            }
        }
    }
}

/// Calls of tools that Llama 3.1 was trained with, `brave_search.call(query="…")`; other code is none.
pub(super) fn built_in(text: &str, tools: &Tools) -> Found {
    const CALL: &str = ".call";
    let at = skip_spaces(text, 0);
    match text[at..].find('(') {
        Some(open) if !text[at..at + open].trim_end().ends_with(CALL) => return Found::default().invalid(),
        None if !is_name(&text[at..]) => return Found::default().invalid(),
        _ => {}
    }
    let mut found = parse(text, tools, "", &[]);
    for call in found.calls.iter_mut().filter(|call| call.name.is_some()) {
        match call.name.as_mut().and_then(|name| Some((name.strip_suffix(CALL)?.to_owned(), name))) {
            Some((tool, name)) => *name = tool,
            None => return Found::default().invalid(),
        }
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text ends within the value.
    Open,
    Invalid,
}

/// `a=1, b="x")`, up to behind the bracket; values without a name are the tool's parameters in their order.
fn keywords(text: &str, at: usize, tools: &Tools, name: &str, arguments: &mut Arguments) -> Result<usize, Stop> {
    let mut at = skip_spaces(text, at);
    let mut place = 0;
    loop {
        let rest = &text[at..];
        match rest.chars().next() {
            None => return Err(Stop::Open),
            Some(')') => return Ok(at + 1),
            Some(_) => {}
        }
        let word =
            rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').map(char::len_utf8).sum::<usize>();
        let behind = skip_spaces(text, at + word);
        let is_keyword = word > 0 && text[behind..].starts_with('=');
        if word > 0 && behind == text.len() {
            return Err(Stop::Open);
        }
        let key = if is_keyword {
            &rest[..word]
        } else {
            place += 1;
            tools.parameters(name).get(place - 1).copied().ok_or(Stop::Invalid)?
        };
        let value_at = if is_keyword { skip_spaces(text, behind + 1) } else { at };
        let (value, end) = literal(text, value_at, 0)?;
        at = skip_spaces(text, end);
        match text[at..].chars().next() {
            None => return Err(Stop::Open),
            Some(',') => at = skip_spaces(text, at + 1),
            Some(')') => {}
            Some(_) => return Err(Stop::Invalid),
        }
        arguments.push(key, &value);
    }
}

/// A literal of Python or of JSON, and where it ends.
fn literal(text: &str, at: usize, depth: usize) -> Result<(Json, usize), Stop> {
    let rest = &text[at..];
    let first = rest.chars().next().ok_or(Stop::Open)?;
    if depth > 64 {
        return Err(Stop::Invalid);
    }
    match first {
        '"' | '\'' => string(text, at, first),
        '[' | '(' => {
            let (items, end) = sequence(text, at, if first == '[' { ']' } else { ')' }, |at| literal(text, at, depth + 1))?;
            Ok((Json::Array(items), end))
        }
        '{' => {
            let (fields, end) = sequence(text, at, '}', |at| {
                let (key, end) = literal(text, at, depth + 1)?;
                let key = key.as_str().map(str::to_owned).unwrap_or_else(|| key.to_string());
                let colon = skip_spaces(text, end);
                match text[colon..].chars().next() {
                    None => return Err(Stop::Open),
                    Some(':') => {}
                    Some(_) => return Err(Stop::Invalid),
                }
                let (value, end) = literal(text, skip_spaces(text, colon + 1), depth + 1)?;
                Ok(((key, value), end))
            })?;
            Ok((Json::Object(fields.into_iter().collect::<Map<String, Json>>()), end))
        }
        _ => word(text, at),
    }
}

fn sequence<T>(
    text: &str,
    at: usize,
    close: char,
    mut item: impl FnMut(usize) -> Result<(T, usize), Stop>,
) -> Result<(Vec<T>, usize), Stop> {
    let (mut items, mut at) = (Vec::new(), skip_spaces(text, at + 1));
    loop {
        match text[at..].chars().next() {
            None => return Err(Stop::Open),
            Some(sign) if sign == close => return Ok((items, at + 1)),
            Some(_) => {}
        }
        let (value, end) = item(at)?;
        items.push(value);
        at = skip_spaces(text, end);
        match text[at..].chars().next() {
            None => return Err(Stop::Open),
            Some(',') => at = skip_spaces(text, at + 1),
            Some(sign) if sign == close => {}
            Some(_) => return Err(Stop::Invalid),
        }
    }
}

/// A number or a name of a constant.
pub(super) fn word(text: &str, at: usize) -> Result<(Json, usize), Stop> {
    let rest = &text[at..];
    let is_part = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '-' | '+');
    let len = rest.find(|letter| !is_part(letter)).ok_or(Stop::Open)?;
    let value = match &rest[..len] {
        "True" | "true" => Json::Bool(true),
        "False" | "false" => Json::Bool(false),
        "None" | "null" => Json::Null,
        number => serde_json::from_str(number).ok().filter(Json::is_number).ok_or(Stop::Invalid)?,
    };
    Ok((value, at + len))
}

/// A text in single, double or three quotes.
fn string(text: &str, at: usize, quote: char) -> Result<(Json, usize), Stop> {
    let triple = quote.to_string().repeat(3);
    // The end of the text may come between the quotes.
    let quotes = text[at..].chars().take_while(|letter| *letter == quote).count();
    if quotes == 2 && at + 2 == text.len() {
        return Err(Stop::Open);
    }
    let is_triple = quotes >= 3;
    let end_mark = if is_triple { triple.as_str() } else { &triple[..1] };
    let (mut value, mut at) = (String::new(), at + end_mark.len());
    loop {
        let rest = &text[at..];
        let letter = rest.chars().next().ok_or(Stop::Open)?;
        if rest.starts_with(end_mark) {
            return Ok((Json::String(value), at + end_mark.len()));
        }
        at += letter.len_utf8();
        if letter != '\\' {
            value.push(letter);
            continue;
        }
        let escape = text[at..].chars().next().ok_or(Stop::Open)?;
        at += escape.len_utf8();
        match escape {
            'n' => value.push('\n'),
            't' => value.push('\t'),
            'r' => value.push('\r'),
            '0' => value.push('\0'),
            'a' => value.push('\u{7}'),
            'b' => value.push('\u{8}'),
            'f' => value.push('\u{c}'),
            'v' => value.push('\u{b}'),
            '\n' => {}
            '\\' | '\'' | '"' => value.push(escape),
            'x' | 'u' | 'U' => {
                let digits = match escape {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let mut code = hex(text, at, digits)?;
                at += digits;
                // JSON's spelling of what is beyond 16 bits, halves of which Python would keep apart and no text can hold.
                if escape == 'u' && (0xd800..0xdc00).contains(&code) {
                    match mark_at(text, at, "\\u") {
                        None => return Err(Stop::Open),
                        Some(true) => {}
                        Some(false) => return Err(Stop::Invalid),
                    }
                    let low = hex(text, at + 2, 4)?;
                    let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(Stop::Invalid)?;
                    code = 0x10000 + ((code - 0xd800) << 10) + low;
                    at += 6;
                }
                value.push(char::from_u32(code).ok_or(Stop::Invalid)?);
            }
            _ => value.extend(['\\', escape]),
        }
    }
}

/// So many hexadecimal digits at `at`.
fn hex(text: &str, at: usize, digits: usize) -> Result<u32, Stop> {
    let rest = &text.as_bytes()[at..];
    let known = &rest[..digits.min(rest.len())];
    if !known.iter().all(u8::is_ascii_hexdigit) {
        return Err(Stop::Invalid);
    }
    if known.len() < digits {
        return Err(Stop::Open);
    }
    u32::from_str_radix(&text[at..at + digits], 16).map_err(|_| Stop::Invalid)
}
