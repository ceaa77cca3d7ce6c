//! Safetensors files: `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! The header is untrusted: its size, every name, dtype, shape and range is checked against the file before anything is
//! allocated, ranges may not overlap or leave gaps. Values are read, not mapped: a file that another program truncates is then
//! an error and not a crash, and weights end up on huge pages. Format: <https://huggingface.co/docs/safetensors>.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::read_count::{ModelTensors, OnBytes, ReadCount};
use super::rewrite::Put;
use super::text::stand_in;
use super::{Json, open_file};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::check_room;
use crate::nn::{Entry, TensorSource};
use crate::ops::Format;

/// The entry of a header that is no tensor.
const METADATA: &str = "__metadata__";
/// Enough to know what else a file is.
const STAND_IN_BYTES: u64 = 64;
/// How many times longer than its text a header is in memory, at most for what a program writes.
const HEADER_GROWTH: usize = 24;
/// The format's own limit of a header.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of a model directory.
pub struct Checkpoint<'a> {
    files: Vec<(PathBuf, File)>,
    tensors: HashMap<String, Tensor>,
    /// Of the last file.
    metadata: Option<HashMap<String, String>>,
    count: ReadCount<'a>,
}

struct Tensor {
    entry: Entry,
    file: usize,
    start: u64,
    len: u64,
}

impl<'a> Checkpoint<'a> {
    /// Opens the files and checks their headers; reads no weights.
    pub fn open(directory: &Path, on_bytes: &'a mut OnBytes<'a>) -> Result<Self> {
        let index = directory.join("model.safetensors.index.json");
        let single = directory.join("model.safetensors");
        if !single.exists() && !index.exists() {
            return Err(no_weights(directory)?);
        }
        if single.exists() {
            return Self::open_file(&single, on_bytes);
        }
        let mut checkpoint = Self::empty(on_bytes);
        checkpoint.add_shards(directory, &index)?;
        Ok(checkpoint.counted())
    }

    /// The same for one file.
    pub fn open_file(path: &Path, on_bytes: &'a mut OnBytes<'a>) -> Result<Self> {
        let mut checkpoint = Self::empty(on_bytes);
        checkpoint.add(path)?;
        Ok(checkpoint.counted())
    }

    fn empty(on_bytes: &'a mut OnBytes<'a>) -> Self {
        Self { files: Vec::new(), tensors: HashMap::new(), metadata: None, count: ReadCount::new(0, on_bytes) }
    }

    fn counted(mut self) -> Self {
        self.count.set_total(self.tensors.values().map(|tensor| tensor.len).sum());
        self
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Option<u64> {
        self.tensors.get(name).map(|tensor| tensor.len)
    }

    /// A text that says more of the file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key).map(String::as_str)
    }

