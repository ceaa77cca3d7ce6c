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
//! Source: `dequantize_row_iq4_nl` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

mod grids;

use half::f16;

use super::{FormatRow, array_at, each_block, f16_at, nibbles};
use grids::Grid;

const BLOCK: usize = 256;

pub const IQ4_NL: FormatRow =
    FormatRow::read_only("iq4_nl", 20, (32, 18), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq4_nl));

pub const IQ4_XS: FormatRow =
    FormatRow::read_only("iq4_xs", 23, (BLOCK, 136), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq4_xs));

pub const IQ3_XXS: FormatRow =
    FormatRow::read_only("iq3_xxs", 18, (BLOCK, 98), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq3_xxs));

pub const IQ3_S: FormatRow =
    FormatRow::read_only("iq3_s", 21, (BLOCK, 110), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq3_s));

pub const IQ2_XXS: FormatRow =
    FormatRow::read_only("iq2_xxs", 16, (BLOCK, 66), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq2_xxs));

pub const IQ2_XS: FormatRow =
    FormatRow::read_only("iq2_xs", 17, (BLOCK, 74), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq2_xs));

pub const IQ2_S: FormatRow =
    FormatRow::read_only("iq2_s", 22, (BLOCK, 82), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq2_s));

pub const IQ1_S: FormatRow =
    FormatRow::read_only("iq1_s", 19, (BLOCK, 50), |b| f16_at(b, 0).is_finite(), |b, to| each_block(b, to, iq1_s));

pub const IQ1_M: FormatRow =
    FormatRow::read_only("iq1_m", 29, (BLOCK, 56), |b| iq1_m_scale(b).is_finite(), |b, to| each_block(b, to, iq1_m));

/// Levels that are denser around zero.
const IQ4: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

fn iq4_nl(block: &[u8; 18], to: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..], to, |q| d * IQ4[usize::from(q)]);
}

