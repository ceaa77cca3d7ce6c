//! Attention, `softmax(q Kᵀ · scale + bias + mask) V`, over a cache or within each of several sequences: grouped queries, sliding
//! windows, soft caps, relative position biases.
//!
//! Both products are the register tile of the matrix product, over vectors of keys and of values that `kv_cache.rs` keeps. A query's
//! scores, its softmax and its sum over values run in the order of absolute positions: the result has the same bits in a prompt, in a
//! chunk of it and in a single step, and whatever other sequences there are.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kv_cache::{Head, HeadKeys, HeadValues, Heads, KvHeads, KvNumber, VectorSource, each_format};
use super::math;
use super::matmul::Widened;
use super::matmul::{Left, Right, rows_by_vectors};
use super::parallel::{Shared, split};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Queries of one task: few enough that scores stay in the second cache, enough to feed the register tile.
pub(super) const BLOCK_QUERIES: usize = 24;
/// Multiply-adds below which a second thread does not pay.
pub(super) const SPLIT_WORK: usize = 1 << 15;

/// What a query may see, and how scores become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    /// Only keys up to the query's own position.
    pub causal: bool,
    /// Keys nearer than this are seen, the query's own being at 0; `None` = all.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
    /// `c · tanh(score / c)`.
    pub softcap: Option<f32>,
}

impl Mask {
    /// The keys that the query at `position` sees, of `len`.
    pub(super) fn seen(&self, position: usize, len: usize) -> Range<usize> {
        let window = self.window.unwrap_or(usize::MAX);
        let from = (position + 1).saturating_sub(window);
        from..if self.causal { position + 1 } else { position.saturating_add(window).min(len) }
    }
}

/// The last `rows` positions of the cache attend to what they may see, with a causal mask.
///
/// # Shape
/// `q`: rows of `heads · dim` values, `q_stride` apart; `out`: `(rows, heads · dim)`.
pub fn attend(q: &[f32], q_stride: usize, heads: usize, cache: &KvHeads, mask: Mask, out: &mut [f32]) {
    let (kv_heads, dim) = cache.shape();
    let width = heads * dim;
    let rows = out.len() / width;
    assert_eq!(out.len(), rows * width, "whole rows of out");
    assert!(rows <= cache.len && heads.is_multiple_of(kv_heads) && mask.causal, "queries of this cache");
    assert!(rows == 0 || q.len() >= (rows - 1) * q_stride + width, "q holds {rows} rows");
    let out = Shared::new(out);
    each_format!(&cache.heads, keys => attend_to(q, q_stride, heads, keys, (dim, cache.len), mask, rows, out));
}

/// The same with the heads of a format: `dim` values of `len` positions each.
#[allow(clippy::too_many_arguments)]
fn attend_to<T: KvNumber>(
    q: &[f32],
    q_stride: usize,
    heads: usize,
    kv_heads: &[Head<T>],
    (dim, len): (usize, usize),
    mask: Mask,
    rows: usize,
    out: Shared<f32>,
) {
    let (width, group) = (heads * dim, heads / kv_heads.len());
    // One step: a task is a key-value head with its whole group, so that its keys are read once. Else a block of queries of a head.
    let blocks = rows.div_ceil(BLOCK_QUERIES);
    let tasks = if rows == 1 { kv_heads.len() } else { heads * blocks };
    let work = len.min(mask.window.unwrap_or(usize::MAX)) * dim * if rows == 1 { group } else { BLOCK_QUERIES };
    split(tasks, SPLIT_WORK.div_ceil(work.max(1)), |tasks| {
        let mut scratch = Scratch::default();
        for task in tasks {
            let (block, kv_head) = if rows == 1 {
                (QueryBlock { head: task * group, first: 0, rows: group, a_row: dim, same_position: true }, task)
            } else {
                let (head, first) = (task / blocks, task % blocks * BLOCK_QUERIES);
                let rows = BLOCK_QUERIES.min(rows - first);
                (QueryBlock { head, first, rows, a_row: q_stride, same_position: false }, head / group)
            };
            let q = &q[block.first * q_stride + block.head * dim..];
            let (position, keys) = (len - rows + block.first, &kv_heads[kv_head]);
            dispatch(Attend { q, block, position, keys, dim, len, mask, bias: None, width, out, scratch: &mut scratch });
        }
    });
}

