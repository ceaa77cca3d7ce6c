//! Scans by our kernels.

use candle_core::{Device, Result, Tensor};

use super::attention::{Sequences, with_strided, zeros_like};
use super::row_op::{in_place_from, row_op};
use crate::kernels::{self, Decaying, ScanInputs, ScanMemory, ScanShape, Strided, scan_within_backward, zeros};
use crate::ops::attention::no_memory;
use crate::ops::{Decay, Vector};

fn decaying(by: &Decay) -> Result<Decaying<'_>> {
    let rate = by.rate.as_ref().map(Vector::slice).transpose()?;
    Ok(Decaying { bias: by.bias.slice()?, rate, limits: by.limits })
}

pub fn decay(x: &Tensor, by: &Decay) -> Result<Tensor> {
    let by = decaying(by)?;
    row_op("decay", x, x.dims2()?.1, |x, out| {
        kernels::decay(Strided::from(&x), by, out);
        Ok(())
    })
}

/// In the memory of `dy`.
pub fn decay_backward(x: &Tensor, dy: Tensor, by: &Decay) -> Result<Tensor> {
    let by = decaying(by)?;
    in_place_from("decay backward", dy, x, |x, dy, _| {
        kernels::decay_backward(Strided::from(&x), by, dy);
        Ok(())
    })
}

fn inputs<'a>([q, k, v, g, beta]: [Strided<'a>; 5], skip: Option<&'a [f32]>) -> ScanInputs<'a> {
    ScanInputs { q, k, v, g, beta, skip }
}

pub fn behind(all: [&Tensor; 5], skip: Option<&Vector>, memory: &mut ScanMemory) -> Result<Tensor> {
    let (skip, mut out) = (skip.map(Vector::slice).transpose()?, zeros(all[2].elem_count())?);
    with_strided(all, |all| kernels::scan(inputs(all, skip), memory, &mut out).map_err(no_memory))?;
    Tensor::from_vec(out, all[2].shape(), &Device::Cpu)
}

pub fn within(all: [&Tensor; 5], shape: ScanShape, skip: Option<&Vector>, sequences: &Sequences) -> Result<Tensor> {
    let (skip, mut out) = (skip.map(Vector::slice).transpose()?, zeros(all[2].elem_count())?);
    with_strided(all, |all| kernels::scan_within(inputs(all, skip), shape, &sequences.lengths, &mut out).map_err(no_memory))?;
    Tensor::from_vec(out, all[2].shape(), &Device::Cpu)
}

/// The gradients of q, k, v, g and beta.
pub fn within_backward(
    all: [&Tensor; 5],
    dy: &Tensor,
    shape: ScanShape,
    skip: Option<&Vector>,
    sequences: &Sequences,
) -> Result<[Tensor; 5]> {
    let ([q, k, v, g, beta], skip) = (all, skip.map(Vector::slice).transpose()?);
    let mut out = zeros_like(all)?;
    with_strided([q, k, v, g, beta, dy], |[q, k, v, g, beta, dy]| {
        let out = out.each_mut().map(Vec::as_mut_slice);
        scan_within_backward(inputs([q, k, v, g, beta], skip), dy, shape, &sequences.lengths, out).map_err(no_memory)
    })?;
    let [dq, dk, dv, dg, dbeta] = out;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?, tensor(dg, g)?, tensor(dbeta, beta)?])
}
