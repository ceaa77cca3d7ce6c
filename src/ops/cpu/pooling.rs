//! Pooling by our kernels.

use candle_core::{Device, Result, Tensor};

use super::row_op::{in_place, with_rows};
use crate::kernels::{unit_length, zeros};
use crate::ops::Pooling;

pub fn pool(hidden: &Tensor, lengths: &[usize], skip: usize, kinds: &[Pooling]) -> Result<Tensor> {
    let (_, width) = hidden.dims2()?;
    let mut pooled = zeros(lengths.len() * kinds.len() * width)?;
    with_rows(hidden, |hidden| {
        let mut left = hidden.packed()?;
        for (out, len) in pooled.chunks_exact_mut(kinds.len() * width).zip(lengths) {
            let rows;
            (rows, left) = left.split_at(len * width);
            kinds.iter().zip(out.chunks_exact_mut(width)).for_each(|(kind, out)| apply(*kind, rows, skip, out));
        }
        Ok(())
    })?;
    Tensor::from_vec(pooled, (lengths.len(), kinds.len() * width), &Device::Cpu)
}

pub fn zero_rows(rows: usize, cols: usize) -> Result<Tensor> {
    Tensor::from_vec(zeros::<f32>(rows * cols)?, (rows, cols), &Device::Cpu)
}

pub fn unit_rows(x: Tensor) -> Result<Tensor> {
    in_place("unit_rows", x, |x, width| x.chunks_exact_mut(width).for_each(unit_length))
}

/// Pools one sequence.
///
/// # Shape
/// `hidden`: `(T, C)`, of which the first `skip` rows are left out (a prompt); `out`: `C`. Of nothing the result is zero, but for `Cls`,
/// which then takes the first row.
pub fn apply(kind: Pooling, hidden: &[f32], skip: usize, out: &mut [f32]) {
    let width = out.len();
    out.fill(0.0);
    let rows = || hidden.chunks_exact(width).enumerate().skip(skip);
    let count = rows().count() as f32;
    match kind {
        Pooling::Cls => {
            if let Some(row) = rows().map(|(_, row)| row).next().or_else(|| hidden.chunks_exact(width).next()) {
                out.copy_from_slice(row);
            }
        }
        Pooling::Last => {
            if let Some((_, row)) = rows().last() {
                out.copy_from_slice(row);
            }
        }
        Pooling::Max => {
            for (i, (_, row)) in rows().enumerate() {
                for (y, x) in out.iter_mut().zip(row) {
                    // NaN is larger than all, as in torch.
                    if i == 0 || *x > *y || x.is_nan() {
                        *y = *x;
                    }
                }
            }
        }
        Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean => {
            let mut total = 0.0;
            for (t, row) in rows() {
                let weight = if kind == Pooling::WeightedMean { (t + 1) as f32 } else { 1.0 };
                total += weight;
                for (y, x) in out.iter_mut().zip(row) {
                    *y += weight * x;
                }
            }
            let divisor = if kind == Pooling::MeanSqrtLen { count.sqrt() } else { total };
            if divisor > 0.0 {
                out.iter_mut().for_each(|y| *y /= divisor);
            }
        }
    }
}
