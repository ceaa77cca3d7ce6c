//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::Backend;
use super::cpu::row_op::row_op;
use super::tape::Context;
use crate::kernels::rotate;

/// The cosine and sine of each position's angles, already times the attention factor of the rope kind; clones share them.
#[derive(Clone)]
pub struct Angles(Arc<Values>);

struct Values {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Pairs a head.
    half: usize,
    /// The same on a GPU, `(T, half)`.
    tensors: Option<(Tensor, Tensor)>,
}

impl Angles {
    /// # Shape
    /// `cos`, `sin`: `(T, half)`.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>, half: usize, backend: &Backend) -> Result<Self> {
        let tensors = if backend.kernels {
            None
        } else {
            let shape = (cos.len() / half, half);
            Some((Tensor::from_slice(&cos, shape, &backend.device)?, Tensor::from_slice(&sin, shape, &backend.device)?))
        };
        Ok(Self(Arc::new(Values { cos, sin, half, tensors })))
    }

    /// The same turns the other way.
    fn back(&self) -> Result<Self> {
        let Values { cos, sin, half, tensors } = &*self.0;
        let tensors = tensors.as_ref().map(|(cos, sin)| Ok::<_, candle_core::Error>((cos.clone(), sin.neg()?))).transpose()?;
        Ok(Self(Arc::new(Values { cos: cos.clone(), sin: sin.iter().map(|x| -x).collect(), half: *half, tensors })))
    }
}

/// Rotates the first `2 · half` values of each head; value `i` is paired with `i + half`, or with its neighbour if `adjacent`.
///
/// # Shape
/// `x`: `(T, H · D)`; returns the same.
///
/// # Source
/// Su et al. 2021, <https://arxiv.org/abs/2104.09864>.
pub fn rope(cx: Context<'_>, x: &Tensor, head_dim: usize, adjacent: bool, angles: &Angles) -> Result<Tensor> {
    let y = turned(x, head_dim, adjacent, angles)?;
    let angles = angles.clone();
    // A factor of the angles is a factor of the gradient as well.
    cx.record([x], &y, move |gradient| Ok([turned(&gradient, head_dim, adjacent, &angles.back()?)?]));
    Ok(y)
}

fn turned(x: &Tensor, head_dim: usize, adjacent: bool, angles: &Angles) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let angles = &*angles.0;
    let (heads, half) = (cols / head_dim, angles.half);
    let Some((cos, sin)) = &angles.tensors else {
        return row_op("rope", x, cols, |x, out| {
            rotate(x.values, x.stride, heads, head_dim, adjacent, &angles.cos, &angles.sin, half, out);
            Ok(())
        });
    };
    let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
    let x = x.reshape((rows, heads, head_dim))?.transpose(0, 1)?.unsqueeze(0)?; // (1, H, T, D)
    let turned = x.narrow(3, 0, 2 * half)?.force_contiguous()?;
    let turned = if adjacent {
        candle_nn::rotary_emb::rope_i(&turned, &cos, &sin)?
    } else {
        candle_nn::rotary_emb::rope(&turned, &cos, &sin)?
    };
    let y = if 2 * half == head_dim { turned } else { Tensor::cat(&[&turned, &x.narrow(3, 2 * half, head_dim - 2 * half)?], 3)? };
    y.squeeze(0)?.transpose(0, 1)?.force_contiguous()?.reshape((rows, cols))
}
