//! Keys and values of one layer.
//!
//! Keys lie in panels of sixteen positions and values in rows padded to sixteen, so that both are the vectors of sixteen that the
//! register tile of the matrix product reads.

use std::collections::TryReserveError;

use super::simd::LANES;

/// Positions by which a cache grows.
const GROWTH: usize = 256;

/// Keys and values of one layer: for each key-value head its own growing buffers.
#[derive(Clone)]
pub struct KvHeads {
    pub(super) heads: Vec<Head>,
    pub(super) dim: usize,
    pub(super) len: usize,
}

#[derive(Clone, Default)]
pub(super) struct Head {
    /// `[position / 16][dim][16]`
    pub(super) keys: Vec<f32>,
    /// `[position][dim padded to 16]`
    pub(super) values: Vec<f32>,
}

impl Head {
    /// Room for `positions`, a multiple of sixteen.
    pub(super) fn reserve(&mut self, positions: usize, dim: usize) -> Result<(), TryReserveError> {
        for (buffer, len) in [(&mut self.keys, positions * dim), (&mut self.values, positions * dim.next_multiple_of(LANES))] {
            if buffer.len() < len {
                buffer.try_reserve_exact(len - buffer.len())?;
                buffer.resize(len, 0.0);
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let dim = key.len();
        let panel = &mut self.keys[position / LANES * LANES * dim..][..LANES * dim];
        for (d, &x) in key.iter().enumerate() {
            panel[d * LANES + position % LANES] = x;
        }
        self.values[position * dim.next_multiple_of(LANES)..][..dim].copy_from_slice(value);
    }
}

impl KvHeads {
    /// An empty cache for `heads` key-value heads of `dim` values.
    pub fn new(heads: usize, dim: usize) -> Self {
        Self { heads: vec![Head::default(); heads], dim, len: 0 }
    }

    /// Key-value heads and the values of each.
    pub fn shape(&self) -> (usize, usize) {
        (self.heads.len(), self.dim)
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of a cache of `positions`, one layer.
    pub fn bytes(heads: usize, dim: usize, positions: usize) -> u64 {
        let positions = positions.div_ceil(GROWTH) * GROWTH;
        (heads * positions) as u64 * (dim + dim.next_multiple_of(LANES)) as u64 * size_of::<f32>() as u64
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends rows of keys and values: `(T, heads · dim)` each, rows `stride` apart.
    ///
    /// # Errors
    /// If there is no memory to grow; the cache is then as it was.
    pub fn append(
        &mut self,
        keys: &[f32],
        k_stride: usize,
        values: &[f32],
        v_stride: usize,
        rows: usize,
    ) -> Result<(), TryReserveError> {
        let dim = self.dim;
        let need = (self.len + rows).div_ceil(GROWTH) * GROWTH;
        self.heads.iter_mut().try_for_each(|head| head.reserve(need, dim))?;
        for (h, head) in self.heads.iter_mut().enumerate() {
            for t in 0..rows {
                head.write(self.len + t, &keys[t * k_stride + h * dim..][..dim], &values[t * v_stride + h * dim..][..dim]);
            }
        }
        self.len += rows;
        Ok(())
    }

    /// Copies the key and the value of one head at one position.
    pub fn read(&self, head: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        assert!(position < self.len && key.len() == self.dim && value.len() == self.dim, "a position of this cache");
        let (dim, head) = (self.dim, &self.heads[head]);
        let panel = &head.keys[position / LANES * LANES * dim..][..LANES * dim];
        for (d, x) in key.iter_mut().enumerate() {
            *x = panel[d * LANES + position % LANES];
        }
        value.copy_from_slice(&head.values[position * dim.next_multiple_of(LANES)..][..dim]);
    }
}
