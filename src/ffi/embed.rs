//! Embeddings: texts as vectors, and the search for the nearest of many.
//!
//! mc_embed() and mc_embed_batch() turn texts into vectors, as the model's directory says: modules, prompts and limits of
//! sentence-transformers. Where it has none of these, an encoder gives the mean of the tokens' vectors, and a model that was made to
//! generate the last one. A text has the same vector alone and in any batch, bit for bit on the CPU.
//!
//! @snippet search.c index
//!
//! @snippet search.c nearest
//! @see @ref rerank, @ref model
//!
//! Threads: any; a call runs on the thread that makes it. Options are set by one thread at a time, with the functions that take them without
//! `const`, and then used concurrently.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::callback::HostProgress;
use super::cancel::{given_cancel, mc_cancel};
use super::error::{mc_error, mc_status};
use super::handle::{Builder, Given, Object, Out, free, inert, new_handle, optional};
use super::lora::{all_scaled, mc_lora, scaled};
use super::model::{mc_model, mc_progress_fn};
use super::text::{content, contents, given_array, optional_content, optional_name};
use crate::engine::options::{Fields, OptionValue};
use crate::error::{Error, Result};
use crate::{EmbedOptions, Pooling, ProgressFn, Similarity, similarity_top_k};

/// How the vectors of a text's tokens become one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_pooling {
    /// What the model's directory says.
    MC_POOLING_DEFAULT = 0,
    /// Their mean.
    MC_POOLING_MEAN = 1,
    /// The first one.
    MC_POOLING_CLS = 2,
    /// The last one.
    MC_POOLING_LAST = 3,
    /// The largest value of each dimension.
    MC_POOLING_MAX = 4,
    /// Their sum over the square root of their number.
    MC_POOLING_MEAN_SQRT_LEN = 5,
    /// Their mean, weighted with the position, 1 for the first.
    MC_POOLING_WEIGHTED_MEAN = 6,
    /// Not a value: makes the enum 32 bits wide.
    MC_POOLING_FORCE32 = 0x7fff_ffff,
}

/// How vectors are compared; more is nearer.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_similarity {
    /// Never that of a model: what a wrong handle gives.
    MC_SIMILARITY_NONE = 0,
    /// The cosine of the angle between them, -1 to 1.
    MC_SIMILARITY_COSINE = 1,
    /// The scalar product.
    MC_SIMILARITY_DOT = 2,
    /// Minus the Euclidean distance.
    MC_SIMILARITY_EUCLIDEAN = 3,
    /// Minus the sum of the absolute differences.
    MC_SIMILARITY_MANHATTAN = 4,
    /// Not a value: makes the enum 32 bits wide.
    MC_SIMILARITY_FORCE32 = 0x7fff_ffff,
}

/// How to embed: a builder. What is not set is what the model's directory says. A bad value is remembered and reported by the
/// first call that uses the options, as MC_ERROR_INVALID_ARGUMENT with the field, the value and what was expected. Can be used
/// many times.
pub struct mc_embed_options {
    _opaque: [u8; 0],
}

#[derive(Clone, Default)]
pub(super) struct HostEmbedOptions {
    embed: EmbedOptions,
    progress: HostProgress,
}

impl Object for mc_embed_options {
    const NAME: &'static str = "mc_embed_options";
    type Inner = Builder<HostEmbedOptions>;
}

impl Enumeration for mc_pooling {
    const NAME: &'static str = "mc_pooling";
    type Meaning = Option<Pooling>;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_POOLING_DEFAULT, None),
        (Self::MC_POOLING_MEAN, Some(Pooling::Mean)),
        (Self::MC_POOLING_CLS, Some(Pooling::Cls)),
        (Self::MC_POOLING_LAST, Some(Pooling::Last)),
        (Self::MC_POOLING_MAX, Some(Pooling::Max)),
        (Self::MC_POOLING_MEAN_SQRT_LEN, Some(Pooling::MeanSqrtLen)),
        (Self::MC_POOLING_WEIGHTED_MEAN, Some(Pooling::WeightedMean)),
    ];
}

impl Enumeration for mc_similarity {
    const NAME: &'static str = "mc_similarity";
    type Meaning = Similarity;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_SIMILARITY_COSINE, Similarity::Cosine),
        (Self::MC_SIMILARITY_DOT, Similarity::Dot),
        (Self::MC_SIMILARITY_EUCLIDEAN, Similarity::Euclidean),
        (Self::MC_SIMILARITY_MANHATTAN, Similarity::Manhattan),
    ];
}

