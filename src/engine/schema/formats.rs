//! `format`: those that are known are patterns, others are annotations, as JSON Schema has it.
//!
//! The compiler's own take days that no calendar has, and a leap second in any minute.

use serde_json::{Map, Value, json};

/// Those that the compiler reads itself.
const COMPILED: [&str; 7] = ["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

pub(super) fn adapt(fields: &mut Map<String, Value>) {
    let Some(name) = fields.get("format").and_then(Value::as_str) else { return };
    let pattern = match name {
        "date" => date(),
        "time" => time(),
        "date-time" => format!("(?:{})[tT](?:{})", date(), time()),
        _ if COMPILED.contains(&name) => return,
        _ => {
            fields.shift_remove("format");
            return;
        }
    };
    fields.shift_remove("format");
    let pattern = json!({ "type": "string", "pattern": format!("^(?:{pattern})$") });
    // A pattern says nothing of what is no text.
    let others = json!({ "type": ["null", "boolean", "number", "array", "object"] });
    let only_text = fields.get("type").and_then(Value::as_str) == Some("string");
    let both = if only_text { pattern } else { json!({ "anyOf": [pattern, others] }) };
    if only_text && !fields.contains_key("pattern") {
        fields.insert("pattern".to_owned(), both["pattern"].clone());
        return;
    }
    match fields.get_mut("allOf") {
        Some(Value::Array(all)) => all.push(both),
        _ => {
            fields.insert("allOf".to_owned(), json!([both]));
        }
    }
}

/// A `full-date` of RFC 3339; 29 February in leap years alone.
fn date() -> String {
    let leap_year = "[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00";
    format!(
        "[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
         |02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:{leap_year})-02-29"
    )
}

/// A `full-time` of RFC 3339. A leap second ends a day of UTC: with an offset, it stands at another time of the clock. Offsets by
/// whole quarters of an hour have one here.
fn time() -> String {
    let fraction = r"(?:\.[0-9]+)?";
    let mut leap = vec![format!("23:59:60{fraction}[zZ]")];
    for offset in (0..24 * 60i32).step_by(15) {
        for (sign, signed) in [('+', offset), ('-', -offset)] {
            let local = (24 * 60 - 1 + signed).rem_euclid(24 * 60);
            let (hour, minute) = (offset / 60, offset % 60);
            leap.push(format!(r"{:02}:{:02}:60{fraction}\{sign}{hour:02}:{minute:02}", local / 60, local % 60));
        }
    }
    format!("(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]{fraction}(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])|{}", leap.join("|"))
}
