//! Generation: continue a text, and what an answer is.
//!
//! mc_generate() and mc_generate_stream() evaluate a prompt and forget it. To go on from what was evaluated, use a session, which takes
//! the same options and gives the same kind of answer: its text and tokens, its parts (text, thoughts, calls of tools), why it ended and
//! how long it took. The options, behind the calls, choose how tokens are drawn and where an answer ends.
//!
//! @snippet complete.c generate
//!
//! @snippet complete.c program
//! @see @ref session, @ref chat, @ref cancel
//!
//! Threads: any. A call runs on the thread that makes it. An answer is read concurrently. Options are set by one thread at a time, with the
//! functions that take them without `const`, and then used concurrently.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{guard, guard_or};
use super::callback::{HostProgress, token_closure};
use super::cancel::{given_cancel, mc_cancel};
use super::error::{mc_error, mc_status};
use super::handle::{Builder, Given, Object, OutHandle, free, inert, new_handle, optional};
use super::lora::{all_scaled, mc_lora, scaled};
use super::model::{mc_model, mc_progress_fn};
use super::text::{Text, content, empty, given_content, optional_content, optional_name};
use super::values::{lend_tokens, no_tokens};
use crate::engine::check_schema;
use crate::engine::options::{Fields, MOST_BIASES, OptionValue, check_bias, check_part};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::owned;
use crate::{FinishReason, GenerateOptions, Generation, ProgressFn, TokenFn, ToolCall};

/// Why a generation ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_finish_reason {
    /// Never the reason of a generation: what a wrong handle gives.
    MC_FINISH_NONE = 0,
    /// The model ended its answer, or its JSON schema lets nothing follow.
    MC_FINISH_EOS = 1,
    /// A stop text appeared; the text ends before it.
    MC_FINISH_STOP_TEXT = 2,
    /// `max_tokens` were generated.
    MC_FINISH_MAX_TOKENS = 3,
    /// The context is full.
    MC_FINISH_CONTEXT_FULL = 4,
    /// A callback returned something else than MC_CONTINUE, or mc_session_end() came before the end.
    MC_FINISH_CALLBACK = 5,
    /// The mc_cancel was triggered.
    MC_FINISH_CANCELLED = 6,
    /// Not a value: makes the enum 32 bits wide.
    MC_FINISH_REASON_FORCE32 = 0x7fff_ffff,
}

/// What a part of an answer is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_part_kind {
    /// Text of the answer.
    MC_PART_TEXT = 0,
    /// The model's thoughts, without the marks around them.
    MC_PART_REASONING = 1,
    /// A call of a tool has begun; the text is its name.
    MC_PART_TOOL_CALL = 2,
    /// A piece of that call's arguments, which together are a JSON object.
    MC_PART_ARGUMENTS = 3,
    /// The call is whole, or the answer ended within it; the text is the call as mc_generation_tool_calls_json() has it.
    MC_PART_TOOL_CALL_END = 4,
    /// What began as a call is none: what the model wrote follows as MC_PART_TEXT.
    MC_PART_REJECTED_TOOL_CALL = 5,
    /// Not a value: makes the enum 32 bits wide.
    MC_PART_FORCE32 = 0x7fff_ffff,
}

/// A part of an answer, or a piece of one. Fields are only ever added at the end.
#[repr(C)]
pub struct mc_part {
    /// Bytes of this struct as the library knows it: the distance between two in an array.
    pub struct_size: usize,
    /// UTF-8, NUL-terminated.
    pub text: MaybeUninit<&'static c_char>,
    /// Bytes of `text`, without the NUL.
    pub text_len: usize,
    /// What it is.
    pub kind: mc_part_kind,
    /// Which call of the answer it belongs to, from 0; 0 for text and reasoning.
    pub index: u32,
}

/// One generated token, and the text that became certain with it. Fields are only ever added at the end.
#[repr(C)]
pub struct mc_token_event {
    /// Bytes of this struct as the library knows it.
    pub struct_size: usize,
    /// Whole characters in UTF-8, NUL-terminated; empty while a character or a possible stop text is incomplete.
    pub text: MaybeUninit<&'static c_char>,
    /// Bytes of `text`, without the NUL.
    pub text_len: usize,
    /// The token's id.
    pub token: u32,
    /// Its place in the answer, from 0.
    pub index: u32,
    /// Natural logarithm of the probability that the model itself gave the token, before any sampling setting.
    pub logprob: f32,
    /// The parts that became certain with it: see mc_generate_options_set_answer_format(). Of an answer that is not told apart, its text.
    pub parts: MaybeUninit<&'static mc_part>,
    /// How many `parts` there are.
    pub parts_len: usize,
}

