//! Scans by tensor operations: chunks by products of matrices, in F32. What within a chunk hangs on no other is computed for
//! all chunks and heads at once; from chunk to chunk go three products.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::attention::Sequences;
use crate::kernels::{CHUNK, ScanRule, ScanShape, chunk_start};
use crate::ops::{Decay, Vector, tensor_bytes, to_f32};

/// `ln(1 + x)` for x in 0..1, with all digits of a small one: `2 artanh(x / (2 + x))` as a series.
fn ln_1p(x: &Tensor) -> Result<Tensor> {
    let s = (x / (x + 2.0)?)?;
    let square = s.sqr()?;
    let mut sum = Tensor::ones_like(&s)?.affine(1.0 / 15.0, 0.0)?;
    for n in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = ((sum * &square)? + 1.0 / n)?;
    }
    (sum * s)? * 2.0
}

/// `x + bias` in F32.
fn biased(x: &Tensor, by: &Decay) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.broadcast_add(by.bias.tensors()?)
}

/// `softplus(x + bias)`
fn lengths(x: &Tensor, by: &Decay) -> Result<Tensor> {
    let x = biased(x, by)?;
    x.relu()? + ln_1p(&x.abs()?.neg()?.exp()?)?
}

/// Times the rate of each head, where there is one.
fn rated(x: Tensor, by: &Decay) -> Result<Tensor> {
    match &by.rate {
        Some(rate) => x.broadcast_mul(rate.tensors()?),
        None => Ok(x),
    }
}

pub fn decay(x: &Tensor, by: &Decay) -> Result<Tensor> {
    let (lengths, (low, high)) = (lengths(x, by)?, by.limits);
    let lengths = if low > 0.0 { lengths.maximum(low)? } else { lengths };
    rated(if high < f32::INFINITY { lengths.minimum(high)? } else { lengths }, by)
}

pub fn decay_backward(x: &Tensor, dy: &Tensor, by: &Decay) -> Result<Tensor> {
    let (slope, (low, high)) = (rated(candle_nn::ops::sigmoid(&biased(x, by)?)?, by)?, by.limits);
    let mut dx = (dy.to_dtype(DType::F32)? * slope)?;
    if low > 0.0 || high < f32::INFINITY {
        let lengths = lengths(x, by)?;
        let is_inside = (lengths.ge(low)?.to_dtype(DType::F32)? * lengths.le(high)?.to_dtype(DType::F32)?)?;
        dx = (dx * is_inside)?;
    }
    dx.to_dtype(x.dtype())
}

/// The matrix before the chunk that begins at `start`, and of the chunk's tokens keys, updates and g. Rows behind those that count were
/// taken back.
pub struct Memory {
    shape: ScanShape,
    start: usize,
    len: usize,
    kept: Option<Kept>,
    device: Device,
}

enum Kept {
    /// Never changed, and shared by copies.
    Parts(Held),
    /// Of each head all parts one after another, with room for a whole chunk, `(H, N · P + 16 · (N + P + 1))`: kernels change it.
    Whole(Tensor),
}

/// # Shape
/// `matrix`: `(X, N, P)`, `keys`: `(X, n, N)`, `updates`: `(X, n, P)`, `g`: `(X, n)`.
#[derive(Clone)]
struct Held {
    matrix: Tensor,
    keys: Tensor,
    updates: Tensor,
    g: Tensor,
}

impl Memory {
    pub fn new(shape: ScanShape, device: &Device) -> Self {
        Self { shape, start: 0, len: 0, kept: None, device: device.clone() }
    }

    /// A copy that shares nothing that is changed.
    pub fn fork(&self) -> Result<Self> {
        let kept = match &self.kept {
            Some(Kept::Parts(held)) => Some(Kept::Parts(held.clone())),
            Some(Kept::Whole(whole)) => Some(Kept::Whole(whole.force_contiguous()?)),
            None => None,
        };
        Ok(Self { kept, device: self.device.clone(), ..*self })
    }

    pub fn shape(&self) -> ScanShape {
        self.shape
    }

