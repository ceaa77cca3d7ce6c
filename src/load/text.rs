//! The one reader of text files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Configuration files are small; a larger one is not what it says it is.
pub const MAX_JSON: u64 = 64 << 20;

/// Reads a text file of at most `max` bytes.
///
/// # Errors
/// `NotFound`, `Io`, `OutOfMemory`; `Format` if it is larger or not UTF-8.
pub fn read_text(path: &Path, max: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    let bad = |message: String| Error::format(format!("{}: expected {message}", path.display()));
    if read.map_err(|e| Error::io(path, e))? as u64 > max {
        return Err(bad(format!("up to {max} bytes, found more")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        bad(format!("UTF-8, found byte {:#04x} at offset {at}", e.as_bytes()[at])).with_source(e)
    })
}
