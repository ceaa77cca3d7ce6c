//! The one leaf: a matrix and its bias, immutable and shared.

use candle_core::{Result, Tensor};

use super::Change;
use crate::ops::{self, Delta, Matrix, Vector};

/// `y = x Wᵀ + b`; several stored projections of the same input are one matrix.
#[derive(Clone)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
}

impl Linear {
    /// # Shape
    /// `(T, C)` to `(T, N)`.
    pub fn forward(&self, x: &Tensor, change: Option<&Change>) -> Result<Tensor> {
        let (weight, bias, deltas) = self.changed(change);
        ops::linear(x, weight, bias, deltas)
    }

    /// What a product with a change is made of.
    pub(super) fn changed<'a>(&'a self, change: Option<&'a Change>) -> (&'a Matrix, Option<&'a Vector>, &'a [Delta]) {
        let Some(change) = change else { return (&self.weight, self.bias.as_ref(), &[]) };
        (change.weight.as_ref().unwrap_or(&self.weight), change.bias.as_ref().or(self.bias.as_ref()), &change.deltas)
    }
}
