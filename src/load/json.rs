//! A strict reader of JSON configuration: every value is asked for with its type and range, and an error names the file, the
//! path of the field, what was expected and what was found.

use std::path::Path;

use serde_json::Value;

use super::room::check_json_room;
use super::text::{MAX_JSON, read_text, stand_in};
use crate::error::{Error, Result};

/// A value and how to name it in an error.
#[derive(Clone, Debug)]
pub struct Json {
    path: String,
    value: Value,
}

impl Json {
    /// Reads a file that must hold an object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, MAX_JSON)?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self::parse(&name, &text)
    }

    /// Reads a file that may be missing.
    pub fn read_optional(path: &Path) -> Result<Option<Self>> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// Parses text that must hold an object; `name` stands for the file in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        if let Some(found) = stand_in(text.as_bytes()) {
            return Err(Error::format(format!("{name}: expected JSON, found {found}")));
        }
        check_json_room(name, text)?;
        let parsed = serde_json::from_str(text).or_else(|error| match without_infinities(text) {
            Some(text) => serde_json::from_str(&text),
            None => Err(error),
        });
        let value: Value = parsed.map_err(|e| Error::format(format!("{name}: not valid JSON: {e}")).with_source(e))?;
        if !value.is_object() {
            return Err(Error::format(format!("{name}: expected an object, found {}", kind(&value))));
        }
        Ok(Self { path: name.to_string(), value })
    }

    /// An object that holds one value, under the name `token`; `name` stands for it in errors.
    pub fn of(name: &str, value: Value) -> Self {
        Self { path: name.to_string(), value: serde_json::json!({ "token": value }) }
    }

    /// The value itself.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The field, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Self { path: format!("{}: {key}", self.path), value: value.clone() })
    }

    /// The same object with another value of a field.
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut with = self.clone();
        if let Some(fields) = with.value.as_object_mut() {
            fields.insert(key.to_string(), value);
        }
        with
    }

    /// The same object with these numbers where it has none.
    pub fn with_defaults(&self, defaults: &[(&str, usize)]) -> Self {
        let absent = defaults.iter().filter(|(key, _)| !self.has(key));
        absent.fold(self.clone(), |json, &(key, value)| json.with(key, value.into()))
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// An object, as a reader of its own.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        if field.value.is_object() { Ok(Some(field)) } else { Err(field.expected("an object")) }
    }

    /// A whole number from 0 to `max`.
    pub fn count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        // Python writes whole floats too: `4096.0`.
        let whole =
            field.value.as_u64().or_else(|| field.value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        match whole.and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= max) {
            Some(n) => Ok(Some(n)),
            None => Err(field.expected(&format!("a whole number from 0 to {max}"))),
        }
    }

    /// A whole number from 1 to `max` that must be there.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        match self.count(key, max)? {
            Some(0) => Err(Error::format(format!("{}: {key}: expected a whole number from 1 to {max}, found 0", self.path))),
            Some(n) => Ok(n),
            None => Err(Error::format(format!("{}: {key}: expected a whole number from 1 to {max}, found nothing", self.path))),
        }
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        field.value.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(|| field.expected("a finite number"))
    }

    /// A number above zero, or `default` where it is absent or null.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.number(key)? {
            None => Ok(default),
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => Err(Error::format(format!("{}: {key}: expected a number above 0, found {x}", self.path))),
        }
    }

    /// `true` or `false`, or `default` where it is absent or null.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(field) = self.get(key) else { return Ok(default) };
        field.value.as_bool().ok_or_else(|| field.expected("true or false"))
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        field.value.as_str().map(|s| Some(s.to_string())).ok_or_else(|| field.expected("text"))
    }

    /// A list of finite numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        let list = field.value.as_array().ok_or_else(|| field.expected("a list of numbers"))?;
        list.iter()
            .map(|x| x.as_f64().filter(|x| x.is_finite()).ok_or_else(|| field.expected("a list of finite numbers")))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// A list of texts.
    pub fn counts(&self, key: &str, max: usize) -> Result<Option<Vec<usize>>> {
        let Some(numbers) = self.numbers(key)? else { return Ok(None) };
        let whole = |&x: &f64| x >= 0.0 && x.fract() == 0.0 && x <= max as f64;
        match numbers.iter().find(|x| !whole(x)) {
            Some(x) => Err(self.invalid(key, &format!("expected whole numbers up to {max}, found {x}"))),
            None => Ok(Some(numbers.into_iter().map(|x| x as usize).collect())),
        }
    }

    /// A list of texts; `None` if the key is absent or null.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(field) = self.get(key) else { return Ok(None) };
        let list = field.value.as_array().ok_or_else(|| field.expected("a list of texts"))?;
        list.iter()
            .map(|x| x.as_str().map(str::to_string).ok_or_else(|| field.expected("a list of texts")))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// An id or a list of ids.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(field) = self.get(key) else { return Ok(Vec::new()) };
        let id = |x: &Value| {
            x.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| field.expected("a token id or a list of them"))
        };
        match &field.value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => Ok(vec![id(one)?]),
        }
    }

    /// An error about a field of this object that this library does not implement.
    pub fn unsupported(&self, key: &str, expected: &str) -> Error {
        let found = self.value.get(key).map_or_else(|| "nothing".to_string(), Value::to_string);
        Error::unsupported(format!("{}: {key}: {expected}, found {}", self.path, clip(&found)))
    }

    /// An error about a field of this object that contradicts the rest.
    pub fn invalid(&self, key: &str, message: &str) -> Error {
        Error::format(format!("{}: {key}: {message}", self.path))
    }

    /// An error about this value, which is something else than expected.
    pub fn expected(&self, expected: &str) -> Error {
        Error::format(format!("{}: expected {expected}, found {}", self.path, clip(&self.value.to_string())))
    }
}

