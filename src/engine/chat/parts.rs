//! The parts of an answer: its text, the model's thoughts, and calls of tools, as they come.
//!
//! ```
//! use metal_candle::{AnswerFormat, AnswerPart, PartStream};
//! let mut stream = PartStream::new(&AnswerFormat::named("hermes")?);
//! let mut parts = stream.push("<think>Easy.</think>\n\nLet me see.\n<tool_call>{\"name\": \"f\", \"argum");
//! parts.extend(stream.push("ents\": {\"a\": 1}}</tool_call>"));
//! parts.extend(stream.finish());
//! assert_eq!(parts[..3], [
//!     AnswerPart::Reasoning("Easy.".into()),
//!     AnswerPart::Text("Let me see.".into()),
//!     AnswerPart::ToolCall { index: 0, name: "f".into() },
//! ]);
//! let Some(AnswerPart::ToolCallEnd(call)) = parts.last() else { panic!() };
//! assert_eq!((call.name.as_str(), call.arguments.as_str(), call.is_complete), ("f", "{\"a\": 1}", true));
//! # Ok::<(), metal_candle::Error>(())
//! ```

use serde_json::{Value as Json, json};

use super::tools::{self, Begin, Found, FoundCall, Piece, Spelling, State, TOOL_FORMATS, ToolFormat, Tools};
use super::{Chat, ChatTemplate};
use crate::engine::Tokenizer;
use crate::error::{Error, Result};

/// A part of an answer, or a piece of one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AnswerPart {
    /// Text of the answer.
    Text(String),
    /// The model's thoughts, without the marks around them.
    Reasoning(String),
    /// A call has begun; `index` counts those of the answer.
    ToolCall { index: u32, name: String },
    /// A piece of that call's arguments, which together are JSON.
    Arguments { index: u32, json: String },
    /// The call is whole, or the answer ended within it.
    ToolCallEnd(ToolCall),
    /// What began as a call is none: what the model wrote follows as text.
    RejectedToolCall { index: u32 },
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCall {
    /// Its place among the calls of the answer, from 0.
    pub index: u32,
    /// As the model gave it. In Mistral's format one is made where it gave none, of nine letters and digits, as their templates want it.
    pub id: Option<String>,
    pub name: String,
    /// A JSON object; the beginning of one if the call is not complete.
    pub arguments: String,
    /// Whether the model wrote all of it.
    pub is_complete: bool,
}

impl ToolCall {
    /// As chat APIs have it: `{"id": …, "type": "function", "function": {"name": …, "arguments": "…"}}`.
    pub(crate) fn to_json(&self) -> Json {
        let id = self.id.clone().unwrap_or_else(|| format!("call_{}", self.index));
        let mut json = json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}});
        if !self.is_complete {
            json["incomplete"] = Json::Bool(true);
        }
        json
    }

    pub(crate) fn list_json(calls: &[Self]) -> String {
        Json::Array(calls.iter().map(Self::to_json).collect()).to_string()
    }
}

/// How a model marks thoughts and calls in its answers.
#[derive(Clone, Default)]
pub struct AnswerFormat {
    tools: Option<&'static ToolFormat>,
    thoughts: Vec<&'static Thoughts>,
    definitions: Tools,
    begins: Option<&'static Thoughts>,
    /// Of several ways to write a call the model's, where its template tells.
    spelling: Option<&'static Spelling>,
    /// Calls stay text.
    refuses_calls: bool,
}

/// Marks around thoughts.
struct Thoughts {
    /// A text of a template that has them, or a special token.
    found_by: &'static str,
    open: &'static str,
    close: &'static [&'static str],
    /// Whether answers may speak of the mark: it then is one where a thought may begin, and text elsewhere.
    is_text: bool,
}

