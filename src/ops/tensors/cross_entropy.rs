//! The loss and its gradient by tensor operations.

use candle_core::{D, DType, Result, Tensor};

use super::linear;
use crate::kernels::gpu::BatchOps;
use crate::ops::AdaptedLinear;

/// `chunk` rows at a time.
pub fn forward(
    x: &Tensor,
    product: AdaptedLinear<'_>,
    scale_cap: (f32, Option<f32>),
    targets: &[u32],
    chunk: usize,
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    let (mut loss, mut gradients) = (0.0, Vec::new());
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let x = x.narrow(0, i * chunk, targets.len())?.force_contiguous()?;
        let (sum, gradient) = of_chunk(&x, product, scale_cap, targets, with_gradient)?;
        loss += sum;
        gradients.extend(gradient);
    }
    let gradient = if gradients.is_empty() { None } else { Some(Tensor::cat(&gradients, 0)?) };
    Ok((loss, gradient))
}

fn of_chunk(
    x: &Tensor,
    product: AdaptedLinear<'_>,
    (scale, cap): (f32, Option<f32>),
    targets: &[u32],
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    let weight = product.weight.tensors()?;
    let ids = Tensor::new(targets, x.device())?;
    if let Some(batch) = BatchOps::of(x)? {
        let (losses, gradient) = batch.cross_entropy(linear::forward(x, product)?.0, &ids, (scale, cap), with_gradient)?;
        return Ok((sum(&losses)?, gradient.map(|gradient| weight.transposed_product(&gradient)).transpose()?));
    }
    let ids = ids.unsqueeze(1)?;
    let scores = (linear::forward(x, product)?.0.to_dtype(DType::F32)? * f64::from(scale))?;
    let (scores, slope) = match cap {
        Some(cap) => {
            let tanh = (scores / f64::from(cap))?.tanh()?;
            let slope = (1.0 - tanh.sqr()?)?;
            ((tanh * f64::from(cap))?, Some(slope))
        }
        None => (scores, None),
    };
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?;
    let exp = shifted.exp()?;
    let total = exp.sum_keepdim(D::Minus1)?;
    let losses = (total.log()? - shifted.gather(&ids, 1)?)?;
    let loss = sum(&losses.flatten_all()?)?;
    if !with_gradient {
        return Ok((loss, None));
    }
    let at_targets = Tensor::full(-1f32, (targets.len(), 1), x.device())?;
    let mut gradient = (exp.broadcast_div(&total)?.scatter_add(&ids, &at_targets, 1)? * f64::from(scale))?;
    if let Some(slope) = slope {
        gradient = (gradient * slope)?;
    }
    Ok((loss, Some(weight.transposed_product(&gradient.to_dtype(weight.dtype())?)?)))
}

fn sum(losses: &Tensor) -> Result<f64> {
    Ok(losses.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}
