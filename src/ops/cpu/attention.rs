//! Attention by our kernels.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::row_op::{Rows, on_cpu, rows_of};
use crate::kernels::{KvHeads, Strided, attend, attend_within, attend_within_backward, zeros};
use crate::ops::Mask;
use crate::ops::attention::no_memory;

/// Rows over a cache that they are appended to.
pub fn over_cache(qkv: [&Tensor; 3], heads: usize, mask: Mask, cache: &mut KvHeads) -> Result<Tensor> {
    let (rows, width) = qkv[0].dims2()?;
    let mut out = zeros(rows * width)?;
    with_strided(qkv, |[q, k, v]| {
        cache.append(k.values, k.stride, v.values, v.stride, rows).map_err(no_memory)?;
        attend(q.values, q.stride, heads, cache, mask, &mut out);
        Ok(())
    })?;
    Tensor::from_vec(out, (rows, width), &Device::Cpu)
}

/// Sequences whose rows lie one after another.
#[derive(Clone)]
pub struct Sequences {
    pub lengths: Arc<[usize]>,
    /// `(H, 2 · longest - 1)`
    pub bias: Option<Arc<[f32]>>,
}

pub fn within(
    qkv: [&Tensor; 3],
    (heads, kv_heads): (usize, usize),
    mask: Mask,
    Sequences { lengths, bias }: &Sequences,
) -> Result<Tensor> {
    let (rows, width) = qkv[0].dims2()?;
    let mut out = zeros(rows * width)?;
    with_strided(qkv, |[q, k, v]| {
        attend_within(q, k, v, heads, kv_heads, lengths, mask, bias.as_deref(), &mut out).map_err(no_memory)
    })?;
    Tensor::from_vec(out, (rows, width), &Device::Cpu)
}

/// The gradients of q, k and v.
pub fn within_backward(
    [q, k, v]: [&Tensor; 3],
    dy: &Tensor,
    heads: (usize, usize),
    mask: Mask,
    Sequences { lengths, .. }: &Sequences,
) -> Result<[Tensor; 3]> {
    let mut out = zeros_like([q, k, v])?;
    with_strided([q, k, v, dy], |[q, k, v, dy]| {
        let out = out.each_mut().map(Vec::as_mut_slice);
        attend_within_backward(q, k, v, dy, heads, lengths, mask, out).map_err(no_memory)
    })?;
    let [dq, dk, dv] = out;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
}

/// Room for the gradient of each.
pub fn zeros_like<const N: usize>(tensors: [&Tensor; N]) -> Result<[Vec<f32>; N]> {
    let mut rooms = [const { Vec::new() }; N];
    for (room, tensor) in rooms.iter_mut().zip(tensors) {
        *room = zeros(tensor.elem_count())?;
    }
    Ok(rooms)
}

/// Lends the rows of CPU tensors.
pub fn with_strided<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([Strided<'_>; N]) -> Result<R>) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut rows = Vec::with_capacity(N);
    for (storage, layout) in &storages {
        let Rows { values, stride, .. } = rows_of(on_cpu(storage)?, layout)?;
        rows.push(Strided { values, stride });
    }
    work(std::array::from_fn(|i| rows[i]))
}
