//! BPE whose merges a file lists: over bytes (GPT-2 and most others), over characters (Gemma 4).

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges};
use tokenizers::normalizers::{NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::pre::Pre;
use super::{GgufVocabulary, MAX_MERGES, MERGES, PRE};
use crate::error::Result;

impl GgufVocabulary<'_> {
    /// `gpt2`.
    pub(super) fn byte_level(&self) -> Result<Tokenizer> {
        let pre = self.pre()?;
        if !self.metadata.has(PRE) {
            log::warn!(
                "{}: {PRE}: missing, so texts are cut as llama.cpp did in 2023; convert the model again",
                self.metadata.file
            );
        }
        let mut tokenizer = Tokenizer::new(self.bpe(BPE::builder().ignore_merges(pre.ignore_merges))?);
        if pre.nfc {
            tokenizer.with_normalizer(Some(NFC)).map_err(|e| self.failed(PRE, e))?;
        }
        let mut steps = Vec::new();
        for pattern in pre.patterns {
            steps.push(self.isolated(pattern)?);
        }
        steps.push(ByteLevel::new(false, true, false).into());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok(tokenizer)
    }

    /// `gemma4`: the whole line is one piece, in which spaces are `▁`.
    pub(super) fn gemma4(&self) -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::new(self.bpe(self.with_fallback(BPE::builder()))?);
        let normalizer = Replace::new(" ", "▁").map_err(|e| self.failed(MERGES, e))?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| self.failed(MERGES, e))?;
        tokenizer.with_pre_tokenizer(Some(self.isolated(r"\n+")?));
        let spaces = Replace::new("▁", " ").map_err(|e| self.failed(MERGES, e))?;
        tokenizer.with_decoder(Some(Decoders::new(vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()])));
        Ok(tokenizer)
    }

    /// What the file names in `tokenizer.ggml.pre`.
    pub(super) fn pre(&self) -> Result<&'static Pre> {
        let name = self.metadata.text(PRE)?.unwrap_or(Pre::UNNAMED);
        Pre::named(name).ok_or_else(|| self.metadata.unsupported(PRE, "the name of a known pre-tokenizer"))
    }

    /// Characters without a token are bytes, or else the unknown token.
    pub(super) fn with_fallback(&self, builder: BpeBuilder) -> BpeBuilder {
        let builder = builder.byte_fallback(true).fuse_unk(true);
        match self.unknown() {
            Some(id) => builder.unk_token(self.token(id).into_owned()),
            None => builder,
        }
    }

    fn bpe(&self, builder: BpeBuilder) -> Result<BPE> {
        let ids = self.ids(|id| self.token(id).into_owned())?;
        let merges = self.merges()?;
        builder.vocab_and_merges(ids, merges).build().map_err(|e| self.failed(MERGES, e))
    }

    /// `left right`, each. Tokens may begin with a space, so that the cut is behind the first byte.
    fn merges(&self) -> Result<Merges> {
        let listed = self.metadata.strings(MERGES)?.filter(|merges| merges.len() <= MAX_MERGES);
        let listed = listed.ok_or_else(|| self.metadata.expected(MERGES, &format!("up to {MAX_MERGES} texts")))?;
        let longest = self.tokens.iter().map(|token| token.len()).max().unwrap_or(0);
        let mut merges = Merges::new();
        merges.try_reserve_exact(listed.len()).map_err(|e| self.no_memory(MERGES, listed.len(), e))?;
        for (at, merge) in listed.into_iter().enumerate() {
            let cut = merge.bytes().skip(1).position(|byte| byte == b' ').map(|cut| cut + 1);
            let wanted = "two tokens with a space between, which together are a token";
            // The crate joins them in a room that is as long as the longest token.
            let cut = cut.filter(|_| merge.len() - 1 <= longest).ok_or_else(|| {
                self.metadata.invalid(MERGES, &format!("merge {at}: expected {wanted}, found {:?}", super::clip(merge)))
            })?;
            merges.push((merge[..cut].to_string(), merge[cut + 1..].to_string()));
        }
        Ok(merges)
    }

    /// Cuts a text into the matches and what lies between.
    fn isolated(&self, pattern: &str) -> Result<PreTokenizerWrapper> {
        let pattern = SplitPattern::Regex(pattern.to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| self.failed(PRE, e))?;
        Ok(split.into())
    }
}
