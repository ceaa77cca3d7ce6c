//! The tensors of a GGUF as a network asks for them: under transformers' names, with transformers' rows and
//! values.
//!
//! What a name stands for is an [`Origin`]: rows of one stored tensor or of several, in an order, plus a
//! number, or undone in another way. Who knows the family makes the list; a tensor that no name stands for in full keeps GGUF's own
//! name, so that nothing is left out in silence.
//!
//! ```ignore
//! let origins = [
//!     ("model.embed_tokens.weight".to_string(), Origin::whole("token_embd.weight")),
//!     ("model.layers.0.self_attn.q_proj.weight".to_string(), Origin::whole("blk.0.attn_q.weight").in_pairs(128)),
//!     ("model.layers.0.self_attn.k_proj.weight".to_string(), Origin::rows("blk.0.attn_qkv.weight", 4096..5120)),
//!     ("model.norm.weight".to_string(), Origin::whole("output_norm.weight").plus(-1.0)),
//! ];
//! let mut source = GgufSource::new(Gguf::open(path)?, origins, |_| false, &mut on_bytes)?;
//! Weights::new(&mut source, &backend, None).matrix(&slots, cols)?;
//! ```
//!
//! Whole rows move, so quantised blocks stay as they are. Where an entry cannot be stored bytes alone
//! (parts of different formats, a number that is added), it is F32.
//!
//! A `blk.0.attn_q.scale` that no name stands for multiplies the matrix beside it, or each of several; llama.cpp's converter writes it for
//! NVFP4, with an `input_scale` for activations of four bits, which nothing here has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::read_count::{ModelTensors, OnBytes, ReadCount};
use super::{Gguf, GgufTensor, read_at};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Entry, TensorSource};
use crate::ops::Format;

/// What a tensor of transformers is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// One after another.
    pub(super) parts: Vec<OriginRows>,
    change: ValueMap,
    /// How transformers shapes the values; `None` = as the file does.
    shape: Option<Shape>,
}

/// Shapes of the same values in the same order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// The rows are those of so many matrices of one shape.
    Matrices(usize),
    /// Each row is what a convolution does to a channel of its own: `(channels, 1, taps)`.
    Convolution,
    /// All in one dimension.
    Vector,
}

impl Shape {
    /// That of so many rows and columns, if it has one.
    fn of(self, rows: usize, cols: usize) -> Option<Vec<usize>> {
        match self {
            Self::Matrices(count) => (count > 0 && rows.is_multiple_of(count)).then(|| vec![count, rows / count, cols]),
            Self::Convolution => Some(vec![rows, 1, cols]),
            Self::Vector => rows.checked_mul(cols).map(|len| vec![len]),
        }
    }
}

/// What is done to each stored value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ValueMap {
    Plus(f32),
    /// The logarithm of the value without its sign: the converter stores `-exp(x)`.
    LogOfNegative,
}

impl ValueMap {
    const NONE: Self = Self::Plus(0.0);

    fn of(self, x: f32) -> f32 {
        match self {
            Self::Plus(number) => x + number,
            Self::LogOfNegative => (-x).ln(),
        }
    }

    /// What is stored where the value is this one.
    pub(super) fn undone(self, x: f32) -> f32 {
        match self {
            Self::Plus(number) => x - number,
            Self::LogOfNegative => -x.exp(),
        }
    }
}

/// Rows of a stored tensor; of one with more than two dimensions, all above the last count as rows, and of
/// a vector each value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OriginRows {
    pub tensor: String,
    /// `None` = all.
    pub rows: Option<Range<usize>>,
    pub order: RowOrder,
    /// Of the values of a row.
    pub columns: RowOrder,
}

/// In which order stored rows stand for those of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RowOrder {
    AsStored,
    /// Rotary pairs of a head are neighbours in the file, halves of the head apart in transformers: stored
    /// row `2i + s` of each head is row `s · head_dim / 2 + i`.
    Pairs {
        head_dim: usize,
    },
    /// Heads that read the same group are neighbours in transformers; in the file the first of each group come
    /// first, then the second.
    Tiled {
        groups: usize,
        heads: usize,
        head_dim: usize,
    },
}

impl Origin {
    /// A stored tensor as it is.
    pub fn whole(tensor: &str) -> Self {
        Self::of(tensor, None)
    }

    /// Some rows of a stored tensor.
    pub fn rows(tensor: &str, rows: Range<usize>) -> Self {
        Self::of(tensor, Some(rows))
    }

