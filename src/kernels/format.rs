//! The formats that numbers are kept in, in files and in memory: one table.
//!
//! Values come in blocks: of one in plain floats, of those that share a scale in quantised formats. A new format
//! is `format/x.rs` with its unpacker, and a row here.
//!
//! The quantised ones of files are ggml's, with the very bits that its own `dequantize_row_*` gives; what else matrices are kept in
//! is `affine.rs`. An unpacker takes a block apart into
//! codes and scales; `coding.rs` says what those have in common, and `planes.rs` how matrices keep them.

use half::{bf16, f16};

use coding::{CodedBlock, Coding};

use super::memory::zeros;
use crate::error::OutOfMemory;

mod affine;
pub mod coding;
mod fp4;
mod iq;
mod k_quants;
mod legacy;
pub mod quantise;
mod ternary;

/// What the table says of a format.
pub struct FormatRow {
    /// As headers of safetensors spell it, ggml, and the option `quantization`.
    name: &'static str,
    /// Values of a block.
    block: usize,
    /// Bytes of a block in a file.
    bytes: usize,
    /// Its number in `ggml_type`, if ggml has it, <https://github.com/ggml-org/ggml/blob/master/include/ggml.h>.
    gguf: Option<u32>,
    /// Makes codes and scales of a row's values, of as many blocks as a [`CodedBlock`] has room for; `false` if one does not fit.
    /// Only of formats that weights are quantised to on loading.
    quantise: Option<fn(&[f32], &mut CodedBlock) -> bool>,
    /// Puts the first block of such codes and scales together as a file has it; only of formats of files.
    pack: Option<fn(&CodedBlock, &mut [u8])>,
    /// Whether the scales of a block are finite.
    finite: fn(&[u8]) -> bool,
    /// Values that are taken apart in one call: those of a block or, if blocks are short, of several.
    at_once: usize,
    values: Values,
}

/// What the bytes of a file stand for.
enum Values {
    /// Numbers, widened by this.
    Plain(fn(&[u8], &mut [f32])),
    /// Blocks, which are taken apart by this: one, or up to `at_once` values side by side.
    Blocks(Coding, fn(&[u8], &mut CodedBlock)),
}

impl FormatRow {
    /// Numbers that are kept as they are stored, finite or not.
    const fn plain(name: &'static str, gguf: u32, bytes: usize, widen: fn(&[u8], &mut [f32])) -> Self {
        Self {
            name,
            block: 1,
            bytes,
            gguf: Some(gguf),
            quantise: None,
            pack: None,
            finite: |_| true,
            at_once: 1,
            values: Values::Plain(widen),
        }
    }

    /// A quantised format of files, with the values and the bytes of a block.
    const fn quantised(
        name: &'static str,
        gguf: u32,
        (block, bytes): (usize, usize),
        finite: fn(&[u8]) -> bool,
        coding: Coding,
        unpack: fn(&[u8], &mut CodedBlock),
    ) -> Self {
        Self {
            name,
            block,
            bytes,
            gguf: Some(gguf),
            quantise: None,
            pack: None,
            finite,
            at_once: block,
            values: Values::Blocks(coding, unpack),
        }
    }

    /// The same with an unpacker of as many blocks as a [`CodedBlock`] has room for.
    const fn of_several(self) -> Self {
        Self { at_once: coding::MOST, ..self }
    }

    /// The same, which weights are quantised to by this.
    const fn made_by(self, quantise: fn(&[f32], &mut CodedBlock) -> bool) -> Self {
        Self { quantise: Some(quantise), ..self }
    }

    /// The same, whose blocks are put together by this: the reverse of the unpacker.
    const fn packed_by(self, pack: fn(&CodedBlock, &mut [u8])) -> Self {
        Self { pack: Some(pack), ..self }
    }
}

/// Declares each format with its row, so that none can lack one.
macro_rules! formats {
    ($($format:ident: $row:expr;)*) => {
        /// A format of numbers. Arithmetic is F32 with each.
        #[allow(non_camel_case_types)] // The names are ggml's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Format {
            $($format,)*
        }

        /// The rows, in the order of the formats.
        static FORMATS: &[(Format, FormatRow)] = &[$((Format::$format, $row),)*];
    };
}

