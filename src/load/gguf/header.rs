//! The header of one GGUF file. Every count, length and range is held against what is left of the file
//! before anything is allocated.
//!
//! Little endian: `GGUF`, version u32, count of tensors u64, count of keys u64. A key is its name, a type
//! u32 and a value; a list is a type u32, a count u64 and values. A tensor is its name, a count of
//! dimensions u32, dimensions u64 (columns first), a type u32 and an offset u64 into the data, which begins
//! at the next multiple of the alignment. A text is its length u64 and bytes. Version 2 is laid out as 3
//! is.
//!
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use super::super::text::stand_in;
use super::metadata::{Kind, Metadata, Value, clip};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::Entry;
use crate::ops::Format;

/// The largest header that is read; those of today, with 260,000 tokens, have 16 MB.
const MAX_HEADER: u64 = 1 << 30;
const MAX_TEXT: u64 = 64 << 20;
/// Of the specification.
const MAX_KEY: u64 = (1 << 16) - 1;
/// ggml's own, without the zero at the end.
const MAX_NAME: u64 = 63;
const MAX_DIMS: u32 = 4;
/// Keys and tensors take more memory here than in a file of the shortest ones: a model has dozens, and
/// thousands.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
/// Bytes of the shortest key and tensor: names of one byte, a value of one byte, one dimension.
const KEY: u64 = 8 + 1 + 4 + 1;
const TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

pub(super) const ALIGNMENT: &str = "general.alignment";
const TYPE: &str = "general.type";

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Model,
    Adapter,
}

/// What a file says of itself and its tensors.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Metadata,
    /// In the file's order.
    pub tensors: Vec<StoredTensor>,
}

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct StoredTensor {
    pub name: String,
    pub entry: Entry,
    /// The number of its type in a file.
    pub kind: u32,
    /// Of its first byte in the file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Header {
    /// Reads the header of a file of `size` bytes, which `input` gives from its start on, and holds what `kind` asks for.
    ///
    /// # Errors
    /// `Format`, `Unsupported`, `OutOfMemory`, `Io`; the message begins with the file's name.
    pub fn read(path: &Path, input: &mut dyn Read, size: u64, kind: FileKind) -> Result<Self> {
        let file = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        // Errors of reading name the file by themselves, as do those of metadata.
        let named = |e: Error| if e.kind() == ErrorKind::Io { e } else { e.within(&file) };
        let mut reader = Reader { path, input, at: 0, size: size.min(MAX_HEADER) };
        let (count, values) = values(&mut reader).map_err(named)?;
        let metadata = Metadata { file: file.clone(), values };
        check_kind(&metadata, kind)?;
        let alignment = alignment(&metadata)?;
        let tensors = (0..count).map(|i| reader.tensor(i)).collect::<Result<Vec<_>>>().map_err(named)?;
        let tensors = place(tensors, reader.at, u64::from(alignment), size).map_err(named)?;
        Ok(Self { metadata, tensors })
    }
}

/// The count of tensors, and what stands before them.
fn values(reader: &mut Reader<'_>) -> Result<(u64, BTreeMap<String, Value>)> {
    check_version(reader)?;
    let tensors = reader.count("tensor count", TENSOR, MAX_TENSORS)?;
    let keys = reader.count("key count", KEY, MAX_KEYS)?;
    let mut values = BTreeMap::new();
    for i in 0..keys {
        let key = reader.name(&format!("key {i}"), MAX_KEY)?;
        let value = reader.value(&clip(&key))?;
        if values.contains_key(&key) {
            return Err(bad(&clip(&key), "a second value of this key"));
        }
        values.insert(key, value);
    }
    Ok((tensors, values))
}

fn bad(subject: &str, message: &str) -> Error {
    Error::format(format!("{subject}: {message}"))
}

fn check_version(reader: &mut Reader<'_>) -> Result<()> {
    let magic: [u8; 4] = reader.array("magic number")?;
    if &magic != b"GGUF" {
        let rest: [u8; 60] = reader.array("magic number").unwrap_or([0; 60]);
        if let Some(found) = stand_in(&[&magic[..], &rest].concat()) {
            return Err(bad("magic number", &format!("expected a GGUF file, found {found}")));
        }
        return Err(bad("magic number", &format!("expected \"GGUF\", found \"{}\"", magic.escape_ascii())));
    }
    match reader.u32("version")? {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported("version: 1 is not supported (2, 3); convert the model again")),
        big if big & 0xffff == 0 && big != 0 => {
            Err(Error::unsupported("version: the file is big endian, which is not supported"))
        }
        other => Err(Error::unsupported(format!("version: {other} is not supported (2, 3)"))),
    }
}

