//! Keys and values of one layer, in the format that they are kept in.
//!
//! Keys lie in panels of sixteen positions and values in rows padded to sixteen, so that both are the vectors of sixteen that the
//! register tile of the matrix product reads. A row is rounded or quantised once, when it is appended, and by itself: the chunks that
//! rows come in change no bit. Products read F32 where it is kept; F16 and Q8_0 are widened to it on the way, a tile at a time in
//! the first cache.

use std::collections::TryReserveError;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::format::quantise::{self, BLOCK};
use super::matmul::Right;
use super::matmul::{WIDENED, Widened};
use super::memory::copied;
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Positions by which a cache grows.
const GROWTH: usize = 256;
/// Vectors that are widened at once: what the register tile reads together.
const WIDENED_VECTORS: usize = 4;

/// The formats that keys and values are kept in. Arithmetic is F32 with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they are computed.
    F32,
    /// Rounded to the nearest, 16 bits a value. A value beyond 65504 becomes NaN: at the largest F16, attention would go on with another
    /// value and nobody would know, and an infinite score may as well be one below all others.
    F16,
    /// Of a head, 32 neighbours become a byte each and a common scale in F16, 8.5 bits a value, as in ggml's Q8_0; the last block of
    /// a head may be shorter. All of a block with a value that is not finite, or is beyond 8.3 million, become NaN.
    Q8_0,
}

impl KvFormat {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// As the option `kv_cache` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The bytes of `values` values of a head.
    pub fn row_bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => values * size_of::<f32>(),
            Self::F16 => values * size_of::<f16>(),
            Self::Q8_0 => values + values.div_ceil(BLOCK) * size_of::<f16>(),
        }
    }
}

/// Keys and values of one layer: for each key-value head its own growing buffers.
pub struct KvHeads {
    pub(super) heads: Heads,
    dim: usize,
    pub(super) len: usize,
}

pub(super) enum Heads {
    F32(Vec<Head<f32>>),
    F16(Vec<Head<f16>>),
    Q8_0(Vec<Head<i8>>),
}

/// The same of the heads of any format.
macro_rules! each_format {
    ($heads:expr, $name:ident => $work:expr) => {
        match $heads {
            Heads::F32($name) => $work,
            Heads::F16($name) => $work,
            Heads::Q8_0($name) => $work,
        }
    };
}
pub(super) use each_format;

