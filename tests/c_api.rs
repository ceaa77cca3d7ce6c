//! What the C ABI adds to the engine: remembered bad values, `MC_ERROR_BUSY`, poisoning, callbacks that free, the log.
#![allow(clippy::manual_dangling_ptr)] // a pointer that is not aligned is what those tests are about

mod handles;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::mem::{MaybeUninit, size_of};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use handles::*;
use mc_status::*;
use metal_candle::ffi::cancel::*;
#[cfg(feature = "fault-injection")]
use metal_candle::ffi::chat::*;
use metal_candle::ffi::device::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::library::*;
#[cfg(feature = "fault-injection")]
use metal_candle::ffi::lora::*;
use metal_candle::ffi::model::*;
use metal_candle::ffi::session::*;
#[cfg(feature = "fault-injection")]
use metal_candle::ffi::train::*;

/// A handle that this test frees.
struct Owned(Type, *mut c_void);

impl Owned {
    #[track_caller]
    fn new(kind: Type) -> Self {
        let handle = make(kind);
        assert!(!handle.is_null(), "{kind:?} cannot be made");
        Self(kind, handle)
    }

    fn arg<T>(&self) -> MaybeUninit<T> {
        nn(self.1)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        release(self.0, self.1);
    }
}

/// Options and the generation that reports their bad value.
fn report(set: impl FnOnce(MaybeUninit<&mut mc_generate_options>)) -> String {
    let (model, options) = (Owned::new(Type::Model), Owned::new(Type::GenerateOptions));
    set(options.arg());
    let (mut out, mut err) = (null_mut::<mc_generation>(), null_mut());
    let status = unsafe { mc_generate(model.arg(), null(), 0, options.1.cast(), nn(&raw mut out), &raw mut err) };
    assert!(out.is_null());
    expect(MC_ERROR_INVALID_ARGUMENT, status, &mut err)
}

#[test]
fn bad_generate_options_are_reported_by_their_first_use() {
    let _alone = alone();
    unsafe {
        for (found, expected) in [
            (report(|o| mc_generate_options_set_temperature(o, -1.0)), "options: temperature: expected 0 or more, found -1"),
            (report(|o| mc_generate_options_set_temperature(o, f64::NAN)), "options: temperature: expected 0 or more, found NaN"),
            (report(|o| mc_generate_options_set_top_p(o, 1.5)), "options: top_p: expected above 0, up to 1, found 1.5"),
            (report(|o| mc_generate_options_set_top_p(o, 0.0)), "options: top_p: expected above 0, up to 1, found 0"),
            (report(|o| mc_generate_options_set_min_p(o, 2.0)), "options: min_p: expected 0 to 1, found 2"),
            (
                report(|o| mc_generate_options_set_repetition_penalty(o, 0.0, 0)),
                "options: repetition_penalty: expected above 0, found 0",
            ),
            (report(|o| mc_generate_options_set_prefill_chunk(o, 0)), "options: prefill_chunk: expected 1 to 512, found 0"),
            (report(|o| mc_generate_options_set_prefill_chunk(o, 513)), "options: prefill_chunk: expected 1 to 512, found 513"),
            (
                report(|o| mc_generate_options_add_stop(o, nn(c"".as_ptr()), 0)),
                "options: stop: expected text, found an empty one",
            ),
            (
                report(|o| mc_generate_options_add_stop(o, nn(c"a\xff".as_ptr()), 2)),
                "options: stop: expected UTF-8, found byte 0xff at offset 1",
            ),
        ] {
            assert_eq!(found, expected);
        }
        assert!(
            report(|o| mc_generate_options_set_frequency_penalty(o, f64::INFINITY)).starts_with("options: frequency_penalty: ")
        );
        assert!(report(|o| mc_generate_options_set_presence_penalty(o, f64::NAN)).starts_with("options: presence_penalty: "));
        assert!(report(|o| mc_generate_options_add_logit_bias(o, 3, f32::NAN)).starts_with("options: logit_bias[3]: "));
        let device = Owned::new(Type::Device);
        assert!(
            report(|o| mc_generate_options_set_cancel(o, device.1.cast())).starts_with("options: cancel: expected mc_cancel, ")
        );
    }
}

