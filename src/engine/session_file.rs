//! Sessions on disk. Little-endian throughout:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `MCSESS06`: the last two are the version |
//! | 8 × 8 | model fingerprint, max_context, regime (all ones: mixed), tokens, evaluated tokens, adapters' fingerprint, states, snapshots |
//! | 8 | the tokens of the prompt that the session holds the beginning of, where reading it was stopped; all ones: it is whole |
//! | 2 × 8 × states | of each its kind (keys and values in 1: F32, 2: F16, 3: Q8_0; 4: of a scan, 5: of a convolution), and values of a token, or all |
//! | 4 × tokens | token ids |
//! | … | the states as they are kept: of each layer keys, then values, `(evaluated, heads, head_dim)`; of the others, which have a fixed size, the position that they can be cut back to, eight bytes, then F32: inputs of the convolution, and of a scan matrices, keys, updates, decays |
//! | … | of each snapshot, the oldest first, the tokens that it is of, whether a turn begins there (0, 1), eight bytes each, and the states of fixed size as they were behind these |
//! | 8 | FNV-1a of all before |
//!
//! A head in Q8_0 is blocks of 32 values, the last one of what is left: each its scale in F16, then a byte a value.
//!
//! Version 05 is the same without where turns begin, version 04 also without the tokens of the prompt; both are read as well.
//!
//! A file is untrusted: its length must be exactly what its header says before anything is allocated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::Model;
use super::evaluated::{Evaluated, Regime};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{FNV_START, fnv, open_file, replace};
use crate::nn::{LayerState, SNAPSHOTS, StateKind};
use crate::ops;

const MAGIC: &[u8; 6] = b"MCSESS";
const VERSION: &[u8; 2] = b"06";
/// That of files which do not say where turns begin.
const WITHOUT_TURNS: &[u8; 2] = b"05";
/// That of files which do not say whether their prompt is whole either.
const WITHOUT_PROMPT: &[u8; 2] = b"04";
/// Of every version.
const FIELDS: usize = 8;
/// What a file has at least: magic, fields and checksum.
const LEAST: u64 = (8 + 8 * FIELDS + 8) as u64;
const MIXED: u64 = u64::MAX;
const WHOLE: u64 = u64::MAX;

/// What a session is made of, on its way into a file and out of it.
pub struct SessionParts<E> {
    pub max_context: usize,
    pub evaluated: E,
    /// How many tokens the prompt has that the session holds the beginning of.
    pub interrupted: Option<usize>,
}

/// Writes beside the path, then renames.
pub fn save(path: &Path, parts: &SessionParts<&Evaluated>) -> Result<()> {
    replace(&[path.to_path_buf()], |paths| write(&paths[0], parts))
}

fn write(path: &Path, parts: &SessionParts<&Evaluated>) -> Result<()> {
    let SessionParts { max_context, evaluated, interrupted } = *parts;
    let io = |e| Error::io(path, e);
    let mut file = Hashed { inner: BufWriter::new(File::create(path).map_err(io)?), hash: FNV_START };
    let (tokens, states) = (evaluated.tokens(), evaluated.states());
    file.write_all(MAGIC).map_err(io)?;
    file.write_all(VERSION).map_err(io)?;
    let regime = match evaluated.regime() {
        Regime::One(regime) => regime as u64,
        Regime::Mixed => MIXED,
    };
    let fields = [
        evaluated.model().fingerprint(),
        max_context as u64,
        regime,
        tokens.len() as u64,
        states.len() as u64,
        evaluated.computed_with(),
        states.iter().count() as u64,
        states.snapshots().count() as u64,
        interrupted.map_or(WHOLE, |tokens| tokens as u64),
    ];
    for field in fields.into_iter().chain(states.iter().flat_map(header)) {
        file.write_all(&field.to_le_bytes()).map_err(io)?;
    }
    file.write_all(&tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()).map_err(io)?;
    for state in states.iter() {
        file.write_all(&state.to_bytes()?).map_err(io)?;
    }
    for (len, begins_turn, states) in states.snapshots() {
        file.write_all(&(len as u64).to_le_bytes()).map_err(io)?;
        file.write_all(&u64::from(begins_turn).to_le_bytes()).map_err(io)?;
        for state in states {
            file.write_all(&state.to_bytes()?).map_err(io)?;
        }
    }
    let hash = file.hash;
    file.inner.write_all(&hash.to_le_bytes()).map_err(io)?;
    file.inner.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
}

/// What stands of a state in front.
fn header(state: &LayerState) -> [u64; 2] {
    [state.kind().number(), state.values() as u64]
}

