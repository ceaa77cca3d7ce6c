//! The gated delta rule: a matrix that each token lets fade, corrects at its key and reads at its query.
//!
//! ```text
//! S[t] = exp(g[t]) S[t-1] + k[t] u[t]ᵀ     u[t] = beta[t] (v[t] - exp(g[t]) S[t-1]ᵀ k[t])     o[t] = S[t]ᵀ q[t]
//! ```
//!
//! Tokens are taken in chunks that begin at multiples of [`CHUNK`] of their position in the sequence, whoever calls. Within a chunk all
//! is written with the matrix before it and the keys and corrections of the chunk's tokens so far:
//!
//! ```text
//! u[t] = beta[t] (v[t] - e[t] Sᵀ k[t] - Σ_{i<t} L[t,i] (k[i]·k[t]) u[i])     o[t] = e[t] Sᵀ q[t] + Σ_{i≤t} L[t,i] (k[i]·q[t]) u[i]
//! e[t] = exp(g[1] + … + g[t])     L[t,i] = exp(g[i+1] + … + g[t])
//! ```
//!
//! What a token gives hangs on no later one, so that a token alone is computed as it is within a prompt, and has the same bits. A
//! single token reads the matrix and leaves it as it is; the chunk's sum is added when the next chunk begins. Until then its tokens can
//! be taken back. No exponent is above 0, and each is a sum of its own: differences of one running sum would lose the digits that a
//! token took which forgets nearly everything.
//!
//! Source: Yang et al. 2025, "Gated Delta Networks", <https://arxiv.org/abs/2412.06464>.

use std::collections::TryReserveError;
use std::sync::{Mutex, PoisonError};

use super::attention::{SPLIT_WORK, Strided};
use super::math;
use super::matmul::{Left, Right, rows_by_vectors};
use super::memory::copied;
use super::parallel::{Shared, split};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Tokens of a chunk: enough that the matrix is read for many at once, few enough that what a token finds in its own chunk costs little
/// beside it, and that a state which keeps their keys and corrections is not much larger than the matrix alone.
pub const CHUNK: usize = 16;

/// The chunk that the last of `len` tokens lies in begins here.
pub fn chunk_start(len: usize) -> usize {
    len.saturating_sub(1) / CHUNK * CHUNK
}

/// Sizes of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaShape {
    /// Of values, `H`.
    pub heads: usize,
    /// Of queries and keys, `G`: each is read by as many neighbouring heads.
    pub groups: usize,
    /// `N`
    pub key_dim: usize,
    /// `P`
    pub value_dim: usize,
}

impl DeltaShape {
    /// The values of a head's row, and zeros behind them.
    fn padded(self) -> usize {
        self.value_dim.next_multiple_of(LANES)
    }

    /// Values of what a head remembers.
    fn head_values(self) -> usize {
        self.key_dim * self.padded() + CHUNK * (self.key_dim + self.padded() + 1)
    }

    /// The values of a sequence's state in [`DeltaMemory::values`].
    pub fn state_values(self) -> usize {
        self.heads * (self.key_dim * self.value_dim + CHUNK * (self.key_dim + self.value_dim + 1))
    }
}

/// What a scan remembers of one sequence: of each head the matrix before the chunk, and of the chunk's tokens key, correction and `g`.
pub struct DeltaMemory {
    shape: DeltaShape,
    /// The chunk's first position.
    start: usize,
    len: usize,
    /// Head by head: the matrix `(N, padded P)`, `CHUNK` keys, as many corrections, padded, and as many `g`. Empty without a token.
    memory: Vec<f32>,
}

