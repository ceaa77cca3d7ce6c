//! Sessions: a conversation's state, so that each turn evaluates only what is new.
//!
//! Append text or set the whole prompt, then generate, with a callback (mc_session_generate_stream()) or by asking for one
//! token after another (mc_session_begin(), mc_session_next(), mc_session_end()). The answer becomes part of the session, an
//! end-of-sequence token apart. Between mc_session_begin() and the end of that answer, calls that would change the session
//! otherwise return MC_ERROR_INVALID_ARGUMENT: call mc_session_end() first. A session can be forked, cut back, saved and loaded.
//!
//! @snippet chat.c turn
//! @see @ref chat, @ref generate, @ref lora, @ref cancel
//!
//! Threads: any; a call runs on the thread that makes it. Functions that take a session as `const` run concurrently, each other one alone: a
//! second call meanwhile, also one from a callback, is MC_ERROR_BUSY, never waits and changes nothing. After MC_ERROR_PANIC every call but
//! mc_session_position() and mc_session_free() is MC_ERROR_POISONED.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::boundary::{guard, guard_or};
use super::callback::{EventText, token_event};
use super::cancel::mc_cancel;
use super::chat::mc_chat;
use super::error::{mc_error, mc_status};
use super::generate::{generate_options, hand_over, mc_generate_options, mc_generation, mc_token_event, mc_token_fn, run};
use super::handle::{Exclusive, Given, Object, Out, OutHandle, free, optional};
use super::lora::{all_scaled, mc_lora, scaled};
use super::model::mc_model;
use super::text::{self, array, content, given_array};
use super::values::mc_tokens;
use crate::error::{Error, ErrorKind, Result};
use crate::{Session, TokenEvent};

/// The tokens evaluated so far and what the network keeps of them. Holds its model.
pub struct mc_session {
    _opaque: [u8; 0],
}

pub(super) struct SessionState {
    state: Exclusive<State>,
    /// Tokens held after the last finished call, for a caller that does not want to hear `Busy`.
    position: AtomicUsize,
}

struct State {
    session: Session,
    /// The token that was lent last. Boxed, so that its address outlives a move of the state.
    event: Option<Box<mc_token_event>>,
    event_text: EventText,
}

impl State {
    /// Lends a token to C, until the next call; without one the answer is complete.
    fn lend(&mut self, token: Option<TokenEvent>, out: &mut *const mc_token_event) -> Result<mc_status> {
        let Some(token) = token else { return Ok(mc_status::MC_DONE) };
        *out = self.event.insert(Box::new(token_event(&token, &mut self.event_text))).as_ref();
        Ok(mc_status::MC_OK)
    }
}

impl Object for mc_session {
    const NAME: &'static str = "mc_session";
    type Inner = SessionState;
}

impl SessionState {
    fn new(session: Session) -> Self {
        let position = AtomicUsize::new(session.position());
        Self { state: Exclusive::new(State { session, event: None, event_text: EventText::default() }), position }
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
        self.state.change("session", |state| {
            let result = change(state);
            self.position.store(state.session.position(), Ordering::Relaxed);
            result
        })
    }
}

/// Runs a change that has no result but its status.
fn evaluate(session: MaybeUninit<&mut mc_session>, change: impl FnOnce(&mut Session) -> Result<()>) -> Result<mc_status> {
    session.get("session")?.change(|state| change(&mut state.session))?;
    Ok(mc_status::MC_OK)
}

/// Makes an empty session.
///
/// @param model        the model; the session keeps it alive.
/// @param max_context  the most tokens that it will hold; 0 = mc_model_context_length(). Memory grows with use.
/// @param out          receives one reference; free it with mc_session_free().
/// @param err          NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for more than the model's context; MC_ERROR_UNSUPPORTED if the model cannot
///         generate; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_new(
    model: MaybeUninit<&mc_model>,
    max_context: usize,
    out: MaybeUninit<&mut *mut mc_session>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(SessionState::new(Session::new(&model.get("model")?.model, max_context)?));
        Ok(mc_status::MC_OK)
    })
}

