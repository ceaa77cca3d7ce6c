//! What a conversation teaches: the answers of the assistant, each behind exactly the text that it was an answer to.
//!
//! ```text
//! <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n
//!                                                            ^^^^^^^^^^^^ the answer
//! ```

use std::ops::Range;
use std::time::SystemTime;

use serde_json::{Map, Value as Json};

use super::{Chat, ChatTemplate, unix_seconds};
use crate::error::{Error, ErrorKind, Result};

/// A text, and where in it the assistant answers, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine) struct Lesson {
    pub text: String,
    /// The latest first. What a template writes behind an answer belongs to it.
    pub answers: Vec<Range<usize>>,
}

impl Chat {
    /// The assistant's messages from the `first` message on, each behind what the model is given when it has to write it: the
    /// messages before it and the generation prompt.
    ///
    /// Mostly one text holds them all. Where a template writes a message differently once others follow it (Qwen3 drops the
    /// thinking of earlier turns), that message has a text of its own, which ends with it.
    ///
    /// # Errors
    /// As [`render`](Self::render), naming the message; `Template` for a message that is not written behind the generation prompt:
    /// the model would learn to answer what it is never given. A greeting, which no message of the user's stands before, may be written
    /// behind anything.
    pub(in crate::engine) fn lessons(&self, first: usize, template: Option<&ChatTemplate>) -> Result<Vec<Lesson>> {
        let mut lessons: Vec<Lesson> = Vec::new();
        let is_answer = |at: &usize| is_from(&self.messages[*at], "assistant");
        for at in (first..self.messages.len()).rev().filter(is_answer) {
            let within = |error: Error| error.within(format_args!("messages[{at}]"));
            let text = self.render_first(at + 1, template, false, None).map_err(within)?;
            let begin = match self.render_first(at, template, true, None) {
                Ok(prompt) if text.starts_with(&prompt) => prompt.len(),
                // A greeting: what a template writes before it, it does not write before nothing.
                prompt if self.messages[..at].iter().all(|message| !is_from(message, "user")) => {
                    match self.content_begin(at, template, &text).map_err(within)? {
                        Some(begin) => begin,
                        None => return Err(within(not_behind(&prompt.map_err(within)?, &text))),
                    }
                }
                prompt => return Err(within(not_behind(&prompt.map_err(within)?, &text))),
            };
            let answer = begin..text.len();
            match lessons.last_mut() {
                Some(lesson) if lesson.text.starts_with(&text) => lesson.answers.push(answer),
                _ => lessons.push(Lesson { text, answers: vec![answer] }),
            }
        }
        lessons.reverse();
        Ok(lessons)
    }

    /// Where in `text`, the conversation up to this message, its content begins: where the text of another content differs first.
    fn content_begin(&self, at: usize, template: Option<&ChatTemplate>, text: &str) -> Result<Option<usize>> {
        let Some(Json::String(content)) = self.messages[at].get("content") else { return Ok(None) };
        let mut other = self.clone();
        let letter = if content.trim_start().starts_with('x') { 'y' } else { 'x' };
        other.messages[at].insert("content".to_owned(), Json::String(format!("{letter}{content}")));
        let other = other.render_first(at + 1, template, false, None)?;
        let begin = common_len(text, &other);
        Ok((other[begin..].starts_with(letter)).then_some(begin))
    }

    /// Renders at this time from now on, unless another was set: what is rendered twice is then the same.
    pub(in crate::engine) fn keep_time(&mut self, time: SystemTime) {
        self.unix_seconds.get_or_insert_with(|| unix_seconds(time));
    }
}

fn is_from(message: &Map<String, Json>, role: &str) -> bool {
    message.get("role").and_then(Json::as_str) == Some(role)
}

/// How many bytes both begin with.
fn common_len(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

fn not_behind(prompt: &str, text: &str) -> Error {
    let common = common_len(prompt, text);
    let clip = |text: &str| text[common..].chars().take(40).collect::<String>();
    let message = format!(
        "chat template: expected a message that begins with the generation prompt: after {common} bytes it goes on with {:?}, found {:?}",
        clip(prompt),
        clip(text)
    );
    Error::new(ErrorKind::Template, message)
}