impl DeltaMemory {
    pub fn new(shape: DeltaShape) -> Self {
        Self { shape, start: 0, len: 0, memory: Vec::new() }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self, TryReserveError> {
        Ok(Self { memory: copied(&self.memory)?, ..*self })
    }

    pub fn shape(&self) -> DeltaShape {
        self.shape
    }

    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The position that it can be cut back to.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The bytes that it takes.
    pub fn bytes(shape: DeltaShape) -> u64 {
        (shape.heads * shape.head_values() * size_of::<f32>()) as u64
    }

    /// Forgets all but the first `len` tokens, or all of them if it cannot.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len >= self.start && len > 0 {
            self.len = len;
        } else {
            *self = Self::new(self.shape);
        }
    }

    fn reserve(&mut self) -> Result<(), TryReserveError> {
        if self.memory.is_empty() {
            let len = self.shape.heads * self.shape.head_values();
            self.memory.try_reserve_exact(len)?;
            self.memory.resize(len, 0.0);
        }
        Ok(())
    }

    /// The values that stand for tokens, without padding: matrices `(H, N, P)`, keys `(H, CHUNK, N)`, corrections `(H, CHUNK, P)` and
    /// `g` `(H, CHUNK)`; zeros where there is no token.
    pub fn values(&self) -> Vec<f32> {
        let DeltaShape { heads, key_dim, value_dim, .. } = self.shape;
        let (padded, held) = (self.shape.padded(), self.len - self.start);
        let mut values = vec![0f32; self.shape.state_values()];
        let (matrices, rest) = values.split_at_mut(heads * key_dim * value_dim);
        let (keys, rest) = rest.split_at_mut(heads * CHUNK * key_dim);
        let (updates, decays) = rest.split_at_mut(heads * CHUNK * value_dim);
        for (head, memory) in self.memory.chunks_exact(self.shape.head_values()).enumerate() {
            let (matrix, rest) = memory.split_at(key_dim * padded);
            let (own_keys, rest) = rest.split_at(CHUNK * key_dim);
            let (own_updates, own_decays) = rest.split_at(CHUNK * padded);
            for (to, from) in matrices[head * key_dim * value_dim..].chunks_exact_mut(value_dim).zip(matrix.chunks_exact(padded))
            {
                to.copy_from_slice(&from[..value_dim]);
            }
            keys[head * CHUNK * key_dim..][..held * key_dim].copy_from_slice(&own_keys[..held * key_dim]);
            let to = updates[head * CHUNK * value_dim..].chunks_exact_mut(value_dim);
            for (to, from) in to.zip(own_updates.chunks_exact(padded)).take(held) {
                to.copy_from_slice(&from[..value_dim]);
            }
            decays[head * CHUNK..][..held].copy_from_slice(&own_decays[..held]);
        }
        values
    }

    /// Holds what [`values`](Self::values) gave of `len` tokens, the chunk's first of them at `start`.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn fill(&mut self, values: &[f32], start: usize, len: usize) -> Result<(), TryReserveError> {
        assert!(values.len() == self.shape.state_values() && start <= len && len - start <= CHUNK, "the values of a state");
        *self = Self::new(self.shape);
        if len == 0 {
            return Ok(());
        }
        self.reserve()?;
        let DeltaShape { heads, key_dim, value_dim, .. } = self.shape;
        let padded = self.shape.padded();
        let (matrices, rest) = values.split_at(heads * key_dim * value_dim);
        let (keys, rest) = rest.split_at(heads * CHUNK * key_dim);
        let (updates, decays) = rest.split_at(heads * CHUNK * value_dim);
        for (head, memory) in self.memory.chunks_exact_mut(self.shape.head_values()).enumerate() {
            let (matrix, rest) = memory.split_at_mut(key_dim * padded);
            let (own_keys, rest) = rest.split_at_mut(CHUNK * key_dim);
            let (own_updates, own_decays) = rest.split_at_mut(CHUNK * padded);
            for (to, from) in matrix.chunks_exact_mut(padded).zip(matrices[head * key_dim * value_dim..].chunks_exact(value_dim))
            {
                to[..value_dim].copy_from_slice(from);
            }
            own_keys.copy_from_slice(&keys[head * CHUNK * key_dim..][..CHUNK * key_dim]);
            let from = updates[head * CHUNK * value_dim..].chunks_exact(value_dim);
            for (to, from) in own_updates.chunks_exact_mut(padded).zip(from) {
                to[..value_dim].copy_from_slice(from);
            }
            own_decays.copy_from_slice(&decays[head * CHUNK..][..CHUNK]);
        }
        (self.start, self.len) = (start, len);
        Ok(())
    }
}

