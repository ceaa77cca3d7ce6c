//! Rows times a number.

use candle_core::{Result, Tensor};

use super::cpu::scale as cpu;
use super::tensors::scale as tensors;
use super::{Backend, Context};

/// `factor · x`; on the CPU in the memory of `x`, which no clone of it may use, unless its gradient is asked for.
///
/// # Shape
/// `(T, C)`; returns the same.
pub fn scale(cx: Context<'_>, x: Tensor, factor: f32) -> Result<Tensor> {
    let scaled = move |x: Tensor, backend: &Backend| match backend {
        Backend::Cpu => cpu::scale(x, factor),
        Backend::Tensors(_) => tensors::scale(&x, factor),
    };
    if !cx.tracks(&x) {
        return scaled(x, cx.backend);
    }
    let y = scaled(x.force_contiguous()?, cx.backend)?;
    cx.record([&x], &y, move |dy, backend| Ok([scaled(dy, backend)?]));
    Ok(y)
}

/// The same of a tensor that others read too; it itself where the number is 1.
///
/// # Shape
/// As [`scale`].
pub fn scaled(cx: Context<'_>, x: &Tensor, factor: f32) -> Result<Tensor> {
    match factor {
        1.0 => Ok(x.clone()),
        _ if cx.tracks(x) => scale(cx, x.clone(), factor),
        _ => scale(cx, x.force_contiguous()?, factor),
    }
}