/// Receives each token of a stream. Called on the thread of that call, before it returns.
///
/// @param user_data  what was given with the callback.
/// @param event      the token; it and its text are valid during the call.
/// @return MC_CONTINUE to go on; everything else ends the generation with MC_OK and MC_FINISH_CALLBACK.
pub type mc_token_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, event: &mc_token_event) -> i32>;

/// How to generate: a builder. What is not set takes what the model's generation_config.json says. A bad value is remembered
/// and reported by the first call that uses the options, as MC_ERROR_INVALID_ARGUMENT with the field, the value and what was
/// expected. Can be used many times.
pub struct mc_generate_options {
    _opaque: [u8; 0],
}

/// A finished answer. Immutable.
pub struct mc_generation {
    _opaque: [u8; 0],
}

#[derive(Clone, Default)]
pub(super) struct HostGenerateOptions {
    pub(super) generate: GenerateOptions,
    pub(super) prefill_progress: HostProgress,
}

pub(super) struct GenerationState {
    text: Text,
    content: Text,
    reasoning: Text,
    tool_calls: Text,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    finish_reason: mc_finish_reason,
    prefill_seconds: f64,
    decode_seconds: f64,
}

impl Object for mc_generate_options {
    const NAME: &'static str = "mc_generate_options";
    type Inner = Builder<HostGenerateOptions>;
}

impl Object for mc_generation {
    const NAME: &'static str = "mc_generation";
    type Inner = GenerationState;
}

impl From<FinishReason> for mc_finish_reason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Eos => Self::MC_FINISH_EOS,
            FinishReason::StopText => Self::MC_FINISH_STOP_TEXT,
            FinishReason::MaxTokens => Self::MC_FINISH_MAX_TOKENS,
            FinishReason::ContextFull => Self::MC_FINISH_CONTEXT_FULL,
            FinishReason::Callback => Self::MC_FINISH_CALLBACK,
            FinishReason::Cancelled => Self::MC_FINISH_CANCELLED,
        }
    }
}

impl From<Generation> for GenerationState {
    fn from(generation: Generation) -> Self {
        Self {
            text: Text::new(generation.text),
            content: Text::new(generation.content),
            reasoning: Text::new(generation.reasoning),
            tool_calls: Text::new(ToolCall::list_json(&generation.tool_calls)),
            tokens: generation.tokens,
            prompt_tokens: generation.prompt_tokens,
            finish_reason: generation.finish_reason.into(),
            prefill_seconds: generation.prefill_seconds,
            decode_seconds: generation.decode_seconds,
        }
    }
}

/// Generates an answer to a prompt.
///
/// @param model       the model.
/// @param prompt      UTF-8; NULL if `prompt_len` is 0. Special tokens written in it become their ids.
/// @param prompt_len  bytes.
/// @param options     how to generate; NULL = the defaults.
/// @param out         receives one reference, with MC_CANCELLED too (the partial answer); free it with mc_generation_free().
/// @param err         NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for a prompt without a token, special ones counted;
///         MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_UNSUPPORTED if it cannot
///         generate; MC_ERROR_CONTEXT_FULL if the prompt alone is too long; MC_ERROR_MISMATCH for an adapter of another model;
///         MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_generate(
    model: MaybeUninit<&mc_model>,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const mc_generate_options,
    out: MaybeUninit<&mut *mut mc_generation>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, prompt) = (model.get("model")?, content(prompt, prompt_len, "prompt")?);
        run(options, None, std::ptr::null_mut(), out, |options, progress, on_token| {
            model.model.generate(prompt, options, progress, on_token)
        })
    })
}

