//! Activation functions of torch on any device: few values, which are read back for it.

use candle_core::{Result, Tensor};

use crate::ops::{TorchActivation, to_f32};

pub fn activate(x: &Tensor, kind: TorchActivation) -> Result<Tensor> {
    let mut values = to_f32(x)?;
    values.iter_mut().for_each(|x| *x = kind.value(*x));
    Tensor::from_vec(values, x.shape(), x.device())
}
