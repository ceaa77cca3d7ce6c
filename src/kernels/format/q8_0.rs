//! Weights in 8 bits: of each row, 32 neighbours share a scale, as in ggml's Q8_0.
//!
//! `d = max |x| / 127` and `q = round(x · (1 / d))`, halves away from zero; the weight is then `q · d` with `d` in F16. The product
//! of a byte and an F16 is exact in F32. In memory a row's last block may be shorter, in a file it may not.
//!
//! Source: `quantize_row_q8_0_ref` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.

use half::f16;

use super::super::simd::{Kernel, Simd, dispatch};
use super::coding::{CodedBlock, Coding, Levels, Scales};
use super::{FormatRow, Values, f16_at, u16_at};

pub const ROW: FormatRow = FormatRow {
    name: "q8_0",
    block: BLOCK,
    bytes: size_of::<f16>() + BLOCK,
    gguf: 8,
    quantise: Some(quantise),
    finite: |block| f16_at(block, 0).is_finite(),
    values: Values::Blocks(Coding::new(8, Levels::Signed, Scales::F16, BLOCK), unpack),
};

/// Inputs that share a scale.
const BLOCK: usize = 32;
/// The code of zero.
const ZERO: u8 = 128;

fn unpack(block: &[u8], to: &mut CodedBlock) {
    to.scales[0] = u16_at(block, 0);
    to.codes.iter_mut().zip(&block[2..2 + BLOCK]).for_each(|(code, q)| *code = q ^ ZERO);
}

/// `false` if a value is not finite, or a scale is beyond F16: that of a value beyond 8.3 million.
fn quantise(values: &[f32], to: &mut CodedBlock) -> bool {
    dispatch(Quantise { values, to })
}

struct Quantise<'a> {
    values: &'a [f32],
    to: &'a mut CodedBlock,
}

