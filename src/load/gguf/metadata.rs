//! The metadata of a GGUF file: values by key, each asked for with its type, as
//! [`Json`](super::super::Json) asks.
//!
//! Values stay as their bytes until somebody asks: one allocation a list, be it of 280,000 merges.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// The types of values, in the order of their numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::List,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type of a number in a file.
    pub fn numbered(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The reverse.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; `None` if they vary.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::List => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Text => "text",
            Self::List => "a list",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// A value, or a list of values of one type.
#[derive(Debug, PartialEq)]
pub(super) struct Value {
    /// Never [`Kind::List`].
    pub kind: Kind,
    pub list: bool,
    /// Of all items, one after another, little endian.
    pub bytes: Vec<u8>,
    /// Where each text ends; empty for other types.
    pub ends: Vec<usize>,
}

/// A number as it is widest.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
    Bool(u8),
}

impl Value {
    pub fn len(&self) -> usize {
        self.kind.bytes().map_or(self.ends.len(), |bytes| self.bytes.len() / bytes)
    }

    /// The bytes of each text.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let start = |i: usize| i.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.ends.iter().enumerate().map(move |(i, &end)| &self.bytes[start(i)..end])
    }

    /// Each number; none of texts.
    fn numbers(&self) -> impl Iterator<Item = Number> {
        let bytes = self.kind.bytes().unwrap_or(usize::MAX);
        self.bytes.chunks_exact(bytes).map(|item| number(self.kind, item))
    }
}

/// `bytes` are as many as the type has.
fn number(kind: Kind, bytes: &[u8]) -> Number {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(eight);
    match kind {
        Kind::I8 => Number::Whole(i128::from(raw as i8)),
        Kind::I16 => Number::Whole(i128::from(raw as i16)),
        Kind::I32 => Number::Whole(i128::from(raw as i32)),
        Kind::I64 => Number::Whole(i128::from(raw as i64)),
        Kind::F32 => Number::Float(f64::from(f32::from_bits(raw as u32))),
        Kind::F64 => Number::Float(f64::from_bits(raw)),
        Kind::Bool => Number::Bool(raw as u8),
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 | Kind::Text | Kind::List => Number::Whole(i128::from(raw)),
    }
}

impl fmt::Display for Value {
    /// What an error says was found.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.list {
            return write!(f, "a list of {} {}", self.len(), self.kind.name());
        }
        match self.numbers().next() {
            _ if self.kind == Kind::Text => write!(f, "the text {:?}", clip(&String::from_utf8_lossy(&self.bytes))),
            Some(Number::Whole(n)) => write!(f, "{} {n}", self.kind.name()),
            Some(Number::Float(x)) => write!(f, "{} {x}", self.kind.name()),
            Some(Number::Bool(b)) => write!(f, "bool {b}"),
            None => f.write_str("nothing"),
        }
    }
}