/// Makes a copy of a session that goes its own way, as for several answers to one prompt.
///
/// @param session  the session.
/// @param out      receives one reference; free it with mc_session_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_fork(
    session: MaybeUninit<&mc_session>,
    out: MaybeUninit<&mut *mut mc_session>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let session = session.get("session")?;
        let fork = session.state.read("session")?.session.fork()?;
        out.set(SessionState::new(fork));
        Ok(mc_status::MC_OK)
    })
}

/// Evaluates text behind what the session holds. Special tokens written in it become their ids; an empty session also gets
/// what the tokenizer puts around a text, such as a beginning-of-sequence token.
///
/// @param session   the session.
/// @param text      UTF-8; NULL if `text_len` is 0.
/// @param text_len  bytes.
/// @param cancel    a flag that stops the call; NULL = none.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED or MC_ERROR_SUSPENDED (the session holds what was evaluated, see mc_session_position(), and knows that it
///         is not all: an answer is refused until the rest is appended, a prompt set, or mc_session_truncate() called);
///         MC_ERROR_OUT_OF_MEMORY or MC_ERROR_DEVICE (it holds what it held, and computes that again); MC_ERROR_CONTEXT_FULL
///         (nothing was changed); MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_BUSY;
///         MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_append(
    session: MaybeUninit<&mut mc_session>,
    text: *const c_char,
    text_len: usize,
    cancel: *const mc_cancel,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (text, cancel) = (content(text, text_len, "text")?, optional(cancel, "cancel")?);
        evaluate(session, |session| session.append(text, cancel.as_deref()))
    })
}

/// Evaluates tokens behind what the session holds.
///
/// @param session     the session.
/// @param tokens      ids below mc_model_vocab_size(); NULL if `tokens_len` is 0.
/// @param tokens_len  how many.
/// @param cancel      a flag that stops the call; NULL = none.
/// @param err         NULL, or receives the error.
/// @return as mc_session_append(); MC_ERROR_INVALID_ARGUMENT also for an id outside the vocabulary.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_append_tokens(
    session: MaybeUninit<&mut mc_session>,
    tokens: *const u32,
    tokens_len: usize,
    cancel: *const mc_cancel,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (tokens, cancel) = (array(tokens, tokens_len, "tokens")?, optional(cancel, "cancel")?);
        evaluate(session, |session| session.append_tokens(tokens, cancel.as_deref()))
    })
}

/// Makes the session hold exactly this text: what it holds is kept as far as it is the same, only the rest is evaluated.
///
/// @param session   the session.
/// @param text      UTF-8; NULL if `text_len` is 0.
/// @param text_len  bytes.
/// @param cancel    a flag that stops the call; NULL = none.
/// @param err       NULL, or receives the error.
/// @return as mc_session_append().
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_set_prompt(
    session: MaybeUninit<&mut mc_session>,
    text: *const c_char,
    text_len: usize,
    cancel: *const mc_cancel,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (text, cancel) = (content(text, text_len, "text")?, optional(cancel, "cancel")?);
        evaluate(session, |session| session.set_prompt(text, cancel.as_deref()))
    })
}

/// Makes the session hold exactly this conversation, rendered with the chat template and its generation prompt; what it
/// holds is kept as far as it is the same. A template that drops the thoughts of the turn before costs the evaluation of what is new, and
/// at most of what stays of that turn, also with layers that cannot forget single tokens, see mc_session_truncate(), and behind calls of tools.
///
/// @param session  the session.
/// @param chat     the conversation.
/// @param cancel   a flag that stops the call; NULL = none.
/// @param err      NULL, or receives the error.
/// @return as mc_session_append() and mc_model_render_chat(); MC_ERROR_BUSY if either is in use.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_set_chat(
    session: MaybeUninit<&mut mc_session>,
    chat: MaybeUninit<&mc_chat>,
    cancel: *const mc_cancel,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (chat, cancel) = (chat.get("chat")?, optional(cancel, "cancel")?);
        let chat = chat.read("chat")?;
        evaluate(session, |session| session.set_chat(&chat, cancel.as_deref()))
    })
}

