//! Handles, texts, lists and callbacks across the boundary, without a model: what Miri interprets (`tests/miri.sh`).

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use metal_candle::ffi::cancel::*;
use metal_candle::ffi::chat::*;
use metal_candle::ffi::dataset::*;
use metal_candle::ffi::embed::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::library::*;
use metal_candle::ffi::values::*;

/// A pointer where the header says nonnull.
fn nn<T, P>(pointer: *const P) -> MaybeUninit<T> {
    assert_eq!(size_of::<T>(), size_of::<*const P>());
    // SAFETY: of one size; what it points to is the function's to check.
    unsafe { std::mem::transmute_copy(&pointer) }
}

fn text(returned: MaybeUninit<&c_char>) -> &'static str {
    // SAFETY: the functions that return text promise NUL-terminated UTF-8, which lives while its handle does.
    unsafe { CStr::from_ptr(std::mem::transmute::<MaybeUninit<&c_char>, *const c_char>(returned)) }.to_str().unwrap()
}

/// The message of an error, which is freed.
fn message(err: &mut *mut mc_error) -> String {
    let error = std::mem::replace(err, null_mut());
    // SAFETY: an error that a call has given.
    unsafe {
        let found = text(mc_error_message(nn(error))).to_owned();
        mc_error_free(error);
        found
    }
}

#[test]
fn texts_go_in_and_come_back() {
    let (mut err, mut json) = (null_mut(), null_mut::<mc_string>());
    let chat = mc_chat_new().as_ptr();
    // SAFETY: handles that live, texts as long as is said.
    unsafe {
        for (role, content) in [(c"user", "hi"), (c"assistant", "é\0")] {
            let status = mc_chat_add(nn(chat), nn(role.as_ptr()), content.as_ptr().cast(), content.len(), &raw mut err);
            assert!(status == mc_status::MC_OK || message(&mut err).contains("content"), "{content:?}");
        }
        // No text, and one that is cut within a character.
        assert_eq!(
            mc_chat_add(nn(chat), nn(c"user".as_ptr()), c"\xc3".as_ptr(), 1, &raw mut err),
            mc_status::MC_ERROR_INVALID_UTF8
        );
        assert!(!message(&mut err).is_empty());
        assert_eq!(mc_chat_json(nn(chat), nn(&raw mut json), &raw mut err), mc_status::MC_OK);
        assert!(text(mc_string_data(nn(json))).contains("\"hi\""));
        assert_eq!(text(mc_string_data(nn(json))).len(), mc_string_len(nn(json)));
        assert_eq!(mc_chat_remove_last(nn(chat), &raw mut err), mc_status::MC_OK);

        let dataset = mc_dataset_new().as_ptr();
        assert_eq!(mc_dataset_add_chat(nn(dataset), nn(chat), &raw mut err), mc_status::MC_OK);
        assert_eq!(mc_dataset_add_text(nn(dataset), c"fn main".as_ptr(), 7, &raw mut err), mc_status::MC_OK);
        assert_eq!((mc_dataset_len(nn(dataset)), mc_chat_len(nn(dataset))), (2, 0));
        mc_dataset_free(dataset);
        mc_string_free(json);
        mc_chat_free(chat);
    }
}

#[test]
fn what_is_no_handle_of_its_type_is_an_error() {
    static NO_HANDLE: [u64; 8] = [0; 8];
    let (mut err, mut out) = (null_mut(), null_mut::<mc_string>());
    let cancel = mc_cancel_new().as_ptr();
    // SAFETY: what is read of a wrong handle is its first words, which are there.
    unsafe {
        for wrong in [cancel.cast::<c_void>().cast_const(), NO_HANDLE.as_ptr().cast(), null()] {
            let status = mc_chat_json(nn(wrong), nn(&raw mut out), &raw mut err);
            assert_eq!((status, out.is_null()), (mc_status::MC_ERROR_INVALID_ARGUMENT, true));
            assert!(message(&mut err).starts_with("chat: expected mc_chat"));
        }
        mc_cancel_trigger(nn(cancel));
        assert!(mc_cancel_is_triggered(nn(cancel)));
        mc_chat_free(cancel.cast());
        assert!(mc_cancel_is_triggered(nn(cancel)), "freed as what it is alone");
        mc_cancel_free(cancel);
    }
    // What a failed call remembers in options comes with the call that uses them.
    let options = mc_generate_options_new().as_ptr();
    // SAFETY: a handle that lives.
    unsafe {
        mc_generate_options_add_stop(nn(options), nn(null::<c_char>()), 3);
        mc_generate_options_add_stop(nn(options), nn(c"stop".as_ptr()), 4);
        mc_generate_options_free(options);
    }
}

#[test]
fn lists_are_read_and_written_as_long_as_is_said() {
    let (queries, documents) = ([1f32, 0.0, 0.0, 1.0], [1f32, 0.0, 0.0, 2.0, 0.5, 0.5]);
    let (mut indices, mut scores, mut err) = ([usize::MAX; 4], [f32::NAN; 4], null_mut());
    // SAFETY: as many values as is said.
    let status = unsafe {
        let kind = MaybeUninit::new(mc_similarity::MC_SIMILARITY_DOT);
        let (indices, scores) = (nn(indices.as_mut_ptr()), nn(scores.as_mut_ptr()));
        mc_similarity_top_k(kind, nn(queries.as_ptr()), 2, nn(documents.as_ptr()), 3, 2, 2, indices, scores, &raw mut err)
    };
    assert_eq!((status, indices, scores), (mc_status::MC_OK, [0, 2, 1, 2], [1.0, 0.5, 2.0, 0.5]));
}

unsafe extern "C" fn count(
    data: *mut c_void,
    _: mc_log_level,
    _: MaybeUninit<&c_char>,
    message: MaybeUninit<&c_char>,
    len: usize,
) {
    assert_eq!(text(message).len(), len);
    // SAFETY: the callback's own, which lives until `gone`.
    unsafe { &*data.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn gone(data: *mut c_void) {
    // SAFETY: made by `Box::into_raw`; nobody has it any more.
    let counted = unsafe { Box::from_raw(data.cast::<AtomicUsize>()) };
    SEEN.store(counted.into_inner() + 1, Ordering::Relaxed);
}

/// One more than there were messages.
static SEEN: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_callback_gets_its_own_data_and_is_told_once_that_it_is_over() {
    let data = NonNull::from(Box::leak(Box::new(AtomicUsize::new(0)))).as_ptr().cast();
    let level = || MaybeUninit::new(mc_log_level::MC_LOG_DEBUG);
    // SAFETY: the data lives until `gone` is called.
    unsafe {
        assert_eq!(mc_log_set(Some(count), data, Some(gone), level(), null_mut()), mc_status::MC_OK);
        log::warn!(target: "metal_candle", "one");
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
        assert_eq!(mc_log_set(None, null_mut(), None, level(), null_mut()), mc_status::MC_OK);
    }
    assert!(SEEN.load(Ordering::Relaxed) >= 1);
}
