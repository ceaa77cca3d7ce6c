//! Activation functions, alone and as gates.

use candle_core::{DType, Result, Tensor};

use super::row_op::{in_place, row_op};
use super::{Activation, Backend};
use crate::kernels;

/// `activation(gate) · up`.
///
/// # Shape
/// `x`: `(T, 2 · F)`, a row's gate before its up; returns `(T, F)`.
///
/// # Source
/// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
pub fn gated(backend: &Backend, x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    let width = cols / 2;
    if backend.kernels {
        return row_op("gated", x, width, |x, out| {
            kernels::gated(kind, x.packed()?, width, out);
            Ok(())
        });
    }
    apply(&x.narrow(1, 0, width)?.force_contiguous()?, kind)? * x.narrow(1, width, width)?.force_contiguous()?
}

/// `activation(x)`; on the CPU in the memory of `x`.
///
/// # Shape
/// `(T, F)`; returns the same.
pub fn activate(backend: &Backend, x: Tensor, kind: Activation) -> Result<Tensor> {
    if backend.kernels {
        return in_place("activate", x, |x, cols| {
            kernels::activate(kind, x, cols);
            Ok(())
        });
    }
    apply(&x, kind)
}

fn apply(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(x),
        // The square passes F16's range at 256.
        Activation::Relu2 => x.to_dtype(DType::F32)?.relu()?.sqr()?.to_dtype(x.dtype()),
    }
}
