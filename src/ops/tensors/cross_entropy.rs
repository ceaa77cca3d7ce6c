//! The loss and its gradient by tensor operations.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::ops::{Backend, Context, Matrix, Product, linear};

pub fn by_tensors(
    backend: &Backend,
    x: &Tensor,
    product: Product<'_>,
    (scale, cap): (f32, Option<f32>),
    targets: &[u32],
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    let Matrix::Tensor(weight) = product.weight else { bail!("cross entropy: operands on two devices") };
    let ids = Tensor::new(targets, x.device())?.unsqueeze(1)?;
    let scores = (linear(Context::forward(backend), x, product)?.to_dtype(DType::F32)? * f64::from(scale))?;
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
    let sum = exp.sum_keepdim(D::Minus1)?;
    let losses = (sum.log()? - shifted.gather(&ids, 1)?)?;
    let loss = losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum();
    if !with_gradient {
        return Ok((loss, None));
    }
    let at_targets = Tensor::full(-1f32, (targets.len(), 1), x.device())?;
    let mut gradient = (exp.broadcast_div(&sum)?.scatter_add(&ids, &at_targets, 1)? * f64::from(scale))?;
    if let Some(slope) = slope {
        gradient = (gradient * slope)?;
    }
    Ok((loss, Some(gradient.to_dtype(weight.dtype())?.matmul(weight)?)))
}
