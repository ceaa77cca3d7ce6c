//! Elementary functions without branches, so that a loop over them becomes vector code.

use super::simd::{LANES, Simd};

/// `eˣ`, relative error below 3e-7 between -87 and 88; beyond, the value at that end. NaN gives NaN.
#[inline(always)]
pub fn exp<S: Simd>(x: f32) -> f32 {
    exp_by(x, S::fma1)
}

/// [`exp`] with the same bits on every processor: products and sums round one by one.
#[inline(always)]
pub fn exp_unfused(x: f32) -> f32 {
    exp_by(x, |a, b, c| a * b + c)
}

#[inline(always)]
fn exp_by(x: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts, so that r keeps its low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Added to 1.5 · 2²³ a number is rounded to a whole one, and its low bits are that number: a conversion to an integer has its
    // own rules for what does not fit, and is done one by one for them.
    const WHOLE: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    // Minimax polynomial of Cephes' expf.
    let mut p = 1.987_569_1e-4;
    p = fma(p, r, 1.398_199_9e-3);
    p = fma(p, r, 8.333_452e-3);
    p = fma(p, r, 4.166_579_6e-2);
    p = fma(p, r, 1.666_666_5e-1);
    p = fma(p, r, 0.5);
    let y = fma(p * r, r, r) + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_sub(WHOLE.to_bits()).wrapping_add(127) << 23)
}

/// `tanh x`, absolute error below 2e-7.
#[inline(always)]
pub fn tanh<S: Simd>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<S>(2.0 * x) + 1.0)
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Simd>(x: f32) -> f32 {
    x / (1.0 + exp::<S>(-x))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// GELU in its tanh form (Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>).
#[inline(always)]
pub fn gelu_tanh<S: Simd>(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh::<S>(SQRT_2_OVER_PI * x * S::fma1(0.044715 * x, x, 1.0)))
}

/// GELU with the error function, `x Φ(x)`; relative error of Φ below 5e-7 of one.
#[inline(always)]
pub fn gelu_erf<S: Simd>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<S>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The largest value, sixteen at a time: one after another, each comparison would wait for the one before.
#[inline(always)]
pub fn largest(row: &[f32]) -> f32 {
    let (vectors, rest) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for vector in vectors {
        larger(&mut most, vector);
    }
    rest.iter().fold(largest_lane(most), |most, &x| if x > most { x } else { most })
}

/// Keeps the larger value of each lane.
#[inline(always)]
pub fn larger(most: &mut [f32; LANES], x: &[f32; LANES]) {
    most.iter_mut().zip(x).for_each(|(most, &x)| *most = if x > *most { x } else { *most });
}

/// The largest of sixteen lanes.
#[inline(always)]
pub fn largest_lane(lanes: [f32; LANES]) -> f32 {
    by_halves(lanes, |a, b| if b > a { b } else { a })
}

/// The sum of sixteen lanes, half of them at a time.
#[inline(always)]
pub fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    by_halves(lanes, |a, b| a + b)
}

#[inline(always)]
fn by_halves(mut lanes: [f32; LANES], both: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(a, b)| *a = both(*a, *b));
    }
    lanes[0]
}

/// The sum of `y · f(x)` in sixteen lanes.
#[inline(always)]
pub fn lane_dot(y: &[f32], x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let ((ys, y_rest), (xs, x_rest)) = (y.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (y, x) in ys.iter().zip(xs) {
        sums.iter_mut().zip(y).zip(x).for_each(|((sum, y), x)| *sum += y * f(*x));
    }
    sum_lanes(sums) + y_rest.iter().zip(x_rest).map(|(y, x)| y * f(*x)).sum::<f32>()
}

/// The sum of `f(x)` in sixteen lanes.
#[inline(always)]
pub fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for vector in vectors {
        sums.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += f(x));
    }
    sum_lanes(sums) + rest.iter().map(|&x| f(x)).sum::<f32>()
}

/// The slopes of the functions above.
pub mod slope {
    use super::{Simd, erf, exp};

    /// Of [`silu`](super::silu).
    #[inline(always)]
    pub fn silu<S: Simd>(x: f32) -> f32 {
        let sigmoid = 1.0 / (1.0 + exp::<S>(-x));
        sigmoid * (1.0 + x * (1.0 - sigmoid))
    }

    /// Of [`gelu_tanh`](super::gelu_tanh).
    #[inline(always)]
    pub fn gelu_tanh<S: Simd>(x: f32) -> f32 {
        let inner = super::SQRT_2_OVER_PI * x * S::fma1(0.044715 * x, x, 1.0);
        let tanh = super::tanh::<S>(inner);
        let slope = super::SQRT_2_OVER_PI * S::fma1(3.0 * 0.044715 * x, x, 1.0);
        0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope
    }

    /// Of [`gelu_erf`](super::gelu_erf).
    #[inline(always)]
    pub fn gelu_erf<S: Simd>(x: f32) -> f32 {
        const DENSITY: f32 = 0.398_942_3; // 1 / √(2π)
        0.5 * (1.0 + erf::<S>(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp::<S>(-0.5 * x * x)
    }
}

/// The error function as a rational function of `x` clamped to ±4, as XLA computes it; absolute error below 5e-7.
#[inline(always)]
pub fn erf<S: Simd>(x: f32) -> f32 {
    const P: [f32; 7] =
        [-2.726_142e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2];
    const Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2];
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let p = P.into_iter().reduce(|p, c| S::fma1(p, x2, c)).expect("a polynomial");
    let q = Q.into_iter().reduce(|q, c| S::fma1(q, x2, c)).expect("a polynomial");
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    fn worst(range: std::ops::Range<f32>, ours: fn(f32) -> f32, exact: fn(f64) -> f64, relative: bool) -> f64 {
        let steps = 200_000;
        let mut worst = 0f64;
        for i in 0..=steps {
            let x = range.start + (range.end - range.start) * i as f32 / steps as f32;
            let want = exact(f64::from(x));
            let scale = if relative { want.abs() } else { 1.0 };
            worst = worst.max((f64::from(ours(x)) - want).abs() / scale);
        }
        worst
    }

    #[test]
    fn functions_keep_their_stated_errors() {
        assert!(worst(-86.9..87.9, exp::<Portable>, f64::exp, true) < 3e-7);
        assert!(worst(-86.9..87.9, exp_unfused, f64::exp, true) < 3e-7);
        assert!(worst(-12.0..12.0, tanh::<Portable>, f64::tanh, false) < 2e-7);
        let silu_exact = |x: f64| x / (1.0 + (-x).exp());
        assert!(worst(-20.0..20.0, silu::<Portable>, silu_exact, false) < 2e-6);
        let gelu_exact = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh());
        assert!(worst(-6.0..6.0, gelu_tanh::<Portable>, gelu_exact, false) < 1e-6);
        assert!(worst(-5.0..5.0, erf::<Portable>, candle_core::cpu::erf::erf_f64, false) < 5e-7);
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp::<Portable>(0.0), 1.0);
        assert!(exp::<Portable>(f32::NEG_INFINITY) < 2e-38);
        assert!(exp::<Portable>(1e9).is_finite());
        assert!(exp::<Portable>(f32::NAN).is_nan());
    }
}
