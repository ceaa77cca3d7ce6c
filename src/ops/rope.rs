//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::cpu::rope as cpu;
use super::tensors::rope as tensors;
use super::{Backend, Context, On};

/// The cosine and sine of each position's angles, already times the attention factor of the rope kind; clones share them.
pub type Angles = On<Arc<cpu::Angles>, tensors::Angles>;

impl Angles {
    /// # Shape
    /// `cos`, `sin`: `(T, half)`, `half` pairs of each head.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>, half: usize, backend: &Backend) -> Result<Self> {
        let shape = (cos.len() / half, half);
        Ok(match backend {
            Backend::Cpu => Self::Cpu(Arc::new(cpu::Angles { cos, sin, half })),
            Backend::Tensors(device) => Self::Tensors(tensors::Angles {
                cos: Tensor::from_vec(cos, shape, device)?,
                sin: Tensor::from_vec(sin, shape, device)?,
                inverse: false,
            }),
        })
    }

    /// Positions and pairs.
    fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Cpu(angles) => Ok((angles.cos.len() / angles.half, angles.half)),
            Self::Tensors(angles) => angles.cos.dims2(),
        }
    }

    /// The same turns the other way.
    fn inverse(&self) -> Self {
        match self {
            Self::Cpu(angles) => Self::Cpu(Arc::new(angles.inverse())),
            Self::Tensors(angles) => Self::Tensors(angles.inverse()),
        }
    }

    fn rotate(&self, x: &Tensor, head_dim: usize, adjacent: bool) -> Result<Tensor> {
        match self {
            Self::Cpu(angles) => cpu::rotate(x, head_dim, adjacent, angles),
            Self::Tensors(angles) => tensors::rotate(x, head_dim, adjacent, angles),
        }
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
    let ((rows, cols), (positions, half)) = (x.dims2()?, angles.shape()?);
    if rows != positions || !cols.is_multiple_of(head_dim) || 2 * half > head_dim {
        bail!("rope: expected {positions} rows of heads of {head_dim}, {half} pairs each, found ({rows}, {cols})")
    }
    let y = angles.rotate(x, head_dim, adjacent)?;
    let angles = angles.clone();
    // A factor of the angles is a factor of the gradient as well.
    cx.record([x], &y, move |dy, _| Ok([angles.inverse().rotate(&dy, head_dim, adjacent)?]));
    Ok(y)
}
