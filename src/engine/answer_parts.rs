//! An answer in the making, token by token, to its parts; and what they decide: when a schema begins to bind, when a thought is long
//! enough.

use std::collections::{HashSet, VecDeque};

use super::chat::{AnswerFormat, AnswerPart, PartStream, ToolCall};
use super::text_stream::TextStream;
use super::{Model, Tokenizer};
use crate::error::Result;

/// The parts of one answer.
pub(super) struct AnswerParts {
    format: AnswerFormat,
    tokenizer: Tokenizer,
    /// The text with those special tokens that are marks.
    text: TextStream,
    stream: PartStream,
    content: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    /// Tokens that a thought may have.
    budget: Option<usize>,
    thought_tokens: usize,
    /// The end of the thought so far, in which its mark may have begun.
    thought_end: String,
    /// The mark that closes a thought, on its way: what is left of its tokens, and its letters.
    forced: VecDeque<u32>,
    forcing: Option<&'static str>,
}

impl AnswerParts {
    /// `held`: the tokens that the answer stands behind.
    pub fn new(model: &Model, format: &AnswerFormat, budget: Option<usize>, stop: &[String], held: &[u32]) -> Result<Self> {
        let tokenizer = model.tokenizer()?.clone();
        // The longest mark has fewer.
        let prompt = tokenizer.decode_known(&held[held.len().saturating_sub(PROMPT_TOKENS)..], false)?;
        let format = format.clone().behind(&prompt);
        // What stands behind the last control token is the message that the answer goes on with.
        let special = tokenizer.special_tokens().into_iter();
        let control: HashSet<u32> = special.filter(|(text, _)| !format.marks_thoughts(text)).map(|(_, id)| id).collect();
        let format = match held.iter().rposition(|id| control.contains(id)) {
            Some(at) => format.continuing(&tokenizer.decode_known(&held[at + 1..], false)?),
            None => format,
        };
        Ok(Self {
            text: TextStream::behind(&tokenizer, stop, held)?,
            stream: PartStream::new(&format),
            format,
            tokenizer,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            budget,
            thought_tokens: 0,
            thought_end: String::new(),
            forced: VecDeque::new(),
            forcing: None,
        })
    }

    /// Whether what comes next belongs to a thought.
    pub fn is_thinking(&self) -> bool {
        // The mark's end may be held back, as it could become a stop text.
        self.stream.closes().is_some_and(|close| !format!("{}{}", self.thought_end, self.text.held()).contains(close))
    }

    /// Whether a token would close the thought and go on behind the mark. White space there belongs to the mark.
    pub fn overruns(&self, token: u32) -> Result<bool> {
        let Some(close) = self.stream.closes() else { return Ok(false) };
        let text = format!("{}{}", self.thought_end, self.text.preview(token)?);
        Ok(text.split_once(close).is_some_and(|(_, behind)| !behind.trim_start().is_empty()))
    }

    /// Whether there may be tokens that the answer does not choose.
    pub fn may_force(&self) -> bool {
        self.budget.is_some() || !self.forced.is_empty()
    }

    /// The next token, where the answer may not choose it: a thought is closed by the model's own mark once it is long enough.
    pub fn forced(&mut self) -> Result<Option<u32>> {
        if self.forced.is_empty() && self.is_thinking() && self.budget.is_some_and(|budget| self.thought_tokens >= budget) {
            return self.close_thought();
        }
        Ok(self.forced.pop_front())
    }

    /// Begins to close the thought; gives the first token of the mark.
    pub fn close_thought(&mut self) -> Result<Option<u32>> {
        if let Some(close) = self.stream.closes() {
            self.forced = self.tokenizer.encode(close, false)?.into();
            self.forcing = Some(close).filter(|_| !self.forced.is_empty());
        }
        Ok(self.forced.pop_front())
    }

    /// The parts that became certain with a token.
    pub fn add(&mut self, token: u32) -> Result<Vec<AnswerPart>> {
        self.thought_tokens += usize::from(self.is_thinking());
        let mut text = String::new();
        if let Some(close) = self.forcing {
            // The mark closes the thought however its tokens spell it: none is forced a second time.
            self.text.separate(&mut text);
            let mut spelled = String::new();
            self.text.add(token, &mut spelled)?;
            if self.forced.is_empty() {
                self.text.separate(&mut spelled);
                self.forcing = None;
                text.push_str(close);
            }
            let parts = self.stream.push(&text);
            self.keep(&parts);
            return Ok(parts);
        }
        let mark =
            self.tokenizer.token_text(token).filter(|text| self.tokenizer.is_special(token) && self.format.reads_token(text));
        match mark {
            Some(mark) => {
                self.text.separate(&mut text);
                text.push_str(&mark);
            }
            None => {
                self.text.add(token, &mut text)?;
            }
        }
        let parts = self.stream.push(&text);
        self.keep(&parts);
        if self.stream.closes().is_some() {
            self.thought_end.push_str(&text);
            let from = self.thought_end.char_indices().rev().nth(MARK_LETTERS).map_or(0, |(at, _)| at);
            self.thought_end.drain(..from);
        } else {
            self.thought_end.clear();
        }
        Ok(parts)
    }

    /// What was held back. `is_whole`: whether the text that no token completed counts.
    pub fn finish(&mut self, is_whole: bool) -> Result<Vec<AnswerPart>> {
        let mut text = String::new();
        if is_whole {
            self.text.flush(&mut text)?;
        }
        let mut parts = self.stream.push(&text);
        parts.extend(self.stream.finish());
        self.keep(&parts);
        Ok(parts)
    }

    fn keep(&mut self, parts: &[AnswerPart]) {
        for part in parts {
            match part {
                AnswerPart::Text(text) => self.content.push_str(text),
                AnswerPart::Reasoning(text) => self.reasoning.push_str(text),
                AnswerPart::ToolCallEnd(call) => self.calls.push(call.clone()),
                AnswerPart::ToolCall { .. } | AnswerPart::Arguments { .. } | AnswerPart::RejectedToolCall { .. } => {}
            }
        }
    }

    /// Answer text, thoughts and calls.
    pub fn into_parts(self) -> (String, String, Vec<ToolCall>) {
        (self.content, self.reasoning, self.calls)
    }
}

/// The longest mark has fewer.
const MARK_LETTERS: usize = 64;

/// Tokens of the prompt's end in which a thought may have been opened.
const PROMPT_TOKENS: usize = 64;
