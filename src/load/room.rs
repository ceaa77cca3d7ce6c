//! What JSON becomes in memory, so that there is room for it before a crate that does not ask makes it.
//!
//! ```ignore
//! check_json_room("config.json", text)?;   // OutOfMemory, where serde_json would end the process
//! let value: Value = serde_json::from_str(text)?;
//! ```

use serde_json::Value;

use crate::error::Result;
use crate::kernels::check_room;

/// A value in a list: a list doubles its room when it is full, and has the old one until it is moved.
const ITEM: usize = 3 * size_of::<Value>();
/// A member of an object: the same, with its name and its place in the table.
const MEMBER: usize = 3 * (size_of::<Value>() + size_of::<String>() + 24) + ALLOCATED;
/// A list or an object with something in it: room for four.
const LIST: usize = 4 * size_of::<Value>() + ALLOCATED;
const OBJECT: usize = 4 * (size_of::<Value>() + size_of::<String>() + 8) + 3 * ALLOCATED;
/// What an allocation takes beside what is asked for, and a text's beginning.
const ALLOCATED: usize = 32;

/// Whether there is room for what `text` becomes as values.
///
/// # Errors
/// `ErrorKind::OutOfMemory`.
pub fn check_json_room(what: &str, text: &str) -> Result<()> {
    check_room(what, json_bytes(text))
}

/// The most memory that the values of a text take, and texts that grow while they are read.
pub fn json_bytes(text: &str) -> usize {
    let (mut bytes, mut is_text, mut is_escaped, mut escapes) = (text.len(), false, false, false);
    // Of the innermost lists and objects: whether a comma parts members. Deeper than serde_json reads, it is not looked at.
    let (mut objects, mut depth) = (0u128, 0u32);
    for byte in text.bytes() {
        if is_text {
            is_text = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
            escapes |= is_escaped;
            continue;
        }
        match byte {
            b'"' => {
                is_text = true;
                bytes += ALLOCATED;
            }
            b'[' | b'{' => {
                objects = objects << 1 | u128::from(byte == b'{');
                depth += 1;
                bytes += if byte == b'{' { OBJECT } else { LIST };
            }
            b']' | b'}' => {
                objects >>= 1;
                depth = depth.saturating_sub(1);
            }
            b',' if depth <= u128::BITS && objects & 1 == 0 => bytes += ITEM,
            b',' => bytes += MEMBER,
            _ => {}
        }
    }
    // A text with escapes is put together in a buffer that doubles, and copied.
    if escapes { bytes + 3 * text.len() } else { bytes }
}

/// What a value takes, and a copy of it.
pub fn held_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len() + ALLOCATED,
        Value::Array(items) => ALLOCATED + items.iter().map(|item| size_of::<Value>() + held_bytes(item)).sum::<usize>(),
        Value::Object(fields) => held_by_fields(fields),
    }
}

/// The same of an object's members.
pub fn held_by_fields(fields: &serde_json::Map<String, Value>) -> usize {
    let member = |(name, value): (&String, &Value)| MEMBER / 2 + name.len() + held_bytes(value);
    OBJECT + fields.iter().map(member).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_takes_is_counted_by_its_values_and_not_by_the_letters_of_its_texts() {
        let long = format!(r#"{{"role": "user", "content": "{}"}}"#, r#"a, [b] {c} \" "#.repeat(10_000));
        assert!(json_bytes(&long) < 4 * long.len() + 2000, "{}", json_bytes(&long));
        let many = format!("[{}1]", "{},".repeat(10_000));
        assert!(json_bytes(&many) > 10_000 * size_of::<Value>());
        for text in ["", "]]]", "\"", "\"\\", &"[".repeat(10_000), &"{".repeat(10_000)] {
            assert!(json_bytes(text) < 1000 * text.len().max(1));
        }
    }

    #[test]
    fn no_value_takes_more_than_its_text_said() {
        for text in [
            "[1,2,3]",
            r#"[{"role":"user","content":"a"},{"role":"user","content":"a"}]"#,
            "[[],[],[[]]]",
            r#"{"a":1,"b":{"c":[]},"d":"text"}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(held_bytes(&value) <= json_bytes(text), "{text}: {} {}", held_bytes(&value), json_bytes(text));
        }
    }
}
