//! Parts of rows, and bounds of their values.

use candle_core::{Result, Tensor};

use super::tape::{Context, by_candle};

/// Columns of rows, cut into parts of `widths`: views.
///
/// # Shape
/// `x`: `(T, Σ widths)`.
pub fn split<const N: usize>(cx: Context<'_>, x: &Tensor, widths: [usize; N]) -> Result<[Tensor; N]> {
    let mut parts = Vec::with_capacity(N);
    let mut start = 0;
    for width in widths {
        parts.push(x.narrow(1, start, width)?);
        start += width;
    }
    let parts: [Tensor; N] = std::array::from_fn(|i| parts[i].clone());
    if let Some(tape) = cx.tape.filter(|_| cx.tracks(x)) {
        let (id, ids, backend) = (x.id(), parts.each_ref().map(Tensor::id), cx.backend.clone());
        let shapes = parts.each_ref().map(|part| (part.dims2(), part.dtype()));
        tape.push(parts.each_ref(), move |gradients| {
            let mut of_parts = Vec::with_capacity(N);
            for (id, (shape, dtype)) in ids.into_iter().zip(shapes) {
                let none = || Tensor::zeros(shape?, dtype, &backend.device);
                of_parts.push(gradients.take(id).map_or_else(none, Ok)?);
            }
            gradients.add(id, Tensor::cat(&of_parts, 1)?, &backend)
        });
    }
    Ok(parts)
}

/// Values within `±bound`.
pub fn clip(cx: Context<'_>, x: &Tensor, bound: f32) -> Result<Tensor> {
    let clip = move |x: &Tensor| x.clamp(-bound, bound);
    let y = clip(x)?;
    let input = x.clone();
    cx.record([x], &y, move |gradient| by_candle([input], &gradient, |[x]| clip(x)));
    Ok(y)
}
