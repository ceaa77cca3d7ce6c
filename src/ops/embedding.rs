//! Token ids to vectors.

use candle_core::{Device, Result, Tensor, bail};

use super::Matrix;

/// Row `ids[t]` of the table for each token, times `scale`.
///
/// # Shape
/// `table`: `(V, C)`; returns `(T, C)`.
///
/// # Errors
/// If an id is not below `V`: the caller checks ids, and names the token.
pub fn embedding(table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= table.outputs()) {
        bail!("token id {id} is outside a vocabulary of {}", table.outputs())
    }
    match table {
        Matrix::Packed(packed) => {
            let mut rows = vec![0f32; ids.len() * packed.cols()];
            for (row, &id) in rows.chunks_exact_mut(packed.cols()).zip(ids) {
                packed.row(id as usize, row);
                if scale != 1.0 {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            }
            Tensor::from_vec(rows, (ids.len(), packed.cols()), &Device::Cpu)
        }
        Matrix::Tensor(table) => {
            let ids = Tensor::new(ids, table.device())?; // U32: Metal's gather reads nothing else
            let x = table.index_select(&ids, 0)?;
            if scale == 1.0 { Ok(x) } else { x * f64::from(scale) }
        }
    }
}
