//! How values become codes and scales: of each group the scale, and the min, with the least weighted squared error among some twenty.
//!
//! A candidate scale gives codes by rounding, and codes give the best scale for them by least squares, so that candidates need be no
//! closer than codes change: `s = Σ w·q·x / Σ w·q²`, which leaves `Σ w·x² - (Σ w·q·x)² / Σ w·q²`; with a min, `x ≈ s·q + m`, the
//! solution of two equations. The weight of a squared error is `√(mean x²) + |x|`: nothing is known of the inputs, and large values
//! matter more. Scales of two levels are then rounded against the largest of 256 values, and the codes anew with them.
//!
//! `tests/golden/quantise.json` has the errors of ggml's own quantisers, which these do not exceed by more than two hundredths.

use std::marker::PhantomData;

use half::f16;

use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::coding::CodedBlock;
use super::iq::IQ4;

/// Values of a group of most formats.
pub const BLOCK: usize = 32;

/// How a format's blocks are made of values; a span has at most as many as a [`CodedBlock`].
pub trait Quantiser {
    /// Codes and scales of whole groups; `false` if a scale is beyond F16.
    fn span(values: &[f32], to: &mut CodedBlock) -> bool;
}

/// The codes and scales of finite values, as [`Quantiser::span`] makes them; `false` with others.
pub fn quantise<Q: Quantiser>(values: &[f32], to: &mut CodedBlock) -> bool {
    values.iter().all(|x| x.is_finite()) && dispatch(Run::<Q> { values, to, quantiser: PhantomData })
}

struct Run<'a, Q> {
    values: &'a [f32],
    to: &'a mut CodedBlock,
    quantiser: PhantomData<Q>,
}

impl<Q: Quantiser> Kernel for Run<'_, Q> {
    type Output = bool;

    /// Plain code: the compiler's vectoriser has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        Q::span(self.values, self.to)
    }
}

/// Bytes of 32 values, as ggml's Q8_0 has them: `d = max |x| / 127` and `q = round(x · (1 / d))`, halves away from zero; the weight is
/// `q · d` with `d` in F16. A row's last block may be shorter. Source: `quantize_row_q8_0_ref` in
/// <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>.
pub struct Bytes;

impl Quantiser for Bytes {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        const ZERO: u8 = 128;
        let codes = to.codes.as_chunks_mut::<BLOCK>().0;
        values.chunks(BLOCK).zip(codes).zip(&mut to.scales).all(|((x, codes), scale)| {
            let (bytes, d) = bytes(x);
            *scale = d.to_bits();
            // What a shorter block lacks is zero.
            codes[x.len()..].fill(ZERO);
            codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte.cast_unsigned() ^ ZERO);
            d.is_finite()
        })
    }
}

/// The bytes of a block and their scale, which is NaN if a value is not finite or the scale is beyond F16.
#[inline(always)]
pub fn bytes(block: &[f32]) -> (impl Iterator<Item = i8>, f16) {
    let d = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
    let (inverse, scale) = (inverse(d), f16::from_f32(d));
    // `max` passes over NaN.
    let is_finite = scale.is_finite() && !block.iter().any(|x| x.is_nan());
    (block.iter().map(move |x| (x * inverse).round() as i8), if is_finite { scale } else { f16::NAN })
}

/// Signed codes of so many bits, whose scale is an F16 of 32 values.
pub struct Direct<const BITS: u32>;

impl<const BITS: u32> Quantiser for Direct<BITS> {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let (groups, codes) = (values.as_chunks::<BLOCK>().0, to.codes.as_chunks_mut::<BLOCK>().0);
        groups.iter().zip(codes).zip(&mut to.scales).all(|((x, codes), scale)| {
            let (d, bits) = rounded(signed_scale::<BITS, BLOCK>(x));
            *scale = bits;
            signed_codes::<BITS, BLOCK>(x, d, codes);
            d.is_finite()
        })
    }
}

/// Codes of so many bits, whose scale and min are an F16 each of 32 values.
pub struct DirectAndMin<const BITS: u32>;

