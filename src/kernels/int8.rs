//! Activations in eight bits, for products with quantised weights.
//!
//! Of each row, 32 neighbours share a scale: `a = max |x| / 127` and `q = round(x · (127 / max))`, halves to the even number.
//! Where a byte is not enough, `a = max |x| / 16256` and `q` has two bytes, `128 · high + low`: 16256 is 128 · 127.
//! Zeros stand for rows of less than 1e-30; a row that is not finite becomes NaN.

use std::ops::Range;

use super::memory::zeros;
use super::parallel::{Shared, each, parts};
use super::simd::{Kernel, Simd, dispatch};
use crate::error::OutOfMemory;

/// Columns that share a scale.
pub const CHUNK: usize = 32;
/// Values below which quantising on several threads does not pay.
const SPLIT_VALUES: usize = 1 << 15;
/// Below, what a scale is divided into is not finite any more.
const LEAST: f32 = 1e-30;

/// Rows of activations, in the order in which register tiles read them: tile by tile, of each its chunks, of each its rows.
pub struct Int8Rows {
    planes: usize,
    rows: usize,
    chunks: usize,
    bytes: Vec<u8>,
}

/// Where the parts of a record are: of one row, 32 columns.
///
/// | bytes | of |
/// | --- | --- |
/// | 32, or twice 32 | `q`; of two bytes all the high ones first |
/// | 4 | `a`, an F32 |
/// | 4, 4, 4 | `-Σ q` of either half and of all, as whole numbers |
#[derive(Clone, Copy)]
pub struct Record {
    /// Of `a`.
    pub scale: usize,
    /// Of the first of the sums.
    pub sums: usize,
    /// Of all.
    pub bytes: usize,
}

impl Record {
    /// Of `q` in one byte or in two.
    pub const fn of(planes: usize) -> Self {
        Self { scale: planes * CHUNK, sums: planes * CHUNK + 4, bytes: planes * CHUNK + 16 }
    }
}

/// The heights of register tiles, the tallest first.
pub const TILES: [usize; 3] = [6, 2, 1];
/// All the tallest ones of them lie at multiples of this.
pub const TILE_ROWS: usize = TILES[0];

/// How rows are cut into tiles: the first row of each, and its height.
pub fn tiles(rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut next = rows.start;
    std::iter::from_fn(move || {
        let height = TILES.into_iter().find(|height| *height <= rows.end - next)?;
        next += height;
        Some((next - height, height))
    })
}

impl Int8Rows {
    /// Quantises `rows` rows of `cols` values, `stride` apart, to one byte or two.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(x: &[f32], stride: usize, (rows, cols): (usize, usize), planes: usize) -> Result<Self, OutOfMemory> {
        let chunks = cols.div_ceil(CHUNK);
        let mut bytes = zeros(rows * chunks * Record::of(planes).bytes)?;
        let to = Shared::new(&mut bytes);
        let parts = parts(rows * cols / SPLIT_VALUES).min(rows.div_ceil(TILE_ROWS));
        let tall = rows.div_ceil(TILE_ROWS);
        each(parts, |part| {
            let rows = (tall * part / parts * TILE_ROWS)..(tall * (part + 1) / parts * TILE_ROWS).min(rows);
            match planes {
                1 => dispatch(Quantise::<1> { x, stride, cols, rows, to }),
                _ => dispatch(Quantise::<2> { x, stride, cols, rows, to }),
            }
        });
        Ok(Self { planes, rows, chunks, bytes })
    }

    /// Bytes of a `q`.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// The records of a tile, from a chunk on.
    pub fn tile(&self, (first, height): (usize, usize), chunk: usize) -> &[u8] {
        assert!(first + height <= self.rows && chunk <= self.chunks, "a tile of these rows");
        let record = Record::of(self.planes).bytes;
        let start = (first * self.chunks + chunk * height) * record;
        &self.bytes[start..][..(self.chunks - chunk) * height * record]
    }
}

/// Some of the rows, whole tiles of them.
struct Quantise<'a, const PLANES: usize> {
    x: &'a [f32],
    stride: usize,
    cols: usize,
    rows: Range<usize>,
    to: Shared<u8>,
}

impl<const PLANES: usize> Kernel for Quantise<'_, PLANES> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, stride, cols, rows, to } = self;
        let (record, chunks) = (Record::of(PLANES), cols.div_ceil(CHUNK));
        for (first, height) in tiles(rows) {
            for row in first..first + height {
                let x = &x[row * stride..][..cols];
                for (chunk, x) in x.chunks(CHUNK).enumerate() {
                    let at = ((first * chunks) + chunk * height + (row - first)) * record.bytes;
                    // SAFETY: the records of these rows are this part's alone, and there are as many.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(at), record.bytes) };
                    match <&[f32; CHUNK]>::try_from(x) {
                        Ok(x) => quantise::<PLANES>(x, to),
                        Err(_) => {
                            let mut whole = [0.0; CHUNK];
                            whole[..x.len()].copy_from_slice(x);
                            quantise::<PLANES>(&whole, to);
                        }
                    }
                }
            }
        }
    }
}

