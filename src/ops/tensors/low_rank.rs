//! Low-rank changes by tensor operations.

use candle_core::{Device, Result, Tensor};

use crate::ops::{Dropout, Gradient, LowRankDelta, to_f32};

/// What inputs are multiplied with, `(T, C)`; made on the CPU, so that every device drops the same.
fn mask(delta: &LowRankDelta, x: &Tensor) -> Result<Option<Tensor>> {
    let Some(Dropout { share, seed }) = delta.dropout else { return Ok(None) };
    let mut mask = vec![1f32; x.elem_count()];
    crate::kernels::dropout(&mut mask, share, seed);
    Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device()).map(Some)
}

/// `x` as the delta sees it, its mask, and `scale · A x`.
fn inner(delta: &LowRankDelta, x: &Tensor) -> Result<(Tensor, Option<Tensor>, Tensor)> {
    let mask = mask(delta, x)?;
    let x = mask.as_ref().map_or_else(|| Ok(x.clone()), |mask| x * mask)?;
    let a = delta.a.tensors()?.to_dtype(x.dtype())?;
    let inner = (x.matmul(&a.t()?)? * f64::from(delta.scale))?;
    Ok((x, mask, inner))
}

/// Adds the change to `y`. `plain`: `W x`.
pub fn forward(delta: &LowRankDelta, x: &Tensor, plain: &Tensor, mut y: Tensor) -> Result<Tensor> {
    let ((_, outputs), (_, _, inner), dtype) = (y.dims2()?, inner(delta, x)?, x.dtype());
    for part in &delta.parts {
        let mut change = inner.matmul(&part.product_b().tensors()?.to_dtype(dtype)?.t()?)?;
        let factors = part.gain.as_ref().map(|gain| gain.factors.tensors()).transpose()?;
        if let Some(factors) = factors {
            let plain = plain.narrow(1, part.start, part.rows.len())?.force_contiguous()?;
            // One is subtracted in F32: a factor is near it.
            change = (change + plain.broadcast_mul(&(factors - 1.0)?.to_dtype(dtype)?)?)?;
        }
        if let Some(bias) = &part.bias {
            let bias = (bias.tensors()? * f64::from(delta.scale))?;
            let bias = factors.map_or_else(|| Ok(bias.clone()), |factors| &bias * factors)?;
            change = change.broadcast_add(&bias.to_dtype(dtype)?)?;
        }
        y = (y + change.pad_with_zeros(1, part.start, outputs - part.outputs().end)?)?;
    }
    Ok(y)
}

/// The gradient of the matrices, and that of `x`.
pub fn backward(delta: &LowRankDelta, x: &Tensor, dy: &Tensor) -> Result<(Gradient, Tensor)> {
    let ((x, mask, inner), dtype) = (inner(delta, x)?, x.dtype());
    let (rank, outputs) = (delta.a.outputs(), delta.parts.iter().map(|part| part.rows.end).max().unwrap_or(0));
    let (mut of_b, mut of_inner) = (vec![0f32; outputs * rank], inner.zeros_like()?);
    for part in &delta.parts {
        let dy = dy.narrow(1, part.start, part.rows.len())?.force_contiguous()?;
        of_inner = (of_inner + dy.matmul(&part.b.tensors()?.to_dtype(dtype)?)?)?;
        of_b[part.rows.start * rank..part.rows.end * rank].copy_from_slice(&to_f32(&dy.t()?.matmul(&inner)?)?);
    }
    let of_inner = (of_inner * f64::from(delta.scale))?;
    let of_a = to_f32(&of_inner.t()?.matmul(&x)?)?;
    let dx = of_inner.matmul(&delta.a.tensors()?.to_dtype(dtype)?)?;
    let dx = mask.map_or_else(|| Ok(dx.clone()), |mask| &dx * mask)?;
    Ok((Gradient { a: of_a, b: of_b }, dx))
}
