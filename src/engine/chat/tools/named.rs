//! Calls as a name, and arguments that are a JSON object behind it.

use super::json::{Scan, arguments, parse as parse_json};
use super::{Found, FoundCall, State, Tools, close, json, mark_at, skip_spaces};

/// `[TOOL_CALLS][{"name": …}]`, or `[TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…}`, a `[CALL_ID]id` before the arguments.
/// A call without an id gets one that the models' templates take, nine letters and digits: always the same for the same call.
pub(super) fn mistral(text: &str, _: &Tools) -> Found {
    let mut found = mistral_calls(text);
    for (place, call) in found.calls.iter_mut().enumerate().filter(|(_, call)| call.is_complete) {
        if call.id.is_none() {
            call.id = Some(short_id(place, call));
        }
    }
    found
}

/// Of a call's place, name and arguments, by the hash FNV-1a, <https://www.rfc-editor.org/rfc/rfc9923>.
fn short_id(place: usize, call: &FoundCall) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let name = call.name.as_deref().unwrap_or_default();
    let bytes = (place as u64).to_le_bytes().into_iter().chain(name.bytes()).chain([0]).chain(call.arguments.bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let letters = (0..9).map(|_| {
        let letter = LETTERS[(hash % 62) as usize];
        hash /= 62;
        char::from(letter)
    });
    letters.collect()
}

fn mistral_calls(text: &str) -> Found {
    match text.trim_start().chars().next() {
        None => return Found::default(),
        Some('[' | '{') => return parse_json(text, &json::STYLE),
        Some(_) => {}
    }
    let mut found = Found::default();
    let mut at = 0;
    loop {
        let mut call = FoundCall::default();
        let Some(end) = text[at..].find(['[', '{']).map(|end| at + end) else {
            return if is_name_begun(&text[at..]) { found.begun(&text[at..]) } else { found.invalid() };
        };
        let name = text[at..end].trim();
        if !is_name(name) {
            return found.invalid();
        }
        call.name = Some(name.to_owned());
        at = end;
        match mark_at(text, at, "[CALL_ID]") {
            None => return found.begun(name),
            Some(true) => {
                let id_at = at + "[CALL_ID]".len();
                let Some(end) = text[id_at..].find(['[', '{']).map(|end| id_at + end) else {
                    return found.begun(name);
                };
                call.id = Some(text[id_at..end].trim().to_owned());
                at = end;
            }
            Some(false) => {}
        }
        match mark_at(text, at, "[ARGS]") {
            None => return found.begun(name),
            Some(true) => at += "[ARGS]".len(),
            Some(false) => {}
        }
        at = match push(&mut found, call, text, skip_spaces(text, at)) {
            Some(end) => end,
            None => return found,
        };
        let next = skip_spaces(text, at);
        match mark_at(text, next, "[TOOL_CALLS]") {
            Some(true) => at = next + "[TOOL_CALLS]".len(),
            None => return found,
            Some(false) => {
                found.state = State::Closed(at);
                return found;
            }
        }
    }
}

/// `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>` of V3.1, or `…begin｜>function<｜tool▁sep｜>name\n```json\n{…}\n```…` of V3 and R1.
pub(super) fn deepseek(text: &str, _: &Tools) -> Found {
    let (mut found, mut at) = (Found::default(), 0);
    match mark_at(text, 0, "<｜tool▁calls▁begin｜>") {
        None => return found,
        Some(true) => at = skip_spaces(text, "<｜tool▁calls▁begin｜>".len()),
        Some(false) => {}
    }
    loop {
        match mark_at(text, at, "<｜tool▁call▁begin｜>") {
            None => return found,
            Some(true) => at += "<｜tool▁call▁begin｜>".len(),
            Some(false) => return found.invalid(),
        }
        let Some(sep) = text[at..].find("<｜tool▁sep｜>").map(|sep| at + sep) else { return found.begun(&text[at..]) };
        let (first, behind) = (text[at..sep].trim(), sep + "<｜tool▁sep｜>".len());
        let mut call = FoundCall::default();
        // V3 says what it calls first, a function; V3.1 has no such word, and JSON at once.
        let is_plain = match text[skip_spaces(text, behind)..].chars().next() {
            None => return found.begun(first),
            Some(first) => first == '{',
        };
        let json_at = if is_plain {
            call.name = Some(first.to_owned());
            skip_spaces(text, behind)
        } else {
            let Some(line) = text[behind..].find('\n').map(|line| behind + line) else { return found.begun(first) };
            call.name = Some(text[behind..line].trim().to_owned());
            let fence = skip_spaces(text, line);
            match mark_at(text, fence, "```json") {
                None => return found.begun(first),
                Some(true) => skip_spaces(text, fence + "```json".len()),
                Some(false) => fence,
            }
        };
        if !call.name.as_deref().is_some_and(is_name) {
            return found.invalid();
        }
        let Some(mut end) = push(&mut found, call, text, json_at) else { return found };
        if !is_plain {
            match mark_at(text, skip_spaces(text, end), "```") {
                None => return found,
                Some(true) => end = skip_spaces(text, end) + 3,
                Some(false) => {}
            }
        }
        match close(text, end, &["<｜tool▁call▁end｜>"]) {
            State::Closed(closed) => end = closed,
            open => {
                found.state = open;
                return found;
            }
        }
        found.good = end;
        let next = skip_spaces(text, end);
        match mark_at(text, next, "<｜tool▁call▁begin｜>") {
            None => return found,
            Some(true) => at = next,
            Some(false) => {
                found.state = close(text, end, &["<｜tool▁calls▁end｜>"]);
                return found;
            }
        }
    }
}

/// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`; the first part is the call's id.
pub(super) fn kimi(text: &str, _: &Tools) -> Found {
    let (mut found, mut at) = (Found::default(), 0);
    match mark_at(text, 0, "<|tool_calls_section_begin|>") {
        None => return found,
        Some(true) => at = skip_spaces(text, "<|tool_calls_section_begin|>".len()),
        Some(false) => {}
    }
    loop {
        match mark_at(text, at, "<|tool_call_begin|>") {
            None => return found,
            Some(true) => at += "<|tool_call_begin|>".len(),
            Some(false) => return found.invalid(),
        }
        let Some(sep) = text[at..].find("<|tool_call_argument_begin|>").map(|sep| at + sep) else {
            return found.begun(&text[at..]);
        };
        let id = text[at..sep].trim();
        let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
        let name = name.strip_prefix("functions.").unwrap_or(name);
        if !is_name(name) {
            return found.invalid();
        }
        let call = FoundCall { name: Some(name.to_owned()), id: Some(id.to_owned()), ..FoundCall::default() };
        let json_at = skip_spaces(text, sep + "<|tool_call_argument_begin|>".len());
        let Some(end) = push(&mut found, call, text, json_at) else { return found };
        let end = match close(text, end, &["<|tool_call_end|>"]) {
            State::Closed(closed) => closed,
            open => {
                found.state = open;
                return found;
            }
        };
        found.good = end;
        let next = skip_spaces(text, end);
        match mark_at(text, next, "<|tool_call_begin|>") {
            None => return found,
            Some(true) => at = next,
            Some(false) => {
                found.state = close(text, end, &["<|tool_calls_section_end|>"]);
                return found;
            }
        }
    }
}

/// `name\n{…}`, or `all\n` and an answer.
pub(super) fn functionary(text: &str, _: &Tools) -> Found {
    let mut found = Found::default();
    let Some(line) = text.find('\n') else {
        return if is_name_begun(text) { found } else { found.invalid() };
    };
    let name = text[..line].trim();
    if name == "all" {
        found.state = State::Answer(line + 1);
        return found;
    }
    if !is_name(name) {
        return found.invalid();
    }
    let call = FoundCall { name: Some(name.to_owned()), ..FoundCall::default() };
    if let Some(end) = push(&mut found, call, text, skip_spaces(text, line)) {
        found.state = State::Closed(end);
    }
    found
}

/// `name>{…}</function>`, behind `<function=`.
pub(super) fn function_tag(text: &str, _: &Tools) -> Found {
    let mut found = Found::default();
    let Some(end) = text.find('>') else {
        return if is_name_begun(text) { found } else { found.invalid() };
    };
    if !is_name(&text[..end]) {
        return found.invalid();
    }
    let call = FoundCall { name: Some(text[..end].to_owned()), ..FoundCall::default() };
    if let Some(end) = push(&mut found, call, text, skip_spaces(text, end + 1)) {
        found.state = close(text, end, &["</function>"]);
    }
    found
}

/// Adds the call with the arguments at `at`; gives where they end, if they do.
fn push(found: &mut Found, mut call: FoundCall, text: &str, at: usize) -> Option<usize> {
    if at == text.len() {
        found.push(call, 0);
        return None;
    }
    let (arguments, scan) = arguments(text, at);
    call.arguments = arguments;
    call.is_complete = matches!(scan, Scan::Done(_));
    match scan {
        Scan::Done(end) => {
            found.push(call, end);
            return Some(end);
        }
        Scan::Open => found.push(call, 0),
        Scan::Invalid => {
            found.push(call, 0);
            found.state = State::Invalid;
        }
    }
    None
}

pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && is_name_begun(name)
}

/// Whether a text may become a tool's name: those of OpenAI's rules, with dots.
pub(super) fn is_name_begun(name: &str) -> bool {
    name.len() <= 128
        && name.trim().chars().all(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.' | ':' | '/'))
}
