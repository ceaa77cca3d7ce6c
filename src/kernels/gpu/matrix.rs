//! A matrix as a GPU is given it: codes, scales, and what else its format has, made on the host from blocks of a file.
//!
//! ```ignore
//! let mut matrix = GpuMatrix::new(&[(rows, Format::Q4_K)], cols)?; // GpuFormat::four
//! let fits = matrix.fill(0, bytes, Format::Q4_K);
//! ```

use std::ops::Range;

#[cfg(any(test, feature = "selftest"))]
use half::bf16;
use half::f16;

use super::super::format::Format;
use super::super::format::coding::{CodedBlock, Coding, Levels, MOST};
use super::super::packed::zeros;
use super::super::parallel::each_chunk;
use super::format::GpuFormat;

/// A matrix of `rows` outputs by `cols` inputs in a format of a GPU. `format.h` says where a column lies.
pub struct GpuMatrix {
    format: GpuFormat,
    /// What rows were before, or are to be quantised to, one after another.
    parts: Vec<(usize, Format)>,
    rows: usize,
    cols: usize,
    /// Columns that share a scale.
    group: usize,
    codes: Vec<u32>,
    /// Upper bits of the codes, or the levels of a table as bits of F32; one word where there is neither.
    extra: Vec<u32>,
    /// Of each group the scale, and behind it the offset if it has one.
    scales: Vec<f16>,
}

/// The shape of a matrix of some parts.
struct Layout {
    format: GpuFormat,
    rows: usize,
    group: usize,
    codes: usize,
    extra: usize,
    scales: usize,
}

impl Layout {
    fn new(parts: &[(usize, Format)], cols: usize) -> Option<Self> {
        let (_, first) = parts.first()?;
        let format = GpuFormat::of(*first)?;
        let together = |part: Format| match (first.coding(), part.coding()) {
            (Some(first), Some(part)) => first.table == part.table || !format.row().table,
            _ => *first == part,
        };
        let fit = parts.iter().all(|(_, part)| GpuFormat::of(*part) == Some(format) && together(*part));
        let rows = parts.iter().try_fold(0usize, |rows, part| rows.checked_add(part.0))?;
        let group = parts.iter().map(|(_, part)| part.coding().map_or(cols, |coding| coding.group)).min()?;
        if !fit || !cols.is_multiple_of(32) || !parts.iter().all(|(_, part)| cols.is_multiple_of(part.block())) {
            return None;
        }
        let (row, values) = (format.row(), rows.checked_mul(cols)?);
        // The kernels count chunks of a whole matrix by 32 bits.
        u32::try_from(values / row.columns).ok()?;
        let scales = if format == GpuFormat::dense {
            1
        } else {
            (values / group.max(1)).checked_mul(if row.symmetric { 1 } else { 2 })?
        };
        let extra = if row.table { 16 } else { (values / 32).checked_mul(row.upper_bits())?.max(1) };
        Some(Self { format, rows, group, codes: (values / 32).checked_mul(row.low_bits() as usize)?, extra, scales })
    }
}

impl GpuMatrix {
    /// A matrix of zeros for rows of these formats, one after another, to be filled by [`fill`](Self::fill). `None` if
    /// [`can_hold`](Self::can_hold) is false, or if there is no memory.
    pub fn new(parts: &[(usize, Format)], cols: usize) -> Option<Self> {
        let Layout { format, rows, group, codes, extra, scales } = Layout::new(parts, cols)?;
        let extra = match parts[0].1.coding().filter(|_| format.row().table) {
            Some(coding) => coding.table.map(f32::to_bits).to_vec(),
            None => zeros(extra)?,
        };
        let (codes, scales, parts) = (zeros(codes)?, zeros(scales)?, parts.to_vec());
        Some(Self { format, parts, rows, cols, group, codes, extra, scales })
    }

    /// Whether rows of these formats are one matrix for the kernels: they become the same format, they are multiples of 32 columns and of
    /// the blocks, and they are no more than the kernels count.
    pub fn can_hold(parts: &[(usize, Format)], cols: usize) -> bool {
        Layout::new(parts, cols).is_some()
    }

