//! Low-rank changes by our kernels: `A x` before the product, the rest within it.

use candle_core::{Result, bail};

use super::row_op::Rows;
use crate::kernels::{self, Epilogue, LowRankTerm, matmul_new, matmul_transposed_add, outer_sum};
use crate::ops::low_rank::summed_bias;
use crate::ops::{Dropout, Gradient, LowRankDelta, Product, Vector};

/// Lends `compute` what a product with `rows` of `x` ends with; returns of each delta `scale · A dropout(x)` as
/// well.
pub fn with_epilogue<R>(
    x: &Rows<'_>,
    rows: usize,
    product: Product<'_>,
    compute: impl FnOnce(Epilogue<'_>) -> R,
) -> Result<(R, Vec<Vec<f32>>)> {
    let (Product { bias, deltas, .. }, outputs) = (product, product.weight.outputs());
    let inner = deltas.iter().map(|delta| inner(delta, x, rows)).collect::<Result<Vec<_>>>()?;
    let (mut gains, mut low_rank) = (None, Vec::new());
    for (delta, inner) in deltas.iter().zip(&inner) {
        for part in &delta.parts {
            if let Some(gain) = &part.gain {
                let all = &mut gains.get_or_insert_with(|| vec![1f32; outputs])[part.outputs()];
                all.iter_mut().zip(gain.factors.slice()?).for_each(|(all, g)| *all += g - 1.0);
            }
            low_rank.push(LowRankTerm { inner, b: part.product_b().cpu()?, start: part.start });
        }
    }
    let sum = summed_bias(bias, outputs, deltas)?;
    let bias = match &sum {
        Some(sum) => Some(sum.as_slice()),
        None => bias.map(Vector::slice).transpose()?,
    };
    Ok((compute(Epilogue { gain: gains.as_deref(), bias, low_rank: &low_rank }), inner))
}

/// `scale · A dropout(x)`, `(rows, R)`.
fn inner(delta: &LowRankDelta, x: &Rows<'_>, rows: usize) -> Result<Vec<f32>> {
    let a = delta.a.cpu()?;
    if x.cols != a.cols() {
        bail!("adapter: expected rows of {} values, found {}", a.cols(), x.cols)
    }
    let mut inner = with_dropped(delta, x, rows, |x, stride| matmul_new(x, stride, a, Epilogue::default(), rows));
    inner.iter_mut().for_each(|h| *h *= delta.scale);
    Ok(inner)
}

/// The gradient of the matrices; adds to that of `x`, if it is asked for.
pub fn backward(delta: &LowRankDelta, x: &Rows<'_>, inner: &[f32], dy: &Rows<'_>, dx: Option<&mut [f32]>) -> Result<Gradient> {
    let a = delta.a.cpu()?;
    let (rank, inputs) = (a.rows(), a.cols());
    let (rows, outputs) = (inner.len() / rank, delta.parts.iter().map(|part| part.rows.end).max().unwrap_or(0));
    let mut gradient = Gradient { a: vec![0.0; rank * inputs], b: vec![0.0; outputs * rank] };
    if rows == 0 {
        return Ok(gradient);
    }
    let mut of_inner = vec![0f32; rows * rank];
    for part in &delta.parts {
        let dy_part = &dy.values[part.start..];
        matmul_transposed_add(dy_part, dy.stride, part.b.cpu()?, &mut of_inner);
        let n = part.rows.len();
        let mut sums = vec![0f32; rank * n];
        outer_sum(inner, dy_part, dy.stride, n, &mut sums);
        let of_b = &mut gradient.b[part.rows.start * rank..part.rows.end * rank];
        for (o, of_b) in of_b.chunks_exact_mut(rank).enumerate() {
            of_b.iter_mut().zip(sums.iter().skip(o).step_by(n)).for_each(|(of_b, sum)| *of_b = *sum);
        }
    }
    of_inner.iter_mut().for_each(|d| *d *= delta.scale);
    with_dropped(delta, x, rows, |x, stride| outer_sum(&of_inner, x, stride, inputs, &mut gradient.a));
    match (dx, delta.dropout) {
        (Some(dx), None) => matmul_transposed_add(&of_inner, rank, a, dx),
        (Some(dx), Some(Dropout { share, seed })) => {
            let mut of_dropped = vec![0f32; dx.len()];
            matmul_transposed_add(&of_inner, rank, a, &mut of_dropped);
            kernels::dropout(&mut of_dropped, share, seed);
            dx.iter_mut().zip(of_dropped).for_each(|(dx, d)| *dx += d);
        }
        (None, _) => {}
    }
    Ok(gradient)
}

/// Lends `x` as the delta sees it, and the distance of its rows.
fn with_dropped<R>(delta: &LowRankDelta, x: &Rows<'_>, rows: usize, read: impl FnOnce(&[f32], usize) -> R) -> R {
    let Some(Dropout { share, seed }) = delta.dropout else { return read(x.values, x.stride) };
    let mut dropped = Vec::with_capacity(rows * x.cols);
    (0..rows).for_each(|t| dropped.extend_from_slice(x.row(t)));
    kernels::dropout(&mut dropped, share, seed);
    read(&dropped, x.cols)
}
