//! Norms by our kernels.

use candle_core::{Result, Tensor};

use super::row_op::{in_place_from, row_op};
use crate::kernels::{self, Normalise, normalise, normalise_backward};
use crate::ops::{Norm, Vector};

fn of(norm: &Norm) -> Result<Normalise<'_>> {
    let Norm { kind, eps, width, weight, bias } = norm;
    let weight = weight.as_ref().map(Vector::slice).transpose()?;
    let bias = bias.as_ref().map(Vector::slice).transpose()?;
    Ok(Normalise { kind: *kind, eps: *eps, width: *width, weight, bias })
}

pub fn forward(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let ((_, cols), norm) = (x.dims2()?, of(norm)?);
    row_op("norm", x, cols, |x, out| {
        normalise(norm, x.values, x.stride, cols, out);
        Ok(())
    })
}

/// In the memory of `dy`.
pub fn backward(x: &Tensor, dy: Tensor, norm: &Norm) -> Result<Tensor> {
    let norm = of(norm)?;
    in_place_from("norm backward", dy, x, |x, dy, cols| {
        normalise_backward(norm, x.values, x.stride, cols, dy);
        Ok(())
    })
}

/// In the memory of `y`.
pub fn add_scaled(x: &Tensor, y: Tensor, scale: f32, after: Option<&Norm>) -> Result<Tensor> {
    let after = after.map(of).transpose()?;
    in_place_from("add_scaled", y, x, |x, y, cols| {
        kernels::add_scaled(x.packed()?, scale, y, cols, after);
        Ok(())
    })
}
