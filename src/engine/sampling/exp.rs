//! The exponential and its sum over a row, with the same bits on every machine: a seed should give the same text
//! everywhere.
//!
//! ```text
//! log_sum_exp([0, 0]) = 0.6931472
//! ```

use crate::kernels::exp_unfused;

/// `e^x` for `x <= 0` within 2 units in the last place; 0 below -87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    if x < LOWEST { 0.0 } else { exp_unfused(x) }
}

/// `ln Σ exp(logits)`, relative to `best`, the highest; the sum is F64.
pub(super) fn log_sum_exp(logits: &[f32], best: f32) -> f64 {
    // A block's exponentials first, then their sum in lanes: only then does each loop become vector code.
    let mut lanes = [0.0_f64; 8];
    let mut weights = [0.0_f32; 64];
    let mut sum = 0.0;
    for block in logits.chunks(weights.len()) {
        for (weight, &logit) in weights.iter_mut().zip(block) {
            *weight = exp(logit - best);
        }
        let (chunks, rest) = weights[..block.len()].as_chunks::<8>();
        for chunk in chunks {
            for (lane, &weight) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(weight);
            }
        }
        sum += rest.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    }
    f64::from(best) + (lanes.iter().sum::<f64>() + sum).ln()
}

/// The highest logit, or what is wrong with the row.
pub(super) fn highest(logits: &[f32]) -> Result<f32, String> {
    // NaN is not below anything.
    let is_number = |logit: &f32| *logit < f32::INFINITY;
    let mut lanes = [f32::NEG_INFINITY; 8];
    let mut is_wrong = [false; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for ((lane, is_wrong), &logit) in lanes.iter_mut().zip(&mut is_wrong).zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
            *is_wrong |= !is_number(&logit);
        }
    }
    let best = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if is_wrong.contains(&true) || !rest.iter().all(is_number) {
        let wrong = logits.iter().enumerate().find(|(_, logit)| !is_number(logit));
        return Err(wrong.map_or_else(String::new, |(id, logit)| format!("token {id}: expected a number, found {logit}")));
    }
    if best == f32::NEG_INFINITY {
        return Err("expected a number, found minus infinity for every token".to_owned());
    }
    Ok(best)
}

const LOWEST: f32 = -87.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        let mut worst = 0.0_f64;
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!((exp(0.0), exp(-88.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn a_row_of_any_length_is_read_whole() {
        for len in 1..40 {
            for at in 0..len {
                let mut row = vec![-1.0; len];
                row[at] = 2.0;
                assert_eq!(highest(&row), Ok(2.0));
                let exact = (2f64.exp() + (len - 1) as f64 * (-1f64).exp()).ln();
                assert!((log_sum_exp(&row, 2.0) - exact).abs() < 1e-6);
                for wrong in [f32::NAN, f32::INFINITY] {
                    row[at] = wrong;
                    assert_eq!(highest(&row), Err(format!("token {at}: expected a number, found {wrong}")));
                }
            }
            assert!(highest(&vec![f32::NEG_INFINITY; len]).is_err());
        }
    }
}