formats! {
    F32: FormatRow::plain("F32", 0, 4, |b, to| each(b, to, f32::from_le_bytes));
    F16: FormatRow::plain("F16", 1, 2, |b, to| each(b, to, f16_from_le_bytes));
    BF16: FormatRow::plain("BF16", 30, 2, |b, to| each(b, to, bf16_from_le_bytes));
    Q8_0: legacy::Q8_0;
    Q4_0: legacy::Q4_0;
    Q4_1: legacy::Q4_1;
    Q5_0: legacy::Q5_0;
    Q5_1: legacy::Q5_1;
    Q2_K: k_quants::Q2_K;
    Q3_K: k_quants::Q3_K;
    Q4_K: k_quants::Q4_K;
    Q5_K: k_quants::Q5_K;
    Q6_K: k_quants::Q6_K;
    IQ4_NL: iq::IQ4_NL;
    IQ4_XS: iq::IQ4_XS;
    IQ3_XXS: iq::IQ3_XXS;
    IQ3_S: iq::IQ3_S;
    IQ2_XXS: iq::IQ2_XXS;
    IQ2_XS: iq::IQ2_XS;
    IQ2_S: iq::IQ2_S;
    IQ1_S: iq::IQ1_S;
    IQ1_M: iq::IQ1_M;
    TQ1_0: ternary::TQ1_0;
    TQ2_0: ternary::TQ2_0;
    Q1_0: ternary::Q1_0;
    Q2_0: ternary::Q2_0;
    MXFP4: fp4::MXFP4;
    NVFP4: fp4::NVFP4;
    NVFP4_SCALED: fp4::NVFP4_SCALED;
    AFFINE2_32: affine::affine::<2, 32>("affine2_32");
    AFFINE2_64: affine::affine::<2, 64>("affine2_64");
    AFFINE2_128: affine::affine::<2, 128>("affine2_128");
    AFFINE3_32: affine::affine::<3, 32>("affine3_32");
    AFFINE3_64: affine::affine::<3, 64>("affine3_64");
    AFFINE3_128: affine::affine::<3, 128>("affine3_128");
    AFFINE4_32: affine::affine::<4, 32>("affine4_32");
    AFFINE4_64: affine::affine::<4, 64>("affine4_64").made_by(quantise::quantise::<quantise::Affine<4, 64>>);
    AFFINE4_128: affine::affine::<4, 128>("affine4_128");
    AFFINE5_32: affine::affine::<5, 32>("affine5_32");
    AFFINE5_64: affine::affine::<5, 64>("affine5_64");
    AFFINE5_128: affine::affine::<5, 128>("affine5_128");
    AFFINE6_32: affine::affine::<6, 32>("affine6_32");
    AFFINE6_64: affine::affine::<6, 64>("affine6_64");
    AFFINE6_128: affine::affine::<6, 128>("affine6_128");
    AFFINE8_32: affine::affine::<8, 32>("affine8_32");
    AFFINE8_64: affine::affine::<8, 64>("affine8_64");
    AFFINE8_128: affine::affine::<8, 128>("affine8_128");
    ZERO4_32: affine::zero::<4, 32>("zero4_32");
    ZERO4_64: affine::zero::<4, 64>("zero4_64");
    ZERO4_128: affine::zero::<4, 128>("zero4_128");
    ZERO8_32: affine::zero::<8, 32>("zero8_32");
    ZERO8_64: affine::zero::<8, 64>("zero8_64");
    ZERO8_128: affine::zero::<8, 128>("zero8_128");
}

