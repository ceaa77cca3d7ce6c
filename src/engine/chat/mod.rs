//! A conversation and the chat template that turns it into a prompt.
//!
//! ```
//! use metal_candle::{Chat, ChatTemplate};
//! let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
//! let template = ChatTemplate::new(source, serde_json::Map::new())?;
//! let mut chat = Chat::new();
//! chat.add("user", "2 + 2?");
//! assert_eq!(chat.render(Some(&template), true)?, "<user>2 + 2?<assistant>");
//! # Ok::<(), metal_candle::Error>(())
//! ```

mod template;
mod control;
mod lesson;
mod parts;
mod tools;
mod program;
mod source;
mod literal;
mod operators;
mod list;
mod view;
mod meter;
mod python;
mod pprint;
mod markup;
mod cases;
mod json;
mod methods;
mod filters;
mod format;
mod texts;
mod time;

use std::borrow::Cow;
use std::time::SystemTime;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::{check_room, owned};
use crate::load::{check_json_room, held_by_fields, held_bytes};
pub use control::ControlTokens;
pub(super) use lesson::Lesson;
pub use parts::{AnswerFormat, AnswerPart, PartStream, ToolCall};
use program::Program;
pub use template::ChatTemplate;
pub(crate) use template::{NAMED_TEMPLATES, named_templates};
pub(super) use tools::{Bare, Piece};

/// A conversation: messages, the tools the model may call, and what else the template reads.
///
/// Message fields beside `role` and `content` (`tool_calls`, `name`, `reasoning_content`, …) reach the template as they came, in
/// their order. As in transformers 5.24, a field that is null counts as absent, and the thoughts of a message, which come as
/// `reasoning_content`, `thinking` or `reasoning`, are visible under the first two of these names, whichever the template reads.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    messages: Vec<Map<String, Json>>,
    tools: Option<Json>,
    program: Option<Program>,
    variables: Map<String, Json>,
    unix_seconds: Option<i64>,
    continues: bool,
    control_tokens: ControlTokens,
}

