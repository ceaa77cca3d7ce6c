//! Norms by tensor operations.

use candle_core::{DType, Result, Tensor};

use crate::ops::{Norm, NormKind};

pub fn by_tensors(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let Norm { kind, eps, width, weight, bias } = norm;
    // In F32 throughout: in F16 the sum of squares passes 65504 at 4096 values once they reach 4.
    let y = x.to_dtype(DType::F32)?.reshape((rows, cols / width, *width))?;
    let y = match kind {
        NormKind::Rms => y,
        NormKind::Layer => y.broadcast_sub(&y.mean_keepdim(2)?)?,
    };
    let scale = (y.sqr()?.mean_keepdim(2)? + f64::from(*eps))?.sqrt()?.recip()?;
    let mut y = y.broadcast_mul(&scale)?;
    if let Some(weight) = weight {
        let weight = weight.tensor()?;
        y = y.broadcast_mul(&weight.reshape((weight.elem_count() / width, *width))?)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias.tensor()?)?;
    }
    y.reshape((rows, cols))?.to_dtype(x.dtype())
}
