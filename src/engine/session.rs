//! A conversation's state: the tokens evaluated so far and their KV cache.

use std::path::Path;

use super::{Cancel, Chat, GenerateOptions, Generation, Model, ProgressFn, TokenEvent, TokenFn};
use crate::error::Result;

pub struct Session {}

impl Session {
    /// `max_context`: tokens; 0 = the model's.
    pub fn new(model: &Model, max_context: usize) -> Result<Self> {
        let _ = (model, max_context);
        todo!()
    }
    pub fn fork(&self) -> Result<Self> {
        todo!()
    }
    pub fn append(&mut self, text: &str, cancel: Option<&Cancel>) -> Result<()> {
        todo!("{text} {cancel:?}")
    }
    pub fn append_tokens(&mut self, tokens: &[u32], cancel: Option<&Cancel>) -> Result<()> {
        todo!("{tokens:?} {cancel:?}")
    }
    pub fn set_prompt(&mut self, text: &str, cancel: Option<&Cancel>) -> Result<()> {
        todo!("{text} {cancel:?}")
    }
    pub fn set_chat(&mut self, chat: &Chat, cancel: Option<&Cancel>) -> Result<()> {
        let _ = (chat, cancel);
        todo!()
    }
    /// A cancel gives `Ok` with `FinishReason::Cancelled` and the partial text.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        prefill_progress: Option<&mut ProgressFn<'_>>,
        on_token: &mut TokenFn<'_>,
    ) -> Result<Generation> {
        let _ = (options, prefill_progress.is_some());
        let _ = on_token;
        todo!()
    }
    pub fn begin(&mut self, options: &GenerateOptions) -> Result<()> {
        todo!("{options:?}")
    }
    /// `None` when the answer is complete. After an error or the end, `end` still gives the partial answer.
    pub fn next(&mut self) -> Result<Option<TokenEvent>> {
        todo!()
    }
    /// The answer so far; `InvalidArgument` without a `begin`.
    pub fn end(&mut self) -> Result<Generation> {
        todo!()
    }
    /// How many tokens the session holds.
    pub fn position(&self) -> usize {
        todo!()
    }
    pub fn tokens(&self) -> &[u32] {
        todo!()
    }
    pub fn model(&self) -> &Model {
        todo!()
    }
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let _ = path.as_ref();
        todo!()
    }
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Self> {
        let _ = (model, path.as_ref());
        todo!()
    }
    /// After the last token: `vocab_size` values. `InvalidArgument` on an empty session.
    pub fn logits(&mut self) -> Result<&[f32]> {
        todo!()
    }
    /// Keeps the first `position` tokens.
    pub fn truncate(&mut self, position: usize) -> Result<()> {
        todo!("{position}")
    }
}