    fn of(tensor: &str, rows: Option<Range<usize>>) -> Self {
        let (order, columns) = (RowOrder::AsStored, RowOrder::AsStored);
        Self::of_part(OriginRows { tensor: tensor.to_string(), rows, order, columns })
    }

    pub(super) fn of_part(part: OriginRows) -> Self {
        Self { parts: vec![part], change: ValueMap::NONE, shape: None }
    }

    /// The stored tensors that it is made of.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.tensor.as_str())
    }

    /// The same rows, which the converter moved so that rotary pairs are neighbours, in transformers' order.
    pub fn in_pairs(mut self, head_dim: usize) -> Self {
        self.parts.iter_mut().for_each(|part| part.order = RowOrder::Pairs { head_dim });
        self
    }

    /// The same rows, whose heads the converter put in the order of their place in a group, in transformers' order.
    pub fn in_groups(mut self, groups: usize, heads: usize, head_dim: usize) -> Self {
        self.parts.iter_mut().for_each(|part| part.order = RowOrder::Tiled { groups, heads, head_dim });
        self
    }

    /// The same of the values of each row.
    pub fn columns_in_groups(mut self, groups: usize, heads: usize, head_dim: usize) -> Self {
        self.parts.iter_mut().for_each(|part| part.columns = RowOrder::Tiled { groups, heads, head_dim });
        self
    }

    /// The rows as those of so many matrices: a tensor of three dimensions.
    pub fn in_matrices(self, count: usize) -> Self {
        Self { shape: Some(Shape::Matrices(count)), ..self }
    }

    /// The rows as what a convolution does to channels of its own.
    pub fn into_convolution(self) -> Self {
        Self { shape: Some(Shape::Convolution), ..self }
    }

    /// All values in one dimension.
    pub fn into_vector(self) -> Self {
        Self { shape: Some(Shape::Vector), ..self }
    }

    /// The rows of another origin behind these.
    pub fn then(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self
    }

    /// The same values plus a number, in F32.
    pub fn plus(self, number: f32) -> Self {
        Self { change: ValueMap::Plus(number), ..self }
    }

    /// The logarithms of what the values are without their sign, in F32.
    pub fn log_of_negative(self) -> Self {
        Self { change: ValueMap::LogOfNegative, ..self }
    }
}

impl RowOrder {
    /// Which stored row stands for a row.
    fn stored(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Pairs { head_dim } => {
                let (head, row, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + 2 * (row % half) + row / half
            }
            Self::Tiled { groups, heads, head_dim } => {
                let (head, row, of_group) = (row / head_dim, row % head_dim, heads / groups);
                (head % of_group * groups + head / of_group) * head_dim + row
            }
        }
    }

    /// Which row a stored row stands for.
    pub(super) fn logical(self, stored: usize) -> usize {
        match self {
            Self::AsStored => stored,
            Self::Pairs { head_dim } => {
                let (head, place, half) = (stored / head_dim, stored % head_dim, head_dim / 2);
                head * head_dim + place % 2 * half + place / 2
            }
            Self::Tiled { groups, heads, head_dim } => {
                let (head, row) = (stored / head_dim, stored % head_dim);
                (head % groups * (heads / groups) + head / groups) * head_dim + row
            }
        }
    }

    /// Whether it is an order of so many rows.
    fn fits(self, rows: usize) -> bool {
        match self {
            Self::AsStored => true,
            Self::Pairs { head_dim } => head_dim > 0 && head_dim.is_multiple_of(2) && rows.is_multiple_of(head_dim),
            Self::Tiled { groups, heads, head_dim } => {
                groups > 0 && heads.is_multiple_of(groups) && heads.checked_mul(head_dim) == Some(rows) && rows > 0
            }
        }
    }

    /// Neighbours that stay together.
    fn unit(self) -> usize {
        match self {
            Self::AsStored => usize::MAX,
            Self::Pairs { .. } => 1,
            Self::Tiled { head_dim, .. } => head_dim,
        }
    }
}

/// A GGUF as a [`TensorSource`].
pub struct GgufSource<'a> {
    pub(super) gguf: Gguf,
    pub(super) assembled: HashMap<String, Assembled>,
    pub(super) count: ReadCount<'a>,
}

