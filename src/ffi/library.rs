//! The library: versions, features, memory, threads and the log.
//!
//! Nothing of this has to be called: there is nothing to initialise and nothing to shut down. A program that loads the library itself
//! compares its ABI first.
//!
//! @snippet inspect.c log
//! @see @ref error, @ref device
//!
//! Threads: any.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};

use super::boundary::{Enumeration, checked, guard, guard_or, outside};
use super::callback::UserData;
use super::error::{mc_error, mc_status};
use super::handle::live_objects;
use super::text::{Text, lend, name as checked_name};
use crate::error::{Error, ErrorKind, Result};
use crate::{Device, set_threads, threads};

/// The version of the binary interface that this header describes; compare it with mc_abi_version(). It is part of the
/// shared library's name and changes only when a program must be compiled again.
pub const MC_ABI_VERSION: u32 = 2;

/// What a callback returns to stop the call that it runs in; so does every value but MC_CONTINUE.
pub const MC_STOP: i32 = 0;

/// What a callback returns to go on.
pub const MC_CONTINUE: i32 = 1;

/// How important a log message is; a level contains those before it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_log_level {
    /// Nothing is logged.
    MC_LOG_OFF = 0,
    /// Something failed that no status could report.
    MC_LOG_ERROR = 1,
    /// A call was ignored, such as a setter with a wrong handle, or something looks wrong.
    MC_LOG_WARN = 2,
    /// Milestones: a model was loaded.
    MC_LOG_INFO = 3,
    /// Decisions that explain a result.
    MC_LOG_DEBUG = 4,
    /// Everything, at a cost in speed.
    MC_LOG_TRACE = 5,
    /// Not a value: makes the enum 32 bits wide.
    MC_LOG_LEVEL_FORCE32 = 0x7fff_ffff,
}

/// Receives log messages. Unlike other callbacks it is kept, and is called on whatever thread logs, on several at a time.
/// What it makes the library log itself is dropped. It must not throw or longjmp.
///
/// @param user_data    what was given to mc_log_set().
/// @param level        MC_LOG_ERROR to MC_LOG_TRACE.
/// @param target       the part of the library, such as "metal_candle::load"; NUL-terminated, valid during the call.
/// @param message      UTF-8, NUL-terminated, valid during the call.
/// @param message_len  bytes of `message`, without the NUL.
pub type mc_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: mc_log_level,
        target: MaybeUninit<&c_char>,
        message: MaybeUninit<&c_char>,
        message_len: usize,
    ),
>;

/// Frees what a `user_data` points to.
///
/// @param user_data  what was given together with this function.
pub type mc_destroy_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

impl Enumeration for mc_log_level {
    const NAME: &'static str = "mc_log_level";
    type Meaning = log::LevelFilter;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_LOG_OFF, log::LevelFilter::Off),
        (Self::MC_LOG_ERROR, log::LevelFilter::Error),
        (Self::MC_LOG_WARN, log::LevelFilter::Warn),
        (Self::MC_LOG_INFO, log::LevelFilter::Info),
        (Self::MC_LOG_DEBUG, log::LevelFilter::Debug),
        (Self::MC_LOG_TRACE, log::LevelFilter::Trace),
    ];
}

impl From<log::Level> for mc_log_level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::MC_LOG_ERROR,
            log::Level::Warn => Self::MC_LOG_WARN,
            log::Level::Info => Self::MC_LOG_INFO,
            log::Level::Debug => Self::MC_LOG_DEBUG,
            log::Level::Trace => Self::MC_LOG_TRACE,
        }
    }
}

/// The version of the library that is running, as MC_VERSION_NUMBER: major * 1000000 + minor * 1000 + patch.
#[unsafe(no_mangle)]
pub extern "C" fn mc_version_number() -> u32 {
    guard_or(0, || Ok(VERSION_NUMBER))
}

const VERSION_NUMBER: u32 = decimal(env!("CARGO_PKG_VERSION_MAJOR")) * 1_000_000
    + decimal(env!("CARGO_PKG_VERSION_MINOR")) * 1_000
    + decimal(env!("CARGO_PKG_VERSION_PATCH"));