impl Chat {
    /// A conversation without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// A conversation from an array of messages, or an object with `messages` and optionally `tools`.
    ///
    /// Each message is an object with a string `role`; `content` is a string, an array of parts (objects), or null or absent
    /// beside another field such as `tool_calls`.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` naming the field, such as `messages[3].role`.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::from_value(parse("chat", json)?)
    }

    pub(super) fn from_value(value: Json) -> Result<Self> {
        let mut chat = Self::new();
        let messages = match value {
            Json::Array(messages) => messages,
            Json::Object(fields) => chat.take_fields(fields)?,
            other => return Err(expected("chat", "an array of messages or an object", Some(&other))),
        };
        chat.make_room(messages.len())?;
        for (at, message) in messages.into_iter().enumerate() {
            chat.messages.push(check_message(at, message)?);
        }
        Ok(chat)
    }

    fn take_fields(&mut self, fields: Map<String, Json>) -> Result<Vec<Json>> {
        let mut messages = None;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("messages", Json::Array(value)) => messages = Some(value),
                ("messages", other) => return Err(expected("messages", "an array", Some(&other))),
                ("tools", Json::Null) => {}
                ("tools", value) => self.tools = Some(check_tools(value)?),
                _ => return Err(Error::format(format!("chat: {name:?} is not supported (messages, tools)"))),
            }
        }
        messages.ok_or_else(|| Error::format("messages: expected an array, found nothing"))
    }

    /// Appends a message of plain text.
    pub fn add(&mut self, role: &str, content: &str) {
        let fields = [("role", role), ("content", content)];
        self.messages.push(fields.into_iter().map(|(name, text)| (name.to_owned(), Json::from(text))).collect());
    }

    /// As [`add`](Self::add).
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`; the conversation is then what it was.
    pub(crate) fn try_add(&mut self, role: &str, content: &str) -> Result<()> {
        let (role, content) = (owned("role", role)?, owned("content", content)?);
        self.make_room(1)?;
        let fields = [("role", role), ("content", content)];
        self.messages.push(fields.into_iter().map(|(name, text)| (name.to_owned(), Json::from(text))).collect());
        Ok(())
    }

    fn make_room(&mut self, more: usize) -> Result<()> {
        self.messages.try_reserve(more).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("messages: {more} more do not fit the memory")).with_source(e)
        })
    }

    /// What its messages, tools and variables take, and a copy of them.
    pub(super) fn held_bytes(&self) -> usize {
        let fields = self.messages.iter().chain([&self.variables]).map(held_by_fields).sum::<usize>();
        fields + self.tools.as_ref().map_or(0, held_bytes)
    }

    /// A copy.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`.
    pub(super) fn try_clone(&self) -> Result<Self> {
        check_room("chat", self.held_bytes())?;
        Ok(self.clone())
    }

    /// Appends the messages of another conversation.
    pub(super) fn append(&mut self, other: Self) -> Result<()> {
        self.make_room(other.messages.len())?;
        self.messages.extend(other.messages);
        Ok(())
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Removes the last message.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if there is none.
    pub fn remove_last(&mut self) -> Result<()> {
        match self.messages.pop() {
            Some(_) => Ok(()),
            None => Err(Error::argument("chat: expected a message to remove, found none")),
        }
    }

    /// The messages, and the tools if there are any, as the object that [`from_json`](Self::from_json) takes. The template, its
    /// variables and what else is set are not in it.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`.
    pub fn to_json(&self) -> Result<String> {
        #[derive(serde::Serialize)]
        struct Written<'a> {
            messages: &'a [Map<String, Json>],
            #[serde(skip_serializing_if = "Option::is_none")]
            tools: Option<&'a Json>,
        }
        /// How long it is, so that its memory is asked for at once.
        struct Length(usize);
        impl std::io::Write for Length {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 += bytes.len();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let written = Written { messages: &self.messages, tools: self.tools.as_ref() };
        let invalid = |e: serde_json::Error| Error::format(format!("chat: {e}")).with_source(e);
        let (mut length, mut json) = (Length(0), Vec::new());
        serde_json::to_writer(&mut length, &written).map_err(invalid)?;
        // One more, for the NUL that C gets behind it.
        json.try_reserve_exact(length.0 + 1).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("chat: {} bytes of JSON do not fit the memory", length.0)).with_source(e)
        })?;
        serde_json::to_writer(&mut json, &written).map_err(invalid)?;
        String::from_utf8(json).map_err(|e| Error::format(format!("chat: {e}")).with_source(e))
    }

    /// The tools that the model may call, an array of objects; `None` removes them.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` naming what is not as expected.
    pub fn set_tools_json(&mut self, json: Option<&str>) -> Result<()> {
        self.set_tools(json.map(|json| parse("tools", json)).transpose()?)
    }

    pub(super) fn set_tools(&mut self, tools: Option<Json>) -> Result<()> {
        self.tools = tools.map(check_tools).transpose()?;
        Ok(())
    }

    /// A Jinja template instead of the model's; `None` = the model's.
    ///
    /// # Errors
    /// `ErrorKind::Template` with the line that is wrong; the conversation keeps the template it had.
    pub fn set_template(&mut self, jinja: Option<&str>) -> Result<()> {
        self.program = jinja.map(Program::new).transpose()?;
        Ok(())
    }

    /// A variable of the template, in front of the model's own (`enable_thinking`, `documents`, `bos_token`, …); `None` removes it.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if the name is no identifier or has another meaning, or `json` is not JSON.
    pub fn set_variable_json(&mut self, name: &str, json: Option<&str>) -> Result<()> {
        check_variable_name(name)?;
        match json {
            Some(json) => {
                self.variables.insert(name.to_owned(), parse(&format!("variable {name}"), json)?);
            }
            None => {
                // shift_remove: the order of the others stays.
                self.variables.shift_remove(name);
            }
        }
        Ok(())
    }

    /// What `strftime_now` tells, in seconds since 1970-01-01 00:00 UTC; unset, it is the time of [`render`](Self::render). UTC is
    /// the only time zone, so that a prompt is the same everywhere.
    pub fn set_time(&mut self, unix_seconds: i64) {
        self.unix_seconds = Some(unix_seconds);
    }

    /// Leaves the last message open, so that the model goes on with it instead of beginning another one: the prompt ends where its
    /// content ends, or the content's last part of text; without a content, where its thoughts end.
    ///
    /// A prompt for an answer then has no generation prompt: rendering with one is an error.
    pub fn set_continue_final_message(&mut self, continues: bool) {
        self.continues = continues;
    }

    /// Whether the last message is left open.
    pub(super) fn continues(&self) -> bool {
        self.continues
    }

    /// Whether a user spoke last, and neither a tool nor the model since.
    pub(super) fn begins_turn(&self) -> bool {
        let last = self.messages.iter().rev().nth(usize::from(self.continues));
        last.and_then(|message| message.get("role")).is_some_and(|role| role == "user")
    }

    /// What control tokens are that messages, tools and variables hold; tokens by default, as in transformers, which is what a
    /// host wants whose own code writes the messages. Where others write them, [`ControlTokens::Text`] keeps them from ending a turn.
    ///
    /// Control tokens are the tokenizer's special tokens and those of its added tokens that the template mentions. Roles and other
    /// pieces that a template makes a token of (`'<|' + role + '|>'`) are not looked through, nor are the names of fields.
    ///
    /// With [`ControlTokens::Text`] a conversation has no text that means the same to a tokenizer: [`encode`](Self::encode) gives its
    /// ids, and sessions take it as it is; [`render`](Self::render) and training are errors.
    pub fn set_control_tokens(&mut self, control_tokens: ControlTokens) {
        self.control_tokens = control_tokens;
    }

    /// The prompt, as transformers' `apply_chat_template` makes it. `template`: the model's; `None` if it has none (then [`set_template`](Self::set_template) must have been called).
    ///
    /// It is more lenient than Python in one thing: a loop over None is empty. Tags that load other templates (`include`, `import`,
    /// `extends`, `block`) are not supported.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` without a template; `ErrorKind::InvalidArgument` for a generation prompt behind a message that is left
    /// open, and with [`ControlTokens::Text`]; `ErrorKind::Template` with the template's line: its own `raise_exception`, a failed operation, or more than 50 million steps
    /// (an instruction, or ten bytes of text that are searched or copied; about a second in all, more on a slow processor), 64 MiB of
    /// text, 128 MiB of texts and lists that it holds at once, or 50 nested macros.
    pub fn render(&self, template: Option<&ChatTemplate>, add_generation_prompt: bool) -> Result<String> {
        self.render_first(self.messages.len(), template, add_generation_prompt, None)
    }

    /// As [`render`](Self::render), and `ErrorKind::Cancelled` within a few milliseconds once `cancel` is triggered.
    pub fn render_cancellable(
        &self,
        template: Option<&ChatTemplate>,
        add_generation_prompt: bool,
        cancel: &Cancel,
    ) -> Result<String> {
        self.render_first(self.messages.len(), template, add_generation_prompt, Some(cancel))
    }

    /// The same as if there were only the first `count` messages.
    fn render_first(
        &self,
        count: usize,
        template: Option<&ChatTemplate>,
        add_generation_prompt: bool,
        cancel: Option<&Cancel>,
    ) -> Result<String> {
        let program = self.chosen_program(template)?;
        // As values of the template, which are larger than those of JSON and hold a text once more.
        check_room("chat template", self.held_bytes().saturating_mul(2))?;
        if self.control_tokens == ControlTokens::Text {
            let message = "chat: control tokens of its messages are text, which a rendered text cannot tell: encode it instead";
            return Err(Error::argument(message));
        }
        if self.continues && count == self.messages.len() {
            return self.render_open(program, template, add_generation_prompt, cancel);
        }
        let messages = self.messages[..count].iter().map(message_fields);
        program.render(self.variables_of(template, messages, add_generation_prompt), self.now(), cancel)
    }

    /// With the last message left open.
    ///
    /// # Source
    /// `continue_final_message` of `render_jinja_template` in transformers 5.24: the message gets a mark at its end, and the prompt ends
    /// there.
    fn render_open(
        &self,
        program: &Program,
        template: Option<&ChatTemplate>,
        add_generation_prompt: bool,
        cancel: Option<&Cancel>,
    ) -> Result<String> {
        let refused = |why: &str| Error::argument(format!("continue_final_message: {why}"));
        if add_generation_prompt {
            return Err(refused("the last message is left open, so no generation prompt can follow"));
        }
        let mut messages: Vec<_> = self.messages.iter().map(message_fields).collect();
        let last = messages.last_mut().ok_or_else(|| refused("expected a message, found none"))?.to_mut();
        let open = if last.contains_key("content") { "content" } else { "reasoning_content" };
        let text = match last.get_mut(open) {
            Some(Json::String(text)) => text.clone(),
            Some(Json::Array(parts)) => {
                let text = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
                let Some(Json::String(text)) = text else { return Err(refused("the last message has no part of text")) };
                let open = text.clone();
                text.push_str(OPEN_END);
                open
            }
            _ => return Err(refused("the last message has neither content nor thoughts")),
        };
        // Thoughts stand under two names, and the template reads one of them.
        let names: &[&str] = if open == "content" { &["content"] } else { &["reasoning_content", "thinking", "reasoning"] };
        for name in names {
            if let Some(Json::String(copy)) = last.get_mut(*name)
                && *copy == text
            {
                copy.push_str(OPEN_END);
            }
        }
        let rendered = program.render(self.variables_of(template, messages.into_iter(), false), self.now(), cancel)?;
        let strip = |text: &str| methods::strip(text, None, true, true).to_owned();
        let end = rendered.rfind(OPEN_END.trim()).filter(|_| rendered.contains(&strip(&text)));
        let Some(end) = end else {
            let message = "chat template: continue_final_message: the end of the last message is not in the prompt";
            return Err(Error::new(ErrorKind::Template, message));
        };
        // A template that trims messages shows it by the space of the mark, and has trimmed the one before it.
        let kept = if rendered[end..].starts_with(OPEN_END) {
            &rendered[..end]
        } else {
            methods::strip(&rendered[..end], None, false, true)
        };
        Ok(kept.to_owned())
    }

    /// The template that counts.
    fn chosen_program<'c>(&'c self, template: Option<&'c ChatTemplate>) -> Result<&'c Program> {
        match (&self.program, template) {
            (Some(program), _) => Ok(program),
            (None, Some(template)) => template.program(self.tools.is_some()),
            (None, None) => Err(no_template()),
        }
    }

    fn variables_of<'m>(
        &self,
        template: Option<&ChatTemplate>,
        messages: impl Iterator<Item = Cow<'m, Map<String, Json>>>,
        add_generation_prompt: bool,
    ) -> Vec<(String, Value)> {
        let mut variables: Vec<(String, Value)> = vec![("documents".to_owned(), Value::from(()))];
        let model = template.map(ChatTemplate::variables).into_iter().flatten();
        variables.extend(model.chain(&self.variables).map(|(name, value)| (name.clone(), python::from_json(value))));
        variables.extend([
            ("messages".to_owned(), python::from_objects(messages)),
            ("tools".to_owned(), self.tools.as_ref().map_or(Value::from(()), python::from_json)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ]);
        variables
    }

    fn now(&self) -> i64 {
        self.unix_seconds.unwrap_or_else(now)
    }
}