impl Format {
    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|(format, _)| *format)
    }

    /// The one that takes the most bytes.
    pub fn finest(formats: impl Iterator<Item = Self>) -> Option<Self> {
        formats.max_by_key(|format| format.block_bytes() * 256 / format.block())
    }

    /// Every format that numbers are written in.
    #[cfg(test)]
    pub fn written() -> impl Iterator<Item = Self> {
        Self::all().filter(|format| !format.is_quantised()).chain(Self::quantised_to())
    }

    /// Every format that weights are quantised to on loading.
    #[cfg(test)]
    pub fn quantised_to() -> impl Iterator<Item = Self> {
        Self::all().filter(|format| format.row().quantise.is_some())
    }

    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|format| format.name() == name)
    }

    /// The format of this number in `ggml_type`.
    pub fn of_ggml(number: u32) -> Option<Self> {
        Self::all().find(|format| format.number_of_ggml() == Some(number))
    }

    /// Its number in `ggml_type`; `None` if it is a format of memory alone.
    pub fn number_of_ggml(self) -> Option<u32> {
        self.row().gguf
    }

    /// As headers of safetensors spell it, ggml, and the option `quantization`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether values share a scale.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }

    /// Values of a block.
    pub fn block(self) -> usize {
        self.row().block
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// Bytes of a row of `cols` values in a file; `None` if they are no whole blocks, or too many.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(self.block()).then(|| cols / self.block())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// The values of blocks in a file: of a row. Those of more are [`try_widen`](Self::try_widen)'s.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.block_bytes() * self.block()];
        self.widen_into(bytes, &mut values);
        values
    }

    /// The values of blocks in a file, however many.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn try_widen(self, bytes: &[u8]) -> Result<Vec<f32>, OutOfMemory> {
        let mut values = zeros(bytes.len() / self.block_bytes() * self.block())?;
        self.widen_into(bytes, &mut values);
        Ok(values)
    }

    /// The same in a place of the right length.
    pub fn widen_into(self, bytes: &[u8], to: &mut [f32]) {
        match &self.row().values {
            Values::Plain(widen) => widen(bytes, to),
            Values::Blocks(coding, unpack) => {
                let mut coded = CodedBlock::default();
                for (block, to) in bytes.chunks_exact(self.block_bytes()).zip(to.chunks_exact_mut(self.block())) {
                    unpack(block, &mut coded);
                    coding.widen(&coded, to);
                }
            }
        }
    }

    /// How blocks are written, of a quantised format.
    pub fn coding(self) -> Option<&'static Coding> {
        match &self.row().values {
            Values::Plain(_) => None,
            Values::Blocks(coding, _) => Some(coding),
        }
    }

    /// Values that [`unpack`](Self::unpack) takes in one call, at most.
    pub fn unpacked_at_once(self) -> usize {
        self.row().at_once
    }

    /// Takes whole blocks of a file apart; does nothing with plain floats.
    pub fn unpack(self, blocks: &[u8], to: &mut CodedBlock) {
        if let Values::Blocks(_, unpack) = &self.row().values {
            unpack(blocks, to);
        }
    }

    /// Codes and scales of a row's values, at most [`coding::MOST`] of them and of whole blocks, but that the row's last may be shorter
    /// in Q8_0. `false` if a value is not finite or too large, or if nothing is quantised to this format.
    pub fn quantise(self, values: &[f32], to: &mut CodedBlock) -> bool {
        let whole = self == Self::Q8_0 || values.len().is_multiple_of(self.block());
        whole && self.row().quantise.is_some_and(|quantise| quantise(values, to))
    }

    /// Writes the values of whole rows as a file has them: numbers rounded to the nearest, halves to even, or quantised blocks.
    /// `false` if a value does not fit the format, or if nothing is quantised to it in files.
    pub fn write(self, values: &[f32], to: &mut Vec<u8>) -> bool {
        let row = self.row();
        match (self, row.quantise, row.pack) {
            (Self::F32, ..) => {
                to.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                true
            }
            (Self::F16, ..) => {
                to.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
                values.iter().all(|x| !x.is_finite() || f16::from_f32(*x).is_finite())
            }
            (Self::BF16, ..) => {
                to.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()));
                values.iter().all(|x| !x.is_finite() || bf16::from_f32(*x).is_finite())
            }
            (_, Some(quantise), Some(pack)) if values.len().is_multiple_of(row.block) => {
                let mut coded = CodedBlock::default();
                values.chunks_exact(row.block).all(|values| {
                    let at = to.len();
                    to.resize(at + row.bytes, 0);
                    let fits = quantise(values, &mut coded);
                    pack(&coded, &mut to[at..]);
                    fits
                })
            }
            _ => false,
        }
    }

    /// Whether the scales of blocks in a file are finite; plain floats have none.
    pub fn has_finite_scales(self, bytes: &[u8]) -> bool {
        self.block() == 1 || bytes.chunks_exact(self.block_bytes()).all(self.row().finite)
    }

    fn row(self) -> &'static FormatRow {
        &FORMATS[self as usize].1
    }
}

pub fn f16_from_le_bytes(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

pub fn bf16_from_le_bytes(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

/// The bytes of a block from `at` on.
fn array_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| block[at + i])
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_from_le_bytes(array_at(block, at))
}

/// Whether an F16 is finite: its exponent is not the largest.
fn finite_at(block: &[u8], at: usize) -> bool {
    u16_at(block, at) & 0x7c00 != 0x7c00
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(block, at))
}