const fn decimal(digits: &str) -> u32 {
    let (bytes, mut value, mut i) = (digits.as_bytes(), 0, 0);
    while i < bytes.len() {
        value = value * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    value
}

/// The version of the library that is running, as MC_VERSION_STRING.
///
/// @return static text.
#[unsafe(no_mangle)]
pub extern "C" fn mc_version_string() -> MaybeUninit<&'static c_char> {
    guard_or(super::text::empty(), || Ok(lend(concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast())))
}

/// The binary interface of the library that is running. A program that loads the library itself compares it with
/// MC_ABI_VERSION before any other call.
///
/// @return MC_ABI_VERSION as the library was built with.
#[unsafe(no_mangle)]
pub extern "C" fn mc_abi_version() -> u32 {
    guard_or(0, || Ok(MC_ABI_VERSION))
}

const FEATURES: [(&str, bool); 4] = [
    ("metal", cfg!(any(feature = "metal", target_os = "macos", target_os = "ios"))),
    ("cuda", cfg!(feature = "cuda")),
    ("hub", cfg!(feature = "hub")),
    ("fault-injection", cfg!(feature = "fault-injection")),
];

/// Whether the library was built with a feature. Whether this machine has such a device says mc_device_count().
///
/// @param name  "metal", "cuda", "hub" or "fault-injection".
/// @return false for a name that is none of these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_has_feature(name: MaybeUninit<&c_char>) -> bool {
    guard_or(false, || {
        let name = checked_name(&name, "name")?;
        Ok(FEATURES.contains(&(name, true)))
    })
}

/// How many handles exist in the process; 0 when everything was freed. For leak tests.
#[unsafe(no_mangle)]
pub extern "C" fn mc_live_objects() -> usize {
    guard_or(0, || Ok(live_objects()))
}

/// Gives memory that the library keeps for reuse back to the system, as an app does when it goes to the background.
///
/// @param keep_bytes  how much may stay; 0 = give back everything that is not in use.
/// @param err         NULL, or receives the error.
/// @return MC_OK; MC_ERROR_DEVICE.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_trim_memory(keep_bytes: u64, err: *mut *mut mc_error) -> mc_status {
    guard(err, || {
        Device::trim_memory(keep_bytes)?;
        Ok(mc_status::MC_OK)
    })
}

/// Sets how many threads the library computes with on the processor, whatever begins behind this call, on every model of the process. What
/// runs keeps those that it has until it ends. Results have the same bits with any number.
///
/// @param count  1 to 1024; 0 = as RAYON_NUM_THREADS says, or as there are processors, which is what there is without this call.
/// @param err    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT for more; MC_ERROR_OUT_OF_MEMORY if the system gives no so many, and those there were stay in
///         use: a smaller number, or a later call, may succeed.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_set_threads(count: u32, err: *mut *mut mc_error) -> mc_status {
    guard(err, || {
        set_threads(count as usize)?;
        Ok(mc_status::MC_OK)
    })
}

/// How many threads the library computes with on the processor. Makes them, unless they are there.
///
/// @return 0 if the system gives none, and in a process that was forked from one that had them.
#[unsafe(no_mangle)]
pub extern "C" fn mc_threads() -> u32 {
    guard_or(0, || Ok(threads()? as u32))
}

/// Sets, replaces or removes the process's log callback. Without one nothing is logged.
///
/// On success the library owns `user_data`: when the callback is replaced or removed, and no thread is inside it any more,
/// `user_data_free` is called exactly once, before this function returns. So do not call it with a lock held that the old
/// callback takes. On failure nothing changes and `user_data` stays yours.
///
/// @param callback        receives the messages; NULL = remove the callback, the other three are then not used.
/// @param user_data       handed to the callback; may be NULL.
/// @param user_data_free  frees `user_data`; may be NULL.
/// @param max_level       the most detailed level that is delivered; MC_LOG_OFF = none.
/// @param err             NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY if called from a log callback, or if the program is written in Rust and has installed
///         another logger of the `log` crate.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_log_set(
    callback: mc_log_fn,
    user_data: *mut c_void,
    user_data_free: mc_destroy_fn,
    max_level: MaybeUninit<mc_log_level>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        if LOGGING.get() {
            return Err(Error::new(ErrorKind::Busy, "mc_log_set: expected to be outside a log callback, found inside one"));
        }
        let Some(callback) = callback else {
            replace_sink(None);
            return Ok(mc_status::MC_OK);
        };
        let level = checked(max_level, "max_level")?;
        install_logger()?;
        replace_sink(Some(Sink::new(callback, UserData(user_data), user_data_free, level)));
        Ok(mc_status::MC_OK)
    })
}

