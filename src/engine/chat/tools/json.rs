//! Calls as JSON objects, `{"name": …, "arguments": {…}}`, alone, in a list, or one after another.

use serde_json::Value as Json;

use super::{Begin, Found, FoundCall, State, Tools, close, mark_at, skip_spaces};

/// What may stand around the objects.
pub(super) struct Style {
    /// Before them, if anything: "```json".
    pub fence: &'static str,
    /// Behind them; none: the calls end with the last object.
    pub closes: &'static [&'static str],
    /// Between two of them that are no list.
    pub separator: &'static str,
}

pub(super) const STYLE: Style = Style { fence: "", closes: &[], separator: "" };

/// Whether an answer is a call that no mark tells of: an object of a name, perhaps with its kind before it, and then arguments. Of tools
/// that are known the name is one. Other objects are answers.
pub(super) fn begins(text: &str, tools: &Tools) -> Begin {
    const KEYS: [&str; 5] = ["\"name\"", "\"type\"", "\"function\"", "\"parameters\"", "\"arguments\""];
    let is_known = |name: &str| tools.is_empty() || tools.has(name);
    let (start, mut is_named) = (skip_spaces(text, 0), false);
    match mark_at(text, start, "{") {
        None => return Begin::Open,
        Some(true) => {}
        Some(false) => return Begin::No,
    }
    let mut at = skip_spaces(text, start + 1);
    loop {
        let Some(key) = KEYS.into_iter().find(|key| text[at..].starts_with(key)) else {
            return if KEYS.into_iter().any(|key| mark_at(text, at, key).is_none()) { Begin::Open } else { Begin::No };
        };
        at = skip_spaces(text, at + key.len());
        match text[at..].chars().next() {
            None => return Begin::Open,
            Some(':') => at = skip_spaces(text, at + 1),
            Some(_) => return Begin::No,
        }
        if at == text.len() {
            return Begin::Open;
        }
        if ["\"parameters\"", "\"arguments\""].contains(&key) {
            return if is_named { Begin::Yes } else { Begin::No };
        }
        if key == "\"function\"" && text[at..].starts_with('{') {
            return begins(&text[at..], tools);
        }
        let end = match string(text, at) {
            Scan::Done(end) => end,
            Scan::Open => return Begin::Open,
            Scan::Invalid => return Begin::No,
        };
        let Ok(value) = serde_json::from_str::<String>(&text[at..end]) else { return Begin::No };
        if key != "\"type\"" {
            if is_named || !is_known(&value) {
                return Begin::No;
            }
            is_named = true;
        }
        at = skip_spaces(text, end);
        match text[at..].chars().next() {
            None => return Begin::Open,
            Some(',') => at = skip_spaces(text, at + 1),
            // One without arguments is of a tool.
            Some('}') if is_named && !tools.is_empty() => return Begin::Yes,
            Some(_) => return Begin::No,
        }
    }
}

pub(super) fn parse(text: &str, style: &Style) -> Found {
    let mut found = Found::default();
    let mut at = skip_spaces(text, 0);
    if !style.fence.is_empty() {
        match mark_at(text, at, style.fence) {
            None => return found,
            Some(true) => at = skip_spaces(text, at + style.fence.len()),
            Some(false) => {}
        }
    }
    let is_list = text[at..].starts_with('[');
    if is_list {
        at = skip_spaces(text, at + 1);
    }
    loop {
        match text[at..].chars().next() {
            None => return found,
            Some('{') => {}
            Some(_) => return found.invalid(),
        }
        let (call, end) = object(text, at);
        match end {
            Scan::Done(end) if call.is_complete => {
                found.push(call, end);
                at = end;
            }
            Scan::Done(_) => return found.invalid(),
            Scan::Open | Scan::Invalid => {
                found.push(call, 0);
                return if end == Scan::Open { found } else { found.invalid() };
            }
        }
        let next = skip_spaces(text, at);
        match (text[next..].chars().next(), is_list) {
            (None, _) => return found,
            (Some(','), true) => at = skip_spaces(text, next + 1),
            (Some(']'), true) => {
                found.good = next + 1;
                found.state = close(text, next + 1, style.closes);
                return found;
            }
            (Some(_), true) => return found.invalid(),
            (Some('{'), false) => at = next,
            (Some(_), false) if !style.separator.is_empty() && text[next..].starts_with(style.separator) => {
                // What follows the last separator may be no call.
                let behind = skip_spaces(text, next + style.separator.len());
                match text[behind..].chars().next() {
                    None => return found,
                    Some('{') => at = behind,
                    Some(_) => {
                        found.state = State::Closed(at);
                        return found;
                    }
                }
            }
            (Some(_), false) => {
                found.state = close(text, at, style.closes);
                return found;
            }
        }
    }
}

/// Arguments alone: the object at `at`, or as much of it as there is.
pub(super) fn arguments(text: &str, at: usize) -> (String, Scan) {
    let scan = if text[at..].starts_with('{') { value(text, at, 0) } else { Scan::Invalid };
    match scan {
        Scan::Done(end) if is_json(&text[at..end]) => (text[at..end].to_owned(), scan),
        Scan::Done(_) => (text[at..].to_owned(), Scan::Invalid),
        Scan::Open => (text[at..].trim_end().to_owned(), scan),
        Scan::Invalid => (String::new(), scan),
    }
}

/// The call that the object at `at` is; complete only if it is one.
fn object(text: &str, at: usize) -> (FoundCall, Scan) {
    let mut call = FoundCall::default();
    let end = members(text, at, &mut call, 0);
    if matches!(end, Scan::Done(_)) && call.name.is_some() {
        if call.arguments.is_empty() {
            call.arguments.push_str("{}");
        }
        call.is_complete = true;
    }
    (call, end)
}

