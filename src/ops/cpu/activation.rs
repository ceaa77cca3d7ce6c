//! Activation functions by our kernels.

use candle_core::{Result, Tensor};

use super::row_op::{in_place, in_place_from, row_op, with_rows};
use crate::kernels::{self, Strided};
use crate::ops::{Activation, GateClamp};

pub fn gated(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    row_op("gated", x, width, |x, out| {
        kernels::gated(kind, x.packed()?, width, out);
        Ok(())
    })
}

pub fn gated_backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    row_op("gated backward", dy, cols, |dy, dx| {
        let dy = dy.packed()?;
        with_rows(x, |x| {
            kernels::gated_backward(kind, x.packed()?, dy, cols / 2, dx);
            Ok(())
        })
    })
}

pub fn gated_clamped(x: &Tensor, clamp: GateClamp) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    row_op("gated clamped", x, width, |x, out| {
        kernels::gated_clamped(clamp, x.packed()?, width, out);
        Ok(())
    })
}

pub fn gated_clamped_backward(x: &Tensor, dy: &Tensor, clamp: GateClamp) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    row_op("gated clamped backward", dy, cols, |dy, dx| {
        let dy = dy.packed()?;
        with_rows(x, |x| {
            kernels::gated_clamped_backward(clamp, x.packed()?, dy, cols / 2, dx);
            Ok(())
        })
    })
}

/// In the memory of `x`.
pub fn activate(x: Tensor, kind: Activation) -> Result<Tensor> {
    in_place("activate", x, |x, cols| kernels::activate(kind, x, cols))
}

/// In the memory of `dy`.
pub fn activate_backward(x: &Tensor, dy: Tensor, kind: Activation) -> Result<Tensor> {
    in_place_from("activate backward", dy, x, |x, dy, cols| {
        kernels::activate_backward(kind, Strided::from(&x), dy, cols);
        Ok(())
    })
}
