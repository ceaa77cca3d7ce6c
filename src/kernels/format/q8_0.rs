//! Weights in 8 bits: of each row, 32 neighbours share a scale, as in ggml's Q8_0.
//!
//! `d = max |x| / 127` and `q = round(x · (1 / d))`, halves away from zero; the weight is then `q · d` with `d` in F16. The product
//! of a byte and an F16 is exact in F32. In memory a row's last block may be shorter, in a file it may not.
//!
//! Source: `quantize_row_q8_0_ref` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use std::ops::Range;

use half::f16;

use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::{FormatRow, Values, f16_at, u16_at};

pub const ROW: FormatRow = FormatRow {
    name: "q8_0",
    block: BLOCK,
    bytes: BLOCK_BYTES,
    gguf: 8,
    quantises: true,
    finite: |block| f16_at(block, 0).is_finite(),
    values: Values::Blocks(Coding::new(8, Levels::Signed, Scales::F16, BLOCK), unpack),
};

/// Inputs that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of a block in a file: its scale, then its values.
const BLOCK_BYTES: usize = size_of::<f16>() + BLOCK;
/// Columns that are widened at once: 16 kB of four panels, so that they are still in the first cache when the product reads them.
pub const WIDENED: usize = 64;

/// The panels of a matrix.
pub struct Q8_0 {
    /// `[panel][input][lane]`
    pub values: Vec<i8>,
    /// `[panel][input / 32][lane]`
    pub scales: Vec<f16>,
}

/// Columns of a panel in F32; a column is a cache line.
#[repr(align(64))]
pub struct Widened([[f32; LANES]; WIDENED]);

impl Default for Widened {
    fn default() -> Self {
        Self([[0.0; LANES]; WIDENED])
    }
}

impl Widened {
    /// The first columns.
    pub fn first(&mut self, columns: usize) -> &mut [[f32; LANES]] {
        &mut self.0[..columns]
    }
}

/// Columns of a panel that have their scales in common.
#[derive(Clone, Copy)]
pub struct Block<S: Simd> {
    pub values: *const i8,
    pub scale: S::V,
}

impl Q8_0 {
    /// The bytes of `rows · cols` weights.
    pub fn bytes(rows: usize, cols: usize) -> u64 {
        rows as u64 * (cols + cols.div_ceil(BLOCK) * size_of::<f16>()) as u64
    }

    /// Columns of a panel of `k` inputs, at most [`WIDENED`] of them, sixteen values each.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub unsafe fn widen<'a, S: Simd>(
        &self,
        panel: usize,
        k: usize,
        columns: Range<usize>,
        to: &'a mut Widened,
    ) -> &'a [[f32; LANES]] {
        let blocks = k.div_ceil(BLOCK);
        let scales = &self.scales[panel * blocks * LANES..][..blocks * LANES];
        let to = &mut to.0[..columns.len()];
        let mut left = &mut *to;
        let mut col = columns.start;
        while col < columns.end {
            let end = ((col / BLOCK + 1) * BLOCK).min(columns.end);
            let values = &self.values[(panel * k + col) * LANES..][..(end - col) * LANES];
            let scale = &scales[col / BLOCK * LANES..][..LANES];
            let block;
            (block, left) = left.split_at_mut(end - col);
            // SAFETY: `scale`, `values` and `to` hold sixteen values; the caller vouches for the instructions of `S`.
            unsafe {
                let (scale, zero) = (S::load_f16(scale.as_ptr()), S::splat(0.0));
                for (values, to) in values.chunks_exact(LANES).zip(block) {
                    S::store(to.as_mut_ptr(), S::fma(S::load_i8(values.as_ptr()), scale, zero));
                }
            }
            col = end;
        }
        to
    }

    /// Columns of one block of a panel of `k` inputs.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub unsafe fn block<S: Simd>(&self, panel: usize, k: usize, columns: Range<usize>) -> Block<S> {
        let scale = &self.scales[(panel * k.div_ceil(BLOCK) + columns.start / BLOCK) * LANES..][..LANES];
        let values = &self.values[(panel * k + columns.start) * LANES..][..columns.len() * LANES];
        // SAFETY: `scale` holds sixteen values; the caller vouches for the instructions of `S`.
        Block { values: values.as_ptr(), scale: unsafe { S::load_f16(scale.as_ptr()) } }
    }

    /// Copies one row of a matrix with panels of `lanes` rows into `out`.
    pub fn row(&self, row: usize, lanes: usize, out: &mut [f32]) {
        let (panel, lane) = (row / lanes, row % lanes);
        let values = self.values[panel * out.len() * lanes..].chunks_exact(lanes);
        let scales = self.scales[panel * out.len().div_ceil(BLOCK) * lanes..].chunks_exact(lanes);
        let mut values = values.map(|column| column[lane]);
        for (out, scale) in out.chunks_mut(BLOCK).zip(scales) {
            let scale = scale[lane].to_f32();
            out.iter_mut().zip(&mut values).for_each(|(x, q)| *x = f32::from(q) * scale);
        }
    }
}

