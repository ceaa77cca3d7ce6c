//! The generator behind every draw: ChaCha with 12 rounds, of which each seed has 2⁶⁴ streams. What is drawn from a stream of its own
//! needs no stored state to go on later: training names its streams by what they are for.
//!
//! ```text
//! Random::new(Some(7)).uniform()  →  the same number on every machine
//! ```

use std::hash::{BuildHasher, RandomState};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub(super) struct Random(ChaCha12Rng);

impl Random {
    /// `None`: a seed from the system.
    pub fn new(seed: Option<u64>) -> Self {
        // RandomState draws its keys from the system; hashing nothing in particular with them gives 64 bits of that.
        Self(ChaCha12Rng::seed_from_u64(seed.unwrap_or_else(|| RandomState::new().hash_one(0))))
    }

    /// The beginning of one of a seed's streams.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha12Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// At least 0 and below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        // The rounding could reach `end` for an `end` near 2⁵³ alone.
        ((self.uniform() * end as f64) as usize).min(end - 1)
    }

    /// At least 0 and below 1, a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Of the normal distribution, by the transform of Box and Muller.
    pub fn normal(&mut self) -> f64 {
        // The logarithm of 1 - u, which is not 0.
        let (radius, angle) = ((-2.0 * (1.0 - self.uniform()).ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        radius * angle.cos()
    }
}