    pub fn held_bytes(&self) -> u64 {
        match &self.kept {
            Some(Kept::Parts(held)) => [&held.matrix, &held.keys, &held.updates, &held.g].map(tensor_bytes).iter().sum(),
            Some(Kept::Whole(whole)) => tensor_bytes(whole),
            None => 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn start(&self) -> usize {
        self.start
    }

    pub fn truncate(&mut self, len: usize) {
        if len >= self.start && len > 0 {
            self.len = self.len.min(len);
        } else if len < self.len {
            *self = Self::new(self.shape, &self.device);
        }
    }

    fn held(&self) -> Result<Held> {
        let ScanShape { heads, key_dim, value_dim, .. } = self.shape;
        let count = self.len - self.start;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &self.device);
        Ok(match &self.kept {
            None => Held {
                matrix: zeros(&[heads, key_dim, value_dim])?,
                keys: zeros(&[heads, 0, key_dim])?,
                updates: zeros(&[heads, 0, value_dim])?,
                g: zeros(&[heads, 0])?,
            },
            Some(Kept::Parts(Held { matrix, keys, updates, g })) => Held {
                matrix: matrix.clone(),
                keys: keys.narrow(1, 0, count)?,
                updates: updates.narrow(1, 0, count)?,
                g: g.narrow(1, 0, count)?,
            },
            Some(Kept::Whole(whole)) => {
                let mut first = 0;
                let mut part = |width: usize| {
                    first += width;
                    whole.narrow(1, first - width, width)
                };
                Held {
                    matrix: part(key_dim * value_dim)?.reshape((heads, key_dim, value_dim))?,
                    keys: part(CHUNK * key_dim)?.reshape((heads, CHUNK, key_dim))?.narrow(1, 0, count)?,
                    updates: part(CHUNK * value_dim)?.reshape((heads, CHUNK, value_dim))?.narrow(1, 0, count)?,
                    g: part(CHUNK)?.force_contiguous()?.narrow(1, 0, count)?,
                }
            }
        })
    }

    /// What kernels read and change, of each head the matrix `(N, P)` and the chunk's keys `(16, N)`, updates `(16, P)` and g `(16)`.
    pub fn whole(&mut self) -> Result<&Tensor> {
        let ScanShape { heads, key_dim, value_dim, .. } = self.shape;
        if self.kept.is_none() {
            let values = key_dim * value_dim + CHUNK * (key_dim + value_dim + 1);
            self.kept = Some(Kept::Whole(Tensor::zeros((heads, values), DType::F32, &self.device)?));
        } else if matches!(self.kept, Some(Kept::Parts(_))) {
            let (Held { matrix, keys, updates, g }, missing) = (self.held()?, CHUNK - (self.len - self.start));
            let flat = |x: &Tensor| padded_behind(x, missing)?.force_contiguous()?.flatten_from(1);
            let parts = [matrix.flatten_from(1)?, flat(&keys)?, flat(&updates)?, flat(&g)?];
            self.kept = Some(Kept::Whole(Tensor::cat(&parts, 1)?.force_contiguous()?));
        }
        match &self.kept {
            Some(Kept::Whole(whole)) => Ok(whole),
            _ => bail!("a scan without its state"),
        }
    }

    /// Holds so many tokens more, which kernels have taken up.
    pub fn advance(&mut self, rows: usize) {
        self.len += rows;
        if self.len - self.start > CHUNK {
            self.start = chunk_start(self.len);
        }
    }

    pub fn values(&self) -> Result<Vec<f32>> {
        let (Held { matrix, keys, updates, g }, missing) = (self.held()?, CHUNK - (self.len - self.start));
        let mut values = to_f32(&matrix)?;
        for x in [keys, updates, g] {
            values.extend(to_f32(&padded_behind(&x, missing)?)?);
        }
        Ok(values)
    }

    pub fn fill(&mut self, values: &[f32], start: usize, len: usize) -> Result<()> {
        let ScanShape { heads, key_dim, value_dim, .. } = self.shape;
        let mut rest = values;
        let mut tensor = |shape: &[usize]| {
            let (part, behind) = rest.split_at(shape.iter().product());
            rest = behind;
            Tensor::from_vec(part.to_vec(), shape, &Device::Cpu)?.to_device(&self.device)
        };
        let held = Held {
            matrix: tensor(&[heads, key_dim, value_dim])?,
            keys: tensor(&[heads, CHUNK, key_dim])?,
            updates: tensor(&[heads, CHUNK, value_dim])?,
            g: tensor(&[heads, CHUNK])?,
        };
        (self.start, self.len, self.kept) = (start, len, Some(Kept::Parts(held)));
        Ok(())
    }
}

/// Zeros behind the second dimension.
fn padded_behind(x: &Tensor, rows: usize) -> Result<Tensor> {
    if rows == 0 { Ok(x.clone()) } else { x.pad_with_zeros(1, 0, rows) }
}

/// `(T, heads · D)` as `(heads, T, D)` in F32.
fn by_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    x.to_dtype(DType::F32)?.force_contiguous()?.reshape((rows, heads, width / heads))?.transpose(0, 1)?.force_contiguous()
}

