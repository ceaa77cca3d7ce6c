//! Rerankers: how well documents answer a query, by models that read both at once.
//!
//! mc_rerank() gives a score for each document: slower than comparing embeddings, and closer to what was meant, so it usually sorts
//! anew what a search by embeddings has found. It is for cross-encoders (networks `…ForSequenceClassification` with one label, of the
//! families of BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, MPNet, Nomic BERT, ModernBERT, EuroBERT and decoders) and for causal
//! models that say "yes" or "no", such as Qwen3-Reranker. A pair has the same score alone and in any company, bit for bit on the CPU.
//!
//! @snippet rerank.c rerank
//! @see @ref embed, @ref model
//!
//! Threads: any; a call runs on the thread that makes it. Options are set by one thread at a time, with the functions that take them without
//! `const`, and then used concurrently.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::cancel::{given_cancel, mc_cancel};
use super::error::{mc_error, mc_status};
use super::handle::{Builder, Given, Object, Out, free, inert, new_handle, optional};
use super::model::mc_model;
use super::text::{content, contents, optional_content, optional_name};
use crate::engine::options::{Fields, OptionValue};
use crate::error::{Error, Result};
use crate::{RerankOptions, ScoreActivation};

/// What becomes of a logit, which any number may be; either way more is better.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_score_activation {
    /// What the model's files say, else the sigmoid.
    MC_SCORE_ACTIVATION_DEFAULT = 0,
    /// Nothing.
    MC_SCORE_ACTIVATION_IDENTITY = 1,
    /// A number from 0 to 1.
    MC_SCORE_ACTIVATION_SIGMOID = 2,
    /// Not a value: makes the enum 32 bits wide.
    MC_SCORE_ACTIVATION_FORCE32 = 0x7fff_ffff,
}

impl Enumeration for mc_score_activation {
    const NAME: &'static str = "mc_score_activation";
    type Meaning = Option<ScoreActivation>;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_SCORE_ACTIVATION_DEFAULT, None),
        (Self::MC_SCORE_ACTIVATION_IDENTITY, Some(ScoreActivation::Identity)),
        (Self::MC_SCORE_ACTIVATION_SIGMOID, Some(ScoreActivation::Sigmoid)),
    ];
}

/// How to rerank: a builder. What is not set is what the model's directory says. A bad value is remembered and reported by the first
/// call that uses the options, as MC_ERROR_INVALID_ARGUMENT with the field, the value and what was expected. Can be used many times.
pub struct mc_rerank_options {
    _opaque: [u8; 0],
}

impl Object for mc_rerank_options {
    const NAME: &'static str = "mc_rerank_options";
    type Inner = Builder<RerankOptions>;
}

/// How well each document answers the query.
///
/// Equal to `CrossEncoder.predict` of sentence-transformers 6.2, and for a Qwen3-Reranker whose files have no template for pairs to the
/// code of its model card.
///
/// @param model          the model: see MC_CAPABILITY_RERANK.
/// @param query          UTF-8. NULL if `query_len` is 0.
/// @param query_len      bytes.
/// @param documents      `documents_len` texts in UTF-8.
/// @param document_lens  the bytes of each document; a document of 0 bytes may be NULL. NULL = all documents end with a NUL.
/// @param documents_len  documents; may be 0.
/// @param options        the options, or NULL.
/// @param out            receives one score for each document, in their order.
/// @param out_len        `documents_len`.
/// @param err            NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_UNSUPPORTED for a model that is no reranker, saying why, as one with more labels than one is;
///         MC_ERROR_INVALID_ARGUMENT also for another `out_len`, for options out of their range and for a pair without a token;
///         MC_ERROR_INVALID_UTF8 naming the text; MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_OUT_OF_MEMORY;
///         MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_rerank(
    model: MaybeUninit<&mc_model>,
    query: *const c_char,
    query_len: usize,
    documents: MaybeUninit<&*const c_char>,
    document_lens: *const usize,
    documents_len: usize,
    options: *const mc_rerank_options,
    out: MaybeUninit<&mut f32>,
    out_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let query = content(query, query_len, "query")?;
        let documents = contents(documents, document_lens, documents_len, ("documents", "document_lens"))?;
        let out = Out::new(out, "out")?;
        let model = model.get("model")?;
        let options = match optional(options, "options")? {
            Some(options) => options.options()?,
            None => RerankOptions::default(),
        };
        if out_len != documents_len {
            return Err(Error::argument(format!("out_len: expected {documents_len} scores, found {out_len}")));
        }
        out.fill(&model.model.rerank(query, &documents, &options)?);
        Ok(mc_status::MC_OK)
    })
}

