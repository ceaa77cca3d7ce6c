//! The numbers of training by tensor operations: all parameters are one tensor, so that a step is a dozen launches and not a dozen
//! for each matrix.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::{AdamW, Coefficients};
use crate::ops::to_f32;

pub fn new(values: Vec<f32>, device: &Device) -> Result<Tensor> {
    let len = values.len();
    Tensor::from_vec(values, len, device)
}

pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    Tensor::cat(parts, 0)
}

pub fn matrix(values: &Tensor, range: Range<usize>, cols: usize) -> Result<Tensor> {
    values.narrow(0, range.start, range.len())?.reshape((range.len() / cols, cols))
}

pub fn scaled(values: &Tensor, factor: f32, sum: Option<&Tensor>) -> Result<Tensor> {
    let values = (values * f64::from(factor))?;
    sum.map_or_else(|| Ok(values.clone()), |sum| &values + sum)
}

/// Sums of blocks on the device, in F32 of numbers that are at most 1, and of all blocks here.
pub fn norm(values: &Tensor) -> Result<f64> {
    const BLOCK: usize = 1024;
    let largest: f32 = values.abs()?.max_all()?.to_scalar()?;
    let unit = if largest.is_finite() && largest > 0.0 { largest } else { 1.0 };
    let squares = (values / f64::from(unit))?.sqr()?;
    let len = squares.elem_count();
    let squares = squares.pad_with_zeros(0, 0, len.next_multiple_of(BLOCK) - len)?.reshape(((), BLOCK))?;
    let sums = to_f32(&squares.sum(1)?)?;
    Ok(f64::from(unit) * sums.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// Values and moments after a step: the formula of the kernel, in its order.
pub fn adamw(
    adam: &AdamW,
    values: &Tensor,
    gradient: &Tensor,
    clip: f32,
    (first, second): (&Tensor, &Tensor),
) -> Result<[Tensor; 3]> {
    let Coefficients { keep, first_weight, second_keep, second_weight, step_size, second_root, epsilon } = adam.coefficients();
    let times = |x: &Tensor, factor: f32| x * f64::from(factor);
    let gradient = times(&gradient.to_dtype(DType::F32)?, clip)?;
    let difference = (&gradient - first)?;
    let first = if first_weight < 0.5 {
        (first + times(&difference, first_weight)?)?
    } else {
        (&gradient - times(&difference, 1.0 - first_weight)?)?
    };
    let square = (times(&gradient, second_weight)? * &gradient)?;
    let second = (times(second, second_keep)? + square)?.minimum(f64::from(f32::MAX))?;
    let root = (second.sqrt()? / f64::from(second_root))?;
    let change = (times(&first, step_size)? / (root + f64::from(epsilon))?)?;
    Ok([(times(values, keep)? - change)?, first, second])
}
