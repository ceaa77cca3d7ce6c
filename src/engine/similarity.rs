//! The nearest of many vectors, by exhaustive comparison.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::Similarity;
use super::device::check_threads;
use crate::error::{Error, ErrorKind, Result};
use crate::ops;

/// Documents and queries that are compared at once: their scores stay in the caches.
const BLOCK_DOCUMENTS: usize = 1024;
const BLOCK_QUERIES: usize = 256;
/// Documents that all queries of a block keep.
const BLOCK_FOUND: usize = 1 << 20;

/// For each query the `k` most similar documents, the best first; of equal ones the earlier. A vector of zeros has the cosine 0
/// with every other; scores that are no numbers come last.
///
/// # Shape
/// `queries`: `(Q, dim)`, `documents`: `(D, dim)`, row-major; returns the documents' numbers and their scores, `(Q, k)` each.
///
/// # Errors
/// `InvalidArgument` if `dim` is 0, a matrix has no whole rows, or `k` is more than the documents.
///
/// ```
/// use metal_candle::{Similarity, similarity_top_k};
/// let documents = [1.0, 0.0, 0.0, 2.0, 3.0, 3.0];
/// let (indices, scores) = similarity_top_k(Similarity::Cosine, &[0.0, 1.0], &documents, 2, 2)?;
/// assert_eq!((indices, scores[0]), (vec![1, 2], 1.0));
/// # Ok::<(), metal_candle::Error>(())
/// ```
pub fn similarity_top_k(
    similarity: Similarity,
    queries: &[f32],
    documents: &[f32],
    dim: usize,
    k: usize,
) -> Result<(Vec<usize>, Vec<f32>)> {
    if dim == 0 {
        return Err(Error::argument("dim: expected at least 1, found 0"));
    }
    for (name, rows) in [("queries", queries), ("documents", documents)] {
        if !rows.len().is_multiple_of(dim) {
            return Err(Error::argument(format!("{name}: expected whole rows of {dim} values, found {} values", rows.len())));
        }
    }
    if k > documents.len() / dim {
        return Err(Error::argument(format!("k: expected at most the {} documents, found {k}", documents.len() / dim)));
    }
    let (mut indices, mut scores) = (Vec::new(), Vec::new());
    if k == 0 || queries.is_empty() {
        return Ok((indices, scores));
    }
    let found = (queries.len() / dim).checked_mul(k).ok_or_else(no_memory)?;
    indices.try_reserve_exact(found).map_err(|_| no_memory())?;
    scores.try_reserve_exact(found).map_err(|_| no_memory())?;
    // Where many are looked for, fewer queries at once: their heaps take the room.
    check_threads()?;
    let block_queries = (BLOCK_FOUND / k).clamp(1, BLOCK_QUERIES);
    for queries in queries.chunks(block_queries * dim) {
        for best in block(similarity, queries, documents, dim, k)? {
            let best = best.into_sorted_vec();
            indices.extend(best.iter().map(|found| found.index));
            scores.extend(best.iter().map(|found| found.score));
        }
    }
    Ok((indices, scores))
}

/// The best of each query of a block; the worst of them is on top of its heap.
fn block(similarity: Similarity, queries: &[f32], documents: &[f32], dim: usize, k: usize) -> Result<Vec<BinaryHeap<Found>>> {
    ops::install(|| block_here(similarity, queries, documents, dim, k))
}

