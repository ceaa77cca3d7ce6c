//! Formats of one, two and three values: a scale, and next to nothing a weight.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | TQ1_0 | 256 values: 48 bytes of five values, 4 bytes of four, `d` | `(t - 1) · d`, t 0 to 2 |
//! | TQ2_0 | 256 values: 64 bytes of four values, `d` | `(q - 1) · d`, q 0 to 3 |
//! | Q1_0 | 128 values: `d`, 16 bytes of eight | `d` where the bit is set, else `-d` |
//! | Q2_0 | 64 values: `d`, 16 bytes of four | `(q - 1) · d`, q 0 to 3 |
//!
//! `d` is F16. The bytes of TQ1_0 and TQ2_0 stand in runs of 32, 16 or 4: all first values of a run come
//! before all second ones. In the other two, a byte's values are neighbours, from its lowest bits up.
//!
//! A byte of TQ1_0 is the fraction `0.t0 t1 t2 t3 t4` in base 3, times 256 and rounded up: times 3, its
//! whole part is the next digit.
//!
//! Source: `dequantize_row_tq1_0` and its neighbours in
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::{FormatRow, finite_at, u16_at};

const THREE: Levels = Levels::Table(&[-1., 0., 1., 2.]);
const TWO: Levels = Levels::Table(&[-1., 1.]);

pub const TQ1_0: FormatRow =
    FormatRow::quantised("tq1_0", 34, (256, 54), |b| finite_at(b, 52), Coding::new(2, THREE, Scales::F16, 256), tq1_0);

pub const TQ2_0: FormatRow =
    FormatRow::quantised("tq2_0", 35, (256, 66), |b| finite_at(b, 64), Coding::new(2, THREE, Scales::F16, 256), tq2_0);

pub const Q1_0: FormatRow =
    FormatRow::quantised("q1_0", 41, (128, 18), |b| finite_at(b, 0), Coding::new(1, TWO, Scales::F16, 128), q1_0);

pub const Q2_0: FormatRow =
    FormatRow::quantised("q2_0", 42, (64, 18), |b| finite_at(b, 0), Coding::new(2, THREE, Scales::F16, 64), q2_0);

fn tq1_0(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 52);
    let mut left = to.codes.as_mut_slice();
    for (run, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        let codes;
        (codes, left) = left.split_at_mut(run.len() * digits);
        for (codes, power) in codes.chunks_exact_mut(run.len()).zip([1u8, 3, 9, 27, 81]) {
            for (code, byte) in codes.iter_mut().zip(run) {
                *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
            }
        }
    }
}

fn tq2_0(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 64);
    for (to, run) in to.codes.chunks_exact_mut(128).zip(block[..64].chunks_exact(32)) {
        for (to, shift) in to.chunks_exact_mut(32).zip([0, 2, 4, 6]) {
            to.iter_mut().zip(run).for_each(|(code, byte)| *code = byte >> shift & 3);
        }
    }
}

fn q1_0(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 0);
    for (to, byte) in to.codes.chunks_exact_mut(8).zip(&block[2..18]) {
        to.iter_mut().enumerate().for_each(|(i, code)| *code = byte >> i & 1);
    }
}

fn q2_0(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 0);
    for (to, byte) in to.codes.chunks_exact_mut(4).zip(&block[2..18]) {
        to.iter_mut().enumerate().for_each(|(i, code)| *code = byte >> (2 * i) & 3);
    }
}
