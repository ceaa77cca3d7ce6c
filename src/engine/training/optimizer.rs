//! AdamW with decoupled weight decay, <https://arxiv.org/abs/1711.05101>: torch's formula, in its order of operations and in F32, so
//! that results stay within rounding of `torch.optim.AdamW`.

use super::TrainOptions;

/// The step of one set of values: what does not depend on the value.
pub(super) struct AdamW {
    /// What is left after the decay.
    keep: f32,
    /// Of the difference to the first moment.
    first_weight: f32,
    second_keep: f32,
    second_weight: f32,
    /// The learning rate over the first moment's bias correction.
    step_size: f32,
    /// The root of the second moment's bias correction.
    second_root: f32,
    epsilon: f32,
}

impl AdamW {
    /// `step`: from 1.
    pub fn new(options: &TrainOptions, learning_rate: f64, step: u64) -> Self {
        let (beta1, beta2) = (options.beta1, options.beta2);
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            keep: (1.0 - learning_rate * options.weight_decay) as f32,
            first_weight: (1.0 - beta1) as f32,
            second_keep: beta2 as f32,
            second_weight: (1.0 - beta2) as f32,
            step_size: (learning_rate / correction(beta1)) as f32,
            second_root: correction(beta2).sqrt() as f32,
            epsilon: options.epsilon as f32,
        }
    }

    /// `gradients` times `clip` are the gradients.
    pub fn update(&self, values: &mut [f32], gradients: &[f32], clip: f32, first: &mut [f32], second: &mut [f32]) {
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
    use super::*;

    #[test]
    fn two_steps_equal_those_by_hand() {
        let options = TrainOptions { beta1: 0.5, beta2: 0.75, epsilon: 0.5, weight_decay: 0.25, ..TrainOptions::default() };
        let (mut x, mut m, mut v) = ([2.0, -1.0], [0.0; 2], [0.0; 2]);
        // m = 0.5 g, v = 0.25 g², corrected to g and g²: x (1 - 0.5·0.25) - 0.5 g / (|g| + 0.5)
        AdamW::new(&options, 0.5, 1).update(&mut x, &[8.0, -3.0], 0.5, &mut m, &mut v);
        assert_eq!((m, v), ([2.0, -0.75], [4.0, 0.5625]));
        let expected = [1.75 - 0.5 * 4.0 / 4.5, -0.875 + 0.5 * 1.5 / 2.0];
        assert!(x.iter().zip(expected).all(|(x, y): (&f32, f32)| (x - y).abs() < 1e-6), "{x:?}");
        // m = 1 + 0.5·1 = 1.5 and -0.375, over 1 - 0.5²; v = 3 + 0.25 = 3.25 and 0.421875, over 1 - 0.75²
        let before = x;
        AdamW::new(&options, 0.5, 2).update(&mut x, &[1.0, 0.0], 1.0, &mut m, &mut v);
        assert_eq!((m, v), ([1.5, -0.375], [3.25, 0.421875]));
        let root = |v: f32| (v / 0.4375).sqrt();
        let expected =
            [before[0] * 0.875 - 0.5 * 2.0 / (root(3.25) + 0.5), before[1] * 0.875 + 0.5 * 0.5 / (root(0.421875) + 0.5)];
        assert!(x.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-6), "{x:?} {expected:?}");
    }

    #[test]
    fn weights_decay_where_there_is_no_gradient() {
        let options = TrainOptions { weight_decay: 0.5, ..TrainOptions::default() };
        let mut x = [3.0];
        AdamW::new(&options, 0.5, 1).update(&mut x, &[0.0], 1.0, &mut [0.0], &mut [0.0]);
        assert_eq!(x, [2.25]);
    }
}