fn no_template() -> Error {
    Error::new(ErrorKind::NotFound, "chat template: the model has none, and none was set")
}

/// What transformers hands to a template for a message.
fn message_fields(message: &Map<String, Json>) -> Cow<'_, Map<String, Json>> {
    let reasoning = REASONING.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    if reasoning.is_none() && !message.values().any(Json::is_null) {
        return Cow::Borrowed(message);
    }
    let mut fields = Map::new();
    if let Some(reasoning) = reasoning {
        fields.insert("thinking".to_owned(), reasoning.clone());
    }
    let own = message.iter().filter(|(_, value)| !value.is_null());
    fields.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    Cow::Owned(fields)
}

/// The names that a message's thoughts come under; the first that is there counts.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Stands at the end of a message that is left open while it is rendered; what trims the message takes its space.
const OPEN_END: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// `at`: which message it is, for the error.
fn check_message(at: usize, message: Json) -> Result<Map<String, Json>> {
    let Json::Object(fields) = message else {
        return Err(expected(&format!("messages[{at}]"), "an object", Some(&message)));
    };
    if !matches!(fields.get("role"), Some(Json::String(_))) {
        return Err(expected(&format!("messages[{at}].role"), "a string", fields.get("role")));
    }
    match fields.get("content") {
        Some(Json::String(_)) => {}
        Some(Json::Array(parts)) => {
            if let Some((part_at, part)) = parts.iter().enumerate().find(|(_, part)| !part.is_object()) {
                return Err(expected(&format!("messages[{at}].content[{part_at}]"), "an object", Some(part)));
            }
        }
        None | Some(Json::Null) if fields.iter().any(|(name, value)| name != "role" && !value.is_null()) => {}
        other => return Err(expected(&format!("messages[{at}].content"), "a string or an array of parts", other)),
    }
    Ok(fields)
}

