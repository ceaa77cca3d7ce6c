//! Sessions on disk. Little-endian throughout:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `MCSESS02` |
//! | 9 × 8 | model fingerprint, max_context, regime, tokens, cached tokens, layers, KV heads, head_dim, adapters' fingerprint |
//! | 4 × tokens | token ids |
//! | 4 × … | for each layer keys, then values, `(cached, heads, head_dim)` in F32 |
//! | 8 | FNV-1a of all before |
//!
//! A file is untrusted: its length must be exactly what its header says before anything is allocated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{FNV_START, fnv, replace};
use crate::nn::KvCache;
use crate::ops;

const MAGIC: &[u8; 8] = b"MCSESS02";
const FIELDS: usize = 9;

/// What a file holds besides the cache.
pub struct Saved {
    pub max_context: usize,
    pub regime: usize,
    /// The fingerprint of the adapters that the cache was computed with.
    pub computed_with: u64,
    pub tokens: Vec<u32>,
}

/// Writes beside the path, then renames.
pub fn save(path: &Path, model: &Model, state: &Saved, cache: &KvCache) -> Result<()> {
    replace(&[path.to_path_buf()], |parts| write(&parts[0], model, state, cache))
}

fn write(path: &Path, model: &Model, state: &Saved, cache: &KvCache) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = Hashed { inner: BufWriter::new(File::create(path).map_err(io)?), hash: FNV_START };
    let config = model.transformer().config();
    file.write_all(MAGIC).map_err(io)?;
    let fields = [
        model.fingerprint(),
        state.max_context as u64,
        state.regime as u64,
        state.tokens.len() as u64,
        cache.len() as u64,
        cache.layer_count() as u64,
        config.num_kv_heads as u64,
        config.head_dim as u64,
        state.computed_with,
    ];
    for field in fields {
        file.write_all(&field.to_le_bytes()).map_err(io)?;
    }
    file.write_all(&state.tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()).map_err(io)?;
    for layer in 0..cache.layer_count() {
        let values: Vec<u8> = cache.read(layer)?.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.write_all(&values).map_err(io)?;
    }
    let hash = file.hash;
    file.inner.write_all(&hash.to_le_bytes()).map_err(io)?;
    file.inner.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
}

/// Fills an empty cache from a file.
pub fn load(path: &Path, model: &Model, cache: &mut KvCache) -> Result<Saved> {
    let io = |e| Error::io(path, e);
    let bad = |message: String| Error::format(format!("{}: {message}", path.display()));
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut file = Hashed { inner: BufReader::new(file), hash: FNV_START };
    let mut magic = [0; 8];
    let mut fields = [0u64; FIELDS];
    if size < (8 + 8 * FIELDS + 8) as u64 {
        return Err(bad(format!("expected a session, found {size} bytes")));
    }
    file.read_exact(&mut magic).map_err(io)?;
    if magic != *MAGIC {
        return Err(bad("expected a session of this version, found something else".to_string()));
    }
    for field in &mut fields {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map_err(io)?;
        *field = u64::from_le_bytes(bytes);
    }
    let [fingerprint, max_context, regime, tokens, cached, layers, kv_heads, head_dim, computed_with] = fields;
    let config = model.transformer().config();
    if [layers, kv_heads, head_dim] != [cache.layer_count() as u64, config.num_kv_heads as u64, config.head_dim as u64]
        || fingerprint != model.fingerprint()
    {
        return Err(Error::new(ErrorKind::Mismatch, format!("{}: another model wrote this session", path.display())));
    }
    let values = [2, cached, kv_heads, head_dim].iter().try_fold(1u64, |n, &x| n.checked_mul(x));
    let length = values
        .and_then(|n| n.checked_mul(layers))
        .and_then(|n| n.checked_add(tokens))
        .and_then(|n| n.checked_mul(4))
        .and_then(|n| n.checked_add((8 + 8 * FIELDS + 8) as u64));
    if length != Some(size) || cached > tokens {
        return Err(bad(format!("{tokens} tokens, {cached} of them cached, do not make {size} bytes")));
    }
    // Everything fits the file, and so the address space.
    let mut bytes = vec![0; tokens as usize * 4];
    file.read_exact(&mut bytes).map_err(io)?;
    let tokens = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let mut bytes = vec![0; (values.unwrap_or(0) * 4) as usize];
    for layer in 0..cache.layer_count() {
        file.read_exact(&mut bytes).map_err(io)?;
        let values = ops::widen(&bytes, ops::StoredType::F32);
        cache.write(layer, &values, ops::dtype(model.dtype().into()))?;
    }
    let (hash, mut stored) = (file.hash, [0; 8]);
    file.inner.read_exact(&mut stored).map_err(io)?;
    if u64::from_le_bytes(stored) != hash {
        return Err(bad("damaged: the checksum does not fit the content".to_string()));
    }
    Ok(Saved { max_context: max_context.min(usize::MAX as u64) as usize, regime: regime as usize, computed_with, tokens })
}

/// A file that is hashed as it passes.
struct Hashed<F> {
    inner: F,
    hash: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash = fnv(self.hash, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash = fnv(self.hash, &bytes[..read]);
        Ok(read)
    }
}