type LogCallback = unsafe extern "C" fn(*mut c_void, mc_log_level, MaybeUninit<&c_char>, MaybeUninit<&c_char>, usize);

/// The host's callback and how many threads are inside it.
struct Sink {
    callback: LogCallback,
    user_data: UserData,
    destroy: mc_destroy_fn,
    level: log::LevelFilter,
    inside: Mutex<usize>,
    left: Condvar,
}

/// The only global state. Locked to copy or swap the `Arc`, never while a callback runs.
static SINK: RwLock<Option<Arc<Sink>>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is in the log callback: what that makes us log is dropped, or it would never end.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// A logger of the `log` crate stays for the life of the process, so ours is installed once and asks for the sink each time.
fn install_logger() -> Result<()> {
    static OURS: OnceLock<bool> = OnceLock::new();
    if *OURS.get_or_init(|| log::set_logger(&Forward).is_ok()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, "mc_log_set: expected no other logger of the log crate, found one installed by the program"))
}

fn replace_sink(sink: Option<Arc<Sink>>) {
    let old = {
        let mut current = SINK.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_some() || sink.is_some() {
            log::set_max_level(sink.as_ref().map_or(log::LevelFilter::Off, |sink| sink.level));
        }
        std::mem::replace(&mut *current, sink)
    };
    if let Some(old) = old {
        old.retire();
    }
}

impl Sink {
    fn new(callback: LogCallback, user_data: UserData, destroy: mc_destroy_fn, level: log::LevelFilter) -> Arc<Self> {
        Arc::new(Self { callback, user_data, destroy, level, inside: Mutex::new(0), left: Condvar::new() })
    }

    /// Counted under the lock of `SINK`: whoever swaps the sink afterwards sees this thread inside.
    fn enter() -> Option<Arc<Self>> {
        let current = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let sink = current.as_ref()?.clone();
        *sink.inside.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Some(sink)
    }

    fn leave(&self) {
        *self.inside.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.left.notify_all();
    }

    /// Waits for the threads inside and frees the host's data.
    fn retire(&self) {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.left.wait_while(inside, |inside| *inside > 0).unwrap_or_else(PoisonError::into_inner));
        if let Some(destroy) = self.destroy {
            // SAFETY: the host gave this function for this pointer; the sink is out of SINK and nobody is inside it.
            outside(|| unsafe { destroy(self.user_data.0) });
        }
    }

    fn call(&self, record: &log::Record<'_>) {
        let message = Text::new(record.args().to_string());
        let target = CString::new(record.target()).unwrap_or_default();
        let (level, target) = (record.level().into(), lend(target.as_ptr()));
        // SAFETY: the host gave this function with this user_data; both texts outlive the call.
        outside(|| unsafe { (self.callback)(self.user_data.0, level, target, message.pointer(), message.len()) });
    }
}

/// Whether the HTTP client tells what it sends and receives: the Hub's token and signed URLs are in it.
fn is_wire(metadata: &log::Metadata<'_>) -> bool {
    metadata.target().starts_with("ureq") && metadata.level() > log::Level::Warn
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && !is_wire(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) || LOGGING.get() {
            return;
        }
        let Some(sink) = Sink::enter() else { return };
        LOGGING.set(true);
        sink.call(record);
        LOGGING.set(false);
        sink.leave();
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_with_their_token_are_not_logged() {
        let of = |target, level| is_wire(&log::Metadata::builder().target(target).level(level).build());
        assert!(of("ureq_proto::util", log::Level::Trace) && of("ureq::run", log::Level::Debug));
        assert!(!of("ureq::run", log::Level::Warn) && !of("metal_candle::load::hub", log::Level::Trace));
    }
}
