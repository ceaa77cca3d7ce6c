//! Rows of activations: some of them, and several one after another.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::Context;

/// How many there are.
pub fn row_count(x: &Tensor) -> usize {
    x.dims()[0]
}

/// Neighbouring rows: a view.
pub fn narrow_rows(x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    x.narrow(0, rows.start, rows.len())
}

/// The rows of several one after another.
pub fn stack_rows(parts: &[Tensor]) -> Result<Tensor> {
    match parts {
        [part] => Ok(part.clone()),
        parts => Tensor::cat(parts, 0),
    }
}

/// Some rows, in ascending order.
pub fn select_rows(cx: Context<'_>, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    if rows.windows(2).any(|pair| pair[0] >= pair[1]) || rows.last().is_some_and(|&last| last >= row_count(x)) {
        bail!("select_rows: expected ascending rows below {}, found {rows:?}", row_count(x))
    }
    let neighbours = rows.first().zip(rows.last()).filter(|(first, last)| *last - *first + 1 == rows.len());
    if let (Some((first, last)), false) = (neighbours, cx.tracks(x)) {
        return narrow_rows(x, *first..last + 1);
    }
    let rows = Tensor::new(rows.iter().map(|&row| row as u32).collect::<Vec<_>>(), x.device())?;
    let y = x.contiguous()?.index_select(&rows, 0)?;
    let (shape, dtype, device) = (x.shape().clone(), x.dtype(), x.device().clone());
    cx.record([x], &y, move |dy, _| Ok([Tensor::zeros(shape, dtype, &device)?.index_add(&rows, &dy, 0)?]));
    Ok(y)
}
