//! The one leaf: a matrix and its bias, immutable and shared.

use candle_core::{Result, Tensor};

use super::Change;
use crate::ops::{self, Context, Matrix, Product, Vector};

/// `y = x Wᵀ + b`; several stored projections of the same input are one matrix.
#[derive(Clone)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
}

impl Linear {
    /// # Shape
    /// `(T, C)` to `(T, N)`.
    pub fn forward(&self, cx: Context<'_>, x: &Tensor, change: Option<&Change>) -> Result<Tensor> {
        ops::linear(cx, x, self.changed(change))
    }

    /// What a product with a change is made of.
    pub(super) fn changed<'a>(&'a self, change: Option<&'a Change>) -> Product<'a> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        let Some(change) = change else { return Product { weight, bias, deltas: &[], trained: &[] } };
        let (weight, bias) = (change.weight.as_ref().unwrap_or(weight), change.bias.as_ref().or(bias));
        Product { weight, bias, deltas: &change.deltas, trained: &change.trained }
    }
}
