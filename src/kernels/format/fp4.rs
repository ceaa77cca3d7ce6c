//! Floats of four bits, E2M1, with a scale of eight bits.
//!
//! | format | block | scale |
//! | --- | --- | --- |
//! | MXFP4 | 32 values: an exponent, 16 bytes of nibbles | `2^(e - 127)` |
//! | NVFP4 | 64 values: 4 scales of 16 values each, 32 bytes of nibbles | unsigned E4M3 |
//! | the same, scaled | the factor of the row, an F32, and such a block; in memory alone | their product |
//!
//! Of a run of 32 or 16 values, byte j holds value j in its low nibble and value j + half in its high one.
//! The table has twice the values of E2M1, so that they are whole, and scales are halved. NVFP4 has a
//! factor of the whole matrix beside this, in a tensor of its own: who reads that puts it in front of each block.
//!
//! Source: `dequantize_row_mxfp4` and `dequantize_row_nvfp4` in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>; OCP Microscaling Formats 1.0,
//! <https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>.

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::{FormatRow, nibbles};

/// Scales are kept with 1 added to the exponent, so that `2^(e - 126)` is no subnormal number, and the bits of it are those of
/// the byte.
pub const MXFP4: FormatRow = FormatRow::quantised(
    "mxfp4",
    39,
    (32, 17),
    |b| b[0] <= MAX_EXPONENT,
    Coding::new(4, Levels::Table(&TWICE_E2M1), Scales::Float8 { shift: 23, factor: 0.25 }, 32),
    mxfp4,
);

/// A scale of E4M3 is finite, or the 0x7f that ggml reads as 0. Moved to the bits of an F32, its exponent is too low by 127 - 7,
/// and the scale is halved.
pub const NVFP4: FormatRow = FormatRow::quantised(
    "nvfp4",
    40,
    (64, 36),
    |_| true,
    Coding::new(4, Levels::Table(&TWICE_E2M1), Scales::Float8 { shift: 20, factor: TWO_TO_119 }, 16),
    nvfp4,
);

/// The same times a number that all blocks of a row have in common.
pub const NVFP4_SCALED: FormatRow = FormatRow {
    gguf: None,
    ..FormatRow::quantised(
        "nvfp4_scaled",
        40,
        (64, 40),
        |b| f32_at(b).abs() < MAX_FACTOR,
        Coding::new(4, Levels::Table(&TWICE_E2M1), Scales::Float8Times { shift: 20, factor: TWO_TO_119 }, 16),
        nvfp4_scaled,
    )
};

/// Values are finite below, by far.
const MAX_FACTOR: f32 = 1e30;

const TWO_TO_119: f32 = f32::from_bits((119 + 127) << 23);

/// 6 · 2^(e - 127) is finite in F32 up to here. 255 stands for NaN.
const MAX_EXPONENT: u8 = 252;

/// By nibble: a sign, two bits of exponent, one of mantissa.
const TWICE_E2M1: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

fn mxfp4(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16::from(block[0]) + 1;
    nibbles(&block[1..17], &mut to.codes[..32]);
}

fn nvfp4(block: &[u8], to: &mut CodedBlock) {
    let (scales, codes) = block.split_at(4);
    for ((i, to_codes), codes) in to.codes[..64].chunks_exact_mut(16).enumerate().zip(codes.chunks_exact(8)) {
        // The highest bit is not looked at.
        to.scales[i] = if scales[i] == 0x7f { 0 } else { u16::from(scales[i] & 0x7f) };
        nibbles(codes, to_codes);
    }
}

fn nvfp4_scaled(block: &[u8], to: &mut CodedBlock) {
    to.d = f32_at(block);
    nvfp4(&block[4..], to);
}

fn f32_at(block: &[u8]) -> f32 {
    f32::from_le_bytes([block[0], block[1], block[2], block[3]])
}
