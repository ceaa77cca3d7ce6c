//! What options may be: for each type of options one table of its fields, with their names and ranges.
//!
//! By the table is checked what a Rust program has put into the fields, what a setter of the C interface puts there, and what JSON
//! does: a range stands nowhere else.
//!
//! ```
//! use metal_candle::GenerateOptions;
//! let mut options = GenerateOptions::default();
//! options.set_json(r#"{"temperature": 0.5, "stop": ["\n"]}"#)?;
//! assert_eq!((options.sampling.temperature, options.stop.len()), (Some(0.5), 1));
//! let error = options.set_json(r#"{"top_p": 7}"#).unwrap_err();
//! assert_eq!(error.message(), "top_p: expected above 0, up to 1, found 7");
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use crate::error::Error;
use crate::kernels::owned;
use crate::load::check_json_room;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes of JSON: a schema has 64 KiB at most, and the rest is short.
const MOST_JSON: usize = 1 << 20;
/// The longest text that is an option: as long as JSON may be that holds one.
const MOST_TEXT: usize = MOST_JSON;
/// The longest text of a list: a stop text, the name of a module.
const MOST_PART: usize = 64 << 10;
/// As many biases as the largest vocabulary has tokens, and more.
pub(crate) const MOST_BIASES: usize = 1 << 20;
/// Of what was found, as much as an error shows.
const MOST_SHOWN: usize = 40;
/// Whole numbers that every machine of this build has.
pub(super) const SIZE: u64 = usize::MAX as u64;

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OptionValue {
    /// Nothing: the default, which may be the model's. JSON's `null`.
    Unset,
    Bool(bool),
    Whole(u64),
    Number(f64),
    Text(String),
    Texts(Vec<String>),
    /// Ids of tokens, and what is added to their logits.
    Biases(Vec<(u32, f64)>),
    /// JSON that is handed on as it was written.
    Json(String),
}

/// What a field may hold.
pub(crate) enum OptionRange {
    Bool,
    /// Whole numbers, from the first to the second.
    Whole(u64, u64),
    /// Whole numbers from this on, and 0.
    ZeroOr(u64),
    /// Finite numbers of which this holds, and how that is said.
    Number(&'static str, fn(f64) -> bool),
    /// The same of what is kept and computed with in F32, and so is checked as such.
    Single(&'static str, fn(f32) -> bool),
    /// Without NUL, as C has it.
    Text,
    /// A list of texts of a byte or more.
    Texts,
    /// In JSON an object: numbers by ids of tokens, and `false` for minus infinity.
    Biases,
    /// An object or a boolean.
    Schema,
}

/// A field of the options `O`.
pub(crate) struct Field<O> {
    pub name: &'static str,
    pub range: OptionRange,
    /// What it holds.
    pub get: fn(&O) -> OptionValue,
    /// Puts there what is in the range, or `Unset`. Fails for a word that is not known.
    pub set: fn(&mut O, OptionValue) -> Result<()>,
}

/// Options that have a table.
pub(crate) trait Fields: Default + 'static {
    /// What the table is called in errors.
    const NAME: &'static str;

    fn fields() -> &'static [Field<Self>]
    where
        Self: Sized;

    /// # Errors
    /// `InvalidArgument` naming the first field that is out of its range.
    fn check_fields(&self) -> Result<()> {
        Self::fields().iter().try_for_each(|field| field.range.check(field.name, &(field.get)(self)))
    }

    /// Puts a value into the field of this name; `Unset` is its default.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, what was expected and what was found.
    fn set_field(&mut self, name: &str, value: OptionValue) -> Result<()> {
        let field = find::<Self>(name)?;
        field.range.check(name, &value)?;
        let value = if value == OptionValue::Unset { (field.get)(&Self::default()) } else { value };
        (field.set)(self, value)
    }

    /// The same of a text, which is copied once it is known not to be too long; `None` is the default.
    ///
    /// # Errors
    /// As [`set_field`](Self::set_field), and `OutOfMemory` for what cannot be copied.
    fn set_text(&mut self, name: &str, text: Option<&str>) -> Result<()> {
        let Some(text) = text else { return self.set_field(name, OptionValue::Unset) };
        check_text(name, text)?;
        self.set_field(name, OptionValue::Text(owned(name, text)?))
    }

    /// Puts the members of a JSON object into the fields of their names, in their order; `null` is a field's default. Without JSON
    /// all fields that have a name become their defaults.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no JSON object, is longer than a mebibyte, nested deeper than 128 levels or has a name twice, and
    /// as [`set_field`](Self::set_field); fields before the first bad one are set.
    fn set_fields(&mut self, json: Option<&str>) -> Result<()> {
        let Some(json) = json else {
            return Self::fields().iter().try_for_each(|field| self.set_field(field.name, OptionValue::Unset));
        };
        for (name, text) in members(json)? {
            let value = find::<Self>(&name)?.range.read(&name, text)?;
            self.set_field(&name, value)?;
        }
        Ok(())
    }
}

fn find<O: Fields>(name: &str) -> Result<&'static Field<O>> {
    O::fields().iter().find(|field| field.name == name).ok_or_else(|| {
        let names: Vec<&str> = O::fields().iter().map(|field| field.name).collect();
        Error::argument(format!("json: {} is no option of {} ({})", shown(&format!("{name:?}")), O::NAME, names.join(", ")))
    })
}

