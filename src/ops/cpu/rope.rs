//! Rotary position embedding by our kernel.

use candle_core::{Result, Tensor};

use super::row_op::row_op;
use crate::kernels;

pub struct Angles {
    /// `(T, half)`
    pub cos: Vec<f32>,
    /// `(T, half)`
    pub sin: Vec<f32>,
    pub half: usize,
}

impl Angles {
    pub fn inverse(&self) -> Self {
        Self { cos: self.cos.clone(), sin: self.sin.iter().map(|x| -x).collect(), half: self.half }
    }
}

pub fn rotate(x: &Tensor, head_dim: usize, adjacent: bool, angles: &Angles) -> Result<Tensor> {
    let ((_, cols), Angles { cos, sin, half }) = (x.dims2()?, angles);
    row_op("rope", x, cols, |x, out| {
        kernels::rotate(x.values, x.stride, cols / head_dim, head_dim, adjacent, cos, sin, *half, out);
        Ok(())
    })
}
