//! Token ids to vectors.

use candle_core::{Result, Tensor, bail};

use super::Matrix;
use super::cpu::embedding as cpu;
use super::tensors::embedding as tensors;

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
        Matrix::Cpu(table) => cpu::forward(table, ids, scale),
        Matrix::Tensors(table) => tensors::forward(table, ids, scale),
    }
}