fn check_tools(tools: Json) -> Result<Json> {
    let Json::Array(items) = &tools else {
        return Err(expected("tools", "an array", Some(&tools)));
    };
    if let Some((at, item)) = items.iter().enumerate().find(|(_, item)| !item.is_object()) {
        return Err(expected(&format!("tools[{at}]"), "an object", Some(item)));
    }
    Ok(tools)
}

fn check_variable_name(name: &str) -> Result<()> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let is_identifier = name.bytes().enumerate().all(|(at, byte)| is_letter(byte) || (at > 0 && byte.is_ascii_digit()));
    if name.is_empty() || !is_identifier {
        return Err(Error::argument(format!("variable {name:?}: expected an identifier of letters, digits and underscores")));
    }
    if let Some((_, meaning)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
        return Err(Error::argument(format!("variable {name:?}: the name is reserved ({meaning})")));
    }
    if KEYWORDS.contains(&name) {
        return Err(Error::argument(format!("variable {name:?}: the name is a keyword of Jinja")));
    }
    Ok(())
}

fn parse(subject: &str, json: &str) -> Result<Json> {
    check_json_room(subject, json)?;
    serde_json::from_str(json).map_err(|error| Error::format(format!("{subject}: expected JSON: {error}")).with_source(error))
}

pub(super) fn expected(subject: &str, expectation: &str, found: Option<&Json>) -> Error {
    Error::format(format!("{subject}: expected {expectation}, found {}", json_type(found)))
}

