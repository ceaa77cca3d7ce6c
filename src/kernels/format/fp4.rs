//! Floats of four bits, E2M1, with a scale of eight bits.
//!
//! | format | block | scale |
//! | --- | --- | --- |
//! | MXFP4 | 32 values: an exponent, 16 bytes of nibbles | `2^(e - 127)` |
//! | NVFP4 | 64 values: 4 scales of 16 values each, 32 bytes of nibbles | unsigned E4M3 |
//!
//! Of a run of 32 or 16 values, byte j holds value j in its low nibble and value j + half in its high one.
//! The table has twice the values of E2M1, so that they are whole, and scales are halved. NVFP4 has a
//! factor of the whole matrix beside this, in a tensor of its own.
//!
//! Source: `dequantize_row_mxfp4` and `dequantize_row_nvfp4` in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>; OCP Microscaling Formats 1.0,
//! <https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf>.

use super::{FormatRow, each_block, nibbles};

pub const MXFP4: FormatRow =
    FormatRow::read_only("mxfp4", 39, (32, 17), |b| b[0] <= MAX_EXPONENT, |b, to| each_block(b, to, mxfp4));

/// A scale of E4M3 is finite, or the 0x7f that ggml reads as 0.
pub const NVFP4: FormatRow = FormatRow::read_only("nvfp4", 40, (64, 36), |_| true, |b, to| each_block(b, to, nvfp4));

/// 6 · 2^(e - 127) is finite in F32 up to here. 255 stands for NaN.
const MAX_EXPONENT: u8 = 252;

/// By nibble: a sign, two bits of exponent, one of mantissa.
const TWICE_E2M1: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

fn mxfp4(block: &[u8; 17], to: &mut [f32; 32]) {
    let half = half_of_e8m0(block[0]);
    nibbles(&block[1..], to, |q| TWICE_E2M1[usize::from(q)] * half);
}

fn nvfp4(block: &[u8; 36], to: &mut [f32; 64]) {
    let (scales, codes) = block.split_at(4);
    for ((to, codes), scale) in to.chunks_exact_mut(16).zip(codes.chunks_exact(8)).zip(scales) {
        let half = half_of_ue4m3(*scale);
        nibbles(codes, to, |q| TWICE_E2M1[usize::from(q)] * half);
    }
}

/// `2^(e - 128)`; below `2^-126` that is a subnormal number.
fn half_of_e8m0(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// Four bits of exponent, biased by 7, and three of mantissa; the highest bit is not looked at.
fn half_of_ue4m3(bits: u8) -> f32 {
    if bits == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), f32::from(bits & 7));
    match exponent {
        // The smallest step, 2^-9, and its half.
        0 => mantissa * (1.0 / 1024.0),
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 127 - 8) << 23),
    }
}
