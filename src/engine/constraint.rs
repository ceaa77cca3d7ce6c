//! Answers that keep to a JSON schema: at each token, which tokens may come next.
//!
//! The schema becomes a grammar over bytes (by the `llguidance` crate), and the vocabulary a tree of the tokens' bytes. A walk
//! through both gives one bit a token; the sampler rules the others out before it chooses.
//!
//! ```text
//! {"type": "boolean"} allows "t", "tr", "true", "f", …; after "t": "r", "ru", "rue"; after "true": an end-of-sequence token
//! ```

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{CancellationHandle, JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use super::cancel::Cancel;
use super::chat::{Bare, Piece};
use super::schema::{self, Adapted};
use super::{Model, Tokenizer};
use crate::error::{Error, ErrorKind, Result};

/// What a model's tokens are as bytes, in the tree that grammars walk through.
pub(super) struct Vocabulary {
    factory: ParserFactory,
    eos: Vec<u32>,
}

impl Vocabulary {
    /// # Errors
    /// `Unsupported` for a tokenizer whose tokens are not known as bytes.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, eos: &[u32]) -> Result<Self> {
        let mut words = tokenizer.token_bytes(vocab_size)?;
        let mut eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        eos.sort_unstable();
        eos.dedup();
        // What ends an answer is never a part of its text, whatever its spelling.
        eos.iter().for_each(|&id| words[id as usize].clear());
        // Deeper than the tree's nodes can say; shorter tokens spell the same.
        words.iter_mut().filter(|word| word.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        let factory = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, INVALID_TOKEN), &words);
            let trie = if eos.is_empty() { trie } else { trie.with_eos_tokens(&eos) };
            ParserFactory::new_simple(&(Arc::new(ApproximateTokEnv::new(trie)) as _))
        }));
        let mut factory = factory.map_err(|e| Error::unsupported(format!("vocabulary: {}", one_line(&e.to_string()))))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, eos })
    }
}

/// The place of an answer in its grammar.
pub(super) struct Constraint {
    /// The option that asked for it.
    subject: &'static str,
    matcher: Matcher,
    eos: Vec<u32>,
    /// Of the last call of [`allowed`](Self::allowed).
    allowed: SimpleVob,
    cancel: Option<Cancel>,
    _watch: Option<Watch>,
}

impl Constraint {
    /// # Errors
    /// `InvalidArgument` for a schema that is no JSON, no schema, too large, or uses what is not implemented; `Cancelled`; as
    /// [`Model::tokenizer`] and [`Vocabulary::new`].
    pub fn new(model: &Model, schema: &str, cancel: Option<&Cancel>) -> Result<Self> {
        let schema = schema.to_owned();
        Self::of(model, move || grammar(&schema), cancel)
    }

    /// The place of an answer that has to be one of these texts. `is_read`: whether a special token is a mark of theirs; the others
    /// are no text, and what looks like one is spelled in letters.
    ///
    /// # Errors
    /// As [`new`](Self::new), for a schema in them.
    pub fn of_pieces(model: &Model, pieces: Vec<Piece>, is_read: impl Fn(&str) -> bool, cancel: Option<&Cancel>) -> Result<Self> {
        let eos = model.eos_tokens().to_vec();
        let mut marks = model.tokenizer()?.special_tokens();
        marks.retain(|(token, _)| is_read(token));
        let grammar = move || Ok(TopLevelGrammar::from_lark(Lark::of(&pieces, marks, &eos)?));
        Ok(Self { subject: CALLS, ..Self::of(model, grammar, cancel).map_err(|error| about(CALLS, error))? })
    }

