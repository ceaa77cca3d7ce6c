//! Threads: a pool of rayon's, entered once for a whole forward pass, so that a kernel's split costs no wake-up of a sleeping caller.
//!
//! The pool is the library's own: rayon's global one is made once in a process, and if that fails, it stays unusable for ever.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The pool of work that begins now; work that runs holds its own. Locked for a copy or a swap, never while anything runs.
static POOL: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);

/// The process that the pool's threads run in; 0 = there are none yet. Not behind the lock, which in a fork nobody may open again.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// What a thread of the pool has; given, so that nobody reads RUST_MIN_STACK.
const STACK_BYTES: usize = 8 << 20;

fn build(count: usize) -> Result<Arc<ThreadPool>, ThreadPoolBuildError> {
    let pool = || ThreadPoolBuilder::new().num_threads(count).stack_size(STACK_BYTES).thread_name(|i| format!("mc-{i}")).build();
    // A thread that fails once may not fail twice.
    pool().or_else(|_| pool()).map(Arc::new)
}

/// The pool; made, unless it is there, of as many threads as RAYON_NUM_THREADS says, or as there are processors.
fn pool() -> Result<Arc<ThreadPool>, ThreadPoolBuildError> {
    if let Some(pool) = &*POOL.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(pool.clone());
    }
    let mut pool = POOL.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = &*pool {
        return Ok(pool.clone());
    }
    let made = build(0)?;
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    Ok(pool.insert(made).clone())
}

/// Makes the pool, unless it is there.
///
/// # Errors
/// That a thread could not be made; the next call tries again.
pub fn start() -> Result<(), ThreadPoolBuildError> {
    pool().map(drop)
}

/// Replaces the pool by one of `count` threads, or with 0 of as many as [`start`] makes. Work that runs goes on with those that it
/// has, which end behind it.
///
/// # Errors
/// That a thread could not be made; the pool is then as it was.
pub fn set_threads(count: usize) -> Result<(), ThreadPoolBuildError> {
    let made = build(count)?;
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    let old = POOL.write().unwrap_or_else(PoisonError::into_inner).replace(made);
    drop(old);
    Ok(())
}

/// How many threads the pool has.
///
/// # Errors
/// As [`start`].
pub fn thread_count() -> Result<usize, ThreadPoolBuildError> {
    pool().map(|pool| pool.current_num_threads())
}

/// Whether the pool's threads belong to another process, of which this one is a fork: they are not here, and whoever waits for them
/// waits for ever.
pub fn is_forked() -> bool {
    let process = PROCESS.load(Ordering::Relaxed);
    process != 0 && process != std::process::id()
}

/// Runs `work` on a thread of the pool. Without one, where it could not be made, rayon's own takes its place.
fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return work();
    }
    match pool() {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// How many threads the pool has; those of the pool that this thread is of, if it is one.
fn pool_threads() -> usize {
    let own = if rayon::current_thread_index().is_some() { None } else { thread_count().ok() };
    own.unwrap_or_else(rayon::current_num_threads)
}

/// Runs `work` on the pool; the kernels that it calls split their work there.
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    // A call from inside the pool would be injected behind other work.
    on_pool(work)
}

/// Runs `work` on the pool, and `here` on this thread meanwhile.
pub fn beside<R>(work: impl FnOnce() + Send, here: impl FnOnce() -> R) -> R {
    let own = if rayon::current_thread_index().is_some() { None } else { pool().ok() };
    match own {
        Some(pool) => pool.in_place_scope(|scope| {
            scope.spawn(|_| work());
            here()
        }),
        None => rayon::in_place_scope(|scope| {
            scope.spawn(|_| work());
            here()
        }),
    }
}

/// Calls `work` with disjoint ranges that cover `0..total`, on all threads; no range is shorter than `grain` but the last.
pub fn split(total: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
    let parts = parts(total / grain.max(1));
    each(parts, |i| work(total * i / parts..total * (i + 1) / parts));
}

/// Into how many parts work is cut that could be cut into `most`: at least one.
pub fn parts(most: usize) -> usize {
    // A few parts a thread, so that one that was interrupted does not hold up the rest.
    match threads() {
        1 => 1,
        threads => most.clamp(1, threads * 4),
    }
}

/// The threads that a kernel has which is called here.
pub fn threads() -> usize {
    if ALONE.get() { 1 } else { pool_threads() }
}

thread_local! {
    /// Whether the kernels that this thread calls keep to it.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on as many items at once as there are threads. With an item for each thread, its kernels keep to that thread: what
/// one leaves for the next is then in that thread's cache, and nobody waits for anybody. With fewer, the kernels share the threads.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < pool_threads() {
        return items.iter().map(work).collect();
    }
    let alone = |item: &T| {
        struct Restore(bool);
        impl Drop for Restore {
            fn drop(&mut self) {
                ALONE.set(self.0);
            }
        }
        let _restore = Restore(ALONE.replace(true));
        work(item)
    };
    on_pool(|| items.par_iter().with_max_len(1).map(alone).collect())
}

/// Calls `work` with each of `0..parts`, on all threads.
pub fn each(parts: usize, work: impl Fn(usize) + Sync) {
    if parts == 1 { work(0) } else { on_pool(|| (0..parts).into_par_iter().with_max_len(1).for_each(&work)) }
}

/// Calls `work` with each chunk of so many elements and its number, on all threads; whether all of them returned `true`.
pub fn each_chunk<T: Send>(slice: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) -> bool + Sync) -> bool {
    if threads() == 1 {
        return slice.chunks_mut(len).enumerate().all(|(i, chunk)| work(i, chunk));
    }
    on_pool(|| slice.par_chunks_mut(len).enumerate().all(|(i, chunk)| work(i, chunk)))
}

/// A pointer that may go to other threads.
///
/// Whoever dereferences it answers for the element being in bounds and nobody else's.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T);

// SAFETY: the pointer itself is only a number; each use has its own SAFETY line about disjoint elements.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// Of the room of a vector, whose values are yet to be written.
    pub fn of(vec: &mut Vec<T>) -> Self {
        Self(vec.as_mut_ptr())
    }

    pub fn get(self) -> *mut T {
        self.0
    }

    /// The same from the element `offset` on.
    ///
    /// # Safety
    /// It lies in the slice.
    pub unsafe fn add(self, offset: usize) -> Self {
        // SAFETY: passed on from the caller.
        Self(unsafe { self.0.add(offset) })
    }
}