#[test]
fn the_first_bad_value_is_the_one_that_is_reported() {
    let _alone = alone();
    let (options, mut bytes, mut err) = (Owned::new(Type::ModelOptions), 0u64, null_mut());
    let path = model_path();
    unsafe {
        mc_model_options_set_device(options.arg(), options.1.cast_const().cast());
        mc_model_options_set_dtype(options.arg(), argument(17));
        mc_model_options_set_dtype(options.arg(), argument(1));
        for _ in 0..2 {
            let options = options.1.cast_const().cast();
            let status = mc_model_estimate_memory(nn(path.as_ptr()), options, nn(&raw mut bytes), &raw mut err);
            let message = expect(MC_ERROR_INVALID_ARGUMENT, status, &mut err);
            assert_eq!(message, "options: device: expected mc_device, found a handle of another type or a freed one");
        }
    }
    let options = Owned::new(Type::ModelOptions);
    unsafe {
        mc_model_options_set_dtype(options.arg(), argument(17));
        let mut out = null_mut::<mc_model>();
        let status = mc_model_load(nn(path.as_ptr()), options.1.cast(), nn(&raw mut out), &raw mut err);
        let message = expect(MC_ERROR_INVALID_ARGUMENT, status, &mut err);
        assert_eq!(message, "options: dtype: expected a value of mc_dtype, found 17");
    }
}

#[test]
fn an_error_without_a_place_for_it_is_only_a_status() {
    let _alone = alone();
    let (kept, mut out) = (kept(), 8 as *mut mc_model);
    let status = unsafe { mc_model_load(nn(c"no/such/model".as_ptr()), null(), nn(&raw mut out), null_mut()) };
    assert_eq!((status, out.is_null()), (MC_ERROR_NOT_FOUND, true));
    assert_eq!(mc_live_objects(), kept);
}

#[test]
fn a_stale_error_pointer_becomes_null_on_success() {
    let _alone = alone();
    let (mut out, mut err) = (null_mut::<mc_device>(), 8 as *mut mc_error);
    unsafe {
        let status = mc_device_new(MaybeUninit::new(mc_device_kind::MC_DEVICE_CPU), 0, nn(&raw mut out), &raw mut err);
        assert_eq!((status, err.is_null()), (MC_OK, true));
        mc_device_free(out);
    }
}

/// What a token callback does with the session that it runs in.
struct Inside {
    session: *mut mc_session,
    calls: usize,
    action: fn(&mut Inside, &mc_token_event) -> i32,
}

extern "C" fn inside(user_data: *mut c_void, event: &mc_token_event) -> i32 {
    let inside = unsafe { &mut *user_data.cast::<Inside>() };
    inside.calls += 1;
    (inside.action)(inside, event)
}

/// Streams from a new session and gives status, text, finish reason and how often the callback ran.
fn stream(action: fn(&mut Inside, &mc_token_event) -> i32) -> (mc_status, String, mc_finish_reason, usize) {
    let session = make(Type::Session);
    assert!(!session.is_null());
    let mut state = Inside { session: session.cast(), calls: 0, action };
    let (mut out, mut err) = (null_mut::<mc_generation>(), null_mut());
    unsafe {
        let status =
            mc_session_generate_stream(nn(session), null(), Some(inside), (&raw mut state).cast(), &raw mut out, &raw mut err);
        assert!(err.is_null(), "{}", taken(&mut err).1);
        let found = (status, text(mc_generation_text(nn(out))), mc_generation_finish_reason(nn(out)), state.calls);
        mc_generation_free(out);
        mc_session_free(state.session);
        found
    }
}