    fn of(
        model: &Model,
        grammar: impl FnOnce() -> Result<TopLevelGrammar> + Send + 'static,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        let vocabulary = model.vocabulary().map_err(|error| error.within(SUBJECT))?;
        // Schemas nest, and so does what reads them: a thread of its own has a stack for the deepest one that passes the checks.
        let (sender, receiver) = sync_channel(1);
        let compiled = model.clone();
        let compile = move || {
            let parser = compiled
                .vocabulary()
                .and_then(|vocabulary| vocabulary.factory.create_parser(grammar()?).map_err(|e| failure(&e.to_string())));
            // Whoever was cancelled waits no more.
            let _ = sender.send(parser);
        };
        let builder = thread::Builder::new().name("mc-json-schema".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn(compile).map_err(no_thread)?;
        // The compiler cannot be stopped. What passed the checks takes seconds at most, after which its thread ends by itself.
        let parser = loop {
            match receiver.recv_timeout(LOOK) {
                Ok(parser) => break parser,
                Err(RecvTimeoutError::Timeout) => cancel.map_or(Ok(()), Cancel::check)?,
                Err(RecvTimeoutError::Disconnected) => break Err(failure("panic: while it was read")),
            }
        };
        // It has nothing left to do: but for one that was cancelled, none outlives the call with its hold on the model.
        let _ = thread.join();
        let mut matcher = Matcher::new(Ok(parser?));
        let watch = match cancel {
            None => None,
            Some(cancel) => {
                matcher = matcher.into_cancellable();
                matcher.cancellation_handle().map(|handle| Watch::new(cancel.clone(), handle)).transpose()?
            }
        };
        let (eos, cancel) = (vocabulary.eos.clone(), cancel.cloned());
        Ok(Self { subject: SUBJECT, matcher, eos, allowed: SimpleVob::new(), cancel, _watch: watch })
    }

    /// Why the grammar did not get further: what it says, unless it was cancelled.
    fn stopped(&self, reason: &str) -> Error {
        if self.cancel.as_ref().is_some_and(Cancel::is_triggered) {
            Error::cancelled()
        } else {
            about(self.subject, step_failure(reason))
        }
    }

    /// The tokens that may come next: bit `id % 32` of word `id / 32`. End-of-sequence tokens are among them where the text may
    /// end; without `eos` only where nothing else may follow.
    ///
    /// # Errors
    /// `Unsupported` for a grammar that passes its limits on the way.
    pub fn allowed(&mut self, eos: bool) -> Result<&[u32]> {
        self.allowed = match self.matcher.compute_mask() {
            Ok(allowed) => allowed,
            Err(e) => return Err(self.stopped(&e.to_string())),
        };
        if !eos {
            let ends: Vec<u32> = self.eos.iter().copied().filter(|&id| self.allowed.is_allowed(id)).collect();
            ends.iter().for_each(|&id| self.allowed.disallow_token(id));
            if self.allowed.is_zero() {
                ends.iter().for_each(|&id| self.allowed.allow_token(id));
            }
        }
        Ok(self.allowed.as_slice())
    }

    /// Goes on behind a token that was allowed and ends nothing; `true` if the text is complete and nothing may follow.
    ///
    /// # Errors
    /// As [`allowed`](Self::allowed).
    pub fn accept(&mut self, token: u32) -> Result<bool> {
        if let Err(e) = self.matcher.consume_token(token) {
            return Err(self.stopped(&e.to_string()));
        }
        Ok(self.matcher.stop_reason() == StopReason::NoExtension)
    }
}

/// A thread that hands a cancel flag on to a grammar, which looks at its own alone.
struct Watch {
    /// Dropped, it ends the thread.
    ends: Option<std::sync::mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn new(cancel: Cancel, handle: CancellationHandle) -> Result<Self> {
        let (ends, ended) = sync_channel(0);
        let watch = move || {
            while matches!(ended.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout)) {
                if cancel.is_triggered() {
                    handle.cancel();
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("mc-json-schema-cancel".to_owned()).stack_size(64 << 10).spawn(watch);
        Ok(Self { ends: Some(ends), thread: Some(thread.map_err(no_thread)?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.take();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("{SUBJECT}: no thread: {error}"))
}

/// How often a cancel flag is looked at.
const LOOK: Duration = Duration::from_millis(20);

const SUBJECT: &str = "json_schema";
const CALLS: &str = "tool_choice";

/// An error of a schema as one of the option that the schema came with.
fn about(subject: &str, error: Error) -> Error {
    match error.message().strip_prefix(SUBJECT) {
        Some(message) if subject != SUBJECT => Error::new(error.kind(), format!("{subject}{message}")),
        _ => error,
    }
}

/// The tree has ten bits for the depth of a token.
const MAX_TOKEN_BYTES: usize = 1000;

/// Larger than what a model can fill in; the time for thousands of properties grows with their square.
const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// All tools that an answer may call: some hundred, each of a schema of a few kilobytes.
const MAX_CALL_BYTES: usize = 512 << 10;

/// Values within values, all that `$ref` names added up: the deepest that reading can get.
const MAX_LEVELS: usize = 4096;

/// Values, each `$ref` replaced by what it names: a few lines that name each other twice are 2ⁿ.
const MAX_VALUES: usize = 1 << 16;

/// Each pair is compared, as two must not match one name.
const MAX_PATTERNS: usize = 64;

/// 16 kB for each level; only what is used becomes memory.
const STACK_BYTES: usize = 64 << 20;

/// A space, or a line break and an indentation. Any number of them would conform as well, and a small model then
/// writes spaces until max_tokens.
const WHITESPACE: &str = r"\x20|\x0A[\x20\x09]{0,20}";

/// What may follow a backslash: escapes that JSON and Python read alike, as arguments of calls are read by either. So there is no
/// `\/`, and `u` is for control characters alone.
const ESCAPES: &str = "nrbtf\\\"u";

/// Whether a schema is short enough to be read.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn check_schema(schema: &str) -> Result<()> {
    if schema.len() > MAX_SCHEMA_BYTES {
        return Err(Error::argument(format!("{SUBJECT}: expected at most {MAX_SCHEMA_BYTES} bytes, found {}", schema.len())));
    }
    Ok(())
}

/// The schema as a grammar.
fn grammar(schema: &str) -> Result<TopLevelGrammar> {
    check_schema(schema)?;
    match schema::adapt(schema).map_err(|error| error.within(SUBJECT))? {
        Adapted::Schema(schema) => Ok(TopLevelGrammar::from_json_schema(checked(schema)?)),
        Adapted::Pattern(pattern) => Ok(TopLevelGrammar::from_regex(&pattern)),
    }
}

/// Texts as a grammar in the notation of Lark, as `llguidance` reads it.
struct Lark<'t> {
    /// Special tokens that stand for their texts.
    marks: Vec<(String, u32)>,
    eos: &'t [u32],
    /// Rules and terminals that are named.
    named: String,
    names: usize,
    /// The rules of schemas, by their texts.
    schemas: HashMap<String, String>,
    schema_bytes: usize,
}

impl<'t> Lark<'t> {
    fn of(pieces: &[Piece], mut marks: Vec<(String, u32)>, eos: &'t [u32]) -> Result<String> {
        // The longest is meant where one is the beginning of another.
        marks.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let mut lark = Self { marks, eos, named: String::new(), names: 0, schemas: HashMap::new(), schema_bytes: 0 };
        let start = lark.sequence(pieces)?;
        Ok(format!("start: {start}\n{}", lark.named))
    }

    fn name(&mut self, first: char, definition: &str) -> String {
        let name = format!("{first}{}", self.names);
        self.names += 1;
        self.named.push_str(&format!("{name}: {definition}\n"));
        name
    }

    fn sequence(&mut self, pieces: &[Piece]) -> Result<String> {
        let parts = pieces.iter().map(|piece| self.piece(piece)).collect::<Result<Vec<String>>>()?;
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Ok(if parts.is_empty() { "\"\"".to_string() } else { parts.join(" ") })
    }

    fn piece(&mut self, piece: &Piece) -> Result<String> {
        Ok(match piece {
            Piece::Text(text) => self.text(text),
            Piece::Json(schema) => self.json(schema)?,
            Piece::Bare(bare) => self.bare(bare),
            Piece::Choice(choices) => {
                let may_be_empty = choices.iter().any(Vec::is_empty);
                let choices = choices.iter().filter(|choice| !choice.is_empty());
                let choices = choices.map(|choice| self.sequence(choice)).collect::<Result<Vec<_>>>()?;
                let optional = if may_be_empty { "?" } else { "" };
                if choices.is_empty() { String::new() } else { format!("({}){optional}", choices.join(" | ")) }
            }
            Piece::Optional(pieces) => format!("({})?", self.sequence(pieces)?),
            Piece::Many(pieces, between) => {
                let one = self.sequence(pieces)?;
                let (name, between) = (self.name('r', &one), self.text(between));
                format!("{name} ({between} {name})*")
            }
        })
    }

    /// Letters, and the marks among them that are tokens. What ends an answer is left to the end of the grammar.
    fn text(&self, text: &str) -> String {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let at = |from: usize| self.marks.iter().find(|(token, _)| rest[from..].starts_with(token.as_str()));
            let found = rest.char_indices().find_map(|(from, _)| at(from).map(|token| (from, token)));
            let (from, token) = found.map_or((rest.len(), None), |(from, token)| (from, Some(token)));
            if from > 0 {
                parts.push(literal(&rest[..from]));
            }
            rest = &rest[from..];
            if let Some((token, id)) = token {
                rest = &rest[token.len()..];
                if !self.eos.contains(id) {
                    parts.push(format!("<[{id}]>"));
                }
            }
        }
        parts.join(" ")
    }

    fn json(&mut self, schema: &Value) -> Result<String> {
        let mut schema = schema.clone();
        schema::remove_annotations(&mut schema).map_err(|error| error.within(SUBJECT))?;
        let text = schema.to_string();
        // What may be left out is written several times.
        if let Some(name) = self.schemas.get(&text) {
            return Ok(name.clone());
        }
        self.schema_bytes += text.len();
        for (found, most) in [(text.len(), MAX_SCHEMA_BYTES), (self.schema_bytes, MAX_CALL_BYTES)] {
            if found > most {
                let of = if most == MAX_CALL_BYTES { "in all schemas" } else { "in a schema" };
                return Err(Error::argument(format!(
                    "{SUBJECT}: expected at most {most} bytes {of} without their descriptions, found {found}"
                )));
            }
        }
        let name = match schema::adapt(&text).map_err(|error| error.within(SUBJECT))? {
            Adapted::Schema(schema) => self.name('r', &format!("%json {}", checked(schema)?)),
            Adapted::Pattern(pattern) => self.name('T', &regex(&pattern)),
        };
        self.schemas.insert(text, name.clone());
        Ok(name)
    }

    fn bare(&mut self, Bare { before, after, end, patterns, may_be_empty }: &Bare) -> String {
        let before = self.text(before);
        // What a special token ends, cannot hold it.
        let is_token = self.marks.iter().any(|(token, _)| after.starts_with(token.as_str()));
        let holds_end = self.name('T', &format!("/(?s:.*)/ {} /(?s:.*)/", literal(end)));
        let mut definition = format!("/(?s:.*)/ & ~{holds_end}");
        for pattern in patterns {
            definition.push_str(&format!(" & {}", regex(pattern)));
        }
        if !is_token {
            let value = self.name('T', &definition);
            let ended = self.name('T', &format!("{value} {}", literal(after)));
            return format!("{before} {ended}");
        }
        // An empty lexeme is none.
        let value = self.name('T', &format!("{definition} & /(?s:.+)/"));
        format!("{before} {value}{} {}", if *may_be_empty { "?" } else { "" }, self.text(after))
    }
}

fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression between slashes.
fn regex(pattern: &str) -> String {
    let (mut out, mut escaped) = (String::from("/"), false);
    for letter in pattern.chars() {
        match letter {
            '/' if !escaped => out.push_str("\\/"),
            '\n' if !escaped => out.push_str("\\n"),
            _ => out.push(letter),
        }
        escaped = letter == '\\' && !escaped;
    }
    out.push('/');
    out
}

/// The schema as the grammar's compiler takes it.
fn checked(mut value: Value) -> Result<Value> {
    let found = match &value {
        // The compiler's own settings would stand there.
        Value::Object(keywords) if keywords.contains_key(SETTINGS) => {
            return Err(Error::argument(format!("{SUBJECT}: {SETTINGS:?} is not a keyword of JSON Schema")));
        }
        Value::Object(_) | Value::Bool(false) => "",
        Value::Bool(true) => {
            value = Value::Object(serde_json::Map::new());
            ""
        }
        Value::Null => "null",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
    };
    if !found.is_empty() {
        return Err(Error::argument(format!("{SUBJECT}: expected an object or a boolean, found {found}")));
    }
    Extent::check(&value)?;
    if value.is_object() {
        let options = JsonCompileOptions {
            whitespace_pattern: Some(WHITESPACE.to_owned()),
            json_allowed_escapes: Some(ESCAPES.to_owned()),
            ..Default::default()
        };
        options.apply_to(&mut value);
    }
    Ok(value)
}

const SETTINGS: &str = "x-guidance";

/// How large a schema gets while it is read: reading follows each `$ref` where it stands.
struct Extent<'s> {
    root: &'s Value,
    /// What `$ref` names, and the values in it; 1 while it is counted, as recursion stays a reference.
    values: HashMap<&'s str, usize>,
    levels: usize,
}

impl<'s> Extent<'s> {
    fn check(root: &'s Value) -> Result<()> {
        let mut extent = Self { root, values: HashMap::new(), levels: 0 };
        extent.add_levels(root)?;
        let patterns = patterns(root);
        if patterns > MAX_PATTERNS {
            return Err(Error::argument(format!(
                "{SUBJECT}: patternProperties: expected at most {MAX_PATTERNS} in all, found {patterns}"
            )));
        }
        // What is only defined is not read.
        let read = root.as_object().into_iter().flatten().filter(|(key, _)| !["$defs", "definitions"].contains(&key.as_str()));
        let own = reference(root).and_then(|name| extent.named(name)).map_or(0, |value| extent.values(value));
        let values = read.fold(own, |sum, (_, value)| extent.values(value).saturating_add(sum));
        if values > MAX_VALUES {
            return Err(Error::argument(format!(
                "{SUBJECT}: expected at most {MAX_VALUES} values once each $ref is replaced, found more"
            )));
        }
        Ok(())
    }

