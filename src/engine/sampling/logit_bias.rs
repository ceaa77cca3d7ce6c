//! Biases that the caller adds to single logits, after the penalties; minus infinity forbids a token.

use super::Sampling;

pub(super) fn apply(sampling: &Sampling, logits: &mut [f32]) {
    for &(id, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}