#[test]
fn a_stream_gives_the_answer_piece_by_piece() {
    let _alone = alone();
    thread_local!(static PIECES: RefCell<String> = const { RefCell::new(String::new()) });
    let found = stream(|inside, event| {
        assert_eq!(event.struct_size, size_of::<mc_token_event>());
        assert_eq!(event.index as usize, inside.calls - 1);
        let piece = text(event.text);
        assert_eq!(piece.len(), event.text_len);
        PIECES.with_borrow_mut(|pieces| pieces.push_str(&piece));
        MC_CONTINUE
    });
    assert_eq!(found, (MC_OK, ANSWER.to_owned(), mc_finish_reason::MC_FINISH_EOS, 13));
    assert_eq!(PIECES.take(), ANSWER);
}

#[test]
fn callbacks_run_on_the_calling_thread() {
    let _alone = alone();
    thread_local!(static CALLS: Cell<[usize; 3]> = const { Cell::new([0; 3]) });
    fn count(which: usize) -> i32 {
        let mut calls = CALLS.get();
        calls[which] += 1;
        CALLS.set(calls);
        MC_CONTINUE
    }
    extern "C" fn on_token(_: *mut c_void, _: &mc_token_event) -> i32 {
        count(0)
    }
    extern "C" fn on_prefill(_: *mut c_void, event: &mc_progress_event) -> i32 {
        assert_eq!(event.stage, mc_stage::MC_STAGE_PREFILL);
        count(1)
    }
    extern "C" fn on_load(_: *mut c_void, event: &mc_progress_event) -> i32 {
        assert_eq!(event.stage, mc_stage::MC_STAGE_READ);
        count(2)
    }
    let (load, generate) = (Owned::new(Type::ModelOptions), Owned::new(Type::GenerateOptions));
    let (mut model, mut out, mut err) = (null_mut::<mc_model>(), null_mut::<mc_generation>(), null_mut());
    let prompt = PROMPT.as_ptr().cast();
    unsafe {
        mc_model_options_set_progress(load.arg(), Some(on_load), null_mut());
        let status = mc_model_load(nn(model_path().as_ptr()), load.1.cast(), nn(&raw mut model), &raw mut err);
        expect(MC_OK, status, &mut err);
        mc_generate_options_set_prefill_progress(generate.arg(), Some(on_prefill), null_mut());
        mc_generate_options_set_prefill_chunk(generate.arg(), 10);
        let options = generate.1.cast();
        let (model, out, err_at) = (model, &raw mut out, &raw mut err);
        let status = mc_generate_stream(nn(model), prompt, PROMPT.len(), options, Some(on_token), null_mut(), out, err_at);
        expect(MC_OK, status, &mut err);
        mc_generation_free(*out);
        mc_model_free(model);
    }
    let [tokens, chunks, reads] = CALLS.get();
    assert_eq!((tokens, chunks), (2, 4));
    assert!(reads > 1);
}

#[test]
fn anything_but_continue_stops() {
    let _alone = alone();
    let actions: [fn(&mut Inside, &mc_token_event) -> i32; 4] = [|_, _| MC_STOP, |_, _| 2, |_, _| -1, |_, _| i32::MIN];
    for action in actions {
        let (status, _, reason, calls) = stream(action);
        assert_eq!((status, reason, calls), (MC_OK, mc_finish_reason::MC_FINISH_CALLBACK, 1));
    }
}

