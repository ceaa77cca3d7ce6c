//! Sums of experts by our kernels.

use candle_core::{Device, Result, Tensor};

use super::row_op::with_rows;
use crate::kernels::{lane_dot, zeros};
use crate::ops::experts::ExpertRows;

pub fn combine(parts: &[ExpertRows], weights: &Tensor, width: usize) -> Result<Tensor> {
    let count = weights.dims2()?.0;
    let mut sums: Vec<f32> = zeros(count * width)?;
    with_rows(weights, |weights| {
        parts.iter().try_for_each(|ExpertRows { expert, rows, output }| {
            with_rows(output, |output| {
                for (i, row) in rows.iter().enumerate() {
                    let (sum, weight) = (&mut sums[row * width..][..width], weights.row(*row)[*expert]);
                    sum.iter_mut().zip(output.row(i)).for_each(|(sum, x)| *sum += weight * x);
                }
                Ok(())
            })
        })
    })?;
    Tensor::from_vec(sums, (count, width), &Device::Cpu)
}

/// The gradients of each part's output, and of the weights.
pub fn combine_backward(parts: &[ExpertRows], weights: &Tensor, dy: &Tensor) -> Result<(Vec<Tensor>, Tensor)> {
    let ((count, experts), (_, width)) = (weights.dims2()?, dy.dims2()?);
    let (mut of_weights, mut of_parts) = (zeros::<f32>(count * experts)?, Vec::with_capacity(parts.len()));
    with_rows(weights, |weights| {
        with_rows(dy, |dy| {
            for ExpertRows { expert, rows, output } in parts {
                let mut of_output = zeros(rows.len() * width)?;
                with_rows(output, |output| {
                    for (i, row) in rows.iter().enumerate() {
                        let (dy, weight) = (dy.row(*row), weights.row(*row)[*expert]);
                        let to = of_output[i * width..][..width].iter_mut();
                        to.zip(dy).for_each(|(to, x): (&mut f32, _)| *to = weight * x);
                        of_weights[row * experts + expert] = lane_dot(dy, output.row(i), |x| x);
                    }
                    Ok(())
                })?;
                of_parts.push(Tensor::from_vec(of_output, (rows.len(), width), &Device::Cpu)?);
            }
            Ok(())
        })
    })?;
    Ok((of_parts, Tensor::from_vec(of_weights, (count, experts), &Device::Cpu)?))
}