/// Generates an answer to a prompt, token by token.
///
/// @param model       the model.
/// @param prompt      UTF-8; NULL if `prompt_len` is 0.
/// @param prompt_len  bytes.
/// @param options     how to generate; NULL = the defaults.
/// @param on_token    called with each token, on this thread; NULL = nobody.
/// @param user_data   handed to `on_token`; may be NULL.
/// @param out         NULL, or receives one reference, with MC_CANCELLED too (the partial answer); free it with
///                    mc_generation_free().
/// @param err         NULL, or receives the error.
/// @return as mc_generate().
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_generate_stream(
    model: MaybeUninit<&mc_model>,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const mc_generate_options,
    on_token: mc_token_fn,
    user_data: *mut c_void,
    out: *mut *mut mc_generation,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::nullable(out);
        let (model, prompt) = (model.get("model")?, content(prompt, prompt_len, "prompt")?);
        run(options, on_token, user_data, out, |options, progress, on_token| {
            model.model.generate(prompt, options, progress, on_token)
        })
    })
}

/// Runs a generation with the host's options and callbacks. A cancelled one is handed over too: the partial answer.
pub(super) fn run(
    options: *const mc_generate_options,
    on_token: mc_token_fn,
    user_data: *mut c_void,
    out: OutHandle<mc_generation>,
    generate: impl FnOnce(&GenerateOptions, Option<&mut ProgressFn<'_>>, &mut TokenFn<'_>) -> Result<Generation>,
) -> Result<mc_status> {
    let options = generate_options(options)?;
    let mut progress = options.prefill_progress.closure();
    let progress = progress.as_mut().map(|progress| progress as &mut ProgressFn<'_>);
    let generation = generate(&options.generate, progress, &mut token_closure(on_token, user_data))?;
    Ok(hand_over(generation, out))
}

pub(super) fn hand_over(generation: Generation, out: OutHandle<mc_generation>) -> mc_status {
    let cancelled = generation.finish_reason == FinishReason::Cancelled;
    out.set(generation.into());
    if cancelled { mc_status::MC_CANCELLED } else { mc_status::MC_OK }
}

/// The answer.
///
/// @param generation  the generation.
/// @return UTF-8, NUL-terminated, valid until the generation is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_text(generation: MaybeUninit<&mc_generation>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(generation.lend("generation")?.text.pointer()))
}

/// The length of the answer.
///
/// @param generation  the generation.
/// @return bytes, without the NUL at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_text_len(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.text.len()))
}

/// The answer without thoughts and calls of tools, where it was told apart; else all of it.
///
/// @param generation  the generation.
/// @return UTF-8, NUL-terminated, valid until the generation is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_content(generation: MaybeUninit<&mc_generation>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(generation.lend("generation")?.content.pointer()))
}

/// The length of mc_generation_content().
///
/// @param generation  the generation.
/// @return bytes, without the NUL at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_content_len(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.content.len()))
}

/// The model's thoughts, without the marks around them; empty where an answer has none or was not told apart.
///
/// @param generation  the generation.
/// @return UTF-8, NUL-terminated, valid until the generation is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_reasoning(generation: MaybeUninit<&mc_generation>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(generation.lend("generation")?.reasoning.pointer()))
}

/// The length of mc_generation_reasoning().
///
/// @param generation  the generation.
/// @return bytes, without the NUL at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_reasoning_len(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.reasoning.len()))
}

/// The calls of tools as chat APIs have them:
/// `[{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]`. The id is the model's own where it
/// gave one; else it tells the calls of one answer apart, and in Mistral's format it is nine letters and digits, as its templates ask
/// for, the same again for the same call. A call that the answer ended within has `"incomplete": true`, and its arguments are the
/// beginning of JSON.
///
/// @param generation  the generation.
/// @return JSON, UTF-8, NUL-terminated, valid until the generation is freed; "[]" where an answer has none or was not told apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_tool_calls_json(generation: MaybeUninit<&mc_generation>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(generation.lend("generation")?.tool_calls.pointer()))
}

/// The length of mc_generation_tool_calls_json().
///
/// @param generation  the generation.
/// @return bytes, without the NUL at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_tool_calls_json_len(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.tool_calls.len()))
}

/// The answer's tokens, with the end-of-sequence token where that ended it.
///
/// @param generation  the generation.
/// @return mc_generation_tokens_len() ids, valid until the generation is freed; never NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_tokens(generation: MaybeUninit<&mc_generation>) -> MaybeUninit<&u32> {
    guard_or(no_tokens(), || Ok(lend_tokens(&generation.lend("generation")?.tokens)))
}

/// How many tokens the answer has.
///
/// @param generation  the generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_tokens_len(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.tokens.len()))
}

