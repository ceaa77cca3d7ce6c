//! The short convolution by tensor operations, in F32.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::attention::Sequences;
use crate::kernels::gpu::RING;
use crate::kernels::{CHUNK, ConvMemory, chunk_start};
use crate::ops::{Convolution, tensor_bytes, to_f32};

/// The inputs from position `start - taps + 1` on, or the first.
pub struct Memory {
    channels: usize,
    taps: usize,
    start: usize,
    len: usize,
    kept: Option<Kept>,
    device: Device,
}

enum Kept {
    /// As they come, `(T, channels)`; never changed, and shared by copies.
    Rows(Tensor),
    /// In F32, `(RING, channels)`, that of position t as row `t % RING`: kernels write the next one into it.
    Ring(Tensor),
}

impl Memory {
    pub fn new(channels: usize, taps: usize, device: &Device) -> Self {
        Self { channels, taps, start: 0, len: 0, kept: None, device: device.clone() }
    }

    /// A copy that shares nothing that is changed.
    pub fn fork(&self) -> Result<Self> {
        let kept = match &self.kept {
            Some(Kept::Rows(rows)) => Some(Kept::Rows(rows.clone())),
            Some(Kept::Ring(ring)) => Some(Kept::Ring(ring.force_contiguous()?)),
            None => None,
        };
        Ok(Self { kept, device: self.device.clone(), ..*self })
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.channels, self.taps)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn start(&self) -> usize {
        self.start
    }

    pub fn held_bytes(&self) -> u64 {
        match &self.kept {
            Some(Kept::Rows(kept) | Kept::Ring(kept)) => tensor_bytes(kept),
            None => 0,
        }
    }

    fn first(&self) -> usize {
        self.start.saturating_sub(self.taps - 1)
    }

    pub fn truncate(&mut self, len: usize) {
        if len >= self.start && len > 0 {
            self.len = self.len.min(len);
        } else if len < self.len {
            *self = Self::new(self.channels, self.taps, &self.device);
        }
    }

