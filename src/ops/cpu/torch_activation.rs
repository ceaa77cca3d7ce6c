//! Activation functions of torch on the CPU.

use candle_core::{Result, Tensor};

use super::row_op::in_place;
use crate::ops::TorchActivation;

/// In the memory of `x`.
pub fn activate(x: Tensor, kind: TorchActivation) -> Result<Tensor> {
    in_place("torch activation", x, |x, _| x.iter_mut().for_each(|x| *x = kind.value(*x)))
}