/// Generates an answer to what the session holds, token by token; the session then holds the answer too.
///
/// After an error it holds the tokens that were generated, and the answer is not lost: mc_session_next() goes on with it behind
/// the last token that `on_token` got (once mc_device_resume() was called, after MC_ERROR_SUSPENDED), mc_session_end() gives what
/// there is, any other call that changes the session gives it up.
///
/// @param session    the session; not empty. `on_token` may free it, and gets MC_ERROR_BUSY for other calls on it.
/// @param options    how to generate; NULL = the defaults.
/// @param on_token   called with each token, on this thread; NULL = nobody.
/// @param user_data  handed to `on_token`; may be NULL.
/// @param out        NULL, or receives one reference, with MC_CANCELLED too (the partial answer); free it with
///                   mc_generation_free().
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for an empty session, and for half a prompt, whose evaluation was
///         stopped; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_CONTEXT_FULL; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_generate_stream(
    session: MaybeUninit<&mut mc_session>,
    options: *const mc_generate_options,
    on_token: mc_token_fn,
    user_data: *mut c_void,
    out: *mut *mut mc_generation,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::nullable(out);
        let session = session.get("session")?;
        run(options, on_token, user_data, out, |options, progress, on_token| {
            session.change(|state| state.session.generate(options, progress, on_token))
        })
    })
}

/// Begins an answer that mc_session_next() reads and mc_session_end() ends.
///
/// @param session  the session; not empty.
/// @param options  how to generate, copied; NULL = the defaults. `prefill_progress` is not used.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an empty session, for half a prompt, and while another answer is begun; MC_ERROR_BUSY;
///         MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_begin(
    session: MaybeUninit<&mut mc_session>,
    options: *const mc_generate_options,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let options = generate_options(options)?;
        evaluate(session, |session| session.begin(&options.generate))
    })
}

/// Generates the next token of the answer. After an error the answer is where it was: the next call goes on with it.
///
/// @param session  the session, after mc_session_begin(), or after mc_session_generate_stream() failed.
/// @param event    receives the token, valid until the next call on this session; NULL if the status is not MC_OK.
/// @param err      NULL, or receives the error.
/// @return MC_OK with a token; MC_DONE when the answer is complete; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also without
///         an answer; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE;
///         MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_next(
    session: MaybeUninit<&mut mc_session>,
    event: MaybeUninit<&mut *const mc_token_event>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = Out::new(event, "event")?;
        out.set(ptr::null());
        let mut token = ptr::null();
        let status = session.get("session")?.change(|state| {
            let next = state.session.next()?;
            state.lend(next, &mut token)
        })?;
        out.set(token);
        Ok(status)
    })
}

/// Generates the next token of several answers in one pass: the weights are read once for all sessions that wait for one token alone,
/// so that few answers at once take little longer than one. Each has its own options and adapters, and on the CPU the tokens that it
/// has alone, bit for bit.
///
/// @param sessions  `count` sessions of one model, none of them twice, each as for mc_session_next().
/// @param count     how many; 1 to 1024.
/// @param events    receives `count` pointers: of each session its token, valid until the next call on that session, or NULL.
/// @param statuses  receives `count` statuses: of each session what mc_session_next() returns. What is wrong with one does not stop
///                  the others.
/// @param err       NULL, or receives the error.
/// @return MC_OK if a session has a token. Else the first of `statuses` that is not MC_DONE, and MC_DONE if all are. For the call as a
///         whole, with nothing done: MC_ERROR_INVALID_ARGUMENT also for a session that is there twice; MC_ERROR_MISMATCH for sessions
///         of different models; MC_ERROR_BUSY or MC_ERROR_POISONED if one of them is; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE;
///         MC_ERROR_SUSPENDED: each status is then the same.
///
/// Threads: any; alone on each of the sessions.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_sessions_next(
    sessions: MaybeUninit<&*mut mc_session>,
    count: usize,
    events: MaybeUninit<&mut *const mc_token_event>,
    statuses: MaybeUninit<&mut mc_status>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (events, statuses) = (Out::new(events, "events")?, Out::new(statuses, "statuses")?);
        if !(1..=MOST_SESSIONS).contains(&count) {
            return Err(Error::argument(format!("count: expected 1 to {MOST_SESSIONS}, found {count}")));
        }
        let mut tokens = vec![ptr::null(); count];
        events.fill(&tokens);
        // What stands there if nothing comes back.
        statuses.fill(&vec![mc_status::MC_ERROR_PANIC; count]);
        let results = given_array(sessions, count, "sessions").and_then(|pointers| next_of(pointers, &mut tokens));
        let status = |result: &Result<mc_status>| result.as_ref().map_or_else(|error| error.kind().into(), |status| *status);
        events.fill(&tokens);
        statuses.fill(&match &results {
            Ok(results) => results.iter().map(status).collect(),
            Err(error) => vec![error.kind().into(); count],
        });
        let mut results = results?.into_iter().enumerate();
        if tokens.iter().any(|token| !token.is_null()) {
            return Ok(mc_status::MC_OK);
        }
        let failed = results.find_map(|(i, result)| result.err().map(|error| error.within(format!("sessions[{i}]"))));
        failed.map_or(Ok(mc_status::MC_DONE), Err)
    })
}

