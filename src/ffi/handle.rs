//! What an opaque pointer of the header points to: a type tag as its first word, a count of references, and the object.
//!
//! A call clones the inner `Arc`, so a callback may free the handle of the call that it runs in. The tag catches a handle of
//! another type (Swift, ctypes and the JVM hold every handle as one untyped pointer) and, as far as the memory has not been
//! used again, a freed one.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use super::boundary::fault;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{FNV_START, fnv};

/// An opaque type of the header: `*mut Self` is really a `*mut Handle<Self::Inner>`.
pub(super) trait Object: Sized {
    const NAME: &'static str;
    /// Shared by all threads that use the handle, hence the bounds.
    type Inner: Send + Sync + 'static;
}

#[repr(C)]
struct Handle<T> {
    tag: AtomicU64,
    references: AtomicUsize,
    inner: Arc<T>,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

const FREED: u64 = 0;

/// How many handles exist.
pub(super) fn live_objects() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// One reference to a new object.
pub(super) fn new_handle<O: Object>(inner: O::Inner) -> NonNull<O> {
    LIVE.fetch_add(1, Ordering::Relaxed);
    let handle = Handle {
        tag: AtomicU64::new(fnv(FNV_START, O::NAME.as_bytes())),
        references: AtomicUsize::new(1),
        inner: Arc::new(inner),
    };
    NonNull::from(Box::leak(Box::new(handle))).cast()
}

/// What a constructor that cannot fail returns after a panic: not NULL, and refused by every function.
pub(super) fn inert<O: Object>() -> NonNull<O> {
    static INERT: AtomicU64 = AtomicU64::new(FREED);
    NonNull::from(&INERT).cast()
}

fn checked<'a, O: Object>(pointer: *const O, name: &str) -> Result<&'a Handle<O::Inner>> {
    find(pointer).ok_or_else(|| {
        let found = if pointer.is_null() { "NULL" } else { "a handle of another type or a freed one" };
        Error::argument(format!("{name}: expected {}, found {found}", O::NAME))
    })
}

fn find<'a, O: Object>(pointer: *const O) -> Option<&'a Handle<O::Inner>> {
    let word = pointer.cast::<AtomicU64>();
    if !word.is_aligned() {
        return None;
    }
    // SAFETY: the header asks for NULL or a live handle; every handle of ours, of whatever type, starts with its tag.
    let found = unsafe { word.as_ref() }?.load(Ordering::Relaxed);
    // SAFETY: the tag says that this is a Handle<O::Inner>; it lives until it is freed, which the caller does after this call.
    (found == fnv(FNV_START, O::NAME.as_bytes())).then(|| unsafe { &*pointer.cast::<Handle<O::Inner>>() })
}

/// A handle that the header marks nonnull.
pub(super) trait Given<O: Object> {
    fn pointer(&self) -> *const O;

    /// The object, alive until the call is over even if its handle is freed meanwhile.
    fn get(&self, name: &str) -> Result<Arc<O::Inner>> {
        Ok(checked(self.pointer(), name)?.inner.clone())
    }

    /// The object as long as its handle is not freed: two loads, fit for a signal handler and for pointers that getters lend.
    fn peek<'a>(&self) -> Option<&'a O::Inner>
    where
        O: 'a,
    {
        find(self.pointer()).map(|handle| &*handle.inner)
    }

    /// The same for a getter that tells the log about a wrong handle.
    fn lend<'a>(&self, name: &str) -> Result<&'a O::Inner>
    where
        O: 'a,
    {
        Ok(&checked(self.pointer(), name)?.inner)
    }
}

impl<O: Object> Given<O> for MaybeUninit<&O> {
    fn pointer(&self) -> *const O {
        // SAFETY: C passed the argument, so it is initialised; a reference has the layout of a pointer.
        unsafe { self.as_ptr().cast::<*const O>().read() }
    }
}

impl<O: Object> Given<O> for MaybeUninit<&mut O> {
    fn pointer(&self) -> *const O {
        // SAFETY: as above.
        unsafe { self.as_ptr().cast::<*const O>().read() }
    }
}

/// A handle that may be NULL.
pub(super) fn optional<O: Object>(pointer: *const O, name: &str) -> Result<Option<Arc<O::Inner>>> {
    if pointer.is_null() {
        return Ok(None);
    }
    Ok(Some(checked(pointer, name)?.inner.clone()))
}

/// Adds a reference.
pub(super) fn retain<O: Object>(pointer: *const O, name: &str) -> Result<()> {
    checked(pointer, name)?.references.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Drops a reference, and with the last one the handle.
pub(super) fn free<O: Object>(pointer: *mut O, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Ok(());
    }
    let handle = checked(pointer.cast_const(), name)?;
    if handle.references.fetch_sub(1, Ordering::AcqRel) > 1 {
        return Ok(());
    }
    handle.tag.store(FREED, Ordering::Relaxed);
    LIVE.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: made by Box::leak in new_handle; the tag was right and this was the last reference, so nobody frees it again.
    drop(unsafe { Box::from_raw(pointer.cast::<Handle<O::Inner>>()) });
    Ok(())
}

/// Where a new handle goes; NULL from the moment it is checked.
pub(super) struct OutHandle<O>(*mut *mut O);

impl<O: Object> OutHandle<O> {
    pub(super) fn nullable(pointer: *mut *mut O) -> Self {
        let pointer = if pointer.is_aligned() { pointer } else { ptr::null_mut() };
        if !pointer.is_null() {
            // SAFETY: the header asks for NULL or a writable pointer.
            unsafe { pointer.write(ptr::null_mut()) };
        }
        Self(pointer)
    }