/// Scale and values of a block in a file.
fn parts(block: &[u8; BLOCK_BYTES]) -> (f16, impl Iterator<Item = i8>) {
    let [low, high, values @ ..] = block;
    (f16::from_le_bytes([*low, *high]), values.iter().map(|q| q.cast_signed()))
}

/// A code is 128 more than the value.
fn unpack(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 0);
    to.codes.iter_mut().zip(&block[2..BLOCK_BYTES]).for_each(|(code, q)| *code = q ^ 0x80);
}

/// Values and scales, row after row.
pub type Blocks = (Vec<i8>, Vec<f16>);

/// The blocks of a file as they are. `None` if a scale is not finite.
pub fn read(bytes: &[u8]) -> Option<Blocks> {
    let blocks = bytes.as_chunks().0;
    let (mut all, mut scales) = (Vec::with_capacity(blocks.len() * BLOCK), Vec::with_capacity(blocks.len()));
    for block in blocks {
        let (scale, values) = parts(block);
        if !scale.is_finite() {
            return None;
        }
        scales.push(scale);
        all.extend(values);
    }
    Some((all, scales))
}

/// The blocks of rows of `cols` values. `None` if a value is not finite, or a scale is beyond F16: that of a value
/// beyond 8.3 million.
pub fn quantise(rows: &[f32], cols: usize) -> Option<Blocks> {
    dispatch(Quantise { rows, cols })
}

struct Quantise<'a> {
    rows: &'a [f32],
    cols: usize,
}

impl Kernel for Quantise<'_> {
    type Output = Option<Blocks>;

    /// Plain code: the compiler's vectoriser has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let mut values = Vec::with_capacity(self.rows.len());
        let mut scales = Vec::new();
        for block in self.rows.chunks_exact(self.cols).flat_map(|row| row.chunks(BLOCK)) {
            let (block, scale) = encode(block);
            if !scale.is_finite() {
                return None;
            }
            values.extend(block);
            scales.push(scale);
        }
        Some((values, scales))
    }
}

/// The values of a block and their scale, which is NaN if a value is not finite or the scale is beyond F16.
#[inline(always)]
pub fn encode(block: &[f32]) -> (impl Iterator<Item = i8>, f16) {
    let d = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
    let scale = f16::from_f32(d);
    // `max` passes over NaN.
    let is_finite = scale.is_finite() && !block.iter().any(|x| x.is_nan());
    (block.iter().map(move |x| (x * inverse).round() as i8), if is_finite { scale } else { f16::NAN })
}

#[cfg(test)]
mod tests {
    use super::super::super::packed::{Packed, Panels, Use};
    use super::super::Format;
    use super::*;

    /// One row, quantised and back.
    fn there_and_back(values: &[f32]) -> Option<Vec<f32>> {
        let mut packed = Packed::new(1, values.len(), Format::Q8_0, Use::Product).unwrap();
        let mut row = vec![f32::NAN; values.len()];
        packed.fill_f32(0, values).then(|| {
            packed.row(0, &mut row);
            row
        })
    }

    #[test]
    fn blocks_are_quantised_as_by_hand() {
        // A scale of one: halves go away from zero, also where the even number is nearer to it.
        let mut row = vec![127.0, 0.5, -0.5, 2.5, -2.5, 2.499, 126.4, -126.5, 1e-30];
        let mut want = vec![127.0, 1.0, -1.0, 3.0, -3.0, 2.0, 126.0, -127.0, 0.0];
        row.resize(BLOCK, -3.0);
        want.resize(BLOCK, -3.0);
        // Zeros; then a scale that F16 rounds: 0.1 / 127 = 7.874e-4 is 1651 · 2^-21 = 7.8726e-4 there.
        row.extend([0.0; BLOCK]);
        want.extend([0.0; BLOCK]);
        let scale = 1651.0 / 2097152.0;
        row.extend([0.1, -0.1, 0.06, 0.0004, 0.0003]);
        want.extend([127.0, -127.0, 76.0, 1.0, 0.0].map(|q| q * scale));
        assert_eq!(there_and_back(&row).unwrap(), want);
        assert_eq!(there_and_back(&[-3.0]).unwrap(), [-127.0 * f16::from_f32(3.0 / 127.0).to_f32()]);
    }