/// How an entry is put together.
pub(super) struct Assembled {
    entry: Entry,
    pub(super) parts: Vec<StoredPart>,
    /// Bytes of a row of the entry.
    row_bytes: usize,
    /// What is done to the values of rows that are not as stored; `None` = they are.
    pub(super) widened: Option<ValueMap>,
}

/// Rows of a stored tensor.
pub(super) struct StoredPart {
    /// Of the tensor among those of the file.
    pub(super) tensor: usize,
    pub(super) rows: Range<usize>,
    pub(super) order: RowOrder,
    pub(super) columns: RowOrder,
    pub(super) factors: Option<Factors>,
}

/// What the rows of a stored tensor are multiplied by: each for so many neighbours.
#[derive(Clone)]
pub(super) struct Factors {
    each: Arc<[f32]>,
    rows: usize,
}

impl Factors {
    /// That of a stored row.
    pub(super) fn of(&self, row: usize) -> f32 {
        self.each.get(row / self.rows).copied().unwrap_or(1.0)
    }

    /// Those of the tensors that have some, by their numbers; `claimed` are names that stand for something else.
    fn all(gguf: &Gguf, claimed: &HashSet<String>) -> Result<HashMap<usize, Self>> {
        let mut all = HashMap::new();
        for (at, tensor) in gguf.tensors().enumerate() {
            let Some(name) = tensor.name().strip_suffix(WEIGHT).map(|module| format!("{module}{SCALE}")) else { continue };
            let Some(found) = gguf.tensor(&name).filter(|_| !claimed.contains(&name)) else { continue };
            let matrices = if let [matrices, _, _] = tensor.entry().shape[..] { matrices } else { 1 };
            let count = found.entry().shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim)).unwrap_or(0);
            if count == 0 || (count != 1 && count != matrices) {
                let expected = format!("expected one value, or one for each of {matrices} matrices, found {count}");
                return Err(gguf.metadata().invalid(&name, &expected));
            }
            let each = gguf.values(&name)?;
            if let Some(x) = each.iter().find(|x| !x.is_finite()) {
                return Err(gguf.metadata().invalid(&name, &format!("expected finite numbers, found {x}")));
            }
            all.insert(at, Self { each: each.into(), rows: (rows_of(tensor.entry()) / count).max(1) });
        }
        Ok(all)
    }
}

const WEIGHT: &str = ".weight";
const SCALE: &str = ".scale";
const INPUT_SCALE: &str = ".input_scale";

impl<'a> GgufSource<'a> {
    /// The tensors of a GGUF under the names of `origins`, and the others under their own; without origins,
    /// all of them.
    ///
    /// # Errors
    /// `ErrorKind::Format` naming a tensor that is not there, has no such rows, or does not go with the
    /// others of its entry, and a name that stands for two things.
    pub fn new(
        gguf: Gguf,
        origins: impl IntoIterator<Item = (String, Origin)>,
        is_unused: impl Fn(&str) -> bool,
        on_bytes: &'a mut OnBytes<'a>,
    ) -> Result<Self> {
        let origins: Vec<(String, Origin)> = origins.into_iter().collect();
        let claimed = origins.iter().flat_map(|(_, origin)| &origin.parts).map(|part| part.tensor.clone()).collect();
        let factors = Factors::all(&gguf, &claimed)?;
        let mut assembled = HashMap::new();
        let mut used: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        let twice = |name: &str| Error::format(format!("{name}: a second tensor of this name"));
        for (name, origin) in origins {
            let made = Assembled::new(&gguf, &origin, &factors).map_err(|e| e.within(&name))?;
            made.parts.iter().for_each(|part| used.entry(part.tensor).or_default().push(part.rows.clone()));
            if assembled.insert(name.clone(), made).is_some() {
                return Err(twice(&name));
            }
        }
        // What belongs to a matrix that some name stands for.
        let beside = |name: &str, used: &BTreeMap<usize, Vec<Range<usize>>>| {
            let of = |end: &str| name.strip_suffix(end).and_then(|module| gguf.by_name.get(&format!("{module}{WEIGHT}")));
            let is_used = |at: &&usize| used.contains_key(at);
            of(SCALE).filter(is_used).is_some_and(|at| factors.contains_key(at)) || of(INPUT_SCALE).filter(is_used).is_some()
        };
        for (at, tensor) in gguf.tensors().enumerate() {
            if beside(tensor.name(), &used) {
                continue;
            }
            let rows = rows_of(tensor.entry());
            if used.get_mut(&at).is_some_and(|used| covers(used, rows)) || is_unused(tensor.name()) {
                continue;
            }
            let (order, columns) = (RowOrder::AsStored, RowOrder::AsStored);
            let part = StoredPart { tensor: at, rows: 0..rows, order, columns, factors: None };
            let row_bytes = tensor.row_bytes();
            let own = Assembled { entry: tensor.entry().clone(), parts: vec![part], row_bytes, widened: None };
            if assembled.insert(tensor.name().to_string(), own).is_some() {
                return Err(twice(tensor.name()));
            }
        }
        let total = assembled.values().map(Assembled::len).sum();
        Ok(Self { gguf, assembled, count: ReadCount::new(total, on_bytes) })
    }
}