impl KvHeads {
    /// An empty cache for `heads` key-value heads of `dim` values.
    pub fn new(heads: usize, dim: usize, format: KvFormat) -> Self {
        let heads = match format {
            KvFormat::F32 => Heads::F32(vec![Head::default(); heads]),
            KvFormat::F16 => Heads::F16(vec![Head::default(); heads]),
            KvFormat::Q8_0 => Heads::Q8_0(vec![Head::default(); heads]),
        };
        Self { heads, dim, len: 0 }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self, TryReserveError> {
        let heads = match &self.heads {
            Heads::F32(heads) => Heads::F32(heads.iter().map(Head::fork).collect::<Result<_, _>>()?),
            Heads::F16(heads) => Heads::F16(heads.iter().map(Head::fork).collect::<Result<_, _>>()?),
            Heads::Q8_0(heads) => Heads::Q8_0(heads.iter().map(Head::fork).collect::<Result<_, _>>()?),
        };
        Ok(Self { heads, ..*self })
    }

    /// Key-value heads and the values of each.
    pub fn shape(&self) -> (usize, usize) {
        (each_format!(&self.heads, heads => heads.len()), self.dim)
    }

    /// What they are kept in.
    pub fn format(&self) -> KvFormat {
        match self.heads {
            Heads::F32(_) => KvFormat::F32,
            Heads::F16(_) => KvFormat::F16,
            Heads::Q8_0(_) => KvFormat::Q8_0,
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of a cache of `positions`, one layer.
    pub fn bytes(heads: usize, dim: usize, positions: usize, format: KvFormat) -> u64 {
        let positions = positions.div_ceil(GROWTH) * GROWTH;
        (heads * positions) as u64 * (format.row_bytes(dim) + format.row_bytes(dim.next_multiple_of(LANES))) as u64
    }

    /// The bytes that are taken, with room for more positions.
    pub fn held_bytes(&self) -> u64 {
        each_format!(&self.heads, heads => heads.iter().map(Head::held_bytes).sum())
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends rows of keys and values: `(T, heads · dim)` each, rows `stride` apart.
    ///
    /// # Errors
    /// If there is no memory to grow; the cache is then as it was.
    pub fn append(
        &mut self,
        keys: &[f32],
        k_stride: usize,
        values: &[f32],
        v_stride: usize,
        rows: usize,
    ) -> Result<(), TryReserveError> {
        let (dim, first) = (self.dim, self.reserve(rows)?);
        each_format!(&mut self.heads, heads => dispatch(Append { heads, dim, first, keys, k_stride, values, v_stride, rows }));
        self.len += rows;
        Ok(())
    }

    /// Makes room for more rows; returns the position of the first.
    fn reserve(&mut self, rows: usize) -> Result<usize, TryReserveError> {
        let (dim, need) = (self.dim, (self.len + rows).div_ceil(GROWTH) * GROWTH);
        each_format!(&mut self.heads, heads => heads.iter_mut().try_for_each(|head| head.reserve(need, dim)))?;
        Ok(self.len)
    }

    /// The bytes of all keys, then of all values, as they are kept: `(position, head, dim)` each, little-endian. A block of Q8_0 is its
    /// scale and then its values.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TryReserveError> {
        let (count, dim) = self.shape();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(2 * self.len * count * self.format().row_bytes(dim))?;
        each_format!(&self.heads, heads => {
            for position in 0..self.len {
                heads.iter().for_each(|head| head.put_key(position, dim, &mut bytes));
            }
            for position in 0..self.len {
                heads.iter().for_each(|head| head.put_value(position, dim, &mut bytes));
            }
        });
        Ok(bytes)
    }

    /// Appends what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    /// If there is no memory to grow; the cache is then as it was.
    pub fn append_bytes(&mut self, bytes: &[u8]) -> Result<(), TryReserveError> {
        let ((count, dim), row) = (self.shape(), self.format().row_bytes(self.dim));
        let rows = bytes.len() / (2 * count * row);
        assert_eq!(bytes.len(), 2 * rows * count * row, "whole rows of keys and values");
        let first = self.reserve(rows)?;
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        each_format!(&mut self.heads, heads => {
            for (i, (key, value)) in keys.chunks_exact(row).zip(values.chunks_exact(row)).enumerate() {
                heads[i % count].take(first + i / count, dim, key, value);
            }
        });
        self.len += rows;
        Ok(())
    }
}

/// A number that keys and values are kept as.
pub(super) trait KvNumber: Copy + Default + Send + Sync {
    /// Whether it is to be multiplied by the scale of its block.
    const SCALED: bool;
    /// Vectors, and steps of each, that a product reads at once.
    const AT_ONCE: (usize, usize) = (WIDENED_VECTORS, WIDENED);

    /// What is kept of at most [`BLOCK`] values, and their scale.
    fn encode(block: &[f32]) -> (impl Iterator<Item = Self>, f16);

    /// Appends its bytes.
    fn put(self, bytes: &mut Vec<u8>);

    /// The number that so many bytes are.
    fn take(bytes: &[u8]) -> Self;

    /// The numbers where they are kept, if products read them there.
    fn in_place(numbers: &[Self]) -> Option<*const f32>;

    /// Sixteen numbers as F32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
}

impl KvNumber for f32 {
    const SCALED: bool = false;
    const AT_ONCE: (usize, usize) = (usize::MAX, usize::MAX);

    #[inline(always)]
    fn encode(block: &[f32]) -> (impl Iterator<Item = Self>, f16) {
        (block.iter().copied(), f16::ONE)
    }

    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn in_place(numbers: &[Self]) -> Option<*const f32> {
        Some(numbers.as_ptr())
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load(p) }
    }
}

impl KvNumber for f16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn encode(block: &[f32]) -> (impl Iterator<Item = Self>, f16) {
        // Eight at a time: one by one, each asks again whether the processor has an instruction for it.
        let mut numbers = [Self::ZERO; BLOCK];
        numbers[..block.len()].convert_from_f32_slice(block);
        let or_nan = |number: Self| if number.is_infinite() { Self::NAN } else { number };
        (numbers.into_iter().take(block.len()).map(or_nan), Self::ONE)
    }

    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_le_bytes());
    }

    fn take(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1]])
    }

    #[inline(always)]
    fn in_place(_: &[Self]) -> Option<*const f32> {
        None
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load_f16(p) }
    }
}

