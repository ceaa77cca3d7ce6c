//! What a conversation teaches: the answers of the assistant, each behind exactly the text that it was an answer to.
//!
//! ```text
//! <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n
//!                                                            ^^^^^^^^^^^^ the answer
//! ```

use std::ops::Range;
use std::time::SystemTime;

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
    /// the model would learn to answer what it is never given.
    pub(in crate::engine) fn lessons(&self, first: usize, template: Option<&ChatTemplate>) -> Result<Vec<Lesson>> {
        let mut lessons: Vec<Lesson> = Vec::new();
        let is_answer = |at: &usize| self.messages[*at].get("role").and_then(|role| role.as_str()) == Some("assistant");
        for at in (first..self.messages.len()).rev().filter(is_answer) {
            let within = |error: Error| error.within(format_args!("messages[{at}]"));
            let prompt = self.render_first(at, template, true).map_err(within)?;
            let text = self.render_first(at + 1, template, false).map_err(within)?;
            if !text.starts_with(&prompt) {
                return Err(within(not_behind(&prompt, &text)));
            }
            let answer = prompt.len()..text.len();
            match lessons.last_mut() {
                Some(lesson) if lesson.text.starts_with(&text) => lesson.answers.push(answer),
                _ => lessons.push(Lesson { text, answers: vec![answer] }),
            }
        }
        lessons.reverse();
        Ok(lessons)
    }

    /// Renders at this time from now on, unless another was set: what is rendered twice is then the same.
    pub(in crate::engine) fn keep_time(&mut self, time: SystemTime) {
        self.unix_seconds.get_or_insert_with(|| unix_seconds(time));
    }
}

fn not_behind(prompt: &str, text: &str) -> Error {
    let common = prompt.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    let clip = |text: &str| text[common..].chars().take(40).collect::<String>();
    let message = format!(
        "chat template: expected a message that begins with the generation prompt: after {common} bytes it goes on with {:?}, found {:?}",
        clip(prompt),
        clip(text)
    );
    Error::new(ErrorKind::Template, message)
}