/// `(B · G, T, N)` as `(B · H, T, N)`: each for the heads that read it.
fn for_heads(x: &Tensor, group: usize) -> Result<Tensor> {
    let (all, rows, width) = x.dims3()?;
    if group == 1 {
        return Ok(x.clone());
    }
    x.unsqueeze(1)?.broadcast_as((all, group, rows, width))?.force_contiguous()?.reshape((all * group, rows, width))
}

/// What is read, and the values times each head's factor.
///
/// # Shape
/// `read`, `v`: `(T, H · P)`; returns the same.
fn with_skip(read: Tensor, v: &Tensor, skip: Option<&Vector>, heads: usize) -> Result<Tensor> {
    let Some(skip) = skip else { return Ok(read) };
    let (rows, width) = read.dims2()?;
    let v = v.to_dtype(DType::F32)?.force_contiguous()?.reshape((rows, heads, width / heads))?;
    let skipped = v.broadcast_mul(&skip.tensors()?.reshape((1, heads, 1))?)?.reshape((rows, width))?;
    read.to_dtype(DType::F32)? + skipped
}

pub fn behind([q, k, v, g, beta]: [&Tensor; 5], skip: Option<&Vector>, memory: &mut Memory) -> Result<Tensor> {
    let ScanShape { heads, groups, value_dim, rule, .. } = memory.shape;
    let (rows, group) = (q.dims2()?.0, heads / groups);
    if rows == 0 {
        return Ok(v.clone());
    }
    let keys = |x: &Tensor| for_heads(&by_heads(x, groups)?, group);
    let numbers = |x: &Tensor| by_heads(x, heads)?.squeeze(2);
    let held = memory.held()?;
    let (before, matrix) = (memory.len - memory.start, held.matrix.clone());
    let chunks = Chunks::new([&keys(q)?, &keys(k)?, &by_heads(v, heads)?], [&numbers(g)?, &numbers(beta)?], Some(held), rule)?;
    let (outputs, updates, matrices) = chunks.forward(matrix)?;
    let last = chunks.count - 1;
    let count = before + rows - last * chunks.height;
    let Some((updates, matrix)) = updates.last().zip(matrices.last()) else { bail!("scan: no chunk") };
    memory.kept = Some(Kept::Parts(Held {
        matrix: matrix.clone(),
        keys: chunks.of(&chunks.k, last)?.narrow(1, 0, count)?,
        updates: updates.narrow(1, 0, count)?,
        g: chunks.of(&chunks.g, last)?.narrow(1, 0, count)?,
    }));
    memory.start += last * CHUNK;
    memory.len += rows;
    let y = Tensor::cat(&outputs, 1)?.narrow(1, before, rows)?; // (H, T, P)
    let y = y.transpose(0, 1)?.force_contiguous()?.reshape((rows, heads * value_dim))?;
    with_skip(y, v, skip, heads)?.to_dtype(v.dtype())
}

