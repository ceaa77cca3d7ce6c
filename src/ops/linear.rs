//! The product with a weight matrix.

use candle_core::{Result, Tensor, bail};

use super::row_op::row_op;
use super::{Matrix, Vector};
use crate::kernels::matmul;

/// `y = x Wᵀ + b`.
///
/// # Shape
/// `x`: `(T, C)`, `weight`: `(N, C)`, `bias`: `(N)`; returns `(T, N)`.
pub fn linear(x: &Tensor, weight: &Matrix, bias: Option<&Vector>) -> Result<Tensor> {
    match weight {
        Matrix::Packed(packed) => {
            let bias = bias.map(Vector::cpu).transpose()?;
            row_op("linear", x, packed.rows(), |x, out| {
                if x.cols != packed.cols() {
                    bail!("linear: {} inputs for a matrix of {}", x.cols, packed.cols())
                }
                matmul(x.values, x.stride, packed, bias, out);
                Ok(())
            })
        }
        Matrix::Tensor(weight) => {
            let y = x.contiguous()?.matmul(&weight.t()?)?;
            match bias {
                Some(bias) => y.broadcast_add(&bias.tensor()?.to_dtype(y.dtype())?),
                None => Ok(y),
            }
        }
    }
}
