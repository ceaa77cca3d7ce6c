//! Memory that is put by for allocations that must not fail.
//!
//! Rust ends a process in which an allocation fails, unless whoever makes it asks whether it has. We do for all that grows with a model,
//! a context, a batch or a file; crates that parse do not, nor does anybody for a few bytes. [`Reserving`] gives those what is put by.
//! While more than half of it is in use, [`is_low`] lets what asks fail, so that calls end and give it back.

// Without an allocator that uses it nothing is ever put by.
#![cfg_attr(not(any(test, feature = "reserve")), allow(dead_code))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// What is put by: untouched until it is needed, and so not in memory.
const BYTES: usize = 16 << 20;
/// What is given out, or a multiple of it.
const UNIT: usize = 1 << 10;
const UNITS: usize = BYTES / UNIT;
const ALIGN: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Free,
    First,
    Following,
}

/// A range of memory, and which units of it are given out.
struct Reserve {
    start: AtomicPtr<u8>,
    is_locked: AtomicBool,
    used: AtomicUsize,
    units: UnsafeCell<[Unit; UNITS]>,
}

// SAFETY: units are read and written under the lock alone.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve::new();

impl Reserve {
    const fn new() -> Self {
        Self {
            start: AtomicPtr::new(std::ptr::null_mut()),
            is_locked: AtomicBool::new(false),
            used: AtomicUsize::new(0),
            units: UnsafeCell::new([Unit::Free; UNITS]),
        }
    }

    /// Asks the system for the range, if that has not been done. Without it there is no reserve.
    fn put_by(&self) {
        if !self.start.load(Ordering::Acquire).is_null() {
            return;
        }
        let Ok(layout) = Layout::from_size_align(BYTES, ALIGN) else { return };
        // SAFETY: the layout has bytes.
        let range = unsafe { System.alloc(layout) };
        if range.is_null() {
            return;
        }
        if self.start.compare_exchange(std::ptr::null_mut(), range, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: another thread was first; nobody knows this one.
            unsafe { System.dealloc(range, layout) };
        }
    }

    fn holds(&self, pointer: *const u8) -> bool {
        let start = self.start.load(Ordering::Acquire) as usize;
        start != 0 && (start..start + BYTES).contains(&(pointer as usize))
    }

    fn with_units<R>(&self, work: impl FnOnce(&mut [Unit; UNITS]) -> R) -> R {
        while self.is_locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: whoever holds the lock is the only one, and `work` allocates nothing.
        let result = work(unsafe { &mut *self.units.get() });
        self.is_locked.store(false, Ordering::Release);
        result
    }

    /// NULL if it does not hold so much.
    fn take(&self, layout: Layout) -> *mut u8 {
        let start = self.start.load(Ordering::Acquire);
        if start.is_null() || layout.align() > ALIGN {
            return std::ptr::null_mut();
        }
        let (count, step) = (layout.size().div_ceil(UNIT).max(1), layout.align().div_ceil(UNIT));
        let found = self.with_units(|units| {
            let mut at = 0;
            while at + count <= UNITS {
                match units[at..at + count].iter().rposition(|unit| *unit != Unit::Free) {
                    None => {
                        units[at..at + count].fill(Unit::Following);
                        units[at] = Unit::First;
                        return Some(at);
                    }
                    Some(taken) => at = (at + taken + 1).next_multiple_of(step),
                }
            }
            None
        });
        let Some(at) = found else { return std::ptr::null_mut() };
        self.used.fetch_add(count, Ordering::Relaxed);
        // SAFETY: the unit lies in the range.
        unsafe { start.add(at * UNIT) }
    }

