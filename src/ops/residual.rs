//! Sums of the residual stream.

use candle_core::{Result, Tensor, bail};

use super::Backend;
use super::row_op::{row_op, rows_of};
use crate::kernels;

/// `x + scale · y`.
///
/// # Shape
/// `(T, C)` each; returns the same.
pub fn add_scaled(backend: &Backend, x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
    if !backend.kernels {
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
