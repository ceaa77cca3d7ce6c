//! Tokenizers: text to token ids and back.
//!
//! Calls that take text need none of this: they use the model's tokenizer. It is for counting tokens, for what takes or gives ids, and for
//! text that is made of ids one by one (mc_text_stream), in whole characters.
//!
//! @snippet inspect.c tokens
//! @see @ref values, @ref session, @ref train
//!
//! Threads: any. A tokenizer is immutable and used concurrently; of a text stream each call is alone, with the functions that take it without
//! `const`: a second one meanwhile is MC_ERROR_BUSY.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::boundary::{guard, guard_or};
use super::error::{mc_error, mc_status};
use super::handle::{Exclusive, Given, Object, Out, OutHandle, free};
use super::model::mc_model;
use super::text::{self, Text, array, content};
use super::values::{mc_string, mc_tokens};
use crate::{TextStream, Tokenizer};

/// A tokenizer. Immutable.
pub struct mc_tokenizer {
    _opaque: [u8; 0],
}

impl Object for mc_tokenizer {
    const NAME: &'static str = "mc_tokenizer";
    type Inner = Tokenizer;
}

/// A model's tokenizer.
///
/// @param model  the model.
/// @param out    receives one reference; free it with mc_tokenizer_free(). It outlives the model.
/// @param err    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_NOT_FOUND if the model has none.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_tokenizer(
    model: MaybeUninit<&mc_model>,
    out: MaybeUninit<&mut *mut mc_tokenizer>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(model.get("model")?.model.tokenizer()?.clone());
        Ok(mc_status::MC_OK)
    })
}

/// Loads a tokenizer alone. One of a GGUF file gives the ids that the model's tokenizer.json gives. A directory may have vocab.txt of BERT,
/// vocab.json and merges.txt of GPT-2, RoBERTa or Qwen, or tokenizer.model of Llama in place of tokenizer.json, if its files name the class
/// that reads them.
///
/// @param path  a tokenizer.json, a directory with one, or a .gguf file, of a whole model or of a vocabulary alone.
/// @param out   receives one reference; free it with mc_tokenizer_free().
/// @param err   NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND, MC_ERROR_IO or MC_ERROR_FORMAT for the file;
///         MC_ERROR_UNSUPPORTED for a GGUF file whose kind of tokenizer the library does not know.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_tokenizer_load(
    path: MaybeUninit<&c_char>,
    out: MaybeUninit<&mut *mut mc_tokenizer>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Tokenizer::load(text::name(&path, "path")?)?);
        Ok(mc_status::MC_OK)
    })
}

/// Text to token ids.
///
/// @param tokenizer    the tokenizer.
/// @param text         UTF-8; NULL if `text_len` is 0. Special tokens written in it, such as "<|im_end|>", become their ids.
/// @param text_len     bytes.
/// @param add_special  whether to add what the tokenizer puts around a text, such as a beginning-of-sequence token.
/// @param out          receives one reference; free it with mc_tokens_free().
/// @param err          NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_tokenizer_encode(
    tokenizer: MaybeUninit<&mc_tokenizer>,
    text: *const c_char,
    text_len: usize,
    add_special: bool,
    out: MaybeUninit<&mut *mut mc_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let tokenizer = tokenizer.get("tokenizer")?;
        out.set(tokenizer.encode(content(text, text_len, "text")?, add_special)?);
        Ok(mc_status::MC_OK)
    })
}

/// Token ids to text. Bytes that are not UTF-8, as where a character is cut, become U+FFFD.
///
/// @param tokenizer     the tokenizer.
/// @param tokens        ids; NULL if `tokens_len` is 0.
/// @param tokens_len    how many.
/// @param skip_special  whether to leave special tokens out.
/// @param out           receives one reference; free it with mc_string_free().
/// @param err           NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an id outside the vocabulary.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_tokenizer_decode(
    tokenizer: MaybeUninit<&mc_tokenizer>,
    tokens: *const u32,
    tokens_len: usize,
    skip_special: bool,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let tokenizer = tokenizer.get("tokenizer")?;
        out.set(Text::long(tokenizer.decode(array(tokens, tokens_len, "tokens")?, skip_special)?)?);
        Ok(mc_status::MC_OK)
    })
}