const THOUGHTS: &[Thoughts] = &[
    // Qwen3, DeepSeek-R1, SmolLM3, GLM-4.5, Granite 3.3 and many others.
    Thoughts { found_by: "</think>", open: "<think>", close: &["</think>"], is_text: true },
    // Magistral.
    Thoughts { found_by: "[THINK]", open: "[THINK]", close: &["[/THINK]"], is_text: false },
    // Gemma 4.
    Thoughts { found_by: "<|channel>", open: "<|channel>thought\n", close: &["<channel|>"], is_text: false },
    // Command A.
    Thoughts { found_by: "<|START_THINKING|>", open: "<|START_THINKING|>", close: &["<|END_THINKING|>"], is_text: false },
    // MiniCPM3.
    Thoughts { found_by: "<|thought_start|>", open: "<|thought_start|>", close: &["<|thought_end|>"], is_text: false },
    // Seed-OSS.
    Thoughts { found_by: "<seed:think>", open: "<seed:think>", close: &["</seed:think>"], is_text: true },
    // Granite 3.2.
    Thoughts {
        found_by: "Here is my thought process:",
        open: "Here is my thought process:",
        close: &["Here is my response:"],
        is_text: true,
    },
];

/// The name of the format in which all is text.
const NO_FORMAT: &str = "none";

/// The formats in which answers, and not calls alone, stand behind the marks of calls.
const ANSWERS_BEHIND_MARKS: [&str; 2] = ["harmony", "functionary"];

/// gpt-oss: the generation prompt may have opened a channel.
const ANALYSIS: Thoughts = Thoughts {
    found_by: "<|channel|>",
    open: "<|channel|>analysis<|message|>",
    close: &["<|end|>", "<|return|>", "<|start|>", "<|channel|>"],
    is_text: false,
};