fn iq4_xs(block: &[u8; 136], to: &mut [f32; BLOCK]) {
    let (d, high) = (f16_at(block, 0), u16_at(block, 2));
    let (low, codes) = (&block[4..8], &block[8..]);
    for ((i, to), codes) in to.chunks_exact_mut(32).enumerate().zip(codes.chunks_exact(16)) {
        let scale = u16::from(low[i / 2] >> (i % 2 * 4) & 15) | (high >> (2 * i) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        nibbles(codes, to, |q| scale * IQ4[usize::from(q)]);
    }
}

fn iq3_xxs(block: &[u8; 98], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    let (indices, signs) = (&block[2..66], &block[66..]);
    for ((i, to), indices) in to.chunks_exact_mut(32).enumerate().zip(indices.chunks_exact(8)) {
        let signs = u32::from_le_bytes(array_at(signs, 4 * i));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for ((l, to), pair) in to.chunks_exact_mut(8).enumerate().zip(indices.chunks_exact(2)) {
            let signs = eight_signs(signs >> (7 * l));
            point(&mut to[..4], scale, &grids::IQ3_XXS, pair[0].into(), signs);
            point(&mut to[4..], scale, &grids::IQ3_XXS, pair[1].into(), signs >> 4);
        }
    }
}

fn iq3_s(block: &[u8; 110], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    let (indices, ninths, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for ((i, to), indices) in to.chunks_exact_mut(32).enumerate().zip(indices.chunks_exact(8)) {
        let scale = d * (1.0 + 2.0 * f32::from(scales[i / 2] >> (i % 2 * 4) & 15));
        for (j, to) in to.chunks_exact_mut(4).enumerate() {
            let index = u16::from(indices[j]) | u16::from(ninths[i] >> j & 1) << 8;
            point(to, scale, &grids::IQ3_S, index, signs[4 * i + j / 2] >> (j % 2 * 4));
        }
    }
}

fn iq2_xxs(block: &[u8; 66], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    for (to, part) in to.chunks_exact_mut(32).zip(block[2..].chunks_exact(8)) {
        let signs = u32::from_le_bytes(array_at(part, 4));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (l, to) in to.chunks_exact_mut(8).enumerate() {
            point(to, scale, &grids::IQ2_XXS, part[l].into(), eight_signs(signs >> (7 * l)));
        }
    }
}

fn iq2_xs(block: &[u8; 74], to: &mut [f32; BLOCK]) {
    let (d, scales) = (f16_at(block, 0), &block[66..]);
    for (i, to) in to.chunks_exact_mut(8).enumerate() {
        let code = u16_at(block, 2 + 2 * i);
        point(to, iq2_scale(d, scales, i), &grids::IQ2_XS, code & 511, eight_signs(u32::from(code >> 9)));
    }
}

fn iq2_s(block: &[u8; 82], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    let (indices, signs, uppers, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (i, to) in to.chunks_exact_mut(8).enumerate() {
        let upper = uppers[i / 4] >> (i % 4 * 2) & 3;
        let index = u16::from(indices[i]) | u16::from(upper) << 8;
        point(to, iq2_scale(d, scales, i), &grids::IQ2_S, index, signs[i]);
    }
}

/// The scale of a run of eight values; two runs share four bits.
fn iq2_scale(d: f32, scales: &[u8], run: usize) -> f32 {
    d * (0.5 + f32::from(scales[run / 4] >> (run % 4 / 2 * 4) & 15)) * 0.25
}

fn iq1_s(block: &[u8; 50], to: &mut [f32; BLOCK]) {
    let d = f16_at(block, 0);
    for (i, to) in to.chunks_exact_mut(32).enumerate() {
        let bits = u16_at(block, 34 + 2 * i);
        let scale = d * f32::from(2 * (bits >> 12 & 7) + 1);
        for (l, to) in to.chunks_exact_mut(8).enumerate() {
            let index = u16::from(block[2 + 4 * i + l]) | (bits >> (3 * l) & 7) << 8;
            shifted(to, scale, index, bits >> 15 == 1);
        }
    }
}

fn iq1_m(block: &[u8; 56], to: &mut [f32; BLOCK]) {
    let d = iq1_m_scale(block);
    let (indices, uppers) = (&block[..32], &block[32..48]);
    for (i, to) in to.chunks_exact_mut(8).enumerate() {
        // A scale is of two runs; four make a u16, a byte of upper bits is of two.
        let scale = u16_at(block, 48 + i / 8 * 2) >> (i / 2 % 4 * 3) & 7;
        let upper = uppers[i / 2] >> (i % 2 * 4);
        let index = u16::from(indices[i]) | u16::from(upper & 7) << 8;
        shifted(to, d * f32::from(2 * scale + 1), index, upper & 8 != 0);
    }
}

/// The upper four bits of each u16 of scales, the lowest first.
fn iq1_m_scale(block: &[u8]) -> f32 {
    let bits = (0..4).fold(0, |bits, i| bits | u16_at(block, 48 + 2 * i) >> 12 << (4 * i));
    f16::from_bits(bits).to_f32()
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(block, at))
}

/// Signs of eight values, of which seven bits are stored.
fn eight_signs(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// A point of eight or four levels, with a sign each.
fn point<const N: usize, const BITS: usize>(to: &mut [f32], scale: f32, grid: &Grid<N, BITS>, index: u16, signs: u8) {
    for ((i, x), level) in to.iter_mut().enumerate().zip(grid.point(index)) {
        let value = scale * level;
        *x = if signs >> i & 1 == 1 { -value } else { value };
    }
}

/// A point of eight levels, moved up or down by an eighth.
fn shifted(to: &mut [f32], scale: f32, index: u16, down: bool) {
    let delta = if down { -0.125 } else { 0.125 };
    for (x, level) in to.iter_mut().zip(grids::IQ1.point(index)) {
        *x = scale * (level + delta);
    }
}
