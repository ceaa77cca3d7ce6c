//! Attention over a cache and within each of several sequences; the cache of one layer.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

pub use super::tensors::attention::Masks;

use super::cpu::attention::with_strided;
use super::cpu::row_op::rows_of;
use super::tape::{Context, by_candle};
use super::tensors::attention::{GROWTH, GpuCache, Padded, Places, attention_gpu};
use super::{Backend, Mask};
use crate::kernels::{KvHeads, attend, attend_within, attend_within_back};

/// Keys and values of one layer.
pub enum LayerCache {
    Cpu(KvHeads),
    Gpu(GpuCache),
}

impl LayerCache {
    /// An empty cache.
    pub fn new(kv_heads: usize, head_dim: usize, backend: &Backend) -> Self {
        if backend.kernels {
            Self::Cpu(KvHeads::new(kv_heads, head_dim))
        } else {
            Self::Gpu(GpuCache { kv_heads, head_dim, len: 0, tensors: None })
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(heads) => heads.len(),
            Self::Gpu(cache) => cache.len,
        }
    }

    /// Bytes of a cache of `positions`: F32 for our kernels, else `value_bytes` a value.
    pub fn bytes(kv_heads: usize, head_dim: usize, positions: usize, value_bytes: usize, backend: &Backend) -> u64 {
        if backend.kernels {
            return KvHeads::bytes(kv_heads, head_dim, positions);
        }
        2 * (kv_heads * head_dim * value_bytes) as u64 * positions.next_multiple_of(GROWTH) as u64
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu(heads) => heads.truncate(len),
            Self::Gpu(cache) => cache.len = cache.len.min(len),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(heads) => Self::Cpu(heads.clone()),
            Self::Gpu(cache) => {
                let tensors = cache
                    .tensors
                    .as_ref()
                    .map(|(k, v)| Ok::<_, candle_core::Error>((k.force_contiguous()?, v.force_contiguous()?)));
                Self::Gpu(GpuCache { tensors: tensors.transpose()?, ..*cache })
            }
        })
    }

    /// All keys, then all values, in F32: `(position, head, D)` each.
    pub fn read(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(heads) => {
                let (count, dim) = heads.shape();
                let mut out = vec![0f32; 2 * heads.len() * count * dim];
                let (keys, values) = out.split_at_mut(heads.len() * count * dim);
                for ((i, key), value) in keys.chunks_exact_mut(dim).enumerate().zip(values.chunks_exact_mut(dim)) {
                    heads.read(i % count, i / count, key, value);
                }
                Ok(out)
            }
            Self::Gpu(GpuCache { len: 0, .. }) | Self::Gpu(GpuCache { tensors: None, .. }) => Ok(Vec::new()),
            Self::Gpu(GpuCache { len, tensors: Some((k, v)), .. }) => {
                let mut out = super::to_f32(&k.narrow(1, 0, *len)?.transpose(0, 1)?)?;
                out.extend(super::to_f32(&v.narrow(1, 0, *len)?.transpose(0, 1)?)?);
                Ok(out)
            }
        }
    }

    /// Fills an empty cache with what [`read`](Self::read) gave.
    pub fn write(&mut self, values: &[f32], device: &Device, dtype: DType) -> Result<()> {
        let (k, v) = values.split_at(values.len() / 2);
        match self {
            Self::Cpu(heads) => {
                let (count, dim) = heads.shape();
                heads.append(k, count * dim, v, count * dim, k.len() / (count * dim)).map_err(no_memory)
            }
            Self::Gpu(cache) => {
                let width = cache.kv_heads * cache.head_dim;
                let rows =
                    |x: &[f32]| Tensor::from_slice(x, (x.len() / width, width), &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
                cache.append(&rows(k)?, &rows(v)?)
            }
        }
    }
}

