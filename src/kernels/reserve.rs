//! Memory that is put by for allocations that must not fail.
//!
//! Rust ends a process in which an allocation fails, unless whoever makes it asks whether it has. We do for all that grows with a model,
//! a context, a batch or a file; crates that parse do not, nor does anybody for a few bytes. [`Reserving`] gives those what is put by.
//! While more than half of it is in use, [`is_low`] lets what asks fail, so that calls end and give it back.

// Without an allocator that uses it nothing is ever put by.
#![cfg_attr(not(any(test, feature = "reserve")), allow(dead_code))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// What is put by: untouched until it is needed, and so not in memory.
const BYTES: usize = 16 << 20;
/// What is given out, or a multiple of it: small, because what a crate that parses asks for is mostly texts of a few bytes.
const UNIT: usize = 16;
const UNITS: usize = BYTES / UNIT;
const WORD: usize = u64::BITS as usize;
const ALIGN: usize = 4096;

/// Which units are given out, a bit each.
struct Units {
    words: [u64; UNITS / WORD],
    /// Behind the last one that was given out: where the next search begins, or many small blocks would be passed each time.
    next: usize,
}

/// What the C library is left with: it ends the process itself where it finds no memory for a destructor of a thread's own variable, of
/// which crates have some. Given back to it when an allocation fails first, and not asked for by us from then on.
struct Spare(AtomicPtr<u8>);

static SPARE: Spare = Spare(AtomicPtr::new(std::ptr::null_mut()));
const SPARE_BYTES: usize = 60 << 10;
/// What is larger cannot be taken from what was given back.
const SMALL: usize = 2 * SPARE_BYTES;

impl Spare {
    /// Whether there is memory, as far as is known: what failed is tried again, with more than was given back.
    fn is_kept(&self) -> bool {
        if !self.0.load(Ordering::Acquire).is_null() {
            return true;
        }
        if !has_room(SMALL) {
            return false;
        }
        let Ok(layout) = Layout::from_size_align(SPARE_BYTES, UNIT) else { return true };
        // SAFETY: the layout has bytes.
        let spare = unsafe { System.alloc(layout) };
        if !spare.is_null() && self.0.compare_exchange(std::ptr::null_mut(), spare, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            // SAFETY: another thread was first; nobody knows this one.
            unsafe { System.dealloc(spare, layout) };
        }
        true
    }

    fn give_back(&self) {
        let spare = self.0.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if let (false, Ok(layout)) = (spare.is_null(), Layout::from_size_align(SPARE_BYTES, UNIT)) {
            // SAFETY: it came from there, with this layout, and whoever swapped it out is the only one.
            unsafe { System.dealloc(spare, layout) };
        }
    }
}

/// A range of memory, and which units of it are given out.
struct Reserve {
    start: *mut u8,
    is_locked: AtomicBool,
    used: AtomicUsize,
    units: UnsafeCell<Units>,
}

// SAFETY: units are read and written under the lock alone; the range belongs to whom they are given out to.
unsafe impl Sync for Reserve {}

/// What is put by is a part of the library, so that it is there however little there is when the library is first called.
#[repr(C, align(4096))]
struct Block(UnsafeCell<MaybeUninit<[u8; BYTES]>>);

// SAFETY: its bytes belong to whom the units were given out to.
unsafe impl Sync for Block {}

static BLOCK: Block = Block(UnsafeCell::new(MaybeUninit::uninit()));
static RESERVE: Reserve = Reserve::new(BLOCK.0.get().cast());

impl Units {
    /// Gives out or takes back units.
    fn set(&mut self, range: Range<usize>, is_taken: bool) {
        for word in range.start / WORD..range.end.div_ceil(WORD) {
            let mask = Self::mask(word, &range);
            if is_taken {
                self.words[word] |= mask;
            } else {
                self.words[word] &= !mask;
            }
        }
    }

    /// The bits of a word that lie in a range of units, of which some do.
    fn mask(word: usize, range: &Range<usize>) -> u64 {
        let (first, end) = (range.start.saturating_sub(word * WORD), (range.end - word * WORD).min(WORD));
        (u64::MAX << first) & (u64::MAX >> (WORD - end))
    }

    fn last_taken(&self, range: &Range<usize>) -> Option<usize> {
        (range.start / WORD..range.end.div_ceil(WORD)).rev().find_map(|word| {
            let taken = self.words[word] & Self::mask(word, range);
            (taken != 0).then(|| word * WORD + taken.ilog2() as usize)
        })
    }

