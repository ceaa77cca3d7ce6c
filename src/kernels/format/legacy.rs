//! ggml's first formats: 32 neighbours share a scale, and in some a smallest value.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | Q4_0 | `d`, 16 bytes of nibbles | `(q - 8) · d` |
//! | Q4_1 | `d`, `m`, 16 bytes of nibbles | `q · d + m` |
//! | Q5_0 | `d`, a u32 of fifth bits, 16 bytes of nibbles | `(q - 16) · d` |
//! | Q5_1 | `d`, `m`, a u32 of fifth bits, 16 bytes of nibbles | `q · d + m` |
//!
//! `d` and `m` are F16. Byte j holds value j in its low nibble and value j + 16 in its high one; bit j of
//! the u32 is the fifth of value j. `q · d` is exact in F32, a sum is rounded once.
//!
//! Source: `dequantize_row_q4_0` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use super::{FormatRow, array_at, each_block, f16_at, nibbles};

const BLOCK: usize = 32;

pub const Q4_0: FormatRow =
    FormatRow::read_only("q4_0", 2, (BLOCK, 18), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, q4_0));

pub const Q4_1: FormatRow = FormatRow::read_only(
    "q4_1",
    3,
    (BLOCK, 20),
    |b| f16_at(b, 0).is_finite() && f16_at(b, 2).is_finite(),
    |b, to| each_block(b, to, q4_1),
);

pub const Q5_0: FormatRow =
    FormatRow::read_only("q5_0", 6, (BLOCK, 22), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, q5_0));

pub const Q5_1: FormatRow = FormatRow::read_only(
    "q5_1",
    7,
    (BLOCK, 24),
    |b| f16_at(b, 0).is_finite() && f16_at(b, 2).is_finite(),
    |b, to| each_block(b, to, q5_1),
);

fn q4_0(block: &[u8; 18], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..], to, |q| (f32::from(q) - 8.0) * d);
}

fn q4_1(block: &[u8; 20], to: &mut [f32; BLOCK]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    nibbles(&block[4..], to, |q| f32::from(q) * d + m);
}

fn q5_0(block: &[u8; 22], to: &mut [f32; BLOCK]) {
    let (d, fifth) = (f16_at(block, 0), u32::from_le_bytes(array_at(block, 2)));
    five_bits(&block[6..], fifth, to, |q| (f32::from(q) - 16.0) * d);
}

fn q5_1(block: &[u8; 24], to: &mut [f32; BLOCK]) {
    let (d, m, fifth) = (f16_at(block, 0), f16_at(block, 2), u32::from_le_bytes(array_at(block, 4)));
    five_bits(&block[8..], fifth, to, |q| f32::from(q) * d + m);
}

fn five_bits(bytes: &[u8], fifth: u32, to: &mut [f32; BLOCK], value: impl Fn(u8) -> f32) {
    let (low, high) = to.split_at_mut(BLOCK / 2);
    for (j, byte) in bytes.iter().enumerate() {
        let bit = |j: usize| (fifth >> j & 1) as u8;
        low[j] = value(byte & 15 | bit(j) << 4);
        high[j] = value(byte >> 4 | bit(j + BLOCK / 2) << 4);
    }
}
