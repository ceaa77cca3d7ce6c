//! A norm with its weights.

use candle_core::{Result, Tensor};

use crate::ops::{self, Backend, Vector};

/// Normalises groups of `width` values.
#[derive(Clone)]
pub struct Norm {
    pub kind: ops::Norm,
    pub eps: f32,
    pub width: usize,
    pub weight: Option<Vector>,
    pub bias: Option<Vector>,
}

impl Norm {
    /// # Shape
    /// `(T, groups · width)`; returns the same.
    pub fn forward(&self, backend: &Backend, x: &Tensor) -> Result<Tensor> {
        ops::norm(backend, x, self.of())
    }

    /// As an operation takes it.
    pub fn of(&self) -> ops::NormOf<'_> {
        let Self { kind, eps, width, weight, bias } = self;
        ops::NormOf { kind: *kind, eps: *eps, width: *width, weight: weight.as_ref(), bias: bias.as_ref() }
    }
}