/// The beginning of a text that may be long.
pub(super) fn clip(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// Values by key. A key that is not there is `None`; one of another type is an error of
/// [`ErrorKind::Format`] that names file, key, what was expected and what was found.
#[derive(Debug, Default)]
pub struct Metadata {
    /// The file's name in errors.
    pub(super) file: String,
    pub(super) values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The file's name in errors.
    pub fn name(&self) -> &str {
        &self.file
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether there is a value.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Whether the value is a list, of whatever length and type.
    pub fn is_list(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| value.list)
    }

    /// How many items a list has.
    pub fn list_len(&self, key: &str) -> Option<usize> {
        self.values.get(key).filter(|value| value.list).map(Value::len)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match std::str::from_utf8(&value.bytes) {
            Ok(text) if value.kind == Kind::Text && !value.list => Ok(Some(text)),
            _ => Err(self.expected(key, "a text in UTF-8")),
        }
    }

    /// A whole number, of whatever integer type it is stored as.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.one(key, "a whole number from 0 to 4294967295", |number| match number {
            Number::Whole(n) => u32::try_from(n).ok(),
            _ => None,
        })
    }

    /// A finite number, stored as one.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.one(key, "a finite f32", |number| match number {
            Number::Float(x) => Some(x as f32).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    /// `true` or `false`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "a bool", truth)
    }

    /// A list of texts.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        if value.kind != Kind::Text || !value.list {
            return Err(self.expected(key, "a list of texts"));
        }
        let mut texts = self.room(key, value.len())?;
        for (i, text) in value.texts().enumerate() {
            let text = std::str::from_utf8(text);
            texts.push(text.map_err(|e| self.invalid(key, &format!("text {i}: expected UTF-8")).with_source(e))?);
        }
        Ok(Some(texts))
    }

    /// A list of numbers, whole ones too, finite or not.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "a list of numbers", |number| match number {
            Number::Float(x) => Some(x as f32),
            Number::Whole(n) => Some(n as f32),
            Number::Bool(_) => None,
        })
    }

    /// A list of whole numbers.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.list(key, "a list of whole numbers", |number| match number {
            Number::Whole(n) => i64::try_from(n).ok(),
            _ => None,
        })
    }

    /// A list of `true` and `false`.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.list(key, "a list of bools", truth)
    }

    /// A list of bytes, signed or not.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value.kind {
            Kind::U8 | Kind::I8 if value.list => Ok(Some(&value.bytes)),
            _ => Err(self.expected(key, "a list of bytes")),
        }
    }

    /// An error about a value, or its absence.
    pub fn expected(&self, key: &str, expected: &str) -> Error {
        let found = self.values.get(key).map_or_else(|| "nothing".to_string(), Value::to_string);
        self.invalid(key, &format!("expected {expected}, found {found}"))
    }

    /// An error about a value that contradicts the rest.
    pub fn invalid(&self, key: &str, message: &str) -> Error {
        Error::format(format!("{}: {}: {message}", self.file, clip(key)))
    }

    /// An error about a value that this library does not implement.
    pub fn unsupported(&self, key: &str, expected: &str) -> Error {
        let message = self.expected(key, expected);
        Error::unsupported(message.message())
    }

    fn one<T>(&self, key: &str, expected: &str, read: impl Fn(Number) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let read = value.numbers().next().filter(|_| value.kind != Kind::Text && !value.list).and_then(read);
        read.map(Some).ok_or_else(|| self.expected(key, expected))
    }

    fn list<T>(&self, key: &str, expected: &str, read: impl Fn(Number) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        if value.kind == Kind::Text || !value.list {
            return Err(self.expected(key, expected));
        }
        let mut items = self.room(key, value.len())?;
        for number in value.numbers() {
            items.push(read(number).ok_or_else(|| self.expected(key, expected))?);
        }
        Ok(Some(items))
    }

    fn room<T>(&self, key: &str, len: usize) -> Result<Vec<T>> {
        let mut room = Vec::new();
        room.try_reserve_exact(len).map_err(|e| {
            let message = format!("{}: {}: {len} items do not fit the memory", self.file, clip(key));
            Error::new(ErrorKind::OutOfMemory, message).with_source(e)
        })?;
        Ok(room)
    }
}