/// Of Q8_0.
impl KvNumber for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn encode(block: &[f32]) -> (impl Iterator<Item = Self>, f16) {
        quantise::bytes(block)
    }

    fn put(self, bytes: &mut Vec<u8>) {
        bytes.push(self.cast_unsigned());
    }

    fn take(bytes: &[u8]) -> Self {
        bytes[0].cast_signed()
    }

    #[inline(always)]
    fn in_place(_: &[Self]) -> Option<*const f32> {
        None
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load_i8(p) }
    }
}

/// Keys and values of one head.
#[derive(Clone, Default)]
pub(super) struct Head<T> {
    /// `[position / 16][dim][16]`
    pub(super) keys: Vec<T>,
    /// `[position][dim padded to 16]`
    pub(super) values: Vec<T>,
    /// Where numbers have scales, those of keys and of values: `[position / 16][dim / 32][16]`.
    key_scales: Vec<f16>,
    value_scales: Vec<f16>,
}

impl<T: KvNumber> Head<T> {
    fn fork(&self) -> Result<Self, TryReserveError> {
        Ok(Self {
            keys: copied(&self.keys)?,
            values: copied(&self.values)?,
            key_scales: copied(&self.key_scales)?,
            value_scales: copied(&self.value_scales)?,
        })
    }

    fn held_bytes(&self) -> u64 {
        let numbers = (self.keys.capacity() + self.values.capacity()) * size_of::<T>();
        let scales = (self.key_scales.capacity() + self.value_scales.capacity()) * size_of::<f16>();
        (numbers + scales) as u64
    }

