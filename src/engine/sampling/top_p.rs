//! Top-p: the fewest of the likeliest tokens whose probability reaches p stay; of equal ones at the border, the lower ids.
//!
//! ```text
//! p = 0.8: [0.5, 0.25, 0.15, 0.1] keeps 0.5, 0.25, 0.15
//! ```
//!
//! # Source
//! Holtzman et al. 2020, section 3.1, <https://arxiv.org/abs/1904.09751>; equals `TopPLogitsWarper` of transformers, which removes
//! from the unlikely end.

use super::{Candidate, Sampling, total_weight};

/// Adds up the weights in buckets by their magnitude; only the bucket in which the sum reaches p is sorted.
pub(super) fn cut(sampling: &Sampling, candidates: &mut Vec<Candidate>, border: &mut Vec<Candidate>) {
    if sampling.top_p >= 1.0 {
        return;
    }
    let wanted = f64::from(sampling.top_p) * total_weight(candidates);
    let mut buckets = [0.0_f64; BUCKETS];
    for candidate in candidates.iter() {
        buckets[bucket(candidate)] += f64::from(candidate.weight);
    }
    let (mut sum, mut at) = (0.0, 0);
    while at + 1 < BUCKETS && sum + buckets[at] < wanted {
        sum += buckets[at];
        at += 1;
    }
    border.clear();
    border.extend(candidates.iter().filter(|candidate| bucket(candidate) == at));
    border.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    let mut last = None;
    for candidate in border.iter() {
        if sum >= wanted {
            break;
        }
        sum += f64::from(candidate.weight);
        last = Some(*candidate);
    }
    candidates.retain(|candidate| {
        let in_border =
            |last: Candidate| candidate.logit > last.logit || (candidate.logit == last.logit && candidate.id <= last.id);
        bucket(candidate) < at || (bucket(candidate) == at && last.is_some_and(in_border))
    });
}

/// Which bucket a weight of 0 to 1 belongs to, the heaviest first: eight to each halving. Monotone in the weight, as the bits of a
/// positive float are.
fn bucket(candidate: &Candidate) -> usize {
    let distance = 1.0_f32.to_bits().saturating_sub(candidate.weight.to_bits()) >> 20;
    (distance as usize).min(BUCKETS - 1)
}

/// 64 halvings; what is lighter shares the last bucket.
const BUCKETS: usize = 512;
