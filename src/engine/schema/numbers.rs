//! Numbers beyond what a double holds, and bounds beyond what the compiler takes.
//!
//! The compiler knows numbers as doubles, and texts of bounds up to nineteen digits. Where a schema is about one number, a regular
//! expression takes its place, which holds any digits; elsewhere such integers are refused rather than rounded.

use serde_json::{Map, Value};

use super::invalid;
use crate::error::Result;

/// An integer of any length: its sign and its digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Integer {
    negative: bool,
    digits: String,
}

/// Stands before the digits of an integer that a double might not hold; a private character that no text has.
const MARK: char = '\u{10fffd}';

/// The text with each large integer as a text of its own, as reading it would round it.
pub(super) fn mark_large(text: &str) -> Result<String> {
    if text.contains(MARK) || text.to_lowercase().contains("\\udbff\\udffd") {
        return Err(invalid("U+10FFFD is not supported"));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let len = match letter {
            '"' => string_len(rest),
            '-' | '0'..='9' => {
                let len = rest.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let len = len.unwrap_or(rest.len());
                let number = &rest[..len];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                if is_integer && !digits.starts_with('0') && digits.parse::<u64>().map_or(true, |value| value > 1 << 53) {
                    out.push_str(&format!("\"{MARK}{number}\""));
                    rest = &rest[len..];
                    continue;
                }
                len
            }
            _ => letter.len_utf8(),
        };
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    Ok(out)
}

fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

impl Integer {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::parse(text.strip_prefix(MARK)?)),
            Value::Number(number) => match number.as_f64() {
                Some(float) if float.fract() == 0.0 && float.is_finite() => Some(Self::parse(&format!("{float:.0}"))),
                _ => None,
            },
            _ => None,
        }
    }

    fn parse(text: &str) -> Self {
        let digits = text.strip_prefix('-').unwrap_or(text);
        Self { negative: text.starts_with('-') && digits != "0", digits: digits.to_owned() }
    }

    fn is_large(&self) -> bool {
        self.digits.parse::<u64>().map_or(true, |value| value > 1 << 53)
    }

    fn text(&self) -> String {
        format!("{}{}", if self.negative { "-" } else { "" }, self.digits)
    }

    /// The next one up or down.
    fn step(&self, up: bool) -> Self {
        if up != self.negative {
            let mut digits: Vec<u8> = self.digits.bytes().collect();
            for at in (0..digits.len()).rev() {
                if digits[at] < b'9' {
                    digits[at] += 1;
                    return Self { negative: self.negative, digits: texts(&digits) };
                }
                digits[at] = b'0';
            }
            digits.insert(0, b'1');
            return Self { negative: self.negative, digits: texts(&digits) };
        }
        if self.digits == "0" {
            return Self { negative: !up, digits: "1".to_owned() };
        }
        let mut digits: Vec<u8> = self.digits.bytes().collect();
        for at in (0..digits.len()).rev() {
            if digits[at] > b'0' {
                digits[at] -= 1;
                break;
            }
            digits[at] = b'9';
        }
        let digits = texts(&digits);
        let digits = digits.trim_start_matches('0');
        let digits = if digits.is_empty() { "0" } else { digits };
        Self { negative: self.negative && digits != "0", digits: digits.to_owned() }
    }

    /// Itself, or if that has very many digits, the next power of ten up or down: each digit of a bound nests in a pattern.
    fn rounded(self, up: bool) -> Self {
        if self.digits.len() <= MOST_DIGITS {
            return self;
        }
        let len = self.digits.len();
        let digits = if up != self.negative { format!("1{}", "0".repeat(len)) } else { "9".repeat(len - 1) };
        Self { negative: self.negative, digits }
    }

    fn is_at_most(&self, other: &Self) -> bool {
        let shorter = |a: &str, b: &str| (a.len(), a) <= (b.len(), b);
        match (self.negative, other.negative) {
            (true, false) => true,
            (false, true) => false,
            (false, false) => shorter(&self.digits, &other.digits),
            (true, true) => shorter(&other.digits, &self.digits),
        }
    }
}

fn texts(digits: &[u8]) -> String {
    digits.iter().map(|digit| char::from(*digit)).collect()
}

const MOST_DIGITS: usize = 60;
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// Beside them, nothing changes what a number is.
const ANNOTATIONS: [&str; 9] =
    ["$schema", "$id", "$comment", "title", "description", "default", "examples", "format", "deprecated"];

