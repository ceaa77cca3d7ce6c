//! The product with a weight matrix by tensor operations.

use candle_core::{Result, Tensor};

use super::low_rank;
use crate::ops::{Gradient, LowRankDelta, Matrix, Product, fault};

pub fn forward(x: &Tensor, product: Product<'_>) -> Result<Tensor> {
    fault::product()?;
    let (x, weight) = (x.contiguous()?, product.weight.tensors()?);
    let plain = x.matmul(&weight.t()?)?;
    let y = match product.bias {
        Some(bias) => plain.broadcast_add(&bias.tensors()?.to_dtype(plain.dtype())?)?,
        None => plain.clone(),
    };
    product.deltas.iter().try_fold(y, |y, delta| low_rank::forward(delta, &x, &plain, y))
}

/// The gradient of `x`, if it is asked for, and that of each delta.
pub fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Matrix,
    deltas: &[LowRankDelta],
    x_tracked: bool,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let mut dx = if x_tracked { Some(dy.matmul(weight.tensors()?)?) } else { None };
    let mut of_deltas = Vec::with_capacity(deltas.len());
    for delta in deltas {
        let (gradient, of_x) = low_rank::backward(delta, &x, &dy)?;
        of_deltas.push(gradient);
        dx = dx.map(|dx| dx + of_x).transpose()?;
    }
    Ok((dx, of_deltas))
}
