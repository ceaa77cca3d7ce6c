//! Activation functions, alone and as gates.

use candle_core::{Result, Tensor, bail};

use super::cpu::activation as cpu;
use super::tensors::activation as tensors;
use super::{Activation, Backend, Context, GateClamp};

/// `activation(gate) · up`.
///
/// # Shape
/// `x`: `(T, 2 · F)`, a row's gate before its up; returns `(T, F)`.
///
/// # Source
/// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
pub fn gated(cx: Context<'_>, x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    if !cols.is_multiple_of(2) {
        bail!("gated: expected as many gates as values, found rows of {cols}")
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::gated(x, kind)?,
        Backend::Tensors(_) => tensors::gated(x, kind)?,
    };
    let input = x.clone();
    cx.record([x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::gated_backward(&input, &dy, kind)?,
            Backend::Tensors(_) => tensors::gated_backward(&input, &dy, kind)?,
        }])
    });
    Ok(y)
}

/// The gate up to a bound, times its sigmoid, times one more than what is within the same bound on both sides.
///
/// # Shape
/// As [`gated`] has it.
///
/// # Source
/// OpenAI 2025, <https://arxiv.org/abs/2508.10925>; equals `GptOssExperts` of transformers 5.24.
pub fn gated_clamped(cx: Context<'_>, x: &Tensor, clamp: GateClamp) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    if !cols.is_multiple_of(2) || clamp.limit.is_nan() || clamp.limit <= 0.0 {
        bail!("gated_clamped: expected as many gates as values within a bound above 0, found rows of {cols}, {clamp:?}")
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::gated_clamped(x, clamp)?,
        Backend::Tensors(_) => tensors::gated_clamped(x, clamp)?,
    };
    let input = x.clone();
    cx.record([x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::gated_clamped_backward(&input, &dy, clamp)?,
            Backend::Tensors(_) => tensors::gated_clamped_backward(&input, &dy, clamp)?,
        }])
    });
    Ok(y)
}

/// `activation(x)`; on the CPU in the memory of `x`, unless its gradient is asked for.
///
/// # Shape
/// `(T, F)`; returns the same.
pub fn activate(cx: Context<'_>, x: Tensor, kind: Activation) -> Result<Tensor> {
    let y = match cx.backend {
        Backend::Cpu if cx.tracks(&x) => cpu::activate(x.force_contiguous()?, kind)?,
        Backend::Cpu => return cpu::activate(x, kind),
        Backend::Tensors(_) => tensors::activate(&x, kind)?,
    };
    let input = x.clone();
    cx.record([&x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::activate_backward(&input, dy, kind)?,
            Backend::Tensors(_) => tensors::activate_backward(&input, &dy, kind)?,
        }])
    });
    Ok(y)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::to_f32;

    #[test]
    fn slopes_far_out_are_within_f16() {
        let values = [-3e4f32, -300.0, -41.0, 41.0, 300.0, 3e4];
        let x = Tensor::from_slice(&values, (1, 6), &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let dy = x.ones_like().unwrap();
        for kind in Activation::ALL {
            let found = to_f32(&tensors::activate_backward(&x, &dy, kind).unwrap()).unwrap();
            let [x, dy] = [&x, &dy].map(|x| x.to_dtype(DType::F32).unwrap());
            let want = to_f32(&cpu::activate_backward(&x, dy, kind).unwrap()).unwrap();
            for (found, want) in found.iter().zip(&want) {
                assert!((found - want).abs() <= 1e-3 * want.abs().max(1.0), "{kind:?}: {found} {want}");
            }
        }
    }
}
