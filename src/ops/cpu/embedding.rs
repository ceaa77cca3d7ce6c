//! Rows of a table on the CPU.

use candle_core::{Device, Result, Tensor};

use super::row_op::with_rows;
use crate::kernels::{Epilogue, Packed, matmul, matmul_transposed_add, outer_sum, zeros};
use crate::ops::ParameterValues;

pub fn forward(table: &Packed, ids: &[u32], scale: f32) -> Result<Tensor> {
    let mut rows = zeros(ids.len() * table.cols())?;
    for (row, &id) in rows.chunks_exact_mut(table.cols()).zip(ids) {
        table.row(id as usize, row);
        if scale != 1.0 {
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Tensor::from_vec(rows, (ids.len(), table.cols()), &Device::Cpu)
}

/// `x + inner A`
///
/// # Shape
/// `x`: `(T, C)`; `inner`: `(T, R)`; `a`: `(R, C)`.
pub fn add_product(x: Tensor, inner: &Tensor, a: &Packed) -> Result<Tensor> {
    let (count, cols) = x.dims2()?;
    let mut y = zeros(count * cols)?;
    with_rows(&x, |x| {
        y.chunks_exact_mut(cols).enumerate().for_each(|(t, y)| y.copy_from_slice(x.row(t)));
        Ok(())
    })?;
    with_rows(inner, |inner| Ok(matmul_transposed_add(count, (inner.values, inner.stride), a, (&mut y, cols))?))?;
    Tensor::from_vec(y, (count, cols), &Device::Cpu)
}

/// The gradients of `A` and of `B`, `(V, R)`, whose looked up rows times `factor` are `inner`.
pub fn backward(
    dy: &Tensor,
    inner: &Tensor,
    a: &Packed,
    (ids, vocab): (&[u32], usize),
    factor: f32,
) -> Result<(ParameterValues, ParameterValues)> {
    let (rank, cols) = (a.rows(), a.cols());
    let (mut of_a, mut of_b) = (zeros(rank * cols)?, zeros::<f32>(vocab * rank)?);
    let mut of_inner = zeros(ids.len() * rank)?;
    with_rows(dy, |dy| {
        with_rows(inner, |inner| {
            outer_sum(ids.len(), (inner.values, inner.stride), (dy.values, dy.stride), cols, &mut of_a);
            Ok(())
        })?;
        Ok(matmul(dy.values, dy.stride, a, Epilogue::default(), &mut of_inner)?)
    })?;
    for (&id, row) in ids.iter().zip(of_inner.chunks_exact(rank)) {
        let to = &mut of_b[id as usize * rank..][..rank];
        to.iter_mut().zip(row).for_each(|(to, x)| *to += factor * x);
    }
    Ok((ParameterValues::Cpu(of_a), ParameterValues::Cpu(of_b)))
}
