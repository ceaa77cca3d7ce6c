//! Cancelling: a flag that stops calls from another thread or from a signal handler.
//!
//! Hand it to a call or its options, trigger it, and the call ends with MC_CANCELLED at its next check: at each download
//! chunk, tensor loaded, prefill chunk, token, group of embedded texts and layer of a training pass. What the call worked on stays usable.
//!
//! @snippet chat.c stop
//! @see @ref generate, @ref session, @ref train
//!
//! Threads: any, concurrently.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{guard_or, guard_signal};
use super::handle::{Given, Object, free, inert, new_handle, optional};
use crate::Cancel;
use crate::error::Result;

/// A flag that stops the calls it was handed to. Freeing it does not stop or disturb them.
pub struct mc_cancel {
    _opaque: [u8; 0],
}

impl Object for mc_cancel {
    const NAME: &'static str = "mc_cancel";
    type Inner = Cancel;
}

/// What options keep of a flag, which may be NULL.
pub(super) fn given_cancel(cancel: *const mc_cancel) -> Result<Option<Cancel>> {
    Ok(optional(cancel, "cancel")?.map(|cancel| (*cancel).clone()))
}

/// Makes a flag that is not triggered.
///
/// @return one reference; free it with mc_cancel_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_cancel_new() -> NonNull<mc_cancel> {
    guard_or(inert(), || Ok(new_handle(Cancel::new())))
}

/// Stops every call that was given this flag, now and until mc_cancel_reset().
///
/// @param cancel  the flag; NULL does nothing.
///
/// Threads: any; also safe in a signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_cancel_trigger(cancel: MaybeUninit<&mc_cancel>) {
    guard_signal(|| {
        if let Some(cancel) = cancel.peek() {
            cancel.trigger();
        }
    });
}

/// Lets new calls with this flag run again.
///
/// @param cancel  the flag; NULL does nothing.
///
/// Threads: any; also safe in a signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_cancel_reset(cancel: MaybeUninit<&mc_cancel>) {
    guard_signal(|| {
        if let Some(cancel) = cancel.peek() {
            cancel.reset();
        }
    });
}

/// Whether the flag is triggered.
///
/// @param cancel  the flag; NULL gives false.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_cancel_is_triggered(cancel: MaybeUninit<&mc_cancel>) -> bool {
    guard_or(false, || Ok(cancel.lend("cancel")?.is_triggered()))
}

/// Frees a flag; calls that still use it go on.
///
/// @param cancel  the flag, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_cancel_free(cancel: *mut mc_cancel) {
    guard_or((), || free(cancel, "cancel"));
}
