//! What has been read of a model's tensors: how much of it, for progress, and a number of what it was.

use std::fs::File;
use std::path::PathBuf;

use super::{FNV_START, fnv};
use crate::error::Result;
use crate::nn::TensorSource;

/// The tensors of a model's files, whichever format these have.
pub trait ModelTensors: TensorSource {
    /// A number of what was read: names, shapes and a sample of the values. Equal files give equal numbers, and a fine-tuned copy
    /// another one.
    fn fingerprint(&self) -> u64;

    /// The files that hold them.
    fn files(&self) -> &[(PathBuf, File)];

    /// Tells that all is done, whatever was left unread.
    fn finish(&mut self) -> Result<()>;
}

/// A source of what another one holds in another way: what is read of that is read of this.
pub trait Reading: TensorSource {
    type Source: ModelTensors;

    fn source(&self) -> &Self::Source;

    fn source_mut(&mut self) -> &mut Self::Source;
}

impl<T: Reading> ModelTensors for T {
    fn fingerprint(&self) -> u64 {
        self.source().fingerprint()
    }

    fn files(&self) -> &[(PathBuf, File)] {
        self.source().files()
    }

    fn finish(&mut self) -> Result<()> {
        self.source_mut().finish()
    }
}

/// What is told while bytes are read: how many so far, how many in all. An error stops the reading.
pub type OnBytes<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Of every so many bytes of a tensor, so many go into the fingerprint.
const SAMPLE_EVERY: usize = 1 << 16;
const SAMPLE: usize = 256;

pub struct ReadCount<'a> {
    read: u64,
    total: u64,
    fingerprint: u64,
    on_bytes: &'a mut OnBytes<'a>,
}

impl<'a> ReadCount<'a> {
    /// Nothing of `total` bytes.
    pub fn new(total: u64, on_bytes: &'a mut OnBytes<'a>) -> Self {
        Self { read: 0, total, fingerprint: FNV_START, on_bytes }
    }

    /// Sets how many bytes there are.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
    }

    /// See [`ModelTensors::fingerprint`].
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Notes bytes of a tensor.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.fingerprint = fnv(self.fingerprint, name.as_bytes());
        for block in bytes.chunks(SAMPLE_EVERY) {
            self.fingerprint = fnv(self.fingerprint, &block[..block.len().min(SAMPLE)]);
        }
        // A matrix that is compared is read twice: the total is never passed.
        self.read = (self.read + bytes.len() as u64).min(self.total);
        (self.on_bytes)(self.read, self.total)
    }

    /// Tells that all is done, whatever was left unread.
    pub fn finish(&mut self) -> Result<()> {
        self.read = self.total;
        (self.on_bytes)(self.total, self.total)
    }
}