    #[test]
    fn what_no_scale_fits_is_refused() {
        // 8e6 / 127 = 62992.1, and F16 counts by 32 there: 1969 · 32 is nearest.
        assert_eq!(there_and_back(&[8e6, -4.1e6]).unwrap(), [127.0 * 63008.0, -65.0 * 63008.0]);
        // Below half of the smallest F16 nothing is left, as in ggml.
        assert_eq!(there_and_back(&[1e-6, -1e-7]).unwrap(), [0.0; 2]);
        assert_eq!(there_and_back(&[1e-42, 0.0]).unwrap(), [0.0; 2]);
        for bad in [8.4e6, f32::MAX, f32::INFINITY, f32::NAN] {
            assert!(there_and_back(&[1.0, bad, 2.0]).is_none(), "{bad}");
        }
    }

    /// A file's blocks of these rows, as ggml's `block_q8_0` lays them.
    fn file(rows: &[f32], cols: usize) -> Vec<u8> {
        let (values, scales) = quantise(rows, cols).unwrap();
        let block = |(scale, values): (&f16, &[i8])| {
            scale.to_le_bytes().into_iter().chain(values.iter().map(|q| q.cast_unsigned())).collect::<Vec<_>>()
        };
        scales.iter().zip(values.chunks(BLOCK)).flat_map(block).collect()
    }

    #[test]
    fn blocks_of_a_file_are_read_as_they_are() {
        // 0.5 in F16, then 32 bytes: 0 to 15, then -128 to -113.
        let block: Vec<u8> = [0x00, 0x38].into_iter().chain(0..16).chain(128..144).collect();
        let want: Vec<f32> = (0..16).chain(-128..-112).map(|q| q as f32 * 0.5).collect();
        assert_eq!(Format::Q8_0.widen(&block), want);

        let (rows, cols) = (37, 96);
        let values = super::super::super::noise(rows * cols, 4);
        let file = file(&values, cols);
        let row_bytes = Format::Q8_0.row_bytes(cols).unwrap();
        assert_eq!(file.len(), rows * row_bytes);
        for purpose in [Use::Product, Use::Lookup] {
            let new = |format| Packed::new(rows, cols, format, purpose).unwrap();
            let mut quantised = new(Format::Q8_0);
            assert!(quantised.fill_f32(0, &values));
            for piece in [1, 7, 16, 37] {
                let (mut read, mut wide) = (new(Format::Q8_0), new(Format::F32));
                for (i, part) in file.chunks(piece * row_bytes).enumerate() {
                    assert!(read.fill(i * piece, part, Format::Q8_0) && wide.fill(i * piece, part, Format::Q8_0));
                }
                for r in 0..rows {
                    let [a, b, c] = [&quantised, &read, &wide].map(|packed| {
                        let mut row = vec![f32::NAN; cols];
                        packed.row(r, &mut row);
                        row
                    });
                    assert!(a == b && a == c, "row {r} in pieces of {piece}");
                }
                let (Panels::Q8_0(read), Panels::Q8_0(want)) = (&read.panels, &quantised.panels) else { unreachable!() };
                assert!(read.values == want.values && read.scales == want.scales);
            }
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused() {
        for bad in [f16::INFINITY, f16::NAN] {
            let mut file = file(&[1.0; 64], 64);
            file[BLOCK_BYTES..][..2].copy_from_slice(&bad.to_le_bytes());
            let mut packed = Packed::new(1, 64, Format::Q8_0, Use::Product).unwrap();
            assert!(!packed.fill(0, &file, Format::Q8_0));
        }
    }

    #[test]
    fn every_instruction_set_quantises_alike() {
        let rows = super::super::super::noise(3 * 70, 3);
        let want = quantise(&rows, 70).unwrap();
        assert!(want.0.len() == 210 && want.1.len() == 3 * 3);
        for (name, run) in super::super::super::simd::levels::<Quantise<'_>>() {
            assert_eq!(run(Quantise { rows: &rows, cols: 70 }).unwrap(), want, "{name}");
        }
    }
}
