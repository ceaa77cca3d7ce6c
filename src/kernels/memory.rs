//! What the system tells about memory, and what we ask of it: huge pages for weights, and no end of the process where there is none.

use std::collections::TryReserveError;

use super::reserve;
use crate::error::{Error, ErrorKind, OutOfMemory, Result as Checked};

/// An empty vector with room for `len` elements, on huge pages where the system offers them and the size is worth it; `None` if
/// there is no memory for it.
///
/// Streaming weights through 4 kB pages spends much of the time in page walks; 2 MB pages nearly double the rate.
pub fn huge_vec<T: Copy>(len: usize) -> Option<Vec<T>> {
    let mut vec: Vec<T> = Vec::new();
    vec.try_reserve_exact(len).ok()?;
    advise_huge(&vec);
    Some(vec)
}

/// So many zeros, on such pages; `None` if there is no memory for them.
pub fn huge_zeros(len: usize) -> Option<Vec<u8>> {
    let vec = zeros(len).ok()?;
    advise_huge(&vec);
    Some(vec)
}

/// A number that is zero where its bits are.
pub trait Zero: Copy {}
impl Zero for u8 {}
impl Zero for f32 {}
impl Zero for f64 {}

/// So many zeros. Pages come from the system as zeros when they are first written, by whichever thread does: nobody else writes them
/// before.
///
/// # Errors
/// `OutOfMemory`.
pub fn zeros<T: Zero>(len: usize) -> Result<Vec<T>, OutOfMemory> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let no_memory = || OutOfMemory { what: format!("{len} values of {} bytes", size_of::<T>()) };
    if reserve::is_low() {
        return Err(no_memory());
    }
    let layout = std::alloc::Layout::array::<T>(len).map_err(|_| no_memory())?;
    // SAFETY: the layout has bytes.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(no_memory());
    }
    // SAFETY: the allocator has just given these values, which are all set, with the layout of such a vector.
    Ok(unsafe { Vec::from_raw_parts(start.cast(), len, len) })
}

/// A copy of values.
///
/// # Errors
/// If there is no memory for it.
pub fn copied<T: Copy>(values: &[T]) -> Result<Vec<T>, TryReserveError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// A copy of a text; `what` it is stands in the error.
///
/// # Errors
/// `ErrorKind::OutOfMemory`.
pub fn owned(what: &str, text: &str) -> Checked<String> {
    let mut copy = String::new();
    check_room(what, 0)?;
    copy.try_reserve_exact(text.len()).map_err(|e| no_room(what, text.len()).with_source(e))?;
    copy.push_str(text);
    Ok(copy)
}

/// Whether there is room for so many bytes in all, which code that does not ask, of another crate, is about to allocate.
///
/// What other threads take meanwhile it does not know.
///
/// # Errors
/// `ErrorKind::OutOfMemory`.
pub fn check_room(what: &str, bytes: usize) -> Checked<()> {
    // A little is there in any case: what is put by.
    if reserve::is_low() || (bytes > FREE && !reserve::has_room(bytes)) { Err(no_room(what, bytes)) } else { Ok(()) }
}

fn no_room(what: &str, bytes: usize) -> Error {
    let found = if bytes == 0 { "what is left of it".to_owned() } else { format!("{bytes} bytes") };
    Error::new(ErrorKind::OutOfMemory, format!("{what}: expected memory to work in, found no room for {found}"))
}

/// What is not asked for.
const FREE: usize = 1 << 20;

/// Asks for huge pages in the room of a vector.
fn advise_huge<T>(vec: &Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = (vec.as_ptr() as usize).next_multiple_of(HUGE);
        let end = (vec.as_ptr() as usize + vec.capacity() * size_of::<T>()) / HUGE * HUGE;
        if end > start {
            // SAFETY: the range lies inside memory that `vec` owns; the advice changes no content. A refusal costs speed alone.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = vec;
}

/// The machine's memory in bytes, if the system tells.
pub fn physical_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: `sysconf` reads a number and touches no memory of ours.
        let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        Some(u64::try_from(pages).ok()? * u64::try_from(page).ok()?)
    }
    #[cfg(not(unix))]
    None
}

/// The bytes of this process that are in memory now, if the system tells.
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        // SAFETY: `sysconf` reads a number and touches no memory of ours.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Some(pages * u64::try_from(page).ok()?)
    }
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    {
        let mut info = std::mem::MaybeUninit::<libc::mach_task_basic_info>::zeroed();
        let mut count = libc::MACH_TASK_BASIC_INFO_COUNT;
        // The crate that libc names in its place would be one more dependency for this one number.
        #[allow(deprecated)]
        // SAFETY: the flavour matches the type and size of the buffer, which outlives the call.
        let code =
            unsafe { libc::task_info(libc::mach_task_self(), libc::MACH_TASK_BASIC_INFO, info.as_mut_ptr().cast(), &mut count) };
        if code != libc::KERN_SUCCESS {
            return None;
        }
        // SAFETY: the call succeeded, and all-zero bytes are valid for this type anyway.
        Some(unsafe { info.assume_init() }.resident_size)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "ios")))]
    None
}

/// The most bytes of this process that were in memory at any time, if the system tells.
pub fn peak_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the buffer has the type that the call fills, and outlives it.
        if unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded, and all-zero bytes are valid for this type anyway.
        let peak = u64::try_from(unsafe { usage.assume_init() }.ru_maxrss).ok()?;
        // Apple counts bytes, the others kilobytes.
        Some(if cfg!(target_vendor = "apple") { peak } else { peak.saturating_mul(1024) })
    }
    #[cfg(not(unix))]
    None
}

/// Gives freed memory that the allocator keeps for reuse back to the system.
pub fn trim(keep_bytes: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` takes the allocator's own lock and releases unused pages only.
    unsafe {
        libc::malloc_trim(keep_bytes);
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = keep_bytes;
}
