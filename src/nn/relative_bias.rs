//! Biases of attention scores by the distance between query and key, in buckets that widen with it.
//!
//! Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>; equal to `MPNetEncoder.relative_position_bucket` of transformers 5.23.

use super::{RelativeBiasConfig, Weights};
use crate::error;

/// Buckets of the formula.
pub const RELATIVE_BUCKETS: usize = 32;
/// From here on all distances share the last bucket.
const FARTHEST: f32 = 128.0;

/// A value for each bucket and head.
#[derive(Clone)]
pub struct RelativeBias {
    heads: usize,
    /// `(buckets, heads)`; no row behind the formula's is ever read.
    values: Vec<f32>,
}

impl RelativeBias {
    /// Reads the stored table, `(buckets, heads)`, at least [`RELATIVE_BUCKETS`] of them; `name`: with its prefix.
    pub fn load(weights: &mut Weights<'_>, name: &str, config: RelativeBiasConfig) -> error::Result<Self> {
        let values = weights.values(&[(format!("{name}.weight"), config.buckets * config.heads)])?;
        Ok(Self { heads: config.heads, values })
    }

    /// What is added to the scores of sequences of up to `longest` tokens.
    ///
    /// # Shape
    /// `(H, 2 · longest - 1)`, by the key's position minus the query's, which is 0 in the middle.
    pub fn by_distance(&self, longest: usize) -> Vec<f32> {
        let middle = longest.saturating_sub(1) as isize;
        let buckets: Vec<usize> = (-middle..=middle).map(bucket).collect();
        (0..self.heads).flat_map(|head| buckets.iter().map(move |bucket| self.values[bucket * self.heads + head])).collect()
    }
}

/// Half of the buckets are for keys behind the query; of each half, half are exact, and the others grow with the logarithm.
fn bucket(distance: isize) -> usize {
    const HALF: usize = RELATIVE_BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    let behind = if distance > 0 { HALF } else { 0 };
    let far = distance.unsigned_abs();
    if far < EXACT {
        return behind + far;
    }
    // In F32, as the reference rounds: at powers of two the next bucket begins.
    let grown = (far as f32 / EXACT as f32).ln() / (FARTHEST / EXACT as f32).ln() * (HALF - EXACT) as f32;
    behind + (EXACT + grown as usize).min(HALF - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_reference() {
        // `relative_position_bucket(-distance, num_buckets=32)` of transformers 5.23, with the key's position minus the query's.
        let want = [
            (0, 0),
            (-1, 1),
            (1, 17),
            (-7, 7),
            (7, 23),
            (-8, 8),
            (8, 24),
            (-11, 8),
            (-12, 9),
            (-15, 9),
            (-16, 10),
            (-22, 10),
            (-23, 11),
            (-31, 11),
            (-32, 12),
            (32, 28),
            (-45, 12),
            (-46, 13),
            (-63, 13),
            (-64, 14),
            (-90, 14),
            (-91, 15),
            (-127, 15),
            (-128, 15),
            (300, 31),
        ];
        for (distance, bucket) in want {
            assert_eq!(super::bucket(distance), bucket, "distance {distance}");
        }
    }

    #[test]
    fn each_head_has_its_row_with_zero_distance_in_the_middle() {
        let bias = RelativeBias { heads: 2, values: (0..64).map(|x| x as f32).collect() };
        // Bucket 1 is one before the query, 16 + 1 one behind.
        assert_eq!(bias.by_distance(2), [2.0, 0.0, 34.0, 3.0, 1.0, 35.0]);
        assert_eq!(bias.by_distance(1), [0.0, 1.0]);
    }
}
