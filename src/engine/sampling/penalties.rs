//! Repetition, frequency and presence: what was said before becomes less likely.
//!
//! ```text
//! repetition 2: logit 3 → 1.5, logit -3 → -6, once a token, over the last tokens of prompt and answer
//! frequency 0.5, said three times: logit 3 → 1.5; presence 0.5: logit 3 → 2.5; both over the answer only
//! ```
//!
//! # Source
//! Keskar et al. 2019, section 4.1, <https://arxiv.org/abs/1909.05858>, with the sign as transformers'
//! `RepetitionPenaltyLogitsProcessor` has it; frequency and presence as OpenAI's API documents them.

use super::Sampling;

pub(super) fn is_on(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0 || sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0
}

/// `counts`: a buffer of zeros that is left as zeros. Ids outside of the row are passed over: a prompt may hold tokens that the
/// model has no logit for.
pub(super) fn apply(sampling: &Sampling, logits: &mut [f32], counts: &mut Vec<u32>, context: &[u32], generated: &[u32]) {
    counts.resize(logits.len(), 0);
    if sampling.repetition_penalty != 1.0 {
        let last_n = if sampling.repetition_last_n == 0 { usize::MAX } else { sampling.repetition_last_n };
        let from_generated = &generated[generated.len().saturating_sub(last_n)..];
        let from_context = &context[context.len().saturating_sub(last_n - from_generated.len())..];
        count(counts, from_context);
        count(counts, from_generated);
        take_counts(counts, from_context.iter().chain(from_generated), |id, _| {
            let logit = &mut logits[id];
            *logit = if *logit > 0.0 { *logit / sampling.repetition_penalty } else { *logit * sampling.repetition_penalty };
        });
    }
    if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
        count(counts, generated);
        take_counts(counts, generated, |id, count| {
            logits[id] -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
        });
    }
}

fn count(counts: &mut [u32], ids: &[u32]) {
    for &id in ids {
        if let Some(count) = counts.get_mut(id as usize) {
            *count = count.saturating_add(1);
        }
    }
}

/// Hands over each counted id once, and sets its count back to zero.
fn take_counts<'i>(counts: &mut [u32], ids: impl IntoIterator<Item = &'i u32>, mut change: impl FnMut(usize, u32)) {
    for &id in ids {
        match counts.get_mut(id as usize) {
            Some(count) if *count > 0 => change(id as usize, std::mem::take(count)),
            _ => {}
        }
    }
}
