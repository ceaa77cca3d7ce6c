//! WordPiece, BERT's: in a file `▁` begins a word, where the tokenizer has `##` for what continues one.

use tokenizers::Tokenizer;
use tokenizers::decoders::wordpiece::WordPiece as Pieces;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use super::{GgufVocabulary, TOKENS, TokenType, UNKNOWN};
use crate::error::Result;

const CONTINUES: &str = "##";

impl GgufVocabulary<'_> {
    /// `bert`.
    pub(super) fn wordpiece(&self) -> Result<Tokenizer> {
        let ids = self.ids(|id| self.piece(id))?;
        let unknown = self.special.unknown.or_else(|| self.unknown()).or_else(|| self.id_of("[UNK]"));
        let unknown = unknown.ok_or_else(|| self.metadata.expected(UNKNOWN, "an id, or a token [UNK]"))?;
        let model = WordPiece::builder().vocab(ids).unk_token(self.piece(unknown)).build();
        let mut tokenizer = Tokenizer::new(model.map_err(|e| self.failed(TOKENS, e))?);
        let lower = self.flag("normalizer.lowercase", true)?;
        let strips = self.flag("normalizer.strip_accents", lower)?;
        let normalizer = BertNormalizer::new(true, true, Some(strips), lower);
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| self.failed(TOKENS, e))?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        tokenizer.with_decoder(Some(Pieces::new(CONTINUES.to_string(), true)));
        Ok(tokenizer)
    }

    /// A token as BERT's vocabulary writes it. Some converters left names in brackets, `[unused7]`, as they are.
    fn piece(&self, id: u32) -> String {
        let token = self.token(id);
        let markup = matches!(self.types[id as usize], TokenType::Control | TokenType::Unknown);
        match token.strip_prefix('▁') {
            _ if markup || (token.starts_with('[') && token.ends_with(']')) => token.into_owned(),
            Some(word) if !word.is_empty() => word.to_string(),
            _ => format!("{CONTINUES}{token}"),
        }
    }
}