fn block_here(
    similarity: Similarity,
    queries: &[f32],
    documents: &[f32],
    dim: usize,
    k: usize,
) -> Result<Vec<BinaryHeap<Found>>> {
    let count = queries.len() / dim;
    let products = match similarity {
        Similarity::Cosine | Similarity::Dot => Some(ops::DotProducts::new(queries, dim).ok_or_else(no_memory)?),
        Similarity::Euclidean | Similarity::Manhattan => None,
    };
    let lengths: Vec<f32> = queries.chunks_exact(dim).map(length).collect();
    let mut best: Vec<BinaryHeap<Found>> = (0..count).map(|_| BinaryHeap::new()).collect();
    best.iter_mut().try_for_each(|best| best.try_reserve_exact(k + 1)).map_err(|_| no_memory())?;
    let mut scores = ops::zeros(BLOCK_DOCUMENTS * count).map_err(|_| no_memory())?; // (documents, queries)
    for (number, documents) in documents.chunks(BLOCK_DOCUMENTS * dim).enumerate() {
        let scores = &mut scores[..documents.len() / dim * count];
        match &products {
            Some(products) => products.with(documents, scores)?,
            None => {
                scores.par_chunks_exact_mut(count).zip(documents.par_chunks_exact(dim)).for_each(|(scores, document)| {
                    for (score, query) in scores.iter_mut().zip(queries.chunks_exact(dim)) {
                        *score = -distance(similarity, query, document);
                    }
                });
            }
        }
        if similarity == Similarity::Cosine {
            scores.par_chunks_exact_mut(count).zip(documents.par_chunks_exact(dim)).for_each(|(scores, document)| {
                let document = length(document);
                for (score, query) in scores.iter_mut().zip(&lengths) {
                    // Divided one by one: the product of two tiny lengths would be 0.
                    *score = if document > 0.0 && *query > 0.0 { *score / document / query } else { *score * 0.0 };
                }
            });
        }
        best.par_iter_mut().enumerate().for_each(|(query, best)| {
            for (i, scores) in scores.chunks_exact(count).enumerate() {
                let found = Found { score: scores[query], index: number * BLOCK_DOCUMENTS + i };
                if best.len() < k {
                    best.push(found);
                } else if best.peek().is_some_and(|worst| found < *worst) {
                    best.pop();
                    best.push(found);
                }
            }
        });
    }
    Ok(best)
}

fn no_memory() -> Error {
    Error::new(ErrorKind::OutOfMemory, "k: there is no memory for so many results")
}

fn length(row: &[f32]) -> f32 {
    row.iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn distance(similarity: Similarity, a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(x, y)| x - y);
    match similarity {
        Similarity::Manhattan => differences.map(f32::abs).sum(),
        _ => differences.map(|d| d * d).sum::<f32>().sqrt(),
    }
}

/// A document and its score; the better one is less.
#[derive(Debug, Clone, Copy)]
struct Found {
    score: f32,
    index: usize,
}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
        rank(other.score).total_cmp(&rank(self.score)).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Found {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every score by its formula, sorted.
    fn naive(similarity: Similarity, query: &[f32], documents: &[f32], dim: usize) -> Vec<(usize, f64)> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let score = |d: &[f32]| match similarity {
            Similarity::Cosine => dot(query, d) / dot(query, query).sqrt() / dot(d, d).sqrt(),
            Similarity::Dot => dot(query, d),
            Similarity::Euclidean => -query.iter().zip(d).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt(),
            Similarity::Manhattan => -query.iter().zip(d).map(|(x, y)| f64::from(x - y).abs()).sum::<f64>(),
        };
        let mut all: Vec<(usize, f64)> = documents.chunks_exact(dim).map(score).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    #[test]
    fn the_best_are_those_of_an_exhaustive_search() {
        let (dim, queries, documents) = (19, 300, 2500);
        let noise = |len: usize, seed: u32| -> Vec<f32> {
            (0..len as u32).map(|i| (((i + seed).wrapping_mul(2_654_435_761) >> 8) & 0xffff) as f32 / 32768.0 - 1.0).collect()
        };
        let (q, d) = (noise(queries * dim, 7), noise(documents * dim, 99));
        for similarity in [Similarity::Cosine, Similarity::Dot, Similarity::Euclidean, Similarity::Manhattan] {
            let (indices, scores) = similarity_top_k(similarity, &q, &d, dim, 5).unwrap();
            for query in [0, 1, 255, 256, 299] {
                let want = naive(similarity, &q[query * dim..][..dim], &d, dim);
                for i in 0..5 {
                    assert!((f64::from(scores[query * 5 + i]) - want[i].1).abs() < 1e-5, "{similarity:?}");
                    assert_eq!(indices[query * 5 + i], want[i].0, "{similarity:?}");
                }
            }
        }
    }

    #[test]
    fn ties_zeros_and_what_is_no_number() {
        let documents = [1.0, 0.0, f32::NAN, 0.0, 2.0, 0.0, 0.0, 0.0];
        let (indices, scores) = similarity_top_k(Similarity::Cosine, &[3.0, 0.0], &documents, 2, 4).unwrap();
        assert_eq!(indices, [0, 2, 3, 1]);
        assert!(scores[..3] == [1.0, 1.0, 0.0] && scores[3].is_nan());
        assert_eq!(similarity_top_k(Similarity::Dot, &[], &documents, 2, 1).unwrap(), (vec![], vec![]));
        for (queries, dim, k) in [(3, 2, 1), (2, 0, 1), (2, 2, 5)] {
            assert!(similarity_top_k(Similarity::Dot, &vec![0.0; queries], &documents, dim, k).is_err());
        }
    }
}
