//! The angles of rotary position embedding, for each way of stretching them to longer contexts.
//!
//! Equal to `modeling_rope_utils` of transformers 5.23.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::Arc;

use crate::error::OutOfMemory;
use crate::ops::{Angles, Backend};

/// How a model's frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    Default,
    /// All frequencies divided by `factor` (Chen et al. 2023, <https://arxiv.org/abs/2306.15595>).
    Linear {
        factor: f64,
    },
    /// The base grows with the sequence once that passes `max_positions` (NTK-aware).
    Dynamic {
        factor: f64,
        max_positions: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: usize,
    },
    /// Peng et al. 2023, <https://arxiv.org/abs/2309.00071>.
    Yarn {
        factor: f64,
        original: usize,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        truncate: bool,
    },
    /// Of all pairs of a head the first so many turn, by frequencies that are divided by `factor`; the others stand.
    Proportional {
        turned: usize,
        factor: f64,
    },
    /// A factor a frequency, of which there are two sets (Ding et al. 2024, <https://arxiv.org/abs/2402.13753>).
    LongRope {
        /// As long as half a head: ropes that differ in their base alone share both.
        short: Arc<[f64]>,
        long: Arc<[f64]>,
        original: usize,
        attention_factor: f64,
    },
}

/// Which two values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// The two that are half of the rotated values apart.
    Halves,
    Neighbours,
}

/// Queries that grow with their position: times `1 + beta · ln(1 + floor(position / original))`, as Llama 4 and Ministral 3 have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    pub beta: f64,
    pub original: usize,
}

impl QueryGrowth {
    fn at(self, position: usize) -> f32 {
        // In F32, as the reference computes.
        1.0 + self.beta as f32 * (1.0 + (position / self.original) as f32).ln()
    }
}

/// One rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Values of a head that are rotated; even.
    pub dim: usize,
    pub pairs: Pairs,
    pub scaling: Scaling,
    /// Only where whole heads are rotated: it is a factor of the angles' sines and cosines.
    pub query_growth: Option<QueryGrowth>,
}

/// The angles of a pass for queries and for keys, which differ where queries grow.
pub struct RopeAngles {
    pub queries: Angles,
    pub keys: Angles,
}

impl Rope {
    /// Sequences of equal regime have equal frequencies: 0 for all, but for the kinds that look at the sequence's length.
    pub fn regime(&self, length: usize) -> usize {
        match self.scaling {
            Scaling::LongRope { original, .. } => usize::from(length > original),
            Scaling::Dynamic { max_positions, .. } if length > max_positions => length,
            _ => 0,
        }
    }