fn json_type(value: Option<&Json>) -> &'static str {
    match value {
        None => "nothing",
        Some(Json::Null) => "null",
        Some(Json::Bool(_)) => "a boolean",
        Some(Json::Number(_)) => "a number",
        Some(Json::String(_)) => "a string",
        Some(Json::Array(_)) => "an array",
        Some(Json::Object(_)) => "an object",
    }
}

fn now() -> i64 {
    unix_seconds(SystemTime::now())
}

/// Seconds since 1970; a time before that counts as 1970.
fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

/// The names that [`Chat::set_variable_json`] refuses, and what they are.
const RESERVED: [(&str, &str); 9] = [
    ("messages", "the conversation"),
    ("tools", "set the tools"),
    ("add_generation_prompt", "an argument of rendering"),
    ("raise_exception", "a function of the template"),
    ("strftime_now", "a function of the template"),
    ("namespace", "a function of the template"),
    ("range", "a function of the template"),
    ("dict", "a function of the template"),
    ("loop", "the state of a loop"),
];
const KEYWORDS: [&str; 14] =
    ["and", "or", "not", "in", "is", "if", "else", "for", "true", "false", "none", "True", "False", "None"];
/// Methods and functions that [`source`] writes into a template; [`methods`] and [`python`] answer them.
const SLICE_METHOD: &str = "__slice__";
const ATTRIBUTE_METHOD: &str = "__attribute__";
const CHECK: &str = "__check__";
const CHECK_ATTRIBUTE: &str = "__check_attribute__";
const ITERATE: &str = "__iterate__";
const ITEM_METHOD: &str = "__item__";
const KEY: &str = "__key__";
const TOUCH: &str = "__touch__";
/// The function that whatever repeats begins with.
const LOOK: &str = "__look__";
/// The function that a run begins with.
const START: &str = "__start__";
/// The halves of UTF-16 pairs that a template's literals may hold, from U+D800 on: letters of their own, which no text has.
const SURROGATES: char = '\u{10f800}';
/// A value that a template stores, and the text it makes.
const MAX_BYTES: usize = 64 << 20;
/// Of a namespace, and what a template sets of all of them. Real templates have up to a dozen.
const MAX_ATTRIBUTES: usize = 64;
/// What a run may do, in instructions of minijinja or what takes as long.
const MAX_STEPS: u64 = 50_000_000;