/// The inputs of whole sequences, padded to the longest, of each head.
fn placed([q, k, v, g, beta]: [&Tensor; 5], shape: ScanShape, sequences: &Sequences) -> Result<Chunks> {
    let ScanShape { heads, groups, rule, .. } = shape;
    let at = |x: &Tensor, heads: usize| sequences.placed(&x.to_dtype(DType::F32)?, heads, heads);
    let keys = |x: &Tensor| for_heads(&at(x, groups)?, heads / groups);
    let numbers = |x: &Tensor| at(x, heads)?.squeeze(2);
    Chunks::new([&keys(q)?, &keys(k)?, &at(v, heads)?], [&numbers(g)?, &numbers(beta)?], None, rule)
}

pub fn within(inputs: [&Tensor; 5], shape: ScanShape, skip: Option<&Vector>, sequences: &Sequences) -> Result<Tensor> {
    let (v, (_, longest)) = (inputs[2], sequences.shape());
    if longest == 0 {
        return Ok(v.clone());
    }
    let chunks = placed(inputs, shape, sequences)?;
    let (outputs, ..) = chunks.forward(chunks.empty_matrix(shape)?)?;
    let y = sequences.rows_of(&Tensor::cat(&outputs, 1)?.narrow(1, 0, longest)?, shape.heads)?;
    with_skip(y, v, skip, shape.heads)?.to_dtype(v.dtype())
}

/// The gradients of q, k, v, g and beta.
pub fn within_backward(
    inputs: [&Tensor; 5],
    dy: &Tensor,
    shape: ScanShape,
    skip: Option<&Vector>,
    sequences: &Sequences,
) -> Result<[Tensor; 5]> {
    let (ScanShape { heads, groups, .. }, (_, longest)) = (shape, sequences.shape());
    let chunks = placed(inputs, shape, sequences)?;
    let placed = sequences.placed_alone(&dy.to_dtype(DType::F32)?, heads, heads)?;
    let gradients = chunks.backward(&placed, chunks.empty_matrix(shape)?)?;
    let rows = |x: &Tensor, heads: usize| sequences.rows_of(&x.narrow(1, 0, longest)?, heads);
    let of_groups = |x: &Tensor| {
        let (all, rows, width) = x.dims3()?;
        let group = heads / groups;
        x.reshape((all / group, group, rows, width))?.sum(1)
    };
    let [dq, dk, dv, dg, dbeta] = gradients;
    let all = [
        rows(&of_groups(&dq)?, groups)?,
        rows(&of_groups(&dk)?, groups)?,
        with_skip(rows(&dv, heads)?, dy, skip, heads)?,
        rows(&dg.unsqueeze(2)?, heads)?,
        rows(&dbeta.unsqueeze(2)?, heads)?,
    ];
    let [dq, dk, dv, dg, dbeta] = all;
    let [q, k, v, g, beta] = inputs.map(Tensor::dtype);
    Ok([dq.to_dtype(q)?, dk.to_dtype(k)?, dv.to_dtype(v)?, dg.to_dtype(g)?, dbeta.to_dtype(beta)?])
}

/// The tokens of X heads in chunks, and what of each hangs on no other.
///
/// # Shape
/// With Y of all heads and chunks: `(Y, C, …)`.
struct Chunks {
    /// How many of a head.
    count: usize,
    /// Tokens of each, `C`.
    height: usize,
    /// `(Y, C, N)`
    q: Tensor,
    k: Tensor,
    /// `(Y, C, P)`
    v: Tensor,
    /// `(Y, C)`
    g: Tensor,
    /// `(Y, C, 1)`
    beta: Tensor,
    /// What is left of the matrix at each token, `(Y, C, 1)`.
    fades: Tensor,
    /// What is left of each token's update at a later one, `(Y, C, C)`; zeros above the diagonal.
    left: Tensor,
    /// 1 on and below the diagonal, `(C, C)`, and below it alone.
    lower: Tensor,
    below: Tensor,
    /// `Q Kᵀ`, `(Y, C, C)`.
    qk: Tensor,
    /// The updates, as far as they hang on no other chunk: `beta V`, or what solving for corrections gives of it, `(Y, C, P)`.
    of_values: Tensor,
    /// Of the delta rule.
    corrections: Option<Corrections>,
}

/// What makes updates of the delta rule.
struct Corrections {
    /// `K Kᵀ`, `(Y, C, C)`.
    kk: Tensor,
    /// `beta (K Kᵀ) ∘ L` below the diagonal, `(Y, C, C)`.
    a: Tensor,
    /// What solving gives of `beta e K`, `(Y, C, N)`.
    of_keys: Tensor,
}

