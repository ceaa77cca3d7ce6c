//! Control tokens in what users write: kept as text, and told from those of the template.
//!
//! A template puts the conversation and its own control tokens into one text. So each control token of the conversation is put
//! between two marks before the template sees it; the rendered text falls into pieces at the marks, and what stands between a pair
//! of them is encoded as if the tokenizer had no added tokens.
//!
//! ```text
//! <|user|>« <|end|> »<|end|>   the first <|end|> is five letters or so, the second one token
//! ```
//!
//! The reference is `sanitize_control_tokens=True` of `apply_chat_template` in transformers 5.24.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json};

use super::{Chat, ChatTemplate};
use crate::engine::cancel::Cancel;
use crate::engine::{Model, Tokenizer};
use crate::error::{Error, Result};

/// What a control token is that the text of a message, a tool or a variable holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlTokens {
    /// The token, as if the template had written it.
    #[default]
    Tokens,
    /// Text: no user can end a turn or begin another one.
    Text,
}

impl Chat {
    /// The token ids of the prompt: what [`render`](Self::render) gives, with control tokens as
    /// [`set_control_tokens`](Self::set_control_tokens) has it.
    ///
    /// # Errors
    /// As [`render`](Self::render) and [`Tokenizer::encode`]; `Unsupported` for a control token that the tokenizer makes of plain
    /// text too; `Cancelled`.
    pub fn encode(&self, model: &Model, add_generation_prompt: bool, cancel: Option<&Cancel>) -> Result<Vec<u32>> {
        let (template, tokenizer) = (Some(model.template_files()), model.tokenizer()?);
        if self.control_tokens == ControlTokens::Tokens {
            let prompt = self.render_first(self.messages.len(), template, add_generation_prompt, cancel)?;
            // A template writes its own BOS.
            return tokenizer.encode_cancellable(&prompt, false, cancel);
        }
        let prompt =
            self.marked(template, tokenizer)?.render_first(self.messages.len(), template, add_generation_prompt, cancel)?;
        encode_marked(tokenizer, &prompt, cancel)
    }

    /// The same conversation, its control tokens between marks.
    fn marked(&self, template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Result<Self> {
        let source = self.chosen_program(template)?.source();
        // White space that has a token of its own is ordinary text of templates.
        let is_control = |(text, special): &(String, bool)| *special || (source.contains(text) && !text.trim().is_empty());
        let texts: Vec<String> = tokenizer.added_tokens().into_iter().filter(is_control).map(|(text, _)| text).collect();
        let marks = Marks::of(&texts);
        let mut chat = self.clone();
        chat.control_tokens = ControlTokens::Tokens;
        chat.messages.iter_mut().chain([&mut chat.variables]).for_each(|fields| marks.mark_fields(fields));
        chat.tools.iter_mut().for_each(|tools| marks.mark(tools));
        Ok(chat)
    }
}

/// The control tokens, by their first byte, the longest first.
struct Marks<'t>(HashMap<u8, Vec<&'t str>>);

impl<'t> Marks<'t> {
    fn of(texts: &'t [String]) -> Self {
        let mut by_first: HashMap<u8, Vec<&str>> = HashMap::new();
        for text in texts {
            if let Some(first) = text.bytes().next() {
                by_first.entry(first).or_default().push(text);
            }
        }
        by_first.values_mut().for_each(|texts| texts.sort_by_key(|text| std::cmp::Reverse(text.len())));
        Self(by_first)
    }

    fn mark_fields(&self, fields: &mut Map<String, Json>) {
        fields.values_mut().for_each(|value| self.mark(value));
    }

    fn mark(&self, value: &mut Json) {
        match value {
            Json::String(text) => *text = self.marked(text),
            Json::Array(items) => items.iter_mut().for_each(|item| self.mark(item)),
            Json::Object(fields) => self.mark_fields(fields),
            _ => {}
        }
    }

    fn marked(&self, text: &str) -> String {
        // Marks of a user's own would make others of ours.
        let text = text.replace([BEGIN, END], "");
        let (mut marked, mut rest) = (String::with_capacity(text.len()), text.as_str());
        while let Some(letter) = rest.chars().next() {
            let candidates = rest.bytes().next().and_then(|first| self.0.get(&first));
            match candidates.into_iter().flatten().find(|token| rest.starts_with(**token)) {
                Some(token) => {
                    marked.push(BEGIN);
                    marked.push_str(token);
                    marked.push(END);
                    rest = &rest[token.len()..];
                }
                None => {
                    marked.push(letter);
                    rest = &rest[letter.len_utf8()..];
                }
            }
        }
        // A template may write the end of a token behind the beginning of one: a mark alone keeps them apart.
        if self.is_begun_by(&text) {
            marked.push(END);
        }
        marked
    }

