//! Values: results that are text or token ids.
//!
//! Where a result is longer than a number it is an object of the library, read in place and freed with its own function.
//!
//! @snippet inspect.c string
//! @see @ref tokenizer, @ref model
//!
//! Threads: any, concurrently: strings and token ids are immutable.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::boundary::guard_or;
use super::handle::{Given, Object, free};
use super::text::{Text, empty, lend};

/// Text that a call returned. Immutable.
pub struct mc_string {
    _opaque: [u8; 0],
}

/// Token ids that a call returned. Immutable.
pub struct mc_tokens {
    _opaque: [u8; 0],
}

impl Object for mc_string {
    const NAME: &'static str = "mc_string";
    type Inner = Text;
}

impl Object for mc_tokens {
    const NAME: &'static str = "mc_tokens";
    type Inner = Vec<u32>;
}

/// Where an empty array points to.
static NO_TOKENS: [u32; 1] = [0];

pub(super) fn no_tokens() -> MaybeUninit<&'static u32> {
    lend(NO_TOKENS.as_ptr())
}

pub(super) fn lend_tokens(tokens: &[u32]) -> MaybeUninit<&u32> {
    if tokens.is_empty() { no_tokens() } else { lend(tokens.as_ptr()) }
}

/// The bytes of a string.
///
/// @param string  the string; NULL gives "".
/// @return UTF-8, NUL-terminated, valid until the string is freed. Text may itself contain NUL: mc_string_len() counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_string_data(string: MaybeUninit<&mc_string>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(string.lend("string")?.pointer()))
}

/// The length of a string.
///
/// @param string  the string; NULL gives 0.
/// @return bytes, without the NUL at the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_string_len(string: MaybeUninit<&mc_string>) -> usize {
    guard_or(0, || Ok(string.lend("string")?.len()))
}

/// Frees a string.
///
/// @param string  the string, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_string_free(string: *mut mc_string) {
    guard_or((), || free(string, "string"));
}

/// The token ids.
///
/// @param tokens  the tokens; NULL gives an empty array.
/// @return mc_tokens_len() ids, valid until the tokens are freed; never NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokens_data(tokens: MaybeUninit<&mc_tokens>) -> MaybeUninit<&u32> {
    guard_or(no_tokens(), || Ok(lend_tokens(tokens.lend("tokens")?)))
}

/// How many token ids there are.
///
/// @param tokens  the tokens; NULL gives 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokens_len(tokens: MaybeUninit<&mc_tokens>) -> usize {
    guard_or(0, || Ok(tokens.lend("tokens")?.len()))
}

/// Frees token ids.
///
/// @param tokens  the tokens, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_tokens_free(tokens: *mut mc_tokens) {
    guard_or((), || free(tokens, "tokens"));
}