impl From<Similarity> for mc_similarity {
    fn from(similarity: Similarity) -> Self {
        match similarity {
            Similarity::Cosine => Self::MC_SIMILARITY_COSINE,
            Similarity::Dot => Self::MC_SIMILARITY_DOT,
            Similarity::Euclidean => Self::MC_SIMILARITY_EUCLIDEAN,
            Similarity::Manhattan => Self::MC_SIMILARITY_MANHATTAN,
        }
    }
}

/// How many values a vector has with these options.
///
/// @param model    the model.
/// @param options  the options, or NULL.
/// @return 0 for options that the calls below would refuse, and for a model without a tokenizer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_embed_dim(model: MaybeUninit<&mc_model>, options: *const mc_embed_options) -> usize {
    guard_or(0, || model.get("model")?.model.embedding_dim(&embed_options(options)?.embed))
}

/// How the model's vectors are meant to be compared, as its config_sentence_transformers.json says; the cosine where it says
/// nothing.
///
/// @param model  the model.
/// @return MC_SIMILARITY_NONE for a wrong handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_similarity(model: MaybeUninit<&mc_model>) -> mc_similarity {
    guard_or(mc_similarity::MC_SIMILARITY_NONE, || Ok(model.get("model")?.model.similarity().into()))
}

/// Embeds one text.
///
/// @param model     the model.
/// @param text      UTF-8; the empty text has a vector too. NULL if `text_len` is 0.
/// @param text_len  bytes.
/// @param options   the options, or NULL.
/// @param out       receives `out_len` numbers.
/// @param out_len   mc_model_embed_dim().
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for another `out_len` and for options out of their range;
///         MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_MISMATCH for an adapter of another model;
///         MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_embed(
    model: MaybeUninit<&mc_model>,
    text: *const c_char,
    text_len: usize,
    options: *const mc_embed_options,
    out: MaybeUninit<&mut f32>,
    out_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || embed(model, &[content(text, text_len, "text")?], options, out, out_len))
}

/// Embeds many texts: faster than one by one, and with the same vectors.
///
/// @param model      the model.
/// @param texts      `texts_len` texts in UTF-8.
/// @param text_lens  the bytes of each text; a text of 0 bytes may be NULL. NULL = all texts end with a NUL.
/// @param texts_len  texts; may be 0.
/// @param options    the options, or NULL.
/// @param out        receives one vector after another, in the order of the texts: (texts_len, mc_model_embed_dim()).
/// @param out_len    texts_len * mc_model_embed_dim().
/// @param err        NULL, or receives the error.
/// @return as mc_embed(); MC_ERROR_INVALID_UTF8 names the text by its index.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_embed_batch(
    model: MaybeUninit<&mc_model>,
    texts: MaybeUninit<&*const c_char>,
    text_lens: *const usize,
    texts_len: usize,
    options: *const mc_embed_options,
    out: MaybeUninit<&mut f32>,
    out_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let texts = contents(texts, text_lens, texts_len, ("texts", "text_lens"))?;
        embed(model, &texts, options, out, out_len)
    })
}