    /// The rows that count: those behind them were taken back.
    fn held(&self) -> Result<Option<Tensor>> {
        let (first, count) = (self.first(), self.len - self.first());
        match &self.kept {
            Some(Kept::Rows(rows)) => rows.narrow(0, 0, count).map(Some),
            Some(Kept::Ring(ring)) => {
                let before = count.min(RING - first % RING);
                let rows = ring.narrow(0, first % RING, before)?;
                if before == count {
                    return Ok(Some(rows));
                }
                Tensor::cat(&[&rows, &ring.narrow(0, 0, count - before)?], 0).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Where kernels find the last inputs and write the next ones, `(RING, channels)`: the token at position t into row `t % RING`. Of up
    /// to 16 taps.
    pub fn ring(&mut self) -> Result<&Tensor> {
        if !matches!(self.kept, Some(Kept::Ring(_))) {
            let ring = Tensor::zeros((RING, self.channels), DType::F32, &self.device)?;
            if let Some(rows) = self.held()? {
                let (at, count, rows) = (self.first() % RING, self.len - self.first(), rows.to_dtype(DType::F32)?);
                let before = count.min(RING - at);
                for (to, from, count) in [(at, 0, before), (0, before, count - before)] {
                    if count > 0 {
                        ring.slice_set(&rows.narrow(0, from, count)?.force_contiguous()?, 0, to)?;
                    }
                }
            }
            self.kept = Some(Kept::Ring(ring));
        }
        match &self.kept {
            Some(Kept::Ring(ring)) => Ok(ring),
            _ => bail!("a convolution without its ring"),
        }
    }

    /// Holds so many inputs more, which kernels have written.
    pub fn advance(&mut self, rows: usize) {
        self.len += rows;
        if self.len - self.start > CHUNK {
            self.start = chunk_start(self.len);
        }
    }

    pub fn values(&self) -> Result<Vec<f32>> {
        let mut values = self.held()?.map_or_else(|| Ok(Vec::new()), |rows| to_f32(&rows))?;
        values.resize(ConvMemory::most_rows(self.taps) * self.channels, 0.0);
        Ok(values)
    }

    pub fn fill(&mut self, values: &[f32], start: usize, len: usize, dtype: DType) -> Result<()> {
        *self = Self { start, len, ..Self::new(self.channels, self.taps, &self.device) };
        let held = len - self.first();
        if held > 0 {
            let values = values[..held * self.channels].to_vec();
            let rows = Tensor::from_vec(values, (held, self.channels), &Device::Cpu)?;
            self.kept = Some(Kept::Rows(rows.to_dtype(dtype)?.to_device(&self.device)?));
        }
        Ok(())
    }
}

/// The sum over taps of rows, `taps - 1` of which lie in front of the first that counts.
///
/// # Shape
/// `x`: `(…, taps - 1 + T, channels)` in F32; returns `(…, T, channels)`.
fn sum_of_taps(x: &Tensor, by: &Convolution, with_bias: bool) -> Result<Tensor> {
    let at = x.rank() - 2;
    let rows = x.dims()[at] + 1 - by.taps;
    let weight = by.weight.tensors()?.reshape((by.taps, by.channels))?;
    let mut sum = match by.bias.as_ref().filter(|_| with_bias) {
        Some(bias) => Some(bias.tensors()?.clone()),
        None => None,
    };
    for tap in 0..by.taps {
        let term = x.narrow(at, tap, rows)?.broadcast_mul(&weight.narrow(0, tap, 1)?)?;
        sum = Some(match sum {
            Some(sum) => term.broadcast_add(&sum)?,
            None => term,
        });
    }
    sum.map_or_else(|| x.narrow(at, 0, rows), Ok)
}

pub fn behind(x: &Tensor, by: &Convolution, memory: &mut Memory) -> Result<Tensor> {
    let rows = x.dims2()?.0;
    let all = match memory.held()? {
        Some(held) => Tensor::cat(&[&held.to_dtype(x.dtype())?, x], 0)?,
        None => x.force_contiguous()?,
    };
    let first = memory.first();
    // What the first token of these reads, and where there is nothing zeros.
    let from = (memory.len + 1).saturating_sub(by.taps);
    let read = all.narrow(0, from - first, memory.len + rows - from)?.to_dtype(DType::F32)?;
    let read = read.pad_with_zeros(0, by.taps - 1 - (memory.len - from), 0)?;
    let y = sum_of_taps(&read, by, true)?.to_dtype(x.dtype())?;
    memory.advance(rows);
    let kept = memory.first();
    memory.kept = Some(Kept::Rows(all.narrow(0, kept - first, memory.len - kept)?.force_contiguous()?));
    Ok(y)
}

pub fn within(x: &Tensor, by: &Convolution, sequences: &Sequences) -> Result<Tensor> {
    let placed = sequences.placed_rows(x)?.to_dtype(DType::F32)?; // (B, L, C)
    let y = sum_of_taps(&placed.pad_with_zeros(1, by.taps - 1, 0)?, by, true)?;
    sequences.rows_at(&y.to_dtype(x.dtype())?)
}

/// The gradient of `x`.
pub fn within_backward(dy: &Tensor, by: &Convolution, sequences: &Sequences) -> Result<Tensor> {
    let placed = sequences.placed_rows_alone(dy)?.to_dtype(DType::F32)?;
    // Token t is read by t … t + taps - 1, the last tap first: the taps the other way round over what lies behind.
    let weight = by.weight.tensors()?.reshape((by.taps, by.channels))?;
    let turned: Vec<_> = (0..by.taps).rev().map(|tap| weight.narrow(0, tap, 1)).collect::<Result<_>>()?;
    let weight = crate::ops::Vector::Tensors(Tensor::cat(&turned, 0)?.flatten_all()?);
    let by = Convolution { weight, ..by.clone() };
    let dx = sum_of_taps(&placed.pad_with_zeros(1, 0, by.taps - 1)?, &by, false)?;
    sequences.rows_at(&dx.to_dtype(dy.dtype())?)
}
