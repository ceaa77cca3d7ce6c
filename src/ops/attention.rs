//! Attention over a cache and within each of several sequences; the cache of one layer.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

use super::row_op::{Rows, rows_of};
use super::tape::{Context, by_candle};
use super::{Backend, Mask};
use crate::error::OutOfMemory;
use crate::kernels::{KvHeads, Strided, attend, attend_within, attend_within_back};

/// Positions by which a cache on a GPU grows.
const GROWTH: usize = 256;

/// Keys and values of one layer.
pub enum LayerCache {
    Cpu(KvHeads),
    Gpu(GpuCache),
}

/// Keys and values `(K, capacity, D)` on a GPU, of which `len` positions hold something.
pub struct GpuCache {
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    tensors: Option<(Tensor, Tensor)>,
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

    /// Values of a position: those of its keys and those of its values.
    pub fn token_values(&self) -> usize {
        let (heads, dim) = match self {
            Self::Cpu(heads) => heads.shape(),
            Self::Gpu(cache) => (cache.kv_heads, cache.head_dim),
        };
        2 * heads * dim
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
    OutOfMemory { what: format!("no room for keys and values: {error}") }.into()
}

impl GpuCache {
    /// # Shape
    /// `k`, `v`: `(T, K · D)`.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let rows = k.dims()[0];
        if rows == 0 {
            return Ok(());
        }
        let need = self.len + rows;
        let heads = |x: &Tensor| x.reshape((rows, self.kv_heads, self.head_dim))?.transpose(0, 1)?.force_contiguous();
        let (k, v) = (heads(k)?, heads(v)?);
        let capacity = self.tensors.as_ref().map_or(0, |(k, _)| k.dims()[1]);
        if need > capacity {
            let grow = |x: &Tensor, old: Option<&Tensor>| {
                let to = Tensor::zeros((self.kv_heads, need.next_multiple_of(GROWTH), self.head_dim), x.dtype(), x.device())?;
                if let (Some(old), true) = (old, self.len > 0) {
                    to.slice_set(&old.narrow(1, 0, self.len)?.force_contiguous()?, 1, 0)?;
                }
                Ok::<_, candle_core::Error>(to)
            };
            let old = self.tensors.as_ref();
            self.tensors = Some((grow(&k, old.map(|t| &t.0))?, grow(&v, old.map(|t| &t.1))?));
        }
        let Some((keys, values)) = &self.tensors else { bail!("a cache without room") };
        keys.slice_set(&k, 1, self.len)?;
        values.slice_set(&v, 1, self.len)?;
        self.len = need;
        Ok(())
    }
}

/// The masks of one forward pass on a GPU, made once for each window and shared by the layers.
#[derive(Default)]
pub struct Masks(HashMap<Option<usize>, Tensor>);