/// The most sessions of one call.
const MOST_SESSIONS: usize = 1024;

/// What came of each of several sessions that go on together; lends their tokens.
fn next_of(pointers: &[*mut mc_session], tokens: &mut [*const mc_token_event]) -> Result<Vec<Result<mc_status>>> {
    let mut handles = Vec::with_capacity(pointers.len());
    let mut known = HashMap::new();
    for (i, &pointer) in pointers.iter().enumerate() {
        let name = format!("sessions[{i}]");
        if let Some(first) = known.insert(pointer, i) {
            return Err(Error::argument(format!("{name}: expected another session than sessions[{first}], found the same")));
        }
        let session = optional(pointer.cast_const(), &name)?;
        handles.push((session.ok_or_else(|| Error::argument(format!("{name}: expected mc_session, found NULL")))?, name));
    }
    let mut states = handles.iter().map(|(session, name)| session.state.lock(name)).collect::<Result<Vec<_>>>()?;
    let results = Session::next_of(&mut states.iter_mut().map(|state| &mut state.session).collect::<Vec<_>>());
    for ((session, _), state) in handles.iter().zip(&states) {
        session.position.store(state.session.position(), Ordering::Relaxed);
    }
    let lend = |((state, result), out): ((&mut State, Result<_>), &mut _)| state.lend(result?, out);
    Ok(states.iter_mut().map(|state| &mut **state).zip(results?).zip(tokens).map(lend).collect())
}

/// What the model says of given tokens: the natural logarithm of the probability of each, the first behind what the session holds,
/// each other one behind those in front of it. For rankings and perplexities; all are evaluated in one pass, and the session holds
/// afterwards what it held.
///
/// @param session       the session; not empty.
/// @param tokens        `tokens_len` token ids; NULL if `tokens_len` is 0.
/// @param tokens_len    how many.
/// @param out_logprobs  receives `tokens_len` numbers, at most 0: of the model's own distribution, whatever the sampling.
/// @param cancel        a flag that stops the call; NULL = none.
/// @param err           NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for an empty session, while an answer is begun, and for an id outside
///         the vocabulary; MC_ERROR_CONTEXT_FULL; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE;
///         MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_score_tokens(
    session: MaybeUninit<&mut mc_session>,
    tokens: *const u32,
    tokens_len: usize,
    out_logprobs: MaybeUninit<&mut f32>,
    cancel: *const mc_cancel,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (out, tokens) = (Out::new(out_logprobs, "out_logprobs")?, array(tokens, tokens_len, "tokens")?);
        let cancel = optional(cancel, "cancel")?;
        let session = session.get("session")?;
        out.fill(&session.change(|state| state.session.score_tokens(tokens, cancel.as_deref()))?);
        Ok(mc_status::MC_OK)
    })
}

/// Ends an answer, complete or not. May be called after any status of mc_session_next(), and gives what there is.
///
/// @param session  the session, after mc_session_begin(), or after mc_session_generate_stream() failed.
/// @param out      NULL, or receives one reference, with MC_CANCELLED too (the partial answer); free it with
///                 mc_generation_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED if that ended the answer; MC_ERROR_INVALID_ARGUMENT also without an answer; MC_ERROR_BUSY;
///         MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_end(
    session: MaybeUninit<&mut mc_session>,
    out: *mut *mut mc_generation,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::nullable(out);
        let generation = session.get("session")?.change(|state| state.session.end())?;
        Ok(hand_over(generation, out))
    })
}

