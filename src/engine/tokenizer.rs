//! Text to token ids and back, by tokenizer.json or a GGUF file (through the `tokenizers` crate).
//!
//! ```
//! use metal_candle::Tokenizer;
//! let tokenizer = Tokenizer::load("models/tiny-coder")?;
//! let ids = tokenizer.encode("let x = 1;", false)?;
//! assert_eq!(tokenizer.decode(&ids, true)?, "let x = 1;");
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use tokenizers::normalizers::{BertNormalizer, Lowercase, Sequence as NormalizerSequence};
use tokenizers::{
    Decoder, DecoderWrapper, Encoding, Model, NormalizerWrapper, OffsetType, PostProcessor, PreTokenizer, PreTokenizerWrapper,
    TruncationDirection,
};

use crate::error::{Error, ErrorKind, Result};
use crate::load::{Gguf, GgufVocabulary, Json, parse_tokenizer, read_text};

/// Larger than any real tokenizer.json.
const MAX_BYTES: u64 = 256 << 20;

/// A tokenizer; immutable, clones are the same.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special: HashSet<u32>,
}

impl Tokenizer {
    /// `path`: a tokenizer.json, a directory that holds one, or a GGUF file (`.gguf`), with or without tensors.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if there is none, `ErrorKind::Format` if it is not a tokenizer, `ErrorKind::Unsupported` for a kind
    /// of a GGUF file's that this library does not know.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let is_directory = path.is_dir();
        if !is_directory && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            let gguf = Gguf::open(path)?;
            let none = || Error::new(ErrorKind::NotFound, format!("{}: the file has no tokenizer", path.display()));
            return Self::of_gguf(&GgufVocabulary::read(gguf.metadata())?.ok_or_else(none)?);
        }
        let path = if is_directory { path.join("tokenizer.json") } else { path.to_path_buf() };
        parse_tokenizer(&read_text(&path, MAX_BYTES)?).and_then(Self::new).map_err(|e| e.within(path.display()))
    }

    /// The tokenizer of a GGUF file.
    pub(crate) fn of_gguf(vocabulary: &GgufVocabulary<'_>) -> Result<Self> {
        Self::new(vocabulary.tokenizer()?)
    }

    fn new(mut tokenizer: tokenizers::Tokenizer) -> Result<Self> {
        // Files carry the settings of the training run; a prompt is never cut or filled up in silence.
        tokenizer.with_truncation(None).map_err(|e| Error::format(format!("truncation: {e}")))?;
        tokenizer.with_padding(None);
        let special =
            tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Ok(Self(Arc::new(Inner { tokenizer, special })))
    }

    /// tokenizer.json.
    pub(crate) fn to_json(&self) -> Result<String> {
        self.0.tokenizer.to_string(true).map_err(|e| Error::format(format!("tokenizer.json: {e}")))
    }

    /// Token ids of a text; special tokens written out in it are recognised. `add_special`: with what the tokenizer puts
    /// around a text (BOS, EOS).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .0
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|e| Error::argument(format!("text: the tokenizer refused it: {e}")).with_source(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode) with special tokens, cut to `max_tokens` in all, at the end or at the beginning of the text.
    pub(crate) fn encode_within(&self, text: &str, max_tokens: usize, cut: TruncationDirection) -> Result<Vec<u32>> {
        let refused = |e: tokenizers::Error| Error::argument(format!("text: the tokenizer refused it: {e}")).with_source(e);
        let tokenizer = &self.0.tokenizer;
        let mut encoding = tokenizer.encode_fast(text, false).map_err(refused)?;
        encoding.truncate(max_tokens.saturating_sub(self.special_per_text()), 0, cut);
        let encoding = tokenizer.post_process(encoding, None, true).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode), with the byte of the text at which each token begins. What the tokenizer puts in front of a text
    /// begins at 0, what it puts behind at the end.
    pub(crate) fn encode_with_starts(&self, text: &str, add_special: bool) -> Result<(Vec<u32>, Vec<usize>)> {
        let refused = |e: tokenizers::Error| Error::argument(format!("text: the tokenizer refused it: {e}")).with_source(e);
        let encoding = self.encode_untrimmed(text).map_err(refused)?;
        let mut own = encoding.get_offsets().iter().map(|(start, _)| *start).collect::<Vec<_>>().into_iter();
        let encoding = self.0.tokenizer.post_process(encoding, None, add_special).map_err(refused)?;
        let mut before = 0;
        let mut start = |added: &u32| {
            let start = if *added == 0 { own.next().unwrap_or(text.len()) } else { before };
            if *added == 0 {
                before = text.len();
            }
            start
        };
        // A normaliser may tell what it likes; whoever searches in them needs them to rise.
        let mut last = 0;
        let mut rising = |start: usize| {
            last = last.max(start);
            last
        };
        let starts = encoding.get_special_tokens_mask().iter().map(|added| rising(start(added))).collect();
        Ok((encoding.get_ids().to_vec(), starts))
    }

    /// The tokens of a text before post-processing, which makes some tokenizers tell that a token begins behind its space.
    fn encode_untrimmed(&self, text: &str) -> tokenizers::Result<Encoding> {
        let tokenizer = &self.0.tokenizer;
        let mut parts = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        tokenizer.get_model().tokenize_in_pretokenized(&mut parts, None)?;
        parts.into_encoding(None, 0, OffsetType::Byte)
    }

    /// The special tokens that the tokenizer puts around a text.
    pub(crate) fn special_per_text(&self) -> usize {
        self.0.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    /// The same with what tokenizer_config.json says of a class that the reference does not take from tokenizer.json: BERT's and
    /// MPNet's normaliser, RoBERTa's first space.
    pub(crate) fn configured(self, config: &Json, model_type: &str) -> Result<Self> {
        let class = config.text("tokenizer_class")?.unwrap_or_else(|| {
            let class = match model_type {
                "bert" | "distilbert" => "BertTokenizer",
                "mpnet" => "MPNetTokenizer",
                "roberta" => "RobertaTokenizer",
                _ => "",
            };
            class.to_string()
        });
        // Its only holder needs no copy: vocabularies take megabytes.
        let Inner { mut tokenizer, special } = Arc::try_unwrap(self.0).unwrap_or_else(|shared| (*shared).clone());
        match class.strip_suffix("Fast").unwrap_or(&class) {
            "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" => {
                let accents =
                    if config.get("strip_accents").is_some() { Some(config.flag("strip_accents", false)?) } else { None };
                let (chinese, lower) = (config.flag("tokenize_chinese_chars", true)?, config.flag("do_lower_case", true)?);
                let normalizer = BertNormalizer::new(true, chinese, accents, lower);
                tokenizer.with_normalizer(Some(normalizer)).map_err(bad_normalizer)?;
            }
            "RobertaTokenizer" => {
                if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() {
                    let bytes = bytes.add_prefix_space(config.flag("add_prefix_space", false)?);
                    tokenizer.with_pre_tokenizer(Some(bytes));
                }
            }
            _ => {}
        }
        Ok(Self(Arc::new(Inner { tokenizer, special })))
    }

    /// The same, but every text is lower-cased first; itself if it does that already.
    pub(crate) fn lower_cased(&self) -> Result<Self> {
        let normalizer = self.0.tokenizer.get_normalizer();
        if normalizer.is_some_and(lowers_case) {
            return Ok(self.clone());
        }
        let mut steps = vec![NormalizerWrapper::Lowercase(Lowercase)];
        match normalizer {
            Some(NormalizerWrapper::Sequence(sequence)) => steps.extend(sequence.as_ref().iter().cloned()),
            Some(other) => steps.push(other.clone()),
            None => {}
        }
        let mut tokenizer = self.0.tokenizer.clone();
        tokenizer.with_normalizer(Some(NormalizerSequence::new(steps))).map_err(bad_normalizer)?;
        Ok(Self(Arc::new(Inner { tokenizer, special: self.0.special.clone() })))
    }

    /// The text of token ids; bytes that are no UTF-8 become U+FFFD. `skip_special`: without special tokens.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` for an id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| self.0.tokenizer.id_to_token(**id).is_none()) {
            return Err(Error::argument(format!("tokens[{at}]: expected an id of the vocabulary, found {id}")));
        }
        self.decode_known(tokens, skip_special)
    }

    /// As [`decode`](Self::decode); ids without a token (padding of the vocabulary) have no text.
    pub(crate) fn decode_known(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.0
            .tokenizer
            .decode(tokens, skip_special)
            .map_err(|e| Error::argument(format!("tokens: the tokenizer refused them: {e}")).with_source(e))
    }

    /// The id of a token, written as the vocabulary has it.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if the vocabulary lacks the token.
    pub fn token_id(&self, token: &str) -> Result<u32> {
        self.0
            .tokenizer
            .token_to_id(token)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("token {token:?}: not in the vocabulary")))
    }

    /// Whether a token is special: markup that is not part of a text.
    pub fn is_special(&self, token: u32) -> bool {
        self.0.special.contains(&token)
    }

    /// Tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.tokenizer.get_vocab_size(true)
    }

    /// The bytes that a token adds to a text in its middle: UTF-8, or a part of a character. None for special tokens.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` for an id outside the vocabulary, `ErrorKind::Unsupported` for a decoder by which a token's bytes
    /// depend on its neighbours.
    pub fn bytes_of(&self, token: u32) -> Result<Vec<u8>> {
        if self.0.tokenizer.id_to_token(token).is_none() {
            return Err(Error::argument(format!("token: expected an id of the vocabulary, found {token}")));
        }
        self.bytes_by(&Spelling::of(self.0.tokenizer.get_decoder())?, token)
    }

    fn bytes_by(&self, spelling: &Spelling<'_>, token: u32) -> Result<Vec<u8>> {
        match self.0.tokenizer.id_to_token(token) {
            Some(text) if !self.is_special(token) => spelling.bytes(text),
            _ => Ok(Vec::new()),
        }
    }

    /// The bytes that each id below `vocab_size` adds to a text in its middle; none for special tokens and ids without a token.
    ///
    /// # Errors
    /// `ErrorKind::Unsupported` for a decoder by which a token's bytes depend on its neighbours.
    pub(crate) fn token_bytes(&self, vocab_size: usize) -> Result<Vec<Vec<u8>>> {
        let spelling = Spelling::of(self.0.tokenizer.get_decoder())?;
        (0..vocab_size as u32).map(|id| self.bytes_by(&spelling, id)).collect()
    }
}

