//! Attention by our kernels.

use candle_core::{Result, Storage, Tensor, bail};

use super::row_op::{Rows, rows_of};
use crate::kernels::Strided;

/// Lends the rows of CPU tensors.
pub fn with_strided<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([Strided<'_>; N]) -> Result<R>) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut rows = Vec::with_capacity(N);
    for (storage, layout) in &storages {
        let Storage::Cpu(storage) = &**storage else { bail!("attention: sequences on the CPU met activations on a GPU") };
        let Rows { values, stride, .. } = rows_of(storage, layout)?;
        rows.push(Strided { values, stride });
    }
    work(std::array::from_fn(|i| rows[i]))
}
