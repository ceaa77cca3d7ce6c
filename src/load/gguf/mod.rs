//! GGUF files, as llama.cpp writes them: metadata and tensors in one file, or in splits
//! `x-00001-of-00003.gguf`.
//!
//! ```ignore
//! let gguf = Gguf::open("model.gguf".as_ref())?;
//! let architecture = gguf.metadata().text("general.architecture")?;
//! for tensor in gguf.tensors() {
//!     println!("{} {:?}", tensor.name(), tensor.entry().shape);
//! }
//! ```
//!
//! [`GgufSource`] presents the tensors as those of a model of transformers. All of a header is untrusted.
//! Values are read, not mapped, as those of safetensors are.

mod adapter;
mod header;
mod metadata;
mod source;
mod tokenizer;
mod write;
#[cfg(test)]
pub mod build;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

pub use adapter::{AdaptedModule, GgufAdapter};
use header::{FileKind, Header, StoredTensor};
pub use metadata::Metadata;
pub use source::{GgufSource, Origin};
pub use tokenizer::{GgufVocabulary, WHOLE_CLASS};
pub use write::GgufChanges;

use crate::error::{Error, ErrorKind, Result};
use crate::load::open_file;
use crate::nn::Entry;
use crate::ops::Format;

/// The most bytes of a vector that a configuration holds: the frequencies of a head are a few hundred.
const MAX_VECTOR: u64 = 1 << 16;
/// Bytes of a header that are read at once.
const BUFFER: usize = 1 << 18;

/// A model of one file or of several; of none of its tensors a value is read yet. A file of a vocabulary
/// alone has no tensors.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<(PathBuf, File)>,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    /// Places in `tensors`.
    by_name: HashMap<String, usize>,
}

/// What a file says of a tensor.
#[derive(Debug)]
pub struct GgufTensor {
    stored: StoredTensor,
    /// Which of the files.
    file: usize,
}

impl GgufTensor {
    /// GGUF's own name: `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.stored.name
    }

    /// Its format and its shape in our order: (rows, columns).
    pub fn entry(&self) -> &Entry {
        &self.stored.entry
    }
}