/// Sequences that lie one after another attend, each to itself.
///
/// # Shape
/// `q`, `out`: rows of `heads · dim` values; `k`, `v`: rows of `kv_heads · dim`; as many rows as `lengths` sum to. `bias`: for each head
/// `2 · longest - 1` values that are added to the scores, by the key's position minus the query's, which is 0 in the middle.
///
/// # Errors
/// If there is no memory for the keys of one head.
#[allow(clippy::too_many_arguments)]
pub fn attend_within(
    q: Strided<'_>,
    k: Strided<'_>,
    v: Strided<'_>,
    heads: usize,
    kv_heads: usize,
    lengths: &[usize],
    mask: Mask,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), TryReserveError> {
    let rows: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(());
    }
    let width = out.len() / rows;
    let (dim, group) = (width / heads, heads / kv_heads);
    assert_eq!(out.len(), rows * heads * dim, "whole rows of out");
    assert!(group * kv_heads == heads, "whole groups of heads");
    for (x, heads) in [(&q, heads), (&k, kv_heads), (&v, kv_heads)] {
        assert!(x.values.len() >= (rows - 1) * x.stride + heads * dim, "{rows} rows of q, k and v");
    }
    assert!(bias.is_none_or(|bias| bias.len() == heads * (2 * longest - 1)), "a bias for each distance");
    let starts: Vec<usize> = lengths.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
    let failed = Mutex::new(Ok(()));
    let out = Shared::new(out);
    // A task is a head of a sequence: its keys are packed once and stay in the first caches.
    let work = (rows / lengths.len()).pow(2) * dim;
    split(lengths.len() * heads, SPLIT_WORK.div_ceil(work.max(1)), |tasks| {
        let (mut keys, mut scratch) = (Head::<f32>::default(), Scratch::default());
        if let Err(error) = keys.reserve(longest.next_multiple_of(LANES), dim) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            return;
        }
        for task in tasks {
            let (head, start, len) = (task % heads, starts[task / heads], lengths[task / heads]);
            if len == 0 {
                continue;
            }
            for t in 0..len {
                let at = |x: &Strided<'_>| (start + t) * x.stride + head / group * dim;
                keys.write(t, &k.values[at(&k)..][..dim], &v.values[at(&v)..][..dim]);
            }
            let bias = bias.map(|bias| &bias[head * (2 * longest - 1) + longest - len..][..2 * len - 1]);
            for first in (0..len).step_by(BLOCK_QUERIES) {
                let rows = BLOCK_QUERIES.min(len - first);
                let block = QueryBlock { head, first: start + first, rows, a_row: q.stride, same_position: false };
                let (q, keys, scratch) = (&q.values[block.first * q.stride + head * dim..], &keys, &mut scratch);
                dispatch(Attend { q, block, position: first, keys, dim, len, mask, bias, width, out, scratch });
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Rows of values that are `stride` apart.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

/// Queries that are handled together: rows of one head, or the heads of a group at one position.
#[derive(Clone, Copy)]
struct QueryBlock {
    head: usize,
    /// Its first row of the output.
    first: usize,
    rows: usize,
    a_row: usize,
    same_position: bool,
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    sums: Vec<f32>,
    /// The output before it is scaled, `dim` padded to sixteen.
    tile: Vec<f32>,
    /// Keys and values that are widened on the way.
    room: Vec<Widened>,
}

struct Attend<'a, T> {
    q: &'a [f32],
    block: QueryBlock,
    /// The absolute position of the first query.
    position: usize,
    keys: &'a Head<T>,
    dim: usize,
    /// Positions that hold a key.
    len: usize,
    mask: Mask,
    /// `2 · len - 1` values, by the key's position minus the query's.
    bias: Option<&'a [f32]>,
    width: usize,
    out: Shared<f32>,
    scratch: &'a mut Scratch,
}

impl<T: KvNumber> Kernel for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { q, block, position, keys: head, dim, len, mask, bias, width, out, scratch } = self;
        let padded = dim.next_multiple_of(LANES);
        let last = if block.same_position { position } else { position + block.rows - 1 };
        let end = mask.seen(last, len).end;
        let (low, high) = (mask.seen(position, len).start / LANES, end.div_ceil(LANES)); // panels
        let span = (high - low) * LANES;
        let scores = grown(&mut scratch.scores, block.rows * span);

        let a = Left { first: q[..(block.rows - 1) * block.a_row + dim].as_ptr(), row: block.a_row, step: 1 };
        let (keys, room) = (HeadKeys(head, dim), &mut scratch.room);
        // SAFETY: `a` holds the block's rows of `dim` values, `scores` a value for each position of whole panels; the caller vouches for `S`.
        unsafe { products::<S, _>(block.rows, a, (keys, low..high, 0..dim), scores.as_mut_ptr(), span, room) };

        scratch.sums.clear();
        for (r, row) in scores.chunks_exact_mut(span).enumerate() {
            let at = if block.same_position { position } else { position + r };
            let seen = mask.seen(at, len);
            let bias = bias.map(|bias| &bias[len - 1 + seen.start - at..][..seen.len()]);
            scratch.sums.push(softmax::<S>(row, seen.start - low * LANES..seen.end - low * LANES, mask, bias));
        }

        let positions = low * LANES..end; // the values that are written; a later one may hold anything
        let tile = grown(&mut scratch.tile, block.rows * padded);
        let a = Left { first: scores.as_ptr(), row: span, step: 1 };
        let (values, room) = (HeadValues(head, dim), &mut scratch.room);
        // SAFETY: `scores` holds the block's rows of `span` weights, at least one for each position, `tile` its padded rows.
        unsafe { products::<S, _>(block.rows, a, (values, 0..padded / LANES, positions), tile.as_mut_ptr(), padded, room) };
        for (r, (row, sum)) in tile.chunks_exact(padded).zip(&scratch.sums).enumerate() {
            let (t, h) = if block.same_position { (0, block.head + r) } else { (block.first + r, block.head) };
            let scale = 1.0 / sum;
            for (d, x) in row[..dim].iter().enumerate() {
                // SAFETY: row t, head h of the output belong to this task alone.
                unsafe { *out.get().add(t * width + h * dim + d) = x * scale };
            }
        }
    }
}

