//! Conversations: messages and tools, and the template that makes a prompt of them.
//!
//! A conversation knows no model: it holds messages, the tools that may be called, and the variables of a chat template. A session
//! evaluates it with its model's template (mc_session_set_chat()), and of a longer one only what is new. The prompt that it becomes can be
//! looked at as text or tokens.
//!
//! @snippet finetune.c ask
//! @see @ref session, @ref generate, @ref dataset
//!
//! Threads: any. Functions that take a conversation as `const` run concurrently, each other one alone: a second call meanwhile is
//! MC_ERROR_BUSY.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::error::{mc_error, mc_status};
use super::handle::{Exclusive, Given, Object, OutHandle, free, inert, new_handle};
use super::model::mc_model;
use super::text::{self, Text, content, given_content, optional_content};
use super::values::{mc_string, mc_tokens};
use crate::error::Result;
use crate::{Chat, ControlTokens};

/// A conversation: messages, tools, and variables of the chat template. Mutable; knows no model.
pub struct mc_chat {
    _opaque: [u8; 0],
}

impl Object for mc_chat {
    const NAME: &'static str = "mc_chat";
    type Inner = Exclusive<Chat>;
}

/// What a control token is that a message, a tool or a variable of a conversation holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_control_tokens {
    /// The token, as if the template had written it: for messages that the host writes itself.
    MC_CONTROL_TOKENS = 0,
    /// Text: whoever writes a message cannot end a turn or begin another one, where the template writes it as it is. What filters of
    /// the template (lower, replace) make of a text is not looked through.
    MC_CONTROL_TEXT = 1,
    /// Not a value: makes the enum 32 bits wide.
    MC_CONTROL_FORCE32 = 0x7fff_ffff,
}

impl Enumeration for mc_control_tokens {
    const NAME: &'static str = "mc_control_tokens";
    type Meaning = ControlTokens;
    const TABLE: &'static [(Self, Self::Meaning)] =
        &[(Self::MC_CONTROL_TOKENS, ControlTokens::Tokens), (Self::MC_CONTROL_TEXT, ControlTokens::Text)];
}

/// Makes an empty conversation.
///
/// @return one reference; free it with mc_chat_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_chat_new() -> NonNull<mc_chat> {
    guard_or(inert(), || Ok(new_handle(Exclusive::new(Chat::new()))))
}

/// Makes a conversation from JSON, as chat APIs exchange it.
///
/// @param json      an array of messages (`role`, `content` and whatever else the template reads), or an object with
///                  `messages` and optionally `tools`; UTF-8.
/// @param json_len  bytes.
/// @param out       receives one reference; free it with mc_chat_free().
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_FORMAT; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_from_json(
    json: MaybeUninit<&c_char>,
    json_len: usize,
    out: MaybeUninit<&mut *mut mc_chat>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Exclusive::new(Chat::from_json(given_content(json, json_len, "json")?)?));
        Ok(mc_status::MC_OK)
    })
}

fn change(chat: MaybeUninit<&mut mc_chat>, change: impl FnOnce(&mut Chat) -> Result<()>) -> Result<mc_status> {
    chat.get("chat")?.change("chat", change)?;
    Ok(mc_status::MC_OK)
}

/// Adds a message at the end.
///
/// @param chat         the conversation.
/// @param role         "system", "user", "assistant", or what else the template knows.
/// @param content      UTF-8; NULL if `content_len` is 0. Copied.
/// @param content_len  bytes.
/// @param err          NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_add(
    chat: MaybeUninit<&mut mc_chat>,
    role: MaybeUninit<&c_char>,
    content: *const c_char,
    content_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (role, content) = (text::name(&role, "role")?, self::content(content, content_len, "content")?);
        change(chat, |chat| chat.try_add(role, content))
    })
}

/// How many messages a conversation has.
///
/// @param chat  the conversation.
/// @return messages; 0 while another call changes the conversation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_chat_len(chat: MaybeUninit<&mc_chat>) -> usize {
    guard_or(0, || Ok(chat.get("chat")?.read("chat")?.len()))
}

/// Removes the last message, such as an answer that is to be given again.
///
/// @param chat  the conversation.
/// @param err   NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also without a message; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_remove_last(chat: MaybeUninit<&mut mc_chat>, err: *mut *mut mc_error) -> mc_status {
    guard(err, || change(chat, Chat::remove_last))
}

/// A conversation as JSON, from which mc_chat_from_json() makes an equal one. A template, its variables and what else was set beside
/// messages and tools are not in it.
///
/// @param chat  the conversation.
/// @param out   receives an object with `messages`, and with `tools` if there are any; free it with mc_string_free().
/// @param err   NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_json(
    chat: MaybeUninit<&mc_chat>,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::long(chat.get("chat")?.read("chat")?.to_json()?)?);
        Ok(mc_status::MC_OK)
    })
}

/// The tools that the model may call, for templates that know tools.
///
/// @param chat      the conversation.
/// @param json      an array of tool definitions, UTF-8; NULL removes them. Copied.
/// @param json_len  bytes.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_FORMAT; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_set_tools_json(
    chat: MaybeUninit<&mut mc_chat>,
    json: *const c_char,
    json_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let json = optional_content(json, json_len, "json")?;
        change(chat, |chat| chat.set_tools_json(json))
    })
}

