//! The gate that every exported function goes through: it checks what C hands in and lets no panic out.
//!
//! ```ignore
//! pub unsafe extern "C" fn mc_device_synchronize(device: MaybeUninit<&mc_device>, err: *mut *mut mc_error) -> mc_status {
//!     guard(err, || {
//!         device.get("device")?.device.synchronize()?;
//!         Ok(MC_OK)
//!     })
//! }
//! ```

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem::{self, MaybeUninit};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use super::error::{mc_error, mc_status};
use super::handle::new_handle;
use crate::engine::check_process;
use crate::error::{Error, ErrorKind, Result};

/// Runs the body of a function that returns a status; an error goes to `*err`, a panic becomes `MC_ERROR_PANIC`.
pub(super) fn guard(err: *mut *mut mc_error, body: impl FnOnce() -> Result<mc_status>) -> mc_status {
    let err = if err.is_aligned() { err } else { std::ptr::null_mut() };
    // SAFETY: the header asks for NULL or a writable pointer.
    if let Some(err) = unsafe { err.cast::<MaybeUninit<*mut mc_error>>().as_mut() } {
        err.write(std::ptr::null_mut());
    }
    let error = match catch(|| check_process().and_then(|()| body())).and_then(|result| result) {
        Ok(status) => return status,
        Err(error) if error.kind() == ErrorKind::Cancelled => return mc_status::MC_CANCELLED,
        Err(error) => error,
    };
    let status = mc_status::from(error.kind());
    if !err.is_null() {
        let error = new_handle::<mc_error>(error.into());
        // SAFETY: not NULL, and as above.
        unsafe { err.write(error.as_ptr()) };
    }
    status
}

/// Runs the body of a function that cannot report a failure; a failure is logged and gives `default`.
pub(super) fn guard_or<T>(default: T, body: impl FnOnce() -> Result<T>) -> T {
    match catch(body).and_then(|result| result) {
        Ok(value) => value,
        Err(error) => {
            // A host's own logger may panic; there is no one left to tell.
            let _ = catch(|| log::warn!("ignored call: {error}"));
            default
        }
    }
}

/// The same for a function that must be safe in a signal handler: no thread-local, lock, allocation or log.
pub(super) fn guard_signal(body: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(|| {
        fault::next_guard();
        body();
    }));
}

/// Runs host code: a panic in it is not ours to keep quiet.
pub(super) fn outside<T>(host: impl FnOnce() -> T) -> T {
    let depth = DEPTH.replace(0);
    let result = host();
    DEPTH.set(depth);
    result
}

/// `AssertUnwindSafe`: what a panic can leave half done is a session, chat or options, and their locks are poisoned by it.
fn catch<T>(body: impl FnOnce() -> T) -> Result<T> {
    keep_panics_quiet();
    GUARDS.fetch_add(1, Ordering::Relaxed);
    let depth = DEPTH.replace(DEPTH.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        fault::next_guard();
        body()
    }));
    DEPTH.set(depth);
    GUARDS.fetch_sub(1, Ordering::Relaxed);
    result.map_err(|payload| {
        let message = described(&*payload);
        // Dropping a payload runs code that we do not know.
        mem::forget(payload);
        Error::new(ErrorKind::Panic, format!("a defect of metal-candle: {message}"))
    })
}

/// How many guards are running on all threads.
static GUARDS: AtomicUsize = AtomicUsize::new(0);

/// The last panic on one of rayon's threads; it goes on on the thread that waits for them.
static WORKER_PANIC: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// How many guards this thread is inside of, host code not counted.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Rust's panic hook writes to standard error, also for a panic that is caught. Inside a guard, and on rayon's threads while
/// there is one, ours keeps the message for the error instead; every other panic goes to the hook that was there. A C program
/// has its own copy of Rust's runtime within this library, so only Rust hosts share the hook at all.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    if ONCE.is_completed() || thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if DEPTH.get() > 0 {
                let _ = LAST_PANIC.try_with(|last| last.replace(kept(info)));
            } else if GUARDS.load(Ordering::Relaxed) > 0 && rayon::current_thread_index().is_some() {
                *WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = kept(info);
            } else {
                previous(info);
            }
        }));
    });
}

