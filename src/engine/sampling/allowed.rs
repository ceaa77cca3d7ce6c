//! Tokens that a grammar rules out: minus infinity, whatever penalties and biases made of them.
//!
//! ```text
//! [1, 3, 2] with bits 0b101 becomes [1, -inf, 2]
//! ```

/// Bit `id % 32` of word `id / 32` allows a token; one without a bit is ruled out.
pub(super) fn apply(allowed: &[u32], logits: &mut [f32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (block, word) in logits.chunks_mut(32).zip(words) {
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in block.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{Sampler, Sampling};

    /// A row of 70, of which three words of bits allow 1, 40 and 69; the best of all is 2.
    fn row() -> (Vec<f32>, [u32; 3]) {
        let mut logits: Vec<f32> = (0..70).map(|id| -(id as f32) / 10.0).collect();
        logits[2] = 5.0;
        (logits, [1 << 1, 1 << 8, 1 << 5])
    }

    #[test]
    fn only_allowed_tokens_are_drawn_whatever_the_settings() {
        let (logits, allowed) = row();
        let chains = [
            Sampling::default(),
            Sampling { temperature: 1.0, ..Sampling::default() },
            Sampling { temperature: 100.0, top_k: 50, top_p: 0.999, min_p: 1e-6, ..Sampling::default() },
            Sampling { temperature: 2.0, repetition_penalty: 0.1, frequency_penalty: -9.0, ..Sampling::default() },
            Sampling { logit_bias: vec![(2, 1e30), (3, 1e30)], ..Sampling::default() },
        ];
        for sampling in chains {
            let greedy = sampling.temperature == 0.0;
            let mut sampler = Sampler::new(Sampling { seed: Some(1), ..sampling }, logits.len()).unwrap();
            let mut seen = [0; 70];
            for _ in 0..300 {
                let (id, logprob) = sampler.sample_allowed(&logits, Some(&allowed), &[2, 3], &[2, 2]).unwrap();
                seen[id as usize] += 1;
                // The row's own probability, not that among the allowed.
                let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                assert!((f64::from(logprob) - (f64::from(logits[id as usize]) - total.ln())).abs() < 1e-5);
            }
            let drawn: Vec<usize> = (0..70).filter(|&id| seen[id] > 0).collect();
            assert!(drawn.iter().all(|id| [1, 40, 69].contains(id)), "{drawn:?}");
            assert!(if greedy { drawn == [1] } else { drawn.len() > 1 }, "{drawn:?}");
        }
    }

    #[test]
    fn ids_behind_the_last_word_are_ruled_out() {
        let (logits, _) = row();
        let mut sampler = Sampler::new(Sampling::default(), logits.len()).unwrap();
        let (id, _) = sampler.sample_allowed(&logits, Some(&[1 << 31]), &[], &[]).unwrap();
        assert_eq!(id, 31);
        let error = sampler.sample_allowed(&logits, Some(&[]), &[], &[]).unwrap_err();
        assert_eq!(
            error.message(),
            "penalties, logit_bias and json_schema: expected a number, found minus infinity for every token"
        );
    }

    #[test]
    fn all_tokens_allowed_is_no_constraint() {
        let (logits, _) = row();
        let draw = |allowed: Option<&[u32]>| {
            let sampling = Sampling { temperature: 3.0, seed: Some(5), ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, logits.len()).unwrap();
            (0..50).map(|_| sampler.sample_allowed(&logits, allowed, &[], &[]).unwrap().0).collect::<Vec<_>>()
        };
        assert_eq!(draw(Some(&[u32::MAX; 3])), draw(None));
    }
}
