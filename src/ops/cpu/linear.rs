//! The product with a weight matrix by our kernels.

use candle_core::{Result, bail};

use super::row_op::Rows;
use crate::kernels::{Packed, matmul, matmul_new};
use crate::ops::{Delta, fault};

/// Outputs by our kernel: the product, and what the changes add to it.
pub fn product_on_cpu(x: &Rows<'_>, weight: &Packed, bias: Option<&[f32]>, deltas: &[Delta], y: &mut [f32]) -> Result<()> {
    check_product(x, weight)?;
    matmul(x.values, x.stride, weight, bias, y);
    add_on_cpu(x, weight, bias, deltas, y)
}

/// The same in memory of its own.
pub fn new_product_on_cpu(
    x: &Rows<'_>,
    rows: usize,
    weight: &Packed,
    bias: Option<&[f32]>,
    deltas: &[Delta],
) -> Result<Vec<f32>> {
    check_product(x, weight)?;
    let mut y = matmul_new(x.values, x.stride, weight, bias, rows);
    add_on_cpu(x, weight, bias, deltas, &mut y)?;
    Ok(y)
}

pub fn check_product(x: &Rows<'_>, weight: &Packed) -> Result<()> {
    if x.cols != weight.cols() {
        bail!("linear: {} inputs for a matrix of {}", x.cols, weight.cols())
    }
    fault::product()
}

pub fn add_on_cpu(x: &Rows<'_>, weight: &Packed, bias: Option<&[f32]>, deltas: &[Delta], y: &mut [f32]) -> Result<()> {
    let mut plain = Vec::new();
    if deltas.iter().any(|delta| delta.gain.is_some()) {
        plain = y.to_vec();
        if let Some(bias) = bias {
            plain.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y -= b));
        }
    }
    deltas.iter().try_for_each(|delta| delta.add_on_cpu(x, &plain, weight.rows(), y))
}