#[test]
fn a_session_is_busy_inside_its_own_callback() {
    let _alone = alone();
    let (status, text, ..) = stream(|inside, _| {
        let (session, mut err) = (inside.session, null_mut());
        let (mut out, mut event, mut logits) = (null_mut::<mc_session>(), null::<mc_token_event>(), 0f32);
        let path = c"/nonexistent/session".as_ptr();
        let (chat, at) = (Owned::new(Type::Chat), &raw mut err);
        let busy = |status| {
            let message = expect(MC_ERROR_BUSY, status, unsafe { &mut *at });
            assert_eq!(message, "session: expected to be free, found in use by another call");
        };
        unsafe {
            assert_eq!(mc_session_position(nn(session)), 40);
            busy(mc_session_fork(nn(session), nn(&raw mut out), at));
            busy(mc_session_append(nn(session), null(), 0, null(), at));
            busy(mc_session_append_tokens(nn(session), null(), 0, null(), at));
            busy(mc_session_set_prompt(nn(session), null(), 0, null(), at));
            busy(mc_session_set_chat(nn(session), chat.arg(), null(), at));
            busy(mc_session_generate_stream(nn(session), null(), None, null_mut(), null_mut(), at));
            busy(mc_session_begin(nn(session), null(), at));
            busy(mc_session_next(nn(session), nn(&raw mut event), at));
            busy(mc_session_score_tokens(nn(session), null(), 0, nn(&raw mut logits), null(), at));
            busy(mc_session_end(nn(session), null_mut(), at));
            busy(mc_session_save(nn(session), nn(path), at));
            busy(mc_session_logits(nn(session), nn(&raw mut logits), 4096, at));
            busy(mc_session_truncate(nn(session), 0, at));
        }
        MC_CONTINUE
    });
    assert_eq!((status, text.as_str()), (MC_OK, ANSWER));
}

#[test]
fn a_callback_may_free_the_session_it_runs_in() {
    let _alone = alone();
    let kept = kept();
    let (status, text, ..) = stream(|inside, _| {
        unsafe { mc_session_free(std::mem::replace(&mut inside.session, null_mut())) };
        MC_CONTINUE
    });
    assert_eq!((status, text.as_str()), (MC_OK, ANSWER));
    assert_eq!(mc_live_objects(), kept);
}

#[test]
fn a_callback_may_use_and_free_other_handles() {
    let _alone = alone();
    let (status, text, ..) = stream(|_, _| {
        drop((Owned::new(Type::Session), Owned::new(Type::Generation), Owned::new(Type::Chat)));
        MC_CONTINUE
    });
    assert_eq!((status, text.as_str()), (MC_OK, ANSWER));
}

#[test]
fn options_and_cancel_may_be_freed_while_a_stream_uses_them() {
    let _alone = alone();
    let (session, mut err) = (Owned::new(Type::Session), null_mut());
    let (options, cancel) = (make(Type::GenerateOptions), make(Type::Cancel));
    unsafe { mc_generate_options_set_cancel(nn(options), cancel.cast()) };
    let mut handles = [options, cancel];
    extern "C" fn free_both(user_data: *mut c_void, _: &mc_token_event) -> i32 {
        let handles = unsafe { &mut *user_data.cast::<[*mut c_void; 2]>() };
        release(Type::GenerateOptions, std::mem::replace(&mut handles[0], null_mut()));
        release(Type::Cancel, std::mem::replace(&mut handles[1], null_mut()));
        MC_CONTINUE
    }
    let data = (&raw mut handles).cast();
    let status =
        unsafe { mc_session_generate_stream(session.arg(), options.cast(), Some(free_both), data, null_mut(), &raw mut err) };
    expect(MC_OK, status, &mut err);
}

#[test]
fn a_second_thread_finds_the_session_busy() {
    let _alone = alone();
    struct Shared {
        session: *mut mc_session,
        inside: Barrier,
        tried: Barrier,
    }
    unsafe impl Sync for Shared {}
    extern "C" fn wait(user_data: *mut c_void, _: &mc_token_event) -> i32 {
        let shared = unsafe { &*user_data.cast::<Shared>() };
        shared.inside.wait();
        shared.tried.wait();
        MC_STOP
    }
    let session = Owned::new(Type::Session);
    let shared = Shared { session: session.1.cast(), inside: Barrier::new(2), tried: Barrier::new(2) };
    thread::scope(|scope| {
        let shared = &shared;
        scope.spawn(move || {
            let (data, mut err) = ((&raw const *shared).cast_mut().cast(), null_mut());
            let status =
                unsafe { mc_session_generate_stream(nn(shared.session), null(), Some(wait), data, null_mut(), &raw mut err) };
            expect(MC_OK, status, &mut err);
        });
        shared.inside.wait();
        let mut err = null_mut();
        let status = unsafe { mc_session_truncate(nn(shared.session), 0, &raw mut err) };
        expect(MC_ERROR_BUSY, status, &mut err);
        shared.tried.wait();
    });
}