impl OptionRange {
    /// # Errors
    /// `InvalidArgument` for what is out of the range, or of another kind.
    fn check(&self, name: &str, value: &OptionValue) -> Result<()> {
        let bad = |found: &dyn fmt::Display| Err(Error::argument(format!("{name}: expected {self}, found {found}")));
        match (self, value) {
            (_, OptionValue::Unset) => Ok(()),
            (Self::Whole(least, most), OptionValue::Whole(value)) if !(*least..=*most).contains(value) => bad(value),
            (Self::ZeroOr(least), OptionValue::Whole(value)) if *value != 0 && !(*least..=SIZE).contains(value) => bad(value),
            (Self::Number(_, holds), OptionValue::Number(value)) if !(value.is_finite() && holds(*value)) => bad(value),
            (Self::Single(_, holds), OptionValue::Number(value)) => match *value as f32 {
                single if single.is_finite() && holds(single) => Ok(()),
                _ => bad(value),
            },
            (Self::Text, OptionValue::Text(text)) => match text.find('\0') {
                Some(at) => bad(&format_args!("NUL at byte {at}")),
                None => check_text(name, text),
            },
            (Self::Texts, OptionValue::Texts(texts)) => texts.iter().try_for_each(|text| check_part(name, text)),
            (Self::Biases, OptionValue::Biases(biases)) => biases.iter().try_for_each(|&(id, bias)| check_bias(id, bias)),
            (Self::Bool, OptionValue::Bool(_))
            | (Self::Whole(..) | Self::ZeroOr(_), OptionValue::Whole(_))
            | (Self::Number(..), OptionValue::Number(_))
            | (Self::Schema, OptionValue::Json(_)) => Ok(()),
            (_, value) => bad(&format_args!("{value:?}")),
        }
    }

    /// The value that is written here, which is JSON.
    fn read(&self, name: &str, json: &str) -> Result<OptionValue> {
        fn parsed<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
            serde_json::from_str(json).ok()
        }
        let value = match self {
            _ if json == "null" => Some(OptionValue::Unset),
            Self::Bool => parsed(json).map(OptionValue::Bool),
            Self::Whole(..) | Self::ZeroOr(_) => parsed(json).map(OptionValue::Whole),
            Self::Number(..) | Self::Single(..) => parsed(json).map(OptionValue::Number),
            Self::Text => parsed(json).map(OptionValue::Text),
            Self::Texts => parsed(json).map(OptionValue::Texts),
            Self::Biases => parsed(json).and_then(biases).map(OptionValue::Biases),
            Self::Schema => (json.starts_with('{') || parsed::<bool>(json).is_some()).then(|| OptionValue::Json(json.to_owned())),
        };
        value.ok_or_else(|| Error::argument(format!("{name}: expected {self}, found {}", shown(json))))
    }
}

