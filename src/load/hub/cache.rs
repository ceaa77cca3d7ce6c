//! The Hub's cache on disk, as every client of the Hub lays it out:
//!
//! ```text
//! models--owner--name/refs/main                     the commit that a branch or tag stood at
//! models--owner--name/blobs/<etag>                  contents, named by SHA-256 (large files) or by git's id
//! models--owner--name/snapshots/<commit>/<file>     links to blobs
//! .locks/models--owner--name/<etag>.lock            who downloads a blob holds this
//! ```
//! <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::read_text;
use super::client::{BLOCK, network};
use super::{RepoId, Revision, is_hex};
use crate::error::{Error, ErrorKind, Result};

/// How long to wait before asking again for a lock that another download holds.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Where the Hub's own client keeps files: `.cache/huggingface/hub` in the home directory. An iOS app may write only into
/// parts of its home, so there it is `Library/Caches/huggingface/hub`.
///
/// # Errors
/// `NotFound` if there is no home directory.
pub fn default_directory() -> Result<PathBuf> {
    let home = home::home_dir().filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "hub_cache_dir: expected a directory, found no home directory for the default")
    })?;
    let caches = if cfg!(target_os = "ios") { home.join("Library").join("Caches") } else { home.join(".cache") };
    Ok(caches.join("huggingface").join("hub"))
}

/// What the cache holds of one repository.
pub struct Cache {
    directory: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// Creates nothing.
    pub fn new(root: &Path, repo: &RepoId) -> Self {
        let folder = format!("models--{}", repo.as_str().replace('/', "--"));
        Self { directory: root.join(&folder), locks: root.join(".locks").join(folder) }
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    /// The content of that name.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.directory.join("blobs").join(etag)
    }

    /// The commit that a revision stood at when it was last downloaded.
    pub fn commit(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_string());
        }
        let commit = read_text(&self.reference(revision), 100).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_hex(commit, 40))
    }

    /// Writes down which commit a revision stands at.
    pub fn remember(&self, revision: &Revision, commit: &str, wait: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let _lock = self.lock("refs", wait)?;
        let (reference, partial) = (self.reference(revision), self.directory.join("ref.incomplete"));
        create_parent(&reference)?;
        fs::write(&partial, commit).map_err(|e| Error::io(&partial, e))?;
        fs::rename(&partial, &reference).map_err(|e| Error::io(&reference, e))
    }

    /// Shows a blob as a file of a commit.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        create_parent(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let (blob, target) = (self.blob(etag), format!("{up}blobs/{etag}"));
        for _ in 0..2 {
            match symlink(Path::new(&target), &path) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    // Another download was faster, or a damaged file is in the way.
                    if same_file(&path, &blob) {
                        return Ok(());
                    }
                    fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
                }
                // No links on this file system: the file lives in the snapshot, as the Hub's client does it.
                Err(_) => break,
            }
        }
        fs::rename(&blob, &path).map_err(|e| Error::io(&path, e))
    }

    /// Waits until nobody else, of this process or another, downloads what `name` stands for.
    pub fn lock(&self, name: &str, wait: &mut dyn FnMut() -> Result<()>) -> Result<File> {
        let path = self.locks.join(format!("{name}.lock"));
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    wait()?;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
        }
    }

    fn reference(&self, revision: &Revision) -> PathBuf {
        self.directory.join("refs").join(revision.as_str())
    }
}

/// The size of a file, if it is there.
pub fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// The files of a folder and of its folders, as a repository names them.
pub fn files(directory: &Path) -> Vec<String> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_string);
    let mut found = Vec::new();
    for path in list(directory) {
        let Some(own) = name(&path) else { continue };
        if path.is_dir() {
            found.extend(list(&path).filter_map(|file| Some(format!("{own}/{}", name(&file)?))));
        } else if size(&path).is_some() {
            found.push(own);
        }
    }
    found.sort();
    found
}

/// A download on its way to a blob. Whoever has one holds the blob's lock.
pub struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    sha256: Sha256,
}

impl Partial {
    /// Takes up `<blob>.incomplete`, or begins it.
    pub fn open(blob: &Path) -> Result<Self> {
        let path = incomplete(blob);
        create_parent(&path)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file, len: 0, sha256: Sha256::new() })
    }

    /// Takes up a file that another client has brought.
    #[cfg(feature = "hf-hub")]
    pub fn take(path: &Path, blob: &Path) -> Result<Self> {
        fs::rename(path, incomplete(blob)).map_err(|e| Error::io(path, e))?;
        Self::open(blob)
    }

    /// Reads what an earlier download left behind; tells how far it is.
    pub fn resume(&mut self, on_len: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut block = vec![0; BLOCK];
        loop {
            let n = self.file.read(&mut block).map_err(|e| Error::io(&self.path, e))?;
            if n == 0 {
                return Ok(());
            }
            self.sha256.update(&block[..n]);
            self.len += n as u64;
            on_len(self.len)?;
        }
    }

    /// Forgets what is there.
    pub fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(&self.path, e))?;
        std::io::Seek::rewind(&mut self.file).map_err(|e| Error::io(&self.path, e))?;
        (self.len, self.sha256) = (0, Sha256::new());
        Ok(())
    }

    pub fn write(&mut self, block: &[u8]) -> Result<()> {
        self.file.write_all(block).map_err(|e| Error::io(&self.path, e))?;
        self.sha256.update(block);
        self.len += block.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// SHA-256 of the bytes so far, in hexadecimal.
    fn sha256(&self) -> String {
        self.sha256.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// # Errors
    /// `Network` for another size or, where a hash is given, other content.
    pub fn check(&self, size: u64, sha256: Option<&str>) -> Result<()> {
        if self.len != size {
            let found = if self.len > size { "more".to_string() } else { self.len.to_string() };
            return Err(network(format!("expected {size} bytes, found {found}")));
        }
        let found = self.sha256();
        match sha256 {
            Some(expected) if expected != found => {
                Err(network(format!("expected content with SHA-256 {expected}, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// Makes it the blob.
    pub fn keep(self, blob: &Path) -> Result<()> {
        drop(self.file);
        fs::rename(&self.path, blob).map_err(|e| Error::io(blob, e))
    }

    /// Leaves nothing behind.
    pub fn discard(self) {
        drop(self.file);
        // The error that led here matters more than one of this.
        let _ = fs::remove_file(&self.path);
    }
}

fn incomplete(blob: &Path) -> PathBuf {
    let mut path = blob.as_os_str().to_owned();
    path.push(".incomplete");
    path.into()
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))
}

/// Whether both lead to one existing file.
fn same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Links need a privilege elsewhere.
#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
