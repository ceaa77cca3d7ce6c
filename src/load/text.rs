//! Opening files, and the one reader of text files.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Configuration files are small; a larger one is not what it says it is.
pub const MAX_JSON: u64 = 64 << 20;

/// Opens a file, and nothing else that goes by a path: opening a pipe would wait for its other end, without an end itself.
///
/// # Errors
/// `NotFound`, `Io`; `Format` for a pipe, a socket or a device.
pub fn open_file(path: &Path) -> Result<File> {
    let is_special = |metadata: &Metadata| !metadata.is_file() && !metadata.is_dir();
    let refused = || Error::format(format!("{}: expected a file, found a pipe, a socket or a device", path.display()));
    // To open a device can do something to it.
    if is_special(&std::fs::metadata(path).map_err(|e| Error::io(path, e))?) {
        return Err(refused());
    }
    let mut options = OpenOptions::new();
    options.read(true);
    // What takes the file's place in between is opened without waiting.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::io(path, e))?;
    // A directory is an error of reading it.
    if is_special(&file.metadata().map_err(|e| Error::io(path, e))?) { Err(refused()) } else { Ok(file) }
}

/// What stands in place of a file that was not downloaded, if its first bytes tell.
pub fn stand_in(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    if begins("version https://git-lfs") || begins("version https://hawser") {
        Some("a Git LFS pointer, not the file itself (`git lfs pull` fetches it)")
    } else if begins("<!doctype") || begins("<html") || begins("<?xml") {
        Some("a web page, not the file itself (HTML)")
    } else {
        None
    }
}

/// Reads a text file of at most `max` bytes.
///
/// # Errors
/// `NotFound`, `Io`, `OutOfMemory`; `Format` if it is larger or not UTF-8.
pub fn read_text(path: &Path, max: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = open_file(path)?.take(max + 1).read_to_end(&mut bytes);
    let bad = |message: String| Error::format(format!("{}: expected {message}", path.display()));
    if read.map_err(|e| Error::io(path, e))? as u64 > max {
        return Err(bad(format!("up to {max} bytes, found more")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        bad(format!("UTF-8, found byte {:#04x} at offset {at}", e.as_bytes()[at])).with_source(e)
    })
}
