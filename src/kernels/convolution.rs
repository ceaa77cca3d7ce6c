//! A short causal convolution of each channel: `y[t] = bias + Σ_i w[i] x[t - taps + 1 + i]`, where nothing lies before the first token.

use std::collections::TryReserveError;

use super::attention::Strided;
use super::elementwise::{RowWork, each_row};
use super::memory::copied;
use super::scan::{CHUNK, chunk_start};
use super::simd::Simd;

/// The weights of a convolution.
///
/// # Shape
/// `weight`: `(taps, channels)`, the last tap for the token itself; `bias`: `(channels)`.
#[derive(Clone, Copy)]
pub struct Taps<'a> {
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub channels: usize,
}

impl Taps<'_> {
    fn count(&self) -> usize {
        self.weight.len() / self.channels
    }

    fn check(&self) {
        assert!(self.channels > 0 && self.weight.len().is_multiple_of(self.channels), "whole taps");
        assert!(self.bias.is_none_or(|bias| bias.len() == self.channels), "a bias for each channel");
    }
}

/// The inputs of a sequence that convolutions of later tokens read. Those of the last chunk stay as well, so that its tokens can be
/// taken back.
pub struct ConvMemory {
    channels: usize,
    taps: usize,
    /// The position that it can be cut back to.
    start: usize,
    len: usize,
    /// From position [`first`](Self::first) to `len`.
    rows: Vec<f32>,
}

impl ConvMemory {
    pub fn new(channels: usize, taps: usize) -> Self {
        Self { channels, taps, start: 0, len: 0, rows: Vec::new() }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self, TryReserveError> {
        Ok(Self { rows: copied(&self.rows)?, ..*self })
    }

    /// Channels and taps.
    pub fn shape(&self) -> (usize, usize) {
        (self.channels, self.taps)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn start(&self) -> usize {
        self.start
    }

    /// The most rows that it holds.
    pub const fn most_rows(taps: usize) -> usize {
        CHUNK + taps - 1
    }

    /// The bytes that are taken.
    pub fn held_bytes(&self) -> u64 {
        (self.rows.capacity() * size_of::<f32>()) as u64
    }

    /// The bytes that it takes.
    pub fn bytes(channels: usize, taps: usize) -> u64 {
        (Self::most_rows(taps) * channels * size_of::<f32>()) as u64
    }

    fn first(&self) -> usize {
        self.start.saturating_sub(self.taps - 1)
    }

    /// Forgets all but the first `len` tokens, or all of them if it cannot.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len >= self.start && len > 0 {
            self.rows.truncate((len - self.first()) * self.channels);
            self.len = len;
        } else {
            *self = Self::new(self.channels, self.taps);
        }
    }

    /// The rows that it holds, `(most_rows, channels)`: zeros behind them.
    pub fn values(&self) -> Vec<f32> {
        let mut values = self.rows.clone();
        values.resize(Self::most_rows(self.taps) * self.channels, 0.0);
        values
    }

    /// Holds what [`values`](Self::values) gave of `len` tokens, those from `start` on to be taken back.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn fill(&mut self, values: &[f32], start: usize, len: usize) -> Result<(), TryReserveError> {
        assert!(values.len() == Self::most_rows(self.taps) * self.channels, "the values of a state");
        assert!(start <= len && len - start <= CHUNK, "a start within the last chunk");
        *self = Self { start, len, ..Self::new(self.channels, self.taps) };
        self.rows.try_reserve_exact(values.len())?;
        self.rows.extend_from_slice(&values[..(len - self.first()) * self.channels]);
        Ok(())
    }

    /// Takes up rows behind those that it holds.
    fn append(&mut self, x: Strided<'_>, rows: usize) -> Result<(), TryReserveError> {
        let (old, held) = (self.first(), self.len);
        self.len += rows;
        // Where nothing was cut back, chunks begin at their multiples; so they do again behind the next one.
        self.start = if self.len - self.start <= CHUNK { self.start } else { chunk_start(self.len) };
        let first = self.first();
        self.rows.drain(..(first - old).min(held - old) * self.channels);
        let skipped = first.saturating_sub(held);
        self.rows.try_reserve_exact(Self::most_rows(self.taps) * self.channels - self.rows.len())?;
        for row in skipped..rows {
            self.rows.extend_from_slice(&x.values[row * x.stride..][..self.channels]);
        }
        Ok(())
    }
}

/// The convolution of tokens behind those that `memory` holds, which takes them up.
///
/// # Shape
/// `x`: rows of `channels` values; `out`: `(rows, channels)`.
///
/// # Errors
/// If there is no memory for the rows that are held.
pub fn convolve(taps: Taps<'_>, x: Strided<'_>, memory: &mut ConvMemory, out: &mut [f32]) -> Result<(), TryReserveError> {
    struct Work<'a>(Taps<'a>, Strided<'a>, &'a [f32]);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(taps, x, held) = *self;
            let (count, channels) = (taps.count(), taps.channels);
            let held_rows = held.len() / channels;
            sum_of_taps::<S>(taps, out, |tap| {
                let back = count - 1 - tap;
                match row.checked_sub(back) {
                    Some(row) => Some(&x.values[row * x.stride..][..channels]),
                    None => Some(&held[(held_rows + row).checked_sub(back)? * channels..][..channels]),
                }
            });
        }
    }
    taps.check();
    assert_eq!(memory.shape(), (taps.channels, taps.count()), "the memory of this convolution");
    let rows = out.len() / taps.channels;
    assert!(rows == 0 || x.values.len() >= (rows - 1) * x.stride + taps.channels, "{rows} rows of x");
    each_row(out, taps.channels, &Work(taps, x, &memory.rows));
    memory.append(x, rows)
}