    fn give_back(&self, pointer: *const u8) {
        let at = (pointer as usize - self.start.load(Ordering::Acquire) as usize) / UNIT;
        let count = self.with_units(|units| {
            let count = 1 + units[at + 1..].iter().take_while(|unit| **unit == Unit::Following).count();
            units[at..at + count].fill(Unit::Free);
            count
        });
        self.used.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Whether more than half of what is put by is in use.
pub fn is_low() -> bool {
    RESERVE.used.load(Ordering::Relaxed) > UNITS / 2
}

/// The system's allocator, with the reserve behind it.
pub struct Reserving;

// SAFETY: the system's allocator, or units that are given out once; each goes back where it came from.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        RESERVE.put_by();
        // SAFETY: passed on from the caller.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() { RESERVE.take(layout) } else { pointer }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        RESERVE.put_by();
        // SAFETY: passed on from the caller.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            return pointer;
        }
        let pointer = RESERVE.take(layout);
        if !pointer.is_null() {
            // SAFETY: so many bytes were given out just now.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if RESERVE.holds(pointer) {
            RESERVE.give_back(pointer);
        } else {
            // SAFETY: it came from there; passed on from the caller.
            unsafe { System.dealloc(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !RESERVE.holds(pointer) {
            // SAFETY: it came from there; passed on from the caller.
            let moved = unsafe { System.realloc(pointer, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the size fits the alignment, as the caller vouches; the old bytes are the caller's until they are freed here, and the
        // new ones are others.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(pointer, moved, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_overlaps_nothing_and_comes_back() {
        let reserve = Box::new(Reserve::new());
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        assert!(reserve.take(layout(1, 1)).is_null(), "nothing is put by");
        reserve.put_by();
        reserve.put_by();
        let mut state = 1u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let mut held: Vec<(*mut u8, usize, u8)> = Vec::new();
        let mut refused = 0;
        for number in 0..20_000 {
            let (size, align) = (1 + random(40 * UNIT), 1 << random(13));
            let pointer = reserve.take(layout(size, align));
            if pointer.is_null() {
                refused += 1;
            } else {
                assert!((pointer as usize).is_multiple_of(align) && reserve.holds(pointer));
                // SAFETY: so many bytes were given out.
                unsafe { pointer.write_bytes(number as u8, size) };
                held.push((pointer, size, number as u8));
            }
            while held.len() > 1000 || (held.len() > 700 && random(3) == 0) {
                let (pointer, size, value) = held.swap_remove(random(held.len()));
                // SAFETY: they were written above.
                assert!(unsafe { std::slice::from_raw_parts(pointer, size) }.iter().all(|byte| *byte == value));
                reserve.give_back(pointer);
            }
        }
        assert!(refused > 0 && reserve.used.load(Ordering::Relaxed) >= held.len());
        held.into_iter().for_each(|(pointer, ..)| reserve.give_back(pointer));
        assert_eq!(reserve.used.load(Ordering::Relaxed), 0);
        let whole = reserve.take(layout(BYTES, ALIGN));
        assert!(!whole.is_null() && reserve.take(layout(1, 1)).is_null());
        assert!(!reserve.holds(whole.wrapping_sub(1)) && !reserve.holds(whole.wrapping_add(BYTES)));
        reserve.give_back(whole);
        assert!(reserve.take(layout(BYTES + 1, 1)).is_null() && reserve.take(layout(1, 2 * ALIGN)).is_null());
        // SAFETY: it was asked for with this layout, and all of it is back.
        unsafe { System.dealloc(whole, layout(BYTES, ALIGN)) };
    }

    #[test]
    fn blocks_grow_shrink_and_are_zero_in_either_memory() {
        let layout = |size| Layout::from_size_align(size, 16).unwrap();
        // SAFETY: each block is used within its size and freed once with its layout.
        unsafe {
            RESERVE.put_by();
            let zeros = Reserving.alloc_zeroed(layout(5000));
            assert!(!RESERVE.holds(zeros) && std::slice::from_raw_parts(zeros, 5000).iter().all(|byte| *byte == 0));
            Reserving.dealloc(zeros, layout(5000));
            let own = RESERVE.take(layout(3000));
            own.write_bytes(7, 3000);
            let grown = Reserving.realloc(own, layout(3000), 9000);
            assert!(!RESERVE.holds(grown) && std::slice::from_raw_parts(grown, 3000).iter().all(|byte| *byte == 7));
            let shrunk = Reserving.realloc(grown, layout(9000), 10);
            assert!(std::slice::from_raw_parts(shrunk, 10).iter().all(|byte| *byte == 7));
            Reserving.dealloc(shrunk, layout(10));
        }
    }
}
