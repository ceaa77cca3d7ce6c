//! Threads: a pool of rayon's, entered once for a whole forward pass, so that a kernel's split costs no wake-up of a sleeping caller.
//!
//! The pool is the library's own: rayon's global one is made once in a process, and if that fails, it stays unusable for ever.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The pool, and the process that its threads run in.
static POOL: OnceLock<(ThreadPool, u32)> = OnceLock::new();

/// What a thread of the pool has; given, so that nobody reads RUST_MIN_STACK.
const STACK_BYTES: usize = 8 << 20;

/// Makes the pool, unless it is there: as many threads as RAYON_NUM_THREADS says, or as there are processors.
///
/// # Errors
/// That a thread could not be made; the next call tries again.
pub fn start() -> Result<(), ThreadPoolBuildError> {
    if POOL.get().is_none() {
        let build = || ThreadPoolBuilder::new().stack_size(STACK_BYTES).thread_name(|i| format!("mc-{i}")).build();
        // A thread that fails once may not fail twice.
        let pool = build().or_else(|_| build())?;
        POOL.get_or_init(|| (pool, std::process::id()));
    }
    Ok(())
}

/// Whether the pool's threads belong to another process, of which this one is a fork: they are not here, and whoever waits for them
/// waits for ever.
pub fn is_forked() -> bool {
    POOL.get().is_some_and(|(_, process)| *process != std::process::id())
}

/// Runs `work` on a thread of the pool. Without one, where not even [`start`] could make it, rayon's own takes its place.
fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    match POOL.get() {
        _ if rayon::current_thread_index().is_some() => work(),
        None if start().is_err() => work(),
        None => on_pool(work),
        Some((pool, _)) => pool.install(work),
    }
}

/// How many threads the pool has; those of the pool that this thread is of, if it is one.
fn pool_threads() -> usize {
    match POOL.get() {
        Some((pool, _)) if rayon::current_thread_index().is_none() => pool.current_num_threads(),
        None if rayon::current_thread_index().is_none() && start().is_ok() => pool_threads(),
        _ => rayon::current_num_threads(),
    }
}

/// Runs `work` on the pool; the kernels that it calls split their work there.
pub fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    // A call from inside the pool would be injected behind other work.
    on_pool(work)
}

/// Runs `work` on the pool, and `here` on this thread meanwhile.
pub fn beside<R>(work: impl FnOnce() + Send, here: impl FnOnce() -> R) -> R {
    match POOL.get() {
        Some((pool, _)) if rayon::current_thread_index().is_none() => pool.in_place_scope(|scope| {
            scope.spawn(|_| work());
            here()
        }),
        _ => rayon::in_place_scope(|scope| {
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