impl Kernel for Quantise<'_> {
    type Output = bool;

    /// Plain code: the compiler's vectoriser has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        let codes = self.to.codes.as_chunks_mut::<BLOCK>().0;
        for ((block, codes), scale) in self.values.chunks(BLOCK).zip(codes).zip(&mut self.to.scales) {
            let d = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
            let rounded = f16::from_f32(d);
            // `max` passes over NaN.
            if !rounded.is_finite() || block.iter().any(|x| x.is_nan()) {
                return false;
            }
            *scale = rounded.to_bits();
            // What a shorter block lacks is zero.
            codes[block.len()..].fill(ZERO);
            codes.iter_mut().zip(block).for_each(|(code, x)| *code = (x * inverse).round() as i8 as u8 ^ ZERO);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::packed::{Packed, Use};
    use super::super::Format;
    use super::*;

    /// One row, quantised and back.
    fn there_and_back(values: &[f32]) -> Option<Vec<f32>> {
        let mut packed = Packed::new(1, values.len(), Format::Q8_0, Use::Product).unwrap();
        let mut row = vec![f32::NAN; values.len()];
        packed.fill_f32(0, values).then(|| {
            packed.row(0, &mut row);
            row
        })
    }

    #[test]
    fn blocks_are_quantised_as_by_hand() {
        // A scale of one: halves go away from zero, also where the even number is nearer to it.
        let mut row = vec![127.0, 0.5, -0.5, 2.5, -2.5, 2.499, 126.4, -126.5, 1e-30];
        let mut want = vec![127.0, 1.0, -1.0, 3.0, -3.0, 2.0, 126.0, -127.0, 0.0];
        row.resize(BLOCK, -3.0);
        want.resize(BLOCK, -3.0);
        // Zeros; then a scale that F16 rounds: 0.1 / 127 = 7.874e-4 is 1651 · 2^-21 = 7.8726e-4 there.
        row.extend([0.0; BLOCK]);
        want.extend([0.0; BLOCK]);
        let scale = 1651.0 / 2097152.0;
        row.extend([0.1, -0.1, 0.06, 0.0004, 0.0003]);
        want.extend([127.0, -127.0, 76.0, 1.0, 0.0].map(|q| q * scale));
        assert_eq!(there_and_back(&row).unwrap(), want);
        assert_eq!(there_and_back(&[-3.0]).unwrap(), [-127.0 * f16::from_f32(3.0 / 127.0).to_f32()]);
    }

    #[test]
    fn what_no_scale_fits_is_refused() {
        // 8e6 / 127 = 62992.1, and F16 counts by 32 there: 1969 · 32 is nearest.
        assert_eq!(there_and_back(&[8e6, -4.1e6]).unwrap(), [127.0 * 63008.0, -65.0 * 63008.0]);
        // Below half of the smallest F16 nothing is left, as in ggml.
        assert_eq!(there_and_back(&[1e-6, -1e-7]).unwrap(), [0.0; 2]);
        assert_eq!(there_and_back(&[1e-42, 0.0]).unwrap(), [0.0; 2]);
        for bad in [8.4e6, f32::MAX, f32::INFINITY, f32::NAN] {
            assert!(there_and_back(&[1.0, bad, 2.0]).is_none(), "{bad}");
        }
    }

    /// A file's blocks of values, as ggml's `block_q8_0` lays them.
    fn file(values: &[f32]) -> Vec<u8> {
        let mut block = CodedBlock::default();
        let bytes = |values: &[f32]| {
            assert!(quantise(values, &mut block));
            block.scales[0]
                .to_le_bytes()
                .into_iter()
                .chain(block.codes[..BLOCK].iter().map(|code| code ^ ZERO))
                .collect::<Vec<_>>()
        };
        values.chunks(BLOCK).flat_map(bytes).collect()
    }

    #[test]
    fn blocks_of_a_file_are_read_as_they_are() {
        // 0.5 in F16, then 32 bytes: 0 to 15, then -128 to -113.
        let block: Vec<u8> = [0x00, 0x38].into_iter().chain(0..16).chain(128..144).collect();
        let want: Vec<f32> = (0..16).chain(-128..-112).map(|q| q as f32 * 0.5).collect();
        assert_eq!(Format::Q8_0.widen(&block), want);

        let (rows, cols) = (37, 96);
        let values = super::super::super::noise(rows * cols, 4);
        let file = file(&values);
        let row_bytes = Format::Q8_0.row_bytes(cols).unwrap();
        assert_eq!(file.len(), rows * row_bytes);
        let new = |format, purpose| Packed::new(rows, cols, format, purpose).unwrap();
        let mut quantised = new(Format::Q8_0, Use::Product);
        assert!(quantised.fill_f32(0, &values));
        for (purpose, piece) in [Use::Product, Use::Lookup].into_iter().flat_map(|p| [1, 7, 16, 37].map(|piece| (p, piece))) {
            let (mut read, mut wide) = (new(Format::Q8_0, purpose), new(Format::F32, purpose));
            for (i, part) in file.chunks(piece * row_bytes).enumerate() {
                assert!(read.fill(i * piece, part, Format::Q8_0) && wide.fill(i * piece, part, Format::Q8_0));
            }
            for r in 0..rows {
                let [a, b, c] = [&quantised, &read, &wide].map(|packed| {
                    let mut row = vec![f32::NAN; cols];
                    packed.row(r, &mut row);
                    row
                });
                assert!(a == b && a == c, "row {r} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused() {
        for bad in [f16::INFINITY, f16::NAN] {
            let mut file = file(&[1.0; 64]);
            file[34..36].copy_from_slice(&bad.to_le_bytes());
            let mut packed = Packed::new(1, 64, Format::Q8_0, Use::Product).unwrap();
            assert!(!packed.fill(0, &file, Format::Q8_0));
        }
    }

    #[test]
    fn every_instruction_set_quantises_alike() {
        let values = super::super::super::noise(250, 3);
        let mut want = CodedBlock::default();
        assert!(quantise(&values, &mut want));
        assert!(want.scales[7] != 0 && want.scales[8] == 0 && want.codes[250..] == [ZERO; 6]);
        let mut found: [CodedBlock; 3] = Default::default();
        let runs = super::super::super::simd::levels::<Quantise<'_>>();
        assert!(runs.iter().zip(&mut found).all(|((_, run), to)| run(Quantise { values: &values, to })));
        let levels = runs.len();
        assert!(found[..levels].iter().all(|block| block.codes == want.codes && block.scales == want.scales));
    }
}
