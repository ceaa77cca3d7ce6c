//! The short convolution by tensor operations, in F32.

use candle_core::{DType, Device, Result, Tensor};

use super::attention::Sequences;
use crate::kernels::{CHUNK, ConvMemory, chunk_start};
use crate::ops::{Convolution, tensor_bytes, to_f32};

/// The inputs from position `start - taps + 1` on, or the first, as rows; clones share what is never changed.
#[derive(Clone)]
pub struct Memory {
    channels: usize,
    taps: usize,
    start: usize,
    len: usize,
    rows: Option<Tensor>,
    device: Device,
}

impl Memory {
    pub fn new(channels: usize, taps: usize, device: &Device) -> Self {
        Self { channels, taps, start: 0, len: 0, rows: None, device: device.clone() }
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
        self.rows.as_ref().map_or(0, tensor_bytes)
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
        self.rows.as_ref().map(|rows| rows.narrow(0, 0, self.len - self.first())).transpose()
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
            self.rows = Some(rows.to_dtype(dtype)?.to_device(&self.device)?);
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
        Some(held) => Tensor::cat(&[&held, x], 0)?,
        None => x.force_contiguous()?,
    };
    let first = memory.first();
    // What the first token of these reads, and where there is nothing zeros.
    let from = (memory.len + 1).saturating_sub(by.taps);
    let read = all.narrow(0, from - first, memory.len + rows - from)?.to_dtype(DType::F32)?;
    let read = read.pad_with_zeros(0, by.taps - 1 - (memory.len - from), 0)?;
    let y = sum_of_taps(&read, by, true)?.to_dtype(x.dtype())?;
    memory.len += rows;
    if memory.len - memory.start > CHUNK {
        memory.start = chunk_start(memory.len);
    }
    let kept = memory.first();
    memory.rows = Some(all.narrow(0, kept - first, memory.len - kept)?.force_contiguous()?);
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