/// Rows of a stored tensor.
pub(super) fn rows_of(entry: &Entry) -> usize {
    let plain = entry.stored.as_ref().map_or(true, |format| !format.is_quantised());
    match entry.shape.as_slice() {
        [len] => {
            if plain {
                *len
            } else {
                1
            }
        }
        // No overflow: a file holds the product of all.
        [above @ .., _] => above.iter().product(),
        [] => 1,
    }
}

impl GgufTensor {
    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> usize {
        self.stored.len as usize / rows_of(self.entry())
    }
}

/// Whether ranges are all of `0..rows` together.
fn covers(ranges: &mut [Range<usize>], rows: usize) -> bool {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.iter().fold(0, |end, range| if range.start <= end { end.max(range.end) } else { end }) == rows
}

impl Assembled {
    fn new(gguf: &Gguf, origin: &Origin, factors: &HashMap<usize, Factors>) -> Result<Self> {
        let bad = |message: String| Error::format(message);
        let mut parts = Vec::new();
        let mut shapes = Vec::new();
        let mut breaks_blocks = false;
        for OriginRows { tensor, rows, order, columns } in &origin.parts {
            let at = gguf.by_name.get(tensor);
            let at = *at.ok_or_else(|| bad(format!("the model needs the tensor {tensor:?}, and the file does not hold it")))?;
            let entry = gguf.tensors[at].entry();
            let found = rows_of(entry);
            let rows = rows.clone().unwrap_or(0..found);
            if rows.start > rows.end || rows.end > found {
                return Err(bad(format!("expected rows {rows:?} of {tensor:?}, found {found} rows")));
            }
            if !order.fits(rows.len()) {
                return Err(bad(format!("{order:?} is no order of the {} rows of {tensor:?}", rows.len())));
            }
            let format = entry.stored.clone();
            let format = format.map_err(|kind| bad(format!("expected weights in {tensor:?}, found the type {kind:?}")))?;
            let factors = factors.get(&at).cloned();
            breaks_blocks |= factors.is_some() && format != Format::NVFP4;
            let format = if factors.is_some() && format == Format::NVFP4 { Format::NVFP4_SCALED } else { format };
            let vector = entry.shape.len() == 1;
            if *columns != RowOrder::AsStored && (vector || !columns.fits(entry.shape.last().copied().unwrap_or(0))) {
                return Err(bad(format!("{columns:?} is no order of the columns of {tensor:?}")));
            }
            breaks_blocks |= columns.unit() != usize::MAX && !columns.unit().is_multiple_of(format.block());
            shapes.push((vector, entry.shape.last().copied().filter(|_| !vector || format.is_quantised()), format));
            parts.push(StoredPart { tensor: at, rows, order: *order, columns: *columns, factors });
        }
        let Some(&(vector, cols, format)) = shapes.first() else { return Err(bad("an origin without parts".to_string())) };
        if shapes.iter().any(|shape| (shape.0, shape.1) != (vector, cols)) {
            return Err(bad(format!("rows of different lengths: {:?}", origin.parts)));
        }
        let widened = origin.change != ValueMap::NONE || breaks_blocks || shapes.iter().any(|shape| shape.2 != format);
        let format = if widened { Format::F32 } else { format };
        let rows = parts.iter().map(|part| part.rows.len()).sum();
        let shape = match parts.as_slice() {
            [part] if part.rows.len() == rows_of(gguf.tensors[part.tensor].entry()) => {
                gguf.tensors[part.tensor].entry().shape.clone()
            }
            _ if vector => vec![rows],
            _ => vec![rows, cols.unwrap_or(1)],
        };
        let other = origin.shape.filter(|_| !vector).and_then(|shape| shape.of(rows, cols.unwrap_or(1)));
        let shape = other.unwrap_or(shape);
        let row_bytes = format.row_bytes(cols.unwrap_or(1));
        let row_bytes = row_bytes.ok_or_else(|| bad(format!("no memory has the bytes of shape {shape:?}")))?;
        let fits = row_bytes.checked_mul(rows).is_some();
        if !fits {
            return Err(bad(format!("no memory has the bytes of shape {shape:?}")));
        }
        Ok(Self { entry: Entry { shape, stored: Ok(format) }, parts, row_bytes, widened: widened.then_some(origin.change) })
    }