    /// The bytes that one takes on a device; `None` if [`can_hold`](Self::can_hold) is false.
    pub fn bytes(parts: &[(usize, Format)], cols: usize) -> Option<u64> {
        Layout::new(parts, cols).map(|layout| 4 * (layout.codes + layout.extra) as u64 + 2 * layout.scales as u64)
    }

    pub fn format(&self) -> GpuFormat {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The kernels' `group_shift`: 2 to its power chunks share a scale.
    pub fn group_shift(&self) -> u32 {
        if self.format == GpuFormat::dense { 0 } else { (self.group / self.format.row().columns).ilog2() }
    }

    /// What the kernels are given: codes, what else there is, and scales.
    #[cfg(any(test, feature = "selftest"))]
    pub fn parts(&self) -> (&[u32], &[u32], &[f16]) {
        (&self.codes, &self.extra, &self.scales)
    }

    /// What the kernels are given: codes, what else there is, and scales.
    pub fn into_parts(self) -> (Vec<u32>, Vec<u32>, Vec<f16>) {
        (self.codes, self.extra, self.scales)
    }

    /// Copies one row into `out`, in F32, as the kernels decode it.
    #[cfg(any(test, feature = "selftest"))]
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let format = self.format.row();
        let (low, upper) = (format.low_bits() as usize, format.upper_bits());
        let bits_at = |words: &[u32], i: usize, bits: usize| words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
        let half = |at: usize| self.scales[at].to_f32();
        for (x, i) in out[..self.cols].iter_mut().zip(row * self.cols..) {
            let code = bits_at(&self.codes, i, low) | if upper > 0 { bits_at(&self.extra, i, upper) << 4 } else { 0 };
            let group = i / self.group;
            *x = match (format.table, format.symmetric) {
                _ if self.format == GpuFormat::dense => self.widen(code as u16),
                (true, _) => half(group) * f32::from_bits(self.extra[code as usize]),
                (_, true) => half(group) * (code as f32 - (1 << (format.bits - 1)) as f32),
                _ => half(2 * group) * code as f32 + half(2 * group + 1),
            };
        }
    }

    /// A float of a dense matrix.
    #[cfg(any(test, feature = "selftest"))]
    fn widen(&self, bits: u16) -> f32 {
        if self.parts[0].1 == Format::BF16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them: as they are, or quantised to what this was made for.
    /// `false` if rows are no whole ones or too many, if a value cannot be quantised, or if a scale or an offset is not finite or above
    /// what an F16 holds. All threads write, each its rows.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let Some(row_bytes) = from.row_bytes(self.cols).filter(|row_bytes| bytes.len().is_multiple_of(*row_bytes)) else {
            return false;
        };
        let at_once = from.unpacked_at_once();
        self.write_rows(first, bytes.len() / row_bytes, |row, out| {
            let bytes = &bytes[row * row_bytes..][..row_bytes];
            if !from.has_finite_scales(bytes) {
                return false;
            }
            if out.kept != from {
                return out.quantise(&from.widen(bytes));
            }
            let Some(coding) = from.coding() else { return out.copy(bytes) };
            let mut block = CodedBlock::default();
            bytes.chunks(at_once / from.block() * from.block_bytes()).zip((0..).step_by(at_once)).all(|(blocks, at)| {
                from.unpack(blocks, &mut block);
                let count = blocks.len() / from.block_bytes() * from.block();
                out.write(coding, &block, at..at + count)
            })
        })
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        let cols = self.cols;
        self.write_rows(first, values.len() / cols, |row, out| out.quantise(&values[row * cols..][..cols]))
    }

    /// Writes rows by a function that is told the number of each, from the first of these on, and returns whether it could.
    fn write_rows(&mut self, first: usize, count: usize, write: impl Fn(usize, &mut RowOut<'_>) -> bool + Sync) -> bool {
        if first.checked_add(count).is_none_or(|end| end > self.rows) {
            return false;
        }
        let (format, row) = (self.format, self.format.row());
        let codes = self.cols / 32 * row.low_bits() as usize;
        let upper = self.cols / 32 * row.upper_bits();
        let scales = if format == GpuFormat::dense { 0 } else { self.cols / self.group * if row.symmetric { 1 } else { 2 } };
        let mut kept = self.parts.iter().flat_map(|(rows, format)| std::iter::repeat_n(*format, *rows)).skip(first);
        let (mut codes_left, mut extra_left) = (&mut self.codes[first * codes..], &mut self.extra[first * upper..]);
        let mut scales_left = &mut self.scales[first * scales..];
        let mut outs = Vec::with_capacity(count);
        for _ in 0..count {
            let (Some(kept), group) = (kept.next(), self.group) else { return false };
            outs.push(RowOut {
                format,
                kept,
                group,
                codes: split_off(&mut codes_left, codes),
                extra: split_off(&mut extra_left, upper),
                scales: split_off(&mut scales_left, scales),
            });
        }
        each_chunk(&mut outs, ROWS, |i, outs| outs.iter_mut().zip(i * ROWS..).all(|(out, row)| write(row, out)))
    }
}