/// `c[r][v] = Σ_i a[r][i] · b[v][i]` for some vectors and steps of `b`, as many as are read at once after one another. The sums of
/// a tile begin with those of the steps before it, so that each stays one chain in the order of steps.
///
/// # Safety
/// The processor has the instructions of `S`; `a`, whose steps are 1 apart, is good for all steps, `c` for `rows` rows of all
/// vectors, `c_row` apart.
#[inline(always)]
unsafe fn products<S: Simd, B: VectorSource>(
    rows: usize,
    a: Left,
    (b, vectors, steps): (B, Range<usize>, Range<usize>),
    c: *mut f32,
    c_row: usize,
    room: &mut Vec<Widened>,
) {
    let (vectors_at_once, steps_at_once) = B::AT_ONCE;
    let mut vector = vectors.start;
    while vector < vectors.end {
        let some = vector..vectors.end.min(vector.saturating_add(vectors_at_once));
        let mut step = steps.start;
        while step < steps.end {
            let steps_now = step..steps.end.min(step.saturating_add(steps_at_once));
            let shape = (rows, some.len(), steps_now.len());
            // SAFETY: these vectors and steps are a part of those that the caller vouches for.
            unsafe {
                let b = b.read::<S>(some.clone(), steps_now.clone(), room);
                let a = Left { first: a.first.add(step - steps.start), ..a };
                let c = c.add((vector - vectors.start) * LANES);
                let tile = TileProduct { shape, a, b, c, c_row, add: step > steps.start };
                // What reads in place is a part of its caller; the others share one function.
                if steps_at_once == usize::MAX { tile.run::<S>() } else { S::call(tile) }
            }
            step = steps_now.end;
        }
        vector = some.end;
    }
}

/// [`rows_by_vectors`] with its arguments, which the caller vouches for.
struct TileProduct {
    shape: (usize, usize, usize),
    a: Left,
    b: Right,
    c: *mut f32,
    c_row: usize,
    add: bool,
}

