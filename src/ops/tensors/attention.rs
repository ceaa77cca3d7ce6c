//! Attention by tensor operations, over a cache and within padded sequences.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::ops::Mask;

/// Positions by which a cache on a GPU grows.
pub const GROWTH: usize = 256;

/// Keys and values `(K, capacity, D)` on a GPU, of which `len` positions hold something.
pub struct GpuCache {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub len: usize,
    pub tensors: Option<(Tensor, Tensor)>,
}

impl GpuCache {
    /// # Shape
    /// `k`, `v`: `(T, K · D)`.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
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

pub fn attention_gpu(
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

pub struct Padded {
    /// `(B · L)`: the row of each place; padding repeats the first.
    pub rows: Tensor,
    /// The place of each row.
    pub places: Tensor,
    /// `(B, 1, L, L)` for each window: 0 where a query sees a key, a large negative number where not.
    pub masks: HashMap<Option<usize>, Tensor>,
    /// `(1, H, L, L)`
    pub bias: Option<Tensor>,
}

impl Padded {
    pub fn new(lengths: &[usize], longest: usize, bias: Option<&[f32]>, device: &Device) -> Result<Self> {
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

    pub fn mask(&mut self, mask: Mask, lengths: &[usize], longest: usize, device: &Device) -> Result<Tensor> {
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

/// Sequences padded to the longest, on a GPU.
pub struct Places {
    /// Sequences, the longest, heads, key-value heads.
    pub shape: (usize, usize, usize, usize),
    pub rows: Tensor,
    pub places: Tensor,
    pub mask: Tensor,
    pub bias: Option<Tensor>,
}

impl Places {
    pub fn attend(&self, [q, k, v]: [&Tensor; 3], mask: Mask, softmax: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
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
