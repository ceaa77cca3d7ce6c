//! Each exported function with each of its large allocations failing: it gives its result or MC_ERROR_OUT_OF_MEMORY, and the process goes
//! on. Nothing is put by here, as in a library with the feature `reserve`: what is asked for without a look whether it was given ends the
//! test. tests/c/no_memory does the same with the reserve, where small allocations fail too.

mod handles;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use handles::functions::*;
use metal_candle::ffi::error::mc_status;

/// What grows with a model, a text, a file or a batch. Below are what files are buffered by, lists of a model's modules, and the JSON that
/// names them.
const LARGE: usize = 32 << 10;

/// Of functions that train for some steps, one in so many allocations fails: the same ones come again with each.
const OF_TRAININGS: usize = 23;

/// Functions that let crates parse or build what is large, which do not ask whether they were given memory; what they take is looked for
/// before they are called.
const OF_OTHER_CRATES: [&str; 2] = ["mc_model_load", "mc_tokenizer_load"];

struct Failing;

static IS_ARMED: AtomicBool = AtomicBool::new(false);
static UNTIL_FAILURE: AtomicUsize = AtomicUsize::new(0);

impl Failing {
    fn arm(number: usize) {
        UNTIL_FAILURE.store(number, Ordering::SeqCst);
        IS_ARMED.store(true, Ordering::SeqCst);
    }

    /// Whether an allocation has failed; none does after this.
    fn disarm() -> bool {
        !IS_ARMED.swap(false, Ordering::SeqCst)
    }

    fn fails(size: usize) -> bool {
        if size < LARGE || !IS_ARMED.load(Ordering::SeqCst) {
            return false;
        }
        let before = UNTIL_FAILURE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        before.is_err() && IS_ARMED.swap(false, Ordering::SeqCst)
    }
}

// SAFETY: the system's allocator, or NULL.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        if Self::fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: passed on from the caller.
        if Self::fails(size) { std::ptr::null_mut() } else { unsafe { System.realloc(pointer, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// What is being tried, for whoever reads why the process has ended.
static TRIED: Mutex<String> = Mutex::new(String::new());

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn tell(_: i32) {
    if let Ok(tried) = TRIED.try_lock() {
        let _ = std::io::stderr().write_all(tried.as_bytes());
    }
}

#[test]
fn each_large_allocation_of_each_function_may_fail() {
    const SIGABRT: i32 = 6;
    // SAFETY: the handler has the type that is asked for, and the process ends behind it.
    unsafe { signal(SIGABRT, tell) };
    let (mut failed, mut refused) = (0, 0);
    for_each_function(|function| {
        if OF_OTHER_CRATES.contains(&function.name) {
            return;
        }
        let stride = if function.name.ends_with("_train") { OF_TRAININGS } else { 1 };
        for number in (0..).step_by(stride) {
            *TRIED.lock().unwrap() = format!("{}: large allocation {number} ended the process\n", function.name);
            let arguments = Arguments::good(function);
            Failing::arm(number);
            let (returned, message) = arguments.call(function, Failure::None);
            let has_failed = Failing::disarm();
            undo(function, Failure::None);
            if !has_failed {
                break;
            }
            failed += 1;
            if function.returns == Returns::Status && returned >= 16 && !REFUSED.contains(&function.name) {
                let is_memory = returned == mc_status::MC_ERROR_OUT_OF_MEMORY as u64;
                assert!(is_memory, "{}: large allocation {number}: {returned} {message}", function.name);
                refused += 1;
            }
        }
    });
    assert!(failed > 100 && refused > failed / 2, "{failed} allocations failed, {refused} calls for it");
}