    /// The first from `at` on that is free, or the end.
    fn first_free(&self, at: usize) -> usize {
        let free_in = |word: usize, from: usize| {
            let free = !self.words[word] & (u64::MAX << from);
            (free != 0).then(|| word * WORD + free.trailing_zeros() as usize)
        };
        if at >= UNITS {
            return UNITS;
        }
        free_in(at / WORD, at % WORD).or_else(|| (at / WORD + 1..UNITS / WORD).find_map(|word| free_in(word, 0))).unwrap_or(UNITS)
    }

    /// Gives out `count` units that begin at a multiple of `step`.
    fn take(&mut self, count: usize, step: usize) -> Option<usize> {
        let next = self.next;
        let at = self.find(next, UNITS, count, step).or_else(|| self.find(0, next, count, step))?;
        self.set(at..at + count, true);
        self.next = at + count;
        Some(at)
    }

    /// Where such units begin, from a place on and before another.
    fn find(&self, from: usize, before: usize, count: usize, step: usize) -> Option<usize> {
        let mut at = self.first_free(from).next_multiple_of(step);
        while at < before && count <= UNITS - at {
            match self.last_taken(&(at..at + count)) {
                None => return Some(at),
                Some(taken) => at = self.first_free(taken + 1).next_multiple_of(step),
            }
        }
        None
    }
}

impl Reserve {
    /// Over a range of [`BYTES`] that is as long-lived, and begins at a multiple of [`ALIGN`].
    const fn new(start: *mut u8) -> Self {
        Self {
            start,
            is_locked: AtomicBool::new(false),
            used: AtomicUsize::new(0),
            units: UnsafeCell::new(Units { words: [0; UNITS / WORD], next: 0 }),
        }
    }

    fn holds(&self, pointer: *const u8) -> bool {
        let start = self.start as usize;
        (start..start + BYTES).contains(&(pointer as usize))
    }

    fn with_units<R>(&self, work: impl FnOnce(&mut Units) -> R) -> R {
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
        if layout.align() > ALIGN {
            return std::ptr::null_mut();
        }
        let (count, step) = (units_of(layout.size()), layout.align().div_ceil(UNIT));
        let Some(at) = self.with_units(|units| units.take(count, step)) else { return std::ptr::null_mut() };
        self.used.fetch_add(count, Ordering::Relaxed);
        // SAFETY: the unit lies in the range.
        unsafe { self.start.add(at * UNIT) }
    }

    fn unit_at(&self, pointer: *const u8) -> usize {
        (pointer as usize - self.start as usize) / UNIT
    }

    /// Takes back what was given out for so many bytes.
    fn give_back(&self, pointer: *const u8, size: usize) {
        let (at, count) = (self.unit_at(pointer), units_of(size));
        self.with_units(|units| units.set(at..at + count, false));
        self.used.fetch_sub(count, Ordering::Relaxed);
    }

    /// Takes back the end of what was given out.
    fn shrink(&self, pointer: *const u8, size: usize, less: usize) {
        let (at, count, kept) = (self.unit_at(pointer), units_of(size), units_of(less));
        if kept < count {
            self.with_units(|units| units.set(at + kept..at + count, false));
            self.used.fetch_sub(count - kept, Ordering::Relaxed);
        }
    }
}

fn units_of(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).max(1)
}

/// Whether the system itself gives so much now, which is given back at once: for what is about to be allocated by code that does not
/// ask whether it was.
pub fn has_room(bytes: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(bytes.max(1), 1) else { return false };
    // SAFETY: the layout has bytes.
    let room = std::hint::black_box(unsafe { System.alloc(layout) });
    if !room.is_null() {
        // SAFETY: it came from there, with this layout.
        unsafe { System.dealloc(room, layout) };
    }
    !room.is_null()
}

/// Whether more than half of what is put by is in use.
pub fn is_low() -> bool {
    cfg!(any(test, feature = "reserve")) && RESERVE.used.load(Ordering::Relaxed) > UNITS / 2
}

/// The system's allocator, with the reserve behind it.
pub struct Reserving;

impl Reserving {
    /// A block by the system, or of the reserve; in front of the system where little is left there, which is not for us.
    fn give(layout: Layout, system: impl Fn() -> *mut u8) -> *mut u8 {
        let is_small = layout.size() < SMALL;
        if !is_small || SPARE.is_kept() {
            let pointer = system();
            if !pointer.is_null() {
                return pointer;
            }
        }
        if is_small {
            SPARE.give_back();
        }
        let pointer = RESERVE.take(layout);
        if pointer.is_null() && is_small { system() } else { pointer }
    }