/// How many tokens stood before the answer.
///
/// @param generation  the generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_prompt_tokens(generation: MaybeUninit<&mc_generation>) -> usize {
    guard_or(0, || Ok(generation.lend("generation")?.prompt_tokens))
}

/// Why the answer ended.
///
/// @param generation  the generation.
/// @return never MC_FINISH_NONE, except for a wrong handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_finish_reason(generation: MaybeUninit<&mc_generation>) -> mc_finish_reason {
    guard_or(mc_finish_reason::MC_FINISH_NONE, || Ok(generation.lend("generation")?.finish_reason))
}

/// How long the evaluation of the prompt took; in a session, of what it was given since the answer before.
///
/// @param generation  the generation.
/// @return seconds; 0 if nothing had to be evaluated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_prefill_seconds(generation: MaybeUninit<&mc_generation>) -> f64 {
    guard_or(0.0, || Ok(generation.lend("generation")?.prefill_seconds))
}

/// How long generating the tokens took, callbacks included.
///
/// @param generation  the generation.
/// @return seconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_decode_seconds(generation: MaybeUninit<&mc_generation>) -> f64 {
    guard_or(0.0, || Ok(generation.lend("generation")?.decode_seconds))
}

/// Frees a generation.
///
/// @param generation  the generation, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generation_free(generation: *mut mc_generation) {
    guard_or((), || free(generation, "generation"));
}

/// Makes generation options: no token limit but the context, and the model's own sampling.
///
/// @return one reference; free it with mc_generate_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_generate_options_new() -> NonNull<mc_generate_options> {
    guard_or(inert(), || Ok(new_handle(Builder::new(HostGenerateOptions::default()))))
}

fn set(options: MaybeUninit<&mut mc_generate_options>, setter: impl FnOnce(&mut GenerateOptions) -> Result<()>) {
    guard_or((), || options.get("options")?.set(|options| setter(&mut options.generate)));
}

fn set_field(options: MaybeUninit<&mut mc_generate_options>, name: &str, value: impl Into<OptionValue>) {
    set(options, |generate| generate.set_field(name, value.into()));
}

fn push<T>(name: &str, to: &mut Vec<T>, value: T) -> Result<()> {
    to.try_reserve(1)
        .map_err(|e| Error::new(ErrorKind::OutOfMemory, format!("{name}: one more does not fit the memory")).with_source(e))?;
    to.push(value);
    Ok(())
}

/// Sets options from JSON, each as its setter does, in the order in which they are written.
///
/// `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `repetition_last_n`, `frequency_penalty`,
/// `presence_penalty`, `seed`, `reasoning_budget`, `prefill_chunk`: numbers. `ignore_eos`, `add_special`: true or false. `stop`: a list of
/// texts, in place of those before. `logit_bias`: an object of numbers by ids of tokens, in place of those before, with false for minus
/// infinity. `json_schema`: an object, or true or false. `answer_format`, `tool_choice`: texts. What is a handle or a callback has its
/// setter alone.
///
/// @param options   the options.
/// @param json      an object, UTF-8, such as `{"max_tokens": 200, "temperature": 0.7, "stop": ["\n\n"]}`; a member that is null has its
///                  default again. Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a
///                  name that stands in an object twice or is none of these, and a value of another type or out of its setter's range. NULL
///                  = all of these have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_json(
    options: MaybeUninit<&mut mc_generate_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |generate| generate.set_fields(optional_content(json, json_len, "json")?));
}

/// The most tokens to generate.
///
/// @param options  the options.
/// @param value    tokens; 0 (the default) = until the model stops or the context is full.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_max_tokens(options: MaybeUninit<&mut mc_generate_options>, value: usize) {
    set_field(options, "max_tokens", value);
}

/// How random the choice of tokens is: logits are divided by this.
///
/// @param options  the options.
/// @param value    0 or more; 0 = always the most probable token (the lowest id on ties). Default: the model's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_temperature(options: MaybeUninit<&mut mc_generate_options>, value: f64) {
    set_field(options, "temperature", value);
}

/// Keeps the `value` most probable tokens.
///
/// @param options  the options.
/// @param value    tokens; 0 = all. Default: the model's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_top_k(options: MaybeUninit<&mut mc_generate_options>, value: usize) {
    set_field(options, "top_k", value);
}

