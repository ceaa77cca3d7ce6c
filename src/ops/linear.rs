//! The product with a weight matrix and its low-rank changes, and with a set of vectors.

use candle_core::{Device, Result, Storage, Tensor, bail};

use super::cpu::linear::{new_product_on_cpu, product_on_cpu};
use super::cpu::row_op::{rows_of, with_rows};
use super::fault;
use super::tape::{Context, Gradients};
use super::{Delta, Matrix, Trainable, Vector, to_f32};
use crate::kernels::{Packed, StoredType, Use, install, matmul, matmul_transposed_add, scale_softcap};

/// A weight matrix `(N, C)`, its bias `(N)`, and what adapters change.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub weight: &'a Matrix,
    pub bias: Option<&'a Vector>,
    pub deltas: &'a [Delta],
    pub trained: &'a [Trainable],
}

/// `y = x Wᵀ + b`, and what the changes add. The matrix itself is frozen: it gets no gradient.
///
/// # Shape
/// `x`: `(T, C)`; returns `(T, N)`.
///
/// # Errors
/// If a gradient is asked for through a change that is not in training.
pub fn linear(cx: Context<'_>, x: &Tensor, product: Product<'_>) -> Result<Tensor> {
    let Product { weight, bias, deltas, trained } = product;
    let (rows, _) = x.dims2()?;
    let (y, inner) = match weight {
        Matrix::Packed(packed) => {
            let bias = bias.map(Vector::cpu).transpose()?;
            let outputs = packed.rows();
            let (y, inner) = with_rows(x, |x| {
                let mut y = new_product_on_cpu(&x, rows, packed, bias, deltas)?;
                let inner = trained.iter().map(|change| change.add_on_cpu(&x, &mut y, outputs)).collect::<Result<Vec<_>>>()?;
                Ok((y, inner))
            })?;
            (Tensor::from_vec(y, (rows, outputs), &Device::Cpu)?, inner)
        }
        Matrix::Tensor(weight) => {
            fault::product()?;
            let x = x.contiguous()?;
            let plain = x.matmul(&weight.t()?)?;
            let mut y = match bias {
                Some(bias) => plain.broadcast_add(&bias.tensor()?.to_dtype(plain.dtype())?)?,
                None => plain.clone(),
            };
            for delta in deltas {
                y = (y + delta.tensor(&x, &plain)?)?;
            }
            for change in trained {
                y = (y + change.tensor(&x, weight.dims()[0])?)?;
            }
            (y, Vec::new())
        }
    };
    let Some(tape) = cx.tape.filter(|_| cx.tracks(x) || !trained.is_empty()) else { return Ok(y) };
    if !deltas.is_empty() {
        bail!("linear: a gradient was asked for through an adapter that is not in training")
    }
    let way_back = Back {
        x: x.clone(),
        x_tracked: cx.tracks(x),
        weight: weight.clone(),
        trained: trained.to_vec(),
        inner,
        backend: cx.backend.clone(),
    };
    let id = y.id();
    tape.push([&y], move |gradients| match gradients.take(id) {
        Some(dy) => way_back.run(&dy, gradients),
        None => Ok(()),
    });
    Ok(y)
}

/// What the way back through a product needs.
struct Back {
    x: Tensor,
    x_tracked: bool,
    weight: Matrix,
    trained: Vec<Trainable>,
    /// On the CPU, of each change in training.
    inner: Vec<Vec<f32>>,
    backend: super::Backend,
}

impl Back {
    fn run(self, dy: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let Self { x, x_tracked, weight, trained, inner, backend } = self;
        let (rows, inputs) = x.dims2()?;
        let dx = match &weight {
            Matrix::Packed(packed) => {
                let mut dx = x_tracked.then(|| vec![0f32; rows * inputs]);
                with_rows(dy, |dy| {
                    for (change, inner) in trained.iter().zip(&inner) {
                        let gradient = with_rows(&x, |x| change.back_on_cpu(&x, inner, &dy, dx.as_deref_mut()))?;
                        gradients.trained.insert(change.number(), gradient);
                    }
                    if let Some(dx) = &mut dx {
                        matmul_transposed_add(dy.values, dy.stride, packed, dx);
                    }
                    Ok(())
                })?;
                dx.map(|dx| Tensor::from_vec(dx, (rows, inputs), &Device::Cpu)).transpose()?
            }
            Matrix::Tensor(weight) => {
                let dy = dy.contiguous()?;
                let mut dx = if x_tracked { Some(dy.matmul(weight)?) } else { None };
                for change in &trained {
                    let (gradient, of_change) = change.back_by_tensors(&x, &dy)?;
                    gradients.trained.insert(change.number(), gradient);
                    dx = dx.map(|dx| dx + of_change).transpose()?;
                }
                dx
            }
        };
        dx.map_or(Ok(()), |dx| gradients.add(x.id(), dx, &backend))
    }
}

/// The product with the output matrix, read back: `y · scale`, then `cap · tanh(y / cap)` where there is a cap.
///
/// # Shape
/// `x`: `(T, C)`; `out` becomes `T · N` values in F32, on the CPU in the memory it has where that is
/// enough: a vocabulary is half a megabyte, and it is needed for every token.
pub fn logits(
    backend: &super::Backend,
    x: &Tensor,
    product: Product<'_>,
    scale: f32,
    cap: Option<f32>,
    out: &mut Vec<f32>,
) -> Result<()> {
    if let Matrix::Packed(packed) = product.weight {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("logits: operands on two devices") };
        let rows = rows_of(storage, layout)?;
        out.resize(layout.dims()[0] * packed.rows(), 0.0);
        product_on_cpu(&rows, packed, product.bias.map(Vector::cpu).transpose()?, product.deltas, out)?;
    } else {
        *out = to_f32(&linear(Context::forward(backend), x, product)?)?;
    }
    if scale != 1.0 || cap.is_some() {
        scale_softcap(out, scale, cap);
    }
    Ok(())
}

/// Scalar products with a fixed set of vectors, on the CPU.
pub struct Products(Packed);

impl Products {
    /// `vectors`: `(N, C)`, row-major. `None` if there is no memory for a copy.
    pub fn new(vectors: &[f32], cols: usize) -> Option<Self> {
        let mut packed = Packed::new(vectors.len() / cols, cols, StoredType::F32, Use::Product)?;
        for (i, row) in vectors.chunks_exact(cols).enumerate() {
            let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
            packed.fill(i, &bytes, StoredType::F32);
        }
        Some(Self(packed))
    }

    /// # Shape
    /// `rows`: `(T, C)`; `out`: `(T, N)`.
    pub fn with(&self, rows: &[f32], out: &mut [f32]) {
        install(|| matmul(rows, self.0.cols(), &self.0, None, out));
    }
}
