//! The product with a weight matrix by tensor operations.

use candle_core::{Result, Tensor};

use super::low_rank;
use crate::ops::{AdaptedLinear, Gradient, LowRankDeltas, Matrix, fault};

/// The outputs, and what the backward pass of the deltas needs.
pub fn forward(x: &Tensor, product: AdaptedLinear<'_>) -> Result<(Tensor, Vec<Tensor>)> {
    fault::product()?;
    let x = x.contiguous()?;
    let plain = product.weight.tensors()?.product(&x)?;
    let y = match product.bias {
        Some(bias) => plain.broadcast_add(&bias.tensors()?.to_dtype(plain.dtype())?)?,
        None => plain.clone(),
    };
    let Some(deltas) = product.deltas else { return Ok((y, Vec::new())) };
    let (y, inner) = low_rank::forward(deltas.tensors()?, &x, &plain, y)?;
    Ok((low_rank::add_rows(deltas.tensors()?, deltas.rows(), &x, y)?, inner))
}

/// The gradient of `x`, if it is asked for, and that of each delta.
pub fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Matrix,
    (deltas, inner): (Option<&LowRankDeltas>, &[Tensor]),
    x_tracked: bool,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let dx = if x_tracked { Some(weight.tensors()?.transposed_product(&dy)?) } else { None };
    match deltas {
        Some(deltas) => low_rank::backward(deltas.tensors()?, deltas.each(), (&x, inner), &dy, dx),
        None => Ok((dx, Vec::new())),
    }
}
