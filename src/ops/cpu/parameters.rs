//! The numbers of training by our kernels.

use candle_core::Result;

use crate::error::OutOfMemory;
use crate::kernels::AdamW;

pub fn zeros(len: usize) -> Result<Vec<f32>> {
    let mut values = room(len)?;
    values.resize(len, 0.0);
    Ok(values)
}

/// Each part is freed as soon as it is copied.
pub fn concat(parts: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    let mut all = room(parts.iter().map(Vec::len).sum())?;
    parts.into_iter().for_each(|part| all.extend_from_slice(&part));
    Ok(all)
}

fn room(len: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| OutOfMemory { what: format!("{len} values of an adapter") })?;
    Ok(values)
}

pub fn scaled(mut values: Vec<f32>, factor: f32, sum: Option<&Vec<f32>>) -> Vec<f32> {
    values.iter_mut().for_each(|x| *x *= factor);
    if let Some(sum) = sum {
        values.iter_mut().zip(sum).for_each(|(x, sum)| *x += sum);
    }
    values
}

pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

/// Changes values and moments where they are.
pub fn adamw(adam: &AdamW, values: &mut [f32], gradient: &[f32], clip: f32, (first, second): (&mut [f32], &mut [f32])) {
    adam.update(values, gradient, clip, first, second);
}