/// Adapters, importance matrices and the like are GGUF files too.
fn check_kind(metadata: &Metadata, kind: FileKind) -> Result<()> {
    match (metadata.text(TYPE)?, kind) {
        (None | Some("model"), FileKind::Model) | (Some("adapter"), FileKind::Adapter) => Ok(()),
        (Some("adapter"), FileKind::Model) => {
            Err(metadata.unsupported(TYPE, "\"model\" (an adapter is loaded for a model that is loaded already)"))
        }
        (_, FileKind::Model) => Err(metadata.unsupported(TYPE, "\"model\"")),
        (_, FileKind::Adapter) => Err(metadata.unsupported(TYPE, "\"adapter\"")),
    }
}

fn alignment(metadata: &Metadata) -> Result<u32> {
    match metadata.u32(ALIGNMENT)? {
        None => Ok(32),
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        Some(_) => Err(metadata.expected(ALIGNMENT, "a power of two")),
    }
}

/// Where tensors lie: each begins where the one before ends, padded, so that none overlap. Padding behind
/// the last may be missing; what else stands there belongs to no tensor.
fn place(tensors: Vec<(StoredTensor, u64)>, header: u64, alignment: u64, size: u64) -> Result<Vec<StoredTensor>> {
    let data = header.next_multiple_of(alignment);
    let (mut at, mut names) = (0u64, HashSet::new());
    for (tensor, offset) in &tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(bad(&tensor.name, "a second tensor of this name"));
        }
        if *offset != at {
            return Err(bad(&tensor.name, &format!("offset: expected {at}, found {offset}")));
        }
        let end = at.checked_add(tensor.len).filter(|end| data.checked_add(*end).is_some_and(|end| end <= size));
        let Some(end) = end else {
            let left = size.saturating_sub(data).saturating_sub(at);
            return Err(bad(&tensor.name, &format!("expected {} bytes, found {left} to the end of the file", tensor.len)));
        };
        at = end.next_multiple_of(alignment);
    }
    Ok(tensors.into_iter().map(|(tensor, offset)| StoredTensor { start: data + offset, ..tensor }).collect())
}

/// What is left of a header.
struct Reader<'a> {
    path: &'a Path,
    input: &'a mut dyn Read,
    at: u64,
    /// Of the file, or of the largest header.
    size: u64,
}