    pub(super) fn new(pointer: MaybeUninit<&mut *mut O>, name: &str) -> Result<Self> {
        let Out(pointer) = Out::new(pointer, name)?;
        Ok(Self::nullable(pointer))
    }

    /// Hands the object over; without a place to put it, it is dropped.
    pub(super) fn set(self, inner: O::Inner) {
        if !self.0.is_null() {
            // SAFETY: checked by the constructor.
            unsafe { self.0.write(new_handle::<O>(inner).as_ptr()) };
        }
    }
}

/// Where a number goes on success.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(super) fn new(pointer: MaybeUninit<&mut T>, name: &str) -> Result<Self> {
        // SAFETY: C passed the argument, so it is initialised; a reference has the layout of a pointer.
        let pointer = unsafe { pointer.as_ptr().cast::<*mut T>().read() };
        if pointer.is_null() || !pointer.is_aligned() {
            let found = if pointer.is_null() { "NULL" } else { "an unaligned address" };
            return Err(Error::argument(format!("{name}: expected a place for the result, found {found}")));
        }
        Ok(Self(pointer))
    }

    pub(super) fn set(&self, value: T) {
        // SAFETY: not NULL and aligned; the header asks for a writable pointer.
        unsafe { self.0.write(value) };
    }

    /// `len` values from here on.
    pub(super) fn fill(&self, values: &[T])
    where
        T: Copy,
    {
        // SAFETY: not NULL and aligned; the caller compared the length, and the header asks for that many writable values.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
    }
}

/// An object that one call at a time may change. Never waits: a second call, also one from a callback of the first, is
/// `Busy`. A panic during a change makes it `Poisoned`.
pub(super) struct Exclusive<T>(RwLock<T>);

impl<T> Exclusive<T> {
    pub(super) fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    /// For `const` parameters: many at a time.
    pub(super) fn read(&self, name: &str) -> Result<RwLockReadGuard<'_, T>> {
        self.0.try_read().map_err(|error| refused(&error, name))
    }

    /// For as long as a call changes the object.
    pub(super) fn lock(&self, name: &str) -> Result<RwLockWriteGuard<'_, T>> {
        let guard = self.0.try_write().map_err(|error| refused(&error, name))?;
        fault::in_use();
        Ok(guard)
    }

    pub(super) fn change<R>(&self, name: &str, change: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        change(&mut *self.lock(name)?)
    }
}

fn refused<G>(error: &TryLockError<G>, name: &str) -> Error {
    match error {
        TryLockError::WouldBlock => {
            Error::new(ErrorKind::Busy, format!("{name}: expected to be free, found in use by another call"))
        }
        TryLockError::Poisoned(_) => poisoned(name),
    }
}

fn poisoned(name: &str) -> Error {
    Error::new(ErrorKind::Poisoned, format!("{name}: an earlier call on it ended in a panic"))
}

/// Options under construction: setters cannot report, so the first bad value waits here for the call that uses them.
/// The lock is held for a copy at most, and never while host code runs.
pub(super) struct Builder<T>(Mutex<(T, Option<BadValue>)>);

/// What is wrong with it, and whether it is that it could not be copied.
type BadValue = (ErrorKind, String);

impl<T: Clone> Builder<T> {
    pub(super) fn new(options: T) -> Self {
        Self(Mutex::new((options, None)))
    }

    fn lock(&self, name: &str) -> Result<MutexGuard<'_, (T, Option<BadValue>)>> {
        self.0.lock().map_err(|_| poisoned(name))
    }

    pub(super) fn set(&self, setter: impl FnOnce(&mut T) -> Result<()>) -> Result<()> {
        let mut guard = self.lock("options")?;
        let (options, bad) = &mut *guard;
        fault::in_use();
        if let Err(error) = setter(options) {
            bad.get_or_insert_with(|| {
                // A setter's value is an argument, whatever is wrong with it.
                let is_memory = error.kind() == ErrorKind::OutOfMemory;
                (if is_memory { ErrorKind::OutOfMemory } else { ErrorKind::InvalidArgument }, error.message().to_owned())
            });
        }
        Ok(())
    }

    /// What the setters made.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` with the first bad value, `ErrorKind::OutOfMemory` if it could not be copied.
    pub(super) fn options(&self) -> Result<T> {
        let guard = self.lock("options")?;
        match &guard.1 {
            Some((kind, bad)) => Err(Error::new(*kind, format!("options: {bad}"))),
            None => Ok(guard.0.clone()),
        }
    }
}
