//! The product with a weight matrix.

use candle_core::{Result, Storage, Tensor, bail};

use super::row_op::{row_op, rows_of};
use super::{Matrix, Vector, to_f32};
use crate::kernels::{matmul, scale_softcap};

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

/// The product with the output matrix, read back: `y · scale`, then `cap · tanh(y / cap)` where there is a cap.
///
/// # Shape
/// `x`: `(T, C)`, `weight`: `(V, C)`; `out` becomes `T · V` values in F32, in the memory it has where that is enough: a vocabulary is
/// half a megabyte, and it is needed for every token.
pub fn logits(
    x: &Tensor,
    weight: &Matrix,
    bias: Option<&Vector>,
    scale: f32,
    cap: Option<f32>,
    out: &mut Vec<f32>,
) -> Result<()> {
    if let Matrix::Packed(packed) = weight {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("logits: operands on two devices") };
        let rows = rows_of(storage, layout)?;
        if rows.cols != packed.cols() {
            bail!("logits: {} inputs for a matrix of {}", rows.cols, packed.cols())
        }
        out.resize(layout.dims()[0] * packed.rows(), 0.0);
        matmul(rows.values, rows.stride, packed, bias.map(Vector::cpu).transpose()?, out);
    } else {
        *out = to_f32(&linear(x, weight, bias)?)?;
    }
    if scale != 1.0 || cap.is_some() {
        scale_softcap(out, scale, cap);
    }
    Ok(())
}
