//! BPE of SentencePiece: a file has a score a token instead of merges.

use std::cmp::Ordering;

use tokenizers::Tokenizer;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::{Prepend, Replace, Sequence};

use super::{GgufVocabulary, MAX_MERGES, SCORES, TOKENS, TokenIds, TokenType};
use crate::error::Result;

/// Bytes of a token that is put together from others. Every cut of one is looked up, which costs the square of its length;
/// SentencePiece itself makes tokens of up to 16 characters.
const MAX_BYTES: usize = 512;

impl GgufVocabulary<'_> {
    /// `llama`.
    pub(super) fn sentencepiece(&self) -> Result<Tokenizer> {
        let ids = self.ids(|id| self.token(id).into_owned())?;
        let merges = self.merges_by_score(&ids)?;
        let bpe = self.with_fallback(BPE::builder()).vocab_and_merges(ids, merges);
        let mut tokenizer = Tokenizer::new(bpe.build().map_err(|e| self.failed(TOKENS, e))?);
        let prefix = self.flag("add_space_prefix", true)?;
        let mut normalizers = vec![Replace::new(" ", "▁").map_err(|e| self.failed(TOKENS, e))?.into()];
        let spaces = Replace::new("▁", " ").map_err(|e| self.failed(TOKENS, e))?;
        let mut decoders = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
        if prefix {
            normalizers.insert(0, Prepend::new("▁".to_string()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(|e| self.failed(TOKENS, e))?;
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        Ok(tokenizer)
    }

    /// Each cut of each token into two tokens, the best whole first; of those the one with the longest left half.
    ///
    /// # Source
    /// `generate_merges` of transformers 5, which makes the merges of Llama's and Gemma's tokenizer.json.
    pub(super) fn merges_by_score(&self, ids: &TokenIds) -> Result<Merges> {
        let scores = self.scores()?;
        let mut cuts: Vec<Cut> = Vec::new();
        for id in 0..self.len() {
            use TokenType::{Normal, Unused, UserDefined};
            let whole = self.tokens[id as usize];
            if !matches!(self.types[id as usize], Normal | Unused | UserDefined) {
                continue;
            }
            if whole.len() > MAX_BYTES {
                let message = format!("token {id}: expected up to {MAX_BYTES} bytes, found {}", whole.len());
                return Err(self.metadata.invalid(TOKENS, &message));
            }
            let chars = whole.chars().count();
            for (left, (at, _)) in whole.char_indices().enumerate().skip(1) {
                if let (Some(&first), Some(&second)) = (ids.get(&whole[..at]), ids.get(&whole[at..])) {
                    if cuts.len() == MAX_MERGES {
                        let message = format!("expected tokens of up to {MAX_MERGES} pairs of tokens, found more");
                        return Err(self.metadata.invalid(TOKENS, &message));
                    }
                    cuts.try_reserve(1).map_err(|e| self.no_memory(SCORES, cuts.len(), e))?;
                    cuts.push(Cut { score: scores[id as usize], chars: [left, chars - left], ids: [first, second] });
                }
            }
        }
        cuts.sort_by(Cut::order);
        let mut merges = Merges::new();
        merges.try_reserve_exact(cuts.len()).map_err(|e| self.no_memory(SCORES, cuts.len(), e))?;
        merges.extend(cuts.iter().map(|cut| (self.token(cut.ids[0]).into_owned(), self.token(cut.ids[1]).into_owned())));
        Ok(merges)
    }
}

/// Two tokens that together are a token.
struct Cut {
    /// Of the whole.
    score: f32,
    chars: [usize; 2],
    ids: [u32; 2],
}

impl Cut {
    fn order(&self, other: &Self) -> Ordering {
        let best = other.score.total_cmp(&self.score);
        best.then_with(|| other.chars.cmp(&self.chars)).then_with(|| self.ids.cmp(&other.ids))
    }
}