fn members(text: &str, at: usize, call: &mut FoundCall, depth: usize) -> Scan {
    let mut at = skip_spaces(text, at + 1);
    if text[at..].starts_with('}') {
        return Scan::Done(at + 1);
    }
    loop {
        if at == text.len() {
            return Scan::Open;
        }
        let key_at = at;
        at = match string(text, at) {
            Scan::Done(end) => end,
            other => return other,
        };
        let Ok(key) = serde_json::from_str::<String>(&text[key_at..at]) else { return Scan::Invalid };
        at = skip_spaces(text, at);
        match text[at..].chars().next() {
            None => return Scan::Open,
            Some(':') => at = skip_spaces(text, at + 1),
            Some(_) => return Scan::Invalid,
        }
        // What was told of a call stays.
        let is_second = match key.as_str() {
            "name" | "tool_name" | "function" => call.name.is_some(),
            "arguments" | "parameters" => !call.arguments.is_empty(),
            "id" | "call_id" | "tool_call_id" => call.id.is_some(),
            _ => false,
        };
        if is_second {
            return Scan::Invalid;
        }
        let value_at = at;
        at = match key.as_str() {
            _ if at == text.len() => return Scan::Open,
            "function" if text[at..].starts_with('{') && depth == 0 => match members(text, at, call, 1) {
                Scan::Done(end) => end,
                other => return other,
            },
            "arguments" | "parameters" if text[at..].starts_with('{') => {
                let (arguments, scan) = arguments(text, at);
                call.arguments = arguments;
                match scan {
                    Scan::Done(end) => end,
                    other => return other,
                }
            }
            _ => match value(text, at, 0) {
                Scan::Done(end) => end,
                other => return other,
            },
        };
        let Ok(value) = serde_json::from_str::<Json>(&text[value_at..at]) else { return Scan::Invalid };
        match (key.as_str(), value) {
            ("name" | "tool_name", Json::String(name)) if !name.is_empty() => call.name = Some(name),
            ("name" | "tool_name", _) => return Scan::Invalid,
            ("function", Json::String(name)) if !name.is_empty() => call.name = Some(name),
            ("function", Json::String(_)) => return Scan::Invalid,
            ("id" | "call_id" | "tool_call_id", Json::String(id)) => call.id = Some(id),
            // Some models write the arguments as a text that is JSON.
            ("arguments" | "parameters", Json::String(json)) => {
                if !serde_json::from_str::<Json>(&json).is_ok_and(|value| value.is_object()) {
                    return Scan::Invalid;
                }
                call.arguments = json;
            }
            ("arguments" | "parameters", Json::Object(_) | Json::Null) => {}
            ("arguments" | "parameters", _) => return Scan::Invalid,
            _ => {}
        }
        at = skip_spaces(text, at);
        match text[at..].chars().next() {
            None => return Scan::Open,
            Some(',') => at = skip_spaces(text, at + 1),
            Some('}') => return Scan::Done(at + 1),
            Some(_) => return Scan::Invalid,
        }
    }
}

/// Where a value ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// Before this byte.
    Done(usize),
    /// Behind the text.
    Open,
    Invalid,
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The JSON value at `at`, which is no space.
pub(super) fn value(text: &str, at: usize, depth: usize) -> Scan {
    let rest = &text[at..];
    match rest.as_bytes().first() {
        None => Scan::Open,
        Some(_) if depth > MAX_DEPTH => Scan::Invalid,
        Some(b'"') => string(text, at),
        Some(b'{') => items(text, at, '}', depth),
        Some(b'[') => items(text, at, ']', depth),
        Some(b'-' | b'0'..=b'9') => {
            let len = rest.bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
            match len == rest.len() {
                true => Scan::Open,
                false if is_json(&rest[..len]) => Scan::Done(at + len),
                false => Scan::Invalid,
            }
        }
        Some(_) => {
            for word in ["true", "false", "null"] {
                match mark_at(text, at, word) {
                    Some(true) => return Scan::Done(at + word.len()),
                    None => return Scan::Open,
                    Some(false) => {}
                }
            }
            Scan::Invalid
        }
    }
}

fn string(text: &str, at: usize) -> Scan {
    if !text[at..].starts_with('"') {
        return Scan::Invalid;
    }
    let mut escaped = false;
    for (offset, byte) in text[at + 1..].bytes().enumerate() {
        match byte {
            0..0x20 => return Scan::Invalid,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Scan::Done(at + offset + 2),
            _ => {}
        }
    }
    Scan::Open
}

/// The list or object at `at`.
fn items(text: &str, at: usize, end: char, depth: usize) -> Scan {
    let mut at = skip_spaces(text, at + 1);
    if text[at..].starts_with(end) {
        return Scan::Done(at + 1);
    }
    loop {
        if end == '}' {
            if at == text.len() {
                return Scan::Open;
            }
            at = match string(text, at) {
                Scan::Done(end) => skip_spaces(text, end),
                other => return other,
            };
            match text[at..].chars().next() {
                None => return Scan::Open,
                Some(':') => at = skip_spaces(text, at + 1),
                Some(_) => return Scan::Invalid,
            }
        }
        at = match value(text, at, depth + 1) {
            Scan::Done(end) => skip_spaces(text, end),
            other => return other,
        };
        match text[at..].chars().next() {
            None => return Scan::Open,
            Some(',') => at = skip_spaces(text, at + 1),
            Some(sign) if sign == end => return Scan::Done(at + 1),
            Some(_) => return Scan::Invalid,
        }
    }
}

/// As deep as the crate serde_json reads.
const MAX_DEPTH: usize = 120;
