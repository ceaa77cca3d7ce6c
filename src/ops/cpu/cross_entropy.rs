//! The loss and its gradient by our kernels.

use candle_core::{Device, Result, Tensor};

use super::linear;
use crate::kernels::{cross_entropy, matmul_transposed_add, zeros};
use crate::ops::AdaptedLinear;

/// `chunk` rows at a time.
pub fn forward(
    x: &Tensor,
    product: AdaptedLinear<'_>,
    (scale, cap): (f32, Option<f32>),
    targets: &[u32],
    chunk: usize,
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    let weight = product.weight.cpu()?;
    let (outputs, (rows, inputs)) = (weight.rows(), x.dims2()?);
    let (mut scores, mut losses) = (zeros(chunk.min(rows) * outputs)?, zeros::<f64>(chunk)?);
    let mut gradient = with_gradient.then(|| zeros(rows * inputs)).transpose()?;
    let mut loss = 0.0;
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let (scores, losses) = (&mut scores[..targets.len() * outputs], &mut losses[..targets.len()]);
        linear::product(&x.narrow(0, i * chunk, targets.len())?, product, with_gradient, scores)?;
        cross_entropy(scores, outputs, targets, scale, cap, losses);
        loss += losses.iter().sum::<f64>();
        if let Some(gradient) = &mut gradient {
            let gradient = &mut gradient[i * chunk * inputs..][..targets.len() * inputs];
            matmul_transposed_add(targets.len(), (scores, outputs), weight, (gradient, inputs))?;
        }
    }
    Ok((loss, gradient.map(|gradient| Tensor::from_vec(gradient, (rows, inputs), &Device::Cpu)).transpose()?))
}
