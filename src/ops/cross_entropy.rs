//! The loss of predicting tokens, and its gradient at the network's output.

use candle_core::{Result, Tensor, bail};

use super::cpu::cross_entropy as cpu;
use super::tensors::cross_entropy as tensors;
use super::{AdaptedLinear, Backend};

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
    product: AdaptedLinear<'_>,
    (scale, cap): (f32, Option<f32>),
    targets: &[u32],
    with_gradient: bool,
) -> Result<(f64, Option<Tensor>)> {
    if product.deltas.is_some() {
        bail!("cross entropy: the output matrix is changed by an adapter")
    }
    let (outputs, rows) = (product.weight.outputs(), product.rows_of(x)?);
    if rows != targets.len() || targets.iter().any(|&target| target as usize >= outputs) {
        bail!("cross entropy: {} targets of a vocabulary of {outputs} for {rows} rows", targets.len())
    }
    // Of equal size: the product is at its best with many rows.
    let chunk = rows.div_ceil(rows.div_ceil(scored_at_once(outputs)).max(1)).max(1);
    match backend {
        Backend::Cpu => cpu::forward(x, product, (scale, cap), targets, chunk, with_gradient),
        Backend::Tensors(_) => tensors::forward(x, product, (scale, cap), targets, chunk, with_gradient),
    }
}