impl<const BITS: u32> Quantiser for DirectAndMin<BITS> {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let (groups, codes) = (values.as_chunks::<BLOCK>().0, to.codes.as_chunks_mut::<BLOCK>().0);
        let scales = to.scales.iter_mut().zip(&mut to.mins);
        groups.iter().zip(codes).zip(scales).all(|((x, codes), (scale, min))| {
            let (s, m) = scale_and_min::<BITS, BLOCK>(x, f32::INFINITY);
            let ((s, s_bits), (m, m_bits)) = (rounded(s), rounded(m));
            (*scale, *min) = (s_bits, m_bits);
            codes_above::<BITS, BLOCK>(x, (s, m), codes);
            s.is_finite() && m.is_finite()
        })
    }
}

/// Codes of IQ4's levels, whose scale is an F16 of 32 values.
pub struct OfIq4;

impl Quantiser for OfIq4 {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let (groups, codes) = (values.as_chunks::<BLOCK>().0, to.codes.as_chunks_mut::<BLOCK>().0);
        groups.iter().zip(codes).zip(&mut to.scales).all(|((x, codes), scale)| {
            // The largest value may become either end of the table.
            let ends = (-7..=7).flat_map(|i| [IQ4[0] + i as f32, IQ4[15] + i as f32]);
            let level = |x: f32| IQ4.windows(2).fold(IQ4[0], |level, two| if x > between(two) { two[1] } else { level });
            let (d, bits) = rounded(best_scale(x, &importance(x), ends, level));
            *scale = bits;
            let inverse = inverse(d);
            codes.iter_mut().zip(x).for_each(|(code, x)| {
                *code = IQ4.windows(2).map(|two| u8::from(x * inverse > between(two))).sum();
            });
            d.is_finite()
        })
    }
}

fn between(two: &[f32]) -> f32 {
    (two[0] + two[1]) * 0.5
}

/// Signed codes of six bits, in groups of 16 whose scales are a signed byte times an F16 of 256 values.
pub struct TwoLevels;

impl Quantiser for TwoLevels {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let groups = values.as_chunks::<16>().0;
        let mut scales = [0f32; 16];
        scales.iter_mut().zip(groups).for_each(|(scale, x)| *scale = signed_scale::<6, 16>(x));
        let (d, _) = rounded(largest(&scales) / -128.0);
        let inverse = inverse(d);
        let codes = to.codes.as_chunks_mut().0;
        for (((x, codes), scale), to_scale) in groups.iter().zip(codes).zip(scales).zip(&mut to.scales) {
            let scale = nearest(scale * inverse).clamp(-128.0, 127.0);
            *to_scale = (scale as i8 as u8).into();
            signed_codes::<6, 16>(x, d * scale, codes);
        }
        to.d = d;
        d.is_finite()
    }
}

/// Codes of so many bits, in groups of 32 whose scales and mins have six bits each, times an F16 of 256 values.
pub struct TwoLevelsAndMin<const BITS: u32>;

impl<const BITS: u32> Quantiser for TwoLevelsAndMin<BITS> {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let groups = values.as_chunks::<32>().0;
        let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
        for ((x, scale), min) in groups.iter().zip(&mut scales).zip(&mut mins) {
            let (s, m) = scale_and_min::<BITS, 32>(x, 0.0);
            (*scale, *min) = (s, -m);
        }
        let ((d, _), (dmin, _)) = (rounded(largest(&scales) / 63.0), rounded(largest(&mins) / 63.0));
        let to_scales = to.scales.iter_mut().zip(&mut to.mins);
        let codes = to.codes.as_chunks_mut().0;
        for ((((x, codes), scale), min), to) in groups.iter().zip(codes).zip(scales).zip(mins).zip(to_scales) {
            let six_bits = |x: f32| nearest(x).clamp(0.0, 63.0);
            let (scale, min) = (six_bits(scale * inverse(d)), six_bits(min * inverse(dmin)));
            (*to.0, *to.1) = (scale as u16, min as u16);
            codes_above::<BITS, 32>(x, (d * scale, -(dmin * min)), codes);
        }
        (to.d, to.dmin) = (d, dmin);
        d.is_finite() && dmin.is_finite()
    }
}

