//! What the blocks of all quantised formats have in common: codes of few bits, and scales that groups of neighbours share.
//!
//! A weight is `scale · level(code) + min`. Each format's unpacker takes a block of a file apart into a [`CodedBlock`]; its
//! [`Coding`] says what the numbers there stand for. Products of a scale and a level are exact in F32 with every format that has mins,
//! so whether the sum is fused or not makes no difference, and the order of the reference is kept: the bits are its bits.
//!
//! ```ignore
//! // Q4_K: four bits, groups of 32 with a scale and a min of six bits each, which two F16 of 256 values multiply.
//! const CODING: Coding = Coding::new(4, Levels::Unsigned, Scales::TwoLevelsAndMin, 32);
//! ```

use half::f16;

/// Values of the longest block.
pub const MOST: usize = 256;
/// Groups of the longest block: none is shorter than sixteen values.
const GROUPS: usize = MOST / 16;

/// How a format writes its weights.
pub struct Coding {
    /// Bits of a code.
    pub bits: u32,
    pub levels: Levels,
    pub scales: Scales,
    /// Values that share a scale.
    pub group: usize,
    /// The levels of codes of at most four bits, again and again.
    pub table: [f32; 16],
    /// The same as whole numbers of this.
    pub whole: [i8; 16],
    pub unit: f32,
}

/// What codes stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Themselves.
    Unsigned,
    /// Themselves less half of the numbers that there are.
    Signed,
    /// So many of these; a code has at most four bits.
    Table(&'static [f32]),
}

/// What a group's scale and min are, and in which form they are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scales {
    /// An F16.
    F16,
    /// An F16 each; the min is added.
    F16AndMin,
    /// An F16, and a byte that is the code of zero.
    F16AndZero,
    /// A signed byte, times an F32 of the block.
    TwoLevels,
    /// A byte each, times an F16 of the block each; the min is subtracted.
    TwoLevelsAndMin,
    /// The same with both in the halves of one byte.
    TwoLevelsAndMinInByte,
    /// A byte that is moved to the exponent and mantissa of an F32, times a number.
    Float8 { shift: u32, factor: f32 },
    /// The same times an F32, which all blocks of a row have in common.
    Float8Times { shift: u32, factor: f32 },
}

/// A block, taken apart. What a format does not have stays as it was.
pub struct CodedBlock {
    pub codes: [u8; MOST],
    /// Of each group, as [`Scales`] says: bits of an F16, or a byte.
    pub scales: [u16; GROUPS],
    pub mins: [u16; GROUPS],
    /// What scales and mins are multiplied by. They are F16 where there are mins.
    pub d: f32,
    pub dmin: f32,
}

impl Default for CodedBlock {
    fn default() -> Self {
        Self { codes: [0; MOST], scales: [0; GROUPS], mins: [0; GROUPS], d: 0.0, dmin: 0.0 }
    }
}

impl Coding {
    pub const fn new(bits: u32, levels: Levels, scales: Scales, group: usize) -> Self {
        // What kernels are made for.
        assert!(matches!((bits, levels), (1..=4, _) | (5 | 6 | 8, Levels::Unsigned | Levels::Signed)));
        assert!(group.is_power_of_two() && group >= 16 && group <= MOST);
        let mut table = [0.0; 16];
        let mut code = 0;
        while code < 16 {
            let own = code % (1 << bits);
            table[code] = match levels {
                Levels::Unsigned => own as f32,
                Levels::Signed => own as f32 - (1 << (bits - 1)) as f32,
                Levels::Table(levels) => {
                    if own < levels.len() {
                        levels[own]
                    } else {
                        0.0
                    }
                }
            };
            code += 1;
        }
        let (mut unit, mut whole) = (1.0, [0; 16]);
        let mut code = 0;
        while code < 16 {
            // Eighths, if there is any fraction.
            if table[code] != table[code] as i8 as f32 {
                unit = 0.125;
            }
            code += 1;
        }
        let mut code = 0;
        while code < 16 {
            whole[code] = (table[code] / unit) as i8;
            assert!(whole[code] as f32 * unit == table[code]);
            code += 1;
        }
        Self { bits, levels, scales, group, table, whole, unit }
    }

    /// The values of a block, or of several that are side by side.
    pub fn widen(&self, block: &CodedBlock, to: &mut [f32]) {
        for ((group, to), codes) in to.chunks_mut(self.group).enumerate().zip(block.codes.chunks(self.group)) {
            let (scale, min) = self.scale_and_min(block, group);
            let codes = to.iter_mut().zip(codes);
            // Loops that know what a level is.
            match self.levels {
                Levels::Unsigned => codes.for_each(|(x, code)| *x = scale * f32::from(*code) + min),
                Levels::Signed => {
                    let middle = f32::from(1u8 << (self.bits - 1));
                    codes.for_each(|(x, code)| *x = scale * (f32::from(*code) - middle) + min);
                }
                Levels::Table(_) => codes.for_each(|(x, code)| *x = scale * self.table[usize::from(code & 15)] + min),
            }
        }
    }

    /// Of a group; the min is added. It is -0 where there is none: adding that changes no number, not even the sign of a zero.
    pub fn scale_and_min(&self, block: &CodedBlock, group: usize) -> (f32, f32) {
        let (scale, min) = (block.scales[group], block.mins[group]);
        let f16 = |bits: u16| f16::from_bits(bits).to_f32();
        match self.scales {
            Scales::F16 => (f16(scale), -0.0),
            Scales::F16AndMin => (f16(scale), f16(min)),
            Scales::F16AndZero => (f16(scale), -(f16(scale) * f32::from(min))),
            Scales::TwoLevels => (block.d * f32::from((scale as u8).cast_signed()), -0.0),
            Scales::TwoLevelsAndMin | Scales::TwoLevelsAndMinInByte => {
                (block.d * f32::from(scale), -(block.dmin * f32::from(min)))
            }
            Scales::Float8 { shift, factor } => (f32::from_bits(u32::from(scale) << shift) * factor, -0.0),
            Scales::Float8Times { shift, factor } => (block.d * (f32::from_bits(u32::from(scale) << shift) * factor), -0.0),
        }
    }
}
