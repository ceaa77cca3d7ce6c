//! Text to token ids and back, by tokenizer.json (through the `tokenizers` crate).
//!
//! ```
//! use metal_candle::Tokenizer;
//! let tokenizer = Tokenizer::load("models/tiny-coder")?;
//! let ids = tokenizer.encode("let x = 1;", false)?;
//! assert_eq!(tokenizer.decode(&ids, true)?, "let x = 1;");
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokenizers::normalizers::{Lowercase, Sequence as NormalizerSequence};
use tokenizers::{NormalizerWrapper, PostProcessor, TruncationDirection};

use crate::error::{Error, ErrorKind, Result};

/// Larger than any real tokenizer.json.
const MAX_BYTES: u64 = 256 << 20;

/// A tokenizer; immutable, clones are the same.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special: HashSet<u32>,
}

impl Tokenizer {
    /// `path`: a tokenizer.json or a directory that holds one.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if there is none, `ErrorKind::Format` if it is not a tokenizer.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let size = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        if size > MAX_BYTES {
            return Err(Error::format(format!("{}: expected at most {MAX_BYTES} bytes, found {size}", path.display())));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| Error::format(format!("{}: not a tokenizer: {e}", path.display())).with_source(e))?;
        // Files carry the settings of the training run; a prompt is never cut or filled up in silence.
        tokenizer.with_truncation(None).map_err(|e| Error::format(format!("{}: truncation: {e}", path.display())))?;
        tokenizer.with_padding(None);
        let special =
            tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Ok(Self(Arc::new(Inner { tokenizer, special })))
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

    /// The special tokens that the tokenizer puts around a text.
    pub(crate) fn special_per_text(&self) -> usize {
        self.0.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
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
        tokenizer
            .with_normalizer(Some(NormalizerSequence::new(steps)))
            .map_err(|e| Error::format(format!("tokenizer.json: normalizer: {e}")).with_source(e))?;
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
}

fn lowers_case(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Lowercase(_) => true,
        NormalizerWrapper::BertNormalizer(bert) => bert.lowercase,
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().any(lowers_case),
        _ => false,
    }
}