/// Reads a model's session.
pub fn load(path: &Path, model: &Model) -> Result<SessionParts<Evaluated>> {
    let io = |e| Error::io(path, e);
    let bad = |message: String| Error::format(format!("{}: {message}", path.display()));
    let other_model = || Error::new(ErrorKind::Mismatch, format!("{}: another model wrote this session", path.display()));
    let file = open_file(path)?;
    let size = file.metadata().map_err(io)?.len();
    let mut file = Hashed { inner: BufReader::new(file), hash: FNV_START };
    if size < LEAST {
        return Err(bad(format!("expected a session, found {size} bytes")));
    }
    let (mut magic, mut version) = ([0; 6], [0; 2]);
    file.read_exact(&mut magic).map_err(io)?;
    file.read_exact(&mut version).map_err(io)?;
    if magic != *MAGIC {
        return Err(bad("expected a session, found something else".to_string()));
    }
    if ![VERSION, WITHOUT_TURNS, WITHOUT_PROMPT].contains(&&version) {
        let [expected, found] = [VERSION, &version].map(|version| String::from_utf8_lossy(version).into_owned());
        return Err(bad(format!("expected a session of version {expected}, found version {found:?}")));
    }
    let mut field = || {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok::<_, Error>(u64::from_le_bytes(bytes))
    };
    let mut fields = [0; FIELDS];
    for value in &mut fields {
        *value = field()?;
    }
    let [fingerprint, max_context, regime, tokens, evaluated, computed_with, count, snapshots] = fields;
    let (prompt, header_bytes) = if version == *WITHOUT_PROMPT { (WHOLE, 0) } else { (field()?, 8) };
    let says_turns = version == *VERSION;
    let mut states = model.transformer().new_states();
    if fingerprint != model.fingerprint() || count != states.iter().count() as u64 {
        return Err(other_model());
    }
    let least = LEAST + header_bytes + 16 * count;
    if size < least {
        return Err(bad(format!("expected {count} states, found {size} bytes")));
    }
    let mut state_bytes = Some(0u64);
    for state in states.iter() {
        let ([kind, values], [expected, expected_values]) = ([field()?, field()?], header(state));
        if values != expected_values {
            return Err(other_model());
        }
        if kind != expected {
            let (expected, Some(found)) = (state.kind(), StateKind::numbered(kind)) else { return Err(other_model()) };
            let (path, expected, found) = (path.display(), expected.label(), found.label());
            let message = format!("{path}: expected {expected}, found {found}: load the model with this type of KV cache");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        state_bytes = state_bytes.zip(state.bytes(evaluated)).and_then(|(all, more)| all.checked_add(more));
    }
    let most = if states.of_snapshot().next().is_some() { SNAPSHOTS as u64 } else { 0 };
    if snapshots > most {
        return Err(bad(format!("expected at most {most} snapshots, found {snapshots}")));
    }
    let before_snapshot = if says_turns { 16u64 } else { 8 };
    let of_snapshot = states.of_snapshot().try_fold(before_snapshot, |all, state| all.checked_add(state.bytes(0)?));
    let length = tokens
        .checked_mul(4)
        .zip(state_bytes)
        .and_then(|(ids, states)| ids.checked_add(states))
        .and_then(|n| n.checked_add(of_snapshot?.checked_mul(snapshots)?))
        .and_then(|n| n.checked_add(least));
    if length != Some(size) || evaluated > tokens {
        return Err(bad(format!("{tokens} tokens, {evaluated} of them evaluated, do not make {size} bytes")));
    }
    if prompt < tokens {
        return Err(bad(format!("damaged: {tokens} tokens are not the beginning of {prompt}")));
    }
    // Everything fits the file, and so the address space; a file may be larger than the memory all the same.
    let mut bytes = buffer(tokens as usize * 4)?;
    file.read_exact(&mut bytes).map_err(io)?;
    let tokens = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let dtype = ops::dtype(model.dtype().into());
    let fill = |file: &mut Hashed<BufReader<File>>, state: &mut LayerState, tokens: u64| {
        let len = state.bytes(tokens).unwrap_or(u64::MAX);
        let mut bytes = buffer(usize::try_from(len).unwrap_or(usize::MAX))?;
        file.read_exact(&mut bytes).map_err(io)?;
        if !state.is_of(&bytes, tokens as usize) {
            return Err(bad(format!("damaged: {} is not that of {tokens} tokens", state.kind().label())));
        }
        Ok(state.fill(&bytes, tokens as usize, dtype)?)
    };
    for state in states.iter_mut() {
        fill(&mut file, state, evaluated)?;
    }
    let mut before = 0;
    for _ in 0..snapshots {
        let mut field = || {
            let mut bytes = [0; 8];
            file.read_exact(&mut bytes).map_err(io)?;
            Ok::<_, Error>(u64::from_le_bytes(bytes))
        };
        let (len, begins_turn) = (field()?, if says_turns { field()? } else { 0 });
        if begins_turn > 1 {
            return Err(bad(format!("damaged: expected 0 or 1 for where a turn begins, found {begins_turn}")));
        }
        if len <= before || len > evaluated {
            return Err(bad(format!("damaged: a snapshot of {len} tokens behind one of {before}, of {evaluated} in all")));
        }
        states.add_snapshot(len as usize, begins_turn == 1, |state| fill(&mut file, state, len))?;
        before = len;
    }
    let (hash, mut stored) = (file.hash, [0; 8]);
    file.inner.read_exact(&mut stored).map_err(io)?;
    if u64::from_le_bytes(stored) != hash {
        return Err(bad("damaged: the checksum does not fit the content".to_string()));
    }
    let regime = if regime == MIXED { Regime::Mixed } else { Regime::One(regime as usize) };
    let as_size = |value: u64| value.min(usize::MAX as u64) as usize;
    Ok(SessionParts {
        max_context: as_size(max_context),
        evaluated: Evaluated::restored(model, tokens, states, regime, computed_with),
        interrupted: (prompt != WHOLE).then_some(as_size(prompt)),
    })
}

fn buffer(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let no_memory = |_| Error::new(ErrorKind::OutOfMemory, format!("session: {len} bytes do not fit the memory"));
    bytes.try_reserve_exact(len).map_err(no_memory)?;
    bytes.resize(len, 0);
    Ok(bytes)
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