/// How many tokens the session held when the last call that changed it ended; never MC_ERROR_BUSY.
///
/// @param session  the session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_session_position(session: MaybeUninit<&mc_session>) -> usize {
    guard_or(0, || Ok(session.lend("session")?.position.load(Ordering::Relaxed)))
}

/// Writes a session to a file, to go on later with mc_session_load().
///
/// @param session  the session. Its adapters are not written: attach them again after mc_session_load(). Nor is how the answers of its
///                 conversation are told apart: mc_session_set_chat() with the same conversation says it, and evaluates nothing again.
/// @param path     the file; one that exists is replaced, and stays as it is if writing fails. A link is followed.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for a path that is a directory, a pipe, a socket or a device;
///         MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND if the directory does not exist; MC_ERROR_IO; MC_ERROR_BUSY;
///         MC_ERROR_POISONED; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_save(
    session: MaybeUninit<&mc_session>,
    path: MaybeUninit<&c_char>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let session = session.get("session")?;
        session.state.read("session")?.session.save(text::name(&path, "path")?)?;
        Ok(mc_status::MC_OK)
    })
}

/// Reads a session that mc_session_save() wrote. It has the same `max_context`, or the model's if that is less, and no adapters. With
/// those that it had, set again by mc_session_set_lora(), what was evaluated is used as it is; with others, or none, it is evaluated
/// again when it is next needed.
///
/// @param model  the model that the session was made with.
/// @param path   the file.
/// @param out    receives one reference; free it with mc_session_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND, MC_ERROR_IO or MC_ERROR_FORMAT for the file; MC_ERROR_MISMATCH
///         if it belongs to another model, or to one with another type of KV cache; MC_ERROR_CONTEXT_FULL if it holds more tokens
///         than the model was loaded for; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_load(
    model: MaybeUninit<&mc_model>,
    path: MaybeUninit<&c_char>,
    out: MaybeUninit<&mut *mut mc_session>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let model = model.get("model")?;
        out.set(SessionState::new(Session::load(&model.model, text::name(&path, "path")?)?));
        Ok(mc_status::MC_OK)
    })
}

/// The logits after the last token that the session holds: what the network says of each possible next token, unscaled.
/// Evaluates that token if nothing did yet.
///
/// @param session  the session; not empty.
/// @param out      receives `out_len` numbers.
/// @param out_len  mc_model_vocab_size().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an empty session and for another `out_len`; MC_ERROR_BUSY, also while
///         another mc_session_logits() runs; MC_ERROR_POISONED; MC_ERROR_DEVICE, also for logits that are no numbers, as those of
///         weights that are not finite; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_logits(
    session: MaybeUninit<&mc_session>,
    out: MaybeUninit<&mut f32>,
    out_len: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = Out::new(out, "out")?;
        session.get("session")?.change(|state| {
            let vocab_size = state.session.model().vocab_size();
            if out_len != vocab_size {
                return Err(Error::argument(format!("out_len: expected {vocab_size}, the vocabulary's size, found {out_len}")));
            }
            let logits = state.session.logits()?;
            out.fill(&logits[..out_len.min(logits.len())]);
            Ok(mc_status::MC_OK)
        })
    })
}

/// The most probable next tokens, by the model's own distribution, whatever the sampling. Evaluates the last token if nothing did yet.
///
/// @param session       the session; not empty.
/// @param count         how many; 1 to mc_model_vocab_size().
/// @param out_tokens    receives `count` ids, the most probable first, and of equals the lower id.
/// @param out_logprobs  receives `count` natural logarithms of their probabilities, at most 0.
/// @param err           NULL, or receives the error.
/// @return as mc_session_logits(); MC_ERROR_INVALID_ARGUMENT also for another `count`; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_top_logprobs(
    session: MaybeUninit<&mc_session>,
    count: usize,
    out_tokens: MaybeUninit<&mut u32>,
    out_logprobs: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (out_tokens, out_logprobs) = (Out::new(out_tokens, "out_tokens")?, Out::new(out_logprobs, "out_logprobs")?);
        session.get("session")?.change(|state| {
            let vocab_size = state.session.model().vocab_size();
            if !(1..=vocab_size).contains(&count) {
                return Err(Error::argument(format!("count: expected 1 to {vocab_size}, the vocabulary's size, found {count}")));
            }
            let (tokens, logprobs): (Vec<_>, Vec<_>) = state.session.top_logprobs(count)?.into_iter().unzip();
            out_tokens.fill(&tokens);
            out_logprobs.fill(&logprobs);
            Ok(mc_status::MC_OK)
        })
    })
}

