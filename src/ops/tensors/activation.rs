//! Activation functions by tensor operations.

use candle_core::{DType, Result, Tensor};

use crate::ops::Activation;

pub fn apply(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        // On the way back candle takes the cube, which passes F16's range at 41.
        Activation::GeluTanh => x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype()),
        Activation::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(x),
        // The square passes F16's range at 256.
        Activation::Relu2 => x.to_dtype(DType::F32)?.relu()?.sqr()?.to_dtype(x.dtype()),
    }
}