impl fmt::Display for OptionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => write!(f, "true or false"),
            Self::Whole(0, most) if is_any(*most) => write!(f, "a whole number from 0"),
            Self::Whole(least, most) if is_any(*most) => write!(f, "at least {least}"),
            Self::Whole(least, most) => write!(f, "{least} to {most}"),
            Self::ZeroOr(least) => write!(f, "0 or at least {least}"),
            Self::Number(words, _) | Self::Single(words, _) => write!(f, "{words}"),
            Self::Text => write!(f, "text without NUL"),
            Self::Texts => write!(f, "a list of texts"),
            Self::Biases => write!(f, "an object of numbers, or false, by ids of tokens"),
            Self::Schema => write!(f, "an object or a boolean"),
        }
    }
}

/// Whether the upper end of a range is that of the type.
fn is_any(most: u64) -> bool {
    [SIZE, u64::MAX].contains(&most)
}

/// A text.
///
/// # Errors
/// `InvalidArgument` for one that is longer than a mebibyte.
fn check_text(name: &str, text: &str) -> Result<()> {
    if text.len() > MOST_TEXT {
        return Err(Error::argument(format!("{name}: expected at most {MOST_TEXT} bytes, found {}", text.len())));
    }
    Ok(())
}

/// One of a list of texts.
///
/// # Errors
/// `InvalidArgument` for the empty one, and for one that is longer than 64 KiB.
pub(crate) fn check_part(name: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::argument(format!("{name}: expected text, found an empty one")));
    }
    if text.len() > MOST_PART {
        return Err(Error::argument(format!("{name}: expected at most {MOST_PART} bytes, found {}", text.len())));
    }
    Ok(())
}

/// What is added to the logit of a token.
///
/// # Errors
/// `InvalidArgument` for what is neither a number in F32 nor minus infinity.
pub(crate) fn check_bias(id: u32, bias: f64) -> Result<()> {
    if (bias as f32).is_finite() || bias == f64::NEG_INFINITY {
        return Ok(());
    }
    Err(Error::argument(format!("logit_bias[{id}]: expected a number or minus infinity, found {bias}")))
}

fn biases(json: serde_json::Map<String, Json>) -> Option<Vec<(u32, f64)>> {
    let bias = |(id, bias): (String, Json)| match bias {
        Json::Bool(false) => Some((id.parse().ok()?, f64::NEG_INFINITY)),
        bias => Some((id.parse().ok()?, bias.as_f64()?)),
    };
    json.into_iter().map(bias).collect()
}

/// What a word means.
///
/// # Errors
/// `InvalidArgument` with the words that there are.
pub(super) fn word<T: Copy>(name: &str, words: &[(&str, T)], word: &str) -> Result<T> {
    words.iter().find(|(known, _)| *known == word).map(|&(_, meaning)| meaning).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
        Error::argument(format!("{name}: expected one of {}, found {}", known.join(", "), shown(&format!("{word:?}"))))
    })
}

/// The word that means this.
pub(super) fn word_of<T: PartialEq>(words: &[(&str, T)], meaning: &T) -> OptionValue {
    let word = words.iter().find(|(_, known)| known == meaning);
    word.map_or(OptionValue::Unset, |(word, _)| OptionValue::Text((*word).to_owned()))
}

/// JSON as an error shows it.
fn shown(json: &str) -> &str {
    match json.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') if json.len() > MOST_SHOWN => "a longer text",
        _ if json.len() > MOST_SHOWN => "a longer number",
        _ => json,
    }
}

const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The members of a JSON object: each name, and the value as it is written.
fn members(json: &str) -> Result<Vec<(String, &str)>> {
    if json.len() > MOST_JSON {
        return Err(Error::argument(format!("json: expected at most {MOST_JSON} bytes, found {}", json.len())));
    }
    check_json_room("json", json)?;
    let invalid = |e: serde_json::Error| Error::argument(format!("json: {e}"));
    serde_json::from_str::<Unique>(json).map_err(invalid)?;
    let json = json.trim_matches(SPACE);
    let object = json.strip_prefix('{').and_then(|json| json.strip_suffix('}'));
    let mut rest = object.ok_or_else(|| Error::argument(format!("json: expected an object, found {}", shown(json))))?;
    let mut members = Vec::new();
    loop {
        // It is JSON: a name, a colon and a value follow a brace or a comma, or there is nothing.
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        if rest.is_empty() {
            return Ok(members);
        }
        let (name, behind) = first::<String>(rest).map_err(invalid)?;
        rest = behind.trim_start_matches([' ', '\t', '\n', '\r', ':']);
        let (IgnoredAny, behind) = first(rest).map_err(invalid)?;
        members.push((name, &rest[..rest.len() - behind.len()]));
        rest = behind;
    }
}

