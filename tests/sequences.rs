//! Any sequence of calls with any handles leaves the process and the count of handles whole.

mod handles;

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use handles::*;
use metal_candle::ffi::cancel::*;
use metal_candle::ffi::chat::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::library::*;
use metal_candle::ffi::model::*;
use metal_candle::ffi::session::*;
use metal_candle::ffi::tokenizer::*;
use metal_candle::ffi::values::*;
use proptest::prelude::*;

/// One call: which, with which of the pool's handles, and a number.
#[derive(Debug, Clone, Copy)]
struct Step {
    call: u8,
    a: usize,
    b: usize,
    n: u8,
}

/// Three times in four a handle is the one that the call is for; else it is any, or NULL.
fn step() -> impl Strategy<Value = Step> {
    (0..CALLS, prop::option::weighted(0.25, 0..SLOTS), prop::option::weighted(0.25, 0..SLOTS), any::<u8>()).prop_map(
        |(call, a, b, n)| {
            let (fit_a, fit_b) = fit(call);
            Step { call, a: a.unwrap_or(fit_a), b: b.unwrap_or(fit_b), n }
        },
    )
}

const MODEL: usize = 1;
const SESSION: usize = 2;
const CHAT: usize = 4;
const OPTIONS: usize = 5;
const TOKENIZER: usize = 6;
const CANCEL: usize = 7;
const LORA: usize = 10;

/// The slots whose handles a call is for.
fn fit(call: u8) -> (usize, usize) {
    match call {
        0..=2 => (SESSION, CANCEL),
        3 => (SESSION, CHAT),
        4..=11 => (SESSION, OPTIONS),
        13..=16 => (CHAT, CHAT),
        17 => (MODEL, CHAT),
        18 | 19 => (TOKENIZER, TOKENIZER),
        12 | 20 | 21 | 36 => (MODEL, OPTIONS),
        22..=24 => (CANCEL, CANCEL),
        25..=33 => (OPTIONS, CANCEL),
        44 => (SESSION, LORA),
        45 => (OPTIONS, LORA),
        _ => (8, 9),
    }
}

const CALLS: u8 = 46;
/// NULL, the model, and slots that begin as `fit` expects and then hold anything.
const SLOTS: usize = 11;

/// Handles by slot. Calls take any slot where they expect any type.
struct Pool {
    slots: [(Type, *mut c_void); SLOTS],
    /// Options for three tokens at most, where a slot has none: NULL would generate until the context is full.
    short: *mut c_void,
    err: *mut mc_error,
}

impl Pool {
    fn new() -> Self {
        let mut slots = [(Type::Error, null_mut()); SLOTS];
        let kinds = [Type::Model, Type::Session, Type::Session, Type::Chat, Type::GenerateOptions, Type::Tokenizer, Type::Cancel];
        for (slot, kind) in slots[1..].iter_mut().zip(kinds) {
            *slot = (kind, make(kind));
        }
        slots[LORA] = (Type::Lora, make(Type::Lora));
        Self { slots, short: make(Type::GenerateOptions), err: null_mut() }
    }

    fn at<T>(&self, slot: usize) -> MaybeUninit<T> {
        nn(self.slots[slot].1)
    }

    fn raw<T>(&self, slot: usize) -> *mut T {
        self.slots[slot].1.cast()
    }

    /// Puts a new handle into a slot, whose old one is freed. The first two stay NULL and the model.
    fn put(&mut self, slot: usize, kind: Type, handle: *mut c_void) {
        let slot = slot.max(2);
        let (old_kind, old) = std::mem::replace(&mut self.slots[slot], (kind, handle));
        release(old_kind, old);
    }

