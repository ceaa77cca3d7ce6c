//! The product with a weight matrix by our kernels.

use candle_core::{Device, Result, Tensor};

use super::row_op::{Rows, with_rows};
use crate::kernels::{Packed, matmul, matmul_new, matmul_transposed_add};
use crate::ops::{Delta, Gradient, Matrix, Product, Trainable, Vector, fault};

/// The outputs, and of each change in training what its way back needs.
pub fn forward(x: &Tensor, product: Product<'_>) -> Result<(Tensor, Vec<Vec<f32>>)> {
    fault::product()?;
    let (rows, _) = x.dims2()?;
    let (weight, bias) = (product.weight.cpu()?, product.bias.map(Vector::slice).transpose()?);
    let (y, inner) = with_rows(x, |x| {
        let mut y = matmul_new(x.values, x.stride, weight, bias, rows);
        add_deltas(&x, weight, bias, product.deltas, &mut y)?;
        let add = |change: &Trainable| change.add_on_cpu(&x, &mut y, weight.rows());
        let inner = product.trained.iter().map(add).collect::<Result<_>>()?;
        Ok((y, inner))
    })?;
    Ok((Tensor::from_vec(y, (rows, weight.rows()), &Device::Cpu)?, inner))
}

/// The outputs without changes in training, written to `y`.
pub fn product(x: &Tensor, product: Product<'_>, y: &mut [f32]) -> Result<()> {
    fault::product()?;
    let (weight, bias) = (product.weight.cpu()?, product.bias.map(Vector::slice).transpose()?);
    with_rows(x, |x| {
        matmul(x.values, x.stride, weight, bias, y);
        add_deltas(&x, weight, bias, product.deltas, y)
    })
}

fn add_deltas(x: &Rows<'_>, weight: &Packed, bias: Option<&[f32]>, deltas: &[Delta], y: &mut [f32]) -> Result<()> {
    let mut plain = Vec::new();
    if deltas.iter().any(|delta| delta.gain.is_some()) {
        plain = y.to_vec();
        if let Some(bias) = bias {
            plain.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y -= b));
        }
    }
    deltas.iter().try_for_each(|delta| delta.add_on_cpu(x, &plain, weight.rows(), y))
}

/// The gradient of `x`, if it is asked for, and that of each change.
pub fn backward(
    x: &Tensor,
    dy: &Tensor,
    weight: &Matrix,
    (trained, inner): (&[Trainable], &[Vec<f32>]),
    x_tracked: bool,
) -> Result<(Option<Tensor>, Vec<Gradient>)> {
    let weight = weight.cpu()?;
    let mut dx = x_tracked.then(|| vec![0f32; x.elem_count()]);
    let mut of_trained = Vec::with_capacity(trained.len());
    with_rows(dy, |dy| {
        for (change, inner) in trained.iter().zip(inner) {
            of_trained.push(with_rows(x, |x| change.back_on_cpu(&x, inner, &dy, dx.as_deref_mut()))?);
        }
        if let Some(dx) = &mut dx {
            matmul_transposed_add(dy.values, dy.stride, weight, dx);
        }
        Ok(())
    })?;
    Ok((dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?, of_trained))
}