    fn add_shards(&mut self, directory: &Path, index: &Path) -> Result<()> {
        let map = weight_map(index)?;
        for (shard, names) in shards(&map)? {
            self.add(&directory.join(shard))?;
            if let Some(name) = names.iter().find(|name| !self.tensors.contains_key(&today(name))) {
                return Err(map.invalid(name, &format!("the index places it in {shard}, which does not hold it")));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = open_file(path)?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let bad = |message: String| Error::format(format!("{}: {message}", path.display()));
        let mut start = Vec::new();
        (&mut file).take(STAND_IN_BYTES).read_to_end(&mut start).map_err(|e| Error::io(path, e))?;
        if let Some(found) = stand_in(&start) {
            return Err(bad(format!("expected a safetensors file, found {found}")));
        }
        let Some((length, _)) = start.split_first_chunk::<8>() else {
            return Err(bad(format!("expected a header of at least 8 bytes, found {}", start.len())));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            let most = MAX_HEADER.min(size.saturating_sub(8));
            let is_text = start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
            let hint = if is_text { ": the file is a text, not a safetensors file" } else { "" };
            return Err(bad(format!("header length: expected at most {most}, found {length}{hint}")));
        }
        file.seek(SeekFrom::Start(8)).map_err(|e| Error::io(path, e))?;
        let mut header = Vec::new();
        (&mut file).take(length).read_to_end(&mut header).map_err(|e| Error::io(path, e))?;
        // A name, a shape and its places: some hundred bytes for as many of text.
        check_room(&path.display().to_string(), header.len().saturating_mul(HEADER_GROWTH))?;
        let header: Header = serde_json::from_slice(&header).map_err(|e| bad(format!("header: {e}")).with_source(e))?;

        self.metadata = header.metadata;
        let data = 8 + length;
        let mut ranges = Vec::new();
        for (name, info) in &header.tensors {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let entry = entry(info, size - data).map_err(|message| bad(format!("{name}: {message}")))?;
            ranges.push((start, end, name));
            let tensor = Tensor { entry, file: self.files.len(), start: data + start, len: end - start };
            if self.tensors.insert(today(name), tensor).is_some() {
                return Err(bad(format!("{name}: a second tensor of this name")));
            }
        }
        // Sorted by where they begin, each must begin where the one before ends: no overlap, no gap, nothing behind the last.
        ranges.sort_unstable();
        let mut at = 0;
        for (start, end, name) in ranges {
            if start != at {
                return Err(bad(format!("{name}: expected to begin at byte {at}, found {start}")));
            }
            at = end;
        }
        if at != size - data {
            return Err(bad(format!("expected {at} bytes of tensors, found {}", size - data)));
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }
}

/// A directory without safetensors: what lies there instead.
fn no_weights(directory: &Path) -> Result<Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| Error::io(directory, e))? {
        names.push(entry.map_err(|e| Error::io(directory, e))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let found = |kinds: &[&str]| names.iter().find(|name| kinds.iter().any(|kind| name.ends_with(kind)));
    let found = if let Some(shard) = found(&[".safetensors"]) {
        format!("{shard} without model.safetensors.index.json, which names the files of a model")
    } else if let Some(pickle) = found(&[".bin", ".pt", ".pth", ".ckpt"]) {
        // A pickle is a program.
        format!(
            "{pickle}, a pickle of torch, which is not read: save the model as safetensors, as save_pretrained of a current version does"
        )
    } else if let Some(other) = found(&[".h5", ".msgpack", ".onnx", ".npz", ".gguf"]) {
        format!("{other}, which is another format")
    } else {
        "no weights".to_owned()
    };
    Ok(Error::new(ErrorKind::NotFound, format!("{}: expected model.safetensors, found {found}", directory.display())))
}

/// Which shard holds each tensor, as model.safetensors.index.json says.
pub fn weight_map(index: &Path) -> Result<Json> {
    let json = Json::read(index)?;
    json.object("weight_map")?.ok_or_else(|| json.invalid("weight_map", "expected an object, found nothing"))
}

/// The shards of a weight map, each with the tensors it must hold.
pub fn shards(map: &Json) -> Result<BTreeMap<&str, Vec<&str>>> {
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in map.value().as_object().into_iter().flatten() {
        let shard = shard.as_str().ok_or_else(|| map.invalid(name, "expected the name of a file"))?;
        // A shard lies beside its index: a path could point anywhere.
        if shard.is_empty() || shard.contains(['/', '\\']) || shard == ".." {
            return Err(map.invalid(name, &format!("expected the name of a file beside the index, found {shard:?}")));
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}

/// Shape and values by name.
pub type Tensors<'a> = BTreeMap<String, (Vec<usize>, Cow<'a, [f32]>)>;

/// Writes a file of tensors in F32, with texts that say more of it.
pub fn write_safetensors(path: &Path, tensors: &Tensors<'_>, metadata: &[(&str, &str)]) -> Result<()> {
    let entries = tensors.iter().map(|(name, (shape, _))| (name.clone(), Format::F32, shape.clone())).collect::<Vec<_>>();
    write_tensors(path, &entries, metadata, &mut |name, put| {
        let values = tensors.get(name).map(|(_, values)| &**values).unwrap_or_default();
        values.iter().try_for_each(|x| put(&x.to_le_bytes()))
    })
}

/// Writes a file of tensors, whose name, type (F32, F16 or BF16) and shape are known; `values` is asked for the bytes of each.
pub fn write_tensors(
    path: &Path,
    entries: &[(String, Format, Vec<usize>)],
    metadata: &[(&str, &str)],
    values: &mut dyn FnMut(&str, &mut Put<'_>) -> Result<()>,
) -> Result<()> {
    let io = |e| Error::io(path, e);
    let bad = |e: &dyn fmt::Display| Error::format(format!("{}: {e}", path.display()));
    let mut at = 0;
    let infos = entries.iter().map(|(name, format, shape)| {
        let start = at;
        at += shape.iter().product::<usize>() * format.block_bytes();
        let dtype = match format {
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        (name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets: (start, at) })
    });
    let texts = metadata.iter().map(|&(key, text)| (key.to_string(), text.to_string())).collect();
    let header = Metadata::new(Some(texts), infos.collect()).map_err(|e| bad(&e))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| bad(&e))?;
    // Values begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    let mut written = 0;
    for (name, ..) in entries {
        values(name, &mut |bytes| {
            written += bytes.len();
            file.write_all(bytes).map_err(io)
        })?;
    }
    if written != at {
        return Err(bad(&format!("expected {at} bytes of tensors, found {written}")));
    }
    file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)
}

/// The name that a tensor of an early checkpoint has today: BERT's norms once had a gamma and a beta.
fn today(name: &str) -> String {
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(start) = name.strip_suffix(old) {
            return format!("{start}{new}");
        }
    }
    name.to_string()
}

/// A header as it stands: safetensors' own `Metadata` keeps the last of two tensors of one name, and names none in its
/// errors.
#[derive(Default)]
struct Header {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Header {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<Self, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let bad = |expected: &str, e: A::Error| A::Error::custom(format!("{name}: expected {expected}: {e}"));
            if name != METADATA {
                let info = map.next_value().map_err(|e| bad("a dtype, a shape and data_offsets in whole numbers", e))?;
                self.tensors.push((name, info));
            } else if self.metadata.is_none() {
                self.metadata = map.next_value().map_err(|e| bad("texts by name", e))?;
            } else {
                return Err(A::Error::custom(format!("{name}: expected one, found a second")));
            }
        }
        Ok(self)
    }
}

/// Type and shape of a tensor whose range lies within `size` bytes and is as long as they say.
fn entry(info: &TensorInfo, size: u64) -> std::result::Result<Entry, String> {
    let TensorInfo { dtype, shape, data_offsets: (start, end) } = info;
    let name = dtype.to_string();
    // Nothing here computes with the others, but a buffer of them may lie beside the weights.
    let stored = Format::named(&name).filter(|format| !format.is_quantised()).ok_or(name);
    if start > end || *end as u64 > size {
        return Err(format!("data_offsets: expected a range within {size} bytes, found {start}..{end}"));
    }
    let bits = shape.iter().try_fold(dtype.bitsize(), |n, &dim| n.checked_mul(dim));
    if bits != (end - start).checked_mul(8) {
        return Err(format!("dtype {dtype} and shape {shape:?} do not take the {} bytes of its range", end - start));
    }
    Ok(Entry { shape: shape.clone(), stored })
}

impl ModelTensors for Checkpoint<'_> {
    fn files(&self) -> &[(PathBuf, File)] {
        &self.files
    }

    fn fingerprint(&self) -> u64 {
        self.count.fingerprint()
    }

    fn finish(&mut self) -> Result<()> {
        self.count.finish()
    }
}

impl TensorSource for Checkpoint<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|tensor| &tensor.entry)
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::format(format!("{name}: not in the files")))?;
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > tensor.len) {
            return Err(Error::format(format!("{name}: byte {offset} and {} more pass its {} bytes", into.len(), tensor.len)));
        }
        let (path, file) = &mut self.files[tensor.file];
        file.seek(SeekFrom::Start(tensor.start + offset)).map_err(|e| Error::io(path, e))?;
        file.read_exact(into).map_err(|e| Error::io(path, e))?;
        self.count.add(name, into)
    }
}
