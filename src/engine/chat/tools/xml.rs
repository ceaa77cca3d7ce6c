//! Calls as tags, whose values are bare text.

use serde_json::Value as Json;

use super::json::{self, Scan};
use super::named::{is_name, is_name_begun};
use super::{Found, FoundCall, State, Tools, close, mark_at, skip_spaces};

/// `<tool_call><function=name><parameter=key>\nvalue\n</parameter></function></tool_call>`.
pub(super) fn qwen(text: &str, tools: &Tools) -> Found {
    functions(text, tools, "<tool_call>", "</tool_call>")
}

/// `<seed:tool_call><function=name><parameter=key>value</parameter></function></seed:tool_call>`.
pub(super) fn seed(text: &str, tools: &Tools) -> Found {
    functions(text, tools, "<seed:tool_call>", "</seed:tool_call>")
}

/// `frame` stands before functions and `frame_end` behind them, if anything does.
fn functions(text: &str, tools: &Tools, frame: &str, frame_end: &str) -> Found {
    let (mut found, mut at) = (Found::default(), 0);
    let mut has_frame = false;
    match mark_at(text, 0, frame) {
        None => return found,
        Some(true) => (at, has_frame) = (skip_spaces(text, frame.len()), true),
        Some(false) => {}
    }
    loop {
        match mark_at(text, at, "<function=") {
            None => return found,
            Some(true) => at += "<function=".len(),
            Some(false) => return found.invalid(),
        }
        let Some(end) = text[at..].find('>').map(|end| at + end) else {
            return if is_name_begun(&text[at..]) { found.begun(&text[at..]) } else { found.invalid() };
        };
        let name = text[at..end].trim();
        if !is_name(name) {
            return found.invalid();
        }
        let mut arguments = Arguments::of(name);
        at = skip_spaces(text, end + 1);
        loop {
            match (mark_at(text, at, "<parameter="), mark_at(text, at, "</function>")) {
                (Some(true), _) => {}
                (_, Some(true)) => break,
                (None, _) | (_, None) => {
                    found.push(arguments.call(false), 0);
                    return found;
                }
                _ => {
                    found.push(arguments.call(false), 0);
                    return found.invalid();
                }
            }
            let key_at = at + "<parameter=".len();
            let Some(key_end) = text[key_at..].find('>').map(|end| key_at + end) else {
                found.push(arguments.call(false), 0);
                return found;
            };
            let key = text[key_at..key_end].trim();
            let Some((value, end)) = parameter(text, key_end + 1, tools.is_json(name, key)) else {
                found.push(arguments.call(false), 0);
                return found;
            };
            arguments.push(key, &tools.value(name, key, value));
            at = skip_spaces(text, end);
        }
        let end = at + "</function>".len();
        found.push(arguments.call(true), end);
        if !has_frame {
            // The frame's end may be there without its beginning.
            found.state = close(text, end, &[frame_end]);
            return found;
        }
        let next = skip_spaces(text, end);
        match mark_at(text, next, "<function=") {
            // Its beginning may be that of the frame's end too.
            None => return found,
            Some(true) => at = next,
            Some(false) => {
                found.state = close(text, end, &[frame_end]);
                return found;
            }
        }
    }
}

/// The value that begins at `at`, and where its end tag ends. A value may hold that tag itself: what ends it is followed by another
/// parameter or by the function's end.
fn parameter(text: &str, at: usize, is_json: bool) -> Option<(&str, usize)> {
    const END: &str = "</parameter>";
    match json_value(text, at, END) {
        Scan::Open if is_json => return None,
        Scan::Done(end) if is_json => return Some((&text[at..end], end + END.len())),
        _ => {}
    }
    let mut from = at;
    loop {
        let end = from + text[from..].find("</parameter>")?;
        let behind = end + "</parameter>".len();
        let next = skip_spaces(text, behind);
        let follows = [mark_at(text, next, "<parameter="), mark_at(text, next, "</function>")];
        if follows.contains(&Some(true)) {
            let value = &text[at..end];
            let value = value.strip_prefix('\n').unwrap_or(value);
            return Some((value.strip_suffix('\n').unwrap_or(value), behind));
        }
        if follows.contains(&None) {
            return None;
        }
        from = behind;
    }
}

