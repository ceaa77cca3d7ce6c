//! The loss of foretelling tokens, and its gradient at the network's output.

use candle_core::{Device, Result, Tensor, bail};

use super::cpu::linear::product_on_cpu;
use super::cpu::row_op::with_rows;
use super::tensors::cross_entropy::by_tensors;
use super::{Backend, Matrix, Product, Vector};
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
