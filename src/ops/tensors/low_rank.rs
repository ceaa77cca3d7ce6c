//! Low-rank changes by tensor operations: two products a matrix, whatever the number of changes.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::kernels::gpu::Gpu;
use crate::ops::gpu::StepDelta;
use crate::ops::low_rank::groups;
use crate::ops::{DeltaPart, DeviceMatrix, Dropout, Gradient, LowRankDelta, ParameterValues};

/// The changes of one matrix, as products read them: in the type of the matrix.
pub struct Ready {
    groups: Vec<Group>,
    /// The product's factors less one, `(N)`.
    gains: Option<Tensor>,
    /// The same for the kernels of a GPU, once they have read it.
    step: OnceLock<StepDelta>,
}

/// Deltas that read the same rows.
struct Group {
    deltas: Range<usize>,
    /// The rows of each one's `A`, one delta after another: `(ΣR, C)`.
    a: Tensor,
    /// The columns of each one's `B` times its scale, zero where it changes nothing: `(N, ΣR)`.
    b: Tensor,
    dropout: Option<Dropout>,
}

impl Ready {
    pub fn new(deltas: &[LowRankDelta], weight: &DeviceMatrix) -> Result<Self> {
        let ((outputs, _), dtype) = (weight.dims(), weight.dtype());
        let mut gains = None;
        for part in deltas.iter().flat_map(|delta| &delta.parts) {
            let Some(gain) = &part.gain else { continue };
            // One is subtracted in F32: a factor is near it.
            let more = among((gain.factors.tensors()? - 1.0)?, part.start, outputs)?;
            gains = Some(gains.map_or_else(|| Ok(more.clone()), |gains: Tensor| gains + &more)?);
        }
        let gains = gains.map(|gains| gains.to_dtype(dtype)).transpose()?;
        let group = |range: Range<usize>| {
            let own = &deltas[range.clone()];
            let a = own.iter().map(|delta| delta.a.tensors()?.dense()?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            let b = own.iter().map(|delta| expanded(delta, outputs)?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            Ok(Group { dropout: own[0].dropout, deltas: range, a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 1)? })
        };
        let groups = groups(deltas).into_iter().map(group).collect::<Result<_>>()?;
        Ok(Self { groups, gains, step: OnceLock::new() })
    }

    /// What the kernels of a GPU read; `None` of changes that have gains or dropout.
    pub fn for_step(&self, gpu: &Gpu) -> Result<Option<&StepDelta>> {
        let ([Group { a, b, dropout: None, .. }], None) = (&self.groups[..], &self.gains) else { return Ok(None) };
        if self.step.get().is_none() {
            // Whoever else makes it makes the same.
            let _ = self.step.set(StepDelta::new(gpu, a, b)?);
        }
        Ok(self.step.get())
    }
}

/// `scale · B` of all outputs, in F32.
fn expanded(delta: &LowRankDelta, outputs: usize) -> Result<Tensor> {
    summed(&delta.parts, |part| {
        let b = part.product_b().tensors()?.dense()?.to_dtype(DType::F32)?;
        among((b * f64::from(delta.scale))?, part.start, outputs)
    })
}

/// The sum of what each part is.
fn summed(parts: &[DeltaPart], each: impl Fn(&DeltaPart) -> Result<Tensor>) -> Result<Tensor> {
    let Some((first, others)) = parts.split_first() else { bail!("adapter: a change of no outputs") };
    others.iter().try_fold(each(first)?, |sum, part| sum + each(part)?)
}

/// Rows from `start` on among `rows`, the others zero.
fn among(x: Tensor, start: usize, rows: usize) -> Result<Tensor> {
    let own = x.dims()[0];
    if own == rows { Ok(x) } else { x.pad_with_zeros(0, start, rows - start - own) }
}

/// What inputs are multiplied with, `(T, C)`; made on the CPU, so that every device drops the same.
fn mask(dropout: Option<Dropout>, x: &Tensor) -> Result<Option<Tensor>> {
    let Some(Dropout { share, seed }) = dropout else { return Ok(None) };
    let mut mask = vec![1f32; x.elem_count()];
    crate::kernels::dropout(&mut mask, share, seed);
    Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device()).map(Some)
}

fn masked(x: &Tensor, mask: &Option<Tensor>) -> Result<Tensor> {
    mask.as_ref().map_or_else(|| Ok(x.clone()), |mask| x * mask)
}

/// Adds the changes to `y`; returns of each group `A dropout(x)` as well, `(T, ΣR)`. `plain`: `W x`.
pub fn forward(ready: &Ready, x: &Tensor, plain: &Tensor, mut y: Tensor) -> Result<(Tensor, Vec<Tensor>)> {
    if let Some(gains) = &ready.gains {
        y = (y + plain.broadcast_mul(gains)?)?;
    }
    let mut all = Vec::with_capacity(ready.groups.len());
    for group in &ready.groups {
        let inner = masked(x, &mask(group.dropout, x)?)?.matmul(&group.a.t()?)?;
        y = (y + inner.matmul(&group.b.t()?)?)?;
        all.push(inner);
    }
    Ok((y, all))
}

/// The gradient of the matrices of each delta; adds to that of `x`, if it is asked for.
pub fn backward(
    ready: &Ready,
    deltas: &[LowRankDelta],
    (x, inner): (&Tensor, &[Tensor]),
    dy: &Tensor,
    mut dx: Option<Tensor>,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let mut of_deltas = Vec::with_capacity(deltas.len());
    for (group, inner) in ready.groups.iter().zip(inner) {
        let (of_inner, mask) = (dy.matmul(&group.b)?, mask(group.dropout, x)?);
        let of_a = of_inner.t()?.matmul(&masked(x, &mask)?)?.to_dtype(DType::F32)?;
        let of_b = dy.t()?.matmul(inner)?.to_dtype(DType::F32)?;
        let mut first = 0;
        for delta in &deltas[group.deltas.clone()] {
            let (a, b) = (of_a.narrow(0, first, delta.rank())?, of_b.narrow(1, first, delta.rank())?);
            let b = summed(&delta.parts, |part| {
                let b = b.narrow(0, part.start, part.rows.len())?.contiguous()?;
                among((b * f64::from(delta.scale))?, part.rows.start, delta.outputs())
            })?;
            let flat = |x: Tensor| x.contiguous()?.flatten_all().map(ParameterValues::Tensors);
            of_deltas.push(Gradient { a: flat(a)?, b: flat(b)? });
            first += delta.rank();
        }
        if let Some(sum) = dx {
            dx = Some((sum + masked(&of_inner.matmul(&group.a)?, &mask)?)?);
        }
    }
    Ok((dx, of_deltas))
}
