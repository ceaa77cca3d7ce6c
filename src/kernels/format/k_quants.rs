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
//! and `96 + l` of a half, from the lowest bits up. Products are exact in F32, the difference is rounded.
//!
//! Source: `dequantize_row_q2_K` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::quantise::{TwoLevels, TwoLevelsAndMin, quantise};
use super::{FormatRow, f16_at, finite_at, pack_nibbles, put_f16};

const BLOCK: usize = 256;

pub const Q2_K: FormatRow = FormatRow::quantised(
    "q2_k",
    10,
    (BLOCK, 84),
    |b| finite_at(b, 80) && finite_at(b, 82),
    Coding::new(2, Levels::Unsigned, Scales::TwoLevelsAndMinInByte, 16),
    q2_k,
);

pub const Q3_K: FormatRow = FormatRow::quantised(
    "q3_k",
    11,
    (BLOCK, 110),
    |b| finite_at(b, 108),
    Coding::new(3, Levels::Signed, Scales::TwoLevels, 16),
    q3_k,
);

pub const Q4_K: FormatRow = FormatRow::quantised(
    "q4_k",
    12,
    (BLOCK, 144),
    |b| finite_at(b, 0) && finite_at(b, 2),
    Coding::new(4, Levels::Unsigned, Scales::TwoLevelsAndMin, 32),
    q4_k,
)
.made_by(quantise::<TwoLevelsAndMin<4>>)
.packed_by(pack_q4_k);

pub const Q5_K: FormatRow = FormatRow::quantised(
    "q5_k",
    13,
    (BLOCK, 176),
    |b| finite_at(b, 0) && finite_at(b, 2),
    Coding::new(5, Levels::Unsigned, Scales::TwoLevelsAndMin, 32),
    q5_k,
)
.made_by(quantise::<TwoLevelsAndMin<5>>)
.packed_by(pack_q5_k);

pub const Q6_K: FormatRow = FormatRow::quantised(
    "q6_k",
    14,
    (BLOCK, 210),
    |b| finite_at(b, 208),
    Coding::new(6, Levels::Signed, Scales::TwoLevels, 16),
    q6_k,
)
.made_by(quantise::<TwoLevels>)
.packed_by(pack_q6_k);

/// Of a group of sixteen: where its bytes begin, and by how much its two bits are shifted there.
fn two_bits(group: usize) -> (usize, usize) {
    let (half, rest) = (group / 8, group % 8);
    (32 * half + 16 * (rest % 2), 2 * (rest / 2))
}

fn q2_k(block: &[u8], to: &mut CodedBlock) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    (to.d, to.dmin) = (f16_at(block, 80), f16_at(block, 82));
    for ((group, to_codes), scale) in to.codes.chunks_exact_mut(16).enumerate().zip(scales) {
        (to.scales[group], to.mins[group]) = (u16::from(scale & 15), u16::from(scale >> 4));
        let (first, shift) = two_bits(group);
        to_codes.iter_mut().zip(&codes[first..]).for_each(|(to, code)| *to = code >> shift & 3);
    }
}

fn q3_k(block: &[u8], to: &mut CodedBlock) {
    let (thirds, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    to.d = f16_at(block, 108);
    for (group, to_codes) in to.codes.chunks_exact_mut(16).enumerate() {
        // Four low bits in eight bytes, two groups a byte; two upper bits in four bytes, four groups a byte.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        to.scales[group] = (low | high << 4).wrapping_sub(32).into();
        let (first, shift) = two_bits(group);
        let thirds = &thirds[first % 32..];
        for ((to, code), third) in to_codes.iter_mut().zip(&codes[first..]).zip(thirds) {
            *to = code >> shift & 3 | (third >> (group / 2) & 1) << 2;
        }
    }
}

/// Scale and min of a group, of six bits each. Those of the first four groups stand in the low bits of
/// eight bytes; of the others the low bits in the last four, the upper ones above the first.
fn scale_and_min(scales: &[u8], group: usize) -> (u16, u16) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let low = scales[group + 4];
        (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
    };
    (scale.into(), min.into())
}

