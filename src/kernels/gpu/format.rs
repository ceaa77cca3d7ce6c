//! How weights are kept on a GPU: few formats, which kernels decode in registers, for the many of files.
//!
//! | from | becomes | what is lost |
//! | --- | --- | --- |
//! | F16, BF16 | `dense` | nothing |
//! | Q4_0; Q4_1, affine of 2 to 4 bits | `four_sym`; `four` | nothing |
//! | Q5_0; Q5_1, affine of 5 bits; affine of 6 bits | `five_sym`; `five`; `six` | nothing |
//! | Q8_0; affine of 8 bits | `eight_sym`; `eight` | nothing |
//! | IQ4_NL, TQ1_0, TQ2_0, Q1_0, Q2_0 | `table` | nothing |
//! | MXFP4; NVFP4 | `table`; `table_16` | nothing from 2⁻²⁴ to 2¹⁵, the scales that an F16 has |
//! | NVFP4 times a factor | `table_16` | scales are rounded to F16 |
//! | Q3_K; Q6_K | `four_sym_16`; `six_sym_16` | scales are rounded to F16 |
//! | IQ4_XS, IQ3, IQ2_XXS, IQ1_S; IQ2_XS, IQ2_S, IQ1_M | `table`; `table_16` | the same |
//! | Q4_K; Q5_K; Q2_K | `four`; `five`; `four_16` | scales and mins are rounded to F16 |
//! | AWQ, GPTQ and the like (`zero4`, `zero8`) | `four`, `eight` | the min, `-scale · zero`, is rounded to F16 |
//!
//! An F16 is rounded by 2⁻¹¹ of itself at most, or by 2⁻²⁵ below 6.1e-5.

use super::super::format::Format;
use super::super::format::coding::{Coding, Levels};

/// The formats of `format.h`, under its names.
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GpuFormat {
    dense,
    four,
    four_16,
    four_sym,
    four_sym_16,
    five,
    five_sym,
    six,
    six_sym_16,
    eight,
    eight_sym,
    table,
    table_16,
}

/// What tells the formats apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuFormatRow {
    pub name: &'static str,
    /// Bits of a code, or of a float.
    pub bits: u32,
    /// Columns of a chunk, the least that share a scale.
    pub columns: usize,
    /// Whether the code of zero is the middle one, so that there are scales and no offsets.
    pub symmetric: bool,
    /// Whether codes stand for levels of a table.
    pub table: bool,
}

impl GpuFormatRow {
    /// Bits of a code in the plane of low ones.
    pub fn low_bits(self) -> u32 {
        if self.bits < 8 { 4 } else { self.bits }
    }

    /// Bits of a code in the plane of upper ones.
    pub fn upper_bits(self) -> usize {
        (self.bits - self.low_bits()) as usize
    }
}

impl GpuFormat {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::dense,
        Self::four,
        Self::four_16,
        Self::four_sym,
        Self::four_sym_16,
        Self::five,
        Self::five_sym,
        Self::six,
        Self::six_sym_16,
        Self::eight,
        Self::eight_sym,
        Self::table,
        Self::table_16,
    ];

    pub const fn row(self) -> GpuFormatRow {
        let (name, bits, columns, symmetric, table) = match self {
            Self::dense => ("dense", 16, 8, false, false),
            Self::four => ("four", 4, 32, false, false),
            Self::four_16 => ("four_16", 4, 16, false, false),
            Self::four_sym => ("four_sym", 4, 32, true, false),
            Self::four_sym_16 => ("four_sym_16", 4, 16, true, false),
            Self::five => ("five", 5, 32, false, false),
            Self::five_sym => ("five_sym", 5, 32, true, false),
            Self::six => ("six", 6, 32, false, false),
            Self::six_sym_16 => ("six_sym_16", 6, 16, true, false),
            Self::eight => ("eight", 8, 16, false, false),
            Self::eight_sym => ("eight_sym", 8, 16, true, false),
            Self::table => ("table", 4, 32, true, true),
            Self::table_16 => ("table_16", 4, 16, true, true),
        };
        GpuFormatRow { name, bits, columns, symmetric, table }
    }

    /// What a format of files becomes; `None` for F32, which the host rounds first.
    pub fn of(format: Format) -> Option<Self> {
        match (format, format.coding()) {
            (Format::F16 | Format::BF16, _) => Some(Self::dense),
            (_, Some(coding)) => Self::of_coding(coding),
            (_, None) => None,
        }
    }

    /// The first that has room for the codes and a scale for each group.
    fn of_coding(coding: &Coding) -> Option<Self> {
        let table = matches!(coding.levels, Levels::Table(_));
        let symmetric = table || coding.levels == Levels::Signed;
        let fits = |row: GpuFormatRow| {
            (row.table, row.symmetric) == (table, symmetric) && row.bits >= coding.bits && row.columns <= coding.group
        };
        let quantised = Self::ALL.into_iter().filter(|format| *format != Self::dense && fits(format.row()));
        // Of those with as few bits the one with the longer chunk, which takes fewer instructions.
        quantised.min_by_key(|format| (format.row().bits, usize::MAX - format.row().columns))
    }
}
