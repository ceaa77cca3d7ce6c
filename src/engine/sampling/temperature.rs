//! Temperature: logits over it, then softmax; below 1 the likely tokens gain, above 1 the others.
//!
//! ```text
//! weight = exp((logit - best) / temperature)
//! ```
//! The probability of a token is its weight over the sum of them. Temperature 0 does not come here: it is argmax.

use super::{Candidate, Sampling};
use crate::kernels::exp_or_zero;

/// The tokens from `floor` up, but for those at minus infinity.
pub(super) fn weigh(sampling: &Sampling, logits: &[f32], best: f32, floor: f32, candidates: &mut Vec<Candidate>) {
    let floor = floor.max(f32::MIN);
    let mut weights = [0.0_f32; 64];
    for (at, block) in logits.chunks(weights.len()).enumerate() {
        // Behind top-k most blocks hold nothing.
        if !block.iter().fold(false, |any, &logit| any | (logit >= floor)) {
            continue;
        }
        // All of a block, because that is vector code and one at a time is not.
        for (weight, &logit) in weights.iter_mut().zip(block) {
            *weight = exp_or_zero((logit - best) / sampling.temperature);
        }
        let first = at * weights.len();
        let kept = block.iter().zip(&weights).enumerate().filter(|(_, (logit, _))| **logit >= floor);
        candidates.extend(kept.map(|(id, (&logit, &weight))| Candidate { id: (first + id) as u32, logit, weight }));
    }
}
