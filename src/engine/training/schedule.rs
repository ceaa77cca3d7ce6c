//! The learning rate of each step: a warm-up, then what the schedule says.

use std::f64::consts::PI;

use super::TrainOptions;

/// What the learning rate does behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to 0 in a line.
    Linear,
    /// It falls to 0 along half a cosine.
    Cosine,
}

impl TrainOptions {
    /// The learning rate of step `step`, from 0, of `total`. Behind the last one it stays as it would be there: 0, or constant.
    pub(super) fn learning_rate_at(&self, step: u64, total: u64) -> f64 {
        let (peak, warmup) = (self.learning_rate, self.warmup_steps);
        if step < warmup {
            let reached = if self.warmup_from_zero { step } else { step + 1 };
            return peak * reached as f64 / warmup as f64;
        }
        let progress = if step < total { (step - warmup) as f64 / (total - warmup) as f64 } else { 1.0 };
        match self.schedule {
            Schedule::Constant => peak,
            Schedule::Linear => peak * (1.0 - progress),
            Schedule::Cosine => peak * 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup_from_zero: bool, steps: [u64; 5]) -> [f64; 5] {
        let options = TrainOptions { learning_rate: 0.8, schedule, warmup_steps: 4, warmup_from_zero, ..TrainOptions::default() };
        steps.map(|step| (options.learning_rate_at(step, 12) * 1e9).round() / 1e9)
    }

    #[test]
    fn rates_warm_up_and_then_follow_the_schedule() {
        assert_eq!(rates(Schedule::Constant, false, [0, 3, 4, 11, 99]), [0.2, 0.8, 0.8, 0.8, 0.8]);
        assert_eq!(rates(Schedule::Constant, true, [0, 3, 4, 11, 99]), [0.0, 0.6, 0.8, 0.8, 0.8]);
        assert_eq!(rates(Schedule::Linear, false, [3, 4, 8, 11, 12]), [0.8, 0.8, 0.4, 0.1, 0.0]);
        // 0.4 (1 + cos(π/4)) and 0.4 (1 + cos(7π/8))
        assert_eq!(rates(Schedule::Cosine, false, [4, 6, 8, 11, 99]), [0.8, 0.682842712, 0.4, 0.030448187, 0.0]);
    }

    #[test]
    fn a_warm_up_may_be_longer_than_the_training() {
        let options = TrainOptions { learning_rate: 0.8, warmup_steps: 4, schedule: Schedule::Cosine, ..TrainOptions::default() };
        assert_eq!([0, 3, 4].map(|step| options.learning_rate_at(step, 2)), [0.2, 0.8, 0.0]);
    }
}
