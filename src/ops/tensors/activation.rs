//! Activation functions by tensor operations.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::sigmoid;

use crate::kernels::gpu::BatchOps;
use crate::ops::{Activation, GateClamp};

pub fn activate(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match BatchOps::of(x)? {
        Some(batch) => batch.activate(x, kind, false),
        None => by_operations(x, kind),
    }
}

/// The same of any shape, without the device's own kernels.
pub(super) fn by_operations(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        // The cube passes F16's range at 41.
        Activation::GeluTanh => x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype()),
        Activation::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        // The square passes F16's range at 256.
        Activation::Relu2 => x.to_dtype(DType::F32)?.relu()?.sqr()?.to_dtype(x.dtype()),
    }
}

/// The slope at `x`, which is F32.
pub fn slope(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let of_silu = |x: &Tensor| {
        let s = sigmoid(x)?;
        &s * ((x * (1.0 - &s)?)? + 1.0)?
    };
    match kind {
        Activation::Silu => of_silu(x),
        Activation::QuickGelu => of_silu(&(x * 1.702)?),
        Activation::Gelu => {
            let below = (((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2))?;
            below + (x * density)?
        }
        Activation::GeluTanh => {
            let (factor, square) = (FRAC_2_SQRT_PI * FRAC_1_SQRT_2, x.sqr()?); // √(2/π)
            let tanh = ((x * factor)? * ((&square * 0.044715)? + 1.0)?)?.tanh()?;
            let inner = ((square * (3.0 * 0.044715 * factor))? + factor)?;
            let rise = (((1.0 - tanh.sqr()?)? * inner)? * x)?;
            ((tanh + 1.0)? + rise)? * 0.5
        }
        Activation::Relu => x.sign()?.relu(),
        Activation::Relu2 => x.relu()? * 2.0,
        Activation::Tanh => 1.0 - x.tanh()?.sqr()?,
        Activation::Sigmoid => {
            let s = sigmoid(x)?;
            &s * (1.0 - &s)?
        }
    }
}

pub fn activate_backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(x)? {
        return batch.activate_backward(x, dy, kind, false);
    }
    (slope(&x.to_dtype(DType::F32)?, kind)? * dy.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

/// Gate and up, `(T, F)` each.
fn halves(x: &Tensor) -> Result<[Tensor; 2]> {
    let width = x.dims2()?.1 / 2;
    Ok([x.narrow(1, 0, width)?.force_contiguous()?, x.narrow(1, width, width)?.force_contiguous()?])
}

pub fn gated(x: &Tensor, kind: Activation) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(x)? {
        return batch.activate(x, kind, true);
    }
    let [gate, up] = halves(x)?;
    by_operations(&gate, kind)? * up
}

pub fn gated_backward(x: &Tensor, dy: &Tensor, kind: Activation) -> Result<Tensor> {
    if let Some(batch) = BatchOps::of(x)? {
        return batch.activate_backward(x, dy, kind, true);
    }
    let [gate, up] = halves(&x.to_dtype(DType::F32)?)?;
    let dy = dy.to_dtype(DType::F32)?;
    let (of_gate, of_up) = ((slope(&gate, kind)? * up)?, by_operations(&gate, kind)?);
    Tensor::cat(&[(of_gate * &dy)?, (of_up * &dy)?], 1)?.to_dtype(x.dtype())
}

/// In F32: the gate as it counts, its sigmoid, and the value that it is for; and the two as they are.
fn clamped(x: &Tensor, clamp: GateClamp) -> Result<([Tensor; 3], [Tensor; 2])> {
    let [gate, up] = halves(&x.to_dtype(DType::F32)?)?;
    let counted = gate.minimum(f64::from(clamp.limit))?;
    let of_gate = sigmoid(&(&counted * f64::from(clamp.slope))?)?;
    let value = (up.clamp(-clamp.limit, clamp.limit)? + 1.0)?;
    Ok(([counted, of_gate, value], [gate, up]))
}

pub fn gated_clamped(x: &Tensor, clamp: GateClamp) -> Result<Tensor> {
    let ([gate, sigmoid, up], _) = clamped(x, clamp)?;
    ((gate * sigmoid)? * up)?.to_dtype(x.dtype())
}

pub fn gated_clamped_backward(x: &Tensor, dy: &Tensor, clamp: GateClamp) -> Result<Tensor> {
    let ([gate, sigmoid, value], [of_gate, of_up]) = clamped(x, clamp)?;
    let dy = dy.to_dtype(DType::F32)?;
    let rise = (((&gate * f64::from(clamp.slope))? * (1.0 - &sigmoid)?)? + 1.0)?;
    // No slope beyond the bounds.
    let counts = |x: &Tensor| x.le(f64::from(clamp.limit))?.to_dtype(DType::F32);
    let d_gate = ((((&sigmoid * rise)? * value)? * &dy)? * counts(&of_gate)?)?;
    let d_up = (((gate * sigmoid)? * &dy)? * counts(&of_up.abs()?)?)?;
    Tensor::cat(&[d_gate, d_up], 1)?.to_dtype(x.dtype())
}