#[test]
fn const_calls_on_one_session_run_beside_each_other() {
    let _alone = alone();
    let session = Owned::new(Type::Session);
    let (address, directory) = (session.1 as usize, tempfile::tempdir().unwrap());
    thread::scope(|scope| {
        for i in 0..4 {
            let path = std::ffi::CString::new(directory.path().join(i.to_string()).to_str().unwrap()).unwrap();
            scope.spawn(move || {
                for _ in 0..8 {
                    let (mut fork, mut err) = (null_mut::<mc_session>(), null_mut());
                    unsafe {
                        expect(MC_OK, mc_session_fork(argument(address as u64), nn(&raw mut fork), &raw mut err), &mut err);
                        mc_session_free(fork);
                        expect(MC_OK, mc_session_save(argument(address as u64), nn(path.as_ptr()), &raw mut err), &mut err);
                    }
                }
            });
        }
    });
}

#[test]
fn one_token_after_another_is_the_same_answer() {
    let _alone = alone();
    let session = Owned::new(Type::Session);
    let (mut event, mut out, mut err) = (null::<mc_token_event>(), null_mut::<mc_generation>(), null_mut());
    let mut pieces = String::new();
    unsafe {
        expect(MC_OK, mc_session_begin(session.arg(), null(), &raw mut err), &mut err);
        loop {
            match mc_session_next(session.arg(), nn(&raw mut event), &raw mut err) {
                MC_OK => pieces.push_str(&text((*event).text)),
                status => break expect(MC_DONE, status, &mut err),
            };
        }
        .clear();
        assert!(event.is_null());
        expect(MC_OK, mc_session_end(session.arg(), &raw mut out, &raw mut err), &mut err);
        assert_eq!((pieces.as_str(), text(mc_generation_text(nn(out))).as_str()), (ANSWER, ANSWER));
        mc_generation_free(out);
        let status = mc_session_end(session.arg(), &raw mut out, &raw mut err);
        expect(MC_ERROR_INVALID_ARGUMENT, status, &mut err);
        assert!(out.is_null());
    }
}

#[test]
fn a_cancelled_generation_hands_over_what_there_is() {
    let _alone = alone();
    let (session, options) = (Owned::new(Type::Session), Owned::new(Type::GenerateOptions));
    let cancel = Owned::new(Type::Cancel);
    let (mut out, mut err) = (null_mut::<mc_generation>(), null_mut());
    extern "C" fn trigger(user_data: *mut c_void, _: &mc_token_event) -> i32 {
        unsafe { mc_cancel_trigger(nn(user_data)) };
        MC_CONTINUE
    }
    unsafe {
        mc_generate_options_set_cancel(options.arg(), cancel.1.cast());
        let options = options.1.cast();
        let status = mc_session_generate_stream(session.arg(), options, Some(trigger), cancel.1, &raw mut out, &raw mut err);
        expect(MC_CANCELLED, status, &mut err);
        assert_eq!(mc_generation_finish_reason(nn(out)), mc_finish_reason::MC_FINISH_CANCELLED);
        assert_eq!(mc_generation_tokens_len(nn(out)), 1);
        mc_generation_free(out);
        mc_cancel_reset(cancel.arg());
        let status = mc_session_generate_stream(session.arg(), options, None, null_mut(), &raw mut out, &raw mut err);
        expect(MC_OK, status, &mut err);
        mc_generation_free(out);
    }
}

#[test]
fn a_progress_callback_stops_loading() {
    let _alone = alone();
    extern "C" fn stop(user_data: *mut c_void, event: &mc_progress_event) -> i32 {
        assert_eq!(event.struct_size, size_of::<mc_progress_event>());
        unsafe { *user_data.cast::<usize>() += 1 };
        MC_STOP
    }
    let (options, mut calls) = (Owned::new(Type::ModelOptions), 0usize);
    let (mut out, mut err) = (null_mut::<mc_model>(), null_mut());
    unsafe {
        mc_model_options_set_progress(options.arg(), Some(stop), (&raw mut calls).cast());
        let status = mc_model_load(nn(model_path().as_ptr()), options.1.cast(), nn(&raw mut out), &raw mut err);
        expect(MC_CANCELLED, status, &mut err);
    }
    assert_eq!((calls, out.is_null()), (1, true));
}