    /// Adds the levels of a value and of everything that is named in it, each name once.
    fn add_levels(&mut self, value: &'s Value) -> Result<()> {
        let mut open = vec![value];
        let mut seen = HashSet::new();
        while let Some(value) = open.pop() {
            let mut names = Vec::new();
            self.levels += depth(value, &mut names);
            if self.levels > MAX_LEVELS {
                return Err(Error::argument(format!(
                    "{SUBJECT}: expected at most {MAX_LEVELS} levels, those behind each $ref included, found more"
                )));
            }
            let new = names.into_iter().filter(|name| seen.insert(*name));
            open.extend(new.filter_map(|name| self.named(name)));
        }
        Ok(())
    }

    /// The values in a value, those that are named in it included.
    fn values(&mut self, value: &'s Value) -> usize {
        let children: usize = match value {
            Value::Array(items) => items.iter().fold(0, |sum, item| self.values(item).saturating_add(sum)),
            Value::Object(fields) => fields.values().fold(0, |sum, field| self.values(field).saturating_add(sum)),
            _ => 0,
        };
        let named = reference(value).map_or(0, |name| match self.values.get(name) {
            Some(&values) => values,
            None => {
                self.values.insert(name, 1);
                let values = self.named(name).map_or(0, |value| self.values(value));
                self.values.insert(name, values);
                values
            }
        });
        children.saturating_add(named).saturating_add(1)
    }