    /// Whether the frequencies change with every token beyond the trained length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. })
    }

    /// Angles for spans of positions, one after another, each with the tokens of the whole sequence that it is part of.
    pub fn angles(&self, spans: &[(Range<usize>, usize)], backend: &Backend) -> candle_core::Result<RopeAngles> {
        let factor = self.attention_factor() as f32;
        let half = self.dim / 2;
        let total = spans.iter().map(|(span, _)| span.len()).sum::<usize>() * half;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for values in [&mut cos, &mut sin] {
            values.try_reserve_exact(total).map_err(|_| OutOfMemory { what: format!("{total} angles of positions") })?;
        }
        // Where each regime's angles from position 0 on begin, and how many positions they cover: sequences share them.
        let mut known: HashMap<usize, Range<usize>> = HashMap::new();
        for (span, length) in spans {
            let regime = self.regime(*length);
            if let Some(done) = known.get(&regime).filter(|done| span.start == 0 && span.end * half <= done.len()) {
                let same = done.start..done.start + span.end * half;
                cos.extend_from_within(same.clone());
                sin.extend_from_within(same);
                continue;
            }
            let (begin, frequencies) = (cos.len(), self.frequencies(*length));
            for position in span.clone() {
                for frequency in &frequencies {
                    // The product is rounded to F32 as in the reference: at position 30,000 that decides the angle's third digit.
                    let (s, c) = f64::from(position as f32 * *frequency as f32).sin_cos();
                    cos.push(c as f32 * factor);
                    sin.push(s as f32 * factor);
                }
            }
            if span.start == 0 {
                known.insert(regime, begin..cos.len());
            }
        }
        let queries = self.query_growth.map(|growth| {
            let positions = spans.iter().flat_map(|(span, _)| span.clone());
            let factors: Vec<f32> = positions.flat_map(|position| std::iter::repeat_n(growth.at(position), half)).collect();
            let grown = |values: &[f32]| values.iter().zip(&factors).map(|(x, factor)| x * factor).collect();
            Angles::new(grown(&cos), grown(&sin), half, backend)
        });
        let keys = Angles::new(cos, sin, half, backend)?;
        Ok(RopeAngles { queries: queries.unwrap_or_else(|| Ok(keys.clone()))?, keys })
    }

    /// Cosine and sine of each pair at one position of a sequence of so many tokens, as [`angles`](Self::angles) has them: for queries,
    /// then for keys.
    pub(super) fn turns(&self, position: usize, length: usize, out: &mut Vec<f32>) {
        let (factor, growth) = (self.attention_factor() as f32, self.query_growth.map_or(1.0, |growth| growth.at(position)));
        let start = out.len();
        for frequency in self.frequencies(length) {
            let (s, c) = f64::from(position as f32 * frequency as f32).sin_cos();
            out.extend([c as f32 * factor, s as f32 * factor]);
        }
        out.extend_from_within(start..);
        out[start..start + self.dim].iter_mut().for_each(|x| *x *= growth);
    }

    /// Whether sines and cosines have a factor that is not 1.
    pub(super) fn has_factor(&self) -> bool {
        self.attention_factor() != 1.0 || self.query_growth.is_some()
    }

    /// Whether the angles of every position are finite: a base or a factor near 0 gives others.
    pub fn is_finite(&self) -> bool {
        // In F32 as well, at positions far above any.
        let are_small = |length| self.frequencies(length).iter().all(|frequency| *frequency < 1e18);
        are_small(1) && are_small(usize::MAX) && self.attention_factor().is_finite()
    }

    fn attention_factor(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } | Scaling::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Radians a position, for each pair.
    fn frequencies(&self, length: usize) -> Vec<f64> {
        let dim = self.dim as f64;
        let plain = |theta: f64| (0..self.dim / 2).map(move |i| 1.0 / theta.powf((2 * i) as f64 / dim));
        match &self.scaling {
            Scaling::Default => plain(self.theta).collect(),
            Scaling::Linear { factor } => plain(self.theta).map(|f| f / factor).collect(),
            Scaling::Dynamic { factor, max_positions } => {
                let length = length.max(*max_positions) as f64;
                let stretch = factor * length / *max_positions as f64 - (factor - 1.0);
                plain(self.theta * stretch.powf(dim / (dim - 2.0))).collect()
            }
            Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original } => plain(self.theta)
                .map(|f| {
                    let turns = *original as f64 * f / TAU;
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect(),
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The pair that turns `rotations` times within the original context.
                let pair = |rotations: f64| dim * (*original as f64 / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                plain(self.theta)
                    .enumerate()
                    .map(|(i, f)| {
                        let stretch = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        f / factor * stretch + f * (1.0 - stretch)
                    })
                    .collect()
            }
            Scaling::Proportional { turned, factor } => {
                plain(self.theta).enumerate().map(|(i, f)| if i < *turned { f / factor } else { 0.0 }).collect()
            }
            Scaling::LongRope { short, long, .. } => {
                let factors = if self.regime(length) == 1 { long } else { short };
                plain(self.theta).zip(factors.iter()).map(|(f, factor)| f / factor).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kinds_that_look_at_the_length_have_regimes() {
        let rope = |scaling| Rope { theta: 1e4, dim: 8, pairs: Pairs::Halves, scaling, query_growth: None };
        let (short, long) = (Arc::from([1.0; 4]), Arc::from([2.0; 4]));
        let long = rope(Scaling::LongRope { short, long, original: 10, attention_factor: 1.0 });
        assert_eq!([long.regime(10), long.regime(11), long.regime(99)], [0, 1, 1]);
        let dynamic = rope(Scaling::Dynamic { factor: 2.0, max_positions: 10 });
        assert_eq!([dynamic.regime(10), dynamic.regime(11), dynamic.regime(12)], [0, 11, 12]);
        assert_eq!(rope(Scaling::Linear { factor: 2.0 }).regime(1000), 0);
    }
}