/// Where the end tag of a value begins that is a list, an object or a text of JSON: the texts in it may hold that tag.
fn json_value(text: &str, at: usize, tag: &str) -> Scan {
    let at = skip_spaces(text, at);
    if at == text.len() {
        return Scan::Open;
    }
    if !text[at..].starts_with(['{', '[', '"']) {
        return Scan::Invalid;
    }
    let end = match json::value(text, at, 0) {
        Scan::Done(end) => end,
        other => return other,
    };
    let behind = skip_spaces(text, end);
    match mark_at(text, behind, tag) {
        _ if serde_json::from_str::<Json>(&text[at..end]).is_err() => Scan::Invalid,
        None => Scan::Open,
        Some(true) => Scan::Done(behind),
        Some(false) => Scan::Invalid,
    }
}

/// `name\n<arg_key>key</arg_key>\n<arg_value>value</arg_value>\n</tool_call>`, behind `<tool_call>`.
pub(super) fn glm(text: &str, tools: &Tools) -> Found {
    let mut found = Found::default();
    let Some(end) = text.find('<') else {
        return if is_name_begun(text) { found } else { found.invalid() };
    };
    let name = text[..end].trim();
    if !is_name(name) {
        return found.invalid();
    }
    let mut arguments = Arguments::of(name);
    let mut at = end;
    loop {
        match (mark_at(text, at, "<arg_key>"), mark_at(text, at, "</tool_call>")) {
            (Some(true), _) => {}
            (_, Some(true)) => {
                let end = at + "</tool_call>".len();
                found.push(arguments.call(true), end);
                found.state = State::Closed(end);
                return found;
            }
            (None, _) | (_, None) => break,
            _ => {
                found.push(arguments.call(false), 0);
                return found.invalid();
            }
        }
        let key_at = at + "<arg_key>".len();
        let Some(key_end) = text[key_at..].find("</arg_key>").map(|end| key_at + end) else { break };
        let value_tag = skip_spaces(text, key_end + "</arg_key>".len());
        match mark_at(text, value_tag, "<arg_value>") {
            None => break,
            Some(true) => {}
            Some(false) => {
                found.push(arguments.call(false), 0);
                return found.invalid();
            }
        }
        let value_at = value_tag + "<arg_value>".len();
        let key = text[key_at..key_end].trim();
        let value_end = match json_value(text, value_at, "</arg_value>") {
            Scan::Open if tools.is_json(name, key) => break,
            Scan::Done(end) if tools.is_json(name, key) => end,
            _ => match text[value_at..].find("</arg_value>") {
                Some(end) => value_at + end,
                None => break,
            },
        };
        arguments.push(key, &tools.value(name, key, &text[value_at..value_end]));
        at = skip_spaces(text, value_end + "</arg_value>".len());
    }
    found.push(arguments.call(false), 0);
    found
}

/// The arguments of a call as JSON, growing by whole values.
pub(super) struct Arguments {
    name: String,
    json: String,
}

impl Arguments {
    pub fn of(name: &str) -> Self {
        Self { name: name.to_owned(), json: "{".to_owned() }
    }

    pub fn push(&mut self, key: &str, value: &Json) {
        if self.json.len() > 1 {
            self.json.push_str(", ");
        }
        self.json.push_str(&Json::from(key).to_string());
        self.json.push_str(": ");
        self.json.push_str(&value.to_string());
    }

    pub fn call(mut self, is_complete: bool) -> FoundCall {
        if is_complete {
            self.json.push('}');
        }
        FoundCall { name: Some(self.name), id: None, arguments: self.json, is_complete }
    }
}
