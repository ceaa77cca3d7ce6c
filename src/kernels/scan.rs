//! A scan: a matrix that each token lets fade, writes to at its key and reads at its query. By the gated delta rule it writes what its
//! value differs by from what its key finds, by the additive one, which is Mamba 2's, the value.
//!
//! ```text
//! S[t] = exp(g[t]) S[t-1] + k[t] u[t]ᵀ     o[t] = S[t]ᵀ q[t] + skip v[t]
//! delta:  u[t] = beta[t] (v[t] - exp(g[t]) S[t-1]ᵀ k[t])     additive:  u[t] = beta[t] v[t]
//! ```
//!
//! Tokens are taken in chunks that begin at multiples of [`CHUNK`] of their position in the sequence, whoever calls. Within a chunk all
//! is written with the matrix before it and the keys and updates `u` of the chunk's tokens so far:
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
//! Source: Yang et al. 2025, "Gated Delta Networks", <https://arxiv.org/abs/2412.06464>; Dao and Gu 2024, "Transformers are SSMs",
//! <https://arxiv.org/abs/2405.21060>.

use std::collections::TryReserveError;
use std::sync::{Mutex, PoisonError};

use super::attention::{SPLIT_WORK, Strided};
use super::math;
use super::matmul::{Left, Right, rows_by_vectors};
use super::memory::copied;
use super::parallel::{Shared, split};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Tokens of a chunk: enough that the matrix is read for many at once, few enough that what a token finds in its own chunk costs little
/// beside it, and that a state which keeps their keys and updates is not much larger than the matrix alone.
pub const CHUNK: usize = 16;

/// The chunk that the last of `len` tokens lies in begins here.
pub fn chunk_start(len: usize) -> usize {
    len.saturating_sub(1) / CHUNK * CHUNK
}

/// What a token writes at its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanRule {
    /// `beta[t] (v[t] - exp(g[t]) S[t-1]ᵀ k[t])`
    Delta,
    /// `beta[t] v[t]`
    Additive,
}

/// Sizes of a scan, and its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanShape {
    /// Of values, `H`.
    pub heads: usize,
    /// Of queries and keys, `G`: each is read by as many neighbouring heads.
    pub groups: usize,
    /// `N`
    pub key_dim: usize,
    /// `P`
    pub value_dim: usize,
    pub rule: ScanRule,
}

impl ScanShape {
    /// The values of a head's row, and zeros behind them.
    fn padded(self) -> usize {
        self.value_dim.next_multiple_of(LANES)
    }

    /// Values of what a head remembers.
    fn head_values(self) -> usize {
        self.key_dim * self.padded() + CHUNK * (self.key_dim + self.padded() + 1)
    }

    /// The values of a sequence's state in [`ScanMemory::values`].
    pub fn state_values(self) -> usize {
        self.heads * (self.key_dim * self.value_dim + CHUNK * (self.key_dim + self.value_dim + 1))
    }
}

/// What a scan remembers of one sequence: of each head the matrix before the chunk, and of the chunk's tokens key, update and `g`.
pub struct ScanMemory {
    shape: ScanShape,
    /// The chunk's first position.
    start: usize,
    len: usize,
    /// Head by head: the matrix `(N, padded P)`, `CHUNK` keys, as many updates, padded, and as many `g`. Empty without a token.
    memory: Vec<f32>,
}