    /// Bytes.
    fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.rows.len() as u64).sum::<u64>() * self.row_bytes as u64
    }

    /// Copies bytes of the entry, from `offset` on; they lie within it.
    fn read(&self, gguf: &mut Gguf, offset: u64, into: &mut [u8]) -> Result<()> {
        let (mut first, end) = (0, offset + into.len() as u64);
        for part in &self.parts {
            let behind = first + part.rows.len() as u64 * self.row_bytes as u64;
            let (start, stop) = (offset.max(first), end.min(behind));
            if start < stop {
                let into = &mut into[(start - offset) as usize..(stop - offset) as usize];
                self.read_part(part, gguf, start - first, into)?;
            }
            first = behind;
        }
        Ok(())
    }

    /// The same of one part, counted from its start.
    fn read_part(&self, part: &StoredPart, gguf: &mut Gguf, offset: u64, into: &mut [u8]) -> Result<()> {
        let tensor = &gguf.tensors[part.tensor];
        let file = &gguf.files[tensor.file];
        let stored_bytes = tensor.row_bytes();
        let start = tensor.stored.start + part.rows.start as u64 * stored_bytes as u64;
        let is_stored = part.order == RowOrder::AsStored && part.columns == RowOrder::AsStored && part.factors.is_none();
        if self.widened.is_none() && is_stored {
            return read_at(file, start + offset, into);
        }
        let row_bytes = self.row_bytes as u64;
        let mut row = (offset / row_bytes) as usize;
        let end = (offset + into.len() as u64).div_ceil(row_bytes) as usize;
        let (mut buffer, mut scaled, mut wide, mut moved) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let stored_format = tensor.entry().stored.clone().unwrap_or(Format::F32);
        while row < end {
            // Rows of one head lie near each other: all between the first and the last are read.
            let rows = row..end.min(next_piece(part.order, row, stored_bytes));
            let stored = |rows: Range<usize>| rows.map(|row| part.order.stored(row));
            let first = stored(rows.clone()).min().unwrap_or(0);
            let last = stored(rows.clone()).max().unwrap_or(0);
            resize(&mut buffer, (last + 1 - first) * stored_bytes)?;
            read_at(file, start + first as u64 * stored_bytes as u64, &mut buffer)?;
            row = rows.end;
            for row in rows {
                let mut bytes = &buffer[(part.order.stored(row) - first) * stored_bytes..][..stored_bytes];
                let (mut format, mut factor) =
                    (stored_format, part.factors.as_ref().map(|factors| factors.of(part.rows.start + part.order.stored(row))));
                if let (Some(number), Format::NVFP4) = (factor, format) {
                    scale(bytes, number, &mut scaled)?;
                    (bytes, format, factor) = (&scaled, Format::NVFP4_SCALED, None);
                }
                if let Some(change) = self.widened {
                    widen((tensor.name(), format), bytes, (factor.unwrap_or(1.0), change), &mut wide)?;
                    bytes = &wide;
                }
                if part.columns != RowOrder::AsStored {
                    move_columns(self.entry.stored.clone().unwrap_or(Format::F32), bytes, part.columns, &mut moved)?;
                    bytes = &moved;
                }
                // What of this row was asked for.
                let at = row as u64 * row_bytes;
                let from = offset.max(at);
                let to = (offset + into.len() as u64).min(at + row_bytes);
                into[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }
}

/// Bytes that are read in one piece, where rows are no unit of their own.
const PIECE: usize = 1 << 18;

/// The row behind those that are read together with `row`.
fn next_piece(order: RowOrder, row: usize, row_bytes: usize) -> usize {
    let unit = match order {
        RowOrder::AsStored => (PIECE / row_bytes).max(1),
        RowOrder::Pairs { head_dim } | RowOrder::Tiled { head_dim, .. } => head_dim,
    };
    (row / unit + 1) * unit
}

/// The values of a row in another order, of whole blocks.
fn move_columns(format: Format, bytes: &[u8], order: RowOrder, to: &mut Vec<u8>) -> Result<()> {
    resize(to, bytes.len())?;
    let unit = order.unit();
    let unit_bytes = unit / format.block() * format.block_bytes();
    for (i, to) in to.chunks_exact_mut(unit_bytes).enumerate() {
        to.copy_from_slice(&bytes[order.stored(i * unit) / unit * unit_bytes..][..unit_bytes]);
    }
    Ok(())
}

/// Blocks of NVFP4 with a factor in front of each.
fn scale(bytes: &[u8], factor: f32, to: &mut Vec<u8>) -> Result<()> {
    let [from, size] = [Format::NVFP4, Format::NVFP4_SCALED].map(Format::block_bytes);
    resize(to, bytes.len() / from * size)?;
    for (block, to) in bytes.chunks_exact(from).zip(to.chunks_exact_mut(size)) {
        to[..4].copy_from_slice(&factor.to_le_bytes());
        to[4..].copy_from_slice(block);
    }
    Ok(())
}

/// The values of a row, times a factor and changed, as bytes of F32.
fn widen((name, format): (&str, Format), bytes: &[u8], (factor, change): (f32, ValueMap), to: &mut Vec<u8>) -> Result<()> {
    if !format.has_finite_scales(bytes) {
        return Err(Error::format(format!("{name}: a scale is not finite")));
    }
    // A few blocks at once: a row is as long as the file says.
    let mut values = [0.0; 256];
    let (block, block_bytes) = (format.block(), format.block_bytes());
    resize(to, bytes.len() / block_bytes * block * size_of::<f32>())?;
    let at_once = values.len() / block;
    for (bytes, to) in bytes.chunks(at_once * block_bytes).zip(to.chunks_mut(at_once * block * size_of::<f32>())) {
        let values = &mut values[..to.len() / size_of::<f32>()];
        format.widen_into(bytes, values);
        values.iter().zip(to.as_chunks_mut().0).for_each(|(x, to)| *to = change.of(*x * factor).to_le_bytes());
    }
    Ok(())
}

fn resize(buffer: &mut Vec<u8>, len: usize) -> Result<()> {
    buffer.clear();
    buffer.try_reserve(len).map_err(|e| {
        Error::new(ErrorKind::OutOfMemory, format!("{len} bytes of a tensor do not fit the memory")).with_source(e)
    })?;
    buffer.resize(len, 0);
    Ok(())
}

impl ModelTensors for GgufSource<'_> {
    fn files(&self) -> &[(PathBuf, File)] {
        &self.gguf.files
    }

    fn fingerprint(&self) -> u64 {
        self.count.fingerprint()
    }

    fn finish(&mut self) -> Result<()> {
        self.count.finish()
    }
}

impl TensorSource for GgufSource<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.assembled.get(name).map(|assembled| &assembled.entry)
    }

    fn names(&self) -> Vec<&str> {
        self.assembled.keys().map(String::as_str).collect()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let assembled = self.assembled.get(name).ok_or_else(|| Error::format(format!("{name}: not in the files")))?;
        let len = assembled.len();
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > len) {
            return Err(Error::format(format!("{name}: byte {offset} and {} more pass its {len} bytes", into.len())));
        }
        assembled.read(&mut self.gguf, offset, into).map_err(|e| e.within(name))?;
        self.count.add(name, into)
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::Build;
    use super::*;
    use crate::nn::{Slot, Weights};
    use crate::ops::Backend;

    fn source<T>(build: &Build, origins: &[(&str, Origin)], then: impl FnOnce(Result<&mut GgufSource<'_>>) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, build.bytes()).unwrap();
        let mut on_bytes = |_, _| Ok(());
        let origins = origins.iter().map(|(name, origin)| (name.to_string(), origin.clone()));
        match GgufSource::new(Gguf::open(&path).unwrap(), origins, |name| name == "unused", &mut on_bytes) {
            Ok(mut source) => then(Ok(&mut source)),
            Err(error) => then(Err(error)),
        }
    }

    fn read(source: &mut GgufSource<'_>, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; source.assembled[name].len() as usize];
        source.read(name, 0, &mut bytes).unwrap();
        // The same in any piece.
        for start in 0..bytes.len() {
            for len in [1, 3, 7, 34, 64, 100] {
                let end = (start + len).min(bytes.len());
                let mut piece = vec![0; end - start];
                source.read(name, start as u64, &mut piece).unwrap();
                assert_eq!(piece, bytes[start..end], "{name} {start}..{end}");
            }
        }
        bytes
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        Format::F32.widen(bytes)
    }

    fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    /// `m`: 12 rows of two columns, row r is (r, r + 100); `v`: the rows' numbers; `q`: 8 rows of one block
    /// of 32, all r.
    fn model() -> Build {
        let q8 = |r: u8| [&half::f16::from_f32(1.0).to_le_bytes(), [r; 32].as_slice()].concat();
        Build::new()
            .tensor("m", &[12, 2], 0, &bytes((0..12).flat_map(|r| [r as f32, r as f32 + 100.0])))
            .tensor("v", &[12], 0, &bytes((0..12).map(|r| r as f32)))
            .tensor("q", &[8, 32], 8, &(0..8).flat_map(q8).collect::<Vec<u8>>())
            .tensor("f", &[2, 32], 0, &bytes((0..64).map(|i| i as f32 * 0.25)))
            .tensor("e", &[2, 2, 3], 0, &bytes((0..12).map(|r| r as f32)))
            .tensor("ids", &[3], 26, &[9; 12])
    }

    fn first_of_rows(values: &[f32], cols: usize) -> Vec<f32> {
        values.iter().copied().step_by(cols).collect()
    }

    #[test]
    fn without_origins_tensors_have_their_own_names() {
        source(&model(), &[], |source| {
            let source = source.unwrap();
            let mut names = source.names();
            names.sort_unstable();
            assert_eq!(names, ["e", "f", "ids", "m", "q", "v"]);
            assert_eq!(source.entry("e").unwrap().shape, [2, 2, 3]);
            assert_eq!(source.entry("q").unwrap(), &Entry { shape: vec![8, 32], stored: Ok(Format::Q8_0) });
            assert_eq!(floats(&read(source, "e")), (0..12).map(|x| x as f32).collect::<Vec<_>>());
            assert_eq!(read(source, "ids"), [9; 12]);
            assert!(source.read("q", 270, &mut [0; 3]).is_err() && source.read("x", 0, &mut []).is_err());
        });
    }

    #[test]
    fn rows_of_heads_come_in_the_order_of_transformers() {
        // What the converter does: a head's halves side by side. Undone for heads of 4, row by row.
        let order = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11].map(|r| r as f32);
        let of_six = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11].map(|r| r as f32);
        let origins = [
            ("matrix", Origin::whole("m").in_pairs(4)),
            ("vector", Origin::whole("v").in_pairs(6)),
            ("blocks", Origin::rows("q", 2..6).in_pairs(4)),
            ("rest", Origin::rows("q", 0..2).then(Origin::rows("q", 6..8))),
        ];
        source(&model(), &origins, |source| {
            let source = source.unwrap();
            assert_eq!(first_of_rows(&floats(&read(source, "matrix")), 2), order);
            assert_eq!(floats(&read(source, "vector")), of_six);
            assert_eq!(source.entry("vector").unwrap().shape, [12]);
            let blocks = Format::Q8_0.widen(&read(source, "blocks"));
            assert_eq!(first_of_rows(&blocks, 32), [2.0, 4.0, 3.0, 5.0]);
            assert_eq!(source.entry("blocks").unwrap(), &Entry { shape: vec![4, 32], stored: Ok(Format::Q8_0) });
            let rest = Format::Q8_0.widen(&read(source, "rest"));
            assert_eq!(first_of_rows(&rest, 32), [0.0, 1.0, 6.0, 7.0]);
            let mut names = source.names();
            names.sort_unstable();
            // All rows of m, v and q have a name.
            assert_eq!(names, ["blocks", "e", "f", "ids", "matrix", "rest", "vector"]);
        });
    }

    #[test]
    fn parts_of_different_formats_and_sums_are_f32() {
        let origins = [
            ("mixed", Origin::rows("q", 6..8).then(Origin::whole("f"))),
            ("sum", Origin::rows("v", 0..6).in_pairs(6).plus(-1.0)),
            ("experts", Origin::rows("e", 1..4)),
            ("taps", Origin::whole("m").into_convolution()),
            ("flat", Origin::rows("f", 0..2).into_vector()),
        ];
        source(&model(), &origins, |source| {
            let source = source.unwrap();
            assert_eq!(source.entry("mixed").unwrap(), &Entry { shape: vec![4, 32], stored: Ok(Format::F32) });
            let mixed = floats(&read(source, "mixed"));
            assert_eq!(first_of_rows(&mixed, 32), [6.0, 7.0, 0.0, 8.0]);
            assert_eq!(floats(&read(source, "sum")), [-1.0, 1.0, 3.0, 0.0, 2.0, 4.0]);
            assert_eq!(source.entry("experts").unwrap().shape, [3, 3]);
            let shapes = ["taps", "flat"].map(|name| source.entry(name).unwrap().shape.clone());
            assert_eq!(shapes, [vec![12, 1, 2], vec![64]]);
            assert_eq!(first_of_rows(&floats(&read(source, "taps")), 2), (0..12).map(|r| r as f32).collect::<Vec<_>>());
            assert_eq!(floats(&read(source, "flat"))[63], 63.0 * 0.25);
            assert_eq!(floats(&read(source, "experts")), (3..12).map(|x| x as f32).collect::<Vec<_>>());
            // Rows of these are left over.
            assert!(["q", "v", "e"].iter().all(|name| source.entry(name).is_some()) && source.entry("f").is_none());
        });
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let cases = [
            (vec![("a", Origin::whole("x"))], vec!["a: ", "\"x\""]),
            (vec![("a", Origin::rows("m", 3..13))], vec!["a: ", "\"m\"", "3..13", "12 rows"]),
            (vec![("a", Origin::whole("m").in_pairs(5))], vec!["a: ", "\"m\"", "Pairs", "12 rows"]),
            (vec![("a", Origin::whole("m").in_pairs(0))], vec!["a: ", "Pairs"]),
            (vec![("a", Origin::whole("m").in_pairs(8))], vec!["a: ", "Pairs"]),
            (vec![("a", Origin::whole("m").then(Origin::whole("f")))], vec!["a: ", "different lengths"]),
            (vec![("a", Origin::whole("m").then(Origin::whole("v")))], vec!["a: ", "different lengths"]),
            (vec![("a", Origin::whole("ids"))], vec!["a: ", "\"ids\"", "i32"]),
            (vec![("a", Origin::whole("m")), ("a", Origin::whole("v"))], vec!["a: a second tensor"]),
            (vec![("v", Origin::whole("m"))], vec!["v: a second tensor"]),
        ];
        for (origins, parts) in cases {
            source(&model(), &origins, |source| {
                let error = source.map(|_| &parts).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Format);
                assert!(parts.iter().all(|part| error.message().contains(part)), "{error}");
            });
        }
    }

    #[test]
    fn weights_are_filled_and_what_is_left_over_is_named() {
        let cpu = Backend::new(&candle_core::Device::Cpu);
        let origins = [("k.weight", Origin::whole("q").in_pairs(4)), ("n.weight", Origin::whole("v").plus(1.0))];
        source(&model(), &origins, |source| {
            let mut weights = Weights::new(source.unwrap(), &cpu, None);
            let matrix = weights.matrix(&[Slot::whole("k", 8)], 32).unwrap();
            assert_eq!(first_of_rows(&matrix.rows(0..8).unwrap(), 32), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
            assert_eq!(weights.values(&[("n.weight".to_string(), 12)]).unwrap()[11], 12.0);
            let error = weights.finish(|name| ["e", "f", "ids"].contains(&name)).unwrap_err();
            assert!(error.message().starts_with("m: "), "{error}");
        });
    }

    #[test]
    fn progress_ends_at_the_total_and_an_error_stops_the_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, model().bytes()).unwrap();
        let mut seen = Vec::new();
        let mut on_bytes = |read, total| {
            seen.push((read, total));
            if seen.len() < 3 { Ok(()) } else { Err(Error::cancelled()) }
        };
        let mut source = GgufSource::new(Gguf::open(&path).unwrap(), [], |_| false, &mut on_bytes).unwrap();
        source.read("v", 0, &mut [0; 48]).unwrap();
        source.read("ids", 0, &mut [0; 12]).unwrap();
        assert_eq!(source.finish().unwrap_err().kind(), ErrorKind::Cancelled);
        let total = 12 * 8 + 48 + 8 * 34 + 256 + 48 + 12;
        assert_eq!(seen, [(48, total), (60, total), (total, total)]);
    }
}
