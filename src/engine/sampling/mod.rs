//! From logits to a token: a chain of small samplers, the order of transformers' logits processors.

use crate::error::Result;

/// Settings of one generation, every field decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 = argmax, the lowest id on ties.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: usize,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// How many of the last tokens (prompt and answer) it looks at; 0 = all.
    pub repetition_last_n: usize,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
    /// `None` = a seed from the system.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_last_n: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// What the caller of a generation sets; `None` = the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingOptions {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    /// The penalty and how many of the last tokens it looks at (0 = all).
    pub repetition_penalty: Option<(f32, usize)>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
}

impl SamplingOptions {
    /// The model's defaults with what the caller set on top.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` naming the field that is out of range or not a number.
    pub fn resolve(&self, defaults: &Sampling) -> Result<Sampling> {
        todo!("{defaults:?}")
    }
}

/// Draws tokens; holds the generator and the buffers, so that a token allocates nothing.
pub struct Sampler {}

impl Sampler {
    pub fn new(sampling: Sampling, vocab_size: usize) -> Result<Self> {
        todo!("{sampling:?} {vocab_size}")
    }
    /// The tokens that the chain keeps and their probabilities.
    pub fn distribution(&mut self, logits: &[f32], context: &[u32], generated: &[u32]) -> Result<&[(u32, f32)]> {
        todo!("{logits:?} {context:?} {generated:?}")
    }
    /// The token and its log-probability under the model's own distribution (log softmax of `logits`).
    pub fn sample(&mut self, logits: &[f32], context: &[u32], generated: &[u32]) -> Result<(u32, f32)> {
        todo!("{logits:?} {context:?} {generated:?}")
    }
}