impl ScanMemory {
    pub fn new(shape: ScanShape) -> Self {
        Self { shape, start: 0, len: 0, memory: Vec::new() }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self, TryReserveError> {
        Ok(Self { memory: copied(&self.memory)?, ..*self })
    }

    pub fn shape(&self) -> ScanShape {
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

    /// The bytes that are taken.
    pub fn held_bytes(&self) -> u64 {
        (self.memory.capacity() * size_of::<f32>()) as u64
    }

    /// The bytes that it takes.
    pub fn bytes(shape: ScanShape) -> u64 {
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

    /// The values that stand for tokens, without padding: matrices `(H, N, P)`, keys `(H, CHUNK, N)`, updates `(H, CHUNK, P)` and
    /// `g` `(H, CHUNK)`; zeros where there is no token.
    pub fn values(&self) -> Vec<f32> {
        let ScanShape { heads, key_dim, value_dim, .. } = self.shape;
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
        let ScanShape { heads, key_dim, value_dim, .. } = self.shape;
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
/// `q`, `k`: rows of `G · N` values; `v`: of `H · P`; `g`, at most 0, and `beta`: of `H`; `skip`: `(H)`.
#[derive(Clone, Copy)]
pub struct ScanInputs<'a> {
    pub q: Strided<'a>,
    pub k: Strided<'a>,
    pub v: Strided<'a>,
    pub g: Strided<'a>,
    pub beta: Strided<'a>,
    /// A factor of each head's values, which are added to what is read.
    pub skip: Option<&'a [f32]>,
}

impl ScanInputs<'_> {
    pub(super) fn check(&self, shape: ScanShape, rows: usize) {
        let ScanShape { heads, groups, key_dim, value_dim, .. } = shape;
        assert!(groups > 0 && heads.is_multiple_of(groups), "whole groups of heads");
        assert!(self.skip.is_none_or(|skip| skip.len() == heads), "a factor for each head");
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
pub fn scan(inputs: ScanInputs<'_>, memory: &mut ScanMemory, out: &mut [f32]) -> Result<(), TryReserveError> {
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
pub fn scan_within(inputs: ScanInputs<'_>, shape: ScanShape, lengths: &[usize], out: &mut [f32]) -> Result<(), TryReserveError> {
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
fn grain(shape: ScanShape, rows: usize) -> usize {
    SPLIT_WORK.div_ceil((rows * 3 * shape.key_dim * shape.value_dim).max(1))
}

/// What one chunk needs besides the state.
#[derive(Default)]
struct Scratch {
    /// Queries of the chunk's new tokens, by the delta rule behind their keys, `(n or 2 n, N)`.
    rows: Vec<f32>,
    /// Their products with the matrix, `(n or 2 n, padded P)`.
    products: Vec<f32>,
    /// Keys of a chunk times what is left of them at its end, `(CHUNK, N)`.
    left: Vec<f32>,
}

/// Tokens `first ..` of one head, behind `held` ones of a chunk.
struct Scan<'a> {
    inputs: ScanInputs<'a>,
    shape: ScanShape,
    head: usize,
    first: usize,
    rows: usize,
    held: usize,
    memory: &'a mut [f32],
    out: Shared<f32>,
    scratch: &'a mut Scratch,
}

impl<'a> Kernel for Scan<'a> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { inputs, shape, head, first, rows, mut held, memory, out, scratch } = self;
        let ScanShape { heads, groups, key_dim, value_dim, rule } = shape;
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
            let row = |x: Strided<'a>, i: usize| -> &'a [f32] {
                &x.values[(first + done + i) * x.stride + group * key_dim..][..key_dim]
            };
            for (i, own) in keys[held * key_dim..][..count * key_dim].chunks_exact_mut(key_dim).enumerate() {
                own.copy_from_slice(row(inputs.k, i));
            }
            // What the matrix has at the keys is asked for by the delta rule alone.
            let asked = if rule == ScanRule::Delta { count } else { 0 };
            scratch.rows.clear();
            scratch.rows.extend_from_slice(&keys[held * key_dim..][..asked * key_dim]);
            (0..count).for_each(|i| scratch.rows.extend_from_slice(row(inputs.q, i)));
            scratch.products.clear();
            scratch.products.resize((asked + count) * padded, 0.0);
            let a = Left { first: scratch.rows.as_ptr(), row: key_dim, step: 1 };
            let b = Right { first: matrix.as_ptr(), vector: LANES, step: padded };
            let (vectors, to) = (padded / LANES, scratch.products.as_mut_ptr());
            // SAFETY: `rows` holds asked + count rows of N values, the matrix N padded rows, `products` as many padded rows; the
            // caller vouches for `S`.
            unsafe { rows_by_vectors::<S>((asked + count, vectors, key_dim), a, b, to, padded, false) };
            let (of_keys, of_queries) = scratch.products.split_at_mut(asked * padded);
            for i in 0..count {
                let (row, at) = (first + done + i, held + i);
                decays[at] = inputs.g.values[row * inputs.g.stride + head];
                let mut left = [0f32; CHUNK];
                let fades = remaining::<S>(&decays[..=at], &mut left);
                let beta = inputs.beta.values[row * inputs.beta.stride + head];
                let v = &inputs.v.values[row * inputs.v.stride + head * value_dim..][..value_dim];
                let (before, own) = updates.split_at_mut(at * padded);
                let own = &mut own[..value_dim];
                if rule == ScanRule::Delta {
                    // What the key finds, less what it should.
                    let found = &mut of_keys[i * padded..][..padded];
                    found.iter_mut().for_each(|x| *x *= fades);
                    add_updates::<S>(found, &keys[at * key_dim..][..key_dim], keys, before, &left, (key_dim, padded));
                    own.iter_mut().zip(v).zip(&*found).for_each(|((u, v), found)| *u = beta * (v - found));
                } else {
                    own.iter_mut().zip(v).for_each(|(u, v)| *u = beta * v);
                }
                let query = &scratch.rows[(asked + i) * key_dim..][..key_dim];
                let read = &mut of_queries[i * padded..][..padded];
                read.iter_mut().for_each(|x| *x *= fades);
                add_updates::<S>(read, query, keys, &updates[..(at + 1) * padded], &left, (key_dim, padded));
                if let Some(skip) = inputs.skip {
                    read.iter_mut().zip(v).for_each(|(read, v)| *read = S::fma1(skip[head], *v, *read));
                }
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

/// `left[i]` becomes what is left of token i's update at the last token; returns what is left of the matrix before all.
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
    // SAFETY: N rows of `CHUNK` steps, as many padded rows of updates, a matrix of N padded rows; the caller vouches for `S`.
    unsafe { rows_by_vectors::<S>((key_dim, padded / LANES, CHUNK), a, b, matrix.as_mut_ptr(), padded, true) };
}

/// How a projection becomes the length of a token's step, and that the logarithm of what it leaves of the state before it.
///
/// # Shape
/// `bias`, `rate`: `(H)`; `rate` at most 0, or none for the lengths themselves.
#[derive(Clone, Copy)]
pub struct Decaying<'a> {
    pub bias: &'a [f32],
    pub rate: Option<&'a [f32]>,
    /// What a length is at least and at most.
    pub limits: (f32, f32),
}

impl Decaying<'_> {
    /// The values of a row with what belongs to their heads: the bias, and the factor of the length.
    fn of_heads(&self) -> impl Iterator<Item = (f32, f32)> {
        self.bias.iter().enumerate().map(|(head, bias)| (*bias, self.rate.map_or(1.0, |rate| rate[head])))
    }
}

/// `ln(1 + exp(x))`
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `g = rate · clamp(softplus(x + bias))`.
///
/// # Shape
/// `x`: rows of `H` values; `out`: `(rows, H)`.
pub fn decay(x: Strided<'_>, by: Decaying<'_>, out: &mut [f32]) {
    let (low, high) = by.limits;
    for (row, out) in out.chunks_exact_mut(by.bias.len()).enumerate() {
        let x = &x.values[row * x.stride..][..by.bias.len()];
        for ((out, x), (bias, rate)) in out.iter_mut().zip(x).zip(by.of_heads()) {
            *out = rate * softplus(x + bias).max(low).min(high);
        }
    }
}

/// `dy`, the gradient of what [`decay`] gives of `x`, becomes that of `x`.
pub fn decay_backward(x: Strided<'_>, by: Decaying<'_>, dy: &mut [f32]) {
    let (low, high) = by.limits;
    for (row, dy) in dy.chunks_exact_mut(by.bias.len()).enumerate() {
        let x = &x.values[row * x.stride..][..by.bias.len()];
        for ((dy, x), (bias, rate)) in dy.iter_mut().zip(x).zip(by.of_heads()) {
            let x = x + bias;
            let is_inside = (low..=high).contains(&softplus(x));
            *dy *= if is_inside { rate / (1.0 + (-x).exp()) } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    const DELTA: ScanShape = ScanShape { heads: 4, groups: 2, key_dim: 8, value_dim: 12, rule: ScanRule::Delta };

    const SHAPES: [ScanShape; 5] = [
        DELTA,
        ScanShape { heads: 2, groups: 2, key_dim: 32, value_dim: 32, ..DELTA },
        ScanShape { heads: 3, groups: 1, key_dim: 5, value_dim: 40, ..DELTA },
        ScanShape { rule: ScanRule::Additive, ..DELTA },
        ScanShape { heads: 3, groups: 1, key_dim: 20, value_dim: 7, rule: ScanRule::Additive },
    ];

    /// Of as many heads as any of the shapes has.
    const SKIP: [f32; 4] = [0.5, -1.25, 2.0, 0.0];

    /// Columns of one matrix, as a product gives them: q, k (of length 1), v, g, beta.
    fn inputs(shape: ScanShape, rows: usize, seed: u64) -> (Vec<f32>, usize) {
        let ScanShape { heads, groups, key_dim, value_dim, .. } = shape;
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

    fn parts(shape: ScanShape, all: &[f32], stride: usize) -> ScanInputs<'_> {
        let ScanShape { heads, groups, key_dim, value_dim, rule } = shape;
        let skip = (rule == ScanRule::Additive).then_some(&SKIP[..heads]);
        let part = |from: usize| Strided { values: &all[from..], stride };
        let (keys, values) = (groups * key_dim, heads * value_dim);
        let (k, v) = (part(keys), part(2 * keys));
        ScanInputs { q: part(0), k, v, g: part(2 * keys + values), beta: part(2 * keys + values + heads), skip }
    }

    /// Token by token in F64, straight from the definition.
    fn naive(shape: ScanShape, all: &[f32], stride: usize) -> Vec<f32> {
        let ScanShape { heads, groups, key_dim, value_dim, rule } = shape;
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
                    let found: f64 = match rule {
                        ScanRule::Delta => (0..key_dim).map(|n| matrix[n * value_dim + p] * k[n]).sum(),
                        ScanRule::Additive => 0.0,
                    };
                    (0..key_dim).for_each(|n| matrix[n * value_dim + p] += k[n] * beta * (v[p] - found));
                    let read: f64 = (0..key_dim).map(|n| matrix[n * value_dim + p] * q[n]).sum();
                    let skipped = if rule == ScanRule::Additive { f64::from(SKIP[head]) * v[p] } else { 0.0 };
                    out[(t * heads + head) * value_dim + p] = (read + skipped) as f32;
                }
            }
        }
        out
    }

    /// In pieces of these lengths, the last repeated.
    fn in_pieces(shape: ScanShape, all: &[f32], stride: usize, piece: usize, memory: &mut ScanMemory) -> Vec<f32> {
        let width = shape.heads * shape.value_dim;
        let rows = |all: &[f32]| all.len() / stride;
        all.chunks(piece * stride)
            .flat_map(|all| {
                let mut out = vec![f32::NAN; rows(all) * width];
                scan(parts(shape, all, stride), memory, &mut out).unwrap();
                out
            })
            .collect()
    }

    #[test]
    fn the_scan_is_its_definition_and_has_the_same_bits_in_any_pieces() {
        for shape in SHAPES {
            let (all, stride) = inputs(shape, 100, 1);
            let want = naive(shape, &all, stride);
            let whole = in_pieces(shape, &all, stride, 100, &mut ScanMemory::new(shape));
            let largest = want.iter().fold(0f32, |max, x| max.max(x.abs()));
            let error = want.iter().zip(&whole).fold(0f32, |max, (x, y)| max.max((x - y).abs()));
            assert!(error < 3e-6 * largest, "{shape:?}: {error} of {largest}");
            for piece in [1, 3, 7, 15, 16, 17, 64] {
                assert_eq!(in_pieces(shape, &all, stride, piece, &mut ScanMemory::new(shape)), whole, "{shape:?} {piece}");
            }
        }
    }

    #[test]
    fn sequences_have_the_bits_that_each_has_alone() {
        for shape in SHAPES {
            let lengths = [5, 0, 33, 1, 16];
            let (all, stride) = inputs(shape, lengths.iter().sum(), 2);
            let mut out = vec![f32::NAN; all.len() / stride * shape.heads * shape.value_dim];
            scan_within(parts(shape, &all, stride), shape, &lengths, &mut out).unwrap();
            let mut from = 0;
            let alone: Vec<f32> = lengths
                .iter()
                .flat_map(|len| {
                    let own = &all[from * stride..(from + len) * stride];
                    from += len;
                    if own.is_empty() { vec![] } else { in_pieces(shape, own, stride, 64, &mut ScanMemory::new(shape)) }
                })
                .collect();
            assert_eq!(out, alone, "{shape:?}");
        }
    }

    #[test]
    fn what_is_held_is_cut_back_to_its_chunk_and_kept_as_values() {
        SHAPES.into_iter().for_each(is_cut_back);
    }

    fn is_cut_back(shape: ScanShape) {
        let (all, stride) = inputs(shape, 60, 3);
        let whole = in_pieces(shape, &all, stride, 60, &mut ScanMemory::new(shape));
        let width = shape.heads * shape.value_dim;
        for (held, back) in [(20, 17), (20, 16), (17, 16), (32, 17), (33, 32), (9, 1)] {
            let mut memory = ScanMemory::new(shape);
            in_pieces(shape, &all[..held * stride], stride, 7, &mut memory);
            assert_eq!((memory.len(), memory.start()), (held, chunk_start(held)));
            memory.truncate(back);
            assert_eq!(memory.len(), back);
            let mut copy = ScanMemory::new(shape);
            copy.fill(&memory.values(), memory.start(), memory.len()).unwrap();
            for memory in [&mut memory, &mut copy] {
                let rest = in_pieces(shape, &all[back * stride..], stride, 5, memory);
                assert_eq!(rest, whole[back * width..], "{held} to {back}");
            }
        }
        let mut memory = ScanMemory::new(shape);
        in_pieces(shape, &all, stride, 60, &mut memory);
        memory.truncate(47);
        assert_eq!((memory.len(), memory.start()), (0, 0), "what lies before the chunk is gone");
    }
}
