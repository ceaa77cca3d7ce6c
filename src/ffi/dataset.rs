//! Datasets: the examples to train on.
//!
//! A dataset holds texts, completions of prompts, and conversations, as they were written; a model's tokenizer and chat template make
//! tokens of them when training begins. Of a text all is trained on. Of a completion and of a conversation it is, with a masked prompt,
//! what the model is to write: the completion, and each message of the assistant up to and with the token that ends it.
//!
//! Texts and completions have the special tokens that the tokenizer puts around a text, and the token that ends a text behind them, as
//! with TRL's SFTTrainer. A conversation has those that its template writes, and where that ends an answer with none, the token that ends
//! a text behind the last. A message that the template writes differently once others follow it, as Qwen3's does with thoughts, is
//! trained on as a sequence of its own, so that what is trained on is always what the model is given when it has to answer. A template that
//! does not write a message behind its generation prompt makes training fail with MC_ERROR_TEMPLATE, with the example's number.
//!
//! @snippet finetune.c dataset
//! @see @ref train, @ref chat
//!
//! Threads: any. Functions that take a dataset as `const` run concurrently, each other one alone: a second call meanwhile is
//! MC_ERROR_BUSY.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{guard, guard_or};
use super::chat::mc_chat;
use super::error::{mc_error, mc_status};
use super::handle::{Exclusive, Given, Object, OutHandle, free, inert, new_handle};
use super::text::{self, content};
use crate::Dataset;
use crate::error::Result;

/// Examples in their order. Mutable; knows no model.
pub struct mc_dataset {
    _opaque: [u8; 0],
}

impl Object for mc_dataset {
    const NAME: &'static str = "mc_dataset";
    type Inner = Exclusive<Dataset>;
}

/// Makes an empty dataset.
///
/// @return one reference; free it with mc_dataset_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_dataset_new() -> NonNull<mc_dataset> {
    guard_or(inert(), || Ok(new_handle(Exclusive::new(Dataset::new()))))
}

/// Makes a dataset from a file of JSON lines: one example a line, each an object with the fields of one of these.
///
/// - `messages`, and optionally `tools`: a conversation, as for mc_chat_from_json().
/// - `prompt` and `completion`: both text; or both an array of messages, and optionally `tools`: a conversation of which the
///   messages of `completion` alone are trained on.
/// - `text`: text.
///
/// Blank lines are skipped, a byte order mark too; fields that are null count as absent. Other fields are errors, and so are lines of
/// more than 8 MiB. A template that tells the time tells when the file was last changed.
///
/// @param path  the file. Its content is UTF-8.
/// @param out   receives one reference; free it with mc_dataset_free().
/// @param err   NULL, or receives the error, with the number of the line.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND; MC_ERROR_IO; MC_ERROR_FORMAT;
///         MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_dataset_load_jsonl(
    path: MaybeUninit<&c_char>,
    out: MaybeUninit<&mut *mut mc_dataset>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Exclusive::new(Dataset::load_jsonl(text::name(&path, "path")?)?));
        Ok(mc_status::MC_OK)
    })
}

fn add(dataset: MaybeUninit<&mut mc_dataset>, add: impl FnOnce(&mut Dataset) -> Result<()>) -> Result<mc_status> {
    dataset.get("dataset")?.change("dataset", |dataset| {
        add(dataset)?;
        Ok(mc_status::MC_OK)
    })
}

/// Adds a text at the end.
///
/// @param dataset   the dataset.
/// @param text      UTF-8; NULL if `text_len` is 0. Copied.
/// @param text_len  bytes.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_dataset_add_text(
    dataset: MaybeUninit<&mut mc_dataset>,
    text: *const c_char,
    text_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let text = content(text, text_len, "text")?;
        add(dataset, |dataset| dataset.try_add_text(text))
    })
}

/// Adds a prompt and the text that is to follow it at the end. The two are joined as they are: a space between them belongs to one.
///
/// @param dataset         the dataset.
/// @param prompt          UTF-8; NULL if `prompt_len` is 0. Copied.
/// @param prompt_len      bytes.
/// @param completion      UTF-8; NULL if `completion_len` is 0. Copied.
/// @param completion_len  bytes.
/// @param err             NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_dataset_add_completion(
    dataset: MaybeUninit<&mut mc_dataset>,
    prompt: *const c_char,
    prompt_len: usize,
    completion: *const c_char,
    completion_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (prompt, completion) = (content(prompt, prompt_len, "prompt")?, content(completion, completion_len, "completion")?);
        add(dataset, |dataset| dataset.try_add_completion(prompt, completion))
    })
}

/// Adds a conversation at the end, as it is now: its messages, tools, template and variables. A template that tells the time tells
/// that of this call, unless mc_chat_set_time() set another.
///
/// @param dataset  the dataset.
/// @param chat     the conversation. Copied.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_dataset_add_chat(
    dataset: MaybeUninit<&mut mc_dataset>,
    chat: MaybeUninit<&mc_chat>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let chat = chat.get("chat")?;
        let chat = chat.read("chat")?;
        add(dataset, |dataset| dataset.try_add_chat(&chat))
    })
}

/// How many examples there are.
///
/// @param dataset  the dataset; 0 while another call changes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_dataset_len(dataset: MaybeUninit<&mc_dataset>) -> usize {
    guard_or(0, || Ok(dataset.get("dataset")?.read("dataset")?.len()))
}

/// Frees a dataset.
///
/// @param dataset  the dataset, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_dataset_free(dataset: *mut mc_dataset) {
    guard_or((), || free(dataset, "dataset"));
}