/// Keeps the fewest most probable tokens whose probabilities sum to `value`.
///
/// @param options  the options.
/// @param value    above 0, up to 1; 1 = all tokens. Default: the model's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_top_p(options: MaybeUninit<&mut mc_generate_options>, value: f64) {
    set_field(options, "top_p", value);
}

/// Keeps the tokens with at least `value` times the probability of the most probable one.
///
/// @param options  the options.
/// @param value    0 to 1; 0 = all tokens. Default: the model's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_min_p(options: MaybeUninit<&mut mc_generate_options>, value: f64) {
    set_field(options, "min_p", value);
}

/// Makes tokens that occurred less probable: their logits are divided by `penalty` if positive, else multiplied.
///
/// @param options  the options.
/// @param penalty  above 0; 1 = off. Default: the model's.
/// @param last_n   how many of the last tokens count, prompt and answer; 0 = all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_repetition_penalty(
    options: MaybeUninit<&mut mc_generate_options>,
    penalty: f64,
    last_n: usize,
) {
    set(options, |generate| {
        generate.set_field("repetition_penalty", penalty.into())?;
        generate.set_field("repetition_last_n", last_n.into())
    });
}

/// Subtracts `value` from a token's logit for each time it occurs in the answer.
///
/// @param options  the options.
/// @param value    finite; 0 = off, negative = encourage. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_frequency_penalty(options: MaybeUninit<&mut mc_generate_options>, value: f64) {
    set_field(options, "frequency_penalty", value);
}

/// Subtracts `value` from the logit of each token that occurs in the answer.
///
/// @param options  the options.
/// @param value    finite; 0 = off, negative = encourage. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_presence_penalty(options: MaybeUninit<&mut mc_generate_options>, value: f64) {
    set_field(options, "presence_penalty", value);
}

/// Adds to the logit of one token; may be called for many tokens. Tokens that generation_config.json suppresses (suppress_tokens,
/// single ones of bad_words_ids and sequence_bias) stay so.
///
/// @param options  the options.
/// @param token    the token's id; one outside the vocabulary makes the generation return MC_ERROR_INVALID_ARGUMENT.
/// @param bias     a number, added to its logit; minus infinity = never this token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_add_logit_bias(
    options: MaybeUninit<&mut mc_generate_options>,
    token: u32,
    bias: f32,
) {
    set(options, |generate| {
        check_bias(token, bias.into())?;
        if generate.sampling.logit_bias.len() >= MOST_BIASES {
            return Err(Error::argument(format!("logit_bias: expected at most {MOST_BIASES} tokens, found more")));
        }
        push("logit_bias", &mut generate.sampling.logit_bias, (token, bias))
    });
}

/// Makes sampling repeat: the same seed, options, prompt, model and device give the same answer.
///
/// @param options  the options.
/// @param seed     any number, 0 too. Default: a new one from the system for each generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_seed(options: MaybeUninit<&mut mc_generate_options>, seed: u64) {
    set_field(options, "seed", seed);
}

/// Whether to go on after the model ended its answer, as for measuring speed. With a JSON schema: as long as it lets something
/// follow.
///
/// @param options  the options.
/// @param value    default: false.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_ignore_eos(options: MaybeUninit<&mut mc_generate_options>, value: bool) {
    set_field(options, "ignore_eos", value);
}

/// Whether the prompt of mc_generate() gets the tokenizer's special tokens, such as a beginning-of-sequence token. Turn it off
/// for a prompt that a chat template made. Sessions decide it themselves: see mc_session_append().
///
/// @param options  the options.
/// @param value    default: true.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_add_special(options: MaybeUninit<&mut mc_generate_options>, value: bool) {
    set_field(options, "add_special", value);
}

/// How many tokens of a prompt are evaluated at once: more is faster, fewer answers a cancel sooner and takes less memory.
///
/// @param options  the options.
/// @param value    1 to 512 tokens. Default: 512.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_prefill_chunk(options: MaybeUninit<&mut mc_generate_options>, value: usize) {
    set_field(options, "prefill_chunk", value);
}

/// A flag that stops the generation.
///
/// @param options  the options.
/// @param cancel   the flag; the options keep it alive. NULL (the default) = none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_cancel(
    options: MaybeUninit<&mut mc_generate_options>,
    cancel: *const mc_cancel,
) {
    set(options, |generate| {
        generate.cancel = given_cancel(cancel)?;
        Ok(())
    });
}

