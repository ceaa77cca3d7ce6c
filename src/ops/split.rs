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
    let parts = cut(cx, x, widths.to_vec())?;
    Ok(std::array::from_fn(|i| parts[i].clone()))
}

/// The same in so many parts of one width.
///
/// # Shape
/// `x`: `(T, count · width)`; returns `(T, width)` each.
pub fn split_evenly(cx: Context<'_>, x: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let (_, cols) = x.dims2()?;
    if count == 0 || !cols.is_multiple_of(count) {
        bail!("split: expected rows of {count} equal parts, found {cols} values")
    }
    cut(cx, x, vec![cols / count; count])
}

fn cut(cx: Context<'_>, x: &Tensor, widths: Vec<usize>) -> Result<Vec<Tensor>> {
    let (rows, cols) = x.dims2()?;
    if widths.iter().sum::<usize>() != cols {
        bail!("split: expected rows of parts of {widths:?}, found {cols} values")
    }
    let mut parts = Vec::with_capacity(widths.len());
    let mut start = 0;
    for width in &widths {
        parts.push(x.narrow(1, start, *width)?);
        start += width;
    }
    if let Some(tape) = cx.tape.filter(|_| cx.tracks(x)) {
        let (id, ids, backend) = (x.id(), parts.iter().map(Tensor::id).collect::<Vec<_>>(), cx.backend.clone());
        let (dtype, device) = (x.dtype(), x.device().clone());
        tape.push(&parts, move |gradients| {
            let mut of_parts = Vec::with_capacity(ids.len());
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
