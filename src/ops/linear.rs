//! The product with a weight matrix and its low-rank changes, and with a set of vectors.

use candle_core::{Result, Tensor, bail};

use super::cpu::linear as cpu;
use super::tensors::linear as tensors;
use super::{Backend, Context, LowRankDeltas, Matrix, On, Vector, to_f32};
use crate::error::OutOfMemory;
use crate::kernels::{Epilogue, Packed, Use, install, matmul, scale_softcap};

/// A weight matrix `(N, C)`, its bias `(N)`, and what adapters change.
#[derive(Clone, Copy)]
pub struct AdaptedLinear<'a> {
    pub weight: &'a Matrix,
    pub bias: Option<&'a Vector>,
    pub deltas: Option<&'a LowRankDeltas>,
}

impl AdaptedLinear<'_> {
    /// The rows of `x`, if they are what the matrix takes.
    pub(super) fn rows_of(&self, x: &Tensor) -> Result<usize> {
        let ((rows, cols), inputs) = (x.dims2()?, self.weight.inputs());
        if cols != inputs {
            bail!("linear: expected rows of {inputs} values, found {cols}")
        }
        Ok(rows)
    }
}

/// `y = x Wᵀ + b`, and what the deltas add. The matrix itself is frozen: it gets no gradient.
///
/// # Shape
/// `x`: `(T, C)`; returns `(T, N)`.
///
/// # Errors
/// If a gradient is asked for through a delta that is not in training.
pub fn linear(cx: Context<'_>, x: &Tensor, product: AdaptedLinear<'_>) -> Result<Tensor> {
    product.rows_of(x)?;
    let AdaptedLinear { weight, deltas, .. } = product;
    let (y, inner) = match cx.backend {
        Backend::Cpu => cpu::forward(x, product, cx.tape.is_some()).map(|(y, inner)| (y, On::Cpu(inner)))?,
        Backend::Tensors(_) => tensors::forward(x, product).map(|(y, inner)| (y, On::Tensors(inner)))?,
    };
    let is_trained = || deltas.is_some_and(|deltas| deltas.each().iter().any(|delta| delta.number.is_some()));
    let Some(tape) = cx.tape.filter(|_| cx.tracks(x) || is_trained()) else { return Ok(y) };
    let numbers = deltas.map(LowRankDeltas::trained).transpose()?.unwrap_or_default();
    let (id, x, weight, deltas) = (y.id(), x.clone(), weight.clone(), deltas.cloned());
    let (x_tracked, backend) = (cx.tracks(&x), cx.backend.clone());
    tape.push([&y], move |gradients| {
        let Some(dy) = gradients.take_from(id) else { return Ok(()) };
        let (dx, of_deltas) = match &inner {
            On::Cpu(inner) => cpu::backward(&x, &dy, &weight, (deltas.as_ref(), inner), x_tracked)?,
            On::Tensors(inner) => tensors::backward(&x, &dy, &weight, (deltas.as_ref(), inner), x_tracked)?,
        };
        gradients.trained.extend(numbers.into_iter().zip(of_deltas));
        dx.map_or(Ok(()), |dx| gradients.add(&x, dx, &backend))
    });
    Ok(y)
}

/// The product with the output matrix, read back: `y · scale`, then `cap · tanh(y / cap)` where there is a cap.
///
/// # Shape
/// `x`: `(T, C)`; `out` becomes `T · N` values in F32, on the CPU in the memory it has where that is
/// enough: a vocabulary is half a megabyte, and it is needed for every token.
pub fn logits(
    backend: &Backend,
    x: &Tensor,
    product: AdaptedLinear<'_>,
    scale: f32,
    cap: Option<f32>,
    out: &mut Vec<f32>,
) -> Result<()> {
    let rows = product.rows_of(x)?;
    match backend {
        Backend::Cpu => {
            let len = rows * product.weight.outputs();
            let no_memory = |_| OutOfMemory { what: format!("{len} logits") };
            out.try_reserve_exact(len.saturating_sub(out.len())).map_err(no_memory)?;
            out.resize(len, 0.0);
            cpu::product(x, product, false, out)?;
        }
        Backend::Tensors(_) => *out = to_f32(&tensors::forward(x, product)?.0)?,
    }
    if scale != 1.0 || cap.is_some() {
        scale_softcap(out, scale, cap);
    }
    Ok(())
}

/// Scalar products with a fixed set of vectors, on the CPU.
pub struct DotProducts(Packed);

impl DotProducts {
    /// `vectors`: `(N, C)`, row-major. `None` if there is no memory for a copy.
    pub fn new(vectors: &[f32], cols: usize) -> Option<Self> {
        Packed::from_f32(vectors, cols, Use::Product).map(Self)
    }

    /// # Shape
    /// `rows`: `(T, C)`; `out`: `(T, N)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn with(&self, rows: &[f32], out: &mut [f32]) -> Result<()> {
        Ok(install(|| matmul(rows, self.0.cols(), &self.0, Epilogue::default(), out))?)
    }
}