/// MLX's affine quantisation: the edge of larger magnitude and zero are levels, so that both are exact.
///
/// Source: `affine_quantize` in <https://github.com/ml-explore/mlx/blob/main/mlx/backend/metal/kernels/quantized.h>.
pub struct Affine<const BITS: u32, const GROUP: usize>;

impl<const BITS: u32, const GROUP: usize> Quantiser for Affine<BITS, GROUP> {
    #[inline(always)]
    fn span(values: &[f32], to: &mut CodedBlock) -> bool {
        let (groups, codes) = (values.as_chunks::<GROUP>().0, to.codes.as_chunks_mut::<GROUP>().0);
        let scales = to.scales.iter_mut().zip(&mut to.mins);
        groups.iter().zip(codes).zip(scales).all(|((x, codes), (scale, min))| {
            let (low, high) = ends(x);
            let step = ((high - low) / top(BITS)).max(1e-7);
            let (edge, step) = if low.abs() > high.abs() { (low, step) } else { (high, -step) };
            // How many steps zero is away from the edge.
            let steps = (edge / step).round_ties_even();
            let (s, m) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
            let ((s, s_bits), (m, m_bits)) = (rounded(s), rounded(m));
            (*scale, *min) = (s_bits, m_bits);
            codes_above::<BITS, GROUP>(x, (s, m), codes);
            s.is_finite() && m.is_finite()
        })
    }
}

/// The scale of signed codes with the least error.
#[inline(always)]
fn signed_scale<const BITS: u32, const GROUP: usize>(x: &[f32; GROUP]) -> f32 {
    let half = (1 << (BITS - 1)) as f32;
    // The largest value becomes the lowest code, which has the larger magnitude, or is clipped or rounded a little.
    let ends = (-9..=9).map(|i| -(half + i as f32 * 0.1));
    best_scale(x, &importance(x), ends, |x| nearest(x).clamp(-half, half - 1.0))
}

#[inline(always)]
fn signed_codes<const BITS: u32, const GROUP: usize>(x: &[f32; GROUP], scale: f32, codes: &mut [u8; GROUP]) {
    let (half, inverse) = ((1 << (BITS - 1)) as f32, inverse(scale));
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = (nearest(x * inverse).clamp(-half, half - 1.0) + half) as u8);
}

/// The scale with the least error among those by which the largest value becomes one of `ends`; `level` is the nearest level.
#[inline(always)]
fn best_scale<const GROUP: usize>(
    x: &[f32; GROUP],
    weights: &[f32; GROUP],
    ends: impl Iterator<Item = f32>,
    level: impl Fn(f32) -> f32,
) -> f32 {
    let edge = largest(x);
    // Of values whose squares are beyond F32 it stays, and is beyond F16.
    let (mut scale, mut most) = (edge / 127.0, 0.0);
    for end in ends {
        let inverse = end * inverse(edge);
        let [qx, qq] = sums(x, weights, |x, w| {
            let q = level(x * inverse);
            [w * q * x, w * q * q]
        });
        if qx * qx > most * qq {
            (scale, most) = (qx / qq, qx * qx / qq);
        }
    }
    scale
}

/// The scale and the min, at most `most`, with the least error.
#[inline(always)]
fn scale_and_min<const BITS: u32, const GROUP: usize>(x: &[f32; GROUP], most: f32) -> (f32, f32) {
    let (weights, top) = (importance(x), top(BITS));
    let (low, high) = ends(x);
    let low = low.min(most);
    if high <= low {
        return (0.0, low);
    }
    let [total, total_x] = sums(x, &weights, |x, w| [w, w * x]);
    // Of values whose squares are beyond F32 it stays, and is beyond F16.
    let mut best = (f32::INFINITY, (high - low) / top, low);
    for step in 0..=20 {
        let inverse = (top + (step - 10) as f32 * 0.1) / (high - low);
        let code = |x: f32| nearest((x - low) * inverse).clamp(0.0, top);
        let [q, qq, qx] = sums(x, &weights, |x, w| {
            let q = code(x);
            [w * q, w * q * q, w * q * x]
        });
        let determinant = total * qq - q * q;
        let (mut s, mut m) = ((total * qx - q * total_x) / determinant, (qq * total_x - q * qx) / determinant);
        if m > most {
            (s, m) = (qx / qq, most);
        }
        let [error] = sums(x, &weights, |x, w| {
            let rest = s * code(x) + m - x;
            [w * rest * rest]
        });
        if error < best.0 {
            best = (error, s, m);
        }
    }
    (best.1, best.2)
}

