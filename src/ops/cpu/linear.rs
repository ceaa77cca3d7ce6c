//! The product with a weight matrix by our kernels.

use candle_core::{Device, Result, Tensor};

use super::low_rank;
use super::row_op::{Rows, with_rows};
use crate::kernels::{Arithmetic, Epilogue, MatmulWeight, Packed, matmul, matmul_new, matmul_transposed_add, zeros};
use crate::ops::{AdaptedLinear, Gradient, LowRankDeltas, Matrix, fault};

/// The outputs, and what the backward pass of the deltas needs. What is differentiated computes in F32: gradients are those of what
/// quantised weights stand for.
pub fn forward(x: &Tensor, product: AdaptedLinear<'_>, differentiated: bool) -> Result<(Tensor, Vec<Vec<f32>>)> {
    fault::product()?;
    let ((rows, _), weight) = (x.dims2()?, product.weight.cpu()?);
    let operand = operand(weight, differentiated);
    let (y, inner) = with_rows(x, |x| {
        let compute = |epilogue: Epilogue<'_>| matmul_new(x.values, x.stride, operand, epilogue, rows);
        let (mut y, inner) = low_rank::with_epilogue(&x, rows, product, compute)?;
        add_rows(&x, rows, product, &mut y)?;
        Ok((y, inner))
    })?;
    Ok((Tensor::from_vec(y, (rows, weight.rows()), &Device::Cpu)?, inner))
}

/// The outputs, written to `y`.
pub fn product(x: &Tensor, product: AdaptedLinear<'_>, differentiated: bool, y: &mut [f32]) -> Result<()> {
    fault::product()?;
    let ((rows, _), operand) = (x.dims2()?, operand(product.weight.cpu()?, differentiated));
    with_rows(x, |x| {
        low_rank::with_epilogue(&x, rows, product, |epilogue| matmul(x.values, x.stride, operand, epilogue, y))?;
        add_rows(&x, rows, product, y)
    })
}

/// Adds what the rows that are added to some of the matrix give to their outputs.
fn add_rows(x: &Rows<'_>, rows: usize, product: AdaptedLinear<'_>, y: &mut [f32]) -> Result<()> {
    for added in product.deltas.map_or(&[][..], LowRankDeltas::rows) {
        let more = matmul_new(x.values, x.stride, &**added.rows.cpu()?, Epilogue::default(), rows)?;
        let of_rows = y.chunks_exact_mut(product.weight.outputs()).zip(more.chunks_exact(added.ids.len()));
        for (y, more) in of_rows {
            added.ids.iter().zip(more).for_each(|(id, more)| y[*id as usize] += more);
        }
    }
    Ok(())
}

fn operand(weight: &Packed, differentiated: bool) -> MatmulWeight<'_> {
    if differentiated { weight.in_arithmetic(Arithmetic::F32) } else { weight.into() }
}

/// The gradient of `x`, if it is asked for, and that of each delta.
pub fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Matrix,
    (deltas, inner): (Option<&LowRankDeltas>, &[Vec<f32>]),
    x_tracked: bool,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let ((rows, inputs), weight) = (x.dims2()?, weight.cpu()?);
    let mut dx = x_tracked.then(|| zeros(rows * inputs)).transpose()?;
    let of_deltas = with_rows(dy, |dy| {
        let of_deltas = match deltas {
            Some(deltas) => {
                with_rows(x, |x| low_rank::backward(deltas.cpu()?, deltas.each(), (&x, inner), &dy, dx.as_deref_mut()))?
            }
            None => Vec::new(),
        };
        if let Some(dx) = &mut dx {
            matmul_transposed_add(rows, (dy.values, dy.stride), weight, (dx, inputs))?;
        }
        Ok(of_deltas)
    })?;
    Ok((dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?, of_deltas))
}
