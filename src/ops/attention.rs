//! Attention over a cache and within each of several sequences; the cache of one layer.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::cpu::attention as cpu;
use super::tensors::attention as tensors;
use super::{Backend, Context, Mask, On};
use crate::error::OutOfMemory;
use crate::kernels::KvHeads;

pub use super::tensors::attention::Masks;

/// Keys and values of one layer.
pub type LayerCache = On<KvHeads, tensors::Cache>;

impl LayerCache {
    /// An empty cache.
    pub fn new(kv_heads: usize, head_dim: usize, backend: &Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Cpu(KvHeads::new(kv_heads, head_dim)),
            Backend::Tensors(device) => Self::Tensors(tensors::Cache::new(kv_heads, head_dim, device)),
        }
    }

    /// Key-value heads and the values of each.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Cpu(heads) => heads.shape(),
            Self::Tensors(cache) => cache.shape(),
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(heads) => heads.len(),
            Self::Tensors(cache) => cache.len(),
        }
    }

    /// Bytes of a cache of `positions`: F32 for our kernels, else `value_bytes` a value.
    pub fn bytes(kv_heads: usize, head_dim: usize, positions: usize, value_bytes: usize, backend: &Backend) -> u64 {
        match backend {
            Backend::Cpu => KvHeads::bytes(kv_heads, head_dim, positions),
            Backend::Tensors(_) => tensors::Cache::bytes(kv_heads, head_dim, positions, value_bytes),
        }
    }

    /// Values of a position: those of its keys and those of its values.
    pub fn token_values(&self) -> usize {
        let (kv_heads, head_dim) = self.shape();
        2 * kv_heads * head_dim
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu(heads) => heads.truncate(len),
            Self::Tensors(cache) => cache.truncate(len),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(heads) => Self::Cpu(heads.clone()),
            Self::Tensors(cache) => Self::Tensors(cache.fork()?),
        })
    }

    /// All keys, then all values, in F32: `(position, head, D)` each.
    pub fn read(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(heads) => Ok(cpu::read(heads)),
            Self::Tensors(cache) => cache.read(),
        }
    }

    /// Fills an empty cache with what [`read`](Self::read) gave; `dtype` is that of activations.
    pub fn write(&mut self, values: &[f32], dtype: DType) -> Result<()> {
        let (k, v) = values.split_at(values.len() / 2);
        match self {
            Self::Cpu(heads) => cpu::write(heads, k, v),
            Self::Tensors(cache) => cache.write(k, v, dtype),
        }
    }
}

pub(super) fn no_memory(error: std::collections::TryReserveError) -> candle_core::Error {
    OutOfMemory { what: format!("no room for keys and values: {error}") }.into()
}

/// Appends keys and values to the cache; the queries attend to what they may see of it.
///
/// # Shape
/// `q`: `(T, H · D)`, `k` and `v`: `(T, K · D)`; returns `(T, H · D)`. Scores and softmax are F32.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Mask,
    cache: &mut LayerCache,
    masks: &mut Masks,
) -> Result<Tensor> {
    let (kv_heads, head_dim) = cache.shape();
    check([q, k, v], heads, kv_heads, head_dim)?;
    match cache {
        LayerCache::Cpu(cache) => cpu::over_cache([q, k, v], heads, mask, cache),
        LayerCache::Tensors(cache) => tensors::over_cache([q, k, v], heads, mask, cache, masks),
    }
}

fn check([q, k, v]: [&Tensor; 3], heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    let (rows, _) = q.dims2()?;
    let shapes = [[rows, heads * head_dim], [rows, kv_heads * head_dim], [rows, kv_heads * head_dim]];
    let found = [q.dims(), k.dims(), v.dims()];
    if found != shapes.each_ref().map(|shape| &shape[..]) || !heads.is_multiple_of(kv_heads) {
        bail!("attention: expected {heads} heads over {kv_heads}, {head_dim} values each, found {found:?}")
    }
    Ok(())
}

/// Sequences whose rows lie one after another, and what attention within them needs in every layer.
pub type Sequences = On<cpu::Sequences, tensors::Sequences>;

impl Sequences {
    /// `bias`: `(H, 2 · longest - 1)`, added to the scores by the key's position minus the query's, which is 0 in the
    /// middle.
    pub fn new(lengths: Vec<usize>, bias: Option<Vec<f32>>, backend: &Backend) -> Result<Self> {
        Ok(match backend {
            Backend::Cpu => Self::Cpu(cpu::Sequences { lengths: lengths.into(), bias: bias.map(Arc::from) }),
            Backend::Tensors(device) => Self::Tensors(tensors::Sequences::new(lengths, bias, device)?),
        })
    }

    fn has_bias(&self) -> bool {
        match self {
            Self::Cpu(sequences) => sequences.bias.is_some(),
            Self::Tensors(sequences) => sequences.has_bias(),
        }
    }
}

/// The queries of each sequence attend to what they may see of it.
///
/// # Shape
/// `q`: `(T, H · D)`, `k` and `v`: `(T, K · D)`, with the rows of all sequences one after another; returns `(T, H · D)`. Scores and softmax
/// are F32.
///
/// # Errors
/// If a gradient is asked for and the scores have a bias.
pub fn attention_within(
    cx: Context<'_>,
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    kv_heads: usize,
    mask: Mask,
    sequences: &mut Sequences,
) -> Result<Tensor> {
    check([q, k, v], heads, kv_heads, q.dims2()?.1 / heads)?;
    let tracked = [q, k, v].iter().any(|x| cx.tracks(x));
    if tracked && sequences.has_bias() {
        bail!("attention with a bias by distance has no backward pass")
    }
    let y = match sequences {
        Sequences::Cpu(sequences) => cpu::within([q, k, v], (heads, kv_heads), mask, sequences)?,
        Sequences::Tensors(sequences) => tensors::within([q, k, v], (heads, kv_heads), mask, sequences)?,
    };
    if tracked {
        let (inputs, mut sequences) = ([q, k, v].map(Tensor::clone), sequences.clone());
        cx.record([q, k, v], &y, move |dy, _| {
            let (inputs, heads) = (inputs.each_ref(), (heads, kv_heads));
            match &mut sequences {
                Sequences::Cpu(sequences) => cpu::within_backward(inputs, &dy, heads, mask, sequences),
                Sequences::Tensors(sequences) => tensors::within_backward(inputs, &dy, heads, mask, sequences),
            }
        });
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn an_empty_cache_is_read_and_written() {
        for backend in [Backend::Cpu, Backend::Tensors(Device::Cpu)] {
            let mut cache = LayerCache::new(2, 8, &backend);
            let values = cache.read().unwrap();
            cache.write(&values, DType::F32).unwrap();
            assert_eq!((values.len(), cache.len()), (0, 0), "{backend:?}");
        }
    }
}
