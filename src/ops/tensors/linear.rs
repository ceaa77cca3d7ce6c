//! The product with a weight matrix by tensor operations.

use candle_core::{Result, Tensor};

use crate::ops::{Gradient, Matrix, Product, Trainable, fault};

pub fn forward(x: &Tensor, product: Product<'_>) -> Result<Tensor> {
    fault::product()?;
    let (x, weight) = (x.contiguous()?, product.weight.tensors()?);
    let plain = x.matmul(&weight.t()?)?;
    let mut y = match product.bias {
        Some(bias) => plain.broadcast_add(&bias.tensors()?.to_dtype(plain.dtype())?)?,
        None => plain.clone(),
    };
    for delta in product.deltas {
        y = (y + delta.tensor(&x, &plain)?)?;
    }
    for change in product.trained {
        y = change.add_by_tensors(&x, y)?;
    }
    Ok(y)
}

/// The gradient of `x`, if it is asked for, and that of each change.
pub fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Matrix,
    trained: &[Trainable],
    x_tracked: bool,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let mut dx = if x_tracked { Some(dy.matmul(weight.tensors()?)?) } else { None };
    let mut of_trained = Vec::with_capacity(trained.len());
    for change in trained {
        let (gradient, of_change) = change.back_by_tensors(&x, &dy)?;
        of_trained.push(gradient);
        dx = dx.map(|dx| dx + of_change).transpose()?;
    }
    Ok((dx, of_trained))
}
