//! Host functions: called on the thread of the call that they were given to, with no lock of ours held.

use std::ffi::c_void;
use std::mem::size_of;
use std::ops::ControlFlow;

use super::boundary::outside;
use super::generate::{mc_part, mc_part_kind, mc_token_event, mc_token_fn};
use super::library::MC_CONTINUE;
use super::model::{mc_progress_event, mc_progress_fn};
use super::text::lend;
use super::train::{mc_train_event, mc_train_fn};
use crate::{AnswerPart, Progress, TokenEvent, TrainEvent};

/// The host's own pointer: handed back, never looked at.
#[derive(Clone, Copy)]
pub(super) struct UserData(pub(super) *mut c_void);

// SAFETY: we only hand it back; the header tells the host on which thread its callback runs.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

/// A progress callback and its `user_data`.
#[derive(Clone, Copy)]
pub(super) struct HostProgress {
    pub(super) function: mc_progress_fn,
    pub(super) user_data: UserData,
}

impl Default for HostProgress {
    fn default() -> Self {
        Self::new(None, std::ptr::null_mut())
    }
}

impl HostProgress {
    pub(super) fn new(function: mc_progress_fn, user_data: *mut c_void) -> Self {
        Self { function, user_data: UserData(user_data) }
    }

    /// The engine's view of it; `None` without a function.
    pub(super) fn closure(self) -> Option<impl FnMut(Progress) -> ControlFlow<()>> {
        let function = self.function?;
        Some(move |progress: Progress| {
            let event = mc_progress_event {
                struct_size: size_of::<mc_progress_event>(),
                stage: progress.stage.into(),
                done: progress.done,
                total: progress.total,
            };
            // SAFETY: the host gave this function with this user_data; the event outlives the call.
            flow(outside(|| unsafe { function(self.user_data.0, &event) }))
        })
    }
}

/// The engine's view of a token callback; without a function it only goes on.
pub(super) fn token_closure(function: mc_token_fn, user_data: *mut c_void) -> impl FnMut(&TokenEvent) -> ControlFlow<()> {
    let mut text = EventText::default();
    move |token| {
        let Some(function) = function else { return ControlFlow::Continue(()) };
        let event = token_event(token, &mut text);
        // SAFETY: the host gave this function with this user_data; event and text outlive the call.
        flow(outside(|| unsafe { function(user_data, &event) }))
    }
}

/// What an event for C points to.
#[derive(Default)]
pub(super) struct EventText {
    /// The token's text and those of its parts, each NUL-terminated.
    bytes: Vec<u8>,
    parts: Vec<mc_part>,
}

/// The event for C; what it points to lies in `text`.
pub(super) fn token_event(token: &TokenEvent, text: &mut EventText) -> mc_token_event {
    text.bytes.clear();
    text.parts.clear();
    let mut places = Vec::with_capacity(token.parts.len());
    push_text(&mut text.bytes, &token.text);
    for part in &token.parts {
        let json;
        let (kind, index, shown) = match part {
            AnswerPart::Text(text) => (mc_part_kind::MC_PART_TEXT, 0, text),
            AnswerPart::Reasoning(text) => (mc_part_kind::MC_PART_REASONING, 0, text),
            AnswerPart::ToolCall { index, name } => (mc_part_kind::MC_PART_TOOL_CALL, *index, name),
            AnswerPart::Arguments { index, json } => (mc_part_kind::MC_PART_ARGUMENTS, *index, json),
            AnswerPart::ToolCallEnd(call) => {
                json = call.to_json().to_string();
                (mc_part_kind::MC_PART_TOOL_CALL_END, call.index, &json)
            }
            AnswerPart::RejectedToolCall { index } => {
                json = String::new();
                (mc_part_kind::MC_PART_REJECTED_TOOL_CALL, *index, &json)
            }
        };
        places.push((kind, index, text.bytes.len(), shown.len()));
        push_text(&mut text.bytes, shown);
    }
    // The bytes stay where they are from here on.
    let bytes = &text.bytes;
    text.parts.extend(places.into_iter().map(|(kind, index, at, text_len)| mc_part {
        struct_size: size_of::<mc_part>(),
        text: lend(bytes[at..].as_ptr().cast()),
        text_len,
        kind,
        index,
    }));
    mc_token_event {
        struct_size: size_of::<mc_token_event>(),
        text: lend(text.bytes.as_ptr().cast()),
        text_len: token.text.len(),
        token: token.token,
        index: token.index,
        logprob: token.logprob,
        parts: lend(text.parts.as_ptr()),
        parts_len: text.parts.len(),
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// The engine's view of a training callback; without a function it only goes on.
pub(super) fn train_closure(function: mc_train_fn, user_data: *mut c_void) -> impl FnMut(&TrainEvent) -> ControlFlow<()> {
    move |event| {
        let Some(function) = function else { return ControlFlow::Continue(()) };
        let event = mc_train_event {
            struct_size: size_of::<mc_train_event>(),
            step: event.step,
            total_steps: event.total_steps,
            epoch: event.epoch as u32,
            loss: event.loss,
            eval_loss: event.eval_loss.unwrap_or(f32::NAN),
            learning_rate: event.learning_rate,
            grad_norm: event.grad_norm,
            tokens_per_second: event.tokens_per_second,
            target_tokens: event.target_tokens,
            peak_bytes: event.peak_bytes,
            truncated: event.truncated as u64,
            skipped: event.skipped as u64,
            is_best: event.is_best,
        };
        // SAFETY: the host gave this function with this user_data; the event outlives the call.
        flow(outside(|| unsafe { function(user_data, &event) }))
    }
}

fn flow(returned: i32) -> ControlFlow<()> {
    if returned == MC_CONTINUE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