    /// Room for `positions`, a multiple of sixteen.
    pub(super) fn reserve(&mut self, positions: usize, dim: usize) -> Result<(), TryReserveError> {
        fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> Result<(), TryReserveError> {
            if buffer.len() < len {
                buffer.try_reserve_exact(len - buffer.len())?;
                buffer.resize(len, T::default());
            }
            Ok(())
        }
        grow(&mut self.keys, positions * dim)?;
        grow(&mut self.values, positions * dim.next_multiple_of(LANES))?;
        if T::SCALED {
            grow(&mut self.key_scales, positions * dim.div_ceil(BLOCK))?;
            grow(&mut self.value_scales, positions * dim.div_ceil(BLOCK))?;
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let dim = key.len();
        for (block, (key, value)) in key.chunks(BLOCK).zip(value.chunks(BLOCK)).enumerate() {
            let (numbers, scale) = T::encode(key);
            self.set_key(position, dim, block, numbers, scale);
            let (numbers, scale) = T::encode(value);
            self.set_value(position, dim, block, numbers, scale);
        }
    }

    #[inline(always)]
    fn set_key(&mut self, position: usize, dim: usize, block: usize, numbers: impl Iterator<Item = T>, scale: f16) {
        let panel = &mut self.keys[position / LANES * LANES * dim..][..LANES * dim];
        for (column, number) in panel[block * BLOCK * LANES..].chunks_exact_mut(LANES).zip(numbers) {
            column[position % LANES] = number;
        }
        if T::SCALED {
            self.key_scales[scale_at(position, dim, block)] = scale;
        }
    }

    #[inline(always)]
    fn set_value(&mut self, position: usize, dim: usize, block: usize, numbers: impl Iterator<Item = T>, scale: f16) {
        let row = &mut self.values[position * dim.next_multiple_of(LANES)..][..dim];
        row[block * BLOCK..].iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
        if T::SCALED {
            self.value_scales[scale_at(position, dim, block)] = scale;
        }
    }

    /// Appends the bytes of a key.
    fn put_key(&self, position: usize, dim: usize, bytes: &mut Vec<u8>) {
        let panel = &self.keys[position / LANES * LANES * dim..][..LANES * dim];
        for (block, columns) in panel.chunks(BLOCK * LANES).enumerate() {
            if T::SCALED {
                bytes.extend_from_slice(&self.key_scales[scale_at(position, dim, block)].to_le_bytes());
            }
            columns.chunks_exact(LANES).for_each(|column| column[position % LANES].put(bytes));
        }
    }

    /// Appends the bytes of a value.
    fn put_value(&self, position: usize, dim: usize, bytes: &mut Vec<u8>) {
        let row = &self.values[position * dim.next_multiple_of(LANES)..][..dim];
        for (block, numbers) in row.chunks(BLOCK).enumerate() {
            if T::SCALED {
                bytes.extend_from_slice(&self.value_scales[scale_at(position, dim, block)].to_le_bytes());
            }
            numbers.iter().for_each(|number| number.put(bytes));
        }
    }

    /// Writes a key and a value that are kept as these bytes.
    fn take(&mut self, position: usize, dim: usize, key: &[u8], value: &[u8]) {
        let scale_bytes = if T::SCALED { size_of::<f16>() } else { 0 };
        let block_bytes = scale_bytes + BLOCK * size_of::<T>();
        let parts = |block: &[u8]| {
            let (scale, numbers) = block.split_at(scale_bytes);
            let scale = if T::SCALED { f16::take(scale) } else { f16::ONE };
            (numbers.chunks_exact(size_of::<T>()).map(T::take).collect::<Vec<_>>(), scale)
        };
        for (block, (key, value)) in key.chunks(block_bytes).zip(value.chunks(block_bytes)).enumerate() {
            let (numbers, scale) = parts(key);
            self.set_key(position, dim, block, numbers.into_iter(), scale);
            let (numbers, scale) = parts(value);
            self.set_value(position, dim, block, numbers.into_iter(), scale);
        }
    }
}

/// Where the scale of a block of a position is.
#[inline(always)]
fn scale_at(position: usize, dim: usize, block: usize) -> usize {
    (position / LANES * dim.div_ceil(BLOCK) + block) * LANES + position % LANES
}

struct Append<'a, T> {
    heads: &'a mut [Head<T>],
    dim: usize,
    /// The position of the first row.
    first: usize,
    keys: &'a [f32],
    k_stride: usize,
    values: &'a [f32],
    v_stride: usize,
    rows: usize,
}

impl<T: KvNumber> Kernel for Append<'_, T> {
    type Output = ();

    /// Plain code: the compiler's vectoriser has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { heads, dim, first, keys, k_stride, values, v_stride, rows } = self;
        for (h, head) in heads.iter_mut().enumerate() {
            for t in 0..rows {
                head.write(first + t, &keys[t * k_stride + h * dim..][..dim], &values[t * v_stride + h * dim..][..dim]);
            }
        }
    }
}

/// Vectors of sixteen numbers that a product reads, a step of it one of each.
pub(super) trait VectorSource: Copy {
    /// Vectors, and steps of each, that are read at once.
    const AT_ONCE: (usize, usize);

    /// Some of them as F32, from a multiple of [`AT_ONCE`](Self::AT_ONCE) on: where they are kept, or widened into `room`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; what is returned lives as long as the numbers, and as `room` is not changed.
    unsafe fn read<S: Simd>(self, vectors: Range<usize>, steps: Range<usize>, room: &mut Vec<Widened>) -> Right;
}

/// The keys of a head, of so many dims: a vector is a panel of positions, a step one of the dims.
#[derive(Clone, Copy)]
pub(super) struct HeadKeys<'a, T>(pub(super) &'a Head<T>, pub(super) usize);

/// The values of a head, of so many dims: a vector is sixteen of them, a step a position.
#[derive(Clone, Copy)]
pub(super) struct HeadValues<'a, T>(pub(super) &'a Head<T>, pub(super) usize);

