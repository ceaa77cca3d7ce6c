//! Root-mean-square norm and layer norm, of a tensor and of a sum.

use candle_core::{Result, Storage, Tensor, bail};

use super::cpu::row_op::{in_place, row_op, rows_of, with_rows};
use super::tape::{Context, by_candle};
use super::tensors::norm::by_tensors;
use super::{NormKind, Vector};
use crate::kernels::{self, Normalise};

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

impl Norm {
    fn cpu(&self) -> Result<Normalise<'_>> {
        let Self { kind, eps, width, weight, bias } = self;
        let (weight, bias) = (weight.as_ref().map(Vector::cpu).transpose()?, bias.as_ref().map(Vector::cpu).transpose()?);
        Ok(Normalise { kind: *kind, eps: *eps, width: *width, weight, bias })
    }
}

/// The normalised rows.
///
/// # Shape
/// `x`: `(T, groups · width)`; returns the shape and dtype of `x`. Statistics are F32.
pub fn norm(cx: Context<'_>, x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    let y = if cx.backend.kernels {
        let norm = norm.cpu()?;
        row_op("norm", x, cols, |x, out| {
            kernels::normalise(norm, x.values, x.stride, cols, out);
            Ok(())
        })?
    } else {
        by_tensors(x, norm)?
    };
    if cx.tracks(x) {
        let (input, norm, kernels) = (x.clone(), norm.clone(), cx.backend.kernels);
        cx.record([x], &y, move |gradient| {
            if !kernels {
                return by_candle([input], &gradient, |[x]| by_tensors(x, &norm));
            }
            let norm = norm.cpu()?;
            let back = |dy: &mut [f32], cols| {
                with_rows(&input, |x| {
                    kernels::normalise_back(norm, x.values, x.stride, cols, dy);
                    Ok(())
                })
            };
            Ok([in_place("norm back", gradient, back)?])
        });
    }
    Ok(y)
}

/// `x + scale · y`, normalised where there is a norm; on the CPU in the memory of `y`, which nothing else may use.
///
/// # Shape
/// `(T, C)` each; returns the same.
///
/// # Errors
/// If `x` and `y` are one tensor: it would be read and written at once.
pub fn add_scaled(cx: Context<'_>, x: &Tensor, y: Tensor, scale: f32, after: Option<&Norm>) -> Result<Tensor> {
    let tracked = cx.tracks(x) || cx.tracks(&y);
    // The way back through a norm needs what went into it.
    let (within, behind) = if cx.backend.kernels && !tracked { (after, None) } else { (None, after) };
    let added = y.clone();
    let sum = if cx.backend.kernels {
        if x.id() == y.id() {
            bail!("add_scaled: expected two tensors, found one twice")
        }
        let within = within.map(Norm::cpu).transpose()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("add_scaled: operands on two devices") };
        let x = rows_of(storage, layout)?;
        let x = x.packed()?;
        in_place("add_scaled", y, |y, cols| {
            kernels::add_scaled(x, scale, y, cols, within);
            Ok(())
        })?
    } else if scale == 1.0 {
        (x + y)?
    } else {
        (x + (y * f64::from(scale))?)?
    };
    if tracked {
        cx.record([x, &added], &sum, move |gradient| {
            // Two tensors, not one twice: each is changed where it is on the way on.
            let of_added = if scale == 1.0 { gradient.copy()? } else { (&gradient * f64::from(scale))? };
            Ok([gradient, of_added])
        });
    }
    behind.map_or(Ok(sum.clone()), |behind| norm(cx, &sum, behind))
}
