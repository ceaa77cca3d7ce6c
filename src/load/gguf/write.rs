//! A GGUF file written anew: tensors as they are stored, but for those whose values or types have changed.
//!
//! The file has version 3 and is one, of however many the model was read. What the file said of itself stays, but for what splits say.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::super::rewrite::{Put, Rewrite, write_rows};
use super::metadata::{Kind, Value};
use super::source::{Factors, GgufSource, RowOrder, ValueMap, rows_of};
use super::{Gguf, SPLIT, read_at};
use crate::error::{Error, Result};
use crate::ops::{Format, zeros};

const VERSION: u32 = 3;
const FILE_TYPE: &str = "general.file_type";
const ALIGNMENT: u64 = 32;
/// Bytes that are copied in one piece.
const PIECE: usize = 1 << 20;

/// What a written file has beside what was read.
#[derive(Default)]
pub struct GgufChanges<'a> {
    /// By transformers' names.
    pub rewrites: BTreeMap<String, Rewrite<'a>>,
    /// Tensors that the file did not have, by GGUF's names.
    pub added: Vec<(String, Vec<usize>, Rewrite<'a>)>,
    /// `general.file_type`, if it is another one now.
    pub file_type: Option<u32>,
}

/// A part of a stored tensor that has changed.
struct Piece<'r, 'a> {
    rewrite: &'r Rewrite<'a>,
    /// Of the stored tensor.
    rows: Range<usize>,
    order: RowOrder,
    columns: RowOrder,
    /// Of the rewritten entry.
    first: usize,
    /// What is done to stored values to have the entry's.
    change: Option<ValueMap>,
    factors: Option<Factors>,
}

/// A tensor of the file that is written.
struct Written<'r, 'a> {
    name: &'r str,
    shape: &'r [usize],
    kind: u32,
    len: u64,
    content: Content<'r, 'a>,
}

enum Content<'r, 'a> {
    /// The bytes of the stored tensor of this number.
    Stored(usize),
    /// Its rows in another format, with what has changed.
    Rewritten(usize, Format, Vec<Piece<'r, 'a>>),
    Added(Format, &'r Rewrite<'a>),
}

impl GgufSource<'_> {
    /// Writes the model as one file.
    ///
    /// # Errors
    /// `Io`; `Format` for a value that does not fit the type that it is to have; what the rewrites report.
    pub fn write(&mut self, path: &Path, changes: &GgufChanges<'_>) -> Result<()> {
        let pieces = self.pieces(&changes.rewrites);
        let mut tensors = Vec::new();
        for (at, tensor) in self.gguf.tensors().enumerate() {
            let stored = &tensor.stored;
            let pieces = pieces.get(&at).map_or(&[][..], Vec::as_slice);
            let is_quantised = stored.entry.stored.as_ref().is_ok_and(|format| format.is_quantised());
            // What is quantised already stays what it is.
            let format = match Format::finest(pieces.iter().map(|piece| piece.rewrite.format)) {
                Some(format) if !is_quantised || pieces.iter().any(|piece| piece.rewrite.rows.is_some()) => format,
                _ => {
                    let (kind, len) = (stored.kind, stored.len);
                    tensors.push(Written {
                        name: &stored.name,
                        shape: &stored.entry.shape,
                        kind,
                        len,
                        content: Content::Stored(at),
                    });
                    continue;
                }
            };
            // Biases are F32 in every file.
            let format = if stored.entry.shape.len() == 1 { Format::F32 } else { format };
            let content = Content::Rewritten(at, format, pieces.iter().map(Piece::again).collect());
            tensors.push(Written::new(&stored.name, &stored.entry.shape, format, content)?);
        }
        for (name, shape, rewrite) in &changes.added {
            tensors.push(Written::new(name, shape, rewrite.format, Content::Added(rewrite.format, rewrite))?);
        }
        let header = self.gguf.header(&tensors, changes.file_type);
        self.count.set_total(tensors.iter().map(|tensor| tensor.len).sum());

        let io = |e| Error::io(path, e);
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        let pad = |file: &mut BufWriter<File>, len: u64| {
            let zeros = [0; ALIGNMENT as usize];
            file.write_all(&zeros[..(len.next_multiple_of(ALIGNMENT) - len) as usize]).map_err(io)
        };
        file.write_all(&header).map_err(io)?;
        pad(&mut file, header.len() as u64)?;
        for Written { name, len, content, shape, .. } in tensors {
            let mut written = 0;
            let count = &mut self.count;
            let mut put = |bytes: &[u8]| {
                written += bytes.len() as u64;
                file.write_all(bytes).map_err(io)?;
                count.add(name, bytes)
            };
            match content {
                Content::Stored(at) => copy(&self.gguf.tensors[at], &self.gguf.files, &mut put)?,
                Content::Rewritten(at, format, pieces) => {
                    let tensor = &self.gguf.tensors[at];
                    let values = |rows: Range<usize>| values(tensor, &self.gguf.files, &pieces, rows);
                    write_rows(name, rows_of(tensor.entry()), format, &values, &mut put)?;
                }
                Content::Added(format, rewrite) => {
                    let rows = rewrite.rows.as_ref().ok_or_else(|| Error::format(format!("{name}: a tensor without values")))?;
                    write_rows(name, shape[0], format, rows, &mut put)?;
                }
            }
            if written != len {
                return Err(Error::format(format!("{name}: expected {len} bytes, found {written}")));
            }
            pad(&mut file, len)?;
        }
        file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
    }

    /// What changes of each stored tensor.
    fn pieces<'r, 'a>(&self, rewrites: &'r BTreeMap<String, Rewrite<'a>>) -> HashMap<usize, Vec<Piece<'r, 'a>>> {
        let mut pieces: HashMap<usize, Vec<Piece<'r, 'a>>> = HashMap::new();
        for (name, rewrite) in rewrites {
            let Some(assembled) = self.assembled.get(name) else { continue };
            let (mut first, change) = (0, assembled.widened);
            for part in &assembled.parts {
                let (rows, order, columns) = (part.rows.clone(), part.order, part.columns);
                let piece = Piece { rewrite, rows, order, columns, first, change, factors: part.factors.clone() };
                pieces.entry(part.tensor).or_default().push(piece);
                first += part.rows.len();
            }
        }
        pieces
    }
}

