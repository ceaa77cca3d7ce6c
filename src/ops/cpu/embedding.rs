//! Rows of a table on the CPU.

use candle_core::{Device, Result, Tensor};

use crate::kernels::{Packed, zeros};

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