/// The id of one token, as the vocabulary spells it: "<|im_end|>", or a piece with its space mark.
///
/// @param tokenizer  the tokenizer.
/// @param token      the token.
/// @param out        receives the id.
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND if the vocabulary lacks it.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_tokenizer_token_id(
    tokenizer: MaybeUninit<&mc_tokenizer>,
    token: MaybeUninit<&c_char>,
    out: MaybeUninit<&mut u32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = Out::new(out, "out")?;
        let tokenizer = tokenizer.get("tokenizer")?;
        out.set(tokenizer.token_id(text::name(&token, "token")?)?);
        Ok(mc_status::MC_OK)
    })
}

/// Whether a token is special: markup such as "<|im_end|>", which is not part of a text.
///
/// @param tokenizer  the tokenizer.
/// @param token      an id.
/// @return false for an id outside the vocabulary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokenizer_is_special(tokenizer: MaybeUninit<&mc_tokenizer>, token: u32) -> bool {
    guard_or(false, || Ok(tokenizer.get("tokenizer")?.is_special(token)))
}

/// The bytes that a token adds to a text in its middle: UTF-8, or a part of a character. A special token adds none.
///
/// @param tokenizer  the tokenizer.
/// @param token      an id.
/// @param out        receives the first `out_len` bytes, without a NUL behind them.
/// @param out_len    how many fit.
/// @param len        receives how many there are, which may be more.
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an id outside the vocabulary; MC_ERROR_UNSUPPORTED for a tokenizer by which a
///         token's bytes depend on its neighbours.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_tokenizer_token_bytes(
    tokenizer: MaybeUninit<&mc_tokenizer>,
    token: u32,
    out: MaybeUninit<&mut u8>,
    out_len: usize,
    len: MaybeUninit<&mut usize>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (out, len) = (Out::new(out, "out")?, Out::new(len, "len")?);
        let bytes = tokenizer.get("tokenizer")?.bytes_of(token)?;
        out.fill(&bytes[..out_len.min(bytes.len())]);
        len.set(bytes.len());
        Ok(mc_status::MC_OK)
    })
}

/// How many tokens the vocabulary has, added ones counted. A network may know more ids: mc_model_vocab_size().
///
/// @param tokenizer  the tokenizer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokenizer_vocab_size(tokenizer: MaybeUninit<&mc_tokenizer>) -> usize {
    guard_or(0, || Ok(tokenizer.get("tokenizer")?.vocab_size()))
}

/// Frees a tokenizer.
///
/// @param tokenizer  the tokenizer, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokenizer_free(tokenizer: *mut mc_tokenizer) {
    guard_or((), || free(tokenizer, "tokenizer"));
}

/// Token ids to text as they come, as an answer's events show it: whole characters, and without special tokens. Mutable.
pub struct mc_text_stream {
    _opaque: [u8; 0],
}

impl Object for mc_text_stream {
    const NAME: &'static str = "mc_text_stream";
    type Inner = Exclusive<TextStream>;
}

/// Makes a stream at its beginning.
///
/// @param tokenizer  the tokenizer; the stream keeps it alive.
/// @param out        receives one reference; free it with mc_text_stream_free().
/// @param err        NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_text_stream_new(
    tokenizer: MaybeUninit<&mc_tokenizer>,
    out: MaybeUninit<&mut *mut mc_text_stream>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let tokenizer = tokenizer.get("tokenizer")?;
        out.set(Exclusive::new(TextStream::new(&tokenizer)));
        Ok(mc_status::MC_OK)
    })
}

/// Adds a token.
///
/// @param stream  the stream.
/// @param token   an id; one without a token has no text.
/// @param out     receives the text that became certain, which may be ""; free it with mc_string_free().
/// @param err     NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for a token that the tokenizer refuses; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_text_stream_push(
    stream: MaybeUninit<&mut mc_text_stream>,
    token: u32,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(stream.get("stream")?.change("stream", |stream| stream.push(token))?));
        Ok(mc_status::MC_OK)
    })
}

/// What was held back, because more might have joined it. The stream is then at its beginning, for another text.
///
/// @param stream  the stream.
/// @param out     receives the text, which may be ""; free it with mc_string_free(). Bytes that are no whole character are dropped.
/// @param err     NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_text_stream_finish(
    stream: MaybeUninit<&mut mc_text_stream>,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(stream.get("stream")?.change("stream", TextStream::finish)?));
        Ok(mc_status::MC_OK)
    })
}

/// Frees a stream.
///
/// @param stream  the stream, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_text_stream_free(stream: *mut mc_text_stream) {
    guard_or((), || free(stream, "stream"));
}