/// The tokens that the session holds.
///
/// @param session  the session.
/// @param out      receives their ids; free it with mc_tokens_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_tokens(
    session: MaybeUninit<&mc_session>,
    out: MaybeUninit<&mut *mut mc_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let session = session.get("session")?;
        let state = session.state.read("session")?;
        let held = state.session.tokens();
        let mut tokens = Vec::new();
        let no_memory = |_| Error::new(ErrorKind::OutOfMemory, format!("{} token ids do not fit the memory", held.len()));
        tokens.try_reserve_exact(held.len()).map_err(no_memory)?;
        tokens.extend_from_slice(held);
        out.set(tokens);
        Ok(mc_status::MC_OK)
    })
}

/// The memory that a session takes now: the keys and values or other states of every layer, with those that it can go back to and room for
/// more, its tokens and logits. It grows with the context; what a session shares with its model and its adapters does not count, nor does
/// an answer in the making.
///
/// @param session  the session.
/// @param bytes    receives the bytes, of the device's memory and the process's together.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_memory(
    session: MaybeUninit<&mc_session>,
    bytes: MaybeUninit<&mut u64>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let bytes = Out::new(bytes, "bytes")?;
        bytes.set(session.get("session")?.state.read("session")?.session.memory_bytes());
        Ok(mc_status::MC_OK)
    })
}

/// Forgets what comes after the first tokens. With attention alone that costs nothing. Layers with a state of fixed size (Mamba 2, delta
/// nets, short convolutions) cannot forget more than the last tokens, 16 at most: they go back to a state that was kept, of the beginnings
/// of three answers at most, and the tokens behind it that stay are evaluated again when something is next asked for. Prompts of
/// mc_session_set_chat() whose last message is a user's are kept, the last two of them, whatever tools were called since; of others those
/// are kept that lie the closer together the nearer they are to the end.
///
/// @param session   the session.
/// @param position  how many tokens to keep, up to mc_session_position(); 0 = none.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for more tokens than there are; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_truncate(
    session: MaybeUninit<&mut mc_session>,
    position: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || evaluate(session, |session| session.truncate(position)))
}

/// Evaluates with this adapter from now on, in place of those before. The session keeps its tokens; what it computed with other
/// adapters is computed again when it is next needed. Setting what is set already costs nothing. A fork has the same adapters.
///
/// @param session  the session.
/// @param lora     an adapter of the session's model; the session keeps it alive. NULL = none: the session then computes as if it
///                 had never had one.
/// @param scale    a factor for its changes: a finite number; 1 = as trained, 0 = none.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also while an answer is begun; MC_ERROR_MISMATCH for an adapter of another model;
///         MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED. After an error the session
///         has the adapters that it had.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_set_lora(
    session: MaybeUninit<&mut mc_session>,
    lora: *const mc_lora,
    scale: f32,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let adapters = scaled(lora, scale)?;
        evaluate(session, |session| session.set_adapters(&adapters))
    })
}

/// Evaluates with several adapters at once: their changes add up. Else as mc_session_set_lora().
///
/// @param session  the session.
/// @param loras    `count` adapters of the session's model, none of them NULL; NULL if `count` is 0.
/// @param scales   `count` factors; NULL = 1 for each.
/// @param count    how many; 0 = none.
/// @param err      NULL, or receives the error.
/// @return as mc_session_set_lora(); MC_ERROR_INVALID_ARGUMENT also for two adapters that replace the same matrix or bias.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_session_set_loras(
    session: MaybeUninit<&mut mc_session>,
    loras: *const *const mc_lora,
    scales: *const f32,
    count: usize,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let adapters = all_scaled(loras, scales, count)?;
        evaluate(session, |session| session.set_adapters(&adapters))
    })
}

/// Frees a session. In a callback of a call on it, that call goes on and ends as usual.
///
/// @param session  the session, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_session_free(session: *mut mc_session) {
    guard_or((), || free(session, "session"));
}
