//! Weights where the arithmetic is: packed panels on the CPU, a tensor on a GPU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::Backend;
use crate::kernels::{Format, Packed, Panels, Use};

/// A weight matrix `(outputs, inputs)`; immutable, shared by clones.
#[derive(Clone)]
pub enum Matrix {
    Packed(Arc<Packed>),
    Tensor(Tensor),
}

impl Matrix {
    /// `N`
    pub fn outputs(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.rows(),
            Self::Tensor(tensor) => tensor.dims()[0],
        }
    }

    /// `C`
    pub fn inputs(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.cols(),
            Self::Tensor(tensor) => tensor.dims()[1],
        }
    }

    /// Whether two are one in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Packed(a), Self::Packed(b)) => Arc::ptr_eq(a, b),
            (Self::Tensor(a), Self::Tensor(b)) => a.id() == b.id(),
            _ => false,
        }
    }

    /// Some rows in F32, row-major, on the CPU.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Packed(packed) => {
                let mut values = vec![0f32; rows.len() * packed.cols()];
                for (out, row) in values.chunks_exact_mut(packed.cols()).zip(rows) {
                    packed.row(row, out);
                }
                Ok(values)
            }
            Self::Tensor(tensor) => to_f32(&tensor.narrow(0, rows.start, rows.len())?),
        }
    }

    /// The type that arithmetic with this matrix has: F32 by our kernels, the tensor's own on a GPU.
    pub fn computed_type(&self) -> Format {
        match self {
            Self::Packed(_) => Format::F32,
            Self::Tensor(tensor) => match tensor.dtype() {
                DType::F16 => Format::F16,
                DType::BF16 => Format::BF16,
                _ => Format::F32,
            },
        }
    }
}

/// A matrix that is being read, row block by row block.
pub struct MatrixBuilder {
    packed: Packed,
    /// Where it becomes a tensor; `None` = by our kernels.
    device: Option<Device>,
}

impl MatrixBuilder {
    /// Room for `rows · cols` weights; `None` if there is no memory for them.
    pub fn new(rows: usize, cols: usize, format: Format, purpose: Use, backend: &Backend) -> Option<Self> {
        let packed = Packed::new(rows, cols, format, layout(purpose, backend))?;
        Some(Self { packed, device: (!backend.kernels).then(|| backend.device.clone()) })
    }

    /// The bytes that `rows · cols` weights take on a device.
    pub fn bytes(rows: usize, cols: usize, format: Format, purpose: Use, backend: &Backend) -> u64 {
        Packed::bytes(rows, cols, format, layout(purpose, backend))
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them; `false` if a value does not fit what
    /// it is kept in.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        self.packed.fill(first, bytes, from)
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        self.packed.fill_f32(first, values)
    }

    /// The finished matrix, on its device.
    pub fn finish(self) -> Result<Matrix> {
        let Some(device) = self.device else { return Ok(Matrix::Packed(Arc::new(self.packed))) };
        let shape = (self.packed.rows(), self.packed.cols());
        Ok(Matrix::Tensor(match self.packed.into_panels() {
            Panels::F32(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::F16(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::BF16(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::Q8_0(_) => bail!("a quantised weight met tensor operations"),
        }))
    }
}

/// A tensor is row after row, as a table for lookups.
fn layout(purpose: Use, backend: &Backend) -> Use {
    if backend.kernels { purpose } else { Use::Lookup }
}

/// A small weight (norm, bias): always F32.
#[derive(Clone)]
pub enum Vector {
    Cpu(Arc<[f32]>),
    Tensor(Tensor),
}

impl Vector {
    pub fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        if backend.kernels {
            return Ok(Self::Cpu(values.into()));
        }
        let len = values.len();
        Ok(Self::Tensor(Tensor::from_vec(values, len, &backend.device)?))
    }

    /// The values on the CPU.
    pub fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(values) => Ok(values.to_vec()),
            Self::Tensor(tensor) => to_f32(tensor),
        }
    }

    pub(super) fn cpu(&self) -> Result<&[f32]> {
        match self {
            Self::Cpu(values) => Ok(values),
            Self::Tensor(_) => bail!("a weight on a GPU met activations on the CPU"),
        }
    }

    pub(super) fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Cpu(_) => bail!("a weight on the CPU met activations on a GPU"),
        }
    }
}

/// The type that tensors compute in with weights of a format.
pub fn dtype(format: Format) -> DType {
    match format {
        Format::F16 => DType::F16,
        Format::BF16 => DType::BF16,
        _ => DType::F32,
    }
}

/// Reads a tensor back as F32, row-major.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    // `to_vec` would download the whole storage behind a view.
    x.to_dtype(DType::F32)?.force_contiguous()?.flatten_all()?.to_vec1()
}
