//! A low-rank change in training: the same product as [`Delta`](super::Delta), and the gradients of its two matrices.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::cpu::row_op::Rows;
use super::tape::Gradient;
use super::{Backend, On, to_f32};
use crate::error::OutOfMemory;
use crate::kernels::{self, Packed, Use, matmul_add, matmul_new, outer_sum};

/// `y[start..start + n] += scale · B[rows] (A dropout(x))` for each part of its outputs; clones share it.
///
/// # Source
/// Hu et al. 2021, <https://arxiv.org/abs/2106.09685>.
#[derive(Clone)]
pub struct Trainable(Arc<Inner>);

struct Inner {
    /// By which its gradient is known.
    number: usize,
    rank: usize,
    inputs: usize,
    outputs: usize,
    scale: f32,
    dropout: Option<Dropout>,
    /// Its rows, and the first output of the product that they are.
    parts: Vec<(Range<usize>, usize)>,
    /// The matrices where they are computed with, `A` and `B`.
    ready: On<Ready, (Tensor, Tensor)>,
}

/// The share of inputs that are dropped, and what decides which ones.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// In `0..1`.
    pub share: f32,
    pub seed: u64,
}

impl Dropout {
    /// That of one change of many: each drops other values, also of those that read the same.
    pub fn of(self, number: usize) -> Self {
        // The finaliser of SplitMix64: numbers that follow one another give seeds that have nothing in common.
        let mut z = self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { seed: z ^ (z >> 31), ..self }
    }
}

/// The matrices for our kernels.
struct Ready {
    a: Packed,
    a_turned: Packed,
    /// For each part its rows, and the same turned round.
    b: Vec<[Packed; 2]>,
}

impl Trainable {
    /// # Shape
    /// `a`: `(rank, inputs)`, `b`: `(outputs, rank)`.
    ///
    /// # Errors
    /// If there is no memory for copies; a failed upload.
    pub fn new(
        number: usize,
        rank: usize,
        (a, b): (&[f32], &[f32]),
        parts: &[(Range<usize>, usize)],
        scale: f32,
        dropout: Option<Dropout>,
        backend: &Backend,
    ) -> Result<Self> {
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let ready = match backend {
            Backend::Cpu => {
                let rows = |(rows, _): &(Range<usize>, usize)| {
                    let b = &b[rows.start * rank..rows.end * rank];
                    Ok([pack(b, rank)?, pack(&turned(b, rank), rows.len())?])
                };
                let b = parts.iter().map(rows).collect::<Result<_>>()?;
                On::Cpu(Ready { a: pack(a, inputs)?, a_turned: pack(&turned(a, inputs), rank)?, b })
            }
            Backend::Tensors(device) => {
                let tensor = |x: &[f32], shape: (usize, usize)| Tensor::from_slice(x, shape, device);
                On::Tensors((tensor(a, (rank, inputs))?, tensor(b, (outputs, rank))?))
            }
        };
        Ok(Self(Arc::new(Inner { number, rank, inputs, outputs, scale, dropout, parts: parts.to_vec(), ready })))
    }

    /// By which its gradient is known.
    pub(super) fn number(&self) -> usize {
        self.0.number
    }

    /// Whether it has dropout.
    pub fn drops(&self) -> bool {
        self.0.dropout.is_some()
    }

    /// Adds the change to `y`, whose rows are `stride` long; returns `scale · A dropout(x)`, which the way back needs.
    pub(super) fn add_on_cpu(&self, x: &Rows<'_>, y: &mut [f32], stride: usize) -> Result<Vec<f32>> {
        let Inner { rank, inputs, scale, parts, ready, .. } = &*self.0;
        let Ready { a, b, .. } = ready.cpu()?;
        if x.cols != *inputs {
            bail!("a low-rank change: {} inputs for a matrix of {inputs}", x.cols)
        }
        let count = y.len() / stride;
        let mut inner = self.with_dropped(x, count, |x, x_stride| matmul_new(x, x_stride, a, None, count));
        inner.iter_mut().for_each(|h| *h *= scale);
        if count > 0 {
            for ((_, start), [b, _]) in parts.iter().zip(b) {
                matmul_add(&inner, *rank, b, &mut y[*start..(count - 1) * stride + start + b.rows()], stride);
            }
        }
        Ok(inner)
    }