/// A chat template instead of the model's.
///
/// @param chat       the conversation.
/// @param jinja      a Jinja template as in tokenizer_config.json, UTF-8; NULL = the model's. Copied.
/// @param jinja_len  bytes.
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_TEMPLATE if it does not parse; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_set_template(
    chat: MaybeUninit<&mut mc_chat>,
    jinja: *const c_char,
    jinja_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let jinja = optional_content(jinja, jinja_len, "jinja")?;
        change(chat, |chat| chat.set_template(jinja))
    })
}

/// A variable of the template, such as "enable_thinking"; it overrides what the model's files say.
///
/// @param chat      the conversation.
/// @param name      the variable.
/// @param json      its value as JSON, such as `false` or `"text"`, UTF-8; NULL removes the variable. Copied.
/// @param json_len  bytes.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_FORMAT; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_set_variable_json(
    chat: MaybeUninit<&mut mc_chat>,
    name: MaybeUninit<&c_char>,
    json: *const c_char,
    json_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (name, json) = (text::name(&name, "name")?, optional_content(json, json_len, "json")?);
        change(chat, |chat| chat.set_variable_json(name, json))
    })
}

/// The clock that a template's `strftime_now` reads, for renders that must repeat.
///
/// @param chat          the conversation; ignored while another call uses it.
/// @param unix_seconds  seconds since 1970-01-01 00:00 UTC. Default: the time of the render.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_chat_set_time(chat: MaybeUninit<&mut mc_chat>, unix_seconds: i64) {
    guard_or((), || {
        chat.get("chat")?.change("chat", |chat| {
            chat.set_time(unix_seconds);
            Ok(())
        })
    });
}

/// Whether the last message is left open: the prompt ends where its content ends (the content's last part of text; without a
/// content, its thoughts), and the model goes on with it instead of beginning another message.
///
/// @param chat       the conversation; ignored while another call uses it.
/// @param continues  default: false. With true a prompt has no generation prompt: mc_session_set_chat() makes it without one, and
///                   mc_model_render_chat() and mc_model_encode_chat() must be called so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_chat_set_continue_final_message(chat: MaybeUninit<&mut mc_chat>, continues: bool) {
    guard_or((), || {
        chat.get("chat")?.change("chat", |chat| {
            chat.set_continue_final_message(continues);
            Ok(())
        })
    });
}

/// What control tokens are that messages, tools and variables hold: the tokenizer's special tokens, and those of its added
/// tokens that the chat template mentions. A template may make a token of a role or another short text; those are not looked
/// through, and neither are the names of fields.
///
/// @param chat            the conversation.
/// @param control_tokens  default: MC_CONTROL_TOKENS. With MC_CONTROL_TEXT no text means the same as the conversation: sessions
///                        take it as it is, mc_model_encode_chat() gives its ids, mc_model_render_chat() and training refuse it.
/// @param err             NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_set_control_tokens(
    chat: MaybeUninit<&mut mc_chat>,
    control_tokens: MaybeUninit<mc_control_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let control_tokens = checked(control_tokens, "control_tokens")?;
        change(chat, |chat| {
            chat.set_control_tokens(control_tokens);
            Ok(())
        })
    })
}

/// The prompt that a conversation becomes with a model's chat template.
///
/// @param model                  the model.
/// @param chat                   the conversation.
/// @param add_generation_prompt  whether to open the assistant's turn at the end.
/// @param out                    receives one reference; free it with mc_string_free().
/// @param err                    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_NOT_FOUND if neither model nor conversation has a template; MC_ERROR_TEMPLATE if the template
///         fails or refuses the conversation; MC_ERROR_INVALID_ARGUMENT also for a generation prompt behind a message that is
///         left open, and with MC_CONTROL_TEXT; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_render_chat(
    model: MaybeUninit<&mc_model>,
    chat: MaybeUninit<&mc_chat>,
    add_generation_prompt: bool,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, chat) = (model.get("model")?, chat.get("chat")?);
        let template = model.model.template_files();
        out.set(Text::long(chat.read("chat")?.render(Some(template), add_generation_prompt)?)?);
        Ok(mc_status::MC_OK)
    })
}

/// The token ids of the prompt that a conversation becomes with a model's chat template: what mc_session_set_chat() evaluates.
///
/// @param model                  the model.
/// @param chat                   the conversation.
/// @param add_generation_prompt  whether to open the assistant's turn at the end.
/// @param out                    receives one reference; free it with mc_tokens_free().
/// @param err                    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_NOT_FOUND if neither model nor conversation has a template, or the model has no tokenizer;
///         MC_ERROR_TEMPLATE if the template fails or refuses the conversation; MC_ERROR_INVALID_ARGUMENT also for a generation
///         prompt behind a message that is left open; MC_ERROR_UNSUPPORTED with MC_CONTROL_TEXT for a tokenizer that makes
///         control tokens of plain text; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_encode_chat(
    model: MaybeUninit<&mc_model>,
    chat: MaybeUninit<&mc_chat>,
    add_generation_prompt: bool,
    out: MaybeUninit<&mut *mut mc_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, chat) = (model.get("model")?, chat.get("chat")?);
        out.set(chat.read("chat")?.encode(&model.model, add_generation_prompt, None)?);
        Ok(mc_status::MC_OK)
    })
}

/// Frees a conversation.
///
/// @param chat  the conversation, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_chat_free(chat: *mut mc_chat) {
    guard_or((), || free(chat, "chat"));
}