#[inline(always)]
fn codes_above<const BITS: u32, const GROUP: usize>(x: &[f32; GROUP], (scale, min): (f32, f32), codes: &mut [u8; GROUP]) {
    let inverse = inverse(scale);
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = nearest((x - min) * inverse).clamp(0.0, top(BITS)) as u8);
}

/// The largest code.
#[inline(always)]
fn top(bits: u32) -> f32 {
    ((1 << bits) - 1) as f32
}

/// What an error of each value weighs.
#[inline(always)]
fn importance<const GROUP: usize>(x: &[f32; GROUP]) -> [f32; GROUP] {
    let [squares] = sums(x, x, |x, _| [x * x]);
    let root = (squares / GROUP as f32).sqrt();
    x.map(|x| root + x.abs())
}

/// Sums over values and their weights, in sixteen lanes: a single chain would wait for itself.
#[inline(always)]
fn sums<const GROUP: usize, const N: usize>(
    x: &[f32; GROUP],
    weights: &[f32; GROUP],
    terms: impl Fn(f32, f32) -> [f32; N],
) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let terms = terms(x[i], w[i]);
            lanes.iter_mut().zip(terms).for_each(|(lanes, term)| lanes[i] += term);
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// The smallest value and the largest.
#[inline(always)]
fn ends(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)))
}

/// The value of the largest magnitude.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (low, high) = ends(x);
    if -low > high { low } else { high }
}

/// Of a scale; zero of zero, by which every value is zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest F16, and its bits.
#[inline(always)]
fn rounded(x: f32) -> (f32, u16) {
    let x = f16::from_f32(x);
    (x.to_f32(), x.to_bits())
}

/// The nearest whole number, halves to even, of numbers below 2²²; every processor has the instructions.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = (3 << 22) as f32;
    (x + MAGIC) - MAGIC
}

#[cfg(test)]
mod tests {
    use super::super::super::packed::{Packed, Use};
    use super::super::super::{noise, simd};
    use super::super::Format;
    use super::*;

    /// One row, quantised and back.
    fn there_and_back(values: &[f32], format: Format) -> Option<Vec<f32>> {
        let mut packed = Packed::new(1, values.len(), format, Use::Product).unwrap();
        let mut row = vec![f32::NAN; values.len()];
        packed.fill_f32(0, values).then(|| {
            packed.row(0, &mut row);
            row
        })
    }

    #[test]
    fn blocks_of_bytes_are_quantised_as_by_hand() {
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
        assert_eq!(there_and_back(&row, Format::Q8_0).unwrap(), want);
        assert_eq!(there_and_back(&[-3.0], Format::Q8_0).unwrap(), [-127.0 * f16::from_f32(3.0 / 127.0).to_f32()]);
        // 8e6 / 127 = 62992.1, and F16 counts by 32 there: 1969 · 32 is nearest.
        assert_eq!(there_and_back(&[8e6, -4.1e6], Format::Q8_0).unwrap(), [127.0 * 63008.0, -65.0 * 63008.0]);
        // Below half of the smallest F16 nothing is left, as in ggml.
        assert_eq!(there_and_back(&[1e-6, -1e-7], Format::Q8_0).unwrap(), [0.0; 2]);
        assert_eq!(there_and_back(&[1e-42, 0.0], Format::Q8_0).unwrap(), [0.0; 2]);
        assert!(there_and_back(&[1.0, 8.4e6, 2.0], Format::Q8_0).is_none());
    }

