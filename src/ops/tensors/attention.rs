//! Attention by tensor operations, over a cache and within padded sequences.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::ops::{sdpa, softmax_last_dim};
use half::f16;

use crate::kernels::gpu::{BatchOps, BatchPlaces, BatchScores};
use crate::ops::{Format, KvFormat, Mask, tensor_bytes, to_f32};

/// Positions by which a cache grows.
const GROWTH: usize = 256;

/// Keys and values `(K, capacity, D)` of one layer, of which `len` positions hold something; in the type of activations or in F16.
pub struct Cache {
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    format: KvFormat,
    tensors: Option<(Tensor, Tensor)>,
    device: Device,
}

/// The type of a tensor that keeps what has this one as an activation.
fn kept_as(format: KvFormat, activation: DType) -> Result<DType> {
    match format {
        KvFormat::F32 => Ok(activation),
        KvFormat::F16 => Ok(DType::F16),
        KvFormat::Q8_0 => bail!("attention: tensors cannot keep keys and values in {}", format.name()),
    }
}

impl Cache {
    pub fn new(kv_heads: usize, head_dim: usize, format: KvFormat, device: &Device) -> Self {
        Self { kv_heads, head_dim, len: 0, format, tensors: None, device: device.clone() }
    }

    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Key-value heads and the values of each.
    pub fn shape(&self) -> (usize, usize) {
        (self.kv_heads, self.head_dim)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(kv_heads: usize, head_dim: usize, positions: usize, format: KvFormat, activation: Format) -> u64 {
        let row = match format {
            KvFormat::F32 => head_dim * activation.block_bytes(),
            narrow => narrow.row_bytes(head_dim),
        };
        2 * (kv_heads * row) as u64 * positions.next_multiple_of(GROWTH) as u64
    }

    pub fn held_bytes(&self) -> u64 {
        self.tensors.as_ref().map_or(0, |(k, v)| tensor_bytes(k) + tensor_bytes(v))
    }

    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub fn fork(&self) -> Result<Self> {
        let tensors = match &self.tensors {
            Some((k, v)) => Some((k.force_contiguous()?, v.force_contiguous()?)),
            None => None,
        };
        Ok(Self { tensors, device: self.device.clone(), ..*self })
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let Some((k, v)) = self.tensors.as_ref().filter(|_| self.len > 0) else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        for x in [k, v] {
            let values = to_f32(&x.narrow(1, 0, self.len)?.transpose(0, 1)?)?;
            match self.format {
                KvFormat::F16 => bytes.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
                _ => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        Ok(bytes)
    }

    /// `activation`: the type of activations.
    pub fn fill(&mut self, bytes: &[u8], activation: DType) -> Result<()> {
        let stored = if self.format == KvFormat::F16 { Format::F16 } else { Format::F32 };
        if bytes.is_empty() {
            // Metal has no buffers of no bytes.
            return Ok(());
        }
        let (width, kept) = (self.kv_heads * self.head_dim, kept_as(self.format, activation)?);
        let (k, v) = bytes.split_at(bytes.len() / 2);
        let rows = |bytes: &[u8]| {
            let x = stored.try_widen(bytes)?;
            let rows = x.len() / width;
            Tensor::from_vec(x, (rows, width), &Device::Cpu)?.to_dtype(kept)?.to_device(&self.device)
        };
        let (k, v) = (rows(k)?, rows(v)?);
        self.append(&k, &v)
    }

    /// # Shape
    /// `k`, `v`: `(T, K · D)`.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let rows = k.dims()[0];
        if rows == 0 {
            return Ok(());
        }
        let kept = kept_as(self.format, k.dtype())?;
        let heads = |x: &Tensor| {
            let x = x.reshape((rows, self.kv_heads, self.head_dim))?.transpose(0, 1)?.force_contiguous()?;
            if x.dtype() == kept {
                return Ok(x);
            }
            // What F16 cannot hold is infinite by now; times zero it is no number.
            let x = x.to_dtype(kept)?;
            &x + (&x * 0.0)?
        };
        let (start, activation) = (self.len, k.dtype());
        let (k, v) = (heads(k)?, heads(v)?);
        let (keys, values) = self.room(rows, activation)?;
        keys.slice_set(&k, 1, start)?;
        values.slice_set(&v, 1, start)?;
        self.advance(rows);
        Ok(())
    }

    /// Keys and values `(K, capacity, D)` with room for so many positions more; `activation` is the type of activations.
    pub fn room(&mut self, rows: usize, activation: DType) -> Result<&(Tensor, Tensor)> {
        let need = self.len + rows;
        let old = self.tensors.take();
        let enough = old.as_ref().is_some_and(|(keys, _)| need <= keys.dims()[1]);
        let grow = |old: Option<&Tensor>| {
            let shape = (self.kv_heads, need.next_multiple_of(GROWTH), self.head_dim);
            let to = Tensor::zeros(shape, kept_as(self.format, activation)?, &self.device)?;
            if let (Some(old), true) = (old, self.len > 0) {
                to.slice_set(&old.narrow(1, 0, self.len)?.force_contiguous()?, 1, 0)?;
            }
            Ok::<_, candle_core::Error>(to)
        };
        let tensors = match &old {
            Some(tensors) if enough => Ok(tensors.clone()),
            old => grow(old.as_ref().map(|t| &t.0)).and_then(|keys| Ok((keys, grow(old.as_ref().map(|t| &t.1))?))),
        };
        match tensors {
            Ok(tensors) => Ok(self.tensors.insert(tensors)),
            Err(error) => {
                self.tensors = old;
                Err(error)
            }
        }
    }

    /// Holds so many positions more, for which there is [room](Self::room) and which were written.
    pub fn advance(&mut self, rows: usize) {
        self.len += rows;
    }
}

/// What attention reads besides activations in one forward pass, made once and shared by the layers: masks for each window, or where the
/// device's own kernels find rows and keys.
#[derive(Default)]
pub struct Masks {
    by_window: HashMap<Option<usize>, Tensor>,
    places: HashMap<usize, BatchPlaces>,
}

impl Masks {
    /// `(T, S)`: 0 where a query sees a key, a large negative number where not.
    fn get(&mut self, window: Option<usize>, rows: usize, keys: usize, device: &Device) -> Result<Tensor> {
        if let Some(mask) = self.by_window.get(&window) {
            return Ok(mask.clone());
        }
        let past = keys - rows;
        let sees = |t: usize, s: usize| s <= past + t && window.is_none_or(|w| past + t - s < w);
        // Finite, so that no row can become NaN.
        let values: Vec<f32> = (0..rows * keys).map(|i| if sees(i / keys, i % keys) { 0.0 } else { -1e30 }).collect();
        let mask = Tensor::from_vec(values, (rows, keys), device)?;
        self.by_window.insert(window, mask.clone());
        Ok(mask)
    }

    /// Those of one sequence of so many rows.
    fn places(&mut self, rows: usize, device: &Device) -> Result<BatchPlaces> {
        if let Some(places) = self.places.get(&rows) {
            return Ok(places.clone());
        }
        let places = BatchPlaces::new(&[rows], device)?;
        self.places.insert(rows, places.clone());
        Ok(places)
    }
}

/// Rows over a cache that they are appended to, where they bring keys and values.
pub fn over_cache(
    q: &Tensor,
    kv: Option<[&Tensor; 2]>,
    heads: usize,
    (mask, sinks): (Mask, Option<&Tensor>),
    cache: &mut Cache,
    masks: &mut Masks,
) -> Result<Tensor> {
    let (rows, width) = q.dims2()?;
    let (kv_heads, dim) = (cache.kv_heads, cache.head_dim);
    if let Some([k, v]) = kv {
        cache.append(k, v)?;
    }
    let Some((keys, values)) = &cache.tensors else { bail!("a cache without room") };
    // The queries see their windows and nothing else; one of them needs no mask.
    let seen = cache.len.min(mask.window.map_or(cache.len, |window| window.saturating_add(rows - 1)));
    let read = |x: &Tensor| x.narrow(1, cache.len - seen, seen)?.to_dtype(q.dtype());
    let (keys, values) = (read(keys)?, read(values)?);
    let of_kv_head = (kv_heads, heads / kv_heads * rows);
    if let Some(batch) = BatchOps::of(q)?.filter(|_| rows > 1) {
        let [of_rows, of_keys] = [masks.places(rows, q.device())?, masks.places(seen, q.device())?];
        // Products of F16 are F16: before they are scaled they may be more than it holds.
        let (q, mask) = match q.dtype() {
            DType::F16 => ((q * f64::from(mask.scale))?, Mask { scale: 1.0, ..mask }),
            _ => (q.clone(), mask),
        };
        let q = batch.place(&q, heads, &of_rows)?.reshape((of_kv_head.0, of_kv_head.1, dim))?;
        let sinks = sinks.map(|sinks| sinks.to_dtype(DType::F32)).transpose()?;
        let scores = BatchScores { heads, queries: rows, keys: seen, mask, sinks: sinks.as_ref(), bias: None };
        let weights = batch.softmax(q.matmul(&keys.transpose(1, 2)?)?, scores, &of_keys)?;
        return batch.unplace(&weights.matmul(&values)?, heads, &of_rows);
    }
    let q = q.reshape((rows, heads, dim))?.transpose(0, 1)?.force_contiguous()?; // (H, T, D)
    if rows == 1 && sinks.is_none() && q.device().is_metal() && [32, 64, 72, 80, 96, 128, 256].contains(&dim) {
        // The fused step of Metal ignores the start offset of a view.
        let (k, v) = if seen == cache.len { (keys, values) } else { (keys.force_contiguous()?, values.force_contiguous()?) };
        let (q, k, v) = (q.unsqueeze(0)?, k.unsqueeze(0)?, v.unsqueeze(0)?);
        let y = sdpa(&q, &k, &v, None, false, mask.scale, mask.softcap.unwrap_or(1.0))?;
        return y.reshape((rows, width));
    }
    let q = q.reshape((of_kv_head.0, of_kv_head.1, dim))?;
    let scores = scores(&q, &keys, mask)?;
    let scores = if rows == 1 {
        scores
    } else {
        let mask = masks.get(mask.window, rows, seen, q.device())?;
        scores.reshape((heads, rows, seen))?.broadcast_add(&mask)?.reshape((of_kv_head.0, of_kv_head.1, seen))?
    };
    let weights = softmax(&scores.reshape((1, heads, rows, seen))?, sinks)?.to_dtype(values.dtype())?;
    let y = weights.reshape((of_kv_head.0, of_kv_head.1, seen))?.matmul(&values)?; // (K, G · T, D)
    y.reshape((heads, rows, dim))?.transpose(0, 1)?.force_contiguous()?.reshape((rows, width))
}

/// Weights of scores `(B, H, T, S)` beside a sink for each head, `(H)`, whose share is dropped.
fn softmax(scores: &Tensor, sinks: Option<&Tensor>) -> Result<Tensor> {
    let Some(sinks) = sinks else { return softmax_last_dim(&scores.contiguous()?) };
    let (batch, heads, rows, keys) = scores.dims4()?;
    let sinks = sinks.to_dtype(DType::F32)?.reshape((1, heads, 1, 1))?.broadcast_as((batch, heads, rows, 1))?;
    let all = Tensor::cat(&[scores, &sinks.force_contiguous()?], 3)?;
    softmax_last_dim(&all)?.narrow(3, 0, keys)?.force_contiguous()
}

/// Products of queries with keys in F32, scaled and capped.
///
/// # Shape
/// `q`: `(K, N, D)`, `k`: `(K, S, D)`: rank 3 with one batch stride, as Metal's product is wrong for views whose batch
/// strides are not uniform.
fn scores(q: &Tensor, k: &Tensor, mask: Mask) -> Result<Tensor> {
    let scores = (q.matmul(&k.transpose(1, 2)?)?.to_dtype(DType::F32)? * f64::from(mask.scale))?;
    match mask.softcap {
        Some(cap) => (scores / f64::from(cap))?.tanh()? * f64::from(cap),
        None => Ok(scores),
    }
}

/// Sequences whose rows lie one after another, padded to the longest.
#[derive(Clone)]
pub struct Sequences {
    lengths: Arc<[usize]>,
    longest: usize,
    /// `(B · L)`: the row of each place; padding repeats the first.
    rows: Tensor,
    /// `(B, 1, L, L)`, causal or not, for each window: 0 where a query sees a key, else a large negative number.
    masks: HashMap<(bool, Option<usize>), Tensor>,
    bias: Option<Bias>,
    /// The place of each row.
    batch: BatchPlaces,
}

/// What is added to scores by the key's position minus the query's, `(H, 2 · L - 1)`.
#[derive(Clone)]
struct Bias {
    values: Arc<[f32]>,
    by_distance: Tensor,
    /// `(1, H, L, L)`, once it was asked for.
    by_place: Option<Tensor>,
}

impl Sequences {
    /// `bias`: `(H, 2 · longest - 1)`.
    pub fn new(lengths: Vec<usize>, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (mut rows, mut first) = (Vec::with_capacity(lengths.len() * longest), 0);
        for &len in &lengths {
            rows.extend((0..longest).map(|t| if t < len { (first + t) as u32 } else { 0 }));
            first += len;
        }
        let bias = bias.map(|bias| {
            let by_distance = Tensor::from_slice(&bias, bias.len(), device)?;
            Ok::<_, candle_core::Error>(Bias { values: bias.into(), by_distance, by_place: None })
        });
        Ok(Self {
            batch: BatchPlaces::new(&lengths, device)?,
            lengths: lengths.into(),
            longest,
            rows: Tensor::new(rows, device)?,
            masks: HashMap::new(),
            bias: bias.transpose()?,
        })
    }

    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// `(1, H, L, L)`
    fn bias_by_place(&mut self) -> Result<Option<&Tensor>> {
        let (longest, device) = (self.longest, self.rows.device());
        let Some(bias) = &mut self.bias else { return Ok(None) };
        if bias.by_place.is_none() {
            let heads = bias.values.len() / (2 * longest - 1);
            let at = |i: usize| {
                let (h, query, key) = (i / (longest * longest), i / longest % longest, i % longest);
                bias.values[h * (2 * longest - 1) + longest - 1 + key - query]
            };
            let values: Vec<f32> = (0..heads * longest * longest).map(at).collect();
            bias.by_place = Some(Tensor::from_vec(values, (1, heads, longest, longest), device)?);
        }
        Ok(bias.by_place.as_ref())
    }

    fn mask(&mut self, mask: Mask) -> Result<Tensor> {
        if let Some(mask) = self.masks.get(&(mask.causal, mask.window)) {
            return Ok(mask.clone());
        }
        let sees = |len: usize, query: usize, key: usize| {
            key < len && (!mask.causal || key <= query) && mask.window.is_none_or(|w| key.abs_diff(query) < w)
        };
        let (lengths, longest, square) = (&self.lengths, self.longest, self.longest * self.longest);
        // Finite, so that no row can become NaN.
        let value = |i: usize| if sees(lengths[i / square], i / longest % longest, i % longest) { 0.0 } else { -1e30f32 };
        let values: Vec<f32> = (0..lengths.len() * square).map(value).collect();
        let tensor = Tensor::from_vec(values, (lengths.len(), 1, longest, longest), self.rows.device())?;
        self.masks.insert((mask.causal, mask.window), tensor.clone());
        Ok(tensor)
    }

    /// Rows, `(T, heads · D)`, at their places by heads: `(B · K, G · L, D)`.
    pub fn placed(&self, x: &Tensor, heads: usize, kv_heads: usize) -> Result<Tensor> {
        self.by_heads(&self.placed_rows(x)?, heads, kv_heads)
    }

    /// The same with 0 in place of padding, which has no part in any gradient.
    pub fn placed_alone(&self, x: &Tensor, heads: usize, kv_heads: usize) -> Result<Tensor> {
        self.by_heads(&self.placed_rows_alone(x)?, heads, kv_heads)
    }

    /// Heads before positions, those of a key-value head one after another.
    fn by_heads(&self, x: &Tensor, heads: usize, kv_heads: usize) -> Result<Tensor> {
        let (batch, longest, width) = x.dims3()?;
        let dim = width / heads;
        let x = x.reshape((batch, longest, heads, dim))?.transpose(1, 2)?.force_contiguous()?;
        x.reshape((batch * kv_heads, heads / kv_heads * longest, dim))
    }

    /// How many sequences there are, and the length of the longest.
    pub fn shape(&self) -> (usize, usize) {
        (self.lengths.len(), self.longest)
    }

    /// Rows, `(T, C)`, at their places: `(B, L, C)`.
    pub fn placed_rows(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, longest) = self.shape();
        x.force_contiguous()?.index_select(&self.rows, 0)?.reshape((batch, longest, x.dims2()?.1))
    }

    /// The same with 0 in place of padding, which has no part in any gradient.
    pub fn placed_rows_alone(&self, x: &Tensor) -> Result<Tensor> {
        let ((batch, longest), width) = (self.shape(), x.dims2()?.1);
        let none = Tensor::zeros((batch * longest, width), x.dtype(), x.device())?;
        none.index_add(self.batch.places(), &x.force_contiguous()?, 0)?.reshape((batch, longest, width))
    }

    /// The rows of what is at places, `(B, L, C)`.
    pub fn rows_at(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, longest, width) = x.dims3()?;
        x.force_contiguous()?.reshape((batch * longest, width))?.index_select(self.batch.places(), 0)
    }