/// What a scan reads of each token.
///
/// # Shape
/// `q`, `k`: rows of `G · N` values; `v`: of `H · P`; `g`, at most 0, and `beta`: of `H`.
#[derive(Clone, Copy)]
pub struct DeltaInputs<'a> {
    pub q: Strided<'a>,
    pub k: Strided<'a>,
    pub v: Strided<'a>,
    pub g: Strided<'a>,
    pub beta: Strided<'a>,
}

impl DeltaInputs<'_> {
    pub(super) fn check(&self, shape: DeltaShape, rows: usize) {
        let DeltaShape { heads, groups, key_dim, value_dim } = shape;
        assert!(groups > 0 && heads.is_multiple_of(groups), "whole groups of heads");
        let (keys, values) = (groups * key_dim, heads * value_dim);
        for (x, width) in [(self.q, keys), (self.k, keys), (self.v, values), (self.g, heads), (self.beta, heads)] {
            assert!(rows == 0 || x.values.len() >= (rows - 1) * x.stride + width, "{rows} rows of q, k, v, g and beta");
        }
    }
}

/// The outputs of tokens behind those that `memory` holds, which takes them up.
///
/// # Shape
/// `out`: `(rows, H · P)`.
///
/// # Errors
/// If there is no memory for the state.
pub fn delta_rule(inputs: DeltaInputs<'_>, memory: &mut DeltaMemory, out: &mut [f32]) -> Result<(), TryReserveError> {
    let shape = memory.shape;
    let rows = out.len() / (shape.heads * shape.value_dim);
    assert_eq!(out.len(), rows * shape.heads * shape.value_dim, "whole rows of out");
    inputs.check(shape, rows);
    if rows == 0 {
        return Ok(());
    }
    memory.reserve()?;
    let (held, out) = (memory.len - memory.start, Shared::new(out));
    let heads = Shared::new(&mut memory.memory);
    split(shape.heads, grain(shape, rows), |range| {
        let mut scratch = Scratch::default();
        for head in range {
            // SAFETY: the memory of this head, of which the tasks' ranges are disjoint.
            let memory =
                unsafe { std::slice::from_raw_parts_mut(heads.get().add(head * shape.head_values()), shape.head_values()) };
            dispatch(Scan { inputs, shape, head, first: 0, rows, held, memory, out, scratch: &mut scratch });
        }
    });
    memory.len += rows;
    // A token more has made the chunk before it a part of the matrix.
    let whole = (held + rows - 1) / CHUNK * CHUNK;
    memory.start += whole;
    Ok(())
}