    #[test]
    fn what_no_scale_fits_is_refused_and_zero_stays_zero() {
        for format in Format::quantised_to() {
            for bad in [1e12, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                for at in [0, 255, 300] {
                    let mut values = noise(512, 3);
                    values[at] = bad;
                    assert!(there_and_back(&values, format).is_none(), "{format:?} {bad} {at}");
                }
            }
            for value in [0.0, 1e-42, -1e-42] {
                assert_eq!(there_and_back(&[value; 256], format).unwrap(), [0.0; 256], "{format:?} {value}");
            }
            assert!(there_and_back(&[30000.0; 256], format).is_some_and(|row| row.iter().all(|x| (x / 3e4 - 1.0).abs() < 0.07)));
        }
        assert!(!Format::Q3_K.quantise(&[0.0; 256], &mut CodedBlock::default()));
    }

    #[test]
    fn what_a_format_holds_exactly_stays_as_it_is() {
        // Whole numbers from -8 to 7 in each group of 32, times a power of two that no format rounds.
        let values: Vec<f32> = (0..512).map(|i| ((i * 5 + i / 32) % 16) as f32 * 0.25 - 2.0).collect();
        for format in [Format::Q4_0, Format::Q5_0, Format::Q5_1, Format::AFFINE4_64] {
            assert_eq!(there_and_back(&values, format).unwrap(), values, "{format:?}");
        }
    }

    #[test]
    fn every_instruction_set_quantises_alike() {
        fn compare<Q: Quantiser>() {
            let values = noise(256, 3);
            let mut found: [CodedBlock; 3] = Default::default();
            let runs = simd::levels::<Run<'_, Q>>();
            let levels = runs.len();
            for ((_, run), to) in runs.iter().zip(&mut found) {
                assert!(run(Run { values: &values, to, quantiser: PhantomData }));
            }
            let [want, others @ ..] = &found[..levels] else { unreachable!("there is the portable one") };
            for other in others {
                assert!(other.codes == want.codes && other.scales == want.scales && other.mins == want.mins);
                assert_eq!((other.d, other.dmin), (want.d, want.dmin));
            }
        }
        compare::<Bytes>();
        compare::<Direct<4>>();
        compare::<DirectAndMin<5>>();
        compare::<OfIq4>();
        compare::<TwoLevels>();
        compare::<TwoLevelsAndMin<4>>();
        compare::<Affine<4, 64>>();
    }

    /// Random values as `make_quantise.py` has them.
    fn random(distribution: &str) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (((state >> 32) as f64) + 0.5) / 4294967296.0
        };
        let value = |_| match distribution {
            "normal" => (0..12).map(|_| uniform()).sum::<f64>() - 6.0,
            _ => {
                let sign = if uniform() < 0.5 { -1.0 } else { 1.0 };
                sign * uniform().ln()
            }
        };
        (0..65536).map(value).map(|x| (x * 0.02) as f32).collect()
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn errors_are_those_of_the_reference_within_two_hundredths() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantise.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for distribution in ["normal", "laplace"] {
            let values = random(distribution);
            for format in Format::quantised_to() {
                let found = there_and_back(&values, format).unwrap();
                // Squared errors as they are, and by the weights of `importance`.
                let mut errors = [0.0; 2];
                for (x, y) in values.as_chunks::<32>().0.iter().zip(found.as_chunks::<32>().0) {
                    let root = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 32.0).sqrt();
                    for (x, y) in x.iter().zip(y) {
                        let error = (f64::from(*x) - f64::from(*y)).powi(2);
                        errors[0] += error;
                        errors[1] += error * (root + f64::from(*x).abs());
                    }
                }
                let golden = &golden[distribution][format.name()];
                for (error, golden) in errors.into_iter().zip(golden.as_array().unwrap()) {
                    let most = 1.02 * golden.as_f64().unwrap();
                    assert!(error > 0.5 * most && error < most, "{format:?}, {distribution}: {error}, at most {most}");
                }
            }
        }
    }
}