impl<T: KvNumber> VectorSource for HeadKeys<'_, T> {
    const AT_ONCE: (usize, usize) = T::AT_ONCE;

    #[inline(always)]
    unsafe fn read<S: Simd>(self, panels: Range<usize>, dims: Range<usize>, room: &mut Vec<Widened>) -> Right {
        let Self(head, dim) = self;
        let numbers = &head.keys[panels.start * LANES * dim..panels.end * LANES * dim];
        if let Some(first) = T::in_place(&numbers[dims.start * LANES..]) {
            return Right { first, vector: LANES * dim, step: LANES };
        }
        let room = rooms(room);
        for (panel, room) in panels.zip(&mut *room) {
            let numbers = &head.keys[(panel * dim + dims.start) * LANES..][..dims.len() * LANES];
            let blocks = numbers.chunks(BLOCK * LANES).zip(room.first(dims.len()).chunks_mut(BLOCK));
            for (block, (columns, to)) in (dims.start / BLOCK..).zip(blocks) {
                // SAFETY: a column of `columns` and one of `to` are sixteen numbers, and so are the scales of a block; the caller vouches for `S`.
                unsafe {
                    let scale = if T::SCALED {
                        S::load_f16(head.key_scales[scale_at(panel * LANES, dim, block)..][..LANES].as_ptr())
                    } else {
                        S::splat(1.0)
                    };
                    for (column, to) in columns.chunks_exact(LANES).zip(to) {
                        let x = T::load::<S>(column.as_ptr());
                        S::store(to.as_mut_ptr(), if T::SCALED { S::mul(x, scale) } else { x });
                    }
                }
            }
        }
        Right { first: room.as_ptr().cast(), vector: WIDENED * LANES, step: LANES }
    }
}

impl<T: KvNumber> VectorSource for HeadValues<'_, T> {
    const AT_ONCE: (usize, usize) = T::AT_ONCE;

    #[inline(always)]
    unsafe fn read<S: Simd>(self, vectors: Range<usize>, positions: Range<usize>, room: &mut Vec<Widened>) -> Right {
        let Self(head, dim) = self;
        let padded = dim.next_multiple_of(LANES);
        let numbers = &head.values[positions.start * padded..positions.end * padded];
        if let Some(first) = T::in_place(&numbers[vectors.start * LANES..]) {
            return Right { first, vector: LANES, step: padded };
        }
        let room = rooms(room);
        for (vector, room) in vectors.zip(&mut *room) {
            let panels = numbers.chunks(LANES * padded).zip(room.first(positions.len()).chunks_mut(LANES));
            for (panel, (rows, to)) in (positions.start / LANES..).zip(panels) {
                let mut scales = [1f32; LANES];
                // SAFETY: the part of a row and its place in `to` are sixteen numbers, and so are the scales of a panel; the caller vouches for `S`.
                unsafe {
                    if T::SCALED {
                        let at = scale_at(panel * LANES, dim, vector * LANES / BLOCK);
                        S::store(scales.as_mut_ptr(), S::load_f16(head.value_scales[at..][..LANES].as_ptr()));
                    }
                    for ((row, scale), to) in rows.chunks_exact(padded).zip(scales).zip(to) {
                        let x = T::load::<S>(row[vector * LANES..][..LANES].as_ptr());
                        S::store(to.as_mut_ptr(), if T::SCALED { S::mul(x, S::splat(scale)) } else { x });
                    }
                }
            }
        }
        Right { first: room.as_ptr().cast(), vector: WIDENED * LANES, step: LANES }
    }
}