#[test]
fn a_triggered_flag_stops_loading() {
    let _alone = alone();
    let (options, cancel) = (Owned::new(Type::ModelOptions), Owned::new(Type::Cancel));
    let (mut out, mut err) = (null_mut::<mc_model>(), null_mut());
    unsafe {
        mc_cancel_trigger(cancel.arg());
        assert!(mc_cancel_is_triggered(cancel.arg()));
        mc_model_options_set_cancel(options.arg(), cancel.1.cast());
        let status = mc_model_load(nn(model_path().as_ptr()), options.1.cast(), nn(&raw mut out), &raw mut err);
        expect(MC_CANCELLED, status, &mut err);
        assert!(out.is_null());
    }
}

#[test]
fn handles_are_freed_in_any_order() {
    let _alone = alone();
    let (mut model, mut session, mut err) = (null_mut::<mc_model>(), null_mut::<mc_session>(), null_mut());
    unsafe {
        let status = mc_model_load(nn(model_path().as_ptr()), null(), nn(&raw mut model), &raw mut err);
        expect(MC_OK, status, &mut err);
        mc_model_retain(nn(model));
        mc_model_free(model);
        assert_eq!(text(mc_model_architecture(nn(model))), "qwen2");
        expect(MC_OK, mc_session_new(nn(model), 0, nn(&raw mut session), &raw mut err), &mut err);
        mc_model_free(model);
        let prompt = PROMPT.as_ptr().cast::<c_char>();
        expect(MC_OK, mc_session_append(nn(session), prompt, PROMPT.len(), null(), &raw mut err), &mut err);
        assert_eq!(mc_session_position(nn(session)), 40);
        mc_session_free(session);
    }
}

#[test]
fn freeing_a_handle_as_another_type_leaves_it_alone() {
    let _alone = alone();
    let (before, cancel) = (kept(), Owned::new(Type::Cancel));
    unsafe {
        mc_session_free(cancel.1.cast());
        mc_error_free(cancel.1.cast());
        mc_cancel_trigger(cancel.arg());
        assert!(mc_cancel_is_triggered(cancel.arg()));
    }
    assert_eq!(mc_live_objects(), before + 1);
}

