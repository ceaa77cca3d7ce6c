//! The product with a weight matrix and its low-rank changes, and with a set of vectors.

use candle_core::{Result, Storage, Tensor, bail};

use super::low_rank::product_on_cpu;
use super::row_op::{row_op, rows_of};
use super::{Delta, Matrix, Vector, to_f32};
use crate::kernels::{Packed, StoredType, Use, install, matmul, scale_softcap};

/// `y = x Wᵀ + b`, and what the changes add.
///
/// # Shape
/// `x`: `(T, C)`, `weight`: `(N, C)`, `bias`: `(N)`; returns `(T, N)`.
pub fn linear(x: &Tensor, weight: &Matrix, bias: Option<&Vector>, deltas: &[Delta]) -> Result<Tensor> {
    match weight {
        Matrix::Packed(packed) => {
            let bias = bias.map(Vector::cpu).transpose()?;
            row_op("linear", x, packed.rows(), |x, out| product_on_cpu(&x, packed, bias, deltas, out))
        }
        Matrix::Tensor(weight) => {
            let x = x.contiguous()?;
            let plain = x.matmul(&weight.t()?)?;
            let mut y = match bias {
                Some(bias) => plain.broadcast_add(&bias.tensor()?.to_dtype(plain.dtype())?)?,
                None => plain.clone(),
            };
            for delta in deltas {
                y = (y + delta.tensor(&x, &plain)?)?;
            }
            Ok(y)
        }
    }
}

/// The product with the output matrix, read back: `y · scale`, then `cap · tanh(y / cap)` where there is a cap.
///
/// # Shape
/// `x`: `(T, C)`, `weight`: `(V, C)`; `out` becomes `T · V` values in F32, in the memory it has where that is enough: a vocabulary is
/// half a megabyte, and it is needed for every token.
pub fn logits(
    x: &Tensor,
    weight: &Matrix,
    bias: Option<&Vector>,
    deltas: &[Delta],
    scale: f32,
    cap: Option<f32>,
    out: &mut Vec<f32>,
) -> Result<()> {
    if let Matrix::Packed(packed) = weight {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("logits: operands on two devices") };
        let rows = rows_of(storage, layout)?;
        out.resize(layout.dims()[0] * packed.rows(), 0.0);
        product_on_cpu(&rows, packed, bias.map(Vector::cpu).transpose()?, deltas, out)?;
    } else {
        *out = to_f32(&linear(x, weight, bias, deltas)?)?;
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