/// How a vocabulary writes bytes.
enum Spelling<'t> {
    /// One character a byte, as GPT-2 does.
    Characters(HashMap<char, u8>),
    /// Text, changed by the decoder (`▁` is a space), and `<0x0A>` for single bytes.
    Text(&'t DecoderWrapper),
}

impl<'t> Spelling<'t> {
    fn of(decoder: Option<&'t DecoderWrapper>) -> Result<Self> {
        let mut parts = Vec::new();
        let decoder = decoder.ok_or_else(|| Error::unsupported("tokenizer.json: decoder: expected one, found none"))?;
        collect_parts(decoder, &mut parts);
        use DecoderWrapper::{ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip};
        if parts.iter().all(|part| matches!(part, ByteLevel(_) | Fuse(_))) {
            return Ok(Self::Characters(byte_characters()));
        }
        if parts.iter().all(|part| matches!(part, ByteFallback(_) | Fuse(_) | Metaspace(_) | Replace(_) | Strip(_))) {
            return Ok(Self::Text(decoder));
        }
        Err(Error::unsupported(
            "tokenizer.json: decoder: expected ByteLevel, or ByteFallback and Metaspace with Replace, Fuse and Strip",
        ))
    }

    fn bytes(&self, token: String) -> Result<Vec<u8>> {
        match self {
            // Added tokens are written as they are; the decoder tells them by a character that stands for no byte.
            Self::Characters(bytes) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
                Ok(bytes.unwrap_or_else(|| token.into_bytes()))
            }
            Self::Text(decoder) => match single_byte(&token) {
                Some(byte) => Ok(vec![byte]),
                None => Ok(text_between(decoder, token)?.into_bytes()),
            },
        }
    }
}

