//! Unigram models of SentencePiece: T5's, and those of XLM-RoBERTa and its relatives.

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as Cuts;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::{CHARSMAP, GgufVocabulary, TOKENS, UNKNOWN};
use crate::error::Result;
use crate::load::tokenizer_json::{MAX_PIECE, check_charsmap};

/// SentencePiece's own makes eleven bytes of one.
const MAX_LONGER: usize = 33;

impl GgufVocabulary<'_> {
    /// `t5`. Flags that a file lacks are those that SentencePiece trains with.
    pub(super) fn unigram(&self) -> Result<Tokenizer> {
        self.ids(|id| self.token(id).into_owned())?; // No token twice.
        let scores = self.scores()?;
        let unknown = self.unknown().ok_or_else(|| self.metadata.expected(UNKNOWN, "an id, or a token of type 2"))?;
        let mut pieces = Vec::new();
        pieces.try_reserve_exact(scores.len()).map_err(|e| self.no_memory(TOKENS, scores.len(), e))?;
        // See `MAX_PIECE`.
        if let Some(long) = (0..self.len()).map(|id| self.token(id).len()).find(|len| *len > MAX_PIECE) {
            return Err(self
                .metadata
                .invalid(TOKENS, &format!("expected pieces of up to {MAX_PIECE} bytes, found one of {long}")));
        }
        pieces.extend((0..self.len()).zip(scores).map(|(id, score)| (self.token(id).into_owned(), f64::from(score))));
        let model = Unigram::from(pieces, Some(unknown as usize), false).map_err(|e| self.failed(TOKENS, e))?;
        let mut tokenizer = Tokenizer::new(model);
        let prefix = self.flag("add_space_prefix", true)?;
        // Encoders have XLM-RoBERTa's, which always does. The converter writes there what tokenizer_config.json says of decoding.
        let is_encoders = matches!(self.metadata.text("general.architecture")?, Some("bert" | "nomic-bert"));
        let trims = self.flag("remove_extra_whitespaces", true)? || is_encoders;
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        normalizers.extend(self.charsmap()?.map(Into::into));
        let metaspace = Metaspace::new('▁', if prefix { PrependScheme::Always } else { PrependScheme::Never }, true);
        if trims && prefix {
            // As XLM-RoBERTa's tokenizer.json does it.
            tokenizer.with_pre_tokenizer(Some(Cuts::new(vec![WhitespaceSplit.into(), metaspace.clone().into()])));
        } else {
            if trims {
                let runs = Replace::new(ReplacePattern::Regex(" {2,}".to_string()), " ").map_err(|e| self.failed(TOKENS, e))?;
                normalizers.extend([runs.into(), Strip::new(true, true).into()]);
            }
            tokenizer.with_pre_tokenizer(Some(metaspace.clone()));
        }
        if !normalizers.is_empty() {
            tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(|e| self.failed(CHARSMAP, e))?;
        }
        tokenizer.with_decoder(Some(metaspace));
        Ok(tokenizer)
    }

    fn charsmap(&self) -> Result<Option<Precompiled>> {
        let Some(bytes) = self.metadata.bytes(CHARSMAP)?.filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        let longer =
            check_charsmap(bytes).map_err(|expected| self.metadata.invalid(CHARSMAP, &format!("expected {expected}")))?;
        if longer > MAX_LONGER {
            let message = format!("expected texts up to {MAX_LONGER} times longer than what they replace, found {longer} times");
            return Err(self.metadata.invalid(CHARSMAP, &message));
        }
        let map = Precompiled::from(bytes).map_err(|e| self.metadata.invalid(CHARSMAP, &e.to_string()).with_source(e))?;
        Ok(Some(map))
    }
}