impl Chunks {
    /// # Shape
    /// `q`, `k`: `(X, T, N)`, `v`: `(X, T, P)`, `g`, `beta`: `(X, T)`, behind what is held of the first chunk.
    fn new([q, k, v]: [&Tensor; 3], [g, beta]: [&Tensor; 2], held: Option<Held>, rule: ScanRule) -> Result<Self> {
        let (all, rows, key_dim) = k.dims3()?;
        let value_dim = v.dims3()?.2;
        let before = held.as_ref().map_or(Ok(0), |held| held.keys.dims3().map(|(_, count, _)| count))?;
        let total = before + rows;
        let count = total.div_ceil(CHUNK);
        let height = if count == 1 { total } else { CHUNK };
        let padding = count * height - total;
        // What is held stands for updates that are known: as values of tokens with a beta of 0 in the products.
        let in_front = |x: &Tensor, held: Option<&Tensor>| {
            let x = match held {
                _ if before == 0 => x.clone(),
                Some(held) => Tensor::cat(&[held, x], 1)?,
                None => x.pad_with_zeros(1, before, 0)?,
            };
            padded_behind(&x, padding)?.force_contiguous()
        };
        let y = all * count;
        let k = in_front(k, held.as_ref().map(|held| &held.keys))?.reshape((y, height, key_dim))?;
        let q = in_front(q, None)?.reshape((y, height, key_dim))?;
        let given = v.broadcast_mul(&beta.unsqueeze(2)?)?;
        let given = in_front(&given, held.as_ref().map(|held| &held.updates))?.reshape((y, height, value_dim))?;
        let v = in_front(v, None)?.reshape((y, height, value_dim))?;
        let g = in_front(g, held.as_ref().map(|held| &held.g))?.reshape((y, height))?;
        let beta = in_front(beta, None)?.reshape((y, height, 1))?;

        let device = k.device();
        let mask = |keeps: fn(usize, usize) -> bool| {
            let values: Vec<f32> = (0..height * height).map(|i| f32::from(u8::from(keeps(i / height, i % height)))).collect();
            Tensor::from_vec(values, (height, height), device)
        };
        let (lower, below) = (mask(|t, i| i <= t)?, mask(|t, i| i < t)?);
        // Each exponent is a sum of its own: [t, i] of g[j], i < j ≤ t.
        let sums = g.unsqueeze(1)?.broadcast_mul(&lower)?.reshape((y * height, height))?.matmul(&below)?;
        let left = sums.exp()?.reshape((y, height, height))?.broadcast_mul(&lower)?;
        let fades = g.matmul(&lower.t()?.force_contiguous()?)?.exp()?.unsqueeze(2)?;
        let transposed = k.transpose(1, 2)?.force_contiguous()?;
        let qk = q.matmul(&transposed)?;
        let (of_values, corrections) = match rule {
            ScanRule::Additive => (given, None),
            ScanRule::Delta => {
                let kk = k.matmul(&transposed)?;
                let a = ((&kk * &left)?.broadcast_mul(&below)?).broadcast_mul(&beta)?;
                let weighted = k.broadcast_mul(&(&fades * &beta)?)?;
                let right = Tensor::cat(&[&given, &weighted], 2)?;
                // Where there is one chunk alone, what is held of it has no correction that is yet to be found.
                let solved = solve(&a, &right, if count == 1 { before.max(1) } else { 1 })?;
                let of_keys = solved.narrow(2, value_dim, key_dim)?.force_contiguous()?;
                (solved.narrow(2, 0, value_dim)?.force_contiguous()?, Some(Corrections { kk, a, of_keys }))
            }
        };
        Ok(Self { count, height, q, k, v, g, beta, fades, left, lower, below, qk, of_values, corrections })
    }

    fn empty_matrix(&self, shape: ScanShape) -> Result<Tensor> {
        let heads = self.k.dims()[0] / self.count;
        Tensor::zeros((heads, shape.key_dim, shape.value_dim), DType::F32, self.k.device())
    }