impl Kernel for TileProduct {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on from whoever made it.
        unsafe { rows_by_vectors::<S>(self.shape, self.a, self.b, self.c, self.c_row, self.add) }
    }
}

/// The first `len` values of a buffer that is made longer where it must; what they are does not matter.
fn grown(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Turns the scores in `seen` into weights `e^(score - max)`, the others into zeros; returns the sum.
///
/// `scores` are whole vectors. Lane `i` sums the positions that are `i` modulo sixteen: an order that does not depend on where the row
/// begins.
#[inline(always)]
pub(super) fn softmax<S: Simd>(scores: &mut [f32], seen: Range<usize>, mask: Mask, bias: Option<&[f32]>) -> f32 {
    // What is not seen weighs nothing.
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let row = &mut scores[seen];
    // A factor alone needs no pass of its own: the largest score stays the largest.
    let factor = if mask.softcap.is_none() && bias.is_none() && mask.scale > 0.0 { mask.scale } else { 1.0 };
    if let Some(cap) = mask.softcap {
        row.iter_mut().for_each(|x| *x = cap * math::tanh::<S>(*x * mask.scale / cap));
    } else if factor != mask.scale {
        row.iter_mut().for_each(|x| *x *= mask.scale);
    }
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
    let (vectors, rest) = scores.as_chunks_mut::<LANES>();
    debug_assert!(rest.is_empty());
    let mut most = [f32::NEG_INFINITY; LANES];
    for vector in &*vectors {
        math::larger(&mut most, vector);
    }
    let max = math::largest_lane(most) * factor;
    let mut sums = [0f32; LANES];
    for vector in vectors {
        for (x, sum) in vector.iter_mut().zip(&mut sums) {
            let weight = math::exp::<S>(S::fma1(*x, factor, -max));
            *x = if *x == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *x;
        }
    }
    math::sum_lanes(sums)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::kv_cache::KvFormat;
    use super::super::noise;
    use super::*;

    /// One query at a time in F64, straight from the formula; `bias` as [`attend_within`] takes it.
    #[allow(clippy::too_many_arguments)]
    fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        heads: usize,
        kv_heads: usize,
        dim: usize,
        mask: Mask,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let rows = q.len() / (heads * dim);
        let mut out = vec![0.0; q.len()];
        for t in 0..rows {
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let sees = |s: &usize| (!mask.causal || *s <= t) && mask.window.is_none_or(|w| t.abs_diff(*s) < w);
                let seen: Vec<usize> = (0..rows).filter(sees).collect();
                let score = |s: usize| {
                    let dot: f64 = (0..dim)
                        .map(|d| f64::from(q[(t * heads + h) * dim + d]) * f64::from(k[(s * kv_heads + g) * dim + d]))
                        .sum();
                    let x = dot * f64::from(mask.scale);
                    let x = mask.softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh());
                    let middle = bias.map_or(0, |bias| bias.len() / heads / 2);
                    (x + bias.map_or(0.0, |bias| f64::from(bias[h * (2 * middle + 1) + middle + s - t]))).exp()
                };
                let weights: Vec<f64> = seen.iter().map(|&s| score(s)).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value = |s: usize| f64::from(v[(s * kv_heads + g) * dim + d]);
                    let sum: f64 = weights.iter().zip(&seen).map(|(weight, &s)| weight / total * value(s)).sum();
                    out[(t * heads + h) * dim + d] = sum as f32;
                }
            }
        }
        out
    }

    #[test]
    fn sequences_see_themselves_only_and_have_the_same_bits_in_any_company() {
        for (heads, kv_heads, dim) in [(4, 2, 16), (3, 3, 8), (8, 1, 40), (2, 2, 64)] {
            for (causal, window, biased) in [
                (false, None, false),
                (false, None, true),
                (false, Some(1), false),
                (false, Some(9), true),
                (true, Some(7), false),
            ] {
                let mask = Mask { causal, window, scale: 0.7, softcap: None };
                let lengths = [5, 0, 33, 1, 70, 16];
                let (rows, longest) = (lengths.iter().sum::<usize>(), 70);
                let (qw, kw) = (heads * dim, kv_heads * dim);
                // q, k and v are columns of one matrix, as the product gives them.
                let stride = qw + 2 * kw;
                let qkv = noise(rows * stride, 1);
                let part = |from: usize| Strided { values: &qkv[from..], stride };
                let bias = biased.then(|| noise(heads * (2 * longest - 1), 2));
                let mut out = vec![f32::NAN; rows * qw];
                let (q, k, v) = (part(0), part(qw), part(qw + kw));
                attend_within(q, k, v, heads, kv_heads, &lengths, mask, bias.as_deref(), &mut out).unwrap();
                let mut start = 0;
                for len in lengths {
                    let column = |from: usize, width: usize| -> Vec<f32> {
                        (start..start + len).flat_map(|t| qkv[t * stride + from..][..width].to_vec()).collect()
                    };
                    let (q, k, v) = (column(0, qw), column(qw, kw), column(qw + kw, kw));
                    let bias: Option<Vec<f32>> = bias.as_ref().filter(|_| len > 0).map(|bias| {
                        let head = |h: usize| bias[h * (2 * longest - 1) + longest - len..][..2 * len - 1].to_vec();
                        (0..heads).flat_map(head).collect()
                    });
                    let want = naive(&q, &k, &v, heads, kv_heads, dim, mask, bias.as_deref());
                    let mut alone = vec![f32::NAN; len * qw];
                    let of = |values, stride| Strided { values, stride };
                    let (q, k, v) = (of(&q, qw), of(&k, kw), of(&v, kw));
                    attend_within(q, k, v, heads, kv_heads, &[len], mask, bias.as_deref(), &mut alone).unwrap();
                    let got = &out[start * qw..][..len * qw];
                    for (x, y) in got.iter().zip(&want) {
                        assert!((x - y).abs() < 2e-5, "{heads} {kv_heads} {dim} {mask:?} of {len}: {x} {y}");
                    }
                    assert_eq!(got, alone);
                    start += len;
                }
            }
        }
    }

    /// What a format keeps of values, straight from its definition.
    fn kept(values: &[f32], dim: usize, format: KvFormat) -> Vec<f32> {
        let rounded = |x: f32| f16::from_f32(x).to_f32();
        let block = |block: &[f32]| {
            let d = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            block.iter().map(|x| (x * (1.0 / d)).round() * rounded(d)).collect::<Vec<_>>()
        };
        match format {
            KvFormat::F32 => values.to_vec(),
            KvFormat::F16 => values.iter().copied().map(rounded).collect(),
            KvFormat::Q8_0 => values.chunks(dim).flat_map(|head| head.chunks(32)).flat_map(block).collect(),
        }
    }

    #[test]
    fn every_mask_shape_and_format_equals_the_formula_in_any_chunks() {
        let shapes = [(4, 2, 16, 61), (3, 3, 8, 20), (8, 1, 40, 35), (2, 2, 64, 300), (2, 1, 100, 130)];
        let formats = KvFormat::ALL.into_iter().flat_map(|format| shapes.map(|shape| (shape, format)));
        for ((heads, kv_heads, dim, rows), format) in formats {
            for window in [None, Some(1), Some(7), Some(33)] {
                for softcap in [None, Some(2.0)] {
                    let mask = Mask { causal: true, window, scale: 0.7, softcap };
                    let q = noise(rows * heads * dim, 1);
                    let (k, v) = (noise(rows * kv_heads * dim, 2), noise(rows * kv_heads * dim, 3));
                    let (kept_k, kept_v) = (kept(&k, dim, format), kept(&v, dim, format));
                    let want = naive(&q, &kept_k, &kept_v, heads, kv_heads, dim, mask, None);
                    let mut first: Option<Vec<f32>> = None;
                    for chunk in [rows, 1, 7, 16, 50] {
                        let (mut cache, mut out) = (KvHeads::new(kv_heads, dim, format), vec![f32::NAN; q.len()]);
                        for from in (0..rows).step_by(chunk) {
                            let n = chunk.min(rows - from);
                            let (kw, qw) = (kv_heads * dim, heads * dim);
                            cache.append(&k[from * kw..], kw, &v[from * kw..], kw, n).unwrap();
                            attend(&q[from * qw..], qw, heads, &cache, mask, &mut out[from * qw..][..n * qw]);
                        }
                        for (x, y) in out.iter().zip(&want) {
                            assert!((x - y).abs() < 2e-5, "{heads} {kv_heads} {dim} {mask:?} {format:?} chunk {chunk}: {x} {y}");
                        }
                        assert_eq!(&out, first.get_or_insert(out.clone()), "the same bits in chunks of {chunk}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_truncated_leaves_no_trace() {
        let (dim, mask) = (16, Mask { causal: true, window: None, scale: 1.0, softcap: None });
        let (q, k, v) = (noise(dim, 1), noise(20 * dim, 2), noise(20 * dim, 3));
        for format in KvFormat::ALL {
            let mut clean = KvHeads::new(1, dim, format);
            clean.append(&k, dim, &v, dim, 10).unwrap();
            let mut used = KvHeads::new(1, dim, format);
            used.append(&k, dim, &v, dim, 10).unwrap();
            used.append(&[f32::NAN; 160], dim, &[f32::NAN; 160], dim, 10).unwrap();
            used.truncate(10);
            let mut fork = used.fork().unwrap();
            fork.append(&k[10 * dim..], dim, &v[10 * dim..], dim, 1).unwrap();
            let outputs = [&clean, &used].map(|cache| {
                let mut out = vec![f32::NAN; dim];
                attend(&q, dim, 1, cache, mask, &mut out);
                out
            });
            assert_eq!(outputs[0], outputs[1], "{format:?}");
            assert!(outputs[0].iter().all(|x| x.is_finite()));
            clean.append(&k[10 * dim..], dim, &v[10 * dim..], dim, 1).unwrap();
            assert_eq!(clean.to_bytes().unwrap(), fork.to_bytes().unwrap(), "{format:?}");
        }
    }

    #[test]
    fn what_no_format_holds_is_no_number() {
        let (dim, mask) = (40, Mask { causal: true, window: None, scale: 1.0, softcap: None });
        let q = noise(2 * dim, 1);
        // Key-value head 1 is what a bad value is in, of its second block.
        let spoiled = |x: f32| {
            let mut row = noise(2 * dim, 2);
            row[dim + 35] = x;
            row
        };
        let out = |key: &[f32], value: &[f32], format| {
            let (mut cache, mut out) = (KvHeads::new(2, dim, format), vec![0f32; 2 * dim]);
            cache.append(&noise(2 * dim, 3), 2 * dim, &noise(2 * dim, 4), 2 * dim, 1).unwrap();
            cache.append(key, 2 * dim, value, 2 * dim, 1).unwrap();
            attend(&q, 2 * dim, 2, &cache, mask, &mut out);
            out
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 8.4e6, -f32::MAX] {
            let of_key = out(&spoiled(bad), &noise(2 * dim, 2), KvFormat::Q8_0);
            assert!(of_key[..dim].iter().all(|x| x.is_finite()) && of_key[dim..].iter().all(|x| x.is_nan()), "{bad}");
            let of_value = out(&noise(2 * dim, 2), &spoiled(bad), KvFormat::Q8_0);
            assert!(of_value[..dim + 32].iter().all(|x| x.is_finite()), "{bad}: the block before is none of its own");
            assert!(of_value[dim + 32..].iter().all(|x| x.is_nan()), "{bad}");
        }
        // To the largest F16 values are kept; beyond, none of them is, whichever sign its score has.
        for (x, is_kept) in
            [(65504.0, true), (-65519.0, true), (65520.0, false), (-65520.0, false), (-1e30, false), (f32::NAN, false)]
        {
            let of_value = out(&noise(2 * dim, 2), &spoiled(x), KvFormat::F16);
            assert!(of_value[dim + 35].is_nan() != is_kept && of_value[..dim + 35].iter().all(|x| x.is_finite()), "{x}");
            let of_key = out(&spoiled(x), &noise(2 * dim, 2), KvFormat::F16);
            assert!(of_key[..dim].iter().all(|x| x.is_finite()) && of_key[dim..].iter().all(|x| x.is_nan() != is_kept), "{x}");
        }
    }
}