impl Reader<'_> {
    fn left(&self) -> u64 {
        self.size - self.at
    }

    /// Fills `to`, if the file is that long.
    fn fill(&mut self, what: &str, to: &mut [u8]) -> Result<()> {
        self.need(what, to.len() as u64)?;
        self.input.read_exact(to).map_err(|e| Error::io(self.path, e))?;
        self.at += to.len() as u64;
        Ok(())
    }

    fn need(&self, what: &str, bytes: u64) -> Result<()> {
        if bytes <= self.left() {
            return Ok(());
        }
        let end = if self.size == MAX_HEADER { "the largest header" } else { "the file" };
        Err(bad(what, &format!("expected {bytes} bytes, found {} to the end of {end}", self.left())))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take `bytes` each at least, and are `most` at most.
    fn count(&mut self, what: &str, bytes: u64, most: u64) -> Result<u64> {
        let count = self.u64(what)?;
        let most = most.min(self.left() / bytes);
        if count > most {
            return Err(bad(what, &format!("expected at most {most} in the rest of the file, found {count}")));
        }
        Ok(count)
    }

    /// The length of a text that is `most` bytes at most.
    fn text_len(&mut self, what: &str, most: u64) -> Result<usize> {
        let len = self.u64(what)?;
        let most = most.min(self.left());
        let fits = usize::try_from(len).ok().filter(|_| len <= most);
        fits.ok_or_else(|| bad(what, &format!("length: expected at most {most}, found {len}")))
    }

    /// The name of something.
    fn name(&mut self, what: &str, most: u64) -> Result<String> {
        let len = self.text_len(what, most)?;
        let mut name = Vec::new();
        self.append(what, &mut name, len)?;
        let name = String::from_utf8(name).map_err(|e| bad(what, "name: expected UTF-8").with_source(e))?;
        if name.is_empty() {
            return Err(bad(what, "name: expected at least one byte, found none"));
        }
        // Names stand in messages of one line.
        if name.contains(char::is_control) {
            return Err(bad(what, &format!("name: expected no control characters, found {:?}", clip(&name))));
        }
        Ok(name)
    }

    /// Appends `len` bytes to what was read before.
    fn append(&mut self, what: &str, to: &mut Vec<u8>, len: usize) -> Result<()> {
        self.need(what, len as u64)?;
        let old = to.len();
        reserve(what, to, len)?;
        to.resize(old + len, 0);
        self.fill(what, &mut to[old..])
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let kind = self.kind(key)?;
        let (kind, list) = if kind == Kind::List { (self.kind(key)?, true) } else { (kind, false) };
        if kind == Kind::List {
            return Err(Error::unsupported(format!("{key}: a list of lists is not supported")));
        }
        let each = kind.bytes().unwrap_or(size_of::<u64>()) as u64;
        let count = if list { self.count(key, each, u64::MAX)? } else { 1 };
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        if kind == Kind::Text {
            for _ in 0..count {
                let len = self.text_len(key, MAX_TEXT)?;
                self.append(key, &mut bytes, len)?;
                reserve(key, &mut ends, 1)?;
                ends.push(bytes.len());
            }
        } else {
            // Within the file, and so within the largest header.
            let len = usize::try_from(count * each).map_err(|e| bad(key, "too long").with_source(e))?;
            self.append(key, &mut bytes, len)?;
        }
        Ok(Value { kind, list, bytes, ends })
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(key)?;
        Kind::numbered(number).ok_or_else(|| bad(key, &format!("type: expected 0 to 12, found {number}")))
    }

    /// A tensor, whose place is not known yet, and its offset.
    fn tensor(&mut self, number: u64) -> Result<(StoredTensor, u64)> {
        let name = self.name(&format!("tensor {number}"), MAX_NAME)?;
        let dims = self.u32(&name)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(bad(&name, &format!("dimensions: expected 1 to {MAX_DIMS}, found {dims}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = self.u64(&name)?;
            let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0);
            shape.push(dim.ok_or_else(|| bad(&name, "dimension: expected 1 or more that fit the memory"))?);
        }
        shape.reverse();
        let number = self.u32(&name)?;
        let kind = TensorKind::numbered(number).map_err(|e| e.within(&name))?;
        let len = kind.bytes(&shape).map_err(|e| e.within(&name))?;
        let offset = self.u64(&name)?;
        Ok((StoredTensor { name, entry: Entry { shape, stored: kind.stored }, kind: number, start: 0, len }, offset))
    }
}

fn reserve<T>(what: &str, vec: &mut Vec<T>, more: usize) -> Result<()> {
    vec.try_reserve(more).map_err(|e| {
        let message = format!("{what}: {more} more items do not fit the memory");
        Error::new(ErrorKind::OutOfMemory, message).with_source(e)
    })
}

/// The type of a tensor.
struct TensorKind {
    stored: std::result::Result<Format, String>,
    /// Values of a block, and its bytes.
    block: usize,
    block_bytes: usize,
}

/// Types that hold no weights here: number, name, values of a block, bytes of a block. A tensor of one may
/// lie beside the weights.
const OTHERS: [(u32, &str, usize, usize); 7] = [
    (9, "q8_1", 32, 36),
    (15, "q8_k", 256, 292),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
];

/// Types that files of the past have.
const REMOVED: [(u32, &str); 8] = [
    (4, "q4_2"),
    (5, "q4_3"),
    (31, "q4_0_4_4"),
    (32, "q4_0_4_8"),
    (33, "q4_0_8_8"),
    (36, "iq4_nl_4_4"),
    (37, "iq4_nl_4_8"),
    (38, "iq4_nl_8_8"),
];

impl TensorKind {
    fn numbered(number: u32) -> Result<Self> {
        if let Some(format) = Format::of_ggml(number) {
            return Ok(Self { stored: Ok(format), block: format.block(), block_bytes: format.block_bytes() });
        }
        if let Some(&(_, name, block, block_bytes)) = OTHERS.iter().find(|other| other.0 == number) {
            return Ok(Self { stored: Err(name.to_string()), block, block_bytes });
        }
        let message = match REMOVED.iter().find(|removed| removed.0 == number) {
            Some((_, name)) => format!("type: {number} ({name}) was removed from GGUF; convert the model again"),
            None => format!("type: {number} is not known"),
        };
        Err(Error::unsupported(message))
    }

    /// The bytes of all rows.
    fn bytes(&self, shape: &[usize]) -> Result<u64> {
        let (cols, block) = (shape.last().copied().unwrap_or(1), self.block);
        if !cols.is_multiple_of(block) {
            return Err(Error::format(format!("row: expected whole blocks of {block} values, found {cols} values")));
        }
        let blocks = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).map(|n| n / block);
        let bytes = blocks.and_then(|n| n.checked_mul(self.block_bytes)).and_then(|n| u64::try_from(n).ok());
        // Offsets pad it: far from where that could overflow.
        let bytes = bytes.filter(|&n| n <= u64::MAX >> 2);
        bytes.ok_or_else(|| Error::format(format!("no memory has the bytes of shape {shape:?}")))
    }
}