fn embed(
    model: MaybeUninit<&mc_model>,
    texts: &[&str],
    options: *const mc_embed_options,
    out: MaybeUninit<&mut f32>,
    out_len: usize,
) -> Result<mc_status> {
    let out = Out::new(out, "out")?;
    let (model, options) = (model.get("model")?, embed_options(options)?);
    let dim = model.model.embedding_dim(&options.embed)?;
    let expected = texts.len().checked_mul(dim);
    if expected != Some(out_len) {
        let message = format!("out_len: expected {} vectors of {dim} values, found {out_len} values", texts.len());
        return Err(Error::argument(message));
    }
    let mut progress = options.progress.closure();
    let progress = progress.as_mut().map(|progress| progress as &mut ProgressFn<'_>);
    out.fill(&model.model.embed(texts, &options.embed, progress)?);
    Ok(mc_status::MC_OK)
}

/// For each query the `k` nearest documents, the nearest first; of equally near ones the earlier. Every document is compared; the
/// work is spread over all threads.
///
/// @param similarity     how to compare; mc_model_similarity().
/// @param queries        vectors: (queries_len, dim), one after another.
/// @param queries_len    queries; may be 0.
/// @param documents      vectors: (documents_len, dim), one after another.
/// @param documents_len  documents.
/// @param dim            values of a vector; at least 1.
/// @param k              how many for each query; 1 to `documents_len`.
/// @param indices        receives (queries_len, k) numbers of documents, from 0.
/// @param scores         receives (queries_len, k) similarities. A vector of zeros has the cosine 0 with every other; what is no
///                       number comes last.
/// @param err            NULL, or receives the error.
/// @return MC_OK; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_similarity_top_k(
    similarity: MaybeUninit<mc_similarity>,
    queries: MaybeUninit<&f32>,
    queries_len: usize,
    documents: MaybeUninit<&f32>,
    documents_len: usize,
    dim: usize,
    k: usize,
    indices: MaybeUninit<&mut usize>,
    scores: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (indices, scores) = (Out::new(indices, "indices")?, Out::new(scores, "scores")?);
        let similarity = checked(similarity, "similarity")?;
        let values = |len: usize, name: &str| {
            let message = || Error::argument(format!("{name}: expected fewer than {len} vectors of {dim} values"));
            len.checked_mul(dim).ok_or_else(message)
        };
        if k == 0 {
            return Err(Error::argument("k: expected at least 1, found 0"));
        }
        let queries = given_array(queries, values(queries_len, "queries")?, "queries")?;
        let documents = given_array(documents, values(documents_len, "documents")?, "documents")?;
        let (found, similar) = similarity_top_k(similarity, queries, documents, dim, k)?;
        indices.fill(&found);
        scores.fill(&similar);
        Ok(mc_status::MC_OK)
    })
}

/// Makes embed options: all as the model's directory says.
///
/// @return one reference; free it with mc_embed_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_embed_options_new() -> NonNull<mc_embed_options> {
    guard_or(inert(), || Ok(new_handle(Builder::new(HostEmbedOptions::default()))))
}

fn set(options: MaybeUninit<&mut mc_embed_options>, setter: impl FnOnce(&mut EmbedOptions) -> Result<()>) {
    guard_or((), || options.get("options")?.set(|options| setter(&mut options.embed)));
}

fn set_field(options: MaybeUninit<&mut mc_embed_options>, name: &str, value: impl Into<OptionValue>) {
    set(options, |embed| embed.set_field(name, value.into()));
}

/// Sets options from JSON, each as its setter does, in the order in which they are written.
///
/// `pooling`: "mean", "cls", "last", "max", "mean_sqrt_len" or "weighted_mean". `normalize`: true or false. `dimensions`, `max_length`,
/// `batch_size`: numbers. `prompt_name`, `prefix`: texts, each in place of the other. What is a handle or a callback has its setter alone.
///
/// @param options   the options.
/// @param json      an object, UTF-8, such as `{"dimensions": 256, "prompt_name": "query"}`; a member that is null has its default again.
///                  Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a name that stands
///                  in an object twice or is none of these, and a value of another type or out of its setter's range. NULL = all of these
///                  have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_json(
    options: MaybeUninit<&mut mc_embed_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |embed| embed.set_fields(optional_content(json, json_len, "json")?));
}

/// Another way of pooling than the model's own.
///
/// @param options  the options.
/// @param pooling  MC_POOLING_DEFAULT (the default) = the model's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_pooling(
    options: MaybeUninit<&mut mc_embed_options>,
    pooling: MaybeUninit<mc_pooling>,
) {
    set(options, |embed| {
        embed.pooling = checked(pooling, "pooling")?;
        Ok(())
    });
}

/// Whether vectors have length 1.
///
/// @param options  the options.
/// @param value    true = they have; false = they are left as they are, also where the model's modules end with Normalize.
///                 Default: as the modules say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_normalize(options: MaybeUninit<&mut mc_embed_options>, value: bool) {
    set_field(options, "normalize", value);
}

/// Keeps the first values of each vector only, for models that were trained for it (Matryoshka). The shorter vector is normalised
/// where the whole one would be.
///
/// @param options  the options.
/// @param value    values of a vector; 0 (the default) = all. More than the model gives is an error of the call that embeds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_dimensions(options: MaybeUninit<&mut mc_embed_options>, value: usize) {
    set_field(options, "dimensions", value);
}

