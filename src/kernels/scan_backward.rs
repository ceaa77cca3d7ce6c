//! The gradients of scans within sequences. States and what lies within a chunk are computed a second time: kept, they
//! would be a matrix a head for each chunk of every layer.
//!
//! With `P = (Q Kᵀ) ∘ L` and `A = beta (K Kᵀ) ∘ L` below the diagonal a chunk is
//! `(I + A) U = beta (V - e K S)`, or `U = beta V`, `O = e Q S + P U + skip V` and `S' = e[C] S + (L[C] K)ᵀ U`; what follows is the product
//! rule, line by line.

use std::collections::TryReserveError;
use std::sync::{Mutex, PoisonError};

use super::attention::{SPLIT_WORK, Strided};
use super::math;
use super::parallel::{Shared, split};
use super::scan::{CHUNK, ScanInputs, ScanRule, ScanShape};
use super::simd::{Kernel, Simd, dispatch};

/// The gradients of q, k, v, g and beta from that of [`scan_within`](super::scan_within)'s output, `dy`.
///
/// # Shape
/// `dy`: rows of `H · P` values; `out`: rows of `G · N`, `G · N`, `H · P`, `H` and `H` values; as many rows as `lengths` sum to.
///
/// # Errors
/// If there is no memory for the matrices of one head of the longest sequence, one for each chunk.
pub fn scan_within_backward(
    inputs: ScanInputs<'_>,
    dy: Strided<'_>,
    shape: ScanShape,
    lengths: &[usize],
    out: [&mut [f32]; 5],
) -> Result<(), TryReserveError> {
    let ScanShape { heads, groups, key_dim, value_dim, .. } = shape;
    let rows: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    inputs.check(shape, rows);
    let widths = [groups * key_dim, groups * key_dim, heads * value_dim, heads, heads];
    assert!(out.iter().zip(widths).all(|(out, width)| out.len() == rows * width), "whole rows of gradients");
    if rows == 0 {
        return Ok(());
    }
    assert!(dy.values.len() >= (rows - 1) * dy.stride + heads * value_dim, "{rows} rows of dy");
    let starts: Vec<usize> = lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
    let [dq, dk, dv, dg, dbeta] = out;
    // For each head, so that no two tasks write the same; summed by groups below.
    let mut of_heads = [Vec::new(), Vec::new()];
    for part in &mut of_heads {
        part.try_reserve_exact(rows * heads * key_dim)?;
        part.resize(rows * heads * key_dim, 0f32);
    }
    let [dq_heads, dk_heads] = &mut of_heads;
    let to = [Shared::new(dq_heads), Shared::new(dk_heads), Shared::new(dv), Shared::new(dg), Shared::new(dbeta)];
    let failed = Mutex::new(Ok(()));
    let work = rows / lengths.len() * 10 * key_dim * value_dim;
    split(lengths.len() * heads, SPLIT_WORK.div_ceil(work.max(1)), |tasks| {
        let mut matrices = Vec::new();
        if let Err(error) = matrices.try_reserve_exact(longest.div_ceil(CHUNK) * key_dim * value_dim) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            return;
        }
        for task in tasks {
            let (first, rows) = (starts[task / heads], lengths[task / heads]);
            dispatch(Back { inputs, dy, shape, head: task % heads, first, rows, matrices: &mut matrices, to });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let group = heads / groups;
    for (sums, parts) in [dq, dk].into_iter().zip(&of_heads) {
        for (sum, parts) in sums.chunks_exact_mut(key_dim).zip(parts.chunks_exact(group * key_dim)) {
            sum.copy_from_slice(&parts[..key_dim]);
            for part in parts[key_dim..].chunks_exact(key_dim) {
                sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    Ok(())
}

/// One head of one sequence.
struct Back<'a> {
    inputs: ScanInputs<'a>,
    dy: Strided<'a>,
    shape: ScanShape,
    head: usize,
    first: usize,
    rows: usize,
    /// The matrix before each chunk, `(N, P)`.
    matrices: &'a mut Vec<f32>,
    to: [Shared<f32>; 5],
}

impl Kernel for Back<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { inputs, dy, shape, head, first, rows, matrices, to } = self;
        let ScanShape { heads, key_dim, value_dim, .. } = shape;
        let size = key_dim * value_dim;
        matrices.clear();
        matrices.resize(rows.div_ceil(CHUNK) * size, 0.0);
        for chunk in 0..rows.div_ceil(CHUNK).saturating_sub(1) {
            let (before, after) = matrices[chunk * size..].split_at_mut(size);
            let found = Chunk::new::<S>(&inputs, shape, head, first + chunk * CHUNK, CHUNK, before);
            found.matrix_after::<S>(before, &mut after[..size]);
        }
        let mut of_matrix = vec![0f32; size];
        for chunk in (0..rows.div_ceil(CHUNK)).rev() {
            let start = first + chunk * CHUNK;
            let len = CHUNK.min(rows - chunk * CHUNK);
            let matrix = &matrices[chunk * size..][..size];
            let found = Chunk::new::<S>(&inputs, shape, head, start, len, matrix);
            let dy = (0..len).flat_map(|t| &dy.values[(start + t) * dy.stride + head * value_dim..][..value_dim]);
            let gradients = found.backward::<S>(matrix, &dy.copied().collect::<Vec<_>>(), &mut of_matrix);
            for ((to, values), width) in to.iter().zip(&gradients).zip([key_dim, key_dim, value_dim, 1, 1]) {
                for (t, row) in values.chunks_exact(width).enumerate() {
                    // SAFETY: this row and the columns of this head are this task's alone.
                    unsafe {
                        let to = to.get().add(((start + t) * heads + head) * width);
                        std::ptr::copy_nonoverlapping(row.as_ptr(), to, width);
                    }
                }
            }
        }
    }
}

/// What lies within a chunk of `len` tokens of one head.
struct Chunk {
    rule: ScanRule,
    /// The factor of the values that are added to what is read.
    skip: f32,
    len: usize,
    /// N and P.
    dims: (usize, usize),
    q: Vec<f32>,
    k: Vec<f32>,
    beta: Vec<f32>,
    /// What is left of the matrix at each token, `e`.
    fades: Vec<f32>,
    /// `L`, `(len, len)`, zeros above the diagonal.
    left: Vec<f32>,
    /// `K Kᵀ`, of the delta rule alone, and `Q Kᵀ`, `(len, len)`.
    kk: Vec<f32>,
    qk: Vec<f32>,
    /// `K S`, of the delta rule alone, and `Q S`, `(len, P)`.
    of_keys: Vec<f32>,
    of_queries: Vec<f32>,
    /// `V - e K S`, or V, and the updates, `(len, P)`.
    missing: Vec<f32>,
    updates: Vec<f32>,
}

impl Chunk {
    #[inline(always)]
    fn new<S: Simd>(inputs: &ScanInputs<'_>, shape: ScanShape, head: usize, start: usize, len: usize, matrix: &[f32]) -> Self {
        let ScanShape { heads, groups, key_dim, value_dim, rule } = shape;
        let group = head / (heads / groups);
        let rows = |x: Strided<'_>, from: usize, width: usize| -> Vec<f32> {
            (0..len).flat_map(|t| x.values[(start + t) * x.stride + from..][..width].iter().copied()).collect()
        };
        let (q, k) = (rows(inputs.q, group * key_dim, key_dim), rows(inputs.k, group * key_dim, key_dim));
        let (g, beta) = (rows(inputs.g, head, 1), rows(inputs.beta, head, 1));
        let (mut fades, mut left) = (vec![0f32; len], vec![0f32; len * len]);
        for t in 0..len {
            let mut sum = 0.0;
            for i in (0..=t).rev() {
                left[t * len + i] = math::exp::<S>(sum);
                sum += g[i];
            }
            fades[t] = math::exp::<S>(sum);
        }
        let dots = |x: &[f32]| -> Vec<f32> {
            let of_row = |x| k.chunks_exact(key_dim).map(move |k| math::lane_dot(x, k, |k| k));
            x.chunks_exact(key_dim).flat_map(of_row).collect()
        };
        let (kk, of_keys) = match rule {
            ScanRule::Delta => (dots(&k), product::<S>(&k, matrix, (len, key_dim, value_dim))),
            ScanRule::Additive => (Vec::new(), Vec::new()),
        };
        let qk = dots(&q);
        let of_queries = product::<S>(&q, matrix, (len, key_dim, value_dim));
        let mut missing = rows(inputs.v, head * value_dim, value_dim);
        let mut updates = Vec::with_capacity(len * value_dim);
        for t in 0..len {
            let missing = &mut missing[t * value_dim..][..value_dim];
            if rule == ScanRule::Delta {
                let of_key = &of_keys[t * value_dim..][..value_dim];
                missing.iter_mut().zip(of_key).for_each(|(v, found)| *v -= fades[t] * found);
            }
            let mut update = missing.to_vec();
            if rule == ScanRule::Delta {
                for (i, before) in updates.chunks_exact(value_dim).enumerate() {
                    add_scaled::<S>(-kk[t * len + i] * left[t * len + i], before, &mut update);
                }
            }
            update.iter_mut().for_each(|u| *u *= beta[t]);
            updates.extend(update);
        }
        let (skip, dims) = (inputs.skip.map_or(0.0, |skip| skip[head]), (key_dim, value_dim));
        Self { rule, skip, len, dims, q, k, beta, fades, left, kk, qk, of_keys, of_queries, missing, updates }
    }

    /// What is left of each token at the end of the chunk.
    fn at_end(&self) -> &[f32] {
        &self.left[(self.len - 1) * self.len..]
    }

    #[inline(always)]
    fn matrix_after<S: Simd>(&self, before: &[f32], after: &mut [f32]) {
        let (key_dim, value_dim) = self.dims;
        let fades = self.fades[self.len - 1];
        after.iter_mut().zip(before).for_each(|(after, before)| *after = fades * before);
        let tokens = self.k.chunks_exact(key_dim).zip(self.updates.chunks_exact(value_dim));
        for ((key, update), left) in tokens.zip(self.at_end()) {
            for (k, row) in key.iter().zip(after.chunks_exact_mut(value_dim)) {
                add_scaled::<S>(left * k, update, row);
            }
        }
    }

    /// The gradients of q, k, v, g and beta from those of the output and of the matrix behind the chunk, which becomes that of the
    /// matrix before it.
    #[inline(always)]
    fn backward<S: Simd>(&self, matrix: &[f32], dy: &[f32], of_matrix: &mut [f32]) -> [Vec<f32>; 5] {
        let Self { len, dims: (key_dim, value_dim), q, k, beta, fades, left, qk, of_queries, missing, updates, .. } = self;
        let (len, key_dim, value_dim) = (*len, *key_dim, *value_dim);
        let (end, square) = (self.at_end(), len * len);
        let row = |x: &'_ [f32], t: usize| -> std::ops::Range<usize> {
            let width = x.len() / len;
            t * width..(t + 1) * width
        };
        let dot = |x: &[f32], y: &[f32]| math::lane_dot(x, y, |y| y);
        // O = e Q S + P U,  S' = e[C] S + (L[C] K)ᵀ U
        let k_of_matrix = product::<S>(k, of_matrix, (len, key_dim, value_dim));
        let mut du = vec![0f32; len * value_dim];
        let mut dp = vec![0f32; square];
        for t in 0..len {
            let dy = &dy[row(dy, t)];
            for i in 0..=t {
                let (at, update) = (t * len + i, row(updates, i));
                dp[at] = dot(dy, &updates[update.clone()]) * left[at];
                add_scaled::<S>(qk[at] * left[at], dy, &mut du[update]);
            }
            add_scaled::<S>(end[t], &k_of_matrix[row(&k_of_matrix, t)], &mut du[t * value_dim..][..value_dim]);
        }
        let dy_matrix = product_transposed(dy, matrix, (len, key_dim, value_dim));
        let u_of_matrix = product_transposed(updates, of_matrix, (len, key_dim, value_dim));
        let (mut dq, mut dk) = (vec![0f32; len * key_dim], vec![0f32; len * key_dim]);
        let (mut dsum, mut dbeta) = (vec![0f32; len], vec![0f32; len]);
        let mut of_end = 0.0;
        for t in 0..len {
            add_scaled::<S>(fades[t], &dy_matrix[row(&dy_matrix, t)], &mut dq[t * key_dim..][..key_dim]);
            for i in 0..=t {
                let weight = dp[t * len + i];
                add_scaled::<S>(weight, &k[row(k, i)], &mut dq[t * key_dim..][..key_dim]);
                add_scaled::<S>(weight, &q[row(q, t)], &mut dk[i * key_dim..][..key_dim]);
                let of_decay = weight * qk[t * len + i];
                dsum[t] += of_decay;
                dsum[i] -= of_decay;
            }
            dsum[t] += fades[t] * dot(&dy[row(dy, t)], &of_queries[row(of_queries, t)]);
            let of_update = &u_of_matrix[row(&u_of_matrix, t)];
            add_scaled::<S>(end[t], of_update, &mut dk[t * key_dim..][..key_dim]);
            let of_left = end[t] * dot(&k[row(k, t)], of_update);
            dsum[t] -= of_left;
            of_end += of_left;
        }
        dsum[len - 1] += of_end + fades[len - 1] * dot(matrix, of_matrix);
        of_matrix.iter_mut().for_each(|x| *x *= fades[len - 1]);
        for t in 0..len {
            for (q, to) in q[row(q, t)].iter().zip(of_matrix.chunks_exact_mut(value_dim)) {
                add_scaled::<S>(fades[t] * q, &dy[row(dy, t)], to);
            }
        }
        let mut dr = du;
        match self.rule {
            ScanRule::Delta => self.through_corrections::<S>(matrix, of_matrix, (&mut dr, &mut dk), (&mut dsum, &mut dbeta)),
            ScanRule::Additive => {
                let tokens = dr.chunks_exact(value_dim).zip(missing.chunks_exact(value_dim));
                dbeta.iter_mut().zip(tokens).for_each(|(dbeta, (du, v))| *dbeta = dot(du, v));
            }
        }
        let mut dv = dr;
        dv.chunks_exact_mut(value_dim).zip(beta).for_each(|(dv, beta)| dv.iter_mut().for_each(|x| *x *= beta));
        if self.skip != 0.0 {
            add_scaled::<S>(self.skip, dy, &mut dv);
        }
        // Of the sums up to each token become those of each g.
        let mut dg = dsum;
        for t in (0..len - 1).rev() {
            dg[t] += dg[t + 1];
        }
        [dq, dk, dv, dg, dbeta]
    }

    /// From the gradients of the corrections to those of what they are made of: `(I + A) U = R`, `R = beta (V - e K S)`,
    /// `A = beta (K Kᵀ) ∘ L` below the diagonal. `dr` is at first that of U.
    #[inline(always)]
    fn through_corrections<S: Simd>(
        &self,
        matrix: &[f32],
        of_matrix: &mut [f32],
        (dr, dk): (&mut [f32], &mut [f32]),
        (dsum, dbeta): (&mut [f32], &mut [f32]),
    ) {
        let Self { len, dims: (key_dim, value_dim), k, beta, fades, left, kk, of_keys, missing, updates, .. } = self;
        let (len, key_dim, value_dim) = (*len, *key_dim, *value_dim);
        let (key, value) = (|t: usize| t * key_dim..(t + 1) * key_dim, |t: usize| t * value_dim..(t + 1) * value_dim);
        let dot = |x: &[f32], y: &[f32]| math::lane_dot(x, y, |y| y);
        for t in (0..len).rev() {
            let (before, own) = dr.split_at_mut(t * value_dim);
            for (i, to) in before.chunks_exact_mut(value_dim).enumerate() {
                add_scaled::<S>(-beta[t] * kk[t * len + i] * left[t * len + i], &own[..value_dim], to);
            }
        }
        let dr_matrix = product_transposed(dr, matrix, (len, key_dim, value_dim));
        for t in 0..len {
            let dr = &dr[value(t)];
            dbeta[t] = dot(dr, &missing[value(t)]);
            for i in 0..t {
                let at = t * len + i;
                let da = -dot(dr, &updates[value(i)]);
                dbeta[t] += da * kk[at] * left[at];
                let weight = da * beta[t] * left[at];
                add_scaled::<S>(weight, &k[key(i)], &mut dk[key(t)]);
                add_scaled::<S>(weight, &k[key(t)], &mut dk[key(i)]);
                dsum[t] += weight * kk[at];
                dsum[i] -= weight * kk[at];
            }
            let weight = beta[t] * fades[t];
            add_scaled::<S>(-weight, &dr_matrix[key(t)], &mut dk[key(t)]);
            dsum[t] -= weight * dot(dr, &of_keys[value(t)]);
            for (k, to) in k[key(t)].iter().zip(of_matrix.chunks_exact_mut(value_dim)) {
                add_scaled::<S>(-weight * k, dr, to);
            }
        }
    }
}

/// `y += a x`
#[inline(always)]
fn add_scaled<S: Simd>(a: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = S::fma1(a, *x, *y));
}

/// `x M`, of rows of N values with a matrix `(N, P)`.
#[inline(always)]
fn product<S: Simd>(x: &[f32], matrix: &[f32], (rows, key_dim, value_dim): (usize, usize, usize)) -> Vec<f32> {
    let mut y = vec![0f32; rows * value_dim];
    for (x, y) in x.chunks_exact(key_dim).zip(y.chunks_exact_mut(value_dim)) {
        for (x, row) in x.iter().zip(matrix.chunks_exact(value_dim)) {
            add_scaled::<S>(*x, row, y);
        }
    }
    y
}

/// `x Mᵀ`, of rows of P values with a matrix `(N, P)`.
#[inline(always)]
fn product_transposed(x: &[f32], matrix: &[f32], (rows, key_dim, value_dim): (usize, usize, usize)) -> Vec<f32> {
    let mut y = Vec::with_capacity(rows * key_dim);
    for x in x.chunks_exact(value_dim) {
        y.extend(matrix.chunks_exact(value_dim).map(|row| math::lane_dot(x, row, |x| x)));
    }
    y
}