    /// What is of one chunk: `(X, C, …)`.
    fn of(&self, x: &Tensor, chunk: usize) -> Result<Tensor> {
        let dims = x.dims();
        let shape: Vec<usize> = [dims[0] / self.count, self.count].iter().chain(&dims[1..]).copied().collect();
        x.reshape(shape)?.narrow(1, chunk, 1)?.squeeze(1)?.force_contiguous()
    }

    /// What is left of each token at the end of a chunk: `(X, C, 1)`.
    fn at_end(&self, chunk: usize) -> Result<Tensor> {
        self.of(&self.left, chunk)?.narrow(1, self.height - 1, 1)?.transpose(1, 2)?.force_contiguous()
    }

    /// Outputs and updates of each chunk, `(X, C, P)`, and the matrix before it, `(X, N, P)`, of which the first is given.
    fn forward(&self, mut matrix: Tensor) -> Result<(Vec<Tensor>, Vec<Tensor>, Vec<Tensor>)> {
        let (mut outputs, mut all_updates, mut matrices) = (Vec::new(), Vec::new(), Vec::new());
        let weights = (&self.qk * &self.left)?;
        for chunk in 0..self.count {
            let of = |x: &Tensor| self.of(x, chunk);
            let fades = of(&self.fades)?;
            let mut updates = of(&self.of_values)?;
            if let Some(Corrections { of_keys, .. }) = &self.corrections {
                updates = (updates - of(of_keys)?.matmul(&matrix)?)?;
            }
            let read = of(&self.q)?.matmul(&matrix)?.broadcast_mul(&fades)?;
            outputs.push((read + of(&weights)?.matmul(&updates)?)?);
            matrices.push(matrix.clone());
            if chunk + 1 < self.count {
                let keys = of(&self.k)?.broadcast_mul(&self.at_end(chunk)?)?.transpose(1, 2)?.force_contiguous()?;
                let kept = matrix.broadcast_mul(&fades.narrow(1, self.height - 1, 1)?)?;
                matrix = (kept + keys.matmul(&updates)?)?;
            }
            all_updates.push(updates);
        }
        Ok((outputs, all_updates, matrices))
    }

