//! Activation functions, alone and as gates.

use candle_core::{Result, Tensor};

use super::Activation;
use super::cpu::row_op::{Rows, in_place, row_op, with_rows};
use super::tape::{Context, by_candle};
use super::tensors::activation::apply;
use crate::kernels;

/// `activation(gate) · up`.
///
/// # Shape
/// `x`: `(T, 2 · F)`, a row's gate before its up; returns `(T, F)`.
///
/// # Source
/// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
pub fn gated(cx: Context<'_>, x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    let width = cols / 2;
    let kernels = cx.backend.kernels;
    let by_tensors = move |x: &Tensor| {
        apply(&x.narrow(1, 0, width)?.force_contiguous()?, kind)? * x.narrow(1, width, width)?.force_contiguous()?
    };
    let y = if kernels {
        row_op("gated", x, width, |x, out| {
            kernels::gated(kind, x.packed()?, width, out);
            Ok(())
        })?
    } else {
        by_tensors(x)?
    };
    let input = x.clone();
    cx.record([x], &y, move |gradient| {
        if !kernels {
            return by_candle([input], &gradient, |[x]| by_tensors(x));
        }
        let back = |dy: Rows<'_>, dx: &mut [f32]| {
            let dy = dy.packed()?;
            with_rows(&input, |x| {
                kernels::gated_back(kind, x.packed()?, dy, width, dx);
                Ok(())
            })
        };
        Ok([row_op("gated back", &gradient, cols, back)?])
    });
    Ok(y)
}

/// `activation(x)`; on the CPU in the memory of `x`, unless its gradient is asked for.
///
/// # Shape
/// `(T, F)`; returns the same.
pub fn activate(cx: Context<'_>, x: Tensor, kind: Activation) -> Result<Tensor> {
    if !cx.tracks(&x) {
        return activated(cx.backend.kernels, x, kind);
    }
    let kernels = cx.backend.kernels;
    let y = activated(kernels, if kernels { x.copy()? } else { x.clone() }, kind)?;
    let input = x.clone();
    cx.record([&x], &y, move |gradient| {
        if !kernels {
            return by_candle([input], &gradient, |[x]| apply(x, kind));
        }
        let back = |dy: &mut [f32], cols| {
            with_rows(&input, |x| {
                kernels::activate_back(kind, x.packed()?, dy, cols);
                Ok(())
            })
        };
        Ok([in_place("activate back", gradient, back)?])
    });
    Ok(y)
}

fn activated(kernels: bool, x: Tensor, kind: Activation) -> Result<Tensor> {
    if kernels {
        return in_place("activate", x, |x, cols| {
            kernels::activate(kind, x, cols);
            Ok(())
        });
    }
    apply(&x, kind)
}
