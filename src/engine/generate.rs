//! The one generation loop and its options.

use std::ops::ControlFlow;

use super::{Cancel, Model, ProgressFn, SamplingOptions};
use crate::error::Result;

/// How to generate; unset sampling fields take what generation_config.json says.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// 0 = until the model stops or the context is full.
    pub max_tokens: usize,
    pub sampling: SamplingOptions,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    /// Add the tokenizer's special tokens (BOS) to a stateless prompt.
    pub add_special: bool,
    /// Tokens a prefill step; 1 to 512.
    pub prefill_chunk: usize,
    pub cancel: Option<Cancel>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 0,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            ignore_eos: false,
            add_special: true,
            prefill_chunk: 512,
            cancel: None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    Eos,
    StopText,
    MaxTokens,
    ContextFull,
    Callback,
    Cancelled,
}

/// One token: its id, and the text that became certain with it (whole UTF-8; may be empty).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    pub text: String,
    pub token: u32,
    /// 0 for the first token of this answer.
    pub index: u32,
    /// Natural logarithm of the probability that the model itself gave the token.
    pub logprob: f32,
}

/// Called with each token; `Break` stops the generation.
pub type TokenFn<'a> = dyn FnMut(&TokenEvent) -> ControlFlow<()> + 'a;

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    pub text: String,
    /// With the end-of-sequence token where that ended the answer.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub finish_reason: FinishReason,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
}

impl Model {
    /// Stateless: a session of its own for this prompt. A cancel gives `Ok` with `FinishReason::Cancelled`.
    pub fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        prefill_progress: Option<&mut ProgressFn<'_>>,
        on_token: &mut TokenFn<'_>,
    ) -> Result<Generation> {
        let _ = (prompt, options, prefill_progress.is_some());
        let _ = on_token;
        todo!()
    }
}