/// The log callback is one for the process: one test, several facts.
#[test]
fn the_log_callback_is_replaced_and_freed_once() {
    let _alone = alone();
    #[derive(Default)]
    struct Log {
        messages: Mutex<Vec<(mc_log_level, String)>>,
        freed: AtomicUsize,
        inside: Mutex<Option<mc_status>>,
    }
    unsafe extern "C" fn record(
        user_data: *mut c_void,
        level: mc_log_level,
        target: MaybeUninit<&c_char>,
        message: MaybeUninit<&c_char>,
        message_len: usize,
    ) {
        let log = unsafe { &*user_data.cast::<Log>() };
        let message = text(message);
        assert_eq!(message.len(), message_len);
        assert!(text(target).starts_with("metal_candle"));
        log.messages.lock().unwrap().push((level, message));
        // What this logs itself is dropped, and the callback cannot replace itself.
        unsafe { mc_cancel_free(1 as *mut mc_cancel) };
        let status = unsafe { mc_log_set(None, null_mut(), None, argument(0), null_mut()) };
        *log.inside.lock().unwrap() = Some(status);
    }
    unsafe extern "C" fn freed(user_data: *mut c_void) {
        unsafe { &*user_data.cast::<Log>() }.freed.fetch_add(1, Ordering::Relaxed);
    }
    let set = |log: &Log, level: mc_log_level| unsafe {
        let (data, mut err) = ((&raw const *log).cast_mut().cast(), null_mut());
        let status = mc_log_set(Some(record), data, Some(freed), MaybeUninit::new(level), &raw mut err);
        expect(MC_OK, status, &mut err);
    };
    let ignored_call = || unsafe { mc_cancel_free(1 as *mut mc_cancel) };
    let (first, second) = (Log::default(), Log::default());

    set(&first, mc_log_level::MC_LOG_WARN);
    ignored_call();
    let expected = "ignored call: cancel: expected mc_cancel, found a handle of another type or a freed one";
    assert_eq!(*first.messages.lock().unwrap(), [(mc_log_level::MC_LOG_WARN, expected.to_owned())]);
    assert_eq!(*first.inside.lock().unwrap(), Some(MC_ERROR_BUSY));

    let mut err = null_mut();
    let status = unsafe { mc_log_set(Some(record), null_mut(), Some(freed), argument(99), &raw mut err) };
    let message = expect(MC_ERROR_INVALID_ARGUMENT, status, &mut err);
    assert_eq!(message, "max_level: expected a value of mc_log_level, found 99");
    assert_eq!(first.freed.load(Ordering::Relaxed), 0);

    set(&second, mc_log_level::MC_LOG_ERROR);
    assert_eq!(first.freed.load(Ordering::Relaxed), 1);
    ignored_call();
    assert!(second.messages.lock().unwrap().is_empty());

    let milestones = Log::default();
    set(&milestones, mc_log_level::MC_LOG_INFO);
    assert_eq!(second.freed.load(Ordering::Relaxed), 1);
    metal_candle::Model::load(model_path().to_str().unwrap(), &metal_candle::LoadOptions::default(), None).unwrap();
    let (level, message) = milestones.messages.lock().unwrap().pop().unwrap();
    assert_eq!((level, message.starts_with("loaded qwen2: ")), (mc_log_level::MC_LOG_INFO, true), "{message}");

    // Replaced again and again while other threads log: each data is freed once, with nobody inside.
    let logs: Vec<Log> = (0..64).map(|_| Log::default()).collect();
    thread::scope(|scope| {
        let logging = scope.spawn(|| (0..20_000).for_each(|_| ignored_call()));
        for log in &logs {
            set(log, mc_log_level::MC_LOG_WARN);
            thread::yield_now();
        }
        logging.join().unwrap();
    });
    for _ in 0..2 {
        assert_eq!(unsafe { mc_log_set(None, null_mut(), None, argument(0), null_mut()) }, MC_OK);
    }
    assert_eq!(second.freed.load(Ordering::Relaxed), 1);
    assert!(logs.iter().all(|log| log.freed.load(Ordering::Relaxed) == 1));
}

#[test]
fn versions_and_features_are_those_of_the_build() {
    assert_eq!(text(mc_version_string()), env!("CARGO_PKG_VERSION"));
    assert_eq!(mc_abi_version(), MC_ABI_VERSION);
    let has = |name: &CStr| unsafe { mc_has_feature(nn(name.as_ptr())) };
    assert_eq!(has(c"hub"), cfg!(feature = "hub"));
    assert_eq!(has(c"fault-injection"), cfg!(feature = "fault-injection"));
    assert!(!has(c"telepathy"));
}

#[cfg(feature = "fault-injection")]
mod faults {
    use metal_candle::ffi::boundary::{inject_panic, inject_panic_in_use};

    use super::*;

    #[test]
    fn a_panic_poisons_the_session_and_not_its_model() {
        let _alone = alone();
        let (session, mut err) = (Owned::new(Type::Session), null_mut());
        unsafe {
            inject_panic_in_use();
            expect(MC_ERROR_PANIC, mc_session_truncate(session.arg(), 1, &raw mut err), &mut err);
            let (mut fork, at) = (null_mut::<mc_session>(), &raw mut err);
            let poisoned = |status| {
                let message = expect(MC_ERROR_POISONED, status, &mut *at);
                assert_eq!(message, "session: an earlier call on it ended in a panic");
            };
            poisoned(mc_session_truncate(session.arg(), 1, at));
            poisoned(mc_session_fork(session.arg(), nn(&raw mut fork), at));
            poisoned(mc_session_generate_stream(session.arg(), null(), None, null_mut(), null_mut(), at));
            assert_eq!(mc_session_position(session.arg()), 40);
        }
        drop((session, Owned::new(Type::Session), Owned::new(Type::Generation)));
    }