fn collect_parts<'t>(decoder: &'t DecoderWrapper, parts: &mut Vec<&'t DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().for_each(|part| collect_parts(part, parts)),
        part => parts.push(part),
    }
}

/// The byte of a `<0x0A>`.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A decoder strips spaces at both ends of a text: what it makes of the token between two others.
fn text_between(decoder: &DecoderWrapper, token: String) -> Result<String> {
    let refused = |reason: String| Error::unsupported(format!("tokenizer.json: decoder: {reason}"));
    let text = decoder.decode(vec!["a".to_owned(), token.clone(), "a".to_owned()]).map_err(|e| refused(e.to_string()))?;
    let between = text.strip_prefix('a').and_then(|text| text.strip_suffix('a'));
    between.map(str::to_owned).ok_or_else(|| refused(format!("token {token:?} changes its neighbours")))
}

/// The printable characters of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on.
///
/// # Source
/// `bytes_to_unicode` of GPT-2, <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
fn byte_characters() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|&byte| !is_printable(byte)).zip('\u{100}'..);
    let printable = (0..=u8::MAX).filter(|&byte| is_printable(byte)).map(|byte| (byte, char::from(byte)));
    printable.chain(others).map(|(byte, character)| (character, byte)).collect()
}

fn bad_normalizer(e: tokenizers::Error) -> Error {
    Error::format(format!("tokenizer.json: normalizer: {e}")).with_source(e)
}