/// Rows that a thread writes at a time.
const ROWS: usize = 16;

/// The first `len` of a slice, which then begins behind them.
fn split_off<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(slice).split_at_mut(len);
    *slice = rest;
    first
}

/// One row that is written.
struct RowOut<'a> {
    format: GpuFormat,
    /// What it was before, or is quantised to.
    kept: Format,
    group: usize,
    codes: &'a mut [u32],
    extra: &'a mut [u32],
    scales: &'a mut [f16],
}

impl RowOut<'_> {
    /// Floats as they are stored.
    fn copy(&mut self, bytes: &[u8]) -> bool {
        self.codes.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
        true
    }

    /// All values of the row; `false` if one does not fit, or if nothing is quantised to the format.
    fn quantise(&mut self, values: &[f32]) -> bool {
        let Some(coding) = self.kept.coding() else {
            let mut bytes = Vec::with_capacity(2 * values.len());
            return self.kept.write(values, &mut bytes) && self.copy(&bytes);
        };
        let mut block = CodedBlock::default();
        values
            .chunks(MOST)
            .zip((0..).step_by(MOST))
            .all(|(values, at)| self.kept.quantise(values, &mut block) && self.write(coding, &block, at..at + values.len()))
    }

    /// Codes and scales of some columns, which are multiples of 32.
    fn write(&mut self, coding: &Coding, block: &CodedBlock, columns: Range<usize>) -> bool {
        let (row, codes) = (self.format.row(), &block.codes[..columns.len()]);
        let (low, upper) = (row.low_bits(), row.upper_bits());
        // A signed code of fewer bits moves, so that its zero stays in the middle.
        let shift = if coding.levels == Levels::Signed { (1u32 << (row.bits - 1)) - (1 << (coding.bits - 1)) } else { 0 };
        let words = &mut self.codes[columns.start / 32 * low as usize..];
        for (codes, word) in codes.chunks_exact(32 / low as usize).zip(words) {
            *word = stream(codes, low, |code| (u32::from(code) + shift) & ((1 << low) - 1));
        }
        if upper > 0 {
            let words = &mut self.extra[columns.start / 32 * upper..];
            for (codes, word) in codes.chunks_exact(32 / upper).zip(words) {
                *word = stream(codes, upper as u32, |code| (u32::from(code) + shift) >> 4);
            }
        }
        // A group of the file may be several here.
        columns.clone().step_by(self.group).all(|at| {
            let (scale, min) = coding.scale_and_min(block, (at - columns.start) / coding.group);
            let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
            let to = at / self.group;
            if row.symmetric {
                self.scales[to] = scale;
            } else {
                (self.scales[2 * to], self.scales[2 * to + 1]) = (scale, min);
            }
            scale.is_finite() && min.is_finite()
        })
    }
}

/// So many bits of each code, from the lowest bits of a word up.
fn stream(codes: &[u8], bits: u32, part: impl Fn(u8) -> u32) -> u32 {
    codes.iter().rev().fold(0, |word, code| word << bits | part(*code))
}
