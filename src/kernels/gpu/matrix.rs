//! A matrix as a GPU is given it: codes, scales, and what else its format has, made on the host from blocks of a file.
//!
//! ```ignore
//! let mut matrix = GpuMatrix::new(&[(rows, Format::Q4_K)], cols)?; // GpuFormat::four
//! let fits = matrix.fill(0, bytes, Format::Q4_K);
//! ```

use half::{bf16, f16};

use super::super::format::Format;
use super::super::format::coding::{CodedBlock, Coding, Levels};
use super::super::packed::zeros;
use super::format::GpuFormat;

/// A matrix of `rows` outputs by `cols` inputs in a format of a GPU. `format.h` says where a column lies.
pub struct GpuMatrix {
    format: GpuFormat,
    /// Which floats a dense matrix holds.
    bf16: bool,
    rows: usize,
    cols: usize,
    /// Columns that share a scale.
    group: usize,
    codes: Vec<u32>,
    /// Upper bits of the codes, or the levels of a table as bits of F32; one word where there is neither.
    extra: Vec<u32>,
    /// F16: of each group the scale, and behind it the offset if it has one.
    scales: Vec<u16>,
}

impl GpuMatrix {
    /// A matrix of zeros for rows of these formats, one after another, to be filled by [`fill`](Self::fill). `None` if they do not become
    /// the same format here, if rows are no multiples of 32 columns and of the blocks, or if there is no memory.
    pub fn new(parts: &[(usize, Format)], cols: usize) -> Option<Self> {
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
        let row = format.row();
        let values = rows.checked_mul(cols)?;
        let extra = match first.coding().filter(|_| row.table) {
            Some(coding) => coding.table.map(f32::to_bits).to_vec(),
            None => zeros((values / 32).checked_mul(row.upper_bits())?.max(1))?,
        };
        let scales =
            if format == GpuFormat::dense { 1 } else { (values / group).checked_mul(if row.symmetric { 1 } else { 2 })? };
        let codes = zeros((values / 32).checked_mul(row.low_bits() as usize)?)?;
        Some(Self { format, bf16: *first == Format::BF16, rows, cols, group, codes, extra, scales: zeros(scales)? })
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

    /// What the kernels are given.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// What the kernels are given.
    pub fn extra(&self) -> &[u32] {
        &self.extra
    }

    /// What the kernels are given.
    pub fn scales(&self) -> &[u16] {
        &self.scales
    }

    /// Copies one row into `out`, in F32, as the kernels decode it.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let format = self.format.row();
        let (low, upper) = (format.low_bits() as usize, format.upper_bits());
        let bits_at = |words: &[u32], i: usize, bits: usize| words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
        let half = |at: usize| f16::from_bits(self.scales[at]).to_f32();
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
    fn widen(&self, bits: u16) -> f32 {
        if self.bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them. `false` if `from` is none of the formats that this
    /// was made for, if rows are no whole ones or too many, or if a scale or an offset is not finite or above what an F16 holds.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let Some(row_bytes) = from.row_bytes(self.cols).filter(|_| GpuFormat::of(from) == Some(self.format)) else {
            return false;
        };
        let whole = bytes.len().is_multiple_of(row_bytes) && first + bytes.len() / row_bytes <= self.rows;
        if !whole || !from.has_finite_scales(bytes) {
            return false;
        }
        let Some(coding) = from.coding().filter(|coding| coding.group >= self.group) else {
            return from.coding().is_none() && self.copy(first, bytes);
        };
        let mut block = CodedBlock::default();
        let at_once = from.unpacked_at_once();
        bytes.chunks_exact(row_bytes).zip(first..).all(|(bytes, row)| {
            let places = (row * self.cols..).step_by(at_once);
            bytes.chunks(at_once / from.block() * from.block_bytes()).zip(places).all(|(blocks, at)| {
                from.unpack(blocks, &mut block);
                let count = blocks.len() / from.block_bytes() * from.block();
                self.write_codes(coding, &block.codes[..count], at);
                self.write_scales(coding, &block, at..at + count)
            })
        })
    }

    /// Floats as they are stored.
    fn copy(&mut self, first: usize, bytes: &[u8]) -> bool {
        let words = &mut self.codes[first * self.cols / 2..][..bytes.len() / 4];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
        true
    }

    /// Codes of the values from `at` on of the matrix; all of them are multiples of 32.
    fn write_codes(&mut self, coding: &Coding, codes: &[u8], at: usize) {
        let row = self.format.row();
        let (low, upper) = (row.low_bits(), row.upper_bits());
        // A signed code of fewer bits moves, so that its zero stays in the middle.
        let shift = if coding.levels == Levels::Signed { (1u32 << (row.bits - 1)) - (1 << (coding.bits - 1)) } else { 0 };
        let words = &mut self.codes[at / 32 * low as usize..];
        for (codes, word) in codes.chunks_exact(32 / low as usize).zip(words) {
            *word = stream(codes, low, |code| (u32::from(code) + shift) & ((1 << low) - 1));
        }
        if upper > 0 {
            let words = &mut self.extra[at / 32 * upper..];
            for (codes, word) in codes.chunks_exact(32 / upper).zip(words) {
                *word = stream(codes, upper as u32, |code| (u32::from(code) + shift) >> 4);
            }
        }
    }

    /// Scales and offsets of values of the matrix; a group of the file may be several here.
    fn write_scales(&mut self, coding: &Coding, block: &CodedBlock, values: std::ops::Range<usize>) -> bool {
        let symmetric = self.format.row().symmetric;
        values.clone().step_by(self.group).all(|at| {
            let (scale, min) = coding.scale_and_min(block, (at - values.start) / coding.group);
            let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
            let to = at / self.group;
            if symmetric {
                self.scales[to] = scale.to_bits();
            } else {
                (self.scales[2 * to], self.scales[2 * to + 1]) = (scale.to_bits(), min.to_bits());
            }
            scale.is_finite() && min.is_finite()
        })
    }
}

/// So many bits of each code, from the lowest bits of a word up.
fn stream(codes: &[u8], bits: u32, part: impl Fn(u8) -> u32) -> u32 {
    codes.iter().rev().fold(0, |word, code| word << bits | part(*code))
}
