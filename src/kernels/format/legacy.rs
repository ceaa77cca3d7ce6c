//! ggml's first formats: 32 neighbours share a scale, and in some a smallest value.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | Q4_0 | `d`, 16 bytes of nibbles | `(q - 8) · d` |
//! | Q4_1 | `d`, `m`, 16 bytes of nibbles | `q · d + m` |
//! | Q5_0 | `d`, a u32 of fifth bits, 16 bytes of nibbles | `(q - 16) · d` |
//! | Q5_1 | `d`, `m`, a u32 of fifth bits, 16 bytes of nibbles | `q · d + m` |
//! | Q8_0 | `d`, 32 signed bytes | `q · d` |
//!
//! `d` and `m` are F16. Byte j holds value j in its low nibble and value j + 16 in its high one; bit j of
//! the u32 is the fifth of value j. `q · d` is exact in F32, a sum is rounded once.
//!
//! Source: `dequantize_row_q4_0` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::quantise::{Bytes, Direct, DirectAndMin, quantise};
use super::{FormatRow, array_at, finite_at, nibbles, pack_nibbles, put_u16, u16_at};

const BLOCK: usize = 32;

pub const Q4_0: FormatRow =
    FormatRow::quantised("q4_0", 2, (BLOCK, 18), |b| finite_at(b, 0), Coding::new(4, Levels::Signed, Scales::F16, BLOCK), q4_0)
        .of_several()
        .made_by(quantise::<Direct<4>>)
        .packed_by(pack_q4_0);

pub const Q4_1: FormatRow = FormatRow::quantised(
    "q4_1",
    3,
    (BLOCK, 20),
    |b| finite_at(b, 0) && finite_at(b, 2),
    Coding::new(4, Levels::Unsigned, Scales::F16AndMin, BLOCK),
    q4_1,
)
.of_several();

pub const Q5_0: FormatRow =
    FormatRow::quantised("q5_0", 6, (BLOCK, 22), |b| finite_at(b, 0), Coding::new(5, Levels::Signed, Scales::F16, BLOCK), q5_0)
        .of_several()
        .made_by(quantise::<Direct<5>>)
        .packed_by(pack_q5_0);

pub const Q5_1: FormatRow = FormatRow::quantised(
    "q5_1",
    7,
    (BLOCK, 24),
    |b| finite_at(b, 0) && finite_at(b, 2),
    Coding::new(5, Levels::Unsigned, Scales::F16AndMin, BLOCK),
    q5_1,
)
.of_several()
.made_by(quantise::<DirectAndMin<5>>)
.packed_by(pack_q5_1);

/// In memory a row's last block may be shorter, in a file it may not.
pub const Q8_0: FormatRow =
    FormatRow::quantised("q8_0", 8, (BLOCK, 34), |b| finite_at(b, 0), Coding::new(8, Levels::Signed, Scales::F16, BLOCK), q8_0)
        .of_several()
        .made_by(quantise::<Bytes>)
        .packed_by(pack_q8_0);

/// Takes blocks of `BYTES` bytes apart, as many as there is room for. `unpack` writes the codes of one and returns scale and min.
fn several<const BYTES: usize>(
    blocks: &[u8],
    to: &mut CodedBlock,
    unpack: impl Fn(&[u8; BYTES], &mut [u8; BLOCK]) -> (u16, u16),
) {
    let scales = to.scales.iter_mut().zip(&mut to.mins);
    for ((block, codes), (scale, min)) in blocks.as_chunks().0.iter().zip(to.codes.as_chunks_mut().0).zip(scales) {
        (*scale, *min) = unpack(block, codes);
    }
}

fn q4_0(blocks: &[u8], to: &mut CodedBlock) {
    several::<18>(blocks, to, |block, codes| {
        nibbles(&block[2..], codes);
        (u16_at(block, 0), 0)
    });
}

fn q4_1(blocks: &[u8], to: &mut CodedBlock) {
    several::<20>(blocks, to, |block, codes| {
        nibbles(&block[4..], codes);
        (u16_at(block, 0), u16_at(block, 2))
    });
}

fn q5_0(blocks: &[u8], to: &mut CodedBlock) {
    several::<22>(blocks, to, |block, codes| {
        five_bits(&block[6..], u32::from_le_bytes(array_at(block, 2)), codes);
        (u16_at(block, 0), 0)
    });
}

fn q5_1(blocks: &[u8], to: &mut CodedBlock) {
    several::<24>(blocks, to, |block, codes| {
        five_bits(&block[8..], u32::from_le_bytes(array_at(block, 4)), codes);
        (u16_at(block, 0), u16_at(block, 2))
    });
}

fn q8_0(blocks: &[u8], to: &mut CodedBlock) {
    several::<34>(blocks, to, |block, codes| {
        codes.iter_mut().zip(&block[2..]).for_each(|(code, q)| *code = q ^ 0x80);
        (u16_at(block, 0), 0)
    });
}

fn five_bits(bytes: &[u8], fifth: u32, to: &mut [u8; BLOCK]) {
    nibbles(bytes, to);
    to.iter_mut().enumerate().for_each(|(j, code)| *code |= ((fifth >> j & 1) as u8) << 4);
}

fn pack_q4_0(coded: &CodedBlock, to: &mut [u8]) {
    put_u16(to, 0, coded.scales[0]);
    pack_nibbles(&coded.codes[..BLOCK], &mut to[2..18]);
}

fn pack_q5_0(coded: &CodedBlock, to: &mut [u8]) {
    put_u16(to, 0, coded.scales[0]);
    pack_five_bits(&coded.codes[..BLOCK], &mut to[2..22]);
}

fn pack_q5_1(coded: &CodedBlock, to: &mut [u8]) {
    put_u16(to, 0, coded.scales[0]);
    put_u16(to, 2, coded.mins[0]);
    pack_five_bits(&coded.codes[..BLOCK], &mut to[4..24]);
}

fn pack_q8_0(coded: &CodedBlock, to: &mut [u8]) {
    put_u16(to, 0, coded.scales[0]);
    to[2..34].iter_mut().zip(&coded.codes).for_each(|(q, code)| *q = code ^ 0x80);
}

/// Fifth bits, then nibbles.
fn pack_five_bits(codes: &[u8], to: &mut [u8]) {
    let fifth = codes.iter().enumerate().fold(0u32, |bits, (j, code)| bits | u32::from(code >> 4 & 1) << j);
    to[..4].copy_from_slice(&fifth.to_le_bytes());
    pack_nibbles(codes, &mut to[4..]);
}