    /// The rows of what is at places.
    pub fn rows_of(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, longest, (_, _, dim)) = (self.lengths.len(), self.longest, x.dims3()?);
        let x = x.reshape((batch, heads, longest, dim))?.transpose(1, 2)?.force_contiguous()?;
        self.rows_at(&x.reshape((batch, longest, heads * dim))?)
    }

    /// What each query takes of the values, in F32: `(B · K, G · L, L)`; and its scores.
    fn weights(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        heads: usize,
        (mask, sinks): (Mask, Option<&Tensor>),
    ) -> Result<(Tensor, Tensor)> {
        let (scores, seen) = (scores(q, k, mask)?, self.mask(mask)?);
        let by_sequence = scores.reshape((self.lengths.len(), heads, self.longest, self.longest))?;
        let biased = match self.bias_by_place()? {
            Some(bias) => by_sequence.broadcast_add(bias)?,
            None => by_sequence,
        };
        let weights = softmax(&biased.broadcast_add(&seen)?, sinks)?;
        Ok((weights.reshape(scores.shape())?, scores))
    }
}

/// Queries, `(B · K, G · L, D)`, keys and values, `(B · K, L, D)`, at their places.
struct Placed<'a> {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: usize,
    longest: usize,
    bias: Option<&'a Tensor>,
}