/// A schema that is about one number, or a list of values with a large one among them, as a pattern.
///
/// # Errors
/// `InvalidArgument` for bounds between which nothing lies.
pub(super) fn whole_pattern(root: &Value) -> Result<Option<String>> {
    let Some(fields) = root.as_object() else { return Ok(None) };
    let known = |key: &str| BOUNDS.contains(&key) || ANNOTATIONS.contains(&key) || ["type", "enum", "const"].contains(&key);
    if !fields.keys().all(|key| known(key)) {
        return Ok(None);
    }
    let kind = fields.get("type").map_or(Some(""), Value::as_str);
    let values = match (fields.get("const"), fields.get("enum").and_then(Value::as_array)) {
        (Some(value), None) => Some(vec![value.clone()]),
        (None, Some(values)) => Some(values.clone()),
        (None, None) => None,
        _ => return Ok(None),
    };
    if let Some(values) = values {
        let is_large = |value: &Value| matches!(value, Value::String(text) if text.starts_with(MARK));
        if !values.iter().any(is_large) || BOUNDS.iter().any(|key| fields.contains_key(*key)) {
            return Ok(None);
        }
        let fits = |value: &Value| match (kind, value) {
            (None | Some(""), _) => kind.is_some(),
            (Some("integer" | "number"), value) => is_large(value) || value.is_number(),
            (Some("string"), value) => value.is_string() && !is_large(value),
            (Some("boolean"), value) => value.is_boolean(),
            (Some("null"), value) => value.is_null(),
            _ => false,
        };
        let texts: Vec<String> = values.iter().filter(|value| fits(value)).map(|value| escaped(&json_text(value))).collect();
        if texts.is_empty() {
            return Err(invalid("no text conforms to it"));
        }
        return Ok(Some(format!("({})", texts.join("|"))));
    }
    let integers = kind == Some("integer");
    if !integers && kind != Some("number") {
        return Ok(None);
    }
    let bound = |key: &str, up: bool| -> Option<Integer> {
        let value = fields.get(key)?;
        let whole = Integer::of(value);
        match (whole, value.as_f64()) {
            (Some(whole), _) if key.starts_with("exclusive") => Some(whole.step(up)),
            (Some(whole), _) => Some(whole),
            (None, Some(float)) => Some(Integer::parse(&format!("{:.0}", if up { float.ceil() } else { float.floor() }))),
            (None, None) => None,
        }
    };
    let bounds: Vec<Option<Integer>> = BOUNDS.iter().map(|key| fields.get(*key).and_then(Integer::of)).collect();
    let far =
        |bound: &Option<Integer>| bound.as_ref().is_some_and(|bound| bound.is_large() && (integers || bound.digits.len() > 18));
    if !bounds.iter().any(far) || BOUNDS.iter().any(|key| fields.get(*key).is_some_and(Value::is_boolean)) {
        return Ok(None);
    }
    let most_of = |a: Option<Integer>, b: Option<Integer>, larger: bool| match (a, b) {
        (Some(a), Some(b)) => Some(if a.is_at_most(&b) == larger { b } else { a }),
        (a, b) => a.or(b),
    };
    let least = most_of(bound("minimum", true), bound("exclusiveMinimum", true), true);
    let most = most_of(bound("maximum", false), bound("exclusiveMaximum", false), false);
    // Of numbers those that are whole: their digits are exact.
    let (least, most) = (least.map(|least| least.rounded(true)), most.map(|most| most.rounded(false)));
    range(least.as_ref(), most.as_ref()).map(Some).ok_or_else(|| invalid("no number lies between its bounds"))
}

