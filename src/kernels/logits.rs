//! What a draw asks of a row of logits, which has as many values as there are tokens: with the widest registers of the processor, and the
//! same bits whatever they are, since products and sums round one by one and sums have eight lanes everywhere.
//!
//! ```text
//! highest([1, 3, 2]) = 3, first_at([1, 3, 3], 3) = 1, exp_sum([0, 0], 0) = 2
//! ```

use super::math::exp_unfused;
use super::simd::{Kernel, Simd, dispatch};

/// Values that are looked at together.
const BLOCK: usize = 64;

/// Below it `exp` is 0.
const LOWEST: f32 = -87.0;

/// `e^x` for `x <= 0` within 2 units in the last place; 0 below -87.
#[inline(always)]
pub fn exp_or_zero(x: f32) -> f32 {
    if x < LOWEST { 0.0 } else { exp_unfused(x) }
}

/// The highest value, minus infinity of an empty row; `None` if one is NaN or plus infinity.
pub fn highest(row: &[f32]) -> Option<f32> {
    dispatch(Highest(row))
}

/// Where the first value stands that equals `value`.
pub fn first_at(row: &[f32], value: f32) -> Option<usize> {
    dispatch(FirstAt(row, value))
}

/// `Σ exp(row - best)` in F64; `best` is the highest of the row.
pub fn exp_sum(row: &[f32], best: f32) -> f64 {
    dispatch(ExpSum(row, best))
}

struct Highest<'a>(&'a [f32]);

impl Kernel for Highest<'_> {
    type Output = Option<f32>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Option<f32> {
        let mut lanes = [f32::NEG_INFINITY; BLOCK];
        let mut is_wrong = [false; BLOCK];
        // NaN is not below anything.
        let is_number = |value: f32| value < f32::INFINITY;
        let mut take = |at: usize, value: f32| {
            lanes[at] = if value > lanes[at] { value } else { lanes[at] };
            is_wrong[at] |= !is_number(value);
        };
        let (blocks, rest) = self.0.as_chunks::<BLOCK>();
        for block in blocks {
            block.iter().enumerate().for_each(|(at, &value)| take(at, value));
        }
        rest.iter().enumerate().for_each(|(at, &value)| take(at, value));
        (!is_wrong.contains(&true)).then(|| lanes.into_iter().fold(f32::NEG_INFINITY, f32::max))
    }
}

struct FirstAt<'a>(&'a [f32], f32);

impl Kernel for FirstAt<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Option<usize> {
        let Self(row, wanted) = self;
        // Without a way out of the inner loop, which then is vector code.
        let holds = |block: &&[f32]| block.iter().fold(false, |any, &value| any | (value == wanted));
        let (number, block) = row.chunks(BLOCK).enumerate().find(|(_, block)| holds(block))?;
        block.iter().position(|&value| value == wanted).map(|at| number * BLOCK + at)
    }
}

struct ExpSum<'a>(&'a [f32], f32);

impl Kernel for ExpSum<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let Self(row, best) = self;
        // A block's exponentials first, then their sum in lanes: only then does each loop become vector code.
        let mut lanes = [0.0_f64; 8];
        let mut weights = [0.0_f32; BLOCK];
        let mut sum = 0.0;
        for block in row.chunks(BLOCK) {
            for (weight, &value) in weights.iter_mut().zip(block) {
                *weight = exp_or_zero(value - best);
            }
            let (chunks, rest) = weights[..block.len()].as_chunks::<8>();
            for chunk in chunks {
                for (lane, &weight) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(weight);
                }
            }
            sum += rest.iter().map(|&weight| f64::from(weight)).sum::<f64>();
        }
        lanes.iter().sum::<f64>() + sum
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::levels;
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        let mut worst = 0.0_f64;
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_or_zero(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!([0.0, -88.0, -1e30, f32::NEG_INFINITY].map(exp_or_zero), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_row_of_any_length_is_read_whole() {
        for len in (1..40).chain([63, 64, 65, 127, 128, 200]) {
            for at in 0..len {
                let mut row = vec![-1.0; len];
                row[at] = 2.0;
                assert_eq!((highest(&row), first_at(&row, 2.0), first_at(&row, 3.0)), (Some(2.0), Some(at), None));
                assert!((exp_sum(&row, 2.0) - (1.0 + (len - 1) as f64 * (-3f64).exp())).abs() < 1e-6);
                row[len - 1] = 2.0;
                assert_eq!(first_at(&row, 2.0), Some(at));
                for wrong in [f32::NAN, f32::INFINITY] {
                    row[at] = wrong;
                    assert_eq!(highest(&row), None);
                }
            }
            assert_eq!(highest(&vec![f32::NEG_INFINITY; len]), Some(f32::NEG_INFINITY));
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        let row: Vec<f32> = super::super::noise(3001, 7).into_iter().map(|x| 30.0 * x).collect();
        let best = highest(&row).unwrap();
        let sum = levels::<ExpSum>().into_iter().map(|(name, run)| (name, run(ExpSum(&row, best)).to_bits()));
        for (name, bits) in sum {
            assert_eq!(bits, exp_sum(&row, best).to_bits(), "{name}");
        }
        for (name, run) in levels::<Highest>() {
            assert_eq!(run(Highest(&row)), Some(best), "{name}");
        }
    }
}
