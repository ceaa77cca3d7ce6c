//! Text to token ids and back, by tokenizer.json or a GGUF file (through the `tokenizers` crate).
//!
//! ```
//! use metal_candle::Tokenizer;
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let tokenizer = Tokenizer::load("models/tiny-coder")?;
//! let ids = tokenizer.encode("let x = 1;", false)?;
//! assert_eq!(tokenizer.decode(&ids, true)?, "let x = 1;");
//! # Ok::<(), metal_candle::Error>(())
//! ```

mod config;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

pub(super) use config::gives_types;
use config::{OF_FILE, tokenizer_class};
use tokenizers::normalizers::{Lowercase, Sequence as NormalizerSequence};
use tokenizers::{
    Decoder, DecoderWrapper, Encoding, Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetType, PostProcessor,
    PreTokenizedString, PreTokenizer, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::check_room;
use crate::load::{Gguf, GgufVocabulary, Json, parse_tokenizer, read_text, vocabulary_json};

/// Larger than any real tokenizer.json.
const MAX_BYTES: u64 = 256 << 20;

/// What a text may become on its way through a tokenizer; the crate keeps 16 bytes for each.
const MAX_TEXT_BYTES: usize = 256 << 20;
/// What the crate has of a text at once, for each of its bytes (the text, the normalised one and where each of its bytes comes from, each
/// twice, and tokens), and for each word: measured with byte-level BPE and WordPiece over words, digits, punctuation, code, Han and
/// spaces, of which single ones take up to 445 a byte.
const BYTES_PER_BYTE: usize = 170;
const BYTES_PER_WORD: usize = 300;
/// Of ids that are decoded, beside their texts.
const BYTES_PER_ID: usize = 160;
/// Of a text that is cut, what is read at first: a token has four to five bytes of most texts.
const BYTES_READ_PER_TOKEN: usize = 16;

/// A tokenizer; immutable, clones are the same.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special: HashSet<u32>,
    /// How many times longer the tokenizer makes a text at most.
    growth: usize,
    /// Where tokenizer.json cuts texts that are too long, if it says so.
    cut: Option<TruncationDirection>,
    /// Whether spaces before punctuation and contractions are taken out of what is decoded.
    cleans_up: bool,
}

/// The tokens of the first of two texts.
pub(crate) struct FirstText(Encoding);

