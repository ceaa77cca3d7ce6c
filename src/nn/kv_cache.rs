//! Keys and values of every layer, for the tokens evaluated so far.

use candle_core::{DType, Result};

use super::Config;
use crate::ops::{Backend, LayerCache};

/// The cache of one sequence; grows in blocks.
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(config: &Config, backend: &Backend) -> Self {
        let layer = || LayerCache::new(config.num_kv_heads, config.head_dim, backend);
        Self { layers: config.layers.iter().map(|_| layer()).collect() }
    }

    /// The bytes of a cache of `positions` tokens.
    pub fn bytes(config: &Config, positions: usize, value_bytes: usize, backend: &Backend) -> u64 {
        LayerCache::bytes(config.num_kv_heads, config.head_dim, positions, value_bytes, backend) * config.layers.len() as u64
    }

    /// Positions held: what every layer holds.
    pub fn len(&self) -> usize {
        self.layers.iter().map(LayerCache::len).min().unwrap_or(0)
    }

    /// Forgets all but the first `len` positions, also of layers that a failed pass left ahead of the others.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self { layers: self.layers.iter().map(LayerCache::fork).collect::<Result<_>>()? })
    }

    /// How many layers there are.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// One layer's keys, then its values, in F32: `(position, head, head_dim)` each.
    pub fn read(&self, layer: usize) -> Result<Vec<f32>> {
        self.layers[layer].read()
    }

    /// Fills one empty layer with what [`read`](Self::read) gave.
    pub fn write(&mut self, layer: usize, values: &[f32], dtype: DType) -> Result<()> {
        self.layers[layer].write(values, dtype)
    }
}
