//! What the layers remember of the tokens evaluated so far.

use candle_core::{DType, Result};

use super::{AttentionConfig, Config};
use crate::ops::{Backend, Format, KvFormat, LayerCache};

/// What one mixer remembers.
pub enum LayerState {
    /// Keys and values of each token.
    Kv(LayerCache),
}

impl LayerState {
    fn new(attention: &AttentionConfig, format: KvFormat, backend: &Backend) -> Self {
        Self::Kv(LayerCache::new(attention.kv_heads, attention.head_dim, format, backend))
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

    /// What it is and how it is kept.
    pub fn kind(&self) -> StateKind {
        match self {
            Self::Kv(cache) => StateKind::Kv(cache.format()),
        }
    }

    /// Values of each token.
    pub fn token_values(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.token_values(),
        }
    }

    /// Bytes of each token in [`to_bytes`](Self::to_bytes).
    pub fn token_bytes(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.token_bytes(),
        }
    }

    /// All that it remembers, as it is kept: keys, then values, `(token, head, head_dim)` each.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Kv(cache) => cache.to_bytes(),
        }
    }

    /// Fills an empty one with what [`to_bytes`](Self::to_bytes) gave; `dtype` is that of activations.
    pub fn fill(&mut self, bytes: &[u8], dtype: DType) -> Result<()> {
        match self {
            Self::Kv(cache) => cache.fill(bytes, dtype),
        }
    }
}

/// What a state is and how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// Keys and values in this format.
    Kv(KvFormat),
}

impl StateKind {
    /// What a file calls each.
    const NUMBERS: [(u64, Self); 3] = [(1, Self::Kv(KvFormat::F32)), (2, Self::Kv(KvFormat::F16)), (3, Self::Kv(KvFormat::Q8_0))];

    /// What it holds, for people.
    pub fn label(self) -> String {
        match self {
            Self::Kv(format) => format!("keys and values in {}", format.name()),
        }
    }

    /// What a file calls it.
    pub fn number(self) -> u64 {
        Self::NUMBERS.iter().find(|(_, kind)| *kind == self).map_or(0, |(number, _)| *number)
    }

    /// The kind that a file calls this.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::NUMBERS.iter().find(|(known, _)| *known == number).map(|(_, kind)| *kind)
    }
}

/// The states of one sequence, one for each mixer of the network.
pub struct States(Vec<LayerState>);

impl States {
    /// Empty ones.
    pub fn new(config: &Config, kv_format: KvFormat, backend: &Backend) -> Self {
        Self(config.attentions().map(|attention| LayerState::new(attention, kv_format, backend)).collect())
    }

    /// The bytes of those of `tokens`; `activation` is the type of activations.
    pub fn bytes(config: &Config, tokens: usize, kv_format: KvFormat, activation: Format, backend: &Backend) -> u64 {
        let of = |a: &AttentionConfig| LayerCache::bytes((a.kv_heads, a.head_dim), tokens, kv_format, activation, backend);
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
