//! The loss of foretelling tokens, and its gradient at the network's output.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::low_rank::product_on_cpu;
use super::row_op::with_rows;
use super::{Backend, Context, Matrix, Product, Vector, linear};
use crate::kernels::{self, matmul_transposed_add};

/// Scores that are in memory at a time: 128 MB. All of a batch would be more than everything else together.
const CHUNK_VALUES: usize = 1 << 25;

/// The most rows whose scores of so many outputs are in memory at a time.
pub fn scored_at_once(outputs: usize) -> usize {
    (CHUNK_VALUES / outputs).max(16)
}

/// The cross entropy of rows against one id each, in nats and summed, of `scale · x Wᵀ`, capped by `cap · tanh(y / cap)` where there is a
/// cap; and its gradient for `x`, if it is asked for.
///
/// # Shape
/// `x`: `(T, C)`; `targets`: `T` ids below `N`; the gradient has the shape and dtype of `x`.
///
/// # Errors
/// If the output matrix is changed by an adapter.
pub fn cross_entropy(
    backend: &Backend,
    x: &Tensor,
    product: Product<'_>,
    (scale, cap): (f32, Option<f32>),
    targets: &[u32],
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    if !product.deltas.is_empty() || !product.trained.is_empty() {
        bail!("cross entropy: the output matrix is changed by an adapter")
    }
    let (outputs, (rows, inputs)) = (product.weight.outputs(), x.dims2()?);
    if rows != targets.len() || targets.iter().any(|&target| target as usize >= outputs) {
        bail!("cross entropy: {} targets of a vocabulary of {outputs} for {rows} rows", targets.len())
    }
    // Of equal size: the product is at its best with many rows.
    let chunk = rows.div_ceil(rows.div_ceil(scored_at_once(outputs)).max(1)).max(1);
    let mut loss = 0.0;
    let Matrix::Packed(packed) = product.weight else {
        let mut gradients = Vec::new();
        for (i, targets) in targets.chunks(chunk).enumerate() {
            let x = x.narrow(0, i * chunk, targets.len())?.force_contiguous()?;
            let (sum, gradient) = by_tensors(backend, &x, product, (scale, cap), targets, with_gradient)?;
            loss += sum;
            gradients.extend(gradient);
        }
        let gradient = if with_gradient && rows > 0 { Some(Tensor::cat(&gradients, 0)?) } else { None };
        return Ok((loss, gradient));
    };
    let bias = product.bias.map(Vector::cpu).transpose()?;
    let mut scores = vec![0f32; chunk.min(rows) * outputs];
    let mut losses = vec![0f64; chunk];
    let mut gradient = with_gradient.then(|| vec![0f32; rows * inputs]);
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let (scores, losses) = (&mut scores[..targets.len() * outputs], &mut losses[..targets.len()]);
        with_rows(&x.narrow(0, i * chunk, targets.len())?, |x| product_on_cpu(&x, packed, bias, &[], scores))?;
        kernels::cross_entropy(scores, outputs, targets, scale, cap, losses);
        loss += losses.iter().sum::<f64>();
        if let Some(gradient) = &mut gradient {
            matmul_transposed_add(scores, outputs, packed, &mut gradient[i * chunk * inputs..][..targets.len() * inputs]);
        }
    }
    Ok((loss, gradient.map(|gradient| Tensor::from_vec(gradient, (rows, inputs), &Device::Cpu)).transpose()?))
}

fn by_tensors(
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
