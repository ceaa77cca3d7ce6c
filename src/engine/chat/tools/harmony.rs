//! Messages of gpt-oss: a header says whether what follows is a thought, an answer or a call.
//!
//! ```text
//! <|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>
//! ```

use super::json::{Scan, arguments};
use super::named::is_name;
use super::{Begin, Found, FoundCall, State, Tools, close, mark_at, skip_spaces};

/// A header that the prompt has begun may go on with the recipient: ` to=functions.f<|channel|>commentary json<|message|>{"a": 1}`.
pub(super) fn begins(text: &str, _: &Tools) -> Begin {
    match mark_at(text, skip_spaces(text, 0), "to=") {
        Some(true) => Begin::Yes,
        Some(false) => Begin::No,
        None => Begin::Open,
    }
}

pub(super) fn parse(text: &str, _: &Tools) -> Found {
    let mut found = Found::default();
    let Some(end) = text.find("<|message|>") else {
        // A header is a line of words; what has grown beyond one is no header.
        return if text.len() <= MAX_HEADER_BYTES { found } else { found.invalid() };
    };
    if end > MAX_HEADER_BYTES {
        return found.invalid();
    }
    let (header, behind) = (&text[..end], end + "<|message|>".len());
    let recipient = header.split_once("to=").map(|(_, recipient)| {
        let len = recipient.find(|letter: char| letter.is_whitespace() || letter == '<').unwrap_or(recipient.len());
        &recipient[..len]
    });
    let channel = header.split_once("<|channel|>").map_or("final", |(_, channel)| channel.trim_start());
    let Some(recipient) = recipient else {
        found.state = if channel.starts_with("analysis") { State::Thought(behind, ENDS) } else { State::Answer(behind) };
        return found;
    };
    let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
    if !is_name(name) {
        return found.invalid();
    }
    let mut call = FoundCall { name: Some(name.to_owned()), ..FoundCall::default() };
    let at = skip_spaces(text, behind);
    if at == text.len() {
        found.push(call, 0);
        return found;
    }
    let (json, scan) = arguments(text, at);
    call.arguments = json;
    call.is_complete = matches!(scan, Scan::Done(_));
    match scan {
        Scan::Done(end) => {
            found.push(call, end);
            found.state = close(text, end, &["<|call|>", "<|end|>", "<|return|>"]);
            found
        }
        Scan::Open => {
            found.push(call, 0);
            found
        }
        Scan::Invalid => {
            found.push(call, 0);
            found.invalid()
        }
    }
}

/// What ends a thought; the last two begin the next message.
const ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"];
const MAX_HEADER_BYTES: usize = 512;
