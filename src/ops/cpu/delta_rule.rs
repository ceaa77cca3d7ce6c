//! The gated delta rule by our kernels.

use candle_core::{Device, Result, Tensor};

use super::attention::{Sequences, with_strided, zeros_like};
use super::row_op::{in_place_from, row_op};
use crate::kernels::{self, DeltaInputs, DeltaMemory, DeltaShape, Strided, delta_rule_within_backward, zeros};
use crate::ops::Decay;
use crate::ops::attention::no_memory;

pub fn decay(x: &Tensor, by: &Decay) -> Result<Tensor> {
    let (bias, rate) = (by.bias.slice()?, by.rate.slice()?);
    row_op("decay", x, x.dims2()?.1, |x, out| {
        kernels::decay(Strided::from(&x), bias, rate, out);
        Ok(())
    })
}

/// In the memory of `dy`.
pub fn decay_backward(x: &Tensor, dy: Tensor, by: &Decay) -> Result<Tensor> {
    let (bias, rate) = (by.bias.slice()?, by.rate.slice()?);
    in_place_from("decay backward", dy, x, |x, dy, _| {
        kernels::decay_backward(Strided::from(&x), bias, rate, dy);
        Ok(())
    })
}

fn inputs([q, k, v, g, beta]: [Strided<'_>; 5]) -> DeltaInputs<'_> {
    DeltaInputs { q, k, v, g, beta }
}

pub fn behind(all: [&Tensor; 5], memory: &mut DeltaMemory) -> Result<Tensor> {
    let mut out = zeros(all[2].elem_count())?;
    with_strided(all, |all| kernels::delta_rule(inputs(all), memory, &mut out).map_err(no_memory))?;
    Tensor::from_vec(out, all[2].shape(), &Device::Cpu)
}

pub fn within(all: [&Tensor; 5], shape: DeltaShape, sequences: &Sequences) -> Result<Tensor> {
    let mut out = zeros(all[2].elem_count())?;
    with_strided(all, |all| kernels::delta_rule_within(inputs(all), shape, &sequences.lengths, &mut out).map_err(no_memory))?;
    Tensor::from_vec(out, all[2].shape(), &Device::Cpu)
}

/// The gradients of q, k, v, g and beta.
pub fn within_backward(all: [&Tensor; 5], dy: &Tensor, shape: DeltaShape, sequences: &Sequences) -> Result<[Tensor; 5]> {
    let [q, k, v, g, beta] = all;
    let mut out = zeros_like(all)?;
    with_strided([q, k, v, g, beta, dy], |[q, k, v, g, beta, dy]| {
        let out = out.each_mut().map(Vec::as_mut_slice);
        delta_rule_within_backward(inputs([q, k, v, g, beta]), dy, shape, &sequences.lengths, out).map_err(no_memory)
    })?;
    let [dq, dk, dv, dg, dbeta] = out;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?, tensor(dg, g)?, tensor(dbeta, beta)?])
}