/// An adapter for the generation, in place of the session's own. In a session, what it holds is evaluated with the adapter first,
/// and with the session's own again before the next call that needs it.
///
/// @param options  the options.
/// @param lora     an adapter of the model; the options keep it alive. NULL (the default) = the session's own adapters; without a
///                 session, none. One of another model makes the generation return MC_ERROR_MISMATCH.
/// @param scale    a factor for its changes: a finite number; 1 = as trained, 0 = the model alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_lora(
    options: MaybeUninit<&mut mc_generate_options>,
    lora: *const mc_lora,
    scale: f32,
) {
    set(options, |generate| {
        generate.adapters = Some(scaled(lora, scale)?).filter(|adapters| !adapters.is_empty());
        Ok(())
    });
}

/// Several adapters for the generation at once, in place of the session's own: their changes add up. Else as, and in place of,
/// mc_generate_options_set_lora().
///
/// @param options  the options.
/// @param loras    `count` adapters of the model, none of them NULL; the options keep them alive. NULL if `count` is 0.
/// @param scales   `count` factors for their changes, finite numbers; NULL = 1 for each.
/// @param count    how many; 0 (the default) = the session's own adapters; without a session, none. Two that replace the same matrix or
///                 bias make the generation return MC_ERROR_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_loras(
    options: MaybeUninit<&mut mc_generate_options>,
    loras: *const *const mc_lora,
    scales: *const f32,
    count: usize,
) {
    set(options, |generate| {
        generate.adapters = Some(all_scaled(loras, scales, count)?).filter(|adapters| !adapters.is_empty());
        Ok(())
    });
}

/// Who hears how far the evaluation of the prompt is. Not used by mc_session_begin().
///
/// @param options    the options.
/// @param progress   called during a generation, on its thread, with MC_STAGE_PREFILL; NULL (the default) = nobody.
/// @param user_data  handed to `progress`; may be NULL. Must live until the last generation with these options is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_prefill_progress(
    options: MaybeUninit<&mut mc_generate_options>,
    progress: mc_progress_fn,
    user_data: *mut c_void,
) {
    guard_or((), || {
        options.get("options")?.set(|options| {
            options.prefill_progress = HostProgress::new(progress, user_data);
            Ok(())
        })
    });
}

/// Adds a text that ends the answer where it appears; the answer's text ends before it. It may span tokens.
///
/// @param options   the options.
/// @param text      UTF-8, not empty, at most 64 KiB. Copied.
/// @param text_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_add_stop(
    options: MaybeUninit<&mut mc_generate_options>,
    text: MaybeUninit<&c_char>,
    text_len: usize,
) {
    set(options, |generate| {
        let text = given_content(text, text_len, "stop")?;
        check_part("stop", text)?;
        push("stop", &mut generate.stop, owned("stop", text)?)?;
        Ok(())
    });
}

/// Makes the answer a JSON text that conforms to a JSON Schema, whatever the sampling options: tokens that would break it cannot be
/// chosen. It then ends with MC_FINISH_EOS; an answer that ends for another reason (`max_tokens`, a full context, a stop text, a
/// cancel) is the beginning of such a text. Log-probabilities stay the model's own. The model does not see the schema: a prompt
/// that asks for it gives better answers.
///
/// Understood are type, enum, const, anyOf, allOf, $ref within the schema, oneOf where its cases exclude one another; properties,
/// required, additionalProperties, patternProperties, minProperties, maxProperties; items, prefixItems, minItems, maxItems;
/// pattern, format, minLength, maxLength; minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf. Another keyword of
/// JSON Schema (not, if, contains, uniqueItems and so on) is an error; a word that is none is an annotation. Properties come in the
/// schema's order; names that it leaves free may come twice, so more of minProperties than the required ones and one more are of
/// those in properties, or an error; between values stands at most one space, or a line break with an indentation; a number without
/// bounds may have more digits than a double holds. The first answer with a schema prepares the model's vocabulary, for all that follow.
///
/// @param options   the options.
/// @param json      the schema, an object or a boolean, UTF-8; NULL (the default) = any text. Copied. The first call that uses the
///                  options reads it: MC_ERROR_INVALID_ARGUMENT for what is no JSON, no schema, not understood or too large (64
///                  KiB, 4096 levels or 65536 values once each $ref is replaced by what it names, 64 patterns in
///                  patternProperties); MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_UNSUPPORTED if its tokens do
///                  not stand for bytes, or if the schema's grammar passes a limit, also in the middle of an answer.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_json_schema(
    options: MaybeUninit<&mut mc_generate_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |generate| {
        // Read by the first call that uses it, and text until then.
        let json = optional_content(json, json_len, "json_schema")?;
        json.map_or(Ok(()), check_schema)?;
        generate.json_schema = json.map(|json| owned("json_schema", json)).transpose()?;
        Ok(())
    });
}

