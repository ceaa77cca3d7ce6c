//! Root-mean-square norm and layer norm, of a tensor and of a sum.

use candle_core::{DType, Result, Storage, Tensor, bail};

use super::row_op::{in_place, row_op, rows_of};
use super::{Backend, Norm, Vector};
use crate::kernels::{self, Normalise};

/// How groups of `width` values are normalised: whole rows, or each head of a row.
///
/// # Shape
/// `weight`: `(width)`, or `(groups · width)` where each head has its own, `bias`: `(width)`.
///
/// # Source
/// Zhang and Sennrich 2019, eq. 4, <https://arxiv.org/abs/1910.07467>; Ba et al. 2016, <https://arxiv.org/abs/1607.06450>.
#[derive(Clone, Copy)]
pub struct NormOf<'a> {
    pub kind: Norm,
    pub eps: f32,
    pub width: usize,
    pub weight: Option<&'a Vector>,
    pub bias: Option<&'a Vector>,
}

impl<'a> NormOf<'a> {
    fn cpu(self) -> Result<Normalise<'a>> {
        let (weight, bias) = (self.weight.map(Vector::cpu).transpose()?, self.bias.map(Vector::cpu).transpose()?);
        Ok(Normalise { kind: self.kind, eps: self.eps, width: self.width, weight, bias })
    }
}

/// The normalised rows.
///
/// # Shape
/// `x`: `(T, groups · width)`; returns the shape and dtype of `x`. Statistics are F32.
pub fn norm(backend: &Backend, x: &Tensor, norm: NormOf<'_>) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    if backend.kernels {
        let norm = norm.cpu()?;
        return row_op("norm", x, cols, |x, out| {
            kernels::normalise(norm, x.values, x.stride, cols, out);
            Ok(())
        });
    }
    let NormOf { kind, eps, width, weight, bias } = norm;
    // In F32 throughout: in F16 the sum of squares passes 65504 at 4096 values once they reach 4.
    let y = x.to_dtype(DType::F32)?.reshape((rows, cols / width, width))?;
    let y = match kind {
        Norm::Rms => y,
        Norm::Layer => y.broadcast_sub(&y.mean_keepdim(2)?)?,
    };
    let scale = (y.sqr()?.mean_keepdim(2)? + f64::from(eps))?.sqrt()?.recip()?;
    let mut y = y.broadcast_mul(&scale)?;
    if let Some(weight) = weight {
        let weight = weight.tensor()?;
        y = y.broadcast_mul(&weight.reshape((weight.elem_count() / width, width))?)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(bias.tensor()?)?;
    }
    y.reshape((rows, cols))?.to_dtype(x.dtype())
}

/// `x + scale · y`, normalised where there is a norm; on the CPU in the memory of `y`, which nothing else may use.
///
/// # Shape
/// `(T, C)` each; returns the same.
///
/// # Errors
/// If `x` and `y` are one tensor: it would be read and written at once.
pub fn add_scaled(backend: &Backend, x: &Tensor, y: Tensor, scale: f32, after: Option<NormOf<'_>>) -> Result<Tensor> {
    if !backend.kernels {
        let sum = if scale == 1.0 { (x + y)? } else { (x + (y * f64::from(scale))?)? };
        return after.map_or(Ok(sum.clone()), |after| norm(backend, &sum, after));
    }
    if x.track_op() {
        bail!("add_scaled has no backward pass")
    }
    if x.id() == y.id() {
        bail!("add_scaled: expected two tensors, found one twice")
    }
    let after = after.map(NormOf::cpu).transpose()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("add_scaled: operands on two devices") };
    let x = rows_of(storage, layout)?;
    let x = x.packed()?;
    in_place("add_scaled", y, |y, cols| {
        kernels::add_scaled(x, scale, y, cols, after);
        Ok(())
    })
}