    /// The gradient of its matrices; adds to that of `x`, if it is asked for.
    pub(super) fn back_on_cpu(&self, x: &Rows<'_>, inner: &[f32], dy: &Rows<'_>, dx: Option<&mut [f32]>) -> Result<Gradient> {
        let Inner { rank, inputs, outputs, scale, parts, ready, .. } = &*self.0;
        let Ready { a_turned, b, .. } = ready.cpu()?;
        let count = inner.len() / rank;
        let mut of_inner = vec![0f32; count * rank];
        let mut gradient = Gradient { a: vec![0.0; rank * inputs], b: vec![0.0; outputs * rank] };
        if count == 0 {
            return Ok(gradient);
        }
        for ((rows, start), [_, b_turned]) in parts.iter().zip(b) {
            let dy_part = &dy.values[*start..];
            matmul_add(dy_part, dy.stride, b_turned, &mut of_inner, *rank);
            let mut sums = vec![0f32; rank * rows.len()];
            outer_sum(inner, dy_part, dy.stride, rows.len(), &mut sums);
            gradient.b[rows.start * rank..rows.end * rank].copy_from_slice(&turned(&sums, rows.len()));
        }
        of_inner.iter_mut().for_each(|d| *d *= scale);
        self.with_dropped(x, count, |x, x_stride| outer_sum(&of_inner, x, x_stride, *inputs, &mut gradient.a));
        if let Some(dx) = dx {
            match self.0.dropout {
                None => matmul_add(&of_inner, *rank, a_turned, dx, *inputs),
                Some(Dropout { share, seed }) => {
                    let mut of_dropped = matmul_new(&of_inner, *rank, a_turned, None, count);
                    kernels::dropout(&mut of_dropped, share, seed);
                    dx.iter_mut().zip(of_dropped).for_each(|(dx, d)| *dx += d);
                }
            }
        }
        Ok(gradient)
    }

    /// Lends `x` as the change sees it, and the distance of its rows.
    fn with_dropped<R>(&self, x: &Rows<'_>, count: usize, read: impl FnOnce(&[f32], usize) -> R) -> R {
        let Some(Dropout { share, seed }) = self.0.dropout else { return read(x.values, x.stride) };
        let mut dropped = Vec::with_capacity(count * x.cols);
        (0..count).for_each(|t| dropped.extend_from_slice(&x.values[t * x.stride..][..x.cols]));
        kernels::dropout(&mut dropped, share, seed);
        read(&dropped, x.cols)
    }

    /// What inputs are multiplied with, `(T, C)`; made on the CPU, so that every device drops the same.
    fn mask(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(Dropout { share, seed }) = self.0.dropout else { return Ok(None) };
        let mut mask = vec![1f32; x.elem_count()];
        kernels::dropout(&mut mask, share, seed);
        Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device()).map(Some)
    }

    /// `x` as the change sees it, its mask, and `scale · A x`.
    fn inner(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>, Tensor)> {
        let mask = self.mask(x)?;
        let x = mask.as_ref().map_or_else(|| Ok(x.clone()), |mask| x * mask)?;
        let (a, _) = self.0.ready.tensors()?;
        let inner = (x.matmul(&a.to_dtype(x.dtype())?.t()?)? * f64::from(self.0.scale))?;
        Ok((x, mask, inner))
    }

    /// Adds the change to `y` by tensor operations.
    pub(super) fn add_by_tensors(&self, x: &Tensor, mut y: Tensor) -> Result<Tensor> {
        let ((_, outputs), (_, _, inner), (_, b)) = (y.dims2()?, self.inner(x)?, self.0.ready.tensors()?);
        let b = b.to_dtype(x.dtype())?;
        for (rows, start) in &self.0.parts {
            let part = inner.matmul(&b.narrow(0, rows.start, rows.len())?.t()?)?;
            y = (y + part.pad_with_zeros(1, *start, outputs - start - rows.len())?)?;
        }
        Ok(y)
    }

    /// The gradient of its matrices, and that of `x`.
    pub(super) fn back_by_tensors(&self, x: &Tensor, dy: &Tensor) -> Result<(Gradient, Tensor)> {
        let Inner { rank, outputs, scale, parts, ready, .. } = &*self.0;
        let ((x, mask, inner), (a, b), dtype) = (self.inner(x)?, ready.tensors()?, x.dtype());
        let b = b.to_dtype(dtype)?;
        let (mut of_b, mut of_inner) = (vec![0f32; outputs * rank], inner.zeros_like()?);
        for (rows, start) in parts {
            let dy = dy.narrow(1, *start, rows.len())?.force_contiguous()?;
            of_inner = (of_inner + dy.matmul(&b.narrow(0, rows.start, rows.len())?)?)?;
            of_b[rows.start * rank..rows.end * rank].copy_from_slice(&to_f32(&dy.t()?.matmul(&inner)?)?);
        }
        let of_inner = (of_inner * f64::from(*scale))?;
        let of_a = to_f32(&of_inner.t()?.matmul(&x)?)?;
        let dx = of_inner.matmul(&a.to_dtype(dtype)?)?;
        let dx = mask.map_or_else(|| Ok(dx.clone()), |mask| &dx * mask)?;
        Ok((Gradient { a: of_a, b: of_b }, dx))
    }
}

fn pack(values: &[f32], cols: usize) -> Result<Packed> {
    let no_memory = || OutOfMemory { what: format!("{} values of an adapter", values.len()) };
    Ok(Packed::from_f32(values, cols, Use::Product).ok_or_else(no_memory)?)
}

/// A matrix with rows of `cols`, columns first.
fn turned(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols)).copied().collect()
}
