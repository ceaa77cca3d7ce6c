//! AdamW with decoupled weight decay, <https://arxiv.org/abs/1711.05101>: torch's formula, in its order of operations and in F32, so
//! that results stay within rounding of `torch.optim.AdamW`.

use rayon::prelude::*;

use super::parallel::install;

/// Values of a part: fewer do not pay for a second thread.
const GRAIN: usize = if cfg!(miri) { 1 << 6 } else { 1 << 14 };

/// One step of the optimizer.
pub struct AdamW {
    /// In `0..1`.
    pub beta1: f64,
    /// In `0..1`.
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub learning_rate: f64,
    /// From 1.
    pub step: u64,
}

impl AdamW {
    /// Changes values by their gradients, which are `gradients` times `clip`, and both moments, which begin as zeros.
    ///
    /// # Shape
    /// All of one length.
    pub fn update(&self, values: &mut [f32], gradients: &[f32], clip: f32, first: &mut [f32], second: &mut [f32]) {
        let len = values.len();
        assert!(gradients.len() == len && first.len() == len && second.len() == len, "a gradient and two moments for each value");
        let coefficients = self.coefficients();
        install(|| {
            let gradients = gradients.par_chunks(GRAIN);
            let moments = first.par_chunks_mut(GRAIN).zip(second.par_chunks_mut(GRAIN));
            values.par_chunks_mut(GRAIN).zip(gradients).zip(moments).for_each(|((values, gradients), (first, second))| {
                coefficients.update(values, gradients, clip, first, second);
            });
        });
    }

    /// What every value has in common.
    pub fn coefficients(&self) -> Coefficients {
        let Self { beta1, beta2, epsilon, weight_decay, learning_rate, step } = *self;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Coefficients {
            keep: (1.0 - learning_rate * weight_decay) as f32,
            first_weight: (1.0 - beta1) as f32,
            second_keep: beta2 as f32,
            second_weight: (1.0 - beta2) as f32,
            step_size: (learning_rate / correction(beta1)) as f32,
            second_root: correction(beta2).sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }
}

/// What does not depend on the value.
pub struct Coefficients {
    /// What is left after the decay.
    pub keep: f32,
    /// Of the difference to the first moment.
    pub first_weight: f32,
    pub second_keep: f32,
    pub second_weight: f32,
    /// The learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// The root of the second moment's bias correction.
    pub second_root: f32,
    pub epsilon: f32,
}

impl Coefficients {
    fn update(&self, values: &mut [f32], gradients: &[f32], clip: f32, first: &mut [f32], second: &mut [f32]) {
        for (((value, gradient), m), v) in values.iter_mut().zip(gradients).zip(first).zip(second) {
            let gradient = gradient * clip;
            // torch's lerp, which is the same as m·β₁ + g·(1 - β₁) up to rounding.
            *m = if self.first_weight < 0.5 {
                *m + self.first_weight * (gradient - *m)
            } else {
                gradient - (gradient - *m) * (1.0 - self.first_weight)
            };
            // Bounded, or one huge gradient would hold its weight still for ever.
            *v = (*v * self.second_keep + self.second_weight * gradient * gradient).min(f32::MAX);
            *value = *value * self.keep - self.step_size * *m / (v.sqrt() / self.second_root + self.epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    #[test]
    fn two_steps_equal_those_by_hand() {
        let adam = |step| AdamW { beta1: 0.5, beta2: 0.75, epsilon: 0.5, weight_decay: 0.25, learning_rate: 0.5, step };
        let (mut x, mut m, mut v) = ([2.0, -1.0], [0.0; 2], [0.0; 2]);
        // m = 0.5 g, v = 0.25 g², corrected to g and g²: x (1 - 0.5·0.25) - 0.5 g / (|g| + 0.5)
        adam(1).update(&mut x, &[8.0, -3.0], 0.5, &mut m, &mut v);
        assert_eq!((m, v), ([2.0, -0.75], [4.0, 0.5625]));
        let expected = [1.75 - 0.5 * 4.0 / 4.5, -0.875 + 0.5 * 1.5 / 2.0];
        assert!(x.iter().zip(expected).all(|(x, y): (&f32, f32)| (x - y).abs() < 1e-6), "{x:?}");
        // m = 1 + 0.5·1 = 1.5 and -0.375, over 1 - 0.5²; v = 3 + 0.25 = 3.25 and 0.421875, over 1 - 0.75²
        let before = x;
        adam(2).update(&mut x, &[1.0, 0.0], 1.0, &mut m, &mut v);
        assert_eq!((m, v), ([1.5, -0.375], [3.25, 0.421875]));
        let root = |v: f32| (v / 0.4375).sqrt();
        let expected =
            [before[0] * 0.875 - 0.5 * 2.0 / (root(3.25) + 0.5), before[1] * 0.875 + 0.5 * 0.5 / (root(0.421875) + 0.5)];
        assert!(x.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{x:?} {expected:?}");
    }

    #[test]
    fn weights_decay_where_there_is_no_gradient() {
        let adam = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.5, learning_rate: 0.5, step: 1 };
        let mut x = [3.0];
        adam.update(&mut x, &[0.0], 1.0, &mut [0.0], &mut [0.0]);
        assert_eq!(x, [2.25]);
    }

    #[test]
    fn a_value_has_the_same_bits_in_any_company() {
        let (len, adam) = (2 * GRAIN + 7, |step| AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            learning_rate: 0.01,
            step,
        });
        let gradients = [noise(len, 1), noise(len, 2)];
        let run = |parts: usize| {
            let (mut x, mut m, mut v) = (noise(len, 3), vec![0.0; len], vec![0.0; len]);
            for (step, gradients) in (1..).zip(&gradients) {
                let of = len.div_ceil(parts);
                let moments = m.chunks_mut(of).zip(v.chunks_mut(of));
                for ((x, g), (m, v)) in x.chunks_mut(of).zip(gradients.chunks(of)).zip(moments) {
                    adam(step).update(x, g, 0.3, m, v);
                }
            }
            (x, m, v)
        };
        assert_eq!(run(1), run(len / 5));
    }
}