/// Writes one record. Loops that compilers make vectors of.
#[inline(always)]
fn quantise<const PLANES: usize>(x: &[f32; CHUNK], to: &mut [u8]) {
    /// Adding it to a number of less than 2^22 leaves that, rounded, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let record = Record::of(PLANES);
    let largest = if PLANES == 1 { 127.0 } else { 127.0 * 128.0 };
    // Bits of positive numbers are in their order, and those of what is not finite are the largest.
    let max = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
    let (scale, inverse) = match max {
        max if !max.is_finite() => (f32::NAN, 0.0),
        max if max < LEAST => (0.0, 0.0),
        max => (max / largest, largest / max),
    };
    let q = x.map(|x| (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed());
    let high = q.map(|q| q.wrapping_add(64) >> 7);
    for i in 0..CHUNK {
        if PLANES == 1 {
            to[i] = q[i] as u8;
        } else {
            to[i] = high[i] as u8;
            to[CHUNK + i] = q[i].wrapping_sub(high[i] << 7) as u8;
        }
    }
    let sums: [i32; 2] =
        std::array::from_fn(|half| q[half * CHUNK / 2..][..CHUNK / 2].iter().fold(0i32, |sum, q| sum.wrapping_sub(*q)));
    to[record.scale..][..4].copy_from_slice(&scale.to_ne_bytes());
    to[record.sums..][..4].copy_from_slice(&sums[0].to_ne_bytes());
    to[record.sums + 4..][..4].copy_from_slice(&sums[1].to_ne_bytes());
    to[record.sums + 8..][..4].copy_from_slice(&sums[0].wrapping_add(sums[1]).to_ne_bytes());
}

#[cfg(test)]
impl Int8Rows {
    /// What stands for a value.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let Some((first, height)) = tiles(0..self.rows).find(|(first, height)| (*first..first + height).contains(&row)) else {
            return f32::NAN;
        };
        let layout = Record::of(self.planes);
        let record = &self.tile((first, height), col / CHUNK)[(row - first) * layout.bytes..][..layout.bytes];
        let byte = |plane: usize| i32::from(record[plane * CHUNK + col % CHUNK].cast_signed());
        let q = if self.planes == 1 { byte(0) } else { 128 * byte(0) + byte(1) };
        let scale = f32::from_ne_bytes(std::array::from_fn(|i| record[layout.scale + i]));
        q as f32 * scale
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step() {
        for (rows, cols) in [(1, 1), (1, 31), (3, 32), (5, 65), (13, 100)] {
            let x = noise(rows * (cols + 3), 9);
            for (planes, steps) in [(1, 127.0), (2, 16256.0)] {
                let int8 = Int8Rows::new(&x, cols + 3, (rows, cols), planes).unwrap();
                for row in 0..rows {
                    let x = &x[row * (cols + 3)..][..cols];
                    for (chunk, own) in x.chunks(CHUNK).enumerate() {
                        let max = own.iter().fold(0f32, |max, x| max.max(x.abs()));
                        for (i, x) in own.iter().enumerate() {
                            let found = int8.value(row, chunk * CHUNK + i);
                            assert!((found - x).abs() <= 0.5001 * max / steps, "{row} {chunk} {i}: {found} {x}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn halves_go_to_the_even_number_and_extremes_are_kept() {
        let x = [127.0, 0.5, 1.5, -0.5, -1.5, -127.0, 2.5, 126.5];
        let int8 = Int8Rows::new(&x, 8, (1, 8), 1).unwrap();
        assert_eq!(std::array::from_fn(|i| int8.value(0, i)), [127.0, 0.0, 2.0, 0.0, -2.0, -127.0, 2.0, 126.0]);
        for planes in [1, 2] {
            let least = Int8Rows::new(&[1e-31, -1e-31], 2, (1, 2), planes).unwrap();
            assert_eq!([least.value(0, 0), least.value(0, 1)], [0.0, 0.0]);
            let largest = Int8Rows::new(&[f32::MAX, f32::MIN], 2, (1, 2), planes).unwrap();
            assert!(largest.value(0, 0) > 3.4e38 && largest.value(0, 1) < -3.4e38);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(Int8Rows::new(&[1.0, bad], 2, (1, 2), planes).unwrap().value(0, 0).is_nan());
            }
        }
    }
}
