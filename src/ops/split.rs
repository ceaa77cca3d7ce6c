//! Parts of rows, and bounds of their values.

use candle_core::{Result, Tensor, bail};

use super::cpu::split as cpu;
use super::tensors::split as tensors;
use super::{Backend, Context};

/// Columns of rows, cut into parts of `widths`: views.
///
/// # Shape
/// `x`: `(T, Σ widths)`.
pub fn split<const N: usize>(cx: Context<'_>, x: &Tensor, widths: [usize; N]) -> Result<[Tensor; N]> {
    let (rows, cols) = x.dims2()?;
    if widths.iter().sum::<usize>() != cols {
        bail!("split: expected rows of parts of {widths:?}, found {cols} values")
    }
    let mut parts = Vec::with_capacity(N);
    let mut start = 0;
    for width in widths {
        parts.push(x.narrow(1, start, width)?);
        start += width;
    }
    let parts: [Tensor; N] = std::array::from_fn(|i| parts[i].clone());
    if let Some(tape) = cx.tape.filter(|_| cx.tracks(x)) {
        let (id, ids, backend) = (x.id(), parts.each_ref().map(Tensor::id), cx.backend.clone());
        let (dtype, device) = (x.dtype(), x.device().clone());
        tape.push(parts.each_ref(), move |gradients| {
            let mut of_parts = Vec::with_capacity(N);
            for (id, width) in ids.into_iter().zip(widths) {
                let none = || Tensor::zeros((rows, width), dtype, &device);
                of_parts.push(gradients.take_from(id).map_or_else(none, Ok)?);
            }
            gradients.add_to(id, Tensor::cat(&of_parts, 1)?, &backend)
        });
    }
    Ok(parts)
}

/// Values within `±bound`.
///
/// # Shape
/// `(T, C)`; returns the same, in memory of its own.
pub fn clip(cx: Context<'_>, x: &Tensor, bound: f32) -> Result<Tensor> {
    if bound.is_nan() || bound < 0.0 {
        bail!("clip: expected a bound of at least 0, found {bound}")
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::clip(x, bound)?,
        Backend::Tensors(_) => tensors::clip(x, bound)?,
    };
    let input = x.clone();
    cx.record([x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::clip_backward(&input, dy, bound)?,
            Backend::Tensors(_) => tensors::clip_backward(&input, &dy, bound)?,
        }])
    });
    Ok(y)
}
