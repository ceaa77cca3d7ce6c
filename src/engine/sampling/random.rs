//! The generator behind every draw: ChaCha with 12 rounds, whose state (seed, stream and position) can be stored.
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

    /// At least 0 and below 1, a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
