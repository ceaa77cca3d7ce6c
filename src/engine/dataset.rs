//! Examples to train on: texts, prompts with their completions, and conversations.
//!
//! ```
//! use metal_candle::Dataset;
//! let mut dataset = Dataset::new();
//! dataset.add_text("The river Oru runs north.");
//! dataset.add_completion("Which way does the Oru run?", " North.");
//! assert_eq!(dataset.len(), 2);
//! ```

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value as Json};

use super::chat::{Lesson, expected};
use super::{Cancel, Chat, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::owned;
use crate::load::{check_json_room, open_file};
use crate::ops;

/// A line of a file. No example of that size fits a context; a file without line ends is not what it says it is.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Examples in their order; a model's tokenizer and chat template make tokens of them when training begins.
///
/// Trained on is all of a **text**. Of a **completion** and of a **conversation** it is also all, or, with a masked
/// prompt, the completion and what the assistant says, up to and with the token that ends the answer. Texts and completions are
/// tokenised with the tokenizer's special tokens, and the token that ends a text is put behind them unless it is there, as TRL's
/// SFTTrainer does; a conversation's special tokens are those that its template writes, and where it ends an answer with none, the
/// token that ends a text is put behind the last.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    examples: Vec<Example>,
    /// Where the examples with a line number come from.
    path: PathBuf,
}

#[derive(Debug, Clone)]
struct Example {
    content: Content,
    line: Option<usize>,
}

#[derive(Debug, Clone)]
enum Content {
    Text(String),
    Completion {
        prompt: String,
        completion: String,
    },
    /// `prompt`: how many messages at the beginning only ask.
    Chat {
        chat: Box<Chat>,
        prompt: usize,
    },
}

/// What training sees of a dataset.
pub(super) struct Tokenized {
    /// In the order of the dataset. A conversation that its template writes differently at each turn gives several.
    pub examples: Vec<Sample>,
    /// How many were cut to the most tokens.
    pub truncated: usize,
    /// How many were left out, as no token of them is a target.
    pub skipped: usize,
}

/// One sequence of tokens.
#[derive(Debug)]
pub(super) struct Sample {
    pub ids: Vec<u32>,
    /// Whether each token is a target, predicted from those before it; never the first.
    pub targets: Vec<bool>,
}

impl Dataset {
    /// A dataset without examples.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file of JSON lines, one example each: `{"messages": [...]}`, optionally with `tools`, as for
    /// [`Chat::from_json`]; `{"prompt": ..., "completion": ...}`, both strings, or both messages and optionally with `tools`; or
    /// `{"text": ...}`. Blank lines are skipped, fields that are null count as absent, others are errors. A template that tells the
    /// time tells when the file was last changed, so that a training that is resumed on another day sees the same.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `InvalidUtf8`, `Format` with path, line and field.
    pub fn load_jsonl(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut dataset = Self { examples: Vec::new(), path: path.to_path_buf() };
        let file = open_file(path)?;
        let changed = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        let (mut file, mut bytes) = (BufReader::new(file), Vec::new());
        for line in 1.. {
            next_line(&mut file, &mut bytes).map_err(|e| Error::io(path, e))?;
            if bytes.is_empty() {
                break;
            }
            let within = |e: Error| e.within(format_args!("{}, line {line}", path.display()));
            let mut content = read_line(&bytes, line).map_err(within)?;
            if let Some(Content::Chat { chat, .. }) = &mut content {
                chat.keep_time(changed);
            }
            if let Some(content) = content {
                dataset.push(Example { content, line: Some(line) }).map_err(within)?;
            }
        }
        Ok(dataset)
    }

    /// Appends a text.
    pub fn add_text(&mut self, text: &str) {
        self.add(Content::Text(text.to_owned()));
    }