impl<'r, 'a> Written<'r, 'a> {
    fn new(name: &'r str, shape: &'r [usize], format: Format, content: Content<'r, 'a>) -> Result<Self> {
        let bad = || Error::format(format!("{name}: expected a type of GGUF for shape {shape:?}, found {}", format.name()));
        let (cols, above) = shape.split_last().ok_or_else(bad)?;
        let row = format.row_bytes(*cols).ok_or_else(bad)?;
        let len = above.iter().try_fold(row, |len, &dim| len.checked_mul(dim)).ok_or_else(bad)?;
        let kind = format.number_of_ggml().ok_or_else(bad)?;
        Ok(Self { name, shape, kind, len: len as u64, content })
    }
}

impl Piece<'_, '_> {
    fn again(&self) -> Self {
        Self { rows: self.rows.clone(), factors: self.factors.clone(), ..*self }
    }
}

impl Gguf {
    /// The bytes before the tensors, without padding.
    fn header(&self, tensors: &[Written<'_, '_>], file_type: Option<u32>) -> Vec<u8> {
        let number = |number: u32| Value { kind: Kind::U32, list: false, bytes: number.to_le_bytes().to_vec(), ends: Vec::new() };
        let file_type = file_type.map(number);
        let mut values: BTreeMap<&str, &Value> = self.metadata.values.iter().map(|(key, value)| (key.as_str(), value)).collect();
        values.retain(|key, _| !key.starts_with(SPLIT) && *key != super::header::ALIGNMENT);
        if let Some(file_type) = &file_type {
            values.insert(FILE_TYPE, file_type);
        }
        let mut header = b"GGUF".to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((values.len() as u64).to_le_bytes());
        for (key, value) in values {
            put_text(&mut header, key.as_bytes());
            value.put(&mut header);
        }
        let mut offset = 0u64;
        for Written { name, shape, kind, len, .. } in tensors {
            put_text(&mut header, name.as_bytes());
            header.extend((shape.len() as u32).to_le_bytes());
            // Columns first.
            shape.iter().rev().for_each(|dim| header.extend((*dim as u64).to_le_bytes()));
            header.extend(kind.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += len.next_multiple_of(ALIGNMENT);
        }
        header
    }
}

impl Value {
    /// Appends type and value.
    fn put(&self, to: &mut Vec<u8>) {
        if self.list {
            to.extend(Kind::List.number().to_le_bytes());
        }
        to.extend(self.kind.number().to_le_bytes());
        if self.list {
            to.extend((self.len() as u64).to_le_bytes());
        }
        match self.kind {
            Kind::Text => self.texts().for_each(|text| put_text(to, text)),
            _ => to.extend(&self.bytes),
        }
    }
}

fn put_text(to: &mut Vec<u8>, text: &[u8]) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text);
}