impl AnswerFormat {
    /// A format by its name, one of [`names`](Self::names), with which thoughts are found by all marks that are known; or `none`, with
    /// which all is text.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` with the names that there are.
    pub fn named(name: &str) -> Result<Self> {
        if name == NO_FORMAT {
            return Ok(Self::default());
        }
        let tools = tools::named(name).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            Error::argument(format!("answer_format: {name:?} is not known ({})", names.join(", ")))
        })?;
        Ok(Self { tools: Some(tools), thoughts: THOUGHTS.iter().collect(), ..Self::default() })
    }

    /// The name of its format of calls; `none` without one.
    pub(in crate::engine) fn name(&self) -> &'static str {
        self.tools.map_or(NO_FORMAT, |format| format.name)
    }

    /// The names of the formats of calls.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TOOL_FORMATS.iter().map(|format| format.name)
    }

    /// The format that a chat template and a tokenizer's special tokens tell of. What neither mentions stays text.
    pub(crate) fn detect(template: &str, tokenizer: Option<&Tokenizer>) -> Self {
        let added = tokenizer.map(Tokenizer::added_tokens).unwrap_or_default();
        let contains = |text: &str| template.contains(text) || added.iter().any(|(token, _)| token == text);
        let thoughts = THOUGHTS.iter().filter(|thoughts| contains(thoughts.found_by)).collect();
        let tools = tools::detect(contains);
        Self { tools, thoughts, spelling: tools.map(|format| format.spelling(contains)), ..Self::default() }
    }

    /// The format of a model's answers to a conversation.
    pub(in crate::engine) fn of_chat(chat: &Chat, template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Result<Self> {
        let source = chat.chosen_program(template)?.source();
        Ok(Self { definitions: Tools::of(chat.tools.as_ref()), ..Self::detect(source, Some(tokenizer)) })
    }

    /// The tools that may be called, as a conversation has them: values that a model writes as bare text get the types of their
    /// parameters.
    ///
    /// # Errors
    /// `ErrorKind::Format` for what is no array of objects.
    pub fn with_tools_json(mut self, json: &str) -> Result<Self> {
        let tools = super::check_tools(super::parse("tools", json)?)?;
        self.definitions = Tools::of(Some(&tools));
        Ok(self)
    }

    /// The format of an answer behind this prompt: a template may open the thought itself.
    pub fn behind(mut self, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        let is_harmony = self.tools.is_some_and(|format| format.name == "harmony");
        let known = self.thoughts.iter().copied().chain(is_harmony.then_some(&ANALYSIS));
        self.begins = known.into_iter().find(|thoughts| prompt.ends_with(thoughts.open.trim_end()));
        self
    }

    /// The format of what continues this beginning of a message: it may stand within a thought.
    pub(in crate::engine) fn continuing(mut self, message: &str) -> Self {
        let opened = self.thoughts.iter().filter_map(|thoughts| Some((message.rfind(thoughts.open)?, *thoughts)));
        let is_open = |(at, thoughts): &(usize, &Thoughts)| {
            let behind = &message[at + thoughts.open.len()..];
            !thoughts.close.iter().any(|close| behind.contains(close))
        };
        self.begins = self.begins.or_else(|| opened.max_by_key(|(at, _)| *at).filter(is_open).map(|(_, thoughts)| thoughts));
        self
    }

    /// Whether a token is part of a thought's marks.
    pub(in crate::engine) fn marks_thoughts(&self, token: &str) -> bool {
        let mut marks = self.thoughts.iter().flat_map(|thoughts| std::iter::once(&thoughts.open).chain(thoughts.close));
        marks.any(|mark| mark.contains(token))
    }

    /// Whether a special token is a mark that a parser must see; the others are no text.
    pub(in crate::engine) fn reads_token(&self, token: &str) -> bool {
        let mut tools =
            self.tools.into_iter().flat_map(|format| [format.opens, format.skipped, format.inner].into_iter().flatten());
        tools.any(|mark| mark.contains(token)) || self.marks_thoughts(token)
    }

    /// What an answer may be that has to consist of calls, of this tool or of any; `behind_thought`: it follows one.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` without such a tool; `ErrorKind::Unsupported` without a format of calls, and naming what the
    /// format cannot write exactly.
    pub(in crate::engine) fn call_pieces(
        &self,
        name: Option<&str>,
        tokenizer: &Tokenizer,
        behind_thought: bool,
    ) -> Result<Vec<Piece>> {
        let Some(format) = self.tools else {
            return Err(Error::unsupported(
                "tool_choice: expected a model whose chat template tells how it writes calls, or an answer_format that does",
            ));
        };
        let spelling = self.spelling.unwrap_or_else(|| format.spelling(|text| tokenizer.token_id(text).is_ok()));
        let calls = spelling.pieces(&self.definitions, name)?;
        let before = match format.name {
            _ if !behind_thought => Vec::new(),
            "harmony" => vec![Piece::Text("<|start|>assistant".to_string())],
            "functionary" => Vec::new(),
            // As templates have it between a thought and what follows.
            _ => vec![Piece::Optional(vec![Piece::Text("\n\n".to_string())])],
        };
        Ok([before, calls].concat())
    }

    /// The same with the tools of another one, where it has none of its own.
    pub(in crate::engine) fn with_tools_of(mut self, other: &Self) -> Self {
        if self.definitions.is_empty() {
            self.definitions = other.definitions.clone();
        }
        self
    }

    /// The same in which calls stay text.
    pub(in crate::engine) fn without_calls(mut self) -> Self {
        self.refuses_calls = true;
        // In the others answers stand behind such marks too.
        if self.tools.is_some_and(|format| !ANSWERS_BEHIND_MARKS.contains(&format.name)) {
            self.tools = None;
        }
        self
    }

    /// The marks behind which calls stand, and nothing else.
    pub(in crate::engine) fn opens(&self) -> &'static [&'static str] {
        match self.tools {
            Some(format) if !ANSWERS_BEHIND_MARKS.contains(&format.name) => format.opens,
            _ => &[],
        }
    }

    /// Whether there is anything to find.
    pub(in crate::engine) fn is_plain(&self) -> bool {
        self.tools.is_none() && self.thoughts.is_empty()
    }
}

impl std::fmt::Debug for AnswerFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let thoughts: Vec<&str> = self.thoughts.iter().map(|thoughts| thoughts.open).collect();
        write!(f, "AnswerFormat({:?}, {thoughts:?})", self.tools.map(|format| format.name))
    }
}

/// An answer's text to its parts, in pieces of any size: the same parts come of any.
///
/// What is no thought and no call stays text, letter for letter. White space next to a mark belongs to it.
#[derive(Debug)]
pub struct PartStream {
    format: AnswerFormat,
    place: Place,
    /// What is not yet told.
    held: String,
    /// How much of it is white space that begins no mark.
    spaces: usize,
    /// How long it was when calls were last looked for in it.
    parsed: usize,
    /// Whether white space is dropped: behind a mark.
    skips_space: bool,
    /// Whether no text came yet.
    at_start: bool,
    /// Whether a thought may begin: at the start, behind another one and behind calls.
    may_think: bool,
    calls: u32,
    parts: Vec<AnswerPart>,
    #[cfg(test)]
    seen: String,
}

