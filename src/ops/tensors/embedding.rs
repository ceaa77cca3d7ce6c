//! Rows of a table by tensor operations.

use candle_core::{Result, Tensor};

use crate::ops::DeviceMatrix;

pub fn forward(table: &DeviceMatrix, ids: &[u32], scale: f32) -> Result<Tensor> {
    let ids = Tensor::new(ids, table.device())?; // U32: Metal's gather reads nothing else
    let x = match table {
        DeviceMatrix::Dense(table) => table.index_select(&ids, 0)?,
        DeviceMatrix::Coded(table) => return table.lookup(&ids, scale),
    };
    if scale == 1.0 { Ok(x) } else { x * f64::from(scale) }
}