    /// As the compiler looks it up; what it does not find there is its error to tell.
    fn named(&self, name: &str) -> Option<&'s Value> {
        let path = name.strip_prefix('#')?.trim_start_matches('/');
        path.split('/').filter(|part| !part.is_empty()).try_fold(self.root, |value, part| match value {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            value => value.get(part),
        })
    }
}

fn reference(value: &Value) -> Option<&str> {
    value.get("$ref")?.as_str()
}

fn patterns(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(patterns).sum(),
        Value::Object(fields) => {
            let own = fields.get("patternProperties").and_then(Value::as_object).map_or(0, serde_json::Map::len);
            own + fields.values().map(patterns).sum::<usize>()
        }
        _ => 0,
    }
}

/// Values within values, and the names met on the way. JSON texts nest 128 deep at most.
fn depth<'s>(value: &'s Value, names: &mut Vec<&'s str>) -> usize {
    names.extend(reference(value));
    let deepest = match value {
        Value::Array(items) => items.iter().map(|item| depth(item, names)).max(),
        Value::Object(fields) => fields.values().map(|field| depth(field, names)).max(),
        _ => None,
    };
    deepest.unwrap_or(0) + 1
}

/// Why a schema did not become a grammar. The compiler panics on some numbers, as its arithmetic overflows.
fn failure(reason: &str) -> Error {
    let kind = if reason.starts_with("panic: ") { ErrorKind::Unsupported } else { ErrorKind::InvalidArgument };
    Error::new(kind, format!("{SUBJECT}: {}", one_line(reason)))
}