fn lowers_case(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Lowercase(_) => true,
        NormalizerWrapper::BertNormalizer(bert) => bert.lowercase,
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().any(lowers_case),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
        let bytes = tokenizer.token_bytes(tokenizer.vocab_size()).unwrap();
        ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect()
    }

    /// A tokenizer.json with this decoder over these tokens.
    fn made(decoder: &str, tokens: &[&str]) -> Tokenizer {
        let vocab: Vec<String> = tokens.iter().enumerate().map(|(id, token)| format!("{token:?}: {id}")).collect();
        let text = format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": 0, "content": "<s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}}], "decoder": {decoder},
                "model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}}}"#,
            vocab.join(", ")
        );
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), text).unwrap();
        Tokenizer::load(directory.path()).unwrap()
    }

    #[test]
    fn the_bytes_of_tokens_joined_are_the_text() {
        let tokenizer = Tokenizer::load("models/tiny-coder").unwrap();
        for text in ["let x = \"a\\n\";\n\t// naïve 日本 👩‍🚀", " {\"a\": [1, 2.5e-3, null]}\r\n", "\u{ad}\u{a0}\u{7f}\0"]
        {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(joined(&tokenizer, &ids), text.as_bytes(), "{text:?}");
        }
        let special = tokenizer.token_id("<|im_end|>").unwrap();
        assert_eq!(joined(&tokenizer, &[special]), b"");
    }

    #[test]
    fn tokens_begin_where_their_bytes_do() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = ["models", "tests/golden/encoders", "tests/golden/embedders"];
        let folders = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
        let (mut seen, mut by_bytes) = (0, 0);
        for path in folders.map(|entry| entry.unwrap().path()) {
            let Ok(tokenizer) = Tokenizer::load(&path) else { continue };
            for text in ["let x = \"naïve 日本 👩‍🚀\";\n\n  end", "hello", " a", ""] {
                let (plain, own) = tokenizer.encode_with_starts(text, false).unwrap();
                let (ids, starts) = tokenizer.encode_with_starts(text, true).unwrap();
                assert_eq!(plain, tokenizer.encode(text, false).unwrap(), "{}", path.display());
                assert_eq!(ids, tokenizer.encode(text, true).unwrap(), "{}", path.display());
                assert!(ids.len() == starts.len() && starts.is_sorted(), "{}: {starts:?}", path.display());
                let added = ids.len() - plain.len();
                let before = (0..=added).find(|&before| ids[before..].starts_with(&plain)).unwrap();
                let want = [vec![0; before], own.clone(), vec![text.len(); added - before]].concat();
                assert_eq!(starts, want, "{}", path.display());
                // A token that begins within a character begins with it.
                let by_byte = matches!(Spelling::of(tokenizer.0.tokenizer.get_decoder()), Ok(Spelling::Characters(_)));
                if by_byte && joined(&tokenizer, &plain) == text.as_bytes() {
                    let begins = |token: usize| text.floor_char_boundary(joined(&tokenizer, &plain[..token]).len());
                    let want: Vec<usize> = (0..plain.len()).map(begins).collect();
                    assert_eq!(own, want, "{}", path.display());
                    by_bytes += 1;
                }
            }
            seen += 1;
        }
        assert!(seen > 30 && by_bytes > 20, "{seen} {by_bytes}");
    }

    #[test]
    fn the_bytes_of_a_vocabulary_of_texts_are_those_of_its_decoder() {
        let llama = r#"{"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#;
        let metaspace = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#;
        let tokens = ["<s>", "▁the", "a", "▁", "<0x0A>", "<0xE2>", "<0xABC>", "x▁y"];
        for decoder in [llama, metaspace] {
            let bytes = made(decoder, &tokens).token_bytes(10).unwrap();
            let want: [&[u8]; 10] = [b"", b" the", b"a", b" ", b"\n", b"\xe2", b"<0xABC>", b"x y", b"", b""];
            assert_eq!(bytes, want);
        }
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
        let bytes = made(byte_level, &["<s>", "Ġthe", "Ċ", "é", "a b"]).token_bytes(6).unwrap();
        let want: [&[u8]; 6] = [b"", b" the", b"\n", b"\xe9", b"a b", b""];
        assert_eq!(bytes, want);
    }

    #[test]
    fn a_decoder_that_looks_at_neighbours_is_refused() {
        let pieces = r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###;
        for decoder in [pieces, "null"] {
            let error = made(decoder, &["<s>", "a"]).token_bytes(2).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().starts_with("tokenizer.json: decoder: expected "), "{error}");
        }
    }
}
