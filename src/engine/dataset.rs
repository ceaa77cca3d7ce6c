//! Examples to train on: texts, completions of prompts, and conversations.
//!
//! ```
//! use metal_candle::Dataset;
//! let mut dataset = Dataset::new();
//! dataset.add_text("The river Oru runs north.");
//! dataset.add_completion("Which way does the Oru run?", " North.");
//! assert_eq!(dataset.len(), 2);
//! ```

use std::path::Path;

use super::{Chat, Model};
use crate::error::{Error, Result};

/// Examples in their order; a model's tokenizer and chat template make tokens of them when training begins.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    examples: Vec<Example>,
}

#[derive(Debug, Clone)]
enum Example {
    Text(String),
    Completion { prompt: String, completion: String },
    Chat(Box<Chat>),
}

/// What training sees of a dataset.
pub(super) struct Tokenized {
    /// In the order of the dataset.
    pub examples: Vec<Sample>,
    /// Examples that were cut to the most tokens.
    pub truncated: usize,
    /// Examples without a token to learn; they are left out.
    pub skipped: usize,
}

/// One sequence of tokens.
pub(super) struct Sample {
    pub ids: Vec<u32>,
    /// Whether each token is learnt, foretold from those before it; never the first.
    pub targets: Vec<bool>,
}

impl Dataset {
    /// A dataset without examples.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file of JSON lines.
    pub fn load_jsonl(_path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::unsupported("dataset: files are not read yet"))
    }

    /// Appends a text.
    pub fn add_text(&mut self, text: &str) {
        self.examples.push(Example::Text(text.to_owned()));
    }

    /// Appends a prompt with the text that is to follow it.
    pub fn add_completion(&mut self, prompt: &str, completion: &str) {
        self.examples.push(Example::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() });
    }

    /// Appends a conversation.
    pub fn add_chat(&mut self, chat: &Chat) {
        self.examples.push(Example::Chat(Box::new(chat.clone())));
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Each example as tokens of a model, at most `max_length` of them; with `mask_prompt` only completions and what the assistant
    /// says are learnt.
    #[allow(dead_code)]
    pub(super) fn tokenized(&self, _model: &Model, _max_length: usize, _mask_prompt: bool) -> Result<Tokenized> {
        Err(Error::unsupported("dataset: not tokenised yet"))
    }
}
