//! Norms by tensor operations, in F32 throughout: in F16 the sum of squares passes 65504 at 4096 values once they reach
//! 4.

use candle_core::{DType, Result, Tensor};

use crate::kernels::gpu::{BatchNorm, BatchOps};
use crate::ops::{Norm, NormKind, Vector};

fn for_kernels(norm: &Norm) -> Result<BatchNorm<'_>> {
    let [weight, bias] = [&norm.weight, &norm.bias].map(|vector| vector.as_ref().map(Vector::tensors).transpose());
    let (weight, bias) = (weight?, bias?);
    Ok(BatchNorm { kind: norm.kind, eps: norm.eps, width: norm.width, weight, bias })
}

/// Groups, without their mean where the norm takes it away, `(T, groups, width)`, and one over the deviation of each,
/// `(T, groups, 1)`.
fn statistics(x: &Tensor, norm: &Norm) -> Result<(Tensor, Tensor)> {
    let x = groups(x, norm)?;
    let x = match norm.kind {
        NormKind::Rms => x,
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(2)?)?,
    };
    let scale = (x.sqr()?.mean_keepdim(2)? + f64::from(norm.eps))?.sqrt()?.recip()?;
    Ok((x, scale))
}

fn groups(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    x.to_dtype(DType::F32)?.reshape((rows, cols / norm.width, norm.width))
}

fn weighted(x: Tensor, norm: &Norm) -> Result<Tensor> {
    let Some(weight) = &norm.weight else { return Ok(x) };
    let weight = weight.tensors()?;
    x.broadcast_mul(&weight.reshape((weight.elem_count() / norm.width, norm.width))?)
}

pub fn forward(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(x)? {
        return batch.norm(x, for_kernels(norm)?);
    }
    let (centred, scale) = statistics(x, norm)?;
    let mut y = weighted(centred.broadcast_mul(&scale)?, norm)?;
    if let Some(bias) = &norm.bias {
        y = y.broadcast_add(bias.tensors()?)?;
    }
    y.reshape(x.shape())?.to_dtype(x.dtype())
}

pub fn backward(x: &Tensor, dy: &Tensor, norm: &Norm) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(x)? {
        return batch.norm_backward(x, dy, for_kernels(norm)?);
    }
    let (centred, scale) = statistics(x, norm)?;
    let normed = centred.broadcast_mul(&scale)?;
    let dy = weighted(groups(dy, norm)?, norm)?;
    // The gradient may not move the mean, nor the length, which the norm takes away.
    let along = (&dy * &normed)?.mean_keepdim(2)?;
    let dx = (&dy - normed.broadcast_mul(&along)?)?;
    let dx = match norm.kind {
        NormKind::Rms => dx,
        NormKind::Layer => dx.broadcast_sub(&dy.mean_keepdim(2)?)?,
    };
    dx.broadcast_mul(&scale)?.reshape(x.shape())?.to_dtype(x.dtype())
}

pub fn add_scaled(x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
    if scale == 1.0 { x + y } else { x + (y * f64::from(scale))? }
}
