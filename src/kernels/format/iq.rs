//! ggml's I-quants: codes that look values up in a table, and indices that look several values up in a grid.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | IQ4_NL | 32 values: `d`, 16 bytes of nibbles | `d·t[q]` |
//! | IQ4_XS | 256 values: `d`, a u16 of upper bits and 4 bytes of low bits of 8 scales, 128 bytes of nibbles | `(d·(s - 32))·t[q]` |
//! | IQ3_XXS | `d`, 64 indices, 8 u32 of four times 7 bits of signs and 4 bits of scale | `(d·(½ + s)·½)·g` |
//! | IQ3_S | `d`, 64 bytes and 8 bytes of ninth bits of indices, 32 bytes of signs, 4 bytes of scales | `(d·(1 + 2s))·g` |
//! | IQ2_XXS | `d`, 8 times: 4 indices, a u32 as above | `(d·(½ + s)·¼)·g` |
//! | IQ2_XS | `d`, 32 u16 of 9 bits of index and 7 of signs, 8 bytes of scales | `(d·(½ + s)·¼)·g` |
//! | IQ2_S | `d`, 32 bytes of indices, 32 of signs, 8 of upper bits of indices, 8 of scales | `(d·(½ + s)·¼)·g` |
//! | IQ1_S | `d`, 32 bytes of indices, 8 u16: four times 3 upper bits, a scale of 3, a sign | `(d·(2s + 1))·(g ± ⅛)` |
//! | IQ1_M | 32 bytes of indices, 16 of upper bits and signs, 4 u16: four scales of 3 bits, and 4 bits of `d` | as IQ1_S |
//!
//! `d` is F16, and blocks are of 256 values where not said otherwise. An index looks up eight values in IQ1
//! and IQ2, four in IQ3. A scale is of 32 values in IQ2_XXS, IQ3 and IQ1_S, of 16 in the others. Where
//! seven of eight signs are stored, an even number of the eight is negative.
//!
//! A code here is the number of a level among those of the grid, and above it the sign, or whether an eighth is
//! taken away. So grids are needed while a file is read only: three or four bits a value then hold what they say.
//! Scales are odd numbers, and what is left of the factor is a power of two in `d`, where it costs no bit.
//!
//! Source: `dequantize_row_iq4_nl` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

mod grids;

use half::f16;

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::quantise::{OfIq4, quantise};
use super::{FormatRow, array_at, f16_at, finite_at, nibbles, pack_nibbles, put_u16, u16_at};
use grids::Grid;

const BLOCK: usize = 256;

pub const IQ4_NL: FormatRow = FormatRow::quantised(
    "iq4_nl",
    20,
    (32, 18),
    |b| finite_at(b, 0),
    Coding::new(4, Levels::Table(&IQ4), Scales::F16, 32),
    iq4_nl,
)
.made_by(quantise::<OfIq4>)
.packed_by(pack_iq4_nl);

pub const IQ4_XS: FormatRow = FormatRow::quantised(
    "iq4_xs",
    23,
    (BLOCK, 136),
    |b| finite_at(b, 0),
    Coding::new(4, Levels::Table(&IQ4), Scales::TwoLevels, 32),
    iq4_xs,
);

pub const IQ3_XXS: FormatRow = FormatRow::quantised(
    "iq3_xxs",
    18,
    (BLOCK, 98),
    |b| finite_at(b, 0),
    Coding::new(4, Levels::Table(&IQ3_XXS_LEVELS), Scales::TwoLevels, 32),
    iq3_xxs,
);

pub const IQ3_S: FormatRow = FormatRow::quantised(
    "iq3_s",
    21,
    (BLOCK, 110),
    |b| finite_at(b, 0),
    Coding::new(4, Levels::Table(&IQ3_S_LEVELS), Scales::TwoLevels, 32),
    iq3_s,
);

pub const IQ2_XXS: FormatRow = FormatRow::quantised(
    "iq2_xxs",
    16,
    (BLOCK, 66),
    |b| finite_at(b, 0),
    Coding::new(3, Levels::Table(&IQ2_LEVELS), Scales::TwoLevels, 32),
    iq2_xxs,
);

pub const IQ2_XS: FormatRow = FormatRow::quantised(
    "iq2_xs",
    17,
    (BLOCK, 74),
    |b| finite_at(b, 0),
    Coding::new(3, Levels::Table(&IQ2_LEVELS), Scales::TwoLevels, 16),
    iq2_xs,
);