/// Makes rerank options: all as the model's directory says.
///
/// @return one reference; free it with mc_rerank_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_rerank_options_new() -> NonNull<mc_rerank_options> {
    guard_or(inert(), || Ok(new_handle(Builder::new(RerankOptions::default()))))
}

fn set(options: MaybeUninit<&mut mc_rerank_options>, setter: impl FnOnce(&mut RerankOptions) -> Result<()>) {
    guard_or((), || options.get("options")?.set(setter));
}

fn set_field(options: MaybeUninit<&mut mc_rerank_options>, name: &str, value: impl Into<OptionValue>) {
    set(options, |rerank| rerank.set_field(name, value.into()));
}

/// Sets options from JSON, each as its setter does, in the order in which they are written.
///
/// `activation`: "identity" or "sigmoid". `max_length`, `batch_size`: numbers. `prompt_name`, `prompt`: texts, each in place of the other.
/// A flag that cancels has its setter alone.
///
/// @param options   the options.
/// @param json      an object, UTF-8, such as `{"max_length": 512, "activation": "identity"}`; a member that is null has its default again.
///                  Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a name that stands
///                  in an object twice or is none of these, and a value of another type or out of its setter's range. NULL = all of these
///                  have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_json(
    options: MaybeUninit<&mut mc_rerank_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |rerank| rerank.set_fields(optional_content(json, json_len, "json")?));
}

/// What becomes of each logit.
///
/// @param options     the options.
/// @param activation  MC_SCORE_ACTIVATION_DEFAULT (the default) = what the model's files say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_activation(
    options: MaybeUninit<&mut mc_rerank_options>,
    activation: MaybeUninit<mc_score_activation>,
) {
    set(options, |rerank| {
        rerank.activation = checked(activation, "activation")?;
        Ok(())
    });
}

/// How much of a long pair counts; of the longer of its texts the rest is cut off, then of both.
///
/// @param options  the options.
/// @param value    tokens of query and document, with those that the tokenizer or the chat template adds; 0 (the default) = the model's
///                 own limit. More than that and mc_model_context_length() is an error of mc_rerank().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_max_length(options: MaybeUninit<&mut mc_rerank_options>, value: usize) {
    set_field(options, "max_length", value);
}

/// The most pairs that go through the network together, on each thread: fewer take less memory and answer a cancel sooner. Changes no
/// score.
///
/// @param options  the options.
/// @param value    pairs; 0 (the default) = as many as are fastest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_batch_size(options: MaybeUninit<&mut mc_rerank_options>, value: usize) {
    set_field(options, "batch_size", value);
}

/// One of the prompts that the model's config_sentence_transformers.json names, in the place of mc_rerank_options_set_prompt()'s, which
/// it replaces.
///
/// @param options  the options.
/// @param name     the prompt's name, copied; one that the model lacks is an error of mc_rerank(), which lists those it has. NULL (the
///                 default) = the model's default prompt, if it has one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_prompt_name(options: MaybeUninit<&mut mc_rerank_options>, name: *const c_char) {
    set(options, |rerank| rerank.set_text("prompt_name", optional_name(name, "prompt_name")?));
}

/// A text in front of the query or, where pairs go through the model's chat template, its system message. A Qwen3-Reranker whose
/// template has no place for a query and a document reads the text of its model card with this as the instruction, such as "Given a
/// web search query, retrieve relevant passages that answer the query"; without one it is taken for the chat model that its files
/// describe. Replaces mc_rerank_options_set_prompt_name().
///
/// @param options  the options.
/// @param prompt   the text, copied; "" = nothing, not even the model's default prompt. NULL (the default) = the model's default
///                 prompt, if it has one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_prompt(options: MaybeUninit<&mut mc_rerank_options>, prompt: *const c_char) {
    set(options, |rerank| rerank.set_text("prompt", optional_name(prompt, "prompt")?));
}

/// A flag that stops the work as soon as the pairs are done that are going through the network.
///
/// @param options  the options.
/// @param cancel   the flag; the options keep it alive. NULL (the default) = none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_set_cancel(options: MaybeUninit<&mut mc_rerank_options>, cancel: *const mc_cancel) {
    set(options, |rerank| {
        rerank.cancel = given_cancel(cancel)?;
        Ok(())
    });
}

/// Frees options; a call that uses them goes on.
///
/// @param options  the options, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_rerank_options_free(options: *mut mc_rerank_options) {
    guard_or((), || free(options, "options"));
}
