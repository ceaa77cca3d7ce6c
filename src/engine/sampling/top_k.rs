//! Top-k: the k highest logits stay, and with them whatever equals the lowest of those.
//!
//! ```text
//! k = 2: [1, 3, 2, 2, 0] keeps 3, 2, 2
//! ```

use super::Sampling;

/// The lowest logit that stays; minus infinity if all do. `best` is a buffer.
///
/// One pass against a border that rises, and a selection among 2k values for each k of them that pass it: a row in any order costs
/// about as much as reading it.
pub(super) fn floor(sampling: &Sampling, logits: &[f32], best: &mut Vec<f32>) -> f32 {
    let k = sampling.top_k;
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let mut border = f32::NEG_INFINITY;
    best.clear();
    for &logit in logits {
        if logit > border || best.len() < k {
            best.push(logit);
            if best.len() == 2 * k {
                border = keep_highest(best, k);
            }
        }
    }
    keep_highest(best, k)
}

/// Leaves the k highest, and returns the lowest of them.
fn keep_highest(values: &mut Vec<f32>, k: usize) -> f32 {
    let (_, border, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let border = *border;
    values.truncate(k);
    border
}