fn truth(number: Number) -> Option<bool> {
    match number {
        Number::Bool(b @ (0 | 1)) => Some(b == 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::Build;
    use super::super::header::{FileKind, Header};
    use super::*;

    fn metadata(build: Build) -> Metadata {
        let bytes = build.bytes();
        Header::read("model.gguf".as_ref(), &mut bytes.as_slice(), bytes.len() as u64, FileKind::Model).unwrap().metadata
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        let metadata = metadata(
            Build::new()
                .text("text", "a · b")
                .key("u8", 0, &[200])
                .key("i8", 1, &[200])
                .key("u16", 2, &60000u16.to_le_bytes())
                .key("i32", 5, &(-7i32).to_le_bytes())
                .u32("u32", 4_000_000_000)
                .key("u64", 10, &7u64.to_le_bytes())
                .key("i64", 11, &7i64.to_le_bytes())
                .f32("f32", 0.5)
                .key("f64", 12, &0.25f64.to_le_bytes())
                .bool("bool", true)
                .strings("strings", &["", "a", "ü", ""])
                .strings("none", &[])
                .list("i32s", 5, 3, &[[1, 0, 0, 0], [255; 4], [2, 0, 0, 0]].concat())
                .list("f32s", 6, 2, &[0.5f32.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes()].concat())
                .list("bools", 7, 2, &[1, 0])
                .list("u8s", 0, 2, &[1, 255]),
        );
        assert_eq!(metadata.text("text").unwrap(), Some("a · b"));
        assert_eq!(["u8", "u16", "u32"].map(|key| metadata.u32(key).unwrap().unwrap()), [200, 60000, 4_000_000_000]);
        assert_eq!(["u64", "i64"].map(|key| metadata.u32(key).unwrap().unwrap()), [7; 2]);
        assert_eq!(["f32", "f64"].map(|key| metadata.f32(key).unwrap().unwrap()), [0.5, 0.25]);
        assert_eq!(metadata.bool("bool").unwrap(), Some(true));
        assert_eq!(metadata.strings("strings").unwrap().unwrap(), ["", "a", "ü", ""]);
        assert!(metadata.strings("none").unwrap().unwrap().is_empty());
        assert_eq!(metadata.ints("i32s").unwrap().unwrap(), [1, -1, 2]);
        assert_eq!(metadata.floats("i32s").unwrap().unwrap(), [1.0, -1.0, 2.0]);
        assert_eq!(metadata.floats("f32s").unwrap().unwrap(), [0.5, f32::NEG_INFINITY]);
        assert_eq!(metadata.bools("bools").unwrap().unwrap(), [true, false]);
        assert_eq!(metadata.bytes("u8s").unwrap().unwrap(), [1, 255]);
        assert!(metadata.is_list("u8s") && !metadata.is_list("u8") && !metadata.has("absent"));
        assert_eq!(metadata.keys().count(), 17);
        assert!(metadata.text("absent").unwrap().is_none() && metadata.strings("absent").unwrap().is_none());
        assert!(metadata.u32("absent").unwrap().is_none() && metadata.ints("absent").unwrap().is_none());
    }

    #[test]
    fn another_type_is_an_error_that_names_key_expectation_and_find() {
        let metadata = metadata(
            Build::new()
                .text("text", "abc")
                .key("i8", 1, &[200])
                .f32("nan", f32::NAN)
                .key("bool", 7, &[2])
                .key("latin", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xe9])
                .list("latins", 8, 1, &[1, 0, 0, 0, 0, 0, 0, 0, 0xe9])
                .list("u8s", 0, 2, &[1, 255]),
        );
        let check = |error: Option<Error>, want: &str| {
            let error = error.unwrap();
            assert_eq!((error.kind(), error.message()), (ErrorKind::Format, format!("model.gguf: {want}").as_str()));
        };
        check(metadata.u32("text").err(), r#"text: expected a whole number from 0 to 4294967295, found the text "abc""#);
        check(metadata.u32("i8").err(), "i8: expected a whole number from 0 to 4294967295, found i8 -56");
        check(metadata.u32("u8s").err(), "u8s: expected a whole number from 0 to 4294967295, found a list of 2 u8");
        check(metadata.f32("nan").err(), "nan: expected a finite f32, found f32 NaN");
        check(metadata.f32("i8").err(), "i8: expected a finite f32, found i8 -56");
        check(metadata.bool("bool").err(), "bool: expected a bool, found bool 2");
        check(metadata.text("u8s").err(), "u8s: expected a text in UTF-8, found a list of 2 u8");
        check(metadata.text("latin").err(), "latin: expected a text in UTF-8, found the text \"\u{fffd}\"");
        check(metadata.text("i8").err(), "i8: expected a text in UTF-8, found i8 -56");
        check(metadata.strings("latins").err(), "latins: text 0: expected UTF-8");
        check(metadata.strings("text").err(), r#"text: expected a list of texts, found the text "abc""#);
        check(metadata.ints("i8").err(), "i8: expected a list of whole numbers, found i8 -56");
        check(metadata.bools("u8s").err(), "u8s: expected a list of bools, found a list of 2 u8");
        check(metadata.bytes("latins").err(), "latins: expected a list of bytes, found a list of 1 text");
        check(Some(metadata.expected("absent", "a text")), "absent: expected a text, found nothing");
        assert_eq!(metadata.unsupported("i8", "this").kind(), ErrorKind::Unsupported);
    }
}
