//! tokenizer.json, by the crate `tokenizers`. The crate trusts it: what it would panic on, fill memory with or take for ever is
//! refused here, before anything is built.
//!
//! ```ignore
//! parse_tokenizer(r#"{"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b"}, …}"#)
//!     // normalizer: pattern: expected one that is not empty
//! ```

use std::borrow::Cow;
use std::panic::catch_unwind;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::{ModelWrapper, Tokenizer};

use super::room::json_bytes;
use crate::error::{Error, Result};
use crate::kernels::check_room;

/// The charsmaps of SentencePiece have up to 320 kB.
const MAX_CHARSMAP: usize = 4 << 20;
/// What a charsmap puts in place of a character; SentencePiece's longest has 33 bytes.
const MAX_REPLACEMENT: usize = 256;
/// How many times longer a text may get on its way through a normaliser and a pre-tokenizer, or a decoder. T5's gets to 99.
const MAX_GROWTH: usize = 1024;
/// WordPiece takes the square to the cube of a word's length; BERT's vocabularies have 100.
const MAX_WORD: u64 = 512;
/// Unigram looks at all beginnings of a piece at each byte of a text; SentencePiece's longest has 16 characters.
pub const MAX_PIECE: usize = 512;
/// Tokens that a template puts around a text.
const MAX_ADDED: usize = 1024;

/// Reads the text of a tokenizer.json; how many times longer it makes a text at most comes along.
///
/// # Errors
/// `Format`.
pub fn parse_tokenizer(json: &str) -> Result<(Tokenizer, usize)> {
    if let Some(found) = super::text::stand_in(json.as_bytes()) {
        return Err(Error::format(format!("not a tokenizer: expected JSON, found {found}")));
    }
    // Words and merges stand in tables, and what may be one of several types is kept as values first: 1.3 times as much where it was measured.
    check_room("vocabulary", json_bytes(json).saturating_mul(2))?;
    let outline: Outline =
        serde_json::from_str(json).map_err(|e| Error::format(format!("not a tokenizer: {e}")).with_source(e))?;
    let growth = outline.check()?;
    let parsed = catch_unwind(|| Tokenizer::from_bytes(json));
    let parsed = parsed.map_err(|_| Error::format("not a tokenizer: the crate tokenizers panicked"))?;
    let tokenizer = parsed.map_err(|e| Error::format(format!("not a tokenizer: {e}")).with_source(e))?;
    if let ModelWrapper::Unigram(model) = tokenizer.get_model()
        && let Some((piece, _)) = model.iter().find(|(piece, _)| piece.len() > MAX_PIECE)
    {
        let message = format!("model: vocab: expected pieces of up to {MAX_PIECE} bytes, found one of {}", piece.len());
        return Err(Error::format(message));
    }
    probe(&tokenizer)?;
    Ok((tokenizer, growth))
}

/// Whether a few texts get through: patterns may match what no check foresees.
fn probe(tokenizer: &Tokenizer) -> Result<()> {
    let passes = |text: &str| {
        catch_unwind(|| {
            let ids = tokenizer.encode_fast(text, true).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
            let _ = tokenizer.decode(&ids, false);
        })
        .is_ok()
    };
    match ["", "a", " a  B1.\n\u{65e5}\u{672c}\t ", "\u{2581}x"].into_iter().find(|text| !passes(text)) {
        Some(text) => Err(Error::format(format!("not a tokenizer: the crate tokenizers panicked at the text {text:?}"))),
        None => Ok(()),
    }
}

/// What a tokenizer.json holds beside its vocabulary, which is read past.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: Option<ModelOutline<'a>>,
}

#[derive(Deserialize)]
struct ModelOutline<'a> {
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

impl ModelOutline<'_> {
    /// The crate joins the halves of a merge, the second without its prefix, in a room that is as long as the longest token. What is no
    /// vocabulary and no list of merges, it says itself.
    fn check_merges(&self) -> Result<()> {
        let (Some(vocab), Some(merges)) = (self.vocab, self.merges) else { return Ok(()) };
        let Ok(Longest(longest)) = serde_json::from_str(vocab.get()) else { return Ok(()) };
        let prefix = self.continuing_subword_prefix.as_str().unwrap_or_default().len();
        let check = |first: &str, second: &str| match second.get(prefix..) {
            Some(rest) if first.len() + rest.len() <= longest => Ok(()),
            Some(rest) => Err(format!(
                "model: merges: expected tokens of up to {longest} bytes, as the vocabulary has them, found one of {}",
                first.len() + rest.len()
            )),
            None => Err("model: merges: expected second halves that begin with continuing_subword_prefix".to_owned()),
        };
        let mut wrong = None;
        let each = Merges(|first: &str, second: &str| wrong = wrong.take().or(check(first, second).err()));
        // What is no merge is said by the crate.
        let _ = each.deserialize(&mut serde_json::Deserializer::from_str(merges.get()));
        wrong.map_or(Ok(()), |message| Err(Error::format(message)))
    }
}

