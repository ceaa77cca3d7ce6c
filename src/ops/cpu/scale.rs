//! Rows times a number on the CPU.

use candle_core::{Result, Tensor};

use super::row_op::in_place;

/// In the memory of `x`.
pub fn scale(x: Tensor, factor: f32) -> Result<Tensor> {
    in_place("scale", x, |x, _| x.iter_mut().for_each(|x| *x *= factor))
}