fn q4_k(block: &[u8], to: &mut CodedBlock) {
    (to.d, to.dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, codes) = (&block[4..16], &block[16..144]);
    for (group, to_codes) in to.codes.chunks_exact_mut(32).enumerate() {
        (to.scales[group], to.mins[group]) = scale_and_min(scales, group);
        let codes = &codes[group / 2 * 32..];
        to_codes.iter_mut().zip(codes).for_each(|(to, code)| *to = code >> (group % 2 * 4) & 15);
    }
}

fn q5_k(block: &[u8], to: &mut CodedBlock) {
    (to.d, to.dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, fifths, codes) = (&block[4..16], &block[16..48], &block[48..176]);
    for (group, to_codes) in to.codes.chunks_exact_mut(32).enumerate() {
        (to.scales[group], to.mins[group]) = scale_and_min(scales, group);
        for ((to, code), fifth) in to_codes.iter_mut().zip(&codes[group / 2 * 32..]).zip(fifths) {
            *to = code >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
        }
    }
}

fn q6_k(block: &[u8], to: &mut CodedBlock) {
    let (codes, uppers, scales) = (&block[..128], &block[128..192], &block[192..208]);
    to.d = f16_at(block, 208);
    for ((group, to_codes), scale) in to.codes.chunks_exact_mut(16).enumerate().zip(scales) {
        to.scales[group] = (*scale).into();
        // A half has 64 bytes of nibbles: of values 0 to 63 low, of 64 to 127 high; and 32 of upper bits.
        let (half, rest) = (group / 8, group % 8);
        let codes = &codes[64 * half + 16 * (rest % 4)..];
        let uppers = &uppers[32 * half + 16 * (rest % 2)..];
        for ((to, code), upper) in to_codes.iter_mut().zip(codes).zip(uppers) {
            *to = code >> (rest / 4 * 4) & 15 | (upper >> (rest / 2 * 2) & 3) << 4;
        }
    }
}

/// The reverse of [`scale_and_min`], of all groups.
fn pack_scales_and_mins(coded: &CodedBlock, to: &mut [u8]) {
    for group in 0..4 {
        let (scale, min) = (coded.scales[group] as u8, coded.mins[group] as u8);
        let (late_scale, late_min) = (coded.scales[group + 4] as u8, coded.mins[group + 4] as u8);
        to[group] = scale & 63 | late_scale >> 4 << 6;
        to[group + 4] = min & 63 | late_min >> 4 << 6;
        to[group + 8] = late_scale & 15 | late_min << 4;
    }
}

/// Low nibbles of two groups of 32 side by side in 32 bytes.
fn pack_low_bits(codes: &[u8], to: &mut [u8]) {
    for (codes, to) in codes.chunks_exact(64).zip(to.chunks_exact_mut(32)) {
        pack_nibbles(codes, to);
    }
}

fn pack_q4_k(coded: &CodedBlock, to: &mut [u8]) {
    put_f16(to, 0, coded.d);
    put_f16(to, 2, coded.dmin);
    pack_scales_and_mins(coded, &mut to[4..16]);
    pack_low_bits(&coded.codes, &mut to[16..144]);
}

fn pack_q5_k(coded: &CodedBlock, to: &mut [u8]) {
    put_f16(to, 0, coded.d);
    put_f16(to, 2, coded.dmin);
    pack_scales_and_mins(coded, &mut to[4..16]);
    for (j, fifths) in to[16..48].iter_mut().enumerate() {
        *fifths = (0..8).fold(0, |bits, group| bits | (coded.codes[32 * group + j] >> 4 & 1) << group);
    }
    pack_low_bits(&coded.codes, &mut to[48..176]);
}

fn pack_q6_k(coded: &CodedBlock, to: &mut [u8]) {
    put_f16(to, 208, coded.d);
    for (to, scale) in to[192..208].iter_mut().zip(coded.scales) {
        *to = scale as u8;
    }
    for (half, codes) in coded.codes.chunks_exact(128).enumerate() {
        pack_nibbles(codes, &mut to[64 * half..][..64]);
        for (j, upper) in to[128 + 32 * half..][..32].iter_mut().enumerate() {
            *upper = (0..4).fold(0, |bits, quarter| bits | (codes[32 * quarter + j] >> 4 & 3) << (2 * quarter));
        }
    }
}
