//! Rotary position embedding by tensor operations.

use candle_core::{Result, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};

use crate::kernels::gpu::{BatchOps, BatchRotation};

#[derive(Clone)]
pub struct Angles {
    /// `(T, half)`
    pub cos: Tensor,
    /// `(T, half)`
    pub sin: Tensor,
    /// Whether they turn back.
    pub inverse: bool,
}

impl Angles {
    pub fn inverse(&self) -> Self {
        Self { inverse: !self.inverse, ..self.clone() }
    }
}

pub fn rotate(x: &Tensor, head_dim: usize, adjacent: bool, angles: &Angles) -> Result<Tensor> {
    let ((rows, cols), (_, half)) = (x.dims2()?, angles.cos.dims2()?);
    if let Some(batch) = BatchOps::of(x)?.filter(|_| head_dim.is_multiple_of(2)) {
        let Angles { cos, sin, inverse } = angles;
        return batch.rotate(x, BatchRotation { head_dim, adjacent, inverse: *inverse, cos, sin });
    }
    let (cos, sin) = (angles.cos.to_dtype(x.dtype())?, angles.sin.to_dtype(x.dtype())?);
    let x = x.reshape((rows, cols / head_dim, head_dim))?.transpose(0, 1)?.unsqueeze(0)?; // (1, H, T, D)
    let rotated = x.narrow(3, 0, 2 * half)?.force_contiguous()?;
    let rotate = if adjacent { rope_i } else { rope };
    let rotated = rotate(&rotated, &cos, &if angles.inverse { sin.neg()? } else { sin })?;
    let y =
        if 2 * half == head_dim { rotated } else { Tensor::cat(&[&rotated, &x.narrow(3, 2 * half, head_dim - 2 * half)?], 3)? };
    y.squeeze(0)?.transpose(0, 1)?.force_contiguous()?.reshape((rows, cols))
}