impl<'a> Placed<'a> {
    fn new(
        batch: &BatchOps,
        [q, k, v]: [&Tensor; 3],
        (heads, kv_heads): (usize, usize),
        sequences: &'a Sequences,
    ) -> Result<Self> {
        let ((count, longest), dim) = (sequences.shape(), q.dims2()?.1 / heads);
        let placed = |x: &Tensor, heads: usize| {
            let rows = heads / kv_heads * longest;
            batch.place(x, heads, &sequences.batch)?.reshape((count * kv_heads, rows, dim))
        };
        let bias = sequences.bias.as_ref().map(|bias| &bias.by_distance);
        Ok(Self { q: placed(q, heads)?, k: placed(k, kv_heads)?, v: placed(v, kv_heads)?, heads, longest, bias })
    }

    /// `(B · K, G · L, L)`
    fn products(&self) -> Result<Tensor> {
        self.q.matmul(&self.k.transpose(1, 2)?)
    }

    fn scores(&self, mask: Mask, sinks: Option<&'a Tensor>) -> BatchScores<'a> {
        BatchScores { heads: self.heads, queries: self.longest, keys: self.longest, mask, sinks, bias: self.bias }
    }
}

pub fn within(
    [q, k, v]: [&Tensor; 3],
    (heads, kv_heads): (usize, usize),
    mask: (Mask, Option<&Tensor>),
    sequences: &mut Sequences,
) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(q)? {
        let placed = Placed::new(&batch, [q, k, v], (heads, kv_heads), sequences)?;
        let sinks = mask.1.map(|sinks| sinks.to_dtype(DType::F32)).transpose()?;
        let weights = batch.softmax(placed.products()?, placed.scores(mask.0, sinks.as_ref()), &sequences.batch)?;
        return batch.unplace(&weights.matmul(&placed.v)?, heads, &sequences.batch);
    }
    let q = sequences.placed(q, heads, kv_heads)?;
    let [k, v] = [sequences.placed(k, kv_heads, kv_heads)?, sequences.placed(v, kv_heads, kv_heads)?];
    let (weights, _) = sequences.weights(&q, &k, heads, mask)?;
    sequences.rows_of(&weights.to_dtype(v.dtype())?.matmul(&v)?, heads)
}