    fn run(&mut self, Step { call, a, b, n }: Step) {
        let mut out: *mut c_void = null_mut();
        let (place, err) = (&raw mut out, &raw mut self.err);
        let (words, len) = ("fn main() { let x = 1; }".as_ptr().cast::<c_char>(), usize::from(n) % 25);
        let (token, half, flag) = ([u32::from(n) * 17], f32::from(n) / 255.0, n % 2 == 0);
        let mut number = 0u64;
        // SAFETY: what the calls get is valid or of another type or NULL, which they must refuse.
        let status = unsafe {
            match call {
                0 => mc_session_append(self.at(a), words, len, self.raw(b), err),
                1 => mc_session_append_tokens(self.at(a), token.as_ptr(), 1, self.raw(b), err),
                2 => mc_session_set_prompt(self.at(a), words, len, self.raw(b), err),
                3 => mc_session_set_chat(self.at(a), self.at(b), null(), err),
                4 => {
                    let status =
                        mc_session_generate_stream(self.at(a), self.short(b), Some(react), self.raw(a), place.cast(), err);
                    self.keep(n, Type::Generation, out);
                    status
                }
                5 => mc_session_begin(self.at(a), self.short(b), err),
                6 | 7 => mc_session_next(self.at(a), nn(&raw mut number), err),
                8 => {
                    let status = mc_session_end(self.at(a), place.cast(), err);
                    self.keep(n, Type::Generation, out);
                    status
                }
                9 => mc_session_truncate(self.at(a), usize::from(n), err),
                10 => {
                    let mut logits = vec![0f32; 4096];
                    mc_session_logits(self.at(a), nn(logits.as_mut_ptr()), 4096 - usize::from(n % 4 == 0), err)
                }
                11 => {
                    let status = mc_session_fork(self.at(a), nn(place), err);
                    self.keep(n, Type::Session, out);
                    status
                }
                12 => {
                    let status = mc_session_new(self.at(a), usize::from(n), nn(place), err);
                    self.keep(n, Type::Session, out);
                    status
                }
                13 => mc_chat_add(self.at(a), nn(c"user".as_ptr()), words, len, err),
                14 => mc_chat_set_variable_json(self.at(a), nn(c"x".as_ptr()), words, len, err),
                15 => mc_chat_set_tools_json(self.at(a), c"[]".as_ptr(), usize::from(n) % 3, err),
                16 => mc_chat_set_template(self.at(a), c"{{ messages | length }}".as_ptr(), usize::from(n) % 24, err),
                17 => {
                    let status = mc_model_render_chat(self.at(a), self.at(b), flag, nn(place), err);
                    self.keep(n, Type::String, out);
                    status
                }
                18 => {
                    let status = mc_tokenizer_encode(self.at(a), words, len, flag, nn(place), err);
                    self.keep(n, Type::Tokens, out);
                    status
                }
                19 => {
                    let status = mc_tokenizer_decode(self.at(a), token.as_ptr(), 1, flag, nn(place), err);
                    self.keep(n, Type::String, out);
                    status
                }
                20 => {
                    let status = mc_model_tokenizer(self.at(a), nn(place), err);
                    self.keep(n, Type::Tokenizer, out);
                    status
                }
                21 => {
                    let status = mc_generate_stream(self.at(a), words, len, self.short(b), None, null_mut(), place.cast(), err);
                    self.keep(n, Type::Generation, out);
                    status
                }
                44 => mc_session_set_lora(self.at(a), self.raw(b), f32::from(n % 3) / 2.0, err),
                _ => {
                    self.run_without_status(Step { call, a, b, n }, half, flag);
                    mc_status::MC_OK
                }
            }
        };
        let (code, message) = taken(&mut self.err);
        assert_ne!(status, mc_status::MC_ERROR_PANIC, "{message}");
        assert_eq!(code as i32, if status as i32 >= 16 { status as i32 } else { 0 });
    }

    fn run_without_status(&mut self, Step { call, a, b, n }: Step, half: f32, flag: bool) {
        // SAFETY: as above.
        unsafe {
            match call {
                22 => mc_cancel_trigger(self.at(a)),
                23 | 24 => mc_cancel_reset(self.at(a)),
                25 => mc_generate_options_set_cancel(self.at(a), self.raw(b)),
                26 => mc_generate_options_set_temperature(self.at(a), half.into()),
                27 => mc_generate_options_set_top_k(self.at(a), usize::from(n)),
                28 => mc_generate_options_set_top_p(self.at(a), half.into()),
                29 => mc_generate_options_set_repetition_penalty(self.at(a), f64::from(half) + 1.0, usize::from(n)),
                30 => mc_generate_options_add_logit_bias(self.at(a), u32::from(n), half),
                31 => mc_generate_options_set_ignore_eos(self.at(a), flag),
                32 => mc_generate_options_set_prefill_chunk(self.at(a), usize::from(n)),
                33 => mc_generate_options_add_stop(self.at(a), nn(c"let".as_ptr()), 3),
                45 => mc_generate_options_set_lora(self.at(a), self.raw(b), half),
                34 => drop(text(mc_generation_text(self.at(a)))),
                35 => drop((mc_session_position(self.at(a)), mc_string_len(self.at(a)), mc_tokens_len(self.at(a)))),
                36 => drop((text(mc_model_architecture(self.at(a))), text(mc_string_data(self.at(b))))),
                37 => drop(mc_generation_finish_reason(self.at(a))),
                38 => self.put(a, Type::Cancel, pointer(mc_cancel_new())),
                39 => self.put(a, Type::Chat, make(Type::Chat)),
                40 => self.put(a, Type::GenerateOptions, make(Type::GenerateOptions)),
                41 => self.put(a, Type::Session, null_mut()),
                // Freed as another type: nothing happens.
                42 if self.slots[a].0 != Type::Session => mc_session_free(self.raw(a)),
                43 if self.slots[a].0 != Type::Chat => mc_chat_free(self.raw(a)),
                _ => {}
            }
        }
    }

    fn keep(&mut self, n: u8, kind: Type, handle: *mut c_void) {
        if !handle.is_null() {
            self.put(usize::from(n) % SLOTS, kind, handle);
        }
    }

    /// A slot as options. What is no options at all is handed on.
    fn short(&self, slot: usize) -> *const mc_generate_options {
        let handle = if self.slots[slot].1.is_null() { self.short } else { self.slots[slot].1 };
        handle.cast_const().cast()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.slots.iter().for_each(|(kind, handle)| release(*kind, *handle));
        release(Type::GenerateOptions, self.short);
    }
}

/// Tries the session that it runs in, and stops now and then.
extern "C" fn react(session: *mut c_void, event: &mc_token_event) -> i32 {
    // SAFETY: the handle lives; the call must find it busy.
    let status = unsafe { mc_session_truncate(nn(session), 0, null_mut()) };
    assert_eq!(status, mc_status::MC_ERROR_BUSY);
    if event.token.is_multiple_of(7) { MC_STOP } else { MC_CONTINUE }
}

#[test]
fn any_sequence_of_calls_leaves_nothing_behind() {
    let _alone = alone();
    let kept = kept();
    let config = ProptestConfig { cases: 1000, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..48))| {
        let mut pool = Pool::new();
        steps.into_iter().for_each(|step| pool.run(step));
        drop(pool);
        prop_assert_eq!(mc_live_objects(), kept);
    });
}