/// The outputs of sequences that lie one after another, each for itself.
///
/// # Shape
/// `out`: `(rows, H · P)`; as many rows as `lengths` sum to.
///
/// # Errors
/// If there is no memory for the state of one head.
pub fn delta_rule_within(
    inputs: DeltaInputs<'_>,
    shape: DeltaShape,
    lengths: &[usize],
    out: &mut [f32],
) -> Result<(), TryReserveError> {
    let rows: usize = lengths.iter().sum();
    assert_eq!(out.len(), rows * shape.heads * shape.value_dim, "whole rows of out");
    inputs.check(shape, rows);
    if rows == 0 {
        return Ok(());
    }
    let starts: Vec<usize> = lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
    let (failed, out) = (Mutex::new(Ok(())), Shared::new(out));
    split(lengths.len() * shape.heads, grain(shape, rows / lengths.len()), |tasks| {
        let (mut memory, mut scratch) = (Vec::new(), Scratch::default());
        if let Err(error) = memory.try_reserve_exact(shape.head_values()) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            return;
        }
        for task in tasks {
            let (sequence, head) = (task / shape.heads, task % shape.heads);
            let (first, rows) = (starts[sequence], lengths[sequence]);
            memory.clear();
            memory.resize(shape.head_values(), 0.0);
            dispatch(Scan { inputs, shape, head, first, rows, held: 0, memory: &mut memory, out, scratch: &mut scratch });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Heads below which a second thread does not pay.
fn grain(shape: DeltaShape, rows: usize) -> usize {
    SPLIT_WORK.div_ceil((rows * 3 * shape.key_dim * shape.value_dim).max(1))
}

/// What one chunk needs besides the state.
#[derive(Default)]
struct Scratch {
    /// Keys, then queries of the chunk's new tokens, `(2 n, N)`.
    rows: Vec<f32>,
    /// Their products with the matrix, `(2 n, padded P)`.
    products: Vec<f32>,
    /// Keys of a chunk times what is left of them at its end, `(CHUNK, N)`.
    left: Vec<f32>,
}

/// Tokens `first ..` of one head, behind `held` ones of a chunk.
struct Scan<'a> {
    inputs: DeltaInputs<'a>,
    shape: DeltaShape,
    head: usize,
    first: usize,
    rows: usize,
    held: usize,
    memory: &'a mut [f32],
    out: Shared<f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Scan<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { inputs, shape, head, first, rows, mut held, memory, out, scratch } = self;
        let DeltaShape { heads, groups, key_dim, value_dim } = shape;
        let (padded, group) = (shape.padded(), head / (heads / groups));
        let (matrix, rest) = memory.split_at_mut(key_dim * padded);
        let (keys, rest) = rest.split_at_mut(CHUNK * key_dim);
        let (updates, decays) = rest.split_at_mut(CHUNK * padded);
        let mut done = 0;
        while done < rows {
            if held == CHUNK {
                // SAFETY: the caller vouches for the instructions of `S`.
                unsafe { fold::<S>(matrix, keys, updates, decays, (key_dim, padded), &mut scratch.left) };
                held = 0;
            }
            let count = (CHUNK - held).min(rows - done);
            scratch.rows.clear();
            for (x, own) in [(inputs.k, Some(&mut *keys)), (inputs.q, None)] {
                let from = scratch.rows.len();
                for i in 0..count {
                    scratch.rows.extend_from_slice(&x.values[(first + done + i) * x.stride + group * key_dim..][..key_dim]);
                }
                if let Some(own) = own {
                    own[held * key_dim..(held + count) * key_dim].copy_from_slice(&scratch.rows[from..]);
                }
            }
            scratch.products.clear();
            scratch.products.resize(2 * count * padded, 0.0);
            let a = Left { first: scratch.rows.as_ptr(), row: key_dim, step: 1 };
            let b = Right { first: matrix.as_ptr(), vector: LANES, step: padded };
            let (vectors, to) = (padded / LANES, scratch.products.as_mut_ptr());
            // SAFETY: `rows` holds 2 · count rows of N values, the matrix N padded rows, `products` as many padded rows; the caller
            // vouches for `S`.
            unsafe { rows_by_vectors::<S>((2 * count, vectors, key_dim), a, b, to, padded, false) };
            let (of_keys, of_queries) = scratch.products.split_at_mut(count * padded);
            for i in 0..count {
                let (row, at) = (first + done + i, held + i);
                decays[at] = inputs.g.values[row * inputs.g.stride + head];
                let mut left = [0f32; CHUNK];
                let fades = remaining::<S>(&decays[..=at], &mut left);
                let beta = inputs.beta.values[row * inputs.beta.stride + head];
                let v = &inputs.v.values[row * inputs.v.stride + head * value_dim..][..value_dim];
                let key = &keys[at * key_dim..][..key_dim];
                let (before, own) = updates.split_at_mut(at * padded);
                let own = &mut own[..padded];
                // What the key finds, less what it should.
                let found = &mut of_keys[i * padded..][..padded];
                found.iter_mut().for_each(|x| *x *= fades);
                add_updates::<S>(found, key, keys, before, &left, (key_dim, padded));
                own[..value_dim].iter_mut().zip(v).zip(&*found).for_each(|((u, v), found)| *u = beta * (v - found));
                let query = &scratch.rows[(count + i) * key_dim..][..key_dim];
                let read = &mut of_queries[i * padded..][..padded];
                read.iter_mut().for_each(|x| *x *= fades);
                add_updates::<S>(read, query, keys, &updates[..(at + 1) * padded], &left, (key_dim, padded));
                // SAFETY: this row and the columns of this head are this task's alone.
                unsafe {
                    let to = out.get().add((row * heads + head) * value_dim);
                    std::ptr::copy_nonoverlapping(read.as_ptr(), to, value_dim);
                }
            }
            held += count;
            done += count;
        }
    }
}

/// `left[i]` becomes what is left of token i's correction at the last token; returns what is left of the matrix before all.
#[inline(always)]
pub(super) fn remaining<S: Simd>(decays: &[f32], left: &mut [f32; CHUNK]) -> f32 {
    let mut sum = 0.0;
    for (left, g) in left[..decays.len()].iter_mut().zip(decays).rev() {
        *left = math::exp::<S>(sum);
        sum += g;
    }
    math::exp::<S>(sum)
}

/// Adds `Σ_i left[i] (x · k[i]) u[i]` of all `updates`.
#[inline(always)]
fn add_updates<S: Simd>(
    sum: &mut [f32],
    x: &[f32],
    keys: &[f32],
    updates: &[f32],
    left: &[f32; CHUNK],
    (key_dim, padded): (usize, usize),
) {
    for ((key, update), left) in keys.chunks_exact(key_dim).zip(updates.chunks_exact(padded)).zip(left) {
        let weight = left * math::lane_dot(x, key, |k| k);
        sum.iter_mut().zip(update).for_each(|(sum, u)| *sum = S::fma1(weight, *u, *sum));
    }
}

/// Adds a whole chunk to the matrix.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn fold<S: Simd>(
    matrix: &mut [f32],
    keys: &[f32],
    updates: &[f32],
    decays: &[f32],
    (key_dim, padded): (usize, usize),
    scaled: &mut Vec<f32>,
) {
    let mut left = [0f32; CHUNK];
    let fades = remaining::<S>(decays, &mut left);
    matrix.iter_mut().for_each(|x| *x *= fades);
    scaled.clear();
    for (key, left) in keys.chunks_exact(key_dim).zip(left) {
        scaled.extend(key.iter().map(|k| left * k));
    }
    let a = Left { first: scaled.as_ptr(), row: 1, step: key_dim };
    let b = Right { first: updates.as_ptr(), vector: LANES, step: padded };
    // SAFETY: N rows of `CHUNK` steps, as many padded rows of corrections, a matrix of N padded rows; the caller vouches for `S`.
    unsafe { rows_by_vectors::<S>((key_dim, padded / LANES, CHUNK), a, b, matrix.as_mut_ptr(), padded, true) };
}