#[derive(Debug)]
enum Place {
    Text,
    Thought(&'static [&'static str]),
    /// Behind a mark, and the space before it: `held` is what `parse` of the format reads. The calls of which something was told.
    Calls {
        mark: String,
        told: Vec<Told>,
    },
}

#[derive(Debug, Default)]
struct Told {
    index: Option<u32>,
    arguments: usize,
    is_ended: bool,
}

/// What a mark in text begins.
#[derive(Clone, Copy)]
enum Mark {
    Skipped(&'static str),
    Thought(&'static Thoughts),
    Calls(&'static str),
}

impl Mark {
    fn text(self) -> &'static str {
        match self {
            Self::Skipped(text) | Self::Calls(text) => text,
            Self::Thought(thoughts) => thoughts.open,
        }
    }
}

impl PartStream {
    /// A stream at the beginning of an answer.
    pub fn new(format: &AnswerFormat) -> Self {
        Self {
            place: format.begins.map_or(Place::Text, |thoughts| Place::Thought(thoughts.close)),
            format: format.clone(),
            held: String::new(),
            spaces: 0,
            parsed: 0,
            skips_space: format.begins.is_some(),
            at_start: true,
            may_think: true,
            calls: 0,
            parts: Vec::new(),
            #[cfg(test)]
            seen: String::new(),
        }
    }

    /// The parts that became certain with a piece of the answer, special tokens that are marks included.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.held.push_str(text);
        while self.step(false) {}
        std::mem::take(&mut self.parts)
    }

    /// Within a thought, the mark that ends it.
    pub(in crate::engine) fn closes(&self) -> Option<&'static str> {
        match self.place {
            Place::Thought(closes) => closes.first().copied(),
            Place::Text | Place::Calls { .. } => None,
        }
    }