/// The message, and where it came from.
fn kept(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    format!("{} ({place})", message(info.payload()))
}

/// What the hook kept of this panic: the kept texts may also be of an older one, or of another thread's.
fn described(payload: &(dyn Any + Send)) -> String {
    let message = message(payload);
    let own = LAST_PANIC.try_with(RefCell::take).unwrap_or_default();
    if own.starts_with(message) {
        return own;
    }
    let worker = WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if worker.starts_with(message) { worker } else { message.to_owned() }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

/// An enum of the header and what each value means to the engine.
pub(super) trait Enumeration: Copy + 'static {
    const NAME: &'static str;
    type Meaning: Copy + 'static;
    const TABLE: &'static [(Self, Self::Meaning)];
}

/// What an enum value from C means; C lets any number through.
pub(super) fn checked<E: Enumeration>(value: MaybeUninit<E>, name: &str) -> Result<E::Meaning> {
    let number = number(value);
    let row = E::TABLE.iter().find(|(known, _)| self::number(MaybeUninit::new(*known)) == number);
    let (_, meaning) = row.ok_or_else(|| Error::argument(format!("{name}: expected a value of {}, found {number}", E::NAME)))?;
    Ok(*meaning)
}

/// The number behind an enum value of which nothing is known yet.
pub(super) fn number<E: Copy>(value: MaybeUninit<E>) -> i32 {
    const { assert!(size_of::<E>() == size_of::<i32>()) };
    // SAFETY: C passed the argument, so its four bytes are initialised; any four bytes are an i32.
    unsafe { value.as_ptr().cast::<i32>().read() }
}

/// Makes the next guarded call on this thread panic, once.
#[cfg(feature = "fault-injection")]
pub fn inject_panic() {
    fault::NEXT_GUARD.set(true);
}

/// Makes the next call on this thread that changes a session, chat or options panic in the middle of it, once.
#[cfg(feature = "fault-injection")]
pub fn inject_panic_in_use() {
    inject_in_use(|| panic!("injected panic in use"));
}

/// Runs this in the middle of the next call on this thread that changes a session, chat or options, once: that object is in use then.
#[cfg(feature = "fault-injection")]
pub fn inject_in_use(action: impl FnOnce() + 'static) {
    fault::IN_USE.set(Some(Box::new(action)));
}

#[cfg(feature = "fault-injection")]
pub(super) mod fault {
    use std::cell::Cell;

    thread_local! {
        pub(super) static NEXT_GUARD: Cell<bool> = const { Cell::new(false) };
        pub(super) static IN_USE: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
    }

    pub(in crate::ffi) fn next_guard() {
        if NEXT_GUARD.take() {
            panic!("injected panic");
        }
    }

    pub(in crate::ffi) fn in_use() {
        if let Some(action) = IN_USE.take() {
            action();
        }
    }
}

#[cfg(not(feature = "fault-injection"))]
pub(super) mod fault {
    pub(in crate::ffi) fn next_guard() {}
    pub(in crate::ffi) fn in_use() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_where_it_was_also_on_a_worker_thread() {
        let here = catch(|| panic!("{} here", 1)).unwrap_err();
        assert!(here.message().starts_with("a defect of metal-candle: 1 here (src/ffi/boundary.rs:"), "{here}");
        let there = catch(|| rayon::scope(|_| panic!("{} there", 2))).unwrap_err();
        assert!(there.message().starts_with("a defect of metal-candle: 2 there (src/ffi/boundary.rs:"), "{there}");
        let payload = catch(|| panic::panic_any(3)).unwrap_err();
        assert!(payload.message().starts_with("a defect of metal-candle: panic (src/ffi/boundary.rs:"), "{payload}");
    }

    #[test]
    fn a_failure_in_host_code_is_not_kept_quiet() {
        let depths = catch(|| (DEPTH.get(), outside(|| DEPTH.get()), DEPTH.get())).unwrap();
        assert_eq!(depths, (1, 0, 1));
    }
}
