//! The gradient of attention within sequences. Weights are computed a second time, block of queries by block: kept, they would be
//! the square of the sequence.

use std::collections::TryReserveError;
use std::sync::{Mutex, PoisonError};

use super::attention::{BLOCK_QUERIES, Mask, SPLIT_WORK, Strided, softmax};
use super::kv_cache::Head;
use super::math;
use super::matmul::{Left, Right, rows_by_vectors};
use super::parallel::{Shared, split};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// The gradients of q, k and v from that of [`attend_within`](super::attend_within)'s output, `dy`, without a bias.
///
/// # Shape
/// `q`, `dy`, `dq`: rows of `heads · dim` values; `k`, `v`, `dk`, `dv`: rows of `kv_heads · dim`; as many rows as `lengths` sum to.
///
/// # Errors
/// If there is no memory for the keys of one head.
///
/// # Source
/// Dao et al. 2022, appendix B.2, <https://arxiv.org/abs/2205.14135>.
#[allow(clippy::too_many_arguments)]
pub fn attend_within_backward(
    q: Strided<'_>,
    k: Strided<'_>,
    v: Strided<'_>,
    dy: Strided<'_>,
    (heads, kv_heads): (usize, usize),
    lengths: &[usize],
    mask: Mask,
    [dq, dk, dv]: [&mut [f32]; 3],
) -> Result<(), TryReserveError> {
    let rows: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(());
    }
    let (width, group) = (dq.len() / rows, heads / kv_heads);
    let dim = width / heads;
    assert!(dq.len() == rows * heads * dim && group * kv_heads == heads, "whole rows of dq, whole groups of heads");
    assert!(dk.len() == rows * kv_heads * dim && dv.len() == dk.len(), "whole rows of dk and dv");
    for (x, heads) in [(&q, heads), (&k, kv_heads), (&v, kv_heads), (&dy, heads)] {
        assert!(x.values.len() >= (rows - 1) * x.stride + heads * dim, "{rows} rows of q, k, v and dy");
    }
    let starts: Vec<usize> = lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
    // For each head, so that no two tasks write the same; summed by groups below.
    let room = || {
        let mut room = Vec::new();
        room.try_reserve_exact(rows * width)?;
        room.resize(rows * width, 0f32);
        Ok::<_, TryReserveError>(room)
    };
    let (mut dk_heads, mut dv_heads) = (room()?, room()?);
    let failed = Mutex::new(Ok(()));
    let out = [Shared::new(dq), Shared::new(&mut dk_heads), Shared::new(&mut dv_heads)];
    let work = (rows / lengths.len()).pow(2) * dim;
    split(lengths.len() * heads, SPLIT_WORK.div_ceil(work.max(1)), |tasks| {
        let mut scratch = BackwardScratch::default();
        if let Err(error) = scratch.reserve(longest.next_multiple_of(LANES), dim) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            return;
        }
        for task in tasks {
            let (head, start, len) = (task % heads, starts[task / heads], lengths[task / heads]);
            for t in 0..len {
                let at = |x: &Strided<'_>| (start + t) * x.stride + head / group * dim;
                let (key, value) = (&k.values[at(&k)..][..dim], &v.values[at(&v)..][..dim]);
                scratch.keys.write(t, key, value);
                scratch.values.write(t, value, key);
            }
            dispatch(Back { q, dy, head, start, len, dim, mask, width, out, scratch: &mut scratch });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    for (sums, parts) in [(dk, dk_heads), (dv, dv_heads)] {
        for (sum, parts) in sums.chunks_exact_mut(dim).zip(parts.chunks_exact(group * dim)) {
            sum.copy_from_slice(&parts[..dim]);
            for part in parts[dim..].chunks_exact(dim) {
                sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct BackwardScratch {
    /// Panels of keys, rows of values.
    keys: Head<f32>,
    /// Panels of values, rows of keys.
    values: Head<f32>,
    /// Sums for each position, `dim` padded to sixteen.
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// Queries and their output's gradients of a block, `dim` padded to sixteen.
    q: Vec<f32>,
    dy: Vec<f32>,
    /// Of a block: weights, their gradients (then those of the scores), and the slopes of a soft cap.
    weights: Vec<f32>,
    slopes: Vec<f32>,
    grads: Vec<f32>,
    /// Of a block: the gradients of its queries, `dim` padded to sixteen.
    tile: Vec<f32>,
}

impl BackwardScratch {
    fn reserve(&mut self, positions: usize, dim: usize) -> Result<(), TryReserveError> {
        self.keys.reserve(positions, dim)?;
        self.values.reserve(positions, dim)?;
        for sums in [&mut self.dk, &mut self.dv] {
            sums.try_reserve_exact(positions * dim.next_multiple_of(LANES))?;
        }
        for block in [&mut self.weights, &mut self.grads] {
            block.try_reserve_exact(BLOCK_QUERIES * positions)?;
        }
        Ok(())
    }
}

/// One head of one sequence.
struct Back<'a> {
    q: Strided<'a>,
    dy: Strided<'a>,
    head: usize,
    start: usize,
    len: usize,
    dim: usize,
    mask: Mask,
    width: usize,
    out: [Shared<f32>; 3],
    scratch: &'a mut BackwardScratch,
}

impl Kernel for Back<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { q, dy, head, start, len, dim, mask, width, out, scratch } = self;
        let BackwardScratch { keys, values, dk, dv, q: block_q, dy: block_dy, weights, slopes, grads, tile } = scratch;
        let padded = dim.next_multiple_of(LANES);
        for sums in [&mut *dk, &mut *dv] {
            sums.clear();
            sums.resize(len.next_multiple_of(LANES) * padded, 0.0);
        }
        for first in (0..len).step_by(BLOCK_QUERIES) {
            let rows = BLOCK_QUERIES.min(len - first);
            let end = mask.seen(first + rows - 1, len).end;
            let (low, high) = (mask.seen(first, len).start / LANES, end.div_ceil(LANES)); // panels
            let (span, positions) = ((high - low) * LANES, end - low * LANES);
            for (block, x) in [(&mut *block_q, &q), (&mut *block_dy, &dy)] {
                block.clear();
                block.resize(rows * padded, 0.0);
                for (r, row) in block.chunks_exact_mut(padded).enumerate() {
                    row[..dim].copy_from_slice(&x.values[(start + first + r) * x.stride + head * dim..][..dim]);
                }
            }
            for (products, x, panels) in [(&mut *weights, &*block_q, &keys.keys), (&mut *grads, &*block_dy, &values.keys)] {
                products.clear();
                products.resize(rows * span, 0.0);
                let a = Left { first: x.as_ptr(), row: padded, step: 1 };
                let panels = &panels[low * LANES * dim..high * LANES * dim];
                let b = Right { first: panels.as_ptr(), vector: LANES * dim, step: LANES };
                // SAFETY: `x` holds `rows` padded rows of `dim` values, the panels those of `dim` columns; the caller vouches for `S`.
                unsafe { rows_by_vectors::<S>((rows, high - low, dim), a, b, products.as_mut_ptr(), span, false) };
            }

            for (r, (weights, grads)) in weights.chunks_exact_mut(span).zip(grads.chunks_exact_mut(span)).enumerate() {
                let seen = mask.seen(first + r, len);
                let seen = seen.start - low * LANES..seen.end - low * LANES;
                if let Some(cap) = mask.softcap {
                    let slope = |x: &f32| {
                        let tanh = math::tanh::<S>(x * mask.scale / cap);
                        1.0 - tanh * tanh
                    };
                    slopes.clear();
                    slopes.extend(weights[seen.clone()].iter().map(slope));
                }
                let part = 1.0 / softmax::<S>(weights, seen.clone(), mask, None);
                weights.iter_mut().for_each(|w| *w *= part);
                grads[..seen.start].fill(0.0);
                grads[seen.end..].fill(0.0);
                let (weights, grads) = (&weights[seen.clone()], &mut grads[seen]);
                let mean = math::lane_dot(weights, grads, |d| d);
                grads.iter_mut().zip(weights).for_each(|(d, w)| *d = w * (*d - mean) * mask.scale);
                if mask.softcap.is_some() {
                    grads.iter_mut().zip(&*slopes).for_each(|(d, slope)| *d *= slope);
                }
            }

            tile.clear();
            tile.resize(rows * padded, 0.0);
            let rows_of_keys = &values.values[low * LANES * padded..][..positions * padded];
            let a = Left { first: grads.as_ptr(), row: span, step: 1 };
            let b = Right { first: rows_of_keys.as_ptr(), vector: LANES, step: padded };
            let vectors = padded / LANES;
            // SAFETY: `grads` holds `rows` rows of `span ≥ positions` values, `tile` as many padded rows; the caller vouches for `S`.
            unsafe { rows_by_vectors::<S>((rows, vectors, positions), a, b, tile.as_mut_ptr(), padded, false) };
            for (r, row) in tile.chunks_exact(padded).enumerate() {
                // SAFETY: this row of this sequence and the columns of this head are this task's alone.
                unsafe {
                    let to = out[0].get().add((start + first + r) * width + head * dim);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), to, dim);
                }
            }
            for (sums, grads, block) in [(&mut *dk, &*grads, &*block_q), (&mut *dv, &*weights, &*block_dy)] {
                let to = &mut sums[low * LANES * padded..][..positions * padded];
                let a = Left { first: grads.as_ptr(), row: 1, step: span };
                let b = Right { first: block.as_ptr(), vector: LANES, step: padded };
                // SAFETY: `grads` holds `rows` rows of `span ≥ positions` values, `block` as many padded rows, `to` `positions` of them.
                unsafe { rows_by_vectors::<S>((positions, vectors, rows), a, b, to.as_mut_ptr(), padded, true) };
            }
        }
        for (out, sums) in out[1..].iter().zip([&*dk, &*dv]) {
            for (t, row) in sums.chunks_exact(padded).take(len).enumerate() {
                // SAFETY: row t of this sequence and the columns of this head are this task's alone.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.get().add((start + t) * width + head * dim), dim) };
            }
        }
    }
}