fn no_memory(error: std::collections::TryReserveError) -> candle_core::Error {
    candle_core::Error::msg(format!("{}: no room for keys and values: {error}", crate::error::NO_MEMORY))
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
    match cache {
        LayerCache::Cpu(cache) => {
            let (q_storage, q_layout) = q.storage_and_layout();
            let (k_storage, k_layout) = k.storage_and_layout();
            let (v_storage, v_layout) = v.storage_and_layout();
            let (Storage::Cpu(q), Storage::Cpu(k), Storage::Cpu(v)) = (&*q_storage, &*k_storage, &*v_storage) else {
                bail!("attention: a cache on the CPU met activations on a GPU")
            };
            let rows = q_layout.dims()[0];
            let (q, k, v) = (rows_of(q, q_layout)?, rows_of(k, k_layout)?, rows_of(v, v_layout)?);
            cache.append(k.values, k.stride, v.values, v.stride, rows).map_err(no_memory)?;
            let mut out = vec![0f32; rows * q.cols];
            attend(q.values, q.stride, heads, cache, mask, &mut out);
            Tensor::from_vec(out, (rows, q.cols), &Device::Cpu)
        }
        LayerCache::Gpu(cache) => attention_gpu(q, k, v, heads, mask, cache, masks),
    }
}

/// Sequences whose rows lie one after another, and what attention within them needs in every layer.
pub struct Sequences {
    lengths: Arc<[usize]>,
    longest: usize,
    /// `(H, 2 · longest - 1)`: added to the scores, by the key's position minus the query's, which is 0 in the middle.
    bias: Option<Vec<f32>>,
    /// On a GPU, where all sequences are as long as the longest.
    padded: Option<Padded>,
}

impl Sequences {
    /// `bias`: `(H, 2 · longest - 1)`.
    pub fn new(lengths: Vec<usize>, bias: Option<Vec<f32>>, backend: &Backend) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = if backend.kernels { None } else { Some(Padded::new(&lengths, longest, bias.as_deref(), &backend.device)?) };
        Ok(Self { lengths: lengths.into(), longest, bias, padded })
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
    if sequences.bias.is_some() && [q, k, v].iter().any(|x| cx.tracks(x)) {
        bail!("attention with a bias by distance has no backward pass")
    }
    let (rows, width) = q.dims2()?;
    let Sequences { lengths, longest, bias, padded } = sequences;
    let inputs = [q.clone(), k.clone(), v.clone()];
    let Some(padded) = padded else {
        let mut out = vec![0f32; rows * width];
        with_strided([q, k, v], |[q, k, v]| {
            attend_within(q, k, v, heads, kv_heads, lengths, mask, bias.as_deref(), &mut out).map_err(no_memory)
        })?;
        let y = Tensor::from_vec(out, (rows, width), &Device::Cpu)?;
        let lengths = lengths.clone();
        cx.record([q, k, v], &y, move |gradient| {
            let mut out = inputs.each_ref().map(|x| vec![0f32; x.elem_count()]);
            with_strided([&inputs[0], &inputs[1], &inputs[2], &gradient], |[q, k, v, dy]| {
                let out = out.each_mut().map(Vec::as_mut_slice);
                attend_within_back(q, k, v, dy, (heads, kv_heads), &lengths, mask, out).map_err(no_memory)
            })?;
            let [dq, dk, dv] = out;
            let kv_width = width / heads * kv_heads;
            let tensor = |values, width| Tensor::from_vec(values, (rows, width), &Device::Cpu);
            Ok([tensor(dq, width)?, tensor(dk, kv_width)?, tensor(dv, kv_width)?])
        });
        return Ok(y);
    };
    let places = Places {
        shape: (lengths.len(), *longest, heads, kv_heads),
        mask: padded.mask(mask, lengths, *longest, q.device())?,
        rows: padded.rows.clone(),
        places: padded.places.clone(),
        bias: padded.bias.clone(),
    };
    let y = places.attend([q, k, v], mask, candle_nn::ops::softmax_last_dim)?;
    cx.record([q, k, v], &y, move |gradient| {
        by_candle(inputs, &gradient, |inputs| places.attend(inputs, mask, |scores| candle_nn::ops::softmax(scores, 3)))
    });
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cache_is_read_and_written() {
        for kernels in [true, false] {
            let backend = Backend { device: Device::Cpu, kernels };
            let mut cache = LayerCache::new(2, 8, &backend);
            let values = cache.read().unwrap();
            cache.write(&values, &backend.device, DType::F32).unwrap();
            assert_eq!((values.len(), cache.len()), (0, 0), "kernels {kernels}");
        }
    }
}