impl Masks {
    /// `(T, S)`: 0 where a query sees a key, a large negative number where not. Keys begin at `first_key`.
    fn get(&mut self, window: Option<usize>, rows: usize, keys: usize, device: &Device) -> Result<Tensor> {
        if let Some(mask) = self.0.get(&window) {
            return Ok(mask.clone());
        }
        let past = keys - rows;
        let sees = |t: usize, s: usize| s <= past + t && window.is_none_or(|w| past + t - s < w);
        // Finite, so that no row can become NaN.
        let values: Vec<f32> = (0..rows * keys).map(|i| if sees(i / keys, i % keys) { 0.0 } else { -1e30 }).collect();
        let mask = Tensor::from_vec(values, (rows, keys), device)?;
        self.0.insert(window, mask.clone());
        Ok(mask)
    }
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

fn attention_gpu(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Mask,
    cache: &mut GpuCache,
    masks: &mut Masks,
) -> Result<Tensor> {
    let (rows, width) = q.dims2()?;
    let (kv_heads, dim) = (cache.kv_heads, cache.head_dim);
    cache.append(k, v)?;
    let Some((keys, values)) = &cache.tensors else { bail!("a cache without room") };
    // One query sees the window and nothing else, so it needs no mask.
    let seen = if rows == 1 { cache.len.min(mask.window.unwrap_or(cache.len)) } else { cache.len };
    let keys = keys.narrow(1, cache.len - seen, seen)?;
    let values = values.narrow(1, cache.len - seen, seen)?;
    let q = q.reshape((rows, heads, dim))?.transpose(0, 1)?.force_contiguous()?; // (H, T, D)
    if rows == 1 && q.device().is_metal() && [32, 64, 72, 80, 96, 128, 256].contains(&dim) {
        // The fused step of Metal ignores the start offset of a view.
        let (k, v) = if seen == cache.len { (keys, values) } else { (keys.force_contiguous()?, values.force_contiguous()?) };
        let y = candle_nn::ops::sdpa(
            &q.unsqueeze(0)?,
            &k.unsqueeze(0)?,
            &v.unsqueeze(0)?,
            None,
            false,
            mask.scale,
            mask.softcap.unwrap_or(1.0),
        )?;
        return y.reshape((rows, width));
    }
    // Rank 3 with one batch stride: Metal's product is wrong for views whose batch strides are not uniform.
    let q = q.reshape((kv_heads, heads / kv_heads * rows, dim))?;
    let scores = (q.matmul(&keys.transpose(1, 2)?)?.to_dtype(DType::F32)? * f64::from(mask.scale))?;
    let scores = match mask.softcap {
        Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => scores,
    };
    let scores = if rows == 1 {
        scores
    } else {
        let mask = masks.get(mask.window, rows, seen, q.device())?;
        scores.reshape((heads, rows, seen))?.broadcast_add(&mask)?.reshape((kv_heads, heads / kv_heads * rows, seen))?
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?.to_dtype(values.dtype())?;
    let y = weights.matmul(&values)?; // (K, G · T, D)
    y.reshape((heads, rows, dim))?.transpose(0, 1)?.force_contiguous()?.reshape((rows, width))
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

struct Padded {
    /// `(B · L)`: the row of each place; padding repeats the first.
    rows: Tensor,
    /// The place of each row.
    places: Tensor,
    /// `(B, 1, L, L)` for each window: 0 where a query sees a key, a large negative number where not.
    masks: HashMap<Option<usize>, Tensor>,
    /// `(1, H, L, L)`
    bias: Option<Tensor>,
}

impl Sequences {
    /// `bias`: `(H, 2 · longest - 1)`.
    pub fn new(lengths: Vec<usize>, bias: Option<Vec<f32>>, backend: &Backend) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padded = if backend.kernels { None } else { Some(Padded::new(&lengths, longest, bias.as_deref(), &backend.device)?) };
        Ok(Self { lengths: lengths.into(), longest, bias, padded })
    }
}

impl Padded {
    fn new(lengths: &[usize], longest: usize, bias: Option<&[f32]>, device: &Device) -> Result<Self> {
        let (mut rows, mut places) = (Vec::with_capacity(lengths.len() * longest), Vec::new());
        for (b, &len) in lengths.iter().enumerate() {
            let first = places.len();
            places.extend((0..len).map(|t| (b * longest + t) as u32));
            rows.extend((0..longest).map(|t| if t < len { (first + t) as u32 } else { 0 }));
        }
        let bias = bias.map(|bias| {
            let heads = bias.len() / (2 * longest - 1);
            let at = |i: usize| {
                let (h, query, key) = (i / (longest * longest), i / longest % longest, i % longest);
                bias[h * (2 * longest - 1) + longest - 1 + key - query]
            };
            let values: Vec<f32> = (0..heads * longest * longest).map(at).collect();
            Tensor::from_vec(values, (1, heads, longest, longest), device)
        });
        Ok(Self {
            rows: Tensor::new(rows, device)?,
            places: Tensor::new(places, device)?,
            masks: HashMap::new(),
            bias: bias.transpose()?,
        })
    }

    fn mask(&mut self, mask: Mask, lengths: &[usize], longest: usize, device: &Device) -> Result<Tensor> {
        if let Some(mask) = self.masks.get(&mask.window) {
            return Ok(mask.clone());
        }
        let sees = |len: usize, query: usize, key: usize| {
            key < len && (!mask.causal || key <= query) && mask.window.is_none_or(|w| key.abs_diff(query) < w)
        };
        let square = longest * longest;
        // Finite, so that no row can become NaN.
        let value = |i: usize| if sees(lengths[i / square], i / longest % longest, i % longest) { 0.0 } else { -1e30f32 };
        let values: Vec<f32> = (0..lengths.len() * square).map(value).collect();
        let tensor = Tensor::from_vec(values, (lengths.len(), 1, longest, longest), device)?;
        self.masks.insert(mask.window, tensor.clone());
        Ok(tensor)
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

/// Lends the rows of CPU tensors.
fn with_strided<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([Strided<'_>; N]) -> Result<R>) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut rows = Vec::with_capacity(N);
    for (storage, layout) in &storages {
        let Storage::Cpu(storage) = &**storage else { bail!("attention: sequences on the CPU met activations on a GPU") };
        let Rows { values, stride, .. } = rows_of(storage, layout)?;
        rows.push(Strided { values, stride });
    }
    work(std::array::from_fn(|i| rows[i]))
}

/// Sequences padded to the longest, on a GPU.
struct Places {
    /// Sequences, the longest, heads, key-value heads.
    shape: (usize, usize, usize, usize),
    rows: Tensor,
    places: Tensor,
    mask: Tensor,
    bias: Option<Tensor>,
}

impl Places {
    fn attend(&self, [q, k, v]: [&Tensor; 3], mask: Mask, softmax: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (batch, longest, heads, kv_heads) = self.shape;
        let (_, width) = q.dims2()?;
        let dim = width / heads;
        // (B, L, heads, D), then heads before positions, then one batch: rank 3, as in `attention_gpu`.
        let place = |x: &Tensor, heads: usize| {
            x.force_contiguous()?
                .index_select(&self.rows, 0)?
                .reshape((batch, longest, heads, dim))?
                .transpose(1, 2)?
                .force_contiguous()
        };
        let group = heads / kv_heads;
        let queries = place(q, heads)?.reshape((batch * kv_heads, group * longest, dim))?;
        let keys = place(k, kv_heads)?.reshape((batch * kv_heads, longest, dim))?;
        let values = place(v, kv_heads)?.reshape((batch * kv_heads, longest, dim))?;
        let scores = (queries.matmul(&keys.transpose(1, 2)?)?.to_dtype(DType::F32)? * f64::from(mask.scale))?;
        let scores = match mask.softcap {
            Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
            None => scores,
        };
        let scores = scores.reshape((batch, heads, longest, longest))?;
        let scores = match &self.bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let weights = softmax(&scores.broadcast_add(&self.mask)?.contiguous()?)?.to_dtype(values.dtype())?;
        let y = weights.reshape((batch * kv_heads, group * longest, longest))?.matmul(&values)?;
        let y = y.reshape((batch, heads, longest, dim))?.transpose(1, 2)?.force_contiguous()?;
        y.reshape((batch * longest, width))?.index_select(&self.places, 0)
    }
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
