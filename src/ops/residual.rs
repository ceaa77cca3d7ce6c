//! Sums of the residual stream, and the last touch on logits.

use candle_core::{DType, Result, Tensor, bail};

use super::row_op::{row_op, rows_of};
use crate::kernels;

/// `x + scale · y`.
///
/// # Shape
/// `(T, C)` each; returns the same.
pub fn add_scaled(x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return if scale == 1.0 { x + y } else { x + (y * f64::from(scale))? };
    }
    let (_, cols) = x.dims2()?;
    let (storage, layout) = y.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { bail!("add_scaled: operands on two devices") };
    let y = rows_of(storage, layout)?;
    let y = y.packed()?;
    row_op("add_scaled", x, cols, |x, out| {
        kernels::add_scaled(x.packed()?, y, scale, cols, out);
        Ok(())
    })
}

/// Logits read back: `x · scale`, then `cap · tanh(x / cap)` where there is a cap.
///
/// # Shape
/// `x`: `(T, V)`; returns `T · V` values in F32.
pub fn scale_softcap(x: &Tensor, scale: f32, cap: Option<f32>) -> Result<Vec<f32>> {
    let mut values = super::to_f32(&x.to_dtype(DType::F32)?)?;
    if scale != 1.0 || cap.is_some() {
        kernels::scale_softcap(&mut values, scale, cap);
    }
    Ok(values)
}