/// Why a grammar did not get further.
fn step_failure(reason: &str) -> Error {
    let kind = if reason.starts_with("panic: ") { ErrorKind::Panic } else { ErrorKind::Unsupported };
    let line = one_line(reason);
    // A reference to itself and nothing else, for one.
    let line = if line.starts_with("noExtension") { "no text conforms to it" } else { &line };
    Error::new(kind, format!("{SUBJECT}: {line}"))
}

/// Without what llguidance adds below (a trace, its state) or shows of the schema, and in lower case as our messages are.
fn one_line(reason: &str) -> String {
    let mut lines = reason.lines().map(str::trim).take_while(|line| !line.starts_with('<'));
    let line = lines.next().unwrap_or_default().trim_end_matches('.');
    // The place of a tool's schema in a grammar that nobody sees.
    let line = line.split_once(": failed to compile JSON schema: ").map_or(line, |(_, reason)| reason);
    let mut line: String = line.chars().take(MAX_REASON).collect();
    for (theirs, ours) in REWORDED {
        line = line.replace(theirs, ours);
    }
    if let Some(cause) = lines.find_map(|line| line.strip_prefix("error: ")) {
        line = format!("{line} {cause}");
    }
    let mut characters = line.chars();
    match characters.next() {
        Some(first) if !characters.as_str().starts_with(char::is_uppercase) => first.to_lowercase().chain(characters).collect(),
        _ => line,
    }
}

/// What a reason says about settings that our caller does not have.
const REWORDED: [(&str, &str); 2] = [
    (
        "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf",
        "oneOf: expected cases that exclude one another, as by a property with another const in each",
    ),
    (" without 'referencing' feature; ref", ", found"),
];

/// Some reasons quote what they are about.
const MAX_REASON: usize = 300;
