//! Low-rank changes by tensor operations: two products a matrix, whatever the number of changes.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::kernels::gpu::{BatchBlock, BatchOps, Gpu};
use crate::ops::gpu::StepDelta;
use crate::ops::low_rank::groups;
use crate::ops::{AddedRows, DeltaPart, DeviceMatrix, Dropout, Gradient, LowRankDelta, ParameterValues};

/// The changes of one matrix, as products read them: in the type of the matrix.
pub struct Ready {
    groups: Vec<Group>,
    /// The product's factors less one, `(N)`.
    gains: Option<Tensor>,
    /// The outputs that rows are added to, `(n)` of each.
    ids: Vec<Tensor>,
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
    pub fn new(deltas: &[LowRankDelta], rows: &[AddedRows], weight: &DeviceMatrix) -> Result<Self> {
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
            if let Some([a, b]) = by_blocks(own, weight)? {
                return Ok(Group { dropout: own[0].dropout, deltas: range, a, b });
            }
            let a = own.iter().map(|delta| delta.a.tensors()?.dense()?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            let b = own.iter().map(|delta| expanded(delta, outputs)?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            Ok(Group { dropout: own[0].dropout, deltas: range, a: Tensor::cat(&a, 0)?, b: Tensor::cat(&b, 1)? })
        };
        let groups = groups(deltas).into_iter().map(group).collect::<Result<_>>()?;
        let ids = rows.iter().map(|added| Tensor::new(&*added.ids, weight.device())).collect::<Result<_>>()?;
        Ok(Self { groups, gains, ids, step: OnceLock::new() })
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

/// `A` of all, one below the other, and `scale · B` of all, side by side, by the kernels of a GPU; `None` where there are none for it.
fn by_blocks(deltas: &[LowRankDelta], weight: &DeviceMatrix) -> Result<Option<[Tensor; 2]>> {
    let ((outputs, inputs), dtype) = (weight.dims(), weight.dtype());
    let (mut of_a, mut of_b, mut first) = (Vec::new(), Vec::new(), 0);
    for delta in deltas {
        let (x, rank) = (delta.a.tensors()?.dense()?, delta.rank());
        of_a.push(BatchBlock { x, rows: 0..rank, cols: 0..inputs, to: (first, 0), factor: 1.0 });
        for part in &delta.parts {
            let x = part.product_b().tensors()?.dense()?;
            let (rows, to) = (0..part.rows.len(), (part.start, first));
            of_b.push(BatchBlock { x, rows, cols: 0..rank, to, factor: delta.scale });
        }
        first += rank;
    }
    if of_a.iter().chain(&of_b).any(|block| block.x.dtype() != DType::F32) {
        return Ok(None);
    }
    let Some(batch) = BatchOps::for_type(dtype, weight.device())? else { return Ok(None) };
    Ok(Some([batch.matrix_of((first, inputs), dtype, &of_a)?, batch.matrix_of((outputs, first), dtype, &of_b)?]))
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

/// Adds what the rows that are added to some of the matrix give to their outputs.
pub fn add_rows(ready: &Ready, added: &[AddedRows], x: &Tensor, mut y: Tensor) -> Result<Tensor> {
    for (AddedRows { rows, .. }, ids) in added.iter().zip(&ready.ids) {
        y = y.contiguous()?.index_add(ids, &rows.tensors()?.product(x)?.to_dtype(y.dtype())?.contiguous()?, 1)?;
    }
    Ok(y)
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
        let of_a = of_inner.t()?.matmul(&masked(x, &mask)?)?;
        let of_b = dy.t()?.matmul(inner)?;
        let (mut first, batch) = (0, BatchOps::of(dy)?);
        let [of_a, of_b] = if batch.is_some() { [of_a, of_b] } else { [of_a.to_dtype(DType::F32)?, of_b.to_dtype(DType::F32)?] };
        for delta in &deltas[group.deltas.clone()] {
            if let Some(batch) = &batch {
                of_deltas.push(from_blocks(batch, delta, first, [&of_a, &of_b])?);
                first += delta.rank();
                continue;
            }
            let (a, b) = (of_a.narrow(0, first, delta.rank())?, of_b.narrow(1, first, delta.rank())?);
            let b = summed(&delta.parts, |part| {
                let b = b.narrow(0, part.start, part.rows.len())?.force_contiguous()?;
                among((b * f64::from(delta.scale))?, part.rows.start, delta.outputs())
            })?;
            let flat = |x: Tensor| x.force_contiguous()?.flatten_all().map(ParameterValues::Tensors);
            of_deltas.push(Gradient { a: flat(a)?, b: flat(b)? });
            first += delta.rank();
        }
        if let Some(sum) = dx {
            dx = Some((sum + masked(&of_inner.matmul(&group.a)?, &mask)?)?);
        }
    }
    Ok((dx, of_deltas))
}

/// The gradient of a delta whose part of those of its group, `(ΣR, C)` and `(N, ΣR)`, begins at `first`.
fn from_blocks(batch: &BatchOps, delta: &LowRankDelta, first: usize, [a, b]: [&Tensor; 2]) -> Result<Gradient> {
    let (rank, inputs) = (delta.rank(), a.dims2()?.1);
    let columns = first..first + rank;
    let of_a = BatchBlock { x: a, rows: columns.clone(), cols: 0..inputs, to: (0, 0), factor: 1.0 };
    let of_part = |part: &DeltaPart| {
        let rows = part.start..part.start + part.rows.len();
        BatchBlock { x: b, rows, cols: columns.clone(), to: (part.rows.start, 0), factor: delta.scale }
    };
    let parts: Vec<_> = delta.parts.iter().map(of_part).collect();
    let flat = |x: Tensor| x.flatten_all().map(ParameterValues::Tensors);
    let a = flat(batch.matrix_of((rank, inputs), DType::F32, &[of_a])?)?;
    Ok(Gradient { a, b: flat(batch.matrix_of((delta.outputs(), rank), DType::F32, &parts)?)? })
}
