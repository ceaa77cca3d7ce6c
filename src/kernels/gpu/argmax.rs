//! The greedy choice, of which the host reads a few words in place of all scores.

use candle_core::{Result, bail};

use super::device::{GpuView, LaunchList};
use super::launch::{MOST_ROWS, RowKernels, THREADS};

/// Scores that a threadgroup looks through.
const PART: usize = 1024;
/// What it finds, see `argmax.h`.
const WORDS: usize = 4;

/// The most probable token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestToken {
    /// The lowest of equals.
    pub id: u32,
    /// The natural logarithm of its probability; NaN where the scores are no distribution.
    pub logprob: f32,
}

impl BestToken {
    /// Words that [`LaunchList::argmax`] gives of a row of so many scores.
    pub fn words(scores: usize) -> usize {
        WORDS * scores.div_ceil(PART)
    }

    /// The best of the parts of a row.
    pub fn of(words: &[f32]) -> Self {
        let (parts, _) = words.as_chunks::<WORDS>();
        let (highest, id) = parts.iter().fold((f32::NEG_INFINITY, u32::MAX), |(highest, id), &[part, _, own, _]| {
            // Parts are in the order of their ids: the first of equals stays. One without a number has no id.
            if part > highest && own.to_bits() != u32::MAX { (part, own.to_bits()) } else { (highest, id) }
        });
        let weight = |part: &[f32; WORDS]| f64::from(part[1]) * f64::from(part[0] - highest).exp();
        let sum: f64 = parts.iter().map(weight).sum();
        // A sum that is NaN has no logarithm either; of no number at all it is 0.
        Self { id, logprob: if id == u32::MAX || !highest.is_finite() { f32::NAN } else { -sum.ln() as f32 } }
    }
}

impl<'a> LaunchList<'a> {
    /// The greatest of each row of `count` scores, behind a softcap: [`BestToken::words`] a row.
    pub fn argmax(
        &mut self,
        kernels: RowKernels,
        (scores, rows, count): (GpuView<'a>, usize, usize),
        softcap: Option<f32>,
        best: GpuView<'a>,
    ) -> Result<()> {
        if rows == 0 || rows > MOST_ROWS || count == 0 {
            bail!("argmax: expected 1 to {MOST_ROWS} rows of scores, found {rows} of {count}")
        }
        scores.holds(rows * count, "argmax: scores")?;
        best.holds(rows * BestToken::words(count), "argmax: best")?;
        let grid = [count.div_ceil(PART) as u32, rows as u32, 1];
        let words = [count as u32, PART as u32, softcap.unwrap_or(0.0).to_bits()];
        self.push(kernels.argmax, grid, THREADS, &[scores, best], &words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(parts: &[(f32, f32, u32)]) -> BestToken {
        let words: Vec<f32> = parts.iter().flat_map(|&(highest, sum, id)| [highest, sum, f32::from_bits(id), 0.0]).collect();
        BestToken::of(&words)
    }

    #[test]
    fn parts_make_a_whole() {
        let none = (-1e30, 0.0, u32::MAX);
        assert_eq!(best(&[(1.0, 1.0, 3)]), BestToken { id: 3, logprob: 0.0 });
        // Of equals the first; a part that is all minus infinity has no share.
        let found = best(&[none, (2.0, 1.5, 1030), (2.0, 2.5, 2050), (2.0 - 2f32.ln(), 8.0, 4000)]);
        assert_eq!(found.id, 1030);
        assert!((found.logprob + 8f32.ln()).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn what_is_no_distribution_has_no_probability() {
        let none = (-1e30, 0.0, u32::MAX);
        for parts in [
            &[none, none][..],
            &[],
            &[(1.0, 1.0, 0), (f32::INFINITY, f32::NAN, 1500)],
            &[(1.0, 1.0, 0), (3.0, f32::NAN, 1500)],
            &[(1.0, f32::NAN, 0), (3.0, 1.0, 1500)],
            &[(-1e30, f32::NAN, u32::MAX), (3.0, 1.0, 1500)],
        ] {
            assert!(best(parts).logprob.is_nan(), "{parts:?}");
        }
    }
}