impl Tokenizer {
    /// `path`: a tokenizer.json, a directory that holds one, or a GGUF file (`.gguf`), with or without tensors. A directory may have
    /// vocab.txt of BERT, vocab.json and merges.txt of GPT-2, RoBERTa or Qwen, or tokenizer.model of Llama instead, if its files name the
    /// class that reads them.
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
        let file = if is_directory { path.join("tokenizer.json") } else { path.to_path_buf() };
        let read = |name: &str| Json::read_optional(&path.join(name));
        let model_type = |model: Option<&Json>| model.map_or(Ok(None), |model| model.text("model_type"));
        if is_directory && !file.exists() {
            let (config, model) = (read("tokenizer_config.json")?, read("config.json")?);
            let model_type = model_type(model.as_ref())?.unwrap_or_default();
            let made = Self::of_vocabulary(path, config.as_ref(), model.as_ref(), &model_type)?;
            return made.ok_or_else(|| no_tokenizer_json(path));
        }
        let tokenizer = parse_tokenizer(&read_text(&file, MAX_BYTES)?)
            .and_then(|(tokenizer, growth)| Self::new(tokenizer, growth))
            .map_err(|e| e.within(file.display()))?;
        if !is_directory {
            return Ok(tokenizer);
        }
        let (config, model) = (read("tokenizer_config.json")?, read("config.json")?);
        let model_type = model_type(model.as_ref())?.unwrap_or_default();
        let tokenizer = tokenizer.configured(config.as_ref(), model.as_ref(), &model_type)?;
        tokenizer.declared(path)
    }

    /// That of a directory without a tokenizer.json, made of its vocabulary as the class does that tokenizer_config.json, config.json
    /// (`model`) or the family names; `None` where nothing says how.
    pub(crate) fn of_vocabulary(
        directory: &Path,
        config: Option<&Json>,
        model: Option<&Json>,
        model_type: &str,
    ) -> Result<Option<Self>> {
        let class = tokenizer_class(config, model, model_type)?;
        // The reference makes one of these without that class.
        if class == "LlamaTokenizer" && OF_FILE.contains(&model_type) {
            return Ok(None);
        }
        let Some(json) = vocabulary_json(directory, &class, config)? else { return Ok(None) };
        let (tokenizer, growth) = parse_tokenizer(&json).map_err(|e| e.within(directory.display()))?;
        Self::new(tokenizer, growth)?.configured(config, model, model_type)?.declared(directory).map(Some)
    }

    /// The tokenizer of a GGUF file.
    pub(crate) fn of_gguf(vocabulary: &GgufVocabulary<'_>) -> Result<Self> {
        let (tokenizer, growth) = vocabulary.tokenizer()?;
        Self::new(tokenizer, growth)
    }

    fn new(mut tokenizer: tokenizers::Tokenizer, growth: usize) -> Result<Self> {
        // Files carry the settings of the training run; a prompt is never cut or filled up in silence.
        let cut = tokenizer.get_truncation().map(|truncation| truncation.direction);
        tokenizer.with_truncation(None).map_err(|e| Error::format(format!("truncation: {e}")))?;
        tokenizer.with_padding(None);
        let special = special_ids(&tokenizer);
        Ok(Self(Arc::new(Inner { tokenizer, special, growth, cut, cleans_up: false })))
    }

    /// Where tokenizer.json cuts texts that are too long, if it says so.
    pub(crate) fn cut(&self) -> Option<TruncationDirection> {
        self.0.cut
    }

    /// tokenizer.json.
    pub(crate) fn to_json(&self) -> Result<String> {
        self.0.tokenizer.to_string(true).map_err(|e| Error::format(format!("tokenizer.json: {e}")))
    }

    /// Token ids of a text; special tokens written out in it are recognised. `add_special`: with what the tokenizer puts
    /// around a text (BOS, EOS).
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` for a text that the tokenizer refuses, or that it could make longer than 256 MiB.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_cancellable(text, add_special, None)
    }

    /// As [`encode`](Self::encode), and `ErrorKind::Cancelled` once `cancel` is triggered: asked before each word.
    pub(crate) fn encode_cancellable(&self, text: &str, add_special: bool, cancel: Option<&Cancel>) -> Result<Vec<u32>> {
        self.guarded(text, cancel, || {
            let encoding = self.encode_words(text, cancel, OffsetType::None)?;
            let encoding = self.0.tokenizer.post_process(encoding, None, add_special)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// As [`encode`](Self::encode) without special tokens, and as if there were no added tokens: what is written like one is text.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.guarded(text, None, || {
            let tokenizer = &self.0.tokenizer;
            let mut text = NormalizedString::from(text);
            tokenizer.get_normalizer().map_or(Ok(()), |normalizer| normalizer.normalize(&mut text))?;
            let mut parts = PreTokenizedString::from(text);
            tokenizer.get_pre_tokenizer().map_or(Ok(()), |pre_tokenizer| pre_tokenizer.pre_tokenize(&mut parts))?;
            parts.tokenize(|word| {
                check_room("text", 0)?;
                tokenizer.get_model().tokenize(word.get())
            })?;
            Ok(parts.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
        })
    }

    /// The tokens that a text is searched for before anything else, and whether they are special.
    pub(crate) fn added_tokens(&self) -> Vec<(String, bool)> {
        let tokens = self.0.tokenizer.get_added_tokens_decoder().into_values();
        tokens.map(|token| (token.content, token.special)).collect()
    }

    /// The special tokens as they are written, with their ids.
    pub(crate) fn special_tokens(&self) -> Vec<(String, u32)> {
        let tokens = self.0.tokenizer.get_added_tokens_decoder().into_iter();
        tokens.filter(|(_, token)| token.special).map(|(id, token)| (token.content, id)).collect()
    }

    /// What the crate makes of a text, or why not: it refused it, was cancelled, or panicked.
    fn guarded<T>(&self, text: &str, cancel: Option<&Cancel>, encode: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        let most = MAX_TEXT_BYTES / self.0.growth.max(1);
        if text.len() > most {
            return Err(Error::argument(format!(
                "text: expected at most {most} bytes with this tokenizer, found {}",
                text.len()
            )));
        }
        check_room("text", encoding_bytes(text))?;
        // A pattern of a file may match what nobody foresaw.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(encode)) {
            Ok(Ok(encoded)) => Ok(encoded),
            Ok(Err(_)) if cancel.is_some_and(Cancel::is_triggered) => Err(Error::cancelled()),
            Ok(Err(e)) => Err(match e.downcast::<Error>() {
                Ok(own) => *own,
                Err(e) => Error::argument(format!("text: the tokenizer refused it: {e}")).with_source(e),
            }),
            Err(_) => Err(Error::format("tokenizer.json: the crate tokenizers panicked at the text")),
        }
    }

    /// As [`encode`](Self::encode) with special tokens, cut to `max_tokens` in all, at the end or at the beginning of the text.
    ///
    /// No more of a long text is tokenised than what surely holds that many tokens: its beginning, if white space separates the last
    /// token that is kept from where the beginning ends.
    pub(crate) fn encode_within(
        &self,
        text: &str,
        max_tokens: usize,
        cut: TruncationDirection,
        cancel: Option<&Cancel>,
    ) -> Result<Vec<u32>> {
        let kept = max_tokens.saturating_sub(self.special_per_text());
        self.encode_beginning(text, kept, cut, cancel, |mut encoding| {
            encoding.truncate(kept, 0, cut);
            let encoding = self.0.tokenizer.post_process(encoding, None, true)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The first of two texts that are encoded together, before its end is known.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `ErrorKind::Cancelled`.
    pub(crate) fn encode_first(&self, text: &str, cancel: Option<&Cancel>) -> Result<FirstText> {
        self.guarded(text, cancel, || self.encode_words(text, cancel, OffsetType::Byte)).map(FirstText)
    }

    /// Two texts with what the tokenizer puts around and between them, cut to `max_tokens` in all, the longer of them first. Returns
    /// the ids and types of the tokens.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `ErrorKind::Cancelled`.
    ///
    /// # Source
    /// `truncation="longest_first"` of transformers 5.24.
    pub(crate) fn encode_pair(
        &self,
        first: &FirstText,
        second: &str,
        max_tokens: usize,
        cut: TruncationDirection,
        cancel: Option<&Cancel>,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let max_length = max_tokens.saturating_sub(self.special_per_pair());
        // With more than that, how much more changes nothing.
        let kept = max_length.max(first.0.len()).saturating_add(1);
        self.encode_beginning(second, kept, cut, cancel, |mut second| {
            second.truncate(kept, 0, cut);
            second.set_type_ids(vec![1; second.len()]);
            let strategy = TruncationStrategy::LongestFirst;
            let params = TruncationParams { max_length, strategy, stride: 0, direction: cut };
            let (first, second) = truncate_encodings(first.0.clone(), Some(second), &params)?;
            let encoding = self.0.tokenizer.post_process(first, second, true)?;
            Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
        })
    }

    /// What becomes of the tokens of a text, of which the first `kept` are enough, or the last.
    fn encode_beginning<T>(
        &self,
        text: &str,
        kept: usize,
        cut: TruncationDirection,
        cancel: Option<&Cancel>,
        finish: impl Fn(Encoding) -> tokenizers::Result<T>,
    ) -> Result<T> {
        let mut read = kept.saturating_mul(BYTES_READ_PER_TOKEN).max(1 << 10);
        if !matches!(cut, TruncationDirection::Right) {
            read = usize::MAX;
        }
        loop {
            let part = &text[..boundary(text, read)];
            let encoded = self.guarded(part, cancel, || {
                let encoding = self.encode_words(part, cancel, OffsetType::Byte)?;
                let end = encoding.get_offsets().get(kept.saturating_sub(1)).map_or(usize::MAX, |(_, end)| *end);
                let is_whole = part.len() == text.len();
                let is_separate = || part.get(end..).is_some_and(|rest| rest.trim_start().contains(char::is_whitespace));
                let is_enough = is_whole || encoding.len() > kept && is_separate();
                if is_enough { finish(encoding).map(Some) } else { Ok(None) }
            })?;
            match encoded {
                Some(encoded) => return Ok(encoded),
                None => read = read.saturating_mul(4),
            }
        }
    }

    /// As [`encode`](Self::encode), with the byte of the text at which each token begins. What the tokenizer puts in front of a text
    /// begins at 0, what it puts behind at the end.
    pub(crate) fn encode_with_starts(
        &self,
        text: &str,
        add_special: bool,
        cancel: Option<&Cancel>,
    ) -> Result<(Vec<u32>, Vec<usize>)> {
        let (encoding, own) = self.guarded(text, cancel, || {
            let encoding = self.encode_words(text, cancel, OffsetType::Byte)?;
            // Post-processing makes some tokenizers tell that a token begins behind its space.
            let own = encoding.get_offsets().iter().map(|(start, _)| *start).collect::<Vec<_>>();
            Ok((self.0.tokenizer.post_process(encoding, None, add_special)?, own))
        })?;
        let (mut own, mut before) = (own.into_iter(), 0);
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

    /// The tokens of a text before post-processing: the steps of the crate's own `encode`, with a look at the flag before each word.
    fn encode_words(&self, text: &str, cancel: Option<&Cancel>, offsets: OffsetType) -> tokenizers::Result<Encoding> {
        let tokenizer = &self.0.tokenizer;
        let mut parts = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        let model = tokenizer.get_model();
        parts.tokenize(|word| {
            cancel.map_or(Ok(()), Cancel::check)?;
            check_room("text", 0)?;
            model.tokenize(word.get())
        })?;
        parts.into_encoding(None, 0, offsets)
    }

    /// The special tokens that the tokenizer puts around a text.
    pub(crate) fn special_per_text(&self) -> usize {
        self.0.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    /// The same around and between two.
    pub(crate) fn special_per_pair(&self) -> usize {
        self.0.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(true))
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
        let mut inner = (*self.0).clone();
        inner.tokenizer.with_normalizer(Some(NormalizerSequence::new(steps))).map_err(bad_normalizer)?;
        Ok(Self(Arc::new(inner)))
    }

    /// The text of token ids; bytes that are no UTF-8 become U+FFFD. `skip_special`: without special tokens. Spaces before punctuation
    /// are taken out where tokenizer_config.json says so (`clean_up_tokenization_spaces`) and the model is not BPE.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` for an id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let mut texts = 0;
        for (at, id) in tokens.iter().enumerate() {
            let Some(text) = self.0.tokenizer.id_to_token(*id) else {
                return Err(Error::argument(format!("tokens[{at}]: expected an id of the vocabulary, found {id}")));
            };
            texts += text.len();
        }
        // The crate has the text of each token, what its decoder makes of each, and both once more as a whole.
        check_room("tokens", tokens.len().saturating_mul(BYTES_PER_ID).saturating_add(4 * texts))?;
        let text = self.decode_known(tokens, skip_special)?;
        Ok(if self.0.cleans_up { config::cleaned_up(&text) } else { text })
    }

    /// As [`decode`](Self::decode), with all spaces; ids without a token (padding of the vocabulary) have no text.
    pub(crate) fn decode_known(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.tokenizer.decode(tokens, skip_special)));
        match decoded {
            Ok(decoded) => {
                decoded.map_err(|e| Error::argument(format!("tokens: the tokenizer refused them: {e}")).with_source(e))
            }
            Err(_) => Err(Error::format("tokenizer.json: the crate tokenizers panicked at the tokens")),
        }
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

    /// A token as the vocabulary writes it.
    pub(crate) fn token_text(&self, token: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(token)
    }

    /// Whether a token is special: markup that is not part of a text.
    pub fn is_special(&self, token: u32) -> bool {
        self.0.special.contains(&token)
    }

    /// The byte that a token is written as, `<0x0A>`.
    pub(crate) fn byte(&self, token: u32) -> Option<u8> {
        single_byte(&self.0.tokenizer.id_to_token(token)?)
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

/// What a directory without tokenizer.json has instead, and how that becomes one.
fn no_tokenizer_json(directory: &Path) -> Error {
    let others = ["tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json"];
    let found = others.into_iter().find(|name| directory.join(name).exists());
    let hint = found.map_or_else(String::new, |name| {
        format!(
            " but {name}, of which transformers makes one: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )
    });
    Error::new(ErrorKind::NotFound, format!("{}: expected tokenizer.json, found none{hint}", directory.display()))
}

/// The most memory that most tokenizers take for a text. Words are guessed: letters that follow letters are one, where a letter is no
/// word of its own, as in East Asian scripts.
fn encoding_bytes(text: &str) -> usize {
    // A little text is not worth a look.
    if text.len() < 1 << 11 {
        return 0;
    }
    let (mut words, mut follows) = (0, false);
    for letter in text.chars() {
        let is_letter = letter < '\u{2e80}' && letter.is_alphabetic();
        words += usize::from(!(letter.is_whitespace() || is_letter && follows));
        follows = is_letter;
    }
    BYTES_PER_BYTE * text.len() + BYTES_PER_WORD * words
}

/// The last byte up to `at` at which a character begins, or the text ends.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn special_ids(tokenizer: &tokenizers::Tokenizer) -> HashSet<u32> {
    tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
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
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
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
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn tokens_begin_where_their_bytes_do() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = ["models", "tests/golden/encoders", "tests/golden/embedders"];
        let folders = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
        let (mut seen, mut by_bytes) = (0, 0);
        for path in folders.map(|entry| entry.unwrap().path()) {
            let Ok(tokenizer) = Tokenizer::load(&path) else { continue };
            for text in ["let x = \"naïve 日本 👩‍🚀\";\n\n  end", "hello", " a", ""] {
                let (plain, own) = tokenizer.encode_with_starts(text, false, None).unwrap();
                let (ids, starts) = tokenizer.encode_with_starts(text, true, None).unwrap();
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
                    let begins = |token: usize| boundary(text, joined(&tokenizer, &plain[..token]).len());
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
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn a_text_that_is_cut_is_not_read_to_its_end() {
        let tokenizer = Tokenizer::load("models/tiny-embed").unwrap();
        for word in ["the quick brown fox, ", "hello", "   ", "\n日本 ", "a"] {
            let text = word.repeat(40_000);
            let whole = tokenizer.0.tokenizer.encode_fast(text.as_str(), false).unwrap();
            for max_tokens in [3, 16, 128] {
                let mut cut = whole.clone();
                cut.truncate(max_tokens - tokenizer.special_per_text(), 0, TruncationDirection::Right);
                let right = tokenizer.0.tokenizer.post_process(cut, None, true).unwrap().get_ids().to_vec();
                assert_eq!(
                    tokenizer.encode_within(&text, max_tokens, TruncationDirection::Right, None).unwrap(),
                    right,
                    "{word:?}"
                );
            }
        }
        // Refused, if all of it were read.
        let text = "word ".repeat(60 << 20);
        assert!(tokenizer.encode(&text, false).unwrap_err().message().starts_with("text: expected at most "));
        assert_eq!(tokenizer.encode_within(&text, 16, TruncationDirection::Right, None).unwrap().len(), 16);
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn encoding_is_the_crates_own_and_can_be_cancelled() {
        let tokenizer = Tokenizer::load("models/tiny-coder").unwrap();
        let cancel = Cancel::new();
        for text in ["", "let x = \"naïve 日本\";\n\n  end<|im_end|> a", " a"] {
            let own = tokenizer.0.tokenizer.encode_fast(text, true).unwrap();
            assert_eq!(tokenizer.encode_cancellable(text, true, Some(&cancel)).unwrap(), own.get_ids());
        }
        cancel.trigger();
        assert_eq!(tokenizer.encode_cancellable("a b", true, Some(&cancel)).unwrap_err().kind(), ErrorKind::Cancelled);
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
