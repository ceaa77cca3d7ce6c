//! Gates by tensor operations.

use candle_core::{DType, Result, Tensor};

use super::activation::{by_operations, slope};
use crate::ops::Activation;

/// `(T, G, D)`, or the gates of one value for several, `(T, G, 1)`.
fn groups(x: &Tensor, count: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    x.to_dtype(DType::F32)?.force_contiguous()?.reshape((rows, count, width / count))
}

pub fn gate(x: &Tensor, gates: &Tensor, kind: Option<Activation>) -> Result<Tensor> {
    let count = gates.dims2()?.1;
    let of = groups(gates, count)?;
    let of = kind.map_or(Ok(of.clone()), |kind| by_operations(&of, kind))?;
    groups(x, count)?.broadcast_mul(&of)?.reshape(x.shape())?.to_dtype(x.dtype())
}

/// The gradients of x and of the gates.
pub fn gate_backward(x: &Tensor, gates: &Tensor, dy: &Tensor, kind: Option<Activation>) -> Result<[Tensor; 2]> {
    let count = gates.dims2()?.1;
    let products = (groups(x, count)? * groups(dy, count)?)?.sum(2)?;
    let of_gates = match kind {
        Some(kind) => (products * slope(&gates.to_dtype(DType::F32)?.force_contiguous()?, kind)?)?,
        None => products,
    };
    Ok([gate(dy, gates, kind)?, of_gates.to_dtype(gates.dtype())?])
}