/// The bytes of a stored tensor.
fn copy(tensor: &super::GgufTensor, files: &[(PathBuf, File)], put: &mut Put<'_>) -> Result<()> {
    let mut buffer = vec![0; PIECE.min(tensor.stored.len as usize)];
    let mut at = 0;
    while at < tensor.stored.len {
        let len = (buffer.len() as u64).min(tensor.stored.len - at) as usize;
        read_at(&files[tensor.file], tensor.stored.start + at, &mut buffer[..len])?;
        put(&buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}

/// Rows of a stored tensor in F32, with what has changed.
fn values(
    tensor: &super::GgufTensor,
    files: &[(PathBuf, File)],
    pieces: &[Piece<'_, '_>],
    rows: Range<usize>,
) -> Result<Vec<f32>> {
    let row_bytes = tensor.row_bytes();
    let mut bytes = zeros(rows.len() * row_bytes)?;
    read_at(&files[tensor.file], tensor.stored.start + (rows.start * row_bytes) as u64, &mut bytes)?;
    let format = tensor.entry().stored.clone().unwrap_or(Format::F32);
    let mut values = format.try_widen(&bytes)?;
    let cols = values.len() / rows.len();
    for (row, to) in rows.clone().zip(values.chunks_exact_mut(cols)) {
        let Some(piece) = pieces.iter().find(|piece| piece.rows.contains(&row)) else { continue };
        let Some(changed) = &piece.rewrite.rows else { continue };
        let at = piece.first + piece.order.logical(row - piece.rows.start);
        let new = changed(at..at + 1)?;
        let factor = piece.factors.as_ref().map_or(1.0, |factors| factors.of(row));
        if factor == 0.0 {
            let message = "expected a scale that the changed matrix can be divided by, found 0";
            return Err(Error::unsupported(format!("{}: {message}", tensor.name())));
        }
        for (at, to) in to.iter_mut().enumerate() {
            let Some(&x) = new.get(piece.columns.logical(at)) else { continue };
            *to = piece.change.map_or(x, |change| change.undone(x)) / factor;
        }
    }
    Ok(values)
}

#[cfg(all(test, reference_data))]
mod tests {
    use super::*;
    use crate::nn::TensorSource;

    /// Name, type, shape and bytes of every tensor.
    fn contents(gguf: &Gguf) -> Vec<(String, u32, Vec<usize>, Vec<u8>)> {
        let content = |tensor: &super::super::GgufTensor| {
            let mut bytes = Vec::new();
            copy(tensor, &gguf.files, &mut |piece| {
                bytes.extend(piece);
                Ok(())
            })
            .unwrap();
            (tensor.name().to_string(), tensor.stored.kind, tensor.entry().shape.clone(), bytes)
        };
        gguf.tensors().map(content).collect()
    }

    fn written(path: &Path, changes: &GgufChanges<'_>) -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.gguf");
        let mut on_bytes = |_, _| Ok(());
        let mut source = GgufSource::new(Gguf::open(path).unwrap(), [], |_| false, &mut on_bytes).unwrap();
        source.write(&copy, changes).unwrap();
        Gguf::open(&copy).unwrap()
    }

    #[test]
    fn every_file_is_written_byte_by_byte() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        let mut types = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(golden).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "gguf") {
                continue;
            }
            let (gguf, again) = (Gguf::open(&path).unwrap(), written(&path, &GgufChanges::default()));
            assert_eq!(again.metadata.values, gguf.metadata.values, "{}", path.display());
            let (want, found) = (contents(&gguf), contents(&again));
            assert!(want == found, "{}", path.display());
            types.extend(want.iter().map(|tensor| tensor.1));
        }
        assert!(types.len() >= 14, "{types:?}");
    }

    #[test]
    fn a_type_and_a_tensor_change_and_the_others_do_not() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/qwen2-F32.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let (name, added) = ("blk.0.ffn_up.weight", "output.extra");
        let rows = |rows: Range<usize>| Ok(rows.map(|row| row as f32).collect());
        let new = Rewrite { format: Format::F16, rows: Some(Box::new(rows)) };
        let changes = GgufChanges {
            rewrites: [(name.to_string(), Rewrite { format: Format::BF16, rows: None })].into(),
            added: vec![(added.to_string(), vec![5, 1], new)],
            file_type: Some(32),
        };
        let again = written(&path, &changes);
        assert_eq!(again.metadata.u32(FILE_TYPE).unwrap(), Some(32));
        let (want, mut found) = (contents(&gguf), contents(&again));
        let (last, halves) = (found.pop().unwrap(), [0f32, 1.0, 2.0, 3.0, 4.0].map(half::f16::from_f32));
        assert_eq!(last.0, added);
        assert_eq!(last.3, halves.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        for (want, found) in want.into_iter().zip(found) {
            if want.0 != name {
                assert!(want == found, "{}", want.0);
                continue;
            }
            let bf16 = Format::F32.widen(&want.3).into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes());
            assert_eq!((found.1, found.3), (30, bf16.collect()));
        }
        let unfit = Rewrite { format: Format::AFFINE4_64, rows: None };
        let changes = GgufChanges { rewrites: [(name.to_string(), unfit)].into(), ..GgufChanges::default() };
        let mut on_bytes = |_, _| Ok(());
        let mut source = GgufSource::new(gguf, [], |_| false, &mut on_bytes).unwrap();
        assert!(source.entry(name).is_some());
        let error = source.write(&std::env::temp_dir().join("not-written.gguf"), &changes).unwrap_err();
        assert!(error.message().contains(name), "{error}");
    }
}