    /// Whether a text ends within a control token.
    fn is_begun_by(&self, text: &str) -> bool {
        let longest = self.0.values().flatten().map(|token| token.len()).max().unwrap_or(0);
        let ends = text.char_indices().rev().take_while(|(at, _)| text.len() - at < longest);
        ends.into_iter().any(|(at, _)| {
            let end = &text[at..];
            self.0.get(&end.as_bytes()[0]).into_iter().flatten().any(|token| token.len() > end.len() && token.starts_with(end))
        })
    }
}

/// The ids of a rendered text; what a template cut off its mark still separates the texts around it.
fn encode_marked(tokenizer: &Tokenizer, prompt: &str, cancel: Option<&Cancel>) -> Result<Vec<u32>> {
    let added: HashSet<String> = tokenizer.added_tokens().into_iter().map(|(text, _)| text).collect();
    let newline = tokenizer.encode("\n", false)?;
    let mut ids = Vec::new();
    for (at, (piece, is_marked)) in pieces(prompt, &added).into_iter().enumerate() {
        if at == 0 {
            ids.extend(tokenizer.encode_cancellable(piece, false, cancel)?);
        } else if !piece.is_empty() {
            let own = encode_piece(tokenizer, piece, is_marked, &newline, cancel)?;
            if is_marked && tokenizer.token_id(piece).is_ok_and(|id| own.contains(&id)) {
                return Err(Error::unsupported(format!("control token {piece:?}: the tokenizer makes it of plain text too")));
            }
            ids.extend(own);
        }
    }
    Ok(ids)
}

/// Texts by turns: outside of marks, and control tokens between them.
fn pieces<'t>(prompt: &'t str, added: &HashSet<String>) -> Vec<(&'t str, bool)> {
    let (mut pieces, mut rest) = (Vec::new(), prompt);
    while let Some(at) = rest.find([BEGIN, END]) {
        pieces.push((&rest[..at], false));
        let behind = &rest[at + BEGIN.len_utf8()..];
        let token =
            rest[at..].strip_prefix(BEGIN).and_then(|text| text.split_once(END)).filter(|(token, _)| added.contains(*token));
        rest = match token {
            Some((token, behind)) => {
                pieces.push((token, true));
                behind
            }
            None => behind,
        };
    }
    pieces.push((rest, false));
    pieces
}

/// Behind a line end, so that no tokenizer takes the piece for the beginning of a text and puts a space in front of it.
fn encode_piece(
    tokenizer: &Tokenizer,
    piece: &str,
    is_marked: bool,
    newline: &[u32],
    cancel: Option<&Cancel>,
) -> Result<Vec<u32>> {
    let encode = |text: &str| match is_marked {
        true => tokenizer.encode_plain(text),
        false => tokenizer.encode_cancellable(text, false, cancel),
    };
    let ids = encode(&format!("\n{piece}"))?;
    match ids.strip_prefix(newline) {
        Some(ids) => Ok(ids.to_vec()),
        None => encode(piece),
    }
}

/// Letters of Unicode's private use, of which no vocabulary has a token.
const BEGIN: char = '\u{f0000}';
const END: char = '\u{f0001}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_enclose_the_longest_token_and_cannot_be_written() {
        let texts = ["<|a|>", "<|a|>b", "x"].map(str::to_owned);
        let marks = Marks::of(&texts);
        assert_eq!(marks.marked("é<|a|>bx <|a|>."), format!("é{BEGIN}<|a|>b{END}{BEGIN}x{END} {BEGIN}<|a|>{END}."));
        assert_eq!(marks.marked(&format!("{BEGIN}y{END}<|{END}a|>.")), format!("y{BEGIN}<|a|>{END}."));
        // What may become one with what follows stands apart.
        for text in ["é<", "é<|a", "é<|a|>b<|", "<|a|>"] {
            assert!(marks.marked(text).ends_with(END), "{text}");
        }
        assert_eq!(marks.marked("< b"), "< b");
    }

    #[test]
    fn a_mark_that_lost_its_partner_separates() {
        let added: HashSet<String> = ["<a>".to_owned()].into();
        let text = format!("1{BEGIN}<a>{END}2{BEGIN}<a>3{END}<{END}a>");
        assert_eq!(
            pieces(&text, &added),
            [("1", false), ("<a>", true), ("2", false), ("<a>3", false), ("<", false), ("a>", false)]
        );
    }
}