/// Bounds that the compiler takes: those it fails on are moved inwards, where they are so far out or so near to zero that no digits
/// are lost that a model would write.
pub(super) fn adapt(fields: &mut Map<String, Value>) -> Result<()> {
    let may_be = |kind: &str| match fields.get("type") {
        Some(Value::String(found)) => found == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|found| found.as_str() == Some(kind)),
        _ => kind == "number",
    };
    let (numbers, integers) = (may_be("number"), may_be("integer"));
    for (key, value) in fields.iter_mut() {
        let marked = |value: &Value| Integer::of(value).filter(|_| value.is_string());
        if BOUNDS.contains(&key.as_str()) {
            if let Some(integer) = marked(value) {
                *value = nearest(key, &integer, numbers || integers)?.into();
            }
        } else if let (true, Some(count)) = (super::COUNTS.contains(&key.as_str()), marked(value)) {
            // The largest that the compiler takes, which is as good as any beyond.
            if !count.negative {
                *value = u64::MAX.into();
            }
        } else if matches!(key.as_str(), "const" | "enum" | "multipleOf") && holds_mark(value) {
            return Err(invalid(format!(
                "{key}: an integer beyond 2^53 is supported where the schema is about it alone: it would be rounded"
            )));
        }
        // An annotation, or something else that is compared with nothing.
        unmark(value);
    }
    let bound = |fields: &Map<String, Value>, key: &str| fields.get(key).and_then(Value::as_f64);
    if integers && !numbers && BOUNDS.iter().any(|key| bound(fields, key).is_some_and(|bound| bound.abs() >= EXACT)) {
        for (inner, exclusive, sign) in [("minimum", "exclusiveMinimum", -1.0), ("maximum", "exclusiveMaximum", 1.0)] {
            for key in [inner, exclusive] {
                let Some(found) = bound(fields, key) else { continue };
                if found * sign >= EXACT {
                    fields.shift_remove(key);
                    let most = (1i64 << 53) - i64::from(key == exclusive && found * sign <= EXACT);
                    if bound(fields, inner).is_none_or(|inner| inner * sign > most as f64) {
                        fields.insert(inner.to_owned(), Value::from((sign as i64) * most));
                    }
                } else if found.abs() >= EXACT {
                    return Err(invalid(rounded(key, &found.to_string())));
                }
            }
        }
        return Ok(());
    }
    for (key, sign) in [("minimum", -1.0), ("exclusiveMinimum", -1.0), ("maximum", 1.0), ("exclusiveMaximum", 1.0)] {
        let Some(found) = bound(fields, key) else { continue };
        let outwards = found * sign;
        let moved = if outwards > FAR {
            FAR * sign
        } else if outwards < -FAR {
            return Err(invalid(format!("{key}: {found}: expected a bound of up to 1e18 on this side of zero")));
        } else if found != 0.0 && found.abs() < NEAR {
            // Inwards: a lower bound goes up, an upper one down.
            match (sign < 0.0, found > 0.0) {
                (true, true) => NEAR,
                (false, false) => -NEAR,
                _ => 0.0,
            }
        } else {
            continue;
        };
        fields.insert(key.to_owned(), Value::from(moved));
    }
    Ok(())
}

/// The double that stands for a bound: the same number, or, of a bound that is far from zero on its own side, the next one inwards.
fn nearest(key: &str, integer: &Integer, is_compared: bool) -> Result<f64> {
    let (upper, text) = (key.ends_with("aximum"), integer.text());
    let float = text.parse::<f64>().unwrap_or(f64::INFINITY).clamp(f64::MIN, f64::MAX);
    let exact = Integer::parse(&format!("{float:.0}"));
    if exact == *integer || !is_compared {
        return Ok(float);
    }
    if integer.negative == upper {
        return Err(invalid(rounded(key, &text)));
    }
    Ok(match (upper, exact.is_at_most(integer)) {
        (true, false) => float.next_down(),
        (false, true) => float.next_up(),
        _ => float,
    })
}

fn rounded(key: &str, found: &str) -> String {
    let digits: String = found.chars().take(MOST_DIGITS).collect();
    format!("{key}: {digits}: an integer beyond 2^53 would be rounded")
}

/// 2^53: up to here a double counts one by one.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// Digits of a bound that the compiler takes on either side of the point.
const FAR: f64 = 1e18;
const NEAR: f64 = 1e-30;

fn holds_mark(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with(MARK),
        Value::Array(items) => items.iter().any(holds_mark),
        Value::Object(fields) => fields.values().any(holds_mark),
        _ => false,
    }
}

fn unmark(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with(MARK) => {
            let float = text[MARK.len_utf8()..].parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            *value = float.map_or(Value::Null, Value::Number);
        }
        Value::Array(items) => items.iter_mut().for_each(unmark),
        Value::Object(fields) => fields.values_mut().for_each(unmark),
        _ => {}
    }
}

