//! Formats of matrices that others than ggml quantised, as they are in memory: a scale and a min, or a scale and the code of zero, of
//! 32, 64 or 128 neighbours. No file has their blocks; who reads a file of MLX, AWQ, GPTQ or compressed-tensors makes them of its tensors.
//!
//! | format | block | value |
//! | --- | --- | --- |
//! | affine | `d`, `m`, a stream of codes | `q · d + m` |
//! | zero | `d`, a byte `z`, a stream of codes | `d · (q - z)` |
//!
//! `d` and `m` are F16 of either sign. The stream is little-endian: code i has the bits from `i · bits` on. Products and `d · (q - z)` are
//! exact in F32, a sum is rounded once.

use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::{FormatRow, Values, finite_at, u16_at};

/// Codes of so many bits, with an F16 to multiply and one to add.
pub const fn affine<const BITS: usize, const GROUP: usize>(name: &'static str) -> FormatRow {
    row(name, GROUP, 4 + GROUP * BITS / 8, Coding::new(BITS as u32, Levels::Unsigned, Scales::F16AndMin, GROUP), |block, to| {
        (to.scales[0], to.mins[0]) = (u16_at(block, 0), u16_at(block, 2));
        codes::<BITS>(&block[4..], &mut to.codes[..GROUP]);
    })
}

/// Codes of so many bits, one of which stands for zero.
pub const fn zero<const BITS: usize, const GROUP: usize>(name: &'static str) -> FormatRow {
    row(name, GROUP, 3 + GROUP * BITS / 8, Coding::new(BITS as u32, Levels::Unsigned, Scales::F16AndZero, GROUP), |block, to| {
        (to.scales[0], to.mins[0]) = (u16_at(block, 0), block[2].into());
        codes::<BITS>(&block[3..], &mut to.codes[..GROUP]);
    })
}

const fn row(name: &'static str, block: usize, bytes: usize, coding: Coding, unpack: fn(&[u8], &mut CodedBlock)) -> FormatRow {
    let has_min = matches!(coding.scales, Scales::F16AndMin);
    let finite: fn(&[u8]) -> bool =
        if has_min { |block| finite_at(block, 0) && finite_at(block, 2) } else { |block| finite_at(block, 0) };
    FormatRow {
        name,
        block,
        bytes,
        gguf: None,
        quantise: None,
        pack: None,
        finite,
        at_once: block,
        values: Values::Blocks(coding, unpack),
    }
}

/// Eight codes take as many bytes as a code has bits.
fn codes<const BITS: usize>(stream: &[u8], to: &mut [u8]) {
    for (bytes, codes) in stream.chunks_exact(BITS).zip(to.as_chunks_mut::<8>().0) {
        let bits = bytes.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        codes.iter_mut().enumerate().for_each(|(i, code)| *code = (bits >> (i * BITS) & ((1 << BITS) - 1)) as u8);
    }
}
