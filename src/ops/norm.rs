//! Root-mean-square norm and layer norm, of a tensor and of a sum.

use candle_core::{Result, Tensor, bail};

use super::cpu::norm as cpu;
use super::tensors::norm as tensors;
use super::{Backend, Context, NormKind, Vector};

/// How groups of `width` values are normalised: whole rows, or each head of a row.
///
/// # Shape
/// `weight`: `(width)`, or `(groups · width)` where each head has its own, `bias`: `(width)`.
///
/// # Source
/// Zhang and Sennrich 2019, eq. 4, <https://arxiv.org/abs/1910.07467>; Ba et al. 2016, <https://arxiv.org/abs/1607.06450>.
#[derive(Clone)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f32,
    pub width: usize,
    pub weight: Option<Vector>,
    pub bias: Option<Vector>,
}

/// The normalised rows.
///
/// # Shape
/// `x`: `(T, groups · width)`; returns the shape and dtype of `x`. Statistics are F32.
pub fn norm(cx: Context<'_>, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    if !cols.is_multiple_of(norm.width) {
        bail!("norm: expected rows of groups of {}, found {cols} values", norm.width)
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::forward(x, norm)?,
        Backend::Tensors(_) => tensors::forward(x, norm)?,
    };
    let (input, norm) = (x.clone(), norm.clone());
    cx.record([x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::backward(&input, dy, &norm)?,
            Backend::Tensors(_) => tensors::backward(&input, &dy, &norm)?,
        }])
    });
    Ok(y)
}

/// The same where there is a norm.
pub fn optional_norm(cx: Context<'_>, x: Tensor, by: Option<&Norm>) -> Result<Tensor> {
    match by {
        Some(by) => norm(cx, &x, by),
        None => Ok(x),
    }
}

/// `x + scale · y`, normalised where there is a norm; on the CPU in the memory of `y`, which no clone of it may use. Where `y`
/// is a part of another tensor, or `x` lies in its memory, it is copied.
///
/// # Shape
/// `(T, C)` each; returns the same.
pub fn add_scaled(cx: Context<'_>, x: &Tensor, y: Tensor, scale: f32, after: Option<&Norm>) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("add_scaled: expected two of one shape, found {:?} and {:?}", x.dims(), y.dims())
    }
    let tracked = cx.tracks(x) || cx.tracks(&y);
    let added = y.clone();
    let sum = match cx.backend {
        Backend::Cpu if !tracked => return cpu::add_scaled(x, y, scale, after),
        // The backward pass through a norm needs what went into it.
        Backend::Cpu => cpu::add_scaled(x, y, scale, None)?,
        Backend::Tensors(_) => tensors::add_scaled(x, &y, scale)?,
    };
    cx.record([x, &added], &sum, move |dy, _| {
        // Two tensors, not one twice: each is changed where it is on the way on.
        let of_added = if scale == 1.0 { dy.force_contiguous()? } else { (&dy * f64::from(scale))? };
        Ok([dy, of_added])
    });
    after.map_or(Ok(sum.clone()), |after| norm(cx, &sum, after))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::to_f32;

    #[test]
    fn a_sum_changes_nothing_that_is_held() {
        for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
            let cx = Context::forward(&backend);
            let ones = || Tensor::ones((4, 6), DType::F32, &Device::Cpu).unwrap();
            let sum = |x: &Tensor, y: Tensor| to_f32(&add_scaled(cx, x, y, 2.0, None).unwrap()).unwrap();
            let x = ones();
            let again = x.reshape((4, 6)).unwrap();
            assert_ne!(x.id(), again.id());
            assert_eq!(sum(&again, x.clone()), [3.0; 24], "one memory, read and written");
            assert_eq!(sum(&again.narrow(0, 0, 2).unwrap(), x.narrow(0, 2, 2).unwrap()), [3.0; 12], "two parts of one");
            assert_eq!(sum(&ones().narrow(0, 0, 2).unwrap(), x.narrow(0, 2, 2).unwrap()), [3.0; 12], "a part");
            assert_eq!(to_f32(&x).unwrap(), [1.0; 24]);
            assert_eq!(sum(&x, ones()), [3.0; 24]);
        }
    }
}