    /// The gradients of q, k, v, `(X, T, …)`, and of g and beta, `(X, T)`, with T filled up to whole chunks.
    fn backward(&self, dy: &Tensor, matrix: Tensor) -> Result<[Tensor; 5]> {
        let (_, all_updates, matrices) = self.forward(matrix.clone())?;
        let dy = padded_behind(dy, self.count * self.height - dy.dims3()?.1)?;
        let mut of_matrix = matrix.zeros_like()?;
        let mut parts: [Vec<Tensor>; 5] = Default::default();
        let turned = |x: &Tensor| x.transpose(1, 2)?.force_contiguous();
        for chunk in (0..self.count).rev() {
            let of = |x: &Tensor| self.of(x, chunk);
            let (q, k, beta, fades, left) = (of(&self.q)?, of(&self.k)?, of(&self.beta)?, of(&self.fades)?, of(&self.left)?);
            let qk = of(&self.qk)?;
            let (matrix, updates, end) = (&matrices[chunk], &all_updates[chunk], self.at_end(chunk)?);
            let dy = dy.narrow(1, chunk * self.height, self.height)?.force_contiguous()?;
            // O = e Q S + P U,  S' = e[C] S + (L[C] K)ᵀ U
            let du = (turned(&(&qk * &left)?)?.matmul(&dy)? + k.matmul(&of_matrix)?.broadcast_mul(&end)?)?;
            let dp = (dy.matmul(&turned(updates)?)? * &left)?;
            let dq = (dy.matmul(&turned(matrix)?)?.broadcast_mul(&fades)? + dp.matmul(&k)?)?;
            let of_end = updates.matmul(&turned(&of_matrix)?)?.broadcast_mul(&end)?;
            let mut dk = (turned(&dp)?.matmul(&q)? + &of_end)?;
            let faded = dy.broadcast_mul(&fades)?;
            let last = fades.narrow(1, self.height - 1, 1)?;
            let m = (&dp * &qk)?;
            let of_end = (of_end * &k)?.sum(D::Minus1)?;
            let mut dsum = (&faded * q.matmul(matrix)?)?.sum(D::Minus1)?;
            dsum = (((dsum + m.sum(2)?)? - m.sum(1)?)? - &of_end)?;
            let kept = (matrix * &of_matrix)?.broadcast_mul(&last)?.flatten_from(1)?.sum_keepdim(1)?;
            let of_last = (of_end.sum_keepdim(1)? + kept)?; // (X, 1)
            let mut before = (of_matrix.broadcast_mul(&last)? + turned(&q)?.matmul(&faded)?)?;
            let (mut dr, mut missing) = (du, of(&self.v)?);
            let mut of_weights = None;
            if let Some(Corrections { kk, a, .. }) = &self.corrections {
                // (I + A) U = R,  R = beta (V - e K S),  A = beta (K Kᵀ) ∘ L below the diagonal
                let (kk, a) = (of(kk)?, of(a)?);
                dr = solve_transposed(&a, &dr)?;
                let da = dr.matmul(&turned(updates)?)?.broadcast_mul(&self.below)?.neg()?;
                let n = (&da * &left)?.broadcast_mul(&beta)?;
                let weighted = dr.broadcast_mul(&(&beta * &fades)?)?;
                dk = (((dk + n.matmul(&k)?)? + turned(&n)?.matmul(&k)?)? - weighted.matmul(&turned(matrix)?)?)?;
                before = (before - turned(&k)?.matmul(&weighted)?)?;
                let (m, of_keys) = ((&da * &a)?, k.matmul(matrix)?);
                dsum = (((dsum + m.sum(2)?)? - m.sum(1)?)? - (weighted * &of_keys)?.sum(D::Minus1)?)?;
                missing = (missing - of_keys.broadcast_mul(&fades)?)?;
                of_weights = Some(((da * &kk)? * &left)?.sum(D::Minus1)?);
            }
            let mut dbeta = (&dr * missing)?.sum(D::Minus1)?;
            if let Some(of_weights) = of_weights {
                dbeta = (dbeta + of_weights)?;
            }
            // Of the sums up to each token those of each g: all from it on. What goes to the last sum goes to all of them.
            let dg = dsum.matmul(&self.lower)?.broadcast_add(&of_last)?;
            for (part, gradient) in parts.iter_mut().zip([dq, dk, dr.broadcast_mul(&beta)?, dg, dbeta]) {
                part.push(gradient);
            }
            of_matrix = before;
        }
        let [dq, dk, dv, dg, dbeta] = parts.map(|mut part| {
            part.reverse();
            Tensor::cat(&part, 1)
        });
        Ok([dq?, dk?, dv?, dg?, dbeta?])
    }
}

/// `(I + A)⁻¹ B` by substitution, where the rows before `from` have nothing below the diagonal.
///
/// # Shape
/// `a`: `(Y, C, C)`, zeros but below the diagonal; `b`: `(Y, C, M)`.
fn solve(a: &Tensor, b: &Tensor, from: usize) -> Result<Tensor> {
    let rows = b.dims3()?.1;
    let mut solved = b.narrow(1, 0, from.min(rows))?;
    for t in from..rows {
        let weights = a.narrow(1, t, 1)?.narrow(2, 0, t)?.force_contiguous()?;
        let row = (b.narrow(1, t, 1)? - weights.matmul(&solved.force_contiguous()?)?)?;
        solved = Tensor::cat(&[&solved, &row], 1)?;
    }
    Ok(solved)
}

/// `(I + A)⁻ᵀ B`.
fn solve_transposed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let rows = b.dims3()?.1;
    let mut solved = b.narrow(1, rows - 1, 1)?;
    for t in (0..rows - 1).rev() {
        let weights = a.narrow(2, t, 1)?.narrow(1, t + 1, rows - 1 - t)?.transpose(1, 2)?.force_contiguous()?;
        let row = (b.narrow(1, t, 1)? - weights.matmul(&solved.force_contiguous()?)?)?;
        solved = Tensor::cat(&[&row, &solved], 1)?;
    }
    Ok(solved)
}