impl Gguf {
    /// Opens a file, or the first of several, and checks all headers.
    ///
    /// # Errors
    /// `NotFound` and `Io`; `Format` if a header contradicts the format; `Unsupported` for what is no
    /// model, for version 1, big endian files and removed types; `OutOfMemory`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_kind(path, FileKind::Model)
    }

    fn open_kind(path: &Path, kind: FileKind) -> Result<Self> {
        let mut gguf = Self { files: Vec::new(), metadata: Metadata::default(), tensors: Vec::new(), by_name: HashMap::new() };
        gguf.metadata = gguf.add(path, kind)?;
        let count = gguf.metadata.u32(SPLIT_COUNT)?.unwrap_or(1);
        if count > 1 {
            gguf.add_splits(path, count, kind)?;
        }
        Ok(gguf)
    }

    /// The metadata of the first file, which is that of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in the order of the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &GgufTensor> {
        self.tensors.iter()
    }

    /// The tensor of GGUF's own name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The values of a small tensor of F32.
    ///
    /// # Errors
    /// `ErrorKind::Format` if there is none of this name, or it is another one.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let at = *self.by_name.get(name).ok_or_else(|| self.metadata.invalid(name, "expected this tensor, found none"))?;
        let GgufTensor { stored, file } = &self.tensors[at];
        if stored.entry.shape.len() != 1 || stored.entry.stored != Ok(Format::F32) || stored.len > MAX_VECTOR {
            let expected = format!("expected at most {MAX_VECTOR} bytes of F32 in one dimension, found {:?}", stored.entry);
            return Err(self.metadata.invalid(name, &expected));
        }
        let mut bytes = vec![0; stored.len as usize];
        read_at(&self.files[*file], stored.start, &mut bytes)?;
        Ok(Format::F32.widen(&bytes))
    }

    /// The values of a tensor of weights, in F32.
    ///
    /// # Errors
    /// `ErrorKind::Format` if there is none of this name, or its type is none of weights; `OutOfMemory`.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name).ok_or_else(|| self.metadata.invalid(name, "expected this tensor, found none"))?;
        let stored = &tensor.stored;
        let other = |kind: &String| self.metadata.invalid(name, &format!("expected weights, found the type {kind:?}"));
        let format = stored.entry.stored.as_ref().map_err(other)?;
        let (len, mut bytes) = (usize::try_from(stored.len).unwrap_or(usize::MAX), Vec::new());
        bytes.try_reserve_exact(len).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("{name}: {len} bytes do not fit the memory")).with_source(e)
        })?;
        bytes.resize(len, 0);
        read_at(&self.files[tensor.file], stored.start, &mut bytes)?;
        Ok(format.try_widen(&bytes)?)
    }

    /// Adds the tensors of a file; returns its metadata.
    fn add(&mut self, path: &Path, kind: FileKind) -> Result<Metadata> {
        let io = |e| Error::io(path, e);
        let file = open_file(path)?;
        let size = file.metadata().map_err(io)?.len();
        let Header { metadata, tensors } = Header::read(path, &mut BufReader::with_capacity(BUFFER, &file), size, kind)?;
        for stored in tensors {
            if self.by_name.insert(stored.name.clone(), self.tensors.len()).is_some() {
                return Err(metadata.invalid(&stored.name, "a second tensor of this name"));
            }
            self.tensors.push(GgufTensor { stored, file: self.files.len() });
        }
        self.files.push((path.to_path_buf(), file));
        Ok(metadata)
    }

    /// Adds the files behind the first, which hold tensors alone.
    fn add_splits(&mut self, first: &Path, count: u32, kind: FileKind) -> Result<()> {
        match self.metadata.u32(SPLIT_NO)? {
            Some(0) => {}
            _ => return Err(self.metadata.expected(SPLIT_NO, "0: a model is opened by the first of its files")),
        }
        for number in 1..count {
            let metadata = self.add(&split_path(first, number, count)?, kind)?;
            for (key, want) in [(SPLIT_NO, number), (SPLIT_COUNT, count)] {
                if metadata.u32(key)? != Some(want) {
                    return Err(metadata.expected(key, &want.to_string()));
                }
            }
            // What a file says of itself alone.
            let own = |key: &str| key.starts_with(SPLIT) || key == header::ALIGNMENT;
            let unlike = |(key, value): &(&String, _)| !own(key) && self.metadata.values.get(*key) != Some(*value);
            if let Some((key, _)) = metadata.values.iter().find(unlike) {
                return Err(metadata.invalid(key, "the first file of the model says otherwise, or nothing"));
            }
        }
        if self.metadata.u32(SPLIT_TENSORS)?.map(|total| total as usize) != Some(self.tensors.len()) {
            let found = format!("{}, as many as the files hold", self.tensors.len());
            return Err(self.metadata.expected(SPLIT_TENSORS, &found));
        }
        Ok(())
    }
}

fn read_at((path, file): &(PathBuf, File), at: u64, into: &mut [u8]) -> Result<()> {
    let mut file = file;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(into)).map_err(|e| Error::io(path, e))
}

/// What keys of splits begin with.
const SPLIT: &str = "split.";
const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// The file of a number, from 0, beside the first.
fn split_path(first: &Path, number: u32, count: u32) -> Result<PathBuf> {
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let suffix = |number: u32| format!("-{:05}-of-{count:05}.gguf", number + 1);
    match name.strip_suffix(&suffix(0)) {
        Some(prefix) => Ok(first.with_file_name(format!("{prefix}{}", suffix(number)))),
        None => Err(Error::format(format!(
            "{}: name: expected an end of {:?}, since the model has {count} files",
            first.display(),
            suffix(0)
        ))),
    }
}