/// The first value of a text, and what is behind it.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Result<(T, &'a str), serde_json::Error> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next().unwrap_or_else(|| Err(serde_json::Error::custom("expected a value, found nothing")))?;
    let end = values.byte_offset();
    Ok((value, &text[end..]))
}

/// JSON in which no object has a name twice: which of the two counts is for nobody to guess.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if names.contains(&name) {
                return Err(A::Error::custom(format!("expected each name once, found {} twice", shown(&format!("{name:?}")))));
            }
            names.insert(name);
            members.next_value::<Self>()?;
        }
        Ok(self)
    }
}

/// What fields are made of, on their way into a table and out of it.
pub(super) trait OptionSlot: Sized {
    fn value(&self) -> OptionValue;
    /// `None` for another kind of value, which the field's range has refused.
    fn of(value: OptionValue) -> Option<Self>;
}

macro_rules! slot {
    ($type:ty, $self:ident => $value:expr, $pattern:pat => $of:expr) => {
        impl OptionSlot for $type {
            fn value(&self) -> OptionValue {
                let $self = self;
                $value
            }

            fn of(value: OptionValue) -> Option<Self> {
                match value {
                    $pattern => Some($of),
                    _ => None,
                }
            }
        }
    };
}

slot!(bool, of => OptionValue::Bool(*of), OptionValue::Bool(value) => value);
slot!(u64, of => OptionValue::Whole(*of), OptionValue::Whole(value) => value);
// The range is within that of the type.
slot!(usize, of => OptionValue::Whole(*of as u64), OptionValue::Whole(value) => value as usize);
slot!(f64, of => OptionValue::Number(*of), OptionValue::Number(value) => value);
// 0.7 becomes the F32 nearest to it, which is what 0.7f is: what is computed in F32 has the bits that a float would have given.
slot!(f32, of => OptionValue::Number(written(*of)), OptionValue::Number(value) => value as f32);
slot!(String, of => OptionValue::Text(of.clone()), OptionValue::Text(value) => value);
slot!(Vec<String>, of => OptionValue::Texts(of.clone()), OptionValue::Texts(value) => value);
slot!(
    std::path::PathBuf,
    // A path that is no text came from Rust, and has no range.
    of => of.to_str().map_or(OptionValue::Unset, |path| OptionValue::Text(path.to_owned())),
    OptionValue::Text(value) => value.into()
);
slot!(
    Vec<(u32, f32)>,
    of => OptionValue::Biases(of.iter().map(|&(id, bias)| (id, bias.into())).collect()),
    OptionValue::Biases(value) => value.into_iter().map(|(id, bias)| (id, bias as f32)).collect()
);

impl From<bool> for OptionValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for OptionValue {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<u64> for OptionValue {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for OptionValue {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

/// What a field holds; what is to go there may be long: [`Fields::set_text`].
impl From<Option<&str>> for OptionValue {
    fn from(text: Option<&str>) -> Self {
        text.map_or(Self::Unset, |text| Self::Text(text.to_owned()))
    }
}

impl<T: OptionSlot> OptionSlot for Option<T> {
    fn value(&self) -> OptionValue {
        self.as_ref().map_or(OptionValue::Unset, OptionSlot::value)
    }

