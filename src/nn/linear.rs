//! The one leaf: a matrix and its bias, immutable and shared.

use candle_core::{Result, Tensor};

use crate::ops::{self, Matrix, Vector};

/// `y = x Wᵀ + b`; several stored projections of the same input are one matrix.
#[derive(Clone)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
}

impl Linear {
    /// # Shape
    /// `(T, C)` to `(T, N)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }
}
