//! Rows of a table by tensor operations.

use candle_core::{DType, Result, Tensor};

use crate::ops::{DeviceMatrix, ParameterValues};

pub fn forward(table: &DeviceMatrix, ids: &[u32], scale: f32) -> Result<Tensor> {
    let ids = Tensor::new(ids, table.device())?; // U32: Metal's gather reads nothing else
    let x = match table {
        DeviceMatrix::Dense(table) => table.index_select(&ids, 0)?,
        DeviceMatrix::Coded(table) => return table.lookup(&ids, scale),
    };
    if scale == 1.0 { Ok(x) } else { x * f64::from(scale) }
}

/// `x + inner A`, in the type of `x`.
pub fn add_product(x: &Tensor, inner: &Tensor, a: &Tensor) -> Result<Tensor> {
    let product = inner.to_dtype(DType::F32)?.matmul(&a.to_dtype(DType::F32)?)?;
    x + product.to_dtype(x.dtype())?
}

/// The gradients of `A` and of `B`, `(V, R)`, whose looked up rows times `factor` are `inner`.
pub fn backward(
    dy: &Tensor,
    inner: &Tensor,
    a: &Tensor,
    (ids, vocab): (&[u32], usize),
    factor: f32,
) -> Result<(ParameterValues, ParameterValues)> {
    let ids = Tensor::new(ids, a.device())?;
    let (dy, inner, a) = (dy.force_contiguous()?.to_dtype(DType::F32)?, inner.to_dtype(DType::F32)?, a.to_dtype(DType::F32)?);
    let of_inner = (dy.matmul(&a.t()?)? * f64::from(factor))?;
    let of_b = Tensor::zeros((vocab, a.dims2()?.0), DType::F32, a.device())?.index_add(&ids, &of_inner, 0)?;
    let flat = |x: Tensor| x.force_contiguous()?.flatten_all().map(ParameterValues::Tensors);
    Ok((flat(inner.t()?.matmul(&dy)?)?, flat(of_b)?))
}
