//! Bounds of values by tensor operations.

use candle_core::{Result, Tensor};

pub fn clip(x: &Tensor, bound: f32) -> Result<Tensor> {
    x.clamp(-bound, bound)
}

pub fn clip_backward(x: &Tensor, dy: &Tensor, bound: f32) -> Result<Tensor> {
    x.eq(&clip(x, bound)?)?.to_dtype(dy.dtype())? * dy
}
