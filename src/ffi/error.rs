//! Errors: what a call that failed says.
//!
//! A status says what kind of failure it is; the error object says what was expected, what was found and where, and what led to it. A
//! program shows the message, decides by the status, and logs the details.
//!
//! @snippet complete.c check
//! @see @ref library
//!
//! Threads: any, concurrently: an error is immutable.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use super::boundary::{guard_or, number};
use super::handle::{Given, Object, free};
use super::text::{Text, empty, lend};
use crate::error::{Error, ErrorKind, Result};

/// How a call ended: below 16 an outcome, from 16 an error. A value you do not know is an error.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_status {
    /// The call did what it was asked to.
    MC_OK = 0,
    /// An iteration is over; there is nothing more to read.
    MC_DONE = 1,
    /// Stopped by its mc_cancel or, while loading, by its progress callback; what was finished is kept. `*err` stays NULL.
    MC_CANCELLED = 2,
    /// An argument or option is outside its range, or a handle is NULL or of another type.
    MC_ERROR_INVALID_ARGUMENT = 16,
    /// Text is not UTF-8; the message has the offset of the first bad byte.
    MC_ERROR_INVALID_UTF8 = 17,
    /// A file, directory, token, device or chat template does not exist.
    MC_ERROR_NOT_FOUND = 18,
    /// Reading or writing a file failed.
    MC_ERROR_IO = 19,
    /// A download failed.
    MC_ERROR_NETWORK = 20,
    /// A file's or text's content contradicts its format.
    MC_ERROR_FORMAT = 21,
    /// The input is well formed, and this build of the library does not implement it.
    MC_ERROR_UNSUPPORTED = 22,
    /// More tokens than the context holds.
    MC_ERROR_CONTEXT_FULL = 23,
    /// Memory ran out, or a size is beyond what can be allocated.
    MC_ERROR_OUT_OF_MEMORY = 24,
    /// The compute device failed.
    MC_ERROR_DEVICE = 25,
    /// The device is suspended; call mc_device_resume() first.
    MC_ERROR_SUSPENDED = 26,
    /// The object is in use by another call; nothing was changed. Functions never wait for it.
    MC_ERROR_BUSY = 27,
    /// Two things that must belong together do not, such as a session file and the model.
    MC_ERROR_MISMATCH = 28,
    /// An earlier MC_ERROR_PANIC left the object in an unknown state; it can only be freed.
    MC_ERROR_POISONED = 29,
    /// A chat template failed, or refused the conversation.
    MC_ERROR_TEMPLATE = 30,
    /// A defect of this library; the message says where. Please report it.
    MC_ERROR_PANIC = 31,
    /// Not a value: makes the enum 32 bits wide.
    MC_STATUS_FORCE32 = 0x7fff_ffff,
}

/// A failure: its status, a one-line message and its causes. Immutable.
pub struct mc_error {
    _opaque: [u8; 0],
}

pub(super) struct ErrorState {
    code: mc_status,
    message: Text,
    details: Text,
}

impl Object for mc_error {
    const NAME: &'static str = "mc_error";
    type Inner = ErrorState;
}

impl From<Error> for ErrorState {
    fn from(error: Error) -> Self {
        Self { code: error.kind().into(), message: Text::line(error.message()), details: Text::line(&error.details()) }
    }
}

impl From<ErrorKind> for mc_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Cancelled => Self::MC_CANCELLED,
            ErrorKind::InvalidArgument => Self::MC_ERROR_INVALID_ARGUMENT,
            ErrorKind::InvalidUtf8 => Self::MC_ERROR_INVALID_UTF8,
            ErrorKind::NotFound => Self::MC_ERROR_NOT_FOUND,
            ErrorKind::Io => Self::MC_ERROR_IO,
            ErrorKind::Network => Self::MC_ERROR_NETWORK,
            ErrorKind::Format => Self::MC_ERROR_FORMAT,
            ErrorKind::Unsupported => Self::MC_ERROR_UNSUPPORTED,
            ErrorKind::ContextFull => Self::MC_ERROR_CONTEXT_FULL,
            ErrorKind::OutOfMemory => Self::MC_ERROR_OUT_OF_MEMORY,
            ErrorKind::Device => Self::MC_ERROR_DEVICE,
            ErrorKind::Suspended => Self::MC_ERROR_SUSPENDED,
            ErrorKind::Busy => Self::MC_ERROR_BUSY,
            ErrorKind::Mismatch => Self::MC_ERROR_MISMATCH,
            ErrorKind::Poisoned => Self::MC_ERROR_POISONED,
            ErrorKind::Template => Self::MC_ERROR_TEMPLATE,
            ErrorKind::Panic => Self::MC_ERROR_PANIC,
        }
    }
}

/// The name of a status, such as "MC_ERROR_BUSY".
///
/// @param status  any number.
/// @return static text; "MC_STATUS_UNKNOWN" for a number that is no status.
#[unsafe(no_mangle)]
pub extern "C" fn mc_status_name(status: MaybeUninit<mc_status>) -> MaybeUninit<&'static c_char> {
    guard_or(empty(), || Ok(lend(status_name(number(status)).as_ptr())))
}

fn status_name(number: i32) -> &'static CStr {
    match number {
        0 => c"MC_OK",
        1 => c"MC_DONE",
        2 => c"MC_CANCELLED",
        16 => c"MC_ERROR_INVALID_ARGUMENT",
        17 => c"MC_ERROR_INVALID_UTF8",
        18 => c"MC_ERROR_NOT_FOUND",
        19 => c"MC_ERROR_IO",
        20 => c"MC_ERROR_NETWORK",
        21 => c"MC_ERROR_FORMAT",
        22 => c"MC_ERROR_UNSUPPORTED",
        23 => c"MC_ERROR_CONTEXT_FULL",
        24 => c"MC_ERROR_OUT_OF_MEMORY",
        25 => c"MC_ERROR_DEVICE",
        26 => c"MC_ERROR_SUSPENDED",
        27 => c"MC_ERROR_BUSY",
        28 => c"MC_ERROR_MISMATCH",
        29 => c"MC_ERROR_POISONED",
        30 => c"MC_ERROR_TEMPLATE",
        31 => c"MC_ERROR_PANIC",
        _ => c"MC_STATUS_UNKNOWN",
    }
}

/// NULL is no mistake here: it is what a call without an error leaves.
fn state<'a>(error: &MaybeUninit<&'a mc_error>) -> Result<Option<&'a ErrorState>> {
    if error.pointer().is_null() { Ok(None) } else { error.lend("error").map(Some) }
}

/// The status that came with an error.
///
/// @param error  the error; NULL gives MC_OK.
/// @return a status from 16.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_code(error: MaybeUninit<&mc_error>) -> mc_status {
    guard_or(mc_status::MC_OK, || Ok(state(&error)?.map_or(mc_status::MC_OK, |state| state.code)))
}

/// What went wrong, in one line without a full stop: subject, what was expected, what was found.
///
/// @param error  the error; NULL gives "".
/// @return UTF-8, NUL-terminated, valid until the error is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_message(error: MaybeUninit<&mc_error>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(state(&error)?.map_or(empty(), |state| state.message.pointer())))
}

/// The message and every cause below it, one a line, for a log.
///
/// @param error  the error; NULL gives "".
/// @return UTF-8, NUL-terminated, valid until the error is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_details(error: MaybeUninit<&mc_error>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(state(&error)?.map_or(empty(), |state| state.details.pointer())))
}

/// Frees an error.
///
/// @param error  the error, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_free(error: *mut mc_error) {
    guard_or((), || free(error, "error"));
}