/// How much of a long text counts; the rest is cut off.
///
/// @param options  the options.
/// @param value    tokens, with those that the tokenizer adds; 0 (the default) = the model's own limit. More than that and
///                 mc_model_context_length() is an error of the call that embeds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_max_length(options: MaybeUninit<&mut mc_embed_options>, value: usize) {
    set_field(options, "max_length", value);
}

/// The most texts that go through the network together, on each thread: fewer take less memory and answer a cancel sooner. Changes
/// no vector.
///
/// @param options  the options.
/// @param value    texts; 0 (the default) = as many as are fastest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_batch_size(options: MaybeUninit<&mut mc_embed_options>, value: usize) {
    set_field(options, "batch_size", value);
}

/// Puts one of the model's own prompts in front of every text: "query" for what is searched for, "document" for what is
/// searched, or whatever its config_sentence_transformers.json names. Replaces mc_embed_options_set_prefix().
///
/// @param options  the options.
/// @param name     the prompt's name, copied; one that the model lacks is an error of the call that embeds, which lists those it
///                 has. NULL (the default) = the model's default prompt, if it has one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_prompt_name(options: MaybeUninit<&mut mc_embed_options>, name: *const c_char) {
    set(options, |embed| embed.set_text("prompt_name", optional_name(name, "prompt_name")?));
}

/// Puts a text in front of every text. Replaces mc_embed_options_set_prompt_name().
///
/// @param options  the options.
/// @param prefix   the text, copied; "" = nothing, not even the model's default prompt. NULL (the default) = the model's default
///                 prompt, if it has one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_prefix(options: MaybeUninit<&mut mc_embed_options>, prefix: *const c_char) {
    set(options, |embed| embed.set_text("prefix", optional_name(prefix, "prefix")?));
}

/// An adapter for the vectors.
///
/// @param options  the options.
/// @param lora     an adapter of the model; the options keep it alive. NULL (the default) = none. One of another model makes the call
///                 that embeds return MC_ERROR_MISMATCH.
/// @param scale    a factor for its changes: a finite number; 1 = as trained, 0 = the model alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_lora(
    options: MaybeUninit<&mut mc_embed_options>,
    lora: *const mc_lora,
    scale: f32,
) {
    set(options, |embed| {
        embed.adapters = scaled(lora, scale)?;
        Ok(())
    });
}

/// Several adapters for the vectors at once: their changes add up. Else as, and in place of, mc_embed_options_set_lora().
///
/// @param options  the options.
/// @param loras    `count` adapters of the model, none of them NULL; the options keep them alive. NULL if `count` is 0.
/// @param scales   `count` factors for their changes, finite numbers; NULL = 1 for each.
/// @param count    how many; 0 (the default) = none. Two that replace the same matrix or bias make the call that embeds return
///                 MC_ERROR_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_loras(
    options: MaybeUninit<&mut mc_embed_options>,
    loras: *const *const mc_lora,
    scales: *const f32,
    count: usize,
) {
    set(options, |embed| {
        embed.adapters = all_scaled(loras, scales, count)?;
        Ok(())
    });
}

/// A flag that stops the work as soon as the texts are done that are going through the network.
///
/// @param options  the options.
/// @param cancel   the flag; the options keep it alive. NULL (the default) = none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_cancel(options: MaybeUninit<&mut mc_embed_options>, cancel: *const mc_cancel) {
    set(options, |embed| {
        embed.cancel = given_cancel(cancel)?;
        Ok(())
    });
}

/// Who hears how many texts are done.
///
/// @param options    the options.
/// @param progress   called while texts are embedded, on the thread of that call, with MC_STAGE_EMBED; what is not MC_CONTINUE
///                   stops the call with MC_CANCELLED. NULL (the default) = nobody.
/// @param user_data  handed to `progress`; may be NULL. Must live until the last call with these options is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_set_progress(
    options: MaybeUninit<&mut mc_embed_options>,
    progress: mc_progress_fn,
    user_data: *mut c_void,
) {
    guard_or((), || {
        options.get("options")?.set(|options| {
            options.progress = HostProgress::new(progress, user_data);
            Ok(())
        })
    });
}

/// Frees options; a call that uses them goes on.
///
/// @param options  the options, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_options_free(options: *mut mc_embed_options) {
    guard_or((), || free(options, "options"));
}

fn embed_options(options: *const mc_embed_options) -> Result<HostEmbedOptions> {
    match optional(options, "options")? {
        Some(options) => options.options(),
        None => Ok(HostEmbedOptions::default()),
    }
}