pub const IQ2_S: FormatRow = FormatRow::quantised(
    "iq2_s",
    22,
    (BLOCK, 82),
    |b| finite_at(b, 0),
    Coding::new(3, Levels::Table(&IQ2_LEVELS), Scales::TwoLevels, 16),
    iq2_s,
);

pub const IQ1_S: FormatRow = FormatRow::quantised(
    "iq1_s",
    19,
    (BLOCK, 50),
    |b| finite_at(b, 0),
    Coding::new(3, Levels::Table(&IQ1_LEVELS), Scales::TwoLevels, 32),
    iq1_s,
);

pub const IQ1_M: FormatRow = FormatRow::quantised(
    "iq1_m",
    29,
    (BLOCK, 56),
    |b| iq1_m_scale(b).is_finite(),
    Coding::new(3, Levels::Table(&IQ1_LEVELS), Scales::TwoLevels, 16),
    iq1_m,
);

/// Levels that are denser around zero.
pub(super) const IQ4: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
const IQ3_XXS_LEVELS: [f32; 16] = [4., 12., 20., 28., 36., 44., 52., 62., -4., -12., -20., -28., -36., -44., -52., -62.];
const IQ3_S_LEVELS: [f32; 16] = [1., 3., 5., 7., 9., 11., 13., 15., -1., -3., -5., -7., -9., -11., -13., -15.];
/// No code is 3 or 7.
const IQ2_LEVELS: [f32; 8] = [8., 25., 43., 0., -8., -25., -43., 0.];
/// -1, 0 and 1 plus an eighth, and less it.
const IQ1_LEVELS: [f32; 8] = [-0.875, 0.125, 1.125, 0., -1.125, -0.125, 0.875, 0.];

fn iq4_nl(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 0);
    nibbles(&block[2..18], &mut to.codes[..32]);
}

fn pack_iq4_nl(coded: &CodedBlock, to: &mut [u8]) {
    put_u16(to, 0, coded.scales[0]);
    pack_nibbles(&coded.codes[..32], &mut to[2..18]);
}

fn iq4_xs(block: &[u8], to: &mut CodedBlock) {
    let high = u16_at(block, 2);
    let (low, codes) = (&block[4..8], &block[8..]);
    to.d = f16_at(block, 0);
    for ((i, to_codes), codes) in to.codes.chunks_exact_mut(32).enumerate().zip(codes.chunks_exact(16)) {
        let scale = low[i / 2] >> (i % 2 * 4) & 15 | ((high >> (2 * i) & 3) as u8) << 4;
        to.scales[i] = scale.wrapping_sub(32).into();
        nibbles(codes, to_codes);
    }
}

fn iq3_xxs(block: &[u8], to: &mut CodedBlock) {
    let (indices, signs) = (&block[2..66], &block[66..98]);
    to.d = f16_at(block, 0) * 0.25;
    for ((i, to_codes), indices) in to.codes.chunks_exact_mut(32).enumerate().zip(indices.chunks_exact(8)) {
        let signs = u32::from_le_bytes(array_at(signs, 4 * i));
        to.scales[i] = odd((signs >> 28) as u8);
        for ((l, to), pair) in to_codes.chunks_exact_mut(8).enumerate().zip(indices.chunks_exact(2)) {
            let signs = eight_signs(signs >> (7 * l));
            point(&mut to[..4], &grids::IQ3_XXS, pair[0].into(), signs);
            point(&mut to[4..], &grids::IQ3_XXS, pair[1].into(), signs >> 4);
        }
    }
}

