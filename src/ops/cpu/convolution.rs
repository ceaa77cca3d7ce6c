//! The short convolution by our kernels.

use candle_core::{Device, Result, Tensor};

use super::attention::Sequences;
use super::row_op::{row_op, with_rows};
use crate::kernels::{ConvMemory, Strided, Taps, convolve, convolve_within, convolve_within_backward, zeros};
use crate::ops::attention::no_memory;
use crate::ops::{Convolution, Vector};

fn taps(by: &Convolution) -> Result<Taps<'_>> {
    let bias = by.bias.as_ref().map(Vector::slice).transpose()?;
    Ok(Taps { weight: by.weight.slice()?, bias, channels: by.channels })
}

pub fn behind(x: &Tensor, by: &Convolution, memory: &mut ConvMemory) -> Result<Tensor> {
    let (taps, mut out) = (taps(by)?, zeros(x.elem_count())?);
    with_rows(x, |x| convolve(taps, Strided::from(&x), memory, &mut out).map_err(no_memory))?;
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

pub fn within(x: &Tensor, by: &Convolution, sequences: &Sequences) -> Result<Tensor> {
    let taps = taps(by)?;
    row_op("convolution", x, by.channels, |x, out| {
        convolve_within(taps, Strided::from(&x), &sequences.lengths, out);
        Ok(())
    })
}

/// The gradient of `x`.
pub fn within_backward(dy: &Tensor, by: &Convolution, sequences: &Sequences) -> Result<Tensor> {
    let taps = taps(by)?;
    row_op("convolution backward", dy, by.channels, |dy, out| {
        convolve_within_backward(taps, Strided::from(&dy), &sequences.lengths, out);
        Ok(())
    })
}