/// A value as JSON has it, with the digits of large integers.
fn json_text(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with(MARK) => text[MARK.len_utf8()..].to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(json_text).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| format!("{}:{}", Value::from(key.as_str()), json_text(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(","))
        }
        value => value.to_string(),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if letter.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// A pattern of the integers from `least` to `most`; `None` if there are none.
fn range(least: Option<&Integer>, most: Option<&Integer>) -> Option<String> {
    let mut parts = Vec::new();
    let negative = |bound: Option<&Integer>| bound.is_some_and(|bound| bound.negative);
    if least.is_none_or(|least| least.negative) {
        // From the one nearest to zero to the farthest.
        let near = if negative(most) { most.map_or("1", |most| &most.digits) } else { "1" };
        parts.extend(positive(near, least.map(|least| least.digits.as_str())).map(|pattern| format!("-(?:{pattern})")));
    }
    if !negative(most) {
        let from = least.filter(|least| !least.negative).map_or("0", |least| &least.digits);
        parts.extend(positive(from, most.map(|most| most.digits.as_str())));
    }
    if parts.is_empty() { None } else { Some(format!("({})", parts.join("|"))) }
}

/// Digits from `least` to `most`, without a sign.
fn positive(least: &str, most: Option<&str>) -> Option<String> {
    let mut parts = Vec::new();
    match most {
        Some(most) if (most.len(), most) < (least.len(), least) => return None,
        Some(most) if most.len() == least.len() => parts.push(same_length(least, most)),
        _ => {
            parts.push(same_length(least, &"9".repeat(least.len())));
            match most {
                Some(most) => {
                    if most.len() > least.len() + 1 {
                        parts.push(format!("[1-9][0-9]{{{},{}}}", least.len(), most.len() - 2));
                    }
                    parts.push(same_length(&format!("1{}", "0".repeat(most.len() - 1)), most));
                }
                None => parts.push(format!("[1-9][0-9]{{{},}}", least.len())),
            }
        }
    }
    Some(parts.join("|"))
}

/// Digits from `least` to `most`, which have as many.
fn same_length(least: &str, most: &str) -> String {
    if least == most {
        return least.to_owned();
    }
    let common = least.bytes().zip(most.bytes()).take_while(|(a, b)| a == b).count();
    let (prefix, least, most) = (&least[..common], &least[common..], &most[common..]);
    let any = |count: usize| if count == 0 { String::new() } else { format!("[0-9]{{{count}}}") };
    let (low, high) = (least.as_bytes()[0], most.as_bytes()[0]);
    let rest = least.len() - 1;
    let is_whole = |text: &str, digit: u8| text.bytes().all(|byte| byte == digit);
    if rest == 0 || (is_whole(&least[1..], b'0') && is_whole(&most[1..], b'9')) {
        return format!("{prefix}[{}-{}]{}", char::from(low), char::from(high), any(rest));
    }
    let mut parts = vec![format!("{}(?:{})", char::from(low), same_length(&least[1..], &"9".repeat(rest)))];
    if high - low > 1 {
        parts.push(format!("[{}-{}]{}", char::from(low + 1), char::from(high - 1), any(rest)));
    }
    parts.push(format!("{}(?:{})", char::from(high), same_length(&"0".repeat(rest), &most[1..])));
    format!("{prefix}(?:{})", parts.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(schema: &str) -> Option<String> {
        whole_pattern(&serde_json::from_str(&mark_large(schema).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn ranges_hold_their_integers() {
        let text = |value: i64| Integer::parse(&value.to_string());
        let bounds = [-1003, -100, -99, -10, -1, 0, 1, 9, 10, 57, 99, 100, 1003];
        for (least, most) in bounds.iter().flat_map(|least| bounds.iter().map(move |most| (*least, *most))) {
            for (least, most) in [(Some(least), Some(most)), (Some(least), None), (None, Some(most))] {
                let found = range(least.map(text).as_ref(), most.map(text).as_ref());
                let regex = found.map(|found| fancy_regex::Regex::new(&format!("^(?:{found})$")).unwrap());
                for value in -1100..1100 {
                    let right = least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most);
                    let found = regex.as_ref().is_some_and(|regex| regex.is_match(&value.to_string()).unwrap());
                    assert_eq!(found, right, "{least:?} {most:?} {value}");
                }
            }
        }
        for value in -200..200 {
            assert_eq!((text(value).step(true), text(value).step(false)), (text(value + 1), text(value - 1)));
        }
    }

    #[test]
    fn large_integers_keep_their_digits() {
        for (schema, expected) in [
            (r#"{"const": 9007199254740993}"#, Some("(9007199254740993)")),
            (r#"{"type": "integer", "enum": [-1234567890123456789, "a"]}"#, Some(r"(\-1234567890123456789)")),
            (r#"{"enum": [12345678901234567890123, "a."]}"#, Some(r#"(12345678901234567890123|\"a\.\")"#)),
            (r#"{"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740993}"#, Some("(9007199254740993)")),
            (
                r#"{"type": "integer", "exclusiveMinimum": 9007199254740993, "exclusiveMaximum": 9007199254740995}"#,
                Some("(9007199254740994)"),
            ),
            (r#"{"type": "number", "minimum": 1e20}"#, Some("([1-9][0-9]{20}|[1-9][0-9]{21,})")),
            (r#"{"const": 5}"#, None),
            (r#"{"type": "integer", "minimum": 1, "maximum": 9}"#, None),
            (r#"{"const": "9007199254740993"}"#, None),
        ] {
            assert_eq!(pattern(schema).as_deref(), expected, "{schema}");
        }
        let marked = |schema: &str| {
            let mut value: Value = serde_json::from_str(&mark_large(schema).unwrap()).unwrap();
            adapt(value.as_object_mut().unwrap()).map(|()| value)
        };
        assert!(marked(r#"{"const": 9007199254740993}"#).unwrap_err().message().contains("would be rounded"));
        assert!(marked(r#"{"type": "integer", "minimum": 9007199254740993}"#).is_err());
        for inwards in [
            r#"{"type": ["integer", "null"], "minimum": 9007199254740993}"#,
            r#"{"type": ["number", "null"], "minimum": 9007199254740993}"#,
            r#"{"exclusiveMinimum": 9007199254740993}"#,
            r#"{"maximum": -9007199254740993}"#,
        ] {
            assert!(marked(inwards).unwrap_err().message().contains("would be rounded"), "{inwards}");
        }
        for (outwards, expected) in [
            (
                r#"{"type": "integer", "exclusiveMaximum": 9007199254740992}"#,
                r#"{"type": "integer", "maximum": 9007199254740991}"#,
            ),
            (
                r#"{"type": "integer", "exclusiveMinimum": -9007199254740992}"#,
                r#"{"type": "integer", "minimum": -9007199254740991}"#,
            ),
            (r#"{"type": "integer", "exclusiveMaximum": 1e17}"#, r#"{"type": "integer", "maximum": 9007199254740992}"#),
            (
                r#"{"type": ["integer", "null"], "maximum": 5, "exclusiveMaximum": 1e17}"#,
                r#"{"type": ["integer", "null"], "maximum": 5}"#,
            ),
            // The double behind it is the larger one.
            (r#"{"type": "number", "maximum": 9007199254740995}"#, r#"{"type": "number", "maximum": 9007199254740994.0}"#),
            (r#"{"minimum": -9007199254740995}"#, r#"{"minimum": -9007199254740994.0}"#),
            (r#"{"minimum": 9007199254740994}"#, r#"{"minimum": 9007199254740994.0}"#),
            (r#"{"type": "string", "minimum": 9007199254740993}"#, r#"{"type": "string", "minimum": 9007199254740992.0}"#),
        ] {
            assert_eq!(marked(outwards).unwrap(), serde_json::from_str::<Value>(expected).unwrap(), "{outwards}");
        }
        assert!(marked(&format!(r#"{{"minimum": {}}}"#, "9".repeat(400))).is_err());
        let endless = marked(&format!(r#"{{"maximum": {}}}"#, "9".repeat(400))).unwrap();
        assert_eq!(endless, serde_json::json!({"maximum": 1e18}));
        let far = marked(r#"{"minimum": -1.7976931348623157e308, "maximum": 18446744073709551615}"#).unwrap();
        assert_eq!(far, serde_json::json!({"minimum": -1e18, "maximum": 1e18}));
        let near = marked(r#"{"minimum": 5e-324, "maximum": 1}"#).unwrap();
        assert_eq!(near, serde_json::json!({"minimum": 1e-30, "maximum": 1}));
    }
}