/// The codes of nibbles: all low ones, then all high ones.
fn nibbles(bytes: &[u8], to: &mut [u8]) {
    let (low, high) = to.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The reverse; what codes have above four bits is left out.
fn pack_nibbles(codes: &[u8], to: &mut [u8]) {
    let (low, high) = codes.split_at(to.len());
    for ((byte, low), high) in to.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}

fn put_u16(to: &mut [u8], at: usize, bits: u16) {
    to[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

fn put_f16(to: &mut [u8], at: usize, x: f32) {
    put_u16(to, at, f16::from_f32(x).to_bits());
}

fn each<const N: usize>(bytes: &[u8], to: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    to.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, bytes)| *x = read(*bytes));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::super::packed::{Packed, Use};
    use super::*;

    #[test]
    fn rows_are_counted_in_whole_blocks() {
        // As ggml.h and ggml-common.h have them: number, values of a block, bytes of a block.
        let rows = [
            ("F32", 0, 1, 4),
            ("F16", 1, 1, 2),
            ("q4_0", 2, 32, 18),
            ("q4_1", 3, 32, 20),
            ("q5_0", 6, 32, 22),
            ("q5_1", 7, 32, 24),
            ("q8_0", 8, 32, 34),
            ("q2_k", 10, 256, 84),
            ("q3_k", 11, 256, 110),
            ("q4_k", 12, 256, 144),
            ("q5_k", 13, 256, 176),
            ("q6_k", 14, 256, 210),
            ("iq2_xxs", 16, 256, 66),
            ("iq2_xs", 17, 256, 74),
            ("iq3_xxs", 18, 256, 98),
            ("iq1_s", 19, 256, 50),
            ("iq4_nl", 20, 32, 18),
            ("iq3_s", 21, 256, 110),
            ("iq2_s", 22, 256, 82),
            ("iq4_xs", 23, 256, 136),
            ("iq1_m", 29, 256, 56),
            ("BF16", 30, 1, 2),
            ("tq1_0", 34, 256, 54),
            ("tq2_0", 35, 256, 66),
            ("mxfp4", 39, 32, 17),
            ("nvfp4", 40, 64, 36),
            ("q1_0", 41, 128, 18),
            ("q2_0", 42, 64, 18),
        ];
        for (name, gguf, block, bytes) in rows {
            let format = Format::named(name).unwrap();
            assert_eq!((Format::of_ggml(gguf), format.block()), (Some(format), block), "{name}");
            assert_eq!(format.row_bytes(768), Some(768 / block * bytes), "{name}");
            assert_eq!(format.row_bytes(769), (block == 1).then_some(769 * bytes), "{name}");
            let most = (usize::MAX - 255) as u128 / block as u128 * bytes as u128;
            assert_eq!(format.row_bytes(usize::MAX - 255), usize::try_from(most).ok(), "{name}");
        }
        assert_eq!(Format::all().filter(|format| format.number_of_ggml().is_some()).count(), rows.len());
        assert_eq!((Format::named("f32"), Format::named("Q8_0"), Format::of_ggml(4)), (None, None, None));
    }

    /// As many bytes as take up `blocks` blocks, by xorshift, with scales below 2. `make_formats.py` makes the same.
    fn random_blocks(format: Format, scales: &[usize], blocks: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = Vec::new();
        for _ in 0..blocks * format.block_bytes() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push((state >> 32) as u8);
        }
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            // The top bit of an exponent.
            scales.iter().for_each(|&at| block[at] &= 0xbf);
        }
        bytes
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn packing_is_the_reverse_of_unpacking() {
        let golden = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/formats.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let mut packed = 0;
        for format in Format::quantised_to().filter(|format| format.number_of_ggml().is_some()) {
            let scales: Vec<usize> = serde_json::from_value(golden[format.name()]["scales"].clone()).unwrap();
            let (pack, mut coded) = (format.row().pack.unwrap(), CodedBlock::default());
            for block in random_blocks(format, &scales, 40).chunks_exact(format.block_bytes()) {
                let mut again = vec![0; block.len()];
                format.unpack(block, &mut coded);
                pack(&coded, &mut again);
                assert_eq!(again, block, "{}", format.name());
                packed += 1;
            }
        }
        assert_eq!(packed, 8 * 40);
    }

    #[test]
    fn what_is_written_is_what_a_matrix_quantises_to() {
        let values: Vec<f32> = (0..1024).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        for format in Format::all().filter(|format| format.number_of_ggml().is_some()) {
            let mut bytes = Vec::new();
            if !format.write(&values, &mut bytes) {
                assert!(format.is_quantised() && !Format::quantised_to().any(|to| to == format), "{}", format.name());
                continue;
            }
            let mut packed = Packed::new(1, values.len(), format, Use::Product).unwrap();
            let mut want = vec![0.0; values.len()];
            assert!(packed.fill_f32(0, &values));
            packed.row(0, &mut want);
            assert_eq!(format.widen(&bytes), want, "{}", format.name());
        }
        let mut bytes = Vec::new();
        assert!(!Format::F16.write(&[70000.0], &mut bytes) && Format::BF16.write(&[70000.0], &mut bytes));
        assert!(!Format::BF16.write(&[f32::MAX], &mut bytes) && Format::F32.write(&[f32::MAX], &mut bytes));
        assert!(!Format::Q8_0.write(&[f32::NAN; 32], &mut bytes) && !Format::Q8_0.write(&[1.0; 31], &mut bytes));
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn blocks_are_widened_to_the_bits_of_the_reference() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats.json");
        let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let golden = golden.as_object().unwrap();
        for format in Format::all().filter(|format| format.is_quantised() && format.number_of_ggml().is_some()) {
            let golden = &golden[format.name()];
            let scales: Vec<usize> = serde_json::from_value(golden["scales"].clone()).unwrap();
            let bytes = random_blocks(format, &scales, golden["blocks"].as_u64().unwrap() as usize);
            assert!(format.has_finite_scales(&bytes), "{}", format.name());
            let values = format.widen(&bytes);
            let first: Vec<f32> = serde_json::from_value(golden["first"].clone()).unwrap();
            assert_eq!(values[..first.len()], first, "{}", format.name());
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sha256, golden["sha256"], "{}", format.name());
        }
        assert_eq!(golden.len(), 25);
    }

    #[test]
    fn a_scale_that_is_not_finite_is_found_in_every_block_and_place() {
        // Where the upper byte of each scale stands, and a byte that makes it infinite or NaN.
        let scales: [(Format, &[usize], u8); 24] = [
            (Format::Q8_0, &[1], 0x7c),
            (Format::Q4_0, &[1], 0x7c),
            (Format::Q4_1, &[1, 3], 0x7c),
            (Format::Q5_0, &[1], 0x7c),
            (Format::Q5_1, &[1, 3], 0x7c),
            (Format::Q2_K, &[81, 83], 0xfc),
            (Format::Q3_K, &[109], 0x7c),
            (Format::Q4_K, &[1, 3], 0x7f),
            (Format::Q5_K, &[1, 3], 0x7c),
            (Format::Q6_K, &[209], 0x7c),
            (Format::IQ4_NL, &[1], 0x7c),
            (Format::IQ4_XS, &[1], 0x7c),
            (Format::IQ3_XXS, &[1], 0x7c),
            (Format::IQ3_S, &[1], 0xff),
            (Format::IQ2_XXS, &[1], 0x7c),
            (Format::IQ2_XS, &[1], 0x7c),
            (Format::IQ2_S, &[1], 0x7c),
            (Format::IQ1_S, &[1], 0x7c),
            (Format::TQ1_0, &[53], 0x7c),
            (Format::TQ2_0, &[65], 0x7c),
            (Format::Q1_0, &[1], 0x7c),
            (Format::Q2_0, &[1], 0x7c),
            // Its scale lies in the upper half of two bytes.
            (Format::IQ1_M, &[], 0),
            (Format::MXFP4, &[0], 0xff),
        ];
        for (format, places, bad) in scales {
            let size = format.block_bytes();
            let mut bytes = vec![0; 3 * size];
            assert!(format.has_finite_scales(&bytes), "{}", format.name());
            for at in places.iter().flat_map(|at| [*at, 2 * size + at]) {
                bytes[at] = bad;
                assert!(!format.has_finite_scales(&bytes), "{} {at}", format.name());
                bytes[at] = 0;
            }
        }
        let mut block = [0; 56];
        (block[53], block[55]) = (0xc0, 0x70);
        assert!(!Format::IQ1_M.has_finite_scales(&block));
        block[53] = 0xb0;
        assert!(Format::IQ1_M.has_finite_scales(&block));
        // 12 · 2^(e - 128) has to be finite.
        for (e, finite) in [(252, true), (253, false)] {
            let block = [&[e], [0x77; 16].as_slice()].concat();
            assert_eq!(Format::MXFP4.has_finite_scales(&block), finite);
            assert_eq!(Format::MXFP4.widen(&block)[0].is_finite(), finite);
        }
        assert!(Format::F16.has_finite_scales(&[0xff; 16]));
    }
}