    fn of(value: OptionValue) -> Option<Self> {
        if value == OptionValue::Unset { Some(None) } else { T::of(value).map(Some) }
    }
}

/// A number as it was written: 0.1 in F32 is not 0.1 in F64.
fn written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(value.into())
}

/// A field that is kept as it is: its name, its range, and where it is.
macro_rules! field {
    ($name:literal, $range:expr, $($at:ident).+) => {
        $crate::engine::options::Field {
            name: $name,
            range: $range,
            get: |options| $crate::engine::options::OptionSlot::value(&options.$($at).+),
            set: |options, value| {
                if let Some(value) = $crate::engine::options::OptionSlot::of(value) {
                    options.$($at).+ = value;
                }
                Ok(())
            },
        }
    };
}
pub(super) use field;

/// A field that one of some words says: its name, the words, and where it is.
macro_rules! word_field {
    ($name:literal, $words:expr, $at:ident) => {
        $crate::engine::options::Field {
            name: $name,
            range: $crate::engine::options::OptionRange::Text,
            get: |options| $crate::engine::options::word_of($words, &options.$at),
            set: |options, value| {
                if let $crate::engine::options::OptionValue::Text(text) = value {
                    options.$at = $crate::engine::options::word($name, $words, &text)?;
                }
                Ok(())
            },
        }
    };
    ($name:literal, $words:expr, $at:ident or nothing) => {
        $crate::engine::options::Field {
            name: $name,
            range: $crate::engine::options::OptionRange::Text,
            get: |options| match &options.$at {
                Some(meaning) => $crate::engine::options::word_of($words, meaning),
                None => $crate::engine::options::OptionValue::Unset,
            },
            set: |options, value| {
                options.$at = match value {
                    $crate::engine::options::OptionValue::Text(text) => {
                        Some($crate::engine::options::word($name, $words, &text)?)
                    }
                    _ => None,
                };
                Ok(())
            },
        }
    };
}
pub(super) use word_field;

/// A number of which 0 is none.
macro_rules! limit_field {
    ($name:literal, $at:ident) => {
        $crate::engine::options::Field {
            name: $name,
            range: $crate::engine::options::OptionRange::Whole(0, $crate::engine::options::SIZE),
            get: |options| $crate::engine::options::OptionSlot::value(&options.$at),
            set: |options, value| {
                options.$at = <usize as $crate::engine::options::OptionSlot>::of(value).filter(|&value| value > 0);
                Ok(())
            },
        }
    };
}
pub(super) use limit_field;

/// Methods of options, called one after another: each puts a value into the field of its name. Whether it is in the field's range is
/// told where the options are used, as of values that were put there in any other way.
///
/// A line is a name and the type of the argument and, where the field has another type, what the argument becomes. The fields are those
/// of the options or, with a closure that names the place, of a struct within them.
macro_rules! builders {
    (@value $name:ident) => { $name };
    (@value $name:ident $value:expr) => { $value };
    ($options:ident { $($lines:tt)* }) => {
        $crate::engine::options::builders!($options, |options| options, $options { $($lines)* });
    };
    ($options:ident, |$this:ident| $place:expr, $owner:ident {
        $($name:ident: $type:ty $(=> $value:expr)?),* $(,)?
    }) => {
        impl $options {
            $(
                #[doc = concat!("Sets [`", stringify!($name), "`](", stringify!($owner), "#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    let $this = &mut self;
                    $place.$name = $crate::engine::options::builders!(@value $name $($value)?);
                    self
                }
            )*
        }
    };
}
pub(super) use builders;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::{EmbedOptions, GenerateOptions, LoadOptions, LoraConfig, RerankOptions, TrainOptions};

