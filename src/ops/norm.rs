//! Root-mean-square norm and layer norm.

use candle_core::{DType, Result, Tensor};

use super::row_op::row_op;
use super::{Backend, Norm, Vector};
use crate::kernels::normalise;

/// Normalises each group of `width` values of each row: the whole row, or each head of it.
///
/// # Shape
/// `x`: `(T, groups · width)`, `weight`: `(width)`, or `(groups · width)` where each head has its own, `bias`: `(width)`; returns the shape and dtype of `x`. Statistics are F32.
///
/// # Source
/// Zhang and Sennrich 2019, eq. 4, <https://arxiv.org/abs/1910.07467>; Ba et al. 2016, <https://arxiv.org/abs/1607.06450>.
pub fn norm(
    backend: &Backend,
    x: &Tensor,
    kind: Norm,
    eps: f32,
    width: usize,
    weight: Option<&Vector>,
    bias: Option<&Vector>,
) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    if backend.kernels {
        let (weight, bias) = (weight.map(Vector::cpu).transpose()?, bias.map(Vector::cpu).transpose()?);
        return row_op("norm", x, cols, |x, out| {
            normalise(kind, eps, x.values, x.stride, width, cols / width, weight, bias, out);
            Ok(())
        });
    }
    // In F32 throughout: in F16 the sum of squares passes 65504 at 4096 values once they reach 4.
    let y = x.to_dtype(DType::F32)?.reshape((rows, cols / width, width))?;
    let y = match kind {
        Norm::Rms => y,
        Norm::Layer => y.broadcast_sub(&y.mean_keepdim(2)?)?,
    };
    let scale = (y.sqr()?.mean_keepdim(2)? + f64::from(eps))?.sqrt()?.recip()?;
    let mut y = y.broadcast_mul(&scale)?;
    if let Some(weight) = weight {
        let weight = weight.tensor()?;
        y = y.broadcast_mul(&weight.reshape((weight.elem_count() / width, width))?)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias.tensor()?)?;
    }
    y.reshape((rows, cols))?.to_dtype(x.dtype())
}