    /// What was held back, at the end of the answer; a call that it ended within is not complete.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        while self.step(true) {}
        std::mem::take(&mut self.parts)
    }

    /// Goes one mark on; `false` if that takes more text.
    fn step(&mut self, is_end: bool) -> bool {
        if self.skips_space && !matches!(self.place, Place::Calls { .. }) {
            let space = self.held.len() - self.held.trim_start().len();
            self.drop_held(space);
            if self.held.is_empty() {
                return false;
            }
            self.skips_space = false;
        }
        match self.place {
            Place::Text => self.text(is_end),
            Place::Thought(closes) => self.thought(closes, is_end),
            Place::Calls { .. } => self.calls(is_end),
        }
    }

    fn text(&mut self, is_end: bool) -> bool {
        if self.at_start
            && let Some(format) = self.format.tools
        {
            match (format.begins)(&self.held, &self.format.definitions) {
                Begin::Yes => {
                    (self.at_start, self.spaces) = (false, 0);
                    self.place = Place::Calls { mark: String::new(), told: Vec::new() };
                    return true;
                }
                Begin::Open if !is_end && self.held.len() < MOST_HELD_AT_START => return false,
                Begin::Open | Begin::No => {}
            }
        }
        let (end, mark) = self.find(&self.marks(), is_end, |mark| mark.text());
        if matches!(mark, Some(Mark::Thought(thoughts)) if thoughts.is_text) && !self.held[..end].trim().is_empty() {
            self.may_think = false;
            return true;
        }
        let before = match mark {
            Some(Mark::Thought(_) | Mark::Calls(_)) => self.len_without_space(end),
            Some(Mark::Skipped(_)) => end,
            None if is_end => end,
            // It may stand before a mark.
            None => self.len_without_space(end),
        };
        self.tell_text(before);
        self.spaces = end - before;
        let Some(mark) = mark else { return false };
        let space = end - before;
        match mark {
            Mark::Skipped(text) => self.drop_held(text.len()),
            Mark::Thought(thoughts) => {
                self.drop_held(space + thoughts.open.len());
                (self.place, self.skips_space) = (Place::Thought(thoughts.close), true);
            }
            Mark::Calls(text) => {
                let keeps = self.format.tools.is_some_and(|format| format.keeps_mark);
                let mark = self.held.drain(..space + if keeps { 0 } else { text.len() }).collect();
                self.spaces = 0;
                self.place = Place::Calls { mark, told: Vec::new() };
            }
        }
        true
    }

    /// [`find`] in what is held.
    fn find<M: Copy>(&self, marks: &[M], is_end: bool, mark_text: impl Fn(M) -> &'static str) -> (usize, Option<M>) {
        let (end, mark) = find(&self.held[self.spaces..], marks, is_end, mark_text);
        (self.spaces + end, mark)
    }

    /// How long the first `end` bytes of what is held are without the white space at their end.
    fn len_without_space(&self, end: usize) -> usize {
        match self.held[self.spaces..end].trim_end().len() {
            0 => 0,
            len => self.spaces + len,
        }
    }

    fn marks(&self) -> Vec<Mark> {
        let thoughts = self.format.thoughts.iter().filter(|thoughts| self.may_think || !thoughts.is_text);
        let thoughts = thoughts.map(|thoughts| Mark::Thought(thoughts));
        let tools = self.format.tools.into_iter();
        let opens = tools.clone().flat_map(|format| format.opens.iter().map(|open| Mark::Calls(open)));
        let skipped = tools.flat_map(|format| format.skipped.iter().map(|text| Mark::Skipped(text)));
        opens.chain(thoughts).chain(skipped).collect()
    }

    fn thought(&mut self, closes: &'static [&'static str], is_end: bool) -> bool {
        let (end, close) = self.find(closes, is_end, |close| close);
        let thought = self.len_without_space(end);
        if thought > 0 {
            let text = self.take_held(thought);
            if let Some(AnswerPart::Reasoning(last)) = self.parts.last_mut() {
                last.push_str(&text);
            } else {
                self.parts.push(AnswerPart::Reasoning(text));
            }
        }
        self.spaces = end - thought;
        if close.is_some() || is_end {
            self.drop_held(end - thought);
        }
        let Some(close) = close else { return false };
        // The beginning of the next message ends this one.
        let is_open = self.format.tools.is_some_and(|format| format.opens.contains(&close));
        if !is_open {
            self.drop_held(close.len());
        }
        (self.place, self.skips_space, self.may_think) = (Place::Text, true, true);
        true
    }

    fn calls(&mut self, is_end: bool) -> bool {
        let Some(format) = self.format.tools else { return false };
        // Calls are read from their beginning: of long ones not at every letter.
        if !is_end && self.held.len() > LONG_CALLS && self.held.len() - self.parsed < self.held.len() / 64 {
            return false;
        }
        self.parsed = self.held.len();
        let parse = |text: &str| (format.parse)(text, &self.format.definitions);
        let mut found = parse(&self.held);
        if found.state == State::Invalid {
            // What was found up to where it went wrong, however the text came.
            found = Found { state: State::Invalid, ..parse(&self.held[..valid_len(&self.held, &parse)]) };
        }
        if self.format.refuses_calls && !found.calls.is_empty() {
            self.reject(0);
            return true;
        }
        self.tell_calls(&found.calls);
        let (end, place) = match found.state {
            State::Open if !is_end => return false,
            State::Closed(end) if !found.calls.is_empty() => (end, Place::Text),
            State::Thought(at, closes) => (at, Place::Thought(closes)),
            State::Answer(at) => (at, Place::Text),
            // The answer ends within the calls. What may have become one more has no name yet, and is text.
            State::Open if found.calls.last().is_some_and(|call| call.name.is_some()) => (self.held.len(), Place::Text),
            State::Open | State::Invalid | State::Closed(_) => {
                self.reject(found.good);
                return true;
            }
        };
        self.end_calls();
        self.account_mark();
        self.drop_held(end);
        (self.place, self.skips_space, self.may_think) = (place, true, true);
        true
    }

    /// Tells what is new of the calls.
    fn tell_calls(&mut self, calls: &[FoundCall]) {
        let Place::Calls { told, .. } = &mut self.place else { return };
        told.resize_with(told.len().max(calls.len()), Told::default);
        for (call, told) in calls.iter().zip(told) {
            let Some(name) = &call.name else { continue };
            let index = *told.index.get_or_insert_with(|| {
                self.parts.push(AnswerPart::ToolCall { index: self.calls, name: name.clone() });
                self.calls += 1;
                self.calls - 1
            });
            if let Some(new) = call.arguments.get(told.arguments..).filter(|new| !new.is_empty()) {
                self.parts.push(AnswerPart::Arguments { index, json: new.to_owned() });
                told.arguments = call.arguments.len();
            }
            if call.is_complete && !told.is_ended {
                told.is_ended = true;
                self.parts.push(AnswerPart::ToolCallEnd(ended(index, call)));
            }
        }
    }

    /// The answer is over: what is not whole stays so.
    fn end_calls(&mut self) {
        let Some(format) = self.format.tools else { return };
        let Place::Calls { told, .. } = &self.place else { return };
        let calls = (format.parse)(&self.held, &self.format.definitions).calls;
        let open = calls.iter().zip(told).filter(|(_, told)| !told.is_ended);
        let open: Vec<AnswerPart> =
            open.filter_map(|(call, told)| Some(AnswerPart::ToolCallEnd(ended(told.index?, call)))).collect();
        self.parts.extend(open);
    }

    /// What stands behind the mark is no call from byte `good` on: text.
    fn reject(&mut self, good: usize) {
        let Place::Calls { told, .. } = &self.place else { return };
        let rejected = told.iter().filter(|told| !told.is_ended).filter_map(|told| told.index);
        self.parts.extend(rejected.map(|index| AnswerPart::RejectedToolCall { index }));
        if good > 0 {
            self.account_mark();
            self.drop_held(good);
            (self.place, self.skips_space, self.may_think) = (Place::Text, true, true);
            return;
        }
        let Place::Calls { mark, .. } = std::mem::replace(&mut self.place, Place::Text) else { return };
        // The mark itself is text now, and is not looked at again.
        let kept = self.format.tools.filter(|format| format.keeps_mark).into_iter().flat_map(|format| format.opens);
        let kept = kept.filter(|open| self.held.starts_with(**open)).map(|open| open.len()).max().unwrap_or(0);
        self.held.insert_str(0, &mark);
        self.spaces = 0;
        self.tell_text(mark.len() + kept);
    }

    fn tell_text(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        let text = self.take_held(len);
        let is_blank = text.trim().is_empty();
        self.at_start &= is_blank;
        self.may_think &= is_blank;
        if let Some(AnswerPart::Text(last)) = self.parts.last_mut() {
            last.push_str(&text);
        } else {
            self.parts.push(AnswerPart::Text(text));
        }
    }

    fn take_held(&mut self, len: usize) -> String {
        let text: String = self.held.drain(..len).collect();
        (self.spaces, self.parsed) = (self.spaces.saturating_sub(len), 0);
        #[cfg(test)]
        self.seen.push_str(&text);
        text
    }

    fn drop_held(&mut self, len: usize) {
        self.take_held(len);
    }

    /// The mark in front of what is held was read.
    fn account_mark(&mut self) {
        #[cfg(test)]
        if let Place::Calls { mark, .. } = &self.place {
            self.seen.push_str(mark);
        }
    }
}