/// The convolution of sequences that lie one after another, each for itself.
///
/// # Shape
/// `x`: rows of `channels` values, as many as `lengths` sum to; `out`: `(rows, channels)`.
pub fn convolve_within(taps: Taps<'_>, x: Strided<'_>, lengths: &[usize], out: &mut [f32]) {
    struct Work<'a>(Taps<'a>, Strided<'a>, &'a [usize]);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(taps, x, places) = *self;
            sum_of_taps::<S>(taps, out, |tap| {
                let back = taps.count() - 1 - tap;
                (back <= places[row]).then(|| &x.values[(row - back) * x.stride..][..taps.channels])
            });
        }
    }
    taps.check();
    let places: Vec<usize> = lengths.iter().flat_map(|&len| 0..len).collect();
    assert_eq!(out.len(), places.len() * taps.channels, "whole rows of out");
    assert!(places.is_empty() || x.values.len() >= (places.len() - 1) * x.stride + taps.channels, "rows of x");
    each_row(out, taps.channels, &Work(taps, x, &places));
}

/// The gradient of [`convolve_within`]'s input from that of its output, `dy`.
///
/// # Shape
/// `dy`: rows of `channels` values, as many as `lengths` sum to; `dx`: `(rows, channels)`.
pub fn convolve_within_backward(taps: Taps<'_>, dy: Strided<'_>, lengths: &[usize], dx: &mut [f32]) {
    struct Work<'a>(Taps<'a>, Strided<'a>, &'a [usize]);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(taps, dy, behind) = *self;
            // A token is read by itself with the last tap, by the next with the one before.
            sum_of_taps::<S>(Taps { bias: None, ..taps }, out, |tap| {
                let ahead = taps.count() - 1 - tap;
                (ahead <= behind[row]).then(|| &dy.values[(row + ahead) * dy.stride..][..taps.channels])
            });
        }
    }
    taps.check();
    let behind: Vec<usize> = lengths.iter().flat_map(|&len| (0..len).rev()).collect();
    assert_eq!(dx.len(), behind.len() * taps.channels, "whole rows of dx");
    assert!(behind.is_empty() || dy.values.len() >= (behind.len() - 1) * dy.stride + taps.channels, "rows of dy");
    each_row(dx, taps.channels, &Work(taps, dy, &behind));
}

/// `out = bias + Σ weight[tap] · row(tap)`, over the taps that have a row, in their order.
#[inline(always)]
fn sum_of_taps<'a, S: Simd>(taps: Taps<'_>, out: &mut [f32], row: impl Fn(usize) -> Option<&'a [f32]>) {
    match taps.bias {
        Some(bias) => out.copy_from_slice(bias),
        None => out.fill(0.0),
    }
    for (tap, weight) in taps.weight.chunks_exact(taps.channels).enumerate() {
        let Some(x) = row(tap) else { continue };
        for (y, (w, x)) in out.iter_mut().zip(weight.iter().zip(x)) {
            *y = S::fma1(*w, *x, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    #[test]
    fn the_convolution_is_its_definition_and_has_the_same_bits_in_any_pieces() {
        for (channels, count, biased) in [(24, 4, false), (5, 3, true), (40, 7, false), (8, 1, true)] {
            let (weight, bias) = (noise(channels * count, 1), noise(channels, 2));
            let taps = Taps { weight: &weight, bias: biased.then_some(&bias), channels };
            let (rows, stride) = (70, channels + 3);
            let x = noise(rows * stride, 3);
            let at = |t: usize| Strided { values: &x[t * stride..], stride };
            let mut whole = vec![f32::NAN; rows * channels];
            convolve_within(taps, at(0), &[rows], &mut whole);
            for t in 0..rows {
                for c in 0..channels {
                    let term = |i: usize| {
                        let t = (t + i + 1).checked_sub(count)?;
                        Some(f64::from(weight[i * channels + c]) * f64::from(x[t * stride + c]))
                    };
                    let want = (0..count).filter_map(term).sum::<f64>() + if biased { f64::from(bias[c]) } else { 0.0 };
                    assert!((f64::from(whole[t * channels + c]) - want).abs() < 1e-6);
                }
            }
            for piece in [1, 2, 5, 16, 17, 40] {
                let mut memory = ConvMemory::new(channels, count);
                let mut out = vec![f32::NAN; rows * channels];
                for (i, out) in out.chunks_mut(piece * channels).enumerate() {
                    convolve(taps, at(i * piece), &mut memory, out).unwrap();
                }
                assert_eq!(out, whole, "{channels} channels, {count} taps, pieces of {piece}");
                assert_eq!((memory.len(), memory.start()), (rows, 64));
                let back = 66;
                memory.truncate(back);
                let mut copy = ConvMemory::new(channels, count);
                copy.fill(&memory.values(), memory.start(), memory.len()).unwrap();
                for memory in [&mut memory, &mut copy] {
                    let mut rest = vec![f32::NAN; (rows - back) * channels];
                    convolve(taps, at(back), memory, &mut rest).unwrap();
                    assert_eq!(rest, whole[back * channels..], "behind {back}");
                }
                memory.truncate(60);
                assert_eq!(memory.len(), 0, "what lies before the chunk is gone");
            }
        }
    }
}