    #[test]
    fn a_panic_before_a_session_is_touched_leaves_it_usable() {
        let _alone = alone();
        let (session, mut err) = (Owned::new(Type::Session), null_mut());
        unsafe {
            inject_panic();
            expect(MC_ERROR_PANIC, mc_session_truncate(session.arg(), 1, &raw mut err), &mut err);
            expect(MC_OK, mc_session_truncate(session.arg(), 1, &raw mut err), &mut err);
        }
    }

    #[test]
    fn a_panic_inside_a_callback_of_a_session_is_that_call_s_alone() {
        let _alone = alone();
        let (status, text, ..) = stream(|inside, _| {
            let mut err = null_mut();
            inject_panic();
            let status = unsafe { mc_session_truncate(nn(inside.session), 0, &raw mut err) };
            expect(MC_ERROR_PANIC, status, &mut err);
            MC_CONTINUE
        });
        assert_eq!((status, text.as_str()), (MC_OK, ANSWER));
    }

    #[test]
    fn a_panic_poisons_a_conversation() {
        let _alone = alone();
        let (model, mut out, mut err) = (Owned::new(Type::Model), null_mut::<metal_candle::ffi::values::mc_string>(), null_mut());
        unsafe {
            let chat = Owned(Type::Chat, pointer(mc_chat_new()));
            inject_panic_in_use();
            expect(MC_ERROR_PANIC, mc_chat_add(chat.arg(), nn(c"user".as_ptr()), null(), 0, &raw mut err), &mut err);
            let status = mc_chat_add(chat.arg(), nn(c"user".as_ptr()), null(), 0, &raw mut err);
            assert_eq!(expect(MC_ERROR_POISONED, status, &mut err), "chat: an earlier call on it ended in a panic");
            let status = mc_model_render_chat(model.arg(), chat.arg(), true, nn(&raw mut out), &raw mut err);
            expect(MC_ERROR_POISONED, status, &mut err);
        }
    }

    #[test]
    fn a_panic_poisons_a_trainer_and_not_its_model() {
        let _alone = alone();
        let (trainer, mut lora, mut err) = (Owned::new(Type::LoraTrainer), null_mut::<mc_lora>(), null_mut());
        let (tokens, offsets, mut loss) = ([1u32, 2, 3], [0usize, 3], 0f32);
        unsafe {
            inject_panic_in_use();
            for expected in [MC_ERROR_PANIC, MC_ERROR_POISONED] {
                let (tokens, offsets, loss) = (nn(tokens.as_ptr()), nn(offsets.as_ptr()), nn(&raw mut loss));
                let status = mc_lora_trainer_train_step(trainer.arg(), tokens, null(), offsets, 1, loss, &raw mut err);
                expect(expected, status, &mut err);
            }
            let status = mc_lora_trainer_adapter(trainer.arg(), nn(&raw mut lora), &raw mut err);
            assert_eq!(expect(MC_ERROR_POISONED, status, &mut err), "trainer: an earlier call on it ended in a panic");
            assert_eq!(mc_lora_trainer_step_count(trainer.arg()), 0);
        }
        drop((trainer, Owned::new(Type::LoraTrainer)));
    }

    #[test]
    fn options_whose_setter_panicked_are_refused() {
        let _alone = alone();
        let (options, mut bytes, mut err) = (Owned::new(Type::ModelOptions), 0u64, null_mut());
        unsafe {
            inject_panic_in_use();
            mc_model_options_set_offline(options.arg(), true);
            let options = options.1.cast_const().cast();
            let status = mc_model_estimate_memory(nn(c"x".as_ptr()), options, nn(&raw mut bytes), &raw mut err);
            expect(MC_ERROR_POISONED, status, &mut err);
        }
    }
}
