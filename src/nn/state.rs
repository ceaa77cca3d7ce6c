//! What the layers remember of the tokens evaluated so far.

use candle_core::{DType, Result};

use super::{AttentionConfig, Config};
use crate::ops::{Backend, LayerCache};

/// What one mixer remembers.
pub enum LayerState {
    /// Keys and values of each token.
    Kv(LayerCache),
}

impl LayerState {
    fn new(attention: &AttentionConfig, backend: &Backend) -> Self {
        Self::Kv(LayerCache::new(attention.kv_heads, attention.head_dim, backend))
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.len(),
        }
    }

    /// Forgets all but the first `len` tokens; returns how many could be kept.
    fn truncate(&mut self, len: usize) -> usize {
        match self {
            Self::Kv(cache) => cache.truncate(len),
        }
        self.len()
    }

    fn fork(&self) -> Result<Self> {
        match self {
            Self::Kv(cache) => cache.fork().map(Self::Kv),
        }
    }

    /// What a file calls it.
    pub fn kind(&self) -> u64 {
        match self {
            Self::Kv(_) => 1,
        }
    }

    /// Values of each token.
    pub fn token_values(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.token_values(),
        }
    }

    /// All values in F32: keys, then values, `(token, head, head_dim)` each.
    pub fn read(&self) -> Result<Vec<f32>> {
        match self {
            Self::Kv(cache) => cache.read(),
        }
    }

    /// Fills an empty one with what [`read`](Self::read) gave.
    pub fn write(&mut self, values: &[f32], dtype: DType) -> Result<()> {
        match self {
            Self::Kv(cache) => cache.write(values, dtype),
        }
    }
}

/// The states of one sequence, one for each mixer of the network.
pub struct States(Vec<LayerState>);

impl States {
    /// Empty ones.
    pub fn new(config: &Config, backend: &Backend) -> Self {
        Self(config.attentions().map(|attention| LayerState::new(attention, backend)).collect())
    }

    /// The bytes of those of `tokens`.
    pub fn bytes(config: &Config, tokens: usize, value_bytes: usize, backend: &Backend) -> u64 {
        let of = |a: &AttentionConfig| LayerCache::bytes(a.kv_heads, a.head_dim, tokens, value_bytes, backend);
        config.attentions().map(of).sum()
    }

    /// Tokens held: what every state holds.
    pub fn len(&self) -> usize {
        self.0.iter().map(LayerState::len).min().unwrap_or(0)
    }

    /// Forgets all but the first `len` tokens, also of states that a failed pass left ahead of the others. Returns how many could
    /// be kept: what was computed from later tokens alone cannot always be taken back.
    pub fn truncate(&mut self, len: usize) -> usize {
        let kept = self.0.iter_mut().map(|state| state.truncate(len)).min().unwrap_or(0);
        // All must hold the same tokens.
        if self.0.iter().any(|state| state.len() > kept) { self.truncate(kept) } else { kept }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        self.0.iter().map(LayerState::fork).collect::<Result<_>>().map(Self)
    }

    /// That of one mixer.
    pub(super) fn at(&mut self, number: usize) -> &mut LayerState {
        &mut self.0[number]
    }

    pub fn iter(&self) -> impl Iterator<Item = &LayerState> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LayerState> {
        self.0.iter_mut()
    }
}
