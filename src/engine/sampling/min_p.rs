//! Min-p: tokens at least `min_p` times as likely as the best stay.
//!
//! ```text
//! min_p = 0.2: [0.6, 0.3, 0.1] keeps 0.6, 0.3
//! ```
//!
//! # Source
//! Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>.

use super::{Candidate, Sampling};

pub(super) fn cut(sampling: &Sampling, candidates: &mut Vec<Candidate>, _: &mut Vec<Candidate>) {
    if sampling.min_p > 0.0 {
        candidates.retain(|candidate| candidate.weight >= sampling.min_p);
    }
}