fn iq3_s(block: &[u8], to: &mut CodedBlock) {
    let (indices, ninths, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    to.d = f16_at(block, 0);
    for ((i, to_codes), indices) in to.codes.chunks_exact_mut(32).enumerate().zip(indices.chunks_exact(8)) {
        to.scales[i] = odd(scales[i / 2] >> (i % 2 * 4) & 15);
        for (j, to) in to_codes.chunks_exact_mut(4).enumerate() {
            let index = u16::from(indices[j]) | u16::from(ninths[i] >> j & 1) << 8;
            point(to, &grids::IQ3_S, index, signs[4 * i + j / 2] >> (j % 2 * 4));
        }
    }
}

fn iq2_xxs(block: &[u8], to: &mut CodedBlock) {
    to.d = f16_at(block, 0) * 0.125;
    for ((i, to_codes), part) in to.codes.chunks_exact_mut(32).enumerate().zip(block[2..].chunks_exact(8)) {
        let signs = u32::from_le_bytes(array_at(part, 4));
        to.scales[i] = odd((signs >> 28) as u8);
        for (l, to) in to_codes.chunks_exact_mut(8).enumerate() {
            point(to, &grids::IQ2_XXS, part[l].into(), eight_signs(signs >> (7 * l)));
        }
    }
}

fn iq2_xs(block: &[u8], to: &mut CodedBlock) {
    iq2_scales(block, &block[66..], to);
    for (i, to) in to.codes.chunks_exact_mut(8).enumerate() {
        let code = u16_at(block, 2 + 2 * i);
        point(to, &grids::IQ2_XS, code & 511, eight_signs(u32::from(code >> 9)));
    }
}

fn iq2_s(block: &[u8], to: &mut CodedBlock) {
    let (indices, signs, uppers) = (&block[2..34], &block[34..66], &block[66..74]);
    iq2_scales(block, &block[74..], to);
    for (i, to) in to.codes.chunks_exact_mut(8).enumerate() {
        let upper = uppers[i / 4] >> (i % 4 * 2) & 3;
        let index = u16::from(indices[i]) | u16::from(upper) << 8;
        point(to, &grids::IQ2_S, index, signs[i]);
    }
}

/// Scales of four bits each, for sixteen values.
fn iq2_scales(block: &[u8], scales: &[u8], to: &mut CodedBlock) {
    to.d = f16_at(block, 0) * 0.125;
    to.scales.iter_mut().enumerate().for_each(|(i, to)| *to = odd(scales[i / 2] >> (i % 2 * 4) & 15));
}

fn iq1_s(block: &[u8], to: &mut CodedBlock) {
    to.d = f16_at(block, 0);
    for (i, to_codes) in to.codes.chunks_exact_mut(32).enumerate() {
        let bits = u16_at(block, 34 + 2 * i);
        to.scales[i] = odd((bits >> 12 & 7) as u8);
        for (l, to) in to_codes.chunks_exact_mut(8).enumerate() {
            let index = u16::from(block[2 + 4 * i + l]) | (bits >> (3 * l) & 7) << 8;
            shifted(to, index, bits >> 15 == 1);
        }
    }
}

fn iq1_m(block: &[u8], to: &mut CodedBlock) {
    let (indices, uppers) = (&block[..32], &block[32..48]);
    to.d = iq1_m_scale(block);
    for (i, to_codes) in to.codes.chunks_exact_mut(16).enumerate() {
        // Four scales make a u16, and a byte of upper bits is of two runs.
        to.scales[i] = odd((u16_at(block, 48 + i / 4 * 2) >> (i % 4 * 3) & 7) as u8);
        for (l, to) in to_codes.chunks_exact_mut(8).enumerate() {
            let upper = uppers[i] >> (4 * l);
            let index = u16::from(indices[2 * i + l]) | u16::from(upper & 7) << 8;
            shifted(to, index, upper & 8 != 0);
        }
    }
}

/// The upper four bits of each u16 of scales, the lowest first.
fn iq1_m_scale(block: &[u8]) -> f32 {
    let bits = (0..4).fold(0, |bits, i| bits | u16_at(block, 48 + 2 * i) >> 12 << (4 * i));
    f16::from_bits(bits).to_f32()
}

/// Twice a half more.
fn odd(scale: u8) -> u16 {
    2 * u16::from(scale) + 1
}

/// Signs of eight values, of which seven bits are stored.
fn eight_signs(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// A point of eight or four levels, with a sign each.
fn point<const N: usize, const BITS: usize>(to: &mut [u8], grid: &Grid<N, BITS>, index: u16, signs: u8) {
    for ((i, code), level) in to.iter_mut().enumerate().zip(grid.point(index)) {
        *code = level | (signs >> i & 1) << BITS;
    }
}

/// A point of eight levels, moved up or down by an eighth.
fn shifted(to: &mut [u8], index: u16, down: bool) {
    to.iter_mut().zip(grids::IQ1.point(index)).for_each(|(code, level)| *code = level | u8::from(down) << 2);
}