/// Text with Python's infinite numbers, which JSON lacks, as transformers 5 writes them; `None` if there is none.
fn without_infinities(text: &str) -> Option<String> {
    const INFINITY: &str = "Infinity";
    let mut rest = text.split(INFINITY);
    let mut changed = rest.next()?.to_string();
    let (mut is_text, mut is_escaped, mut found) = (false, false, false);
    let follow = |part: &str, is_text: &mut bool, is_escaped: &mut bool| {
        for c in part.chars() {
            *is_text ^= c == '"' && !*is_escaped;
            *is_escaped = c == '\\' && *is_text && !*is_escaped;
        }
    };
    follow(&changed, &mut is_text, &mut is_escaped);
    for part in rest {
        if is_text {
            changed.push_str(INFINITY);
            is_escaped = false;
        } else {
            found = true;
            let sign = if changed.ends_with('-') { changed.pop().map_or("", |_| "-") } else { "" };
            changed.push_str(&format!("{{\"__float__\": \"{sign}{INFINITY}\"}}"));
        }
        changed.push_str(part);
        follow(part, &mut is_text, &mut is_escaped);
    }
    found.then_some(changed)
}

/// In front of the name of a number, in a text that stands for it.
const NUMBER: char = '\0';
const INFINITE: [&str; 2] = ["Infinity", "-Infinity"];

/// The text of a value, with infinite numbers as Python writes them, which [`Json::parse`] reads.
pub fn python_text(value: &Value) -> String {
    let mut marked = value.clone();
    mark_infinite(&mut marked);
    let text = format!("{marked:#}\n");
    INFINITE.iter().fold(text, |text, name| text.replace(&Value::from(format!("{NUMBER}{name}")).to_string(), name))
}

/// Puts a text in place of each infinite number.
fn mark_infinite(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(mark_infinite),
        Value::Object(fields) => match fields.get("__float__") {
            Some(Value::String(name)) if fields.len() == 1 && INFINITE.contains(&name.as_str()) => {
                *value = format!("{NUMBER}{name}").into();
            }
            _ => fields.values_mut().for_each(mark_infinite),
        },
        _ => {}
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a value that may be long.
fn clip(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinite_numbers_of_python_are_read_as_transformers_writes_them() {
        let text = r#"{"a": [0.0, Infinity], "b": -Infinity, "c": "Infinity \"Infinity\" [", "d\\": Infinity}"#;
        let json = Json::parse("config.json", text).unwrap();
        let infinity = serde_json::json!({"__float__": "Infinity"});
        assert_eq!(json.value()["a"], serde_json::json!([0.0, infinity]));
        assert_eq!(json.value()["b"]["__float__"], "-Infinity");
        assert_eq!(json.value()["c"], "Infinity \"Infinity\" [");
        assert_eq!(json.value()["d\\"], infinity);
        let written = python_text(json.value());
        assert!(written.contains("-Infinity") && !written.contains("__float__"), "{written}");
        assert_eq!(Json::parse("config.json", &written).unwrap().value(), json.value());
        let error = Json::parse("config.json", r#"{"a": Infinit}"#).unwrap_err();
        assert!(error.message().contains("not valid JSON"), "{error}");
    }
}