/// Room for what is widened at once.
fn rooms(room: &mut Vec<Widened>) -> &mut [Widened] {
    if room.is_empty() {
        room.resize_with(WIDENED_VECTORS, Widened::default);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    #[test]
    fn bytes_are_those_of_the_format_and_make_the_same_cache() {
        let (heads, dim, rows) = (2, 40, 300);
        let (k, v) = (noise(rows * heads * dim, 1), noise(rows * heads * dim, 2));
        for format in KvFormat::ALL {
            let mut cache = KvHeads::new(heads, dim, format);
            cache.append(&k, heads * dim, &v, heads * dim, rows).unwrap();
            let bytes = cache.to_bytes().unwrap();
            let row = [(KvFormat::F32, 160), (KvFormat::F16, 80), (KvFormat::Q8_0, 34 + 10)];
            let (_, row) = row.into_iter().find(|(of, _)| *of == format).unwrap();
            assert_eq!((format.row_bytes(dim), bytes.len()), (row, 2 * rows * heads * row));
            for (values, first) in [(&k, 0), (&v, rows * heads * row)] {
                for i in [0, 7, rows * heads - 1] {
                    let (bytes, values) = (&bytes[first + i * row..][..row], &values[i * dim..][..dim]);
                    let want: Vec<u8> = match format {
                        KvFormat::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                        KvFormat::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                        KvFormat::Q8_0 => values
                            .chunks(BLOCK)
                            .flat_map(|block| {
                                let (numbers, scale) = quantise::bytes(block);
                                let numbers = numbers.map(i8::cast_unsigned);
                                scale.to_le_bytes().into_iter().chain(numbers).collect::<Vec<_>>()
                            })
                            .collect(),
                    };
                    assert_eq!(bytes, want, "{format:?} row {i}");
                }
            }
            let mut copy = KvHeads::new(heads, dim, format);
            copy.append_bytes(&bytes).unwrap();
            assert_eq!((copy.len(), copy.to_bytes().unwrap()), (rows, bytes), "{format:?}");
        }
    }

    /// What the buffers of a cache take.
    fn taken<T>(heads: &[Head<T>]) -> usize {
        let of = |head: &Head<T>| {
            let numbers = head.keys.capacity() + head.values.capacity();
            numbers * size_of::<T>() + (head.key_scales.capacity() + head.value_scales.capacity()) * size_of::<f16>()
        };
        heads.iter().map(of).sum()
    }

    #[test]
    fn a_narrower_format_takes_less_memory_and_what_was_said() {
        for (dim, least, most) in [(64, 0.26, 0.27), (128, 0.26, 0.27), (40, 0.26, 0.28)] {
            let bytes = KvFormat::ALL.map(|format| {
                let mut cache = KvHeads::new(3, dim, format);
                cache.append(&noise(300 * 3 * dim, 1), 3 * dim, &noise(300 * 3 * dim, 2), 3 * dim, 300).unwrap();
                let taken = each_format!(&cache.heads, heads => taken(heads)) as u64;
                assert_eq!(taken, KvHeads::bytes(3, dim, 300, format), "{format:?}");
                taken as f64
            });
            assert_eq!(bytes[1] / bytes[0], 0.5);
            assert!((least..most).contains(&(bytes[2] / bytes[0])), "{dim}: {}", bytes[2] / bytes[0]);
        }
    }

    #[test]
    fn every_instruction_set_keeps_the_same() {
        fn check<T: KvNumber + PartialEq>() {
            let (heads, dim, rows) = (2, 40, 20);
            let (keys, values) = (&noise(rows * heads * dim, 1), &noise(rows * heads * dim, 2));
            let (k_stride, v_stride) = (heads * dim, heads * dim);
            let empty = || {
                let mut heads = vec![Head::<T>::default(); heads];
                heads.iter_mut().for_each(|head| head.reserve(32, dim).unwrap());
                heads
            };
            let mut all: Vec<_> = std::iter::repeat_with(empty).take(3).collect();
            let levels = super::super::simd::levels::<Append<'_, T>>();
            let names: Vec<_> = levels.iter().map(|(name, _)| *name).collect();
            for ((_, run), heads) in levels.into_iter().zip(&mut all) {
                run(Append { heads, dim, first: 0, keys, k_stride, values, v_stride, rows });
            }
            for (name, heads) in names.iter().zip(&all) {
                for (head, want) in heads.iter().zip(&all[0]) {
                    assert!(head.keys == want.keys && head.values == want.values, "{name}");
                    assert!(head.key_scales == want.key_scales && head.value_scales == want.value_scales, "{name}");
                }
            }
            assert!(all[0][1].values.iter().any(|x| *x != T::default()));
        }
        check::<f32>();
        check::<f16>();
        check::<i8>();
    }
}