/// Whether an answer calls tools: those of the session's conversation, as mc_chat_set_tools_json() gave them.
///
/// With "required" or a tool's name the answer consists of calls in the model's own format, and their arguments conform to the tools'
/// schemas, whatever the sampling; a single one where a tool is named, and in a format that numbers its calls. What binds is what
/// follows a thought that the prompt has opened. The answer ends with MC_FINISH_EOS behind the calls; one that ends for another reason is
/// the beginning of them. Schemas are read as mc_generate_options_set_json_schema() reads them, each of at most 64 KiB and all of them
/// together of at most 512 KiB, without what describes them (description, title, default, examples): some hundred tools; parameters of
/// which no property is named and nothing is said of others are none. Where a format writes values as bare text
/// (qwen3-xml, seed, glm4, gemma4, functiongemma) or one by one (lfm2, minicpm, gemma3), those of parameters are understood as far as the
/// format can write them exactly: anything else is an error, and numbers without bounds stay within 2^53.
///
/// With "none" a mark that opens calls cannot be chosen where it is one token, and what is written like a call stays text. The first answer
/// with a required call prepares the model's vocabulary, for all that follow.
///
/// @param options  the options.
/// @param choice   "auto", "none", "required", or the name of a tool, copied; NULL (the default) = "auto": the model chooses. What
///                 cannot be required is an error of the call that generates: MC_ERROR_INVALID_ARGUMENT without such a tool, beside a
///                 JSON schema, or for a schema that is none; MC_ERROR_UNSUPPORTED for a model whose template tells of no format of
///                 calls, and naming what its format cannot write exactly.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_tool_choice(
    options: MaybeUninit<&mut mc_generate_options>,
    choice: *const c_char,
) {
    set(options, |generate| generate.set_text("tool_choice", optional_name(choice, "tool_choice")?));
}

/// How an answer is told apart into text, thoughts and calls of tools. Its text and tokens are the same either way.
///
/// Behind a conversation that mc_session_set_chat() evaluated, an answer is told apart by what the chat template and the
/// tokenizer's special tokens say, and bare values of arguments get the types of the conversation's tools. Behind any other prompt
/// it is not. Where the prompt has opened a thought, a JSON schema binds what follows the thought.
///
/// @param options  the options.
/// @param name     a format of calls in place of that: "harmony", "gemma4", "functiongemma", "deepseek", "kimi", "mistral",
///                 "command-r", "minicpm", "lfm2", "phi4-mini", "granite", "qwen3-xml", "seed", "nemotron", "glm4", "hermes", "functionary",
///                 "function-tag", "llama3", "gemma3"; thoughts are then found by every mark that is known. "none" = all is text.
///                 NULL (the default) = as the conversation says. Another name is a bad value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_answer_format(
    options: MaybeUninit<&mut mc_generate_options>,
    name: *const c_char,
) {
    set(options, |generate| generate.set_text("answer_format", optional_name(name, "answer_format")?));
}

/// How many tokens a thought may have: then the model's own mark closes it, and the answer goes on behind it.
///
/// @param options  the options.
/// @param tokens   tokens; 0 = a thought that the prompt has opened is closed at once. SIZE_MAX (the default) = as many as the model
///                 likes. No effect where an answer is not told apart, or its format knows no thoughts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_set_reasoning_budget(options: MaybeUninit<&mut mc_generate_options>, tokens: usize) {
    let budget = if tokens == usize::MAX { OptionValue::Unset } else { tokens.into() };
    set_field(options, "reasoning_budget", budget);
}

/// Frees options; a generation that uses them goes on.
///
/// @param options  the options, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_generate_options_free(options: *mut mc_generate_options) {
    guard_or((), || free(options, "options"));
}

pub(super) fn generate_options(options: *const mc_generate_options) -> Result<HostGenerateOptions> {
    match optional(options, "options")? {
        Some(options) => options.options(),
        None => Ok(HostGenerateOptions::default()),
    }
}
