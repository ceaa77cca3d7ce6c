//! Files that are written beside their place and renamed, so that a failure or a crash leaves the old one or the new one.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::text::open_file;
use crate::error::{Error, Result};

/// A number of this run of the program: that of the process may be the same after a restart.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));

/// Where to write what will be `path`: a name that nothing else uses, in the same directory.
pub fn beside(path: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| Error::argument(format!("path: expected the name of a file, found {:?}", path.display())))?;
    let mut beside = name.to_os_string();
    beside.push(format!(".{}-{}.part", *PROCESS, COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(beside))
}

/// Removes what writers that were killed have left in a directory; not what this process writes. No other one may write there.
pub fn remove_parts(directory: &Path) {
    let is_part = |name: &str| {
        let id = name.strip_suffix(".part").and_then(|name| name.rsplit_once('.')?.1.split_once('-'));
        id.is_some_and(|(process, count)| {
            process.parse().is_ok_and(|process: u64| process != *PROCESS) && count.parse::<u64>().is_ok()
        })
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_part(&entry.file_name().to_string_lossy()) {
            // What cannot be removed takes room and does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Makes a directory, unless it is there, and tries whether files can be written in it.
///
/// # Errors
/// `Io`, `NotFound`, naming the path.
pub fn try_directory(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
    let probe = beside(&directory.join("probe"))?;
    let written = write_text(&probe, "probe");
    // What cannot be removed takes room and does no harm.
    let _ = std::fs::remove_file(&probe);
    written
}

/// Writes a text, down to the disk.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

/// Copies a file, down to the disk. Its permissions stay behind: those of a cache may forbid to write.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = open_file(from)?;
    let mut copy = || {
        let mut file = File::create(to)?;
        std::io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    copy().map_err(|e| Error::io(to, e))
}

/// Where a file is that a path names, links followed; it need not be there.
fn place(path: &Path) -> Result<PathBuf> {
    let mut place = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() => {
                let target = std::fs::read_link(&place).map_err(|e| Error::io(&place, e))?;
                place = place.parent().unwrap_or(Path::new("")).join(target);
            }
            Ok(found) if found.is_file() => return Ok(place),
            Ok(_) => {
                let message =
                    format!("{}: expected a file or none, found a directory, a pipe, a socket or a device", path.display());
                return Err(Error::argument(message));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(place),
            Err(e) => return Err(Error::io(&place, e)),
        }
    }
    Err(Error::argument(format!("{}: expected at most {MAX_LINKS} links", path.display())))
}

/// As Linux has it.
const MAX_LINKS: usize = 40;

/// Writes files by `write` and puts them in their places once all are whole.
///
/// A link is followed: what it names is replaced, not the link.
///
/// # Errors
/// `Io`; `InvalidArgument` for a place that holds what is no file, as a pipe or a device.
pub fn replace(paths: &[PathBuf], write: impl FnOnce(&[PathBuf]) -> Result<()>) -> Result<()> {
    let paths = &paths.iter().map(|path| place(path)).collect::<Result<Vec<_>>>()?;
    let parts = paths.iter().map(|path| beside(path)).collect::<Result<Vec<_>>>()?;
    let rename = |(part, path): (&PathBuf, &PathBuf)| std::fs::rename(part, path).map_err(|e| Error::io(path, e));
    let written = write(&parts).and_then(|()| parts.iter().zip(paths).try_for_each(rename));
    if written.is_err() {
        for part in &parts {
            // The first error is the one to tell; the part may not even exist.
            let _ = std::fs::remove_file(part);
        }
    }
    // Nobody knows of the parts.
    written.map_err(|error| parts.iter().zip(paths).fold(error, |error, (part, path)| error.of_place(part, path)))
}