    fn refused<O: Fields>(json: &str) -> String {
        let error = O::default().set_fields(Some(json)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.message().to_owned()
    }

    #[test]
    fn json_that_is_hostile_is_refused() {
        let refused = refused::<GenerateOptions>;
        let deep = format!("{{\"json_schema\": {}{}}}", "[".repeat(200), "]".repeat(200));
        for (json, message) in [
            ("", "json: EOF"),
            ("[]", "json: expected an object, found a list"),
            ("null", "json: expected an object, found null"),
            ("\"{}\"", "json: expected an object, found \"{}\""),
            ("{} {}", "json: trailing characters"),
            ("{\"top_k\": 1,}", "json: trailing comma"),
            ("{\"top_k\": 1, \"top_k\": 1}", "json: expected each name once, found \"top_k\" twice at line 1 column 20"),
            ("{\"top_\\u006b\": 1, \"top_k\": 1}", "json: expected each name once"),
            ("{\"json_schema\": {\"a\": {\"b\": 1, \"b\": 2}}}", "json: expected each name once, found \"b\" twice"),
            ("{\"temperature\": 1e999}", "json: number out of range"),
            ("{\"temperature\": 1e39}", "temperature: expected 0 or more, found 1000000000000000000000000000000000000000"),
            ("{\"temperature\": NaN}", "json: expected value"),
            ("{\"temperature\": \"NaN\"}", "temperature: expected 0 or more, found \"NaN\""),
            ("{\"temperature\": \"0.5\"}", "temperature: expected 0 or more, found \"0.5\""),
            ("{\"temperature\": {\"a\": 1}}", "temperature: expected 0 or more, found an object"),
            ("{\"top_p\": 1e-60}", "top_p: expected above 0, up to 1, found 0.000"),
            ("{\"top_k\": -1}", "top_k: expected a whole number from 0, found -1"),
            ("{\"top_k\": 1.5}", "top_k: expected a whole number from 0, found 1.5"),
            ("{\"top_k\": 18446744073709551616}", "top_k: expected a whole number from 0, found 18446744073709551616"),
            ("{\"prefill_chunk\": 0}", "prefill_chunk: expected 1 to 512, found 0"),
            ("{\"ignore_eos\": 1}", "ignore_eos: expected true or false, found 1"),
            ("{\"stop\": \"a\"}", "stop: expected a list of texts, found \"a\""),
            ("{\"stop\": [\"a\", \"\"]}", "stop: expected text, found an empty one"),
            ("{\"stop\": [\"a\", 1]}", "stop: expected a list of texts, found a list"),
            (
                "{\"logit_bias\": {\"-1\": 1}}",
                "logit_bias: expected an object of numbers, or false, by ids of tokens, found an object",
            ),
            ("{\"logit_bias\": {\"1\": true}}", "logit_bias: expected an object of numbers"),
            ("{\"logit_bias\": {\"7\": 1e39}}", "logit_bias[7]: expected a number or minus infinity, found 1000"),
            ("{\"json_schema\": \"{}\"}", "json_schema: expected an object or a boolean, found \"{}\""),
            ("{\"tool_choice\": \"a\\u0000\"}", "tool_choice: expected text without NUL, found NUL at byte 1"),
            ("{\"answer_format\": \"morse\"}", "answer_format: \"morse\" is not known (harmony, "),
            ("{\"temprature\": 1}", "json: \"temprature\" is no option of mc_generate_options (max_tokens, temperature, "),
            (&deep, "json: recursion limit exceeded"),
        ] {
            let found = refused(json);
            assert!(found.starts_with(message), "{json}: {found}");
        }
        let long = format!("{{\"stop\": [\"{}\"]}}", "a".repeat(MOST_JSON));
        assert_eq!(refused(&long), format!("json: expected at most {MOST_JSON} bytes, found {}", MOST_JSON + 14));
        let mut options = GenerateOptions::default();
        let longest = "a".repeat(MOST_TEXT);
        assert!(options.set_text("tool_choice", Some(&longest)).is_ok());
        let error = options.set_text("tool_choice", Some(&format!("{longest}a"))).unwrap_err();
        assert_eq!(error.message(), format!("tool_choice: expected at most {MOST_TEXT} bytes, found {}", MOST_TEXT + 1));
        // A name is not repeated at any length.
        assert!(refused(&format!("{{\"{}\": 1}}", "a".repeat(9999))).starts_with("json: a longer text is no option"));
    }

    #[test]
    fn a_field_takes_what_is_in_its_range_and_null_is_its_default() {
        /// A value that is not the default.
        fn other(range: &OptionRange, name: &str) -> OptionValue {
            match range {
                OptionRange::Bool => OptionValue::Bool(!["add_special", "mask_prompt", "gradient_checkpointing"].contains(&name)),
                OptionRange::Whole(..) | OptionRange::ZeroOr(_) => OptionValue::Whole(7),
                OptionRange::Number(..) | OptionRange::Single(..) => OptionValue::Number(0.25),
                OptionRange::Texts => OptionValue::Texts(vec!["a".to_owned()]),
                OptionRange::Biases => OptionValue::Biases(vec![(3, f64::NEG_INFINITY)]),
                OptionRange::Schema => OptionValue::Json("{ \"a\":1.0 }".to_owned()),
                OptionRange::Text => OptionValue::Text(
                    match name {
                        "answer_format" => "hermes",
                        "schedule" => "cosine",
                        "weighting" => "tokens",
                        "dtype" => "bf16",
                        "pooling" => "cls",
                        "activation" => "sigmoid",
                        _ => "words",
                    }
                    .to_owned(),
                ),
            }
        }
        fn json(value: &OptionValue) -> String {
            match value {
                OptionValue::Bool(value) => value.to_string(),
                OptionValue::Whole(value) => value.to_string(),
                OptionValue::Number(value) => value.to_string(),
                OptionValue::Text(value) => format!("{value:?}"),
                OptionValue::Texts(value) => format!("{value:?}"),
                OptionValue::Biases(_) => "{\"3\": false}".to_owned(),
                OptionValue::Json(value) => value.clone(),
                OptionValue::Unset => "null".to_owned(),
            }
        }
        fn every<O: Fields>() -> usize {
            let state = |options: &O| O::fields().iter().map(|field| (field.get)(options)).collect::<Vec<_>>();
            let default = state(&O::default());
            let members = |value: &dyn Fn(&Field<O>) -> String| {
                let members: Vec<String> =
                    O::fields().iter().map(|field| format!("\n\"{}\" :\t{} ", field.name, value(field))).collect();
                format!(" {{{}}} ", members.join(","))
            };
            let mut all = O::default();
            all.set_fields(Some(&members(&|field| json(&other(&field.range, field.name))))).unwrap();
            for field in O::fields() {
                let mut options = O::default();
                let value = other(&field.range, field.name);
                options.set_field(field.name, value.clone()).unwrap();
                let one = state(&options);
                assert_eq!(one.iter().zip(&default).filter(|(one, default)| one != default).count(), 1, "{}", field.name);
                assert_eq!((field.get)(&options), value, "{}", field.name);
                options.check_fields().unwrap();
                let mut read = O::default();
                read.set_fields(Some(&format!("{{\"{}\":{}}}", field.name, json(&value)))).unwrap();
                assert_eq!(state(&read), one);
                options.set_fields(Some(&format!("{{\"{}\": null}}", field.name))).unwrap();
                assert_eq!(state(&options), default, "{}", field.name);
                // A prompt is either a name or a text.
                assert!((field.get)(&all) == value || matches!(field.name, "prompt" | "prompt_name"), "{}", field.name);
            }
            all.set_fields(None).unwrap();
            assert_eq!(state(&all), default);
            O::fields().len()
        }
        let fields = every::<GenerateOptions>()
            + every::<TrainOptions>()
            + every::<LoadOptions>()
            + every::<LoraConfig>()
            + every::<EmbedOptions>()
            + every::<RerankOptions>();
        assert!(fields > 60, "{fields}");
    }

    #[test]
    fn whatever_is_written_what_is_accepted_is_in_its_range() {
        let json = "{\"temperature\": 0.5, \"top_k\": 20, \"stop\": [\"a\\n\"], \"logit_bias\": {\"3\": -1e2, \"4\": false}, \
                    \"json_schema\": {\"enum\": [null]}, \"seed\": 18446744073709551615, \"tool_choice\": null}";
        let mut accepted = 0;
        for at in 0..json.len() {
            for by in ["", "0", "9", "-", "e", "\"", "\\", "{", "}", "[", "]", ",", ":", " ", "null", "\u{e9}", "\0", "1e308"] {
                for end in [at, at + 1] {
                    let changed = format!("{}{by}{}", &json[..at], &json[end..]);
                    let mut options = GenerateOptions::default();
                    match options.set_json(&changed) {
                        Ok(()) => accepted += 1,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{changed}"),
                    }
                    options.check_fields().unwrap();
                }
            }
        }
        assert!(accepted > 100, "{accepted}");
    }

    #[test]
    fn a_number_in_f32_is_told_as_it_was_written() {
        let options = LoraConfig { dropout: 1.1, ..LoraConfig::default() };
        assert_eq!(options.check_fields().unwrap_err().message(), "dropout: expected at least 0 and below 1, found 1.1");
    }

    #[test]
    fn a_secret_is_not_told() {
        for json in ["{\"hub_token\": [\"secret\"]}", "{\"hub_token\": \"secret\\u0000\"}", "{\"hub_token\": {\"secret\": 1}}"] {
            assert!(!refused::<LoadOptions>(json).contains("secret"));
        }
    }
}