    /// As [`add_text`](Self::add_text).
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`; the dataset is then what it was.
    pub(crate) fn try_add_text(&mut self, text: &str) -> Result<()> {
        let content = Content::Text(owned("text", text)?);
        self.push(Example { content, line: None })
    }

    /// Appends a prompt with the text that is to follow it. They are joined as they are: a space between them belongs to one.
    pub fn add_completion(&mut self, prompt: &str, completion: &str) {
        self.add(Content::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() });
    }

    /// As [`add_completion`](Self::add_completion).
    ///
    /// # Errors
    /// As [`try_add_text`](Self::try_add_text).
    pub(crate) fn try_add_completion(&mut self, prompt: &str, completion: &str) -> Result<()> {
        let (prompt, completion) = (owned("prompt", prompt)?, owned("completion", completion)?);
        self.push(Example { content: Content::Completion { prompt, completion }, line: None })
    }

    /// Appends a conversation as it is now: its messages, tools, template and variables. A template that tells the time tells that of
    /// this call, unless the conversation has another.
    pub fn add_chat(&mut self, chat: &Chat) {
        let mut chat = chat.clone();
        chat.keep_time(SystemTime::now());
        self.add(Content::chat(chat, 0));
    }

    /// As [`add_chat`](Self::add_chat).
    ///
    /// # Errors
    /// As [`try_add_text`](Self::try_add_text).
    pub(crate) fn try_add_chat(&mut self, chat: &Chat) -> Result<()> {
        let mut chat = chat.try_clone()?;
        chat.keep_time(SystemTime::now());
        self.push(Example { content: Content::chat(chat, 0), line: None })
    }

    fn push(&mut self, example: Example) -> Result<()> {
        let count = self.examples.len() + 1;
        self.examples
            .try_reserve(1)
            .map_err(|e| Error::new(ErrorKind::OutOfMemory, format!("{count} examples do not fit the memory")).with_source(e))?;
        self.examples.push(example);
        Ok(())
    }

    fn add(&mut self, content: Content) {
        self.examples.push(Example { content, line: None });
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// The examples as tokens of a model, each cut to its first `max_length`. `mask_prompt`: learn of completions and conversations
    /// only what the model is to write.
    ///
    /// # Errors
    /// Naming the example: `NotFound` for a model without a tokenizer; `Template` for one without a chat template, a template that
    /// refuses a conversation, or one that does not write an answer behind its generation prompt.
    pub(super) fn tokenized(
        &self,
        model: &Model,
        max_length: usize,
        mask_prompt: bool,
        cancel: Option<&Cancel>,
    ) -> Result<Tokenized> {
        let each = ops::parallel_map(&self.examples, |example| {
            cancel.map_or(Ok(()), Cancel::check)?;
            example.content.samples(model, mask_prompt, cancel)
        });
        cancel.map_or(Ok(()), Cancel::check)?;
        let mut tokenized = Tokenized { examples: Vec::new(), truncated: 0, skipped: 0 };
        for (at, samples) in each.into_iter().enumerate() {
            let samples = samples.map_err(|error| error.within(self.place(at)))?;
            tokenized.skipped += usize::from(samples.is_empty());
            for mut sample in samples {
                tokenized.truncated += usize::from(sample.ids.len() > max_length);
                sample.ids.truncate(max_length);
                sample.targets.truncate(max_length);
                if sample.targets.contains(&true) {
                    tokenized.examples.push(sample);
                } else {
                    tokenized.skipped += 1;
                }
            }
        }
        Ok(tokenized)
    }

    fn place(&self, at: usize) -> String {
        match self.examples[at].line {
            Some(line) => format!("examples[{at}] ({}, line {line})", self.path.display()),
            None => format!("examples[{at}]"),
        }
    }
}

impl Content {
    fn chat(chat: Chat, prompt: usize) -> Self {
        Self::Chat { chat: Box::new(chat), prompt }
    }

    fn samples(&self, model: &Model, mask_prompt: bool, cancel: Option<&Cancel>) -> Result<Vec<Sample>> {
        match self {
            Self::Text(text) => Ok(vec![Sample::text(model, text, 0, cancel)?]),
            Self::Completion { prompt, completion } => {
                let start = if mask_prompt { prompt.len() } else { 0 };
                Ok(vec![Sample::text(model, &format!("{prompt}{completion}"), start, cancel)?])
            }
            Self::Chat { chat, prompt } if mask_prompt => {
                let lessons = chat.lessons(*prompt, Some(model.template_files()))?;
                lessons.iter().map(|lesson| Sample::lesson(model, lesson, cancel)).collect()
            }
            Self::Chat { chat, .. } => {
                let ids = model.tokenizer()?.encode(&chat.render(Some(model.template_files()), false)?, false)?;
                let targets = vec![true; ids.len()];
                Ok(vec![Sample::new(model, ids, targets)?])
            }
        }
    }
}

impl Sample {
    fn new(model: &Model, ids: Vec<u32>, mut targets: Vec<bool>) -> Result<Self> {
        let vocabulary = model.vocab_size();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let message = format!("tokenizer.json: token id {id} is outside the model's vocabulary of {vocabulary}");
            return Err(Error::format(message));
        }
        // Nothing stands before it to predict it from.
        if let Some(first) = targets.first_mut() {
            *first = false;
        }
        Ok(Self { ids, targets })
    }

    /// A text that is trained on from byte `start` on, with a token that ends it.
    fn text(model: &Model, text: &str, start: usize, cancel: Option<&Cancel>) -> Result<Self> {
        let (mut ids, starts) = model.tokenizer()?.encode_with_starts(text, true, cancel)?;
        let mut targets: Vec<bool> = starts.iter().map(|&at| at >= start).collect();
        if let Some(eos) = model.eos()
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
            targets.push(true);
        }
        Self::new(model, ids, targets)
    }

    /// A text whose answers are trained on. Tokenised as a whole, as a prompt is; a token across a border belongs to where it begins.
    fn lesson(model: &Model, lesson: &Lesson, cancel: Option<&Cancel>) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let (mut ids, starts) = tokenizer.encode_with_starts(&lesson.text, false, cancel)?;
        let mut targets = vec![false; ids.len()];
        let token_at = |byte: usize| starts.partition_point(|&start| start < byte);
        for answer in &lesson.answers {
            let text_end = lesson.text[..answer.end].trim_end().len().max(answer.start);
            let (first, text_end, behind) = (token_at(answer.start), token_at(text_end), token_at(answer.end));
            let end = if let Some(eos) = (first..behind).find(|&token| model.is_eos(ids[token])) {
                // Generation stops there, whatever the template writes behind it.
                eos + 1
            } else if text_end > first && tokenizer.is_special(ids[text_end - 1]) {
                // A template's own token, and a line end.
                text_end
            } else if behind < ids.len() && model.is_eos(ids[behind]) {
                // The beginning of the next turn ends the answer (GLM-4).
                behind + 1
            } else if let Some(eos) = model.eos().filter(|_| behind == ids.len()) {
                ids.push(eos);
                targets.push(true);
                behind
            } else {
                behind
            };
            targets[first..end].fill(true);
        }
        Self::new(model, ids, targets)
    }
}

/// The next line with its end, or what is longer than a line may be up to there; empty at the end of the file.
fn next_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    loop {
        let read = match file.fill_buf() {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = read.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let part = &read[..end.unwrap_or(read.len())];
        line.try_reserve(part.len())?;
        line.extend_from_slice(part);
        let (len, is_end) = (part.len(), end.is_some() || part.is_empty());
        file.consume(len);
        if is_end || line.len() > MAX_LINE_BYTES {
            return Ok(());
        }
    }
}

/// The example of a line; none in a blank one.
fn read_line(bytes: &[u8], line: usize) -> Result<Option<Content>> {
    if bytes.len() > MAX_LINE_BYTES {
        return Err(Error::format(format!("expected up to {MAX_LINE_BYTES} bytes, found more")));
    }
    let bytes = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (offset, byte) = (error.valid_up_to(), bytes[error.valid_up_to()]);
        Error::new(ErrorKind::InvalidUtf8, format!("expected UTF-8, found byte 0x{byte:02x} at offset {offset}"))
    })?;
    let text = text.trim_end();
    if text.is_empty() {
        return Ok(None);
    }
    check_json_room("example", text)?;
    match serde_json::from_str(text) {
        Ok(Json::Object(fields)) => read_example(fields).map(Some),
        Ok(other) => Err(expected("example", "an object", Some(&other))),
        Err(error) => {
            let message = error.to_string();
            let reason = message.split(" at line ").next().unwrap_or(&message);
            Err(Error::format(format!("column {}: expected JSON: {reason}", error.column())).with_source(error))
        }
    }
}

fn read_example(mut fields: Map<String, Json>) -> Result<Content> {
    fields.retain(|_, value| !value.is_null());
    let mut names: Vec<String> = fields.keys().cloned().collect();
    names.sort_unstable();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut take = |name: &str| fields.remove(name).unwrap_or_default();
    match names[..] {
        ["messages"] | ["messages", "tools"] => Ok(Content::chat(Chat::from_value(Json::Object(fields))?, 0)),
        ["completion", "prompt"] | ["completion", "prompt", "tools"] => {
            read_completion(take("prompt"), take("completion"), fields.remove("tools"))
        }
        ["text"] => match take("text") {
            Json::String(text) => Ok(Content::Text(text)),
            other => Err(expected("text", "a string", Some(&other))),
        },
        _ => {
            let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(Error::format(format!("expected messages and perhaps tools, prompt and completion, or text, found {found}")))
        }
    }
}

fn read_completion(prompt: Json, completion: Json, tools: Option<Json>) -> Result<Content> {
    match (prompt, completion) {
        (Json::String(_), Json::String(_)) if tools.is_some() => {
            Err(Error::format("tools: expected a prompt and a completion of messages, found strings"))
        }
        (Json::String(prompt), Json::String(completion)) => Ok(Content::Completion { prompt, completion }),
        (prompt @ Json::Array(_), completion @ Json::Array(_)) => {
            let mut chat = Chat::from_value(prompt).map_err(|e| e.within("prompt"))?;
            let asked = chat.len();
            chat.set_tools(tools)?;
            chat.append(Chat::from_value(completion).map_err(|e| e.within("completion"))?)?;
            Ok(Content::chat(chat, asked))
        }
        (Json::String(_), other) => Err(expected("completion", "a string, as the prompt is", Some(&other))),
        (Json::Array(_), other) => Err(expected("completion", "an array of messages, as the prompt is", Some(&other))),
        (other, _) => Err(expected("prompt", "a string or an array of messages", Some(&other))),
    }
}

#[cfg(all(test, reference_data))]
mod tests;