fn ended(index: u32, call: &FoundCall) -> ToolCall {
    let (name, arguments) = (call.name.clone().unwrap_or_default(), call.arguments.clone());
    ToolCall { index, id: call.id.clone(), name, arguments, is_complete: call.is_complete }
}

/// Bytes that are held at the beginning of an answer to see whether it is a call.
const MOST_HELD_AT_START: usize = 1024;
/// Bytes of calls from which on they are not read anew with every piece.
const LONG_CALLS: usize = 1024;

/// Where the first mark begins, and which: the longest of those that begin there. Without one, where the text ends that can be no
/// beginning of one.
fn find<M: Copy>(text: &str, marks: &[M], is_end: bool, mark_text: impl Fn(M) -> &'static str) -> (usize, Option<M>) {
    for (at, _) in text.char_indices() {
        let rest = &text[at..];
        let mut longest: Option<M> = None;
        for &mark in marks {
            let text = mark_text(mark);
            if rest.starts_with(text) {
                longest = longest.filter(|other| mark_text(*other).len() >= text.len()).or(Some(mark));
            } else if !is_end && text.starts_with(rest) {
                return (at, None);
            }
        }
        if longest.is_some() {
            return (at, longest);
        }
    }
    (text.len(), None)
}

/// How many bytes at the beginning of a text may still become calls: one letter more, and it cannot.
fn valid_len(text: &str, parse: &impl Fn(&str) -> Found) -> usize {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    ends[ends.partition_point(|&end| parse(&text[..end]).state != State::Invalid).saturating_sub(1)]
}

#[cfg(test)]
mod tests;