/// The bytes of the longest key of an object.
struct Longest(usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Longest;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some((Text(key), IgnoredAny)) = map.next_entry()? {
                    longest = longest.max(key.len());
                }
                Ok(Longest(longest))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A text, without a copy where none is needed.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Shows a function the halves of each merge: `["a", "b"]`, or `"a b"` in older files.
struct Merges<F>(F);

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Text<'a>, #[serde(borrow)] Text<'a>),
    Line(#[serde(borrow)] Cow<'a, str>),
}

impl<'de, F: FnMut(&str, &str)> DeserializeSeed<'de> for Merges<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&str, &str)> Visitor<'de> for Merges<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut merges: A) -> std::result::Result<(), A::Error> {
        while let Some(merge) = merges.next_element::<Merge<'de>>()? {
            match &merge {
                Merge::Pair(Text(first), Text(second)) => (self.0)(first, second),
                Merge::Line(line) => {
                    if let Some((first, second)) = line.split_once(' ') {
                        (self.0)(first, second);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Outline<'_> {
    /// How many times longer a text may get.
    fn check(&self) -> Result<usize> {
        if let Some(length) = self.model.as_ref().and_then(|model| model.max_input_chars_per_word)
            && length > MAX_WORD
        {
            let message = format!("model: max_input_chars_per_word: expected up to {MAX_WORD}, found {length}");
            return Err(Error::format(message));
        }
        if let Some(model) = &self.model {
            model.check_merges()?;
        }
        let within = |section: &'static str| move |e: Error| e.within(section);
        let normalizer = growth(&self.normalizer).map_err(within("normalizer"))?;
        let pre_tokenizer = growth(&self.pre_tokenizer).map_err(within("pre_tokenizer"))?;
        let text = normalizer.saturating_mul(pre_tokenizer);
        let decoded = growth(&self.decoder).map_err(within("decoder"))?;
        if let Some(growth) = [text, decoded].into_iter().find(|growth| *growth > MAX_GROWTH) {
            let message = format!("expected steps that make a text up to {MAX_GROWTH} times longer, found {growth} times");
            return Err(Error::format(message));
        }
        check_template(&self.post_processor, &mut 0).map_err(within("post_processor"))?;
        Ok(text)
    }
}

/// How many times longer a step of the normaliser, the pre-tokenizer or the decoder may make a text; by its settings, as old files
/// name no types. What the crate panics on is an error.
fn growth(step: &Value) -> Result<usize> {
    let Value::Object(fields) = step else {
        return Ok(1);
    };
    let expected = |field: &str, expectation: &str| Err(Error::format(format!("{field}: expected {expectation}")));
    let mut times = 1usize;
    for list in ["normalizers", "pretokenizers", "decoders"] {
        for step in fields.get(list).and_then(Value::as_array).into_iter().flatten() {
            times = times.saturating_mul(growth(step)?);
        }
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if let Some(map) = text("precompiled_charsmap") {
        let longer = check_charsmap(&base64(map));
        times =
            times.saturating_mul(longer.map_err(|expected| Error::format(format!("precompiled_charsmap: expected {expected}")))?);
    }
    if let Some(pattern) = fields.get("pattern") {
        let literal = pattern.get("String").and_then(Value::as_str);
        if literal.or(pattern.get("Regex").and_then(Value::as_str)) == Some("") {
            return expected("pattern", "one that is not empty");
        }
        let content = text("content").map_or(0, str::len);
        // A regular expression may match a single byte.
        times = times.saturating_mul(content.div_ceil(literal.map_or(1, str::len)).max(1));
    }
    if let Some(replacement) = text("replacement") {
        times = times.saturating_mul(replacement.len().max(1));
    }
    let kind = text("type").unwrap_or_default();
    // Half of all bytes are written with two.
    if kind == "ByteLevel" || fields.contains_key("trim_offsets") {
        times = times.saturating_mul(2);
    }
    // A space between any two letters.
    if ["suffix", "word_delimiter_token", "pad_token"].into_iter().any(|name| text(name) == Some("")) {
        times = times.saturating_mul(2);
    }
    if kind == "FixedLength" && fields.get("length").and_then(Value::as_u64) == Some(0) {
        return expected("length", "1 or more, found 0");
    }
    if fields.get("stop").and_then(Value::as_u64).is_some_and(|stop| stop > 0) {
        // It cuts from the end what is not there, or was cut from the start.
        return expected("stop", "0: letters are stripped at the start of a token only");
    }
    Ok(times)
}

/// Holds a template of a post-processor against what the crate takes for given. `added`: how many tokens the ones before add.
fn check_template(step: &Value, added: &mut usize) -> Result<()> {
    let expected = |message: String| Err(Error::format(message));
    for step in step.get("processors").and_then(Value::as_array).into_iter().flatten() {
        check_template(step, added)?;
    }
    let special = step.get("special_tokens");
    for (name, allowed) in [("single", &["A"][..]), ("pair", &["A", "B"][..])] {
        let mut seen = Vec::new();
        for piece in step.get(name).and_then(Value::as_array).into_iter().flatten() {
            if let Some(id) = piece.get("Sequence").and_then(|sequence| sequence.get("id")).and_then(Value::as_str) {
                if !allowed.contains(&id) || seen.contains(&id) {
                    return expected(format!("{name}: expected each of {} once, found ${id}", allowed.join(", ")));
                }
                seen.push(id);
            }
            let Some(id) = piece.get("SpecialToken").and_then(|token| token.get("id")).and_then(Value::as_str) else {
                continue;
            };
            let len = |list: &str| special?.get(id)?.get(list)?.as_array().map(Vec::len);
            match (len("ids"), len("tokens")) {
                (Some(ids), Some(tokens)) if ids == tokens => *added += ids,
                (None, None) if special.is_none_or(|special| special.get(id).is_none()) => {
                    return expected(format!("special_tokens: expected {id:?}, which {name} names"));
                }
                _ => return expected(format!("special_tokens: {id:?}: expected as many ids as tokens")),
            }
        }
    }
    if *added > MAX_ADDED { expected(format!("expected up to {MAX_ADDED} tokens around a text, found {added}")) } else { Ok(()) }
}

/// The bytes of a text that an encoder wrote.
fn base64(text: &str) -> Vec<u8> {
    let six = |sign: u8| match sign {
        b'A'..=b'Z' => u32::from(sign - b'A'),
        b'a'..=b'z' => u32::from(sign - b'a') + 26,
        b'0'..=b'9' => u32::from(sign - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let three = |signs: &[u8]| {
        let bits = signs.iter().enumerate().fold(0, |bits, (at, &sign)| bits | six(sign) << (18 - 6 * at));
        bits.to_be_bytes().into_iter().skip(1).take(signs.len() * 6 / 8)
    };
    text.chunks(4).flat_map(three).collect()
}

/// Holds a charsmap, by which SentencePiece normalises, against what the crate reads of it without looking: a trie of u32 behind
/// its length in bytes, whose leaves are places in the texts behind it, each ended by a zero. It tells how many times longer a text
/// may get; the error is what was expected.
///
/// # Source
/// `DoubleArrayUnit` of Darts-clone, <https://github.com/s-yata/darts-clone/blob/master/include/darts.h>.
pub fn check_charsmap(bytes: &[u8]) -> std::result::Result<usize, &'static str> {
    if bytes.len() > MAX_CHARSMAP {
        return Err("up to 4 MiB");
    }
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or("the length of a trie")?;
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 || !len.is_multiple_of(4) || len > rest.len() {
        return Err("a trie of whole units");
    }
    let (trie, texts) = rest.split_at(len);
    let texts = std::str::from_utf8(texts).map_err(|_| "texts in UTF-8 behind the trie")?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let (mut open, mut times) = (vec![(0, 0usize)], 1);
    while let Some((node, depth)) = open.pop() {
        let unit = units[node];
        let base = node ^ offset(unit);
        // A byte of a text changes the low eight bits.
        if base | 0xff >= units.len() {
            return Err("a trie whose offsets stay within it");
        }
        if node != 0 && unit & (1 << 8) != 0 {
            let at = (units[base] & !(1 << 31)) as usize;
            if !texts.is_char_boundary(at) {
                return Err("leaves that are places in the texts");
            }
            let rest = &texts.as_bytes()[at..];
            let end = rest.iter().take(MAX_REPLACEMENT + 1).position(|byte| *byte == 0).unwrap_or(rest.len());
            if end > MAX_REPLACEMENT {
                return Err("texts of up to 256 bytes");
            }
            times = times.max(end.div_ceil(depth.max(1)));
        }
        for byte in 1..=0xff {
            let child = base ^ byte;
            // The top bit is that of leaves.
            if units[child] & (1 << 31 | 0xff) == byte as u32 && !seen[child] {
                seen[child] = true;
                open.push((child, depth + 1));
            }
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A` becomes `a`.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 0x300];
        units[0] = 0x100 << 10;
        units[0x141] = (0x141 ^ 0x200) << 10 | 1 << 8 | 0x41;
        units[0x200] = 1 << 31;
        let trie = units.iter().flat_map(|unit| unit.to_le_bytes());
        (4 * 0x300u32).to_le_bytes().into_iter().chain(trie).chain(*b"a\0").collect()
    }

    /// With one unit of the trie changed.
    fn spoiled(unit: usize, value: u32) -> Vec<u8> {
        let mut bytes = charsmap();
        bytes[4 + 4 * unit..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn a_charsmap_is_walked_before_it_is_used() {
        let map = charsmap();
        assert_eq!(check_charsmap(&map), Ok(1));
        let long = [&map[..4 + 4 * 0x300], &[b'a'; 257]].concat();
        assert_eq!(check_charsmap(&long), Err("texts of up to 256 bytes"));
        assert_eq!(check_charsmap(&long[..long.len() - 200]), Ok(57));
        let trie = 4 + 4 * 0x300;
        let cases: [(&[u8], &str); 8] = [
            (&[], "the length of a trie"),
            (&map[..trie - 1], "a trie of whole units"),
            (&[0, 0, 0, 0, 97, 0], "a trie of whole units"),
            (&[&map[..trie], &[0xff]].concat(), "texts in UTF-8 behind the trie"),
            (&spoiled(0, 0x300 << 10), "a trie whose offsets stay within it"),
            (&spoiled(0x141, 0x7ff << 10 | 0x41), "a trie whose offsets stay within it"),
            (&spoiled(0x200, 1 << 31 | 3), "leaves that are places in the texts"),
            (&vec![0; MAX_CHARSMAP + 1], "up to 4 MiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(check_charsmap(bytes), Err(expected));
        }
    }

    #[test]
    fn what_the_crate_panics_on_is_refused() {
        let tokenizer = |normalizer: &str, merge: &str| {
            format!(
                r#"{{"version": "1.0", "added_tokens": [], "normalizer": {normalizer},
                    "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "aa": 2}}, "merges": ["{merge}"]}}}}"#
            )
        };
        // The trie of `charsmap`, then one that leaves itself.
        let map = |bytes: &[u8]| {
            let signs = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let mut bits = bytes.chunks(3).map(|three| (three, three.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b))));
            let text: String = bits
                .by_ref()
                .flat_map(|(three, bits)| {
                    let bits = bits << (8 * (3 - three.len()));
                    let keep = three.len() + 1;
                    (0..4).map(move |at| if at < keep { signs[(bits >> (18 - 6 * at)) as usize & 63] as char } else { '=' })
                })
                .collect();
            format!(r#"{{"type": "Sequence", "normalizers": [{{"type": "Precompiled", "precompiled_charsmap": "{text}"}}]}}"#)
        };
        for extra in 0..3 {
            let bytes = [charsmap(), vec![0; extra]].concat();
            assert_eq!(base64(map(&bytes).split('"').nth(13).unwrap()), bytes);
        }
        let (good, _) = parse_tokenizer(&tokenizer(&map(&charsmap()), "a a")).unwrap();
        assert_eq!(good.encode("AA", false).unwrap().get_ids(), [2]);
        let error = |json: &str| parse_tokenizer(json).unwrap_err().to_string();
        let spoiled = error(&tokenizer(&map(&spoiled(0, 0x300 << 10)), "a a"));
        assert_eq!(spoiled, "normalizer: precompiled_charsmap: expected a trie whose offsets stay within it");
        let long = "model: merges: expected tokens of up to 2 bytes, as the vocabulary has them, found one of 4";
        assert_eq!(error(&tokenizer("null", "aa aa")), long);
        let pairs = tokenizer("null", "a a").replace("[\"a a\"]", "[[\"a\", \"a\"], [\"a\\u0061\", \"aa\"]]");
        assert_eq!(error(&pairs), long);
        // The prefix stands in front of the second half only, and may cut a letter.
        let prefixed = |prefix: &str, merge: &str| {
            tokenizer("null", merge).replace("\"BPE\",", &format!("\"BPE\", \"continuing_subword_prefix\": \"{prefix}\","))
        };
        let begin = "model: merges: expected second halves that begin with continuing_subword_prefix";
        for (prefix, merge) in [("##", "a b"), ("#", "a é"), ("###", "a aa")] {
            assert_eq!(error(&prefixed(prefix, merge)), begin, "{prefix} {merge}");
        }
        assert!(parse_tokenizer(&prefixed("a", "a aa")).is_ok());
        assert!(error(&tokenizer("null", "b b")).contains("out of vocabulary"));
    }
    /// A tokenizer.json with these sections, over the bytes of ASCII.
    fn with(sections: &str) -> String {
        let vocab: Vec<String> = (b'a'..=b'z').enumerate().map(|(id, letter)| format!("\"{}\": {id}", letter as char)).collect();
        let model = format!(r#""model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}"#, vocab.join(", "));
        format!(r#"{{"version": "1.0", "added_tokens": [], {sections}{model}}}"#)
    }

    #[test]
    fn sections_that_panic_grow_or_repeat_are_refused_before_they_are_built() {
        let doubles = [r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#; 40].join(", ");
        let bytes =
            [r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}"#; 40].join(", ");
        let template = |single: &str, ids: &str| {
            format!(
                r#""post_processor": {{"type": "TemplateProcessing", "single": [{single}], "pair": [],
                "special_tokens": {{"s": {{"id": "s", "ids": [{ids}], "tokens": ["s"]}}}}}},"#
            )
        };
        let (a, b) = (r#"{"Sequence": {"id": "A", "type_id": 0}}"#, r#"{"Sequence": {"id": "B", "type_id": 0}}"#);
        let token = |id: &str| format!(r#"{{"SpecialToken": {{"id": "{id}", "type_id": 0}}}}"#);
        for (sections, message) in [
            (r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="},"#.to_owned(), "a trie of whole units"),
            (
                r#""normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b"},"#.to_owned(),
                "normalizer: pattern: expected one that is not empty",
            ),
            (format!(r#""normalizer": {{"type": "Sequence", "normalizers": [{doubles}]}},"#), "times longer"),
            (format!(r#""pre_tokenizer": {{"type": "Sequence", "pretokenizers": [{bytes}]}},"#), "times longer"),
            (format!(r#""decoder": {{"type": "Sequence", "decoders": [{doubles}]}},"#), "times longer"),
            (r#""pre_tokenizer": {"type": "FixedLength", "length": 0},"#.to_owned(), "pre_tokenizer: length: expected 1 or more"),
            (r#""decoder": {"type": "Strip", "content": " ", "start": 1, "stop": 1},"#.to_owned(), "decoder: stop: expected 0"),
            (r#""decoder": {"type": "Nothing"},"#.to_owned(), "not a tokenizer"),
            (template(b, "1"), "single: expected each of A once, found $B"),
            (template(&[a; 2].join(", "), "1"), "single: expected each of A once, found $A"),
            (template(&token("t"), "1"), "special_tokens: expected \"t\", which single names"),
            (template(&token("s"), "1, 2"), "as many ids as tokens"),
            (template(&vec![token("s"); 1025].join(", "), "1"), "up to 1024 tokens around a text"),
        ] {
            let error = parse_tokenizer(&with(&sections)).unwrap_err();
            assert!(error.message().contains(message), "{sections:.80}: {error}");
        }
        let nothing = r#""normalizer": {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "b"},"#;
        let (between, _) = parse_tokenizer(&with(nothing)).unwrap();
        assert!(between.encode("axxa", false).is_ok());
        let pieces = |length: usize| {
            format!(
                r#"{{"version": "1.0", "added_tokens": [], "model": {{"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], ["{}", -1.0]]}}}}"#,
                "a".repeat(length)
            )
        };
        assert!(parse_tokenizer(&pieces(512)).is_ok());
        assert!(parse_tokenizer(&pieces(513)).unwrap_err().message().contains("pieces of up to 512 bytes, found one of 513"));
        let words = |length: u64| {
            format!(
                r###"{{"version": "1.0", "added_tokens": [], "model": {{"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": {length}, "vocab": {{"?": 0, "a": 1}}}}}}"###
            )
        };
        assert!(parse_tokenizer(&words(512)).is_ok());
        assert!(parse_tokenizer(&words(1_000_000_000)).unwrap_err().message().contains("max_input_chars_per_word"));
        let (_, growth) =
            parse_tokenizer(&with(r#""normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "___"},"#))
                .unwrap();
        assert_eq!(growth, 3);
    }
}