    /// The block with another size elsewhere, or NULL, and then it is where it was.
    unsafe fn moved(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
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

// SAFETY: the system's allocator, or units that are given out once; each goes back where it came from.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        Self::give(layout, || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        let pointer = Self::give(layout, || unsafe { System.alloc_zeroed(layout) });
        if RESERVE.holds(pointer) {
            // SAFETY: so many bytes were given out just now.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if RESERVE.holds(pointer) {
            RESERVE.give_back(pointer, layout.size());
        } else {
            // SAFETY: it came from there; passed on from the caller.
            unsafe { System.dealloc(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !RESERVE.holds(pointer) {
            // Where little is left it grows elsewhere, as what is new does.
            if size > layout.size() && size < SMALL && !SPARE.is_kept() {
                // SAFETY: passed on from the caller.
                return unsafe { self.moved(pointer, layout, size) };
            }
            // SAFETY: it came from there; passed on from the caller.
            let moved = unsafe { System.realloc(pointer, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        } else if size <= layout.size() {
            RESERVE.shrink(pointer, layout.size(), size);
            return pointer;
        }
        // SAFETY: passed on from the caller.
        unsafe { self.moved(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_overlaps_nothing_and_comes_back() {
        let mut block = Box::<Block>::new_uninit();
        let reserve = Box::new(Reserve::new(block.as_mut_ptr().cast()));
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        let mut state = 1u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let mut held: Vec<(*mut u8, usize, u8)> = Vec::new();
        let mut refused = 0;
        for number in 0..20_000 {
            let (size, align) = (1 + random(if number % 2 == 0 { 100 } else { 80 << 10 }), 1 << random(13));
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
                reserve.give_back(pointer, size);
            }
        }
        assert!(refused > 0 && reserve.used.load(Ordering::Relaxed) >= held.len());
        held.into_iter().for_each(|(pointer, size, _)| reserve.give_back(pointer, size));
        assert_eq!(reserve.used.load(Ordering::Relaxed), 0);
        let whole = reserve.take(layout(BYTES, ALIGN));
        assert!(!whole.is_null() && reserve.take(layout(1, 1)).is_null());
        assert!(!reserve.holds(whole.wrapping_sub(1)) && !reserve.holds(whole.wrapping_add(BYTES)));
        reserve.give_back(whole, BYTES);
        assert!(reserve.take(layout(BYTES + 1, 1)).is_null() && reserve.take(layout(1, 2 * ALIGN)).is_null());
    }

    #[test]
    fn blocks_grow_shrink_and_are_zero_in_either_memory() {
        let layout = |size| Layout::from_size_align(size, 16).unwrap();
        // SAFETY: each block is used within its size and freed once with its layout.
        unsafe {
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
            let own = RESERVE.take(layout(3000));
            own.write_bytes(9, 3000);
            let shrunk = Reserving.realloc(own, layout(3000), 20);
            assert!(shrunk == own && std::slice::from_raw_parts(shrunk, 20).iter().all(|byte| *byte == 9));
            Reserving.dealloc(shrunk, layout(20));
        }
    }

    #[test]
    fn many_small_texts_do_not_exhaust_it() {
        let mut block = Box::<Block>::new_uninit();
        let reserve = Box::new(Reserve::new(block.as_mut_ptr().cast()));
        let layout = Layout::from_size_align(30, 1).unwrap();
        let held: Vec<*mut u8> = (0..BYTES / 32).map(|_| reserve.take(layout)).collect();
        assert!(held.iter().all(|pointer| !pointer.is_null()) && reserve.take(layout).is_null());
        // Every second one is free. A search that began at the first unit each time would take minutes.
        held.iter().step_by(2).for_each(|pointer| reserve.give_back(*pointer, 30));
        assert!(reserve.take(Layout::from_size_align(33, 1).unwrap()).is_null());
        assert!(held.iter().step_by(2).all(|_| !reserve.take(layout).is_null()));
        held.iter().for_each(|pointer| reserve.give_back(*pointer, 30));
        assert_eq!(reserve.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn more_than_the_system_has_is_no_room() {
        assert!(has_room(0) && has_room(1 << 20) && !has_room(isize::MAX as usize) && !has_room(usize::MAX));
    }
}