/// The gradients of q, k and v.
///
/// # Source
/// Dao et al. 2022, appendix B.2, <https://arxiv.org/abs/2205.14135>.
pub fn within_backward(
    [q, k, v]: [&Tensor; 3],
    dy: &Tensor,
    (heads, kv_heads): (usize, usize),
    (mask, sinks): (Mask, Option<&Tensor>),
    sequences: &mut Sequences,
) -> Result<[Tensor; 3]> {
    if let Some(batch) = BatchOps::of(q)? {
        let placed = Placed::new(&batch, [q, k, v], (heads, kv_heads), sequences)?;
        let Placed { q, k, v, .. } = &placed;
        let sinks = sinks.map(|sinks| sinks.to_dtype(DType::F32)).transpose()?;
        let scores = placed.scores(mask, sinks.as_ref());
        let dy = batch.place(dy, heads, &sequences.batch)?.reshape(q.shape())?;
        let products = placed.products()?;
        let of_weights = dy.matmul(&v.transpose(1, 2)?)?;
        let of_scores = batch.softmax_backward(&products, of_weights, scores, &sequences.batch)?;
        // In place of the products, which are not needed any more.
        let dv = batch.softmax(products, scores, &sequences.batch)?.transpose(1, 2)?.matmul(&dy)?;
        let (dq, dk) = (of_scores.matmul(k)?, of_scores.transpose(1, 2)?.matmul(q)?);
        let unplaced = |x: &Tensor, heads: usize| batch.unplace(x, heads, &sequences.batch);
        return Ok([unplaced(&dq, heads)?, unplaced(&dk, kv_heads)?, unplaced(&dv, kv_heads)?]);
    }
    let q = sequences.placed(q, heads, kv_heads)?;
    let [k, v] = [sequences.placed(k, kv_heads, kv_heads)?, sequences.placed(v, kv_heads, kv_heads)?];
    let (weights, scores) = sequences.weights(&q, &k, heads, (mask, sinks))?;
    let dy = sequences.placed_alone(dy, heads, kv_heads)?;
    let dv = weights.to_dtype(v.dtype())?.transpose(1, 2)?.matmul(&dy)?;
    let of_weights = dy.matmul(&v.transpose(1, 2)?)?.to_dtype(DType::F32)?;
    let mean = (&weights * &of_weights)?.sum_keepdim(2)?;
    let mut of_scores = ((weights * of_weights.broadcast_sub(&mean)?)? * f64::from(mask.scale))?;
    if let Some(cap) = mask.softcap {
        let tanh = (scores / f64::from(cap))?;
        of_scores = (of_scores * (1.0 - tanh.sqr()?)?)?;
    }
    let of_scores = of_scores.to_dtype(q.dtype())?;
    let (dq, dk) = (of_scores.matmul(&k)?, of_scores.transpose(1, 2)?.matmul(&q)?);
    Ok([sequences.rows_of(&dq, heads)?, sequences.rows_of(&dk, kv_heads)?, sequences.rows_of(&dv, kv_heads)?])
}
