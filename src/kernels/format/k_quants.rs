//! ggml's K-quants: 256 neighbours, in groups of 16 or 32 with scales of few bits, which are multiplied by
//! an F16 of the block.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | Q2_K | 16 bytes, scale and min of a group in a nibble each; 64 bytes of codes; `d`, `dmin` | `(d·s)·q - dmin·m` |
//! | Q3_K | 32 bytes of third bits; 64 bytes of low bits; 12 bytes of scales; `d` | `(d·(s - 32))·(q - 4)` |
//! | Q4_K | `d`, `dmin`; 12 bytes of scales and mins; 128 bytes of nibbles | `(d·s)·q - dmin·m` |
//! | Q5_K | `d`, `dmin`; 12 bytes of scales and mins; 32 bytes of fifth bits; 128 bytes of nibbles | `(d·s)·q - dmin·m` |
//! | Q6_K | 128 bytes of nibbles; 64 bytes of upper bits; 16 scales, i8; `d` | `(d·s)·(q - 32)` |
//!
//! Groups are of 16 values in Q2_K, Q3_K and Q6_K, of 32 in Q4_K and Q5_K. Where codes of several groups
//! share a byte, 32 bytes stand side by side: those of Q2_K and Q3_K hold values `l`, `32 + l`, `64 + l`
//! and `96 + l` of a half, from the lowest bits up. Products of scales are exact in F32; the rest rounds,
//! so the order of operations is part of the format here.
//!
//! Source: `dequantize_row_q2_K` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use super::{FormatRow, each_block, f16_at};

const BLOCK: usize = 256;

pub const Q2_K: FormatRow = FormatRow::read_only(
    "q2_k",
    10,
    (BLOCK, 84),
    |b| f16_at(b, 80).is_finite() && f16_at(b, 82).is_finite(),
    |b, to| each_block(b, to, q2_k),
);

pub const Q3_K: FormatRow =
    FormatRow::read_only("q3_k", 11, (BLOCK, 110), |b| f16_at(b, 108).is_finite(), |b, to| each_block(b, to, q3_k));

pub const Q4_K: FormatRow = FormatRow::read_only(
    "q4_k",
    12,
    (BLOCK, 144),
    |b| f16_at(b, 0).is_finite() && f16_at(b, 2).is_finite(),
    |b, to| each_block(b, to, q4_k),
);

pub const Q5_K: FormatRow = FormatRow::read_only(
    "q5_k",
    13,
    (BLOCK, 176),
    |b| f16_at(b, 0).is_finite() && f16_at(b, 2).is_finite(),
    |b, to| each_block(b, to, q5_k),
);

pub const Q6_K: FormatRow =
    FormatRow::read_only("q6_k", 14, (BLOCK, 210), |b| f16_at(b, 208).is_finite(), |b, to| each_block(b, to, q6_k));

/// Of a group of sixteen: where its bytes begin, and by how much its two bits are shifted there.
fn two_bits(group: usize) -> (usize, usize) {
    let (half, rest) = (group / 8, group % 8);
    (32 * half + 16 * (rest % 2), 2 * (rest / 2))
}

fn q2_k(block: &[u8; 84], to: &mut [f32; BLOCK]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for ((group, to), scale) in to.chunks_exact_mut(16).enumerate().zip(scales) {
        let (scale, min) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let (first, shift) = two_bits(group);
        for (x, code) in to.iter_mut().zip(&codes[first..]) {
            *x = scale * f32::from(code >> shift & 3) - min;
        }
    }
}

fn q3_k(block: &[u8; 110], to: &mut [f32; BLOCK]) {
    let (thirds, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (group, to) in to.chunks_exact_mut(16).enumerate() {
        // Four low bits in eight bytes, two groups a byte; two upper bits in four bytes, four groups a byte.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (first, shift) = two_bits(group);
        let thirds = &thirds[first % 32..];
        for ((x, code), third) in to.iter_mut().zip(&codes[first..]).zip(thirds) {
            let third = third >> (group / 2) & 1;
            *x = scale * (f32::from(code >> shift & 3 | third << 2) - 4.0);
        }
    }
}

/// Scale and min of a group, of six bits each. Those of the first four groups stand in the low bits of
/// eight bytes; of the others the low bits in the last four, the upper ones above the first.
fn scale_and_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let low = scales[group + 4];
        (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144], to: &mut [f32; BLOCK]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, codes) = (&block[4..16], &block[16..]);
    for (group, to) in to.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, dmin * min);
        for (x, code) in to.iter_mut().zip(&codes[group / 2 * 32..]) {
            *x = scale * f32::from(code >> (group % 2 * 4) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8; 176], to: &mut [f32; BLOCK]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, fifths, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, to) in to.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, dmin * min);
        for ((x, code), fifth) in to.iter_mut().zip(&codes[group / 2 * 32..]).zip(fifths) {
            let code = code >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
            *x = scale * f32::from(code) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], to: &mut [f32; BLOCK]) {
    let (codes, uppers, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for ((group, to), scale) in to.chunks_exact_mut(16).enumerate().zip(scales) {
        let scale = d * f32::from(scale.cast_signed());
        // A half has 64 bytes of nibbles: of values 0 to 63 low, of 64 to 127 high; and 32 of upper bits.
        let (half, rest) = (group / 8, group % 8);
        let codes = &codes[64 * half + 16 * (rest % 4)..];
        let uppers = &uppers[32 * half + 16 * (rest % 2)..];
        for ((x, code), upper) in to.iter_mut().zip(codes).zip(uppers) {
            let code = code >> (rest / 4 * 4) & 15 | (upper >> (rest / 2 * 2) & 3) << 4;
            *x = scale * (f32::from(code) - 32.0);
        }
    }
}
