//! Text on its way in (checked) and out (owned, NUL-terminated).

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use crate::error::{Error, ErrorKind, Result};

/// Bytes with a NUL behind them, so that C may read them either way.
#[derive(Debug)]
pub(super) struct Text(Box<[u8]>);

impl Text {
    pub(super) fn new(text: impl Into<String>) -> Self {
        let mut bytes = text.into().into_bytes();
        bytes.reserve_exact(1);
        bytes.push(0);
        Self(bytes.into_boxed_slice())
    }

    /// As [`new`](Self::new) of a text that may be long.
    pub(super) fn long(text: String) -> Result<Self> {
        let mut bytes = text.into_bytes();
        bytes.try_reserve_exact(1).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("a text of {} bytes does not fit the memory", bytes.len())).with_source(e)
        })?;
        bytes.push(0);
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// For what C reads up to its NUL alone: a NUL inside is shown as `\0` instead of cutting the rest off.
    pub(super) fn line(text: &str) -> Self {
        Self::new(text.replace('\0', "\\0"))
    }

    pub(super) fn pointer(&self) -> MaybeUninit<&c_char> {
        lend(self.0.as_ptr().cast())
    }

    /// Bytes, without the NUL.
    pub(super) fn len(&self) -> usize {
        self.0.len() - 1
    }
}

/// A pointer that prints as nonnull and reaches further than the one value that a reference would speak for.
pub(super) fn lend<'a, T>(pointer: *const T) -> MaybeUninit<&'a T> {
    let mut lent = MaybeUninit::<&'a T>::uninit();
    // SAFETY: a reference has the layout of a pointer.
    unsafe { lent.as_mut_ptr().cast::<*const T>().write(pointer) };
    lent
}

/// What a getter returns where there is no text.
pub(super) fn empty() -> MaybeUninit<&'static c_char> {
    lend(c"".as_ptr())
}

/// A NUL-terminated argument that must be there.
pub(super) fn name<'a>(pointer: &'a MaybeUninit<&c_char>, name: &str) -> Result<&'a str> {
    // SAFETY: C passed the argument, so it is initialised; a reference has the layout of a pointer.
    let pointer = unsafe { pointer.as_ptr().cast::<*const c_char>().read() };
    optional_name(pointer, name)?.ok_or_else(|| Error::argument(format!("{name}: expected text, found NULL")))
}

/// Texts, each of so many bytes, or NUL-terminated where no lengths are given.
pub(super) fn contents<'a>(
    texts: MaybeUninit<&'a *const c_char>,
    lens: *const usize,
    count: usize,
    (name, lens_name): (&str, &str),
) -> Result<Vec<&'a str>> {
    let pointers = given_array(texts, count, name)?;
    let lens = if lens.is_null() { None } else { Some(array(lens, count, lens_name)?) };
    let text = |(i, &pointer): (usize, &*const c_char)| {
        let name = format!("{name}[{i}]");
        match lens {
            Some(lens) => content(pointer, lens[i], &name),
            None => optional_name(pointer, &name)?.ok_or_else(|| Error::argument(format!("{name}: expected text, found NULL"))),
        }
    };
    pointers.iter().enumerate().map(text).collect()
}

/// A NUL-terminated argument that may be NULL.
pub(super) fn optional_name<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; the header asks for NUL-terminated text that lives for the call.
    utf8(unsafe { CStr::from_ptr(pointer) }.to_bytes(), name).map(Some)
}

/// Content of a length in bytes; NULL with length 0 is the empty text.
pub(super) fn content<'a>(pointer: *const c_char, len: usize, name: &str) -> Result<&'a str> {
    utf8(array(pointer.cast::<u8>(), len, name)?, name)
}

/// Content where NULL means that there is none.
pub(super) fn optional_content<'a>(pointer: *const c_char, len: usize, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() && len == 0 {
        return Ok(None);
    }
    content(pointer, len, name).map(Some)
}

/// Content that the header marks nonnull.
pub(super) fn given_content<'a>(pointer: MaybeUninit<&c_char>, len: usize, name: &str) -> Result<&'a str> {
    // SAFETY: C passed the argument, so it is initialised; a reference has the layout of a pointer.
    let pointer = unsafe { pointer.as_ptr().cast::<*const c_char>().read() };
    optional_content(pointer, len, name)?.ok_or_else(|| Error::argument(format!("{name}: expected text, found NULL")))
}

/// `len` values; NULL with length 0 is the empty array.
pub(super) fn array<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || !pointer.is_aligned() || len > isize::MAX as usize / size_of::<T>() {
        let found = if pointer.is_null() { "NULL" } else { "an impossible address or length" };
        return Err(Error::argument(format!("{name}: expected {len} values, found {found}")));
    }
    // SAFETY: not NULL, aligned, no overflow; the header asks for that many values that live for the call.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// `len` values that the header marks nonnull.
pub(super) fn given_array<'a, T>(pointer: MaybeUninit<&T>, len: usize, name: &str) -> Result<&'a [T]> {
    // SAFETY: C passed the argument, so it is initialised; a reference has the layout of a pointer.
    let pointer = unsafe { pointer.as_ptr().cast::<*const T>().read() };
    if pointer.is_null() {
        return Err(Error::argument(format!("{name}: expected {len} values, found NULL")));
    }
    array(pointer, len, name)
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let (offset, byte) = (error.valid_up_to(), bytes[error.valid_up_to()]);
        Error::new(ErrorKind::InvalidUtf8, format!("{name}: expected UTF-8, found byte 0x{byte:02x} at offset {offset}"))
    })
}