/// `g = rate · softplus(x + bias)`, the logarithm of what a token leaves of the state before it.
///
/// # Shape
/// `x`: rows of `rate.len()` values; `rate`: at most 0; `out`: `(rows, H)`.
pub fn decay(x: Strided<'_>, bias: &[f32], rate: &[f32], out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(rate.len()).enumerate() {
        let x = &x.values[row * x.stride..][..rate.len()];
        for ((out, x), (bias, rate)) in out.iter_mut().zip(x).zip(bias.iter().zip(rate)) {
            let x = x + bias;
            *out = rate * (x.max(0.0) + (-x.abs()).exp().ln_1p());
        }
    }
}

/// `dy`, the gradient of what [`decay`] gives of `x`, becomes that of `x`.
pub fn decay_backward(x: Strided<'_>, bias: &[f32], rate: &[f32], dy: &mut [f32]) {
    for (row, dy) in dy.chunks_exact_mut(rate.len()).enumerate() {
        let x = &x.values[row * x.stride..][..rate.len()];
        for ((dy, x), (bias, rate)) in dy.iter_mut().zip(x).zip(bias.iter().zip(rate)) {
            *dy *= rate / (1.0 + (-(x + bias)).exp());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    const SHAPES: [DeltaShape; 3] = [
        DeltaShape { heads: 4, groups: 2, key_dim: 8, value_dim: 12 },
        DeltaShape { heads: 2, groups: 2, key_dim: 32, value_dim: 32 },
        DeltaShape { heads: 3, groups: 1, key_dim: 5, value_dim: 40 },
    ];

    /// Columns of one matrix, as a product gives them: q, k (of length 1), v, g, beta.
    fn inputs(shape: DeltaShape, rows: usize, seed: u64) -> (Vec<f32>, usize) {
        let DeltaShape { heads, groups, key_dim, value_dim } = shape;
        let stride = 2 * groups * key_dim + heads * value_dim + 2 * heads;
        let mut all = noise(rows * stride, seed);
        for (t, row) in all.chunks_exact_mut(stride).enumerate() {
            for key in row[groups * key_dim..2 * groups * key_dim].chunks_exact_mut(key_dim) {
                let length = key.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-3);
                key.iter_mut().for_each(|x| *x /= length);
            }
            let (g, beta) = row[2 * groups * key_dim + heads * value_dim..].split_at_mut(heads);
            // Now and then one that forgets everything.
            g.iter_mut().for_each(|g| *g = if t % 37 == 5 { -3000.0 } else { -0.2 * g.abs() });
            beta.iter_mut().for_each(|beta| *beta = beta.abs());
        }
        (all, stride)
    }

    fn parts(shape: DeltaShape, all: &[f32], stride: usize) -> DeltaInputs<'_> {
        let DeltaShape { heads, groups, key_dim, value_dim } = shape;
        let part = |from: usize| Strided { values: &all[from..], stride };
        let (keys, values) = (groups * key_dim, heads * value_dim);
        let (k, v) = (part(keys), part(2 * keys));
        DeltaInputs { q: part(0), k, v, g: part(2 * keys + values), beta: part(2 * keys + values + heads) }
    }

    /// Token by token in F64, straight from the definition.
    fn naive(shape: DeltaShape, all: &[f32], stride: usize) -> Vec<f32> {
        let DeltaShape { heads, groups, key_dim, value_dim } = shape;
        let rows = all.len() / stride;
        let mut out = vec![0f32; rows * heads * value_dim];
        for head in 0..heads {
            let mut matrix = vec![0f64; key_dim * value_dim];
            for t in 0..rows {
                let at =
                    |from: usize, len: usize| all[t * stride + from..][..len].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let (keys, values) = (groups * key_dim, heads * value_dim);
                let group = head / (heads / groups);
                let (q, k) = (at(group * key_dim, key_dim), at(keys + group * key_dim, key_dim));
                let v = at(2 * keys + head * value_dim, value_dim);
                let (g, beta) = (at(2 * keys + values + head, 1)[0], at(2 * keys + values + heads + head, 1)[0]);
                matrix.iter_mut().for_each(|x| *x *= g.exp());
                for p in 0..value_dim {
                    let found: f64 = (0..key_dim).map(|n| matrix[n * value_dim + p] * k[n]).sum();
                    (0..key_dim).for_each(|n| matrix[n * value_dim + p] += k[n] * beta * (v[p] - found));
                    let read: f64 = (0..key_dim).map(|n| matrix[n * value_dim + p] * q[n]).sum();
                    out[(t * heads + head) * value_dim + p] = read as f32;
                }
            }
        }
        out
    }

    /// In pieces of these lengths, the last repeated.
    fn in_pieces(shape: DeltaShape, all: &[f32], stride: usize, piece: usize, memory: &mut DeltaMemory) -> Vec<f32> {
        let width = shape.heads * shape.value_dim;
        let rows = |all: &[f32]| all.len() / stride;
        all.chunks(piece * stride)
            .flat_map(|all| {
                let mut out = vec![f32::NAN; rows(all) * width];
                delta_rule(parts(shape, all, stride), memory, &mut out).unwrap();
                out
            })
            .collect()
    }

    #[test]
    fn the_scan_is_its_definition_and_has_the_same_bits_in_any_pieces() {
        for shape in SHAPES {
            let (all, stride) = inputs(shape, 100, 1);
            let want = naive(shape, &all, stride);
            let whole = in_pieces(shape, &all, stride, 100, &mut DeltaMemory::new(shape));
            let largest = want.iter().fold(0f32, |max, x| max.max(x.abs()));
            let error = want.iter().zip(&whole).fold(0f32, |max, (x, y)| max.max((x - y).abs()));
            assert!(error < 3e-6 * largest, "{shape:?}: {error} of {largest}");
            for piece in [1, 3, 7, 15, 16, 17, 64] {
                assert_eq!(in_pieces(shape, &all, stride, piece, &mut DeltaMemory::new(shape)), whole, "{shape:?} {piece}");
            }
        }
    }

    #[test]
    fn sequences_have_the_bits_that_each_has_alone() {
        for shape in SHAPES {
            let lengths = [5, 0, 33, 1, 16];
            let (all, stride) = inputs(shape, lengths.iter().sum(), 2);
            let mut out = vec![f32::NAN; all.len() / stride * shape.heads * shape.value_dim];
            delta_rule_within(parts(shape, &all, stride), shape, &lengths, &mut out).unwrap();
            let mut from = 0;
            let alone: Vec<f32> = lengths
                .iter()
                .flat_map(|len| {
                    let own = &all[from * stride..(from + len) * stride];
                    from += len;
                    if own.is_empty() { vec![] } else { in_pieces(shape, own, stride, 64, &mut DeltaMemory::new(shape)) }
                })
                .collect();
            assert_eq!(out, alone, "{shape:?}");
        }
    }

    #[test]
    fn what_is_held_is_cut_back_to_its_chunk_and_kept_as_values() {
        let shape = SHAPES[0];
        let (all, stride) = inputs(shape, 60, 3);
        let whole = in_pieces(shape, &all, stride, 60, &mut DeltaMemory::new(shape));
        let width = shape.heads * shape.value_dim;
        for (held, back) in [(20, 17), (20, 16), (17, 16), (32, 17), (33, 32), (9, 1)] {
            let mut memory = DeltaMemory::new(shape);
            in_pieces(shape, &all[..held * stride], stride, 7, &mut memory);
            assert_eq!((memory.len(), memory.start()), (held, chunk_start(held)));
            memory.truncate(back);
            assert_eq!(memory.len(), back);
            let mut copy = DeltaMemory::new(shape);
            copy.fill(&memory.values(), memory.start(), memory.len()).unwrap();
            for memory in [&mut memory, &mut copy] {
                let rest = in_pieces(shape, &all[back * stride..], stride, 5, memory);
                assert_eq!(rest, whole[back * width..], "{held} to {back}");
            }
        }
        let mut memory = DeltaMemory::new(shape);
        in_pieces(shape, &all, stride, 60, &mut memory);
        memory.truncate(47);
        assert_eq!((memory.len(), memory.start()), (0, 0), "what lies before the chunk is gone");
    }
}
