//! Weights where the arithmetic is: packed panels on the CPU, a tensor on a GPU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::{Backend, On};
use crate::error::OutOfMemory;
use crate::kernels::{Arithmetic, Format, Packed, Panels, Use};

/// A weight matrix `(outputs, inputs)`; immutable, shared by clones.
pub type Matrix = On<Arc<Packed>, Tensor>;

impl Matrix {
    /// `N`
    pub fn outputs(&self) -> usize {
        match self {
            Self::Cpu(packed) => packed.rows(),
            Self::Tensors(tensor) => tensor.dims()[0],
        }
    }

    /// `C`
    pub fn inputs(&self) -> usize {
        match self {
            Self::Cpu(packed) => packed.cols(),
            Self::Tensors(tensor) => tensor.dims()[1],
        }
    }

    /// Whether two are one in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu(a), Self::Cpu(b)) => Arc::ptr_eq(a, b),
            (Self::Tensors(a), Self::Tensors(b)) => a.id() == b.id(),
            _ => false,
        }
    }

    /// Whether a backend computes with it as it is.
    pub fn is_for(&self, backend: &Backend) -> bool {
        match (self, backend) {
            (Self::Cpu(_), Backend::Cpu) => true,
            (Self::Tensors(tensor), Backend::Tensors(device)) => tensor.device().same_device(device),
            _ => false,
        }
    }

    /// Some rows in F32, row-major, on the CPU.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(packed) => {
                let mut values = vec![0f32; rows.len() * packed.cols()];
                for (out, row) in values.chunks_exact_mut(packed.cols()).zip(rows) {
                    packed.row(row, out);
                }
                Ok(values)
            }
            Self::Tensors(tensor) => to_f32(&tensor.narrow(0, rows.start, rows.len())?),
        }
    }

    /// The type that arithmetic with this matrix has: F32 by our kernels, the tensor's own on a GPU.
    pub fn computed_type(&self) -> Format {
        match self {
            Self::Cpu(_) => Format::F32,
            Self::Tensors(tensor) => match tensor.dtype() {
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
    backend: Backend,
}

impl MatrixBuilder {
    /// Room for `rows · cols` weights; `None` if there is no memory for them.
    pub fn new(rows: usize, cols: usize, format: Format, purpose: Use, backend: &Backend) -> Option<Self> {
        Self::of_parts(&[(rows, format)], cols, purpose, backend)
    }

    /// Room for rows of these formats, one after another, as one matrix.
    pub fn of_parts(parts: &[(usize, Format)], cols: usize, purpose: Use, backend: &Backend) -> Option<Self> {
        let packed = Packed::of_parts(&computed(parts, backend), cols, layout(purpose, backend))?;
        Some(Self { packed, backend: backend.clone() })
    }

    /// The same for products in this arithmetic.
    pub fn computing_in(self, arithmetic: Arithmetic) -> Self {
        Self { packed: self.packed.computing_in(arithmetic), ..self }
    }

    /// The bytes that they take on a device.
    pub fn bytes(parts: &[(usize, Format)], cols: usize, purpose: Use, backend: &Backend) -> u64 {
        Packed::bytes_of_parts(&computed(parts, backend), cols, layout(purpose, backend))
    }

    /// Whether rows of these formats are kept as they are in one matrix for products.
    pub fn can_hold(parts: &[(usize, Format)]) -> bool {
        Packed::can_hold(parts)
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
        let device = match self.backend {
            Backend::Cpu => return Ok(Matrix::Cpu(Arc::new(self.packed))),
            Backend::Tensors(device) => device,
        };
        let shape = (self.packed.rows(), self.packed.cols());
        Ok(Matrix::Tensors(match self.packed.into_panels() {
            Panels::F32(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::F16(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::BF16(values) => Tensor::from_vec(values, shape, &device)?,
            Panels::Planes(_) | Panels::Blocks(..) => bail!("a quantised weight met tensor operations"),
        }))
    }
}

/// F32 rows of `cols` values on the CPU.
pub(super) fn f32_matrix(values: &[f32], cols: usize) -> Result<Matrix> {
    let packed = Packed::from_f32(values, cols, Use::Product);
    let packed = packed.ok_or_else(|| OutOfMemory { what: format!("{} values of an adapter", values.len()) })?;
    Ok(Matrix::Cpu(Arc::new(packed)))
}

/// What a backend keeps the rows of each format in: tensors are of numbers.
fn computed(parts: &[(usize, Format)], backend: &Backend) -> Vec<(usize, Format)> {
    let format = |format: Format| match backend {
        Backend::Tensors(_) if format.is_quantised() => Format::F32,
        _ => format,
    };
    parts.iter().map(|part| (part.0, format(part.1))).collect()
}

/// A tensor is row after row, as a table for lookups.
fn layout(purpose: Use, backend: &Backend) -> Use {
    match backend {
        Backend::Cpu => purpose,
        Backend::Tensors(_) => Use::Lookup,
    }
}

/// A small weight (norm, bias): always F32.
pub type Vector = On<Arc<[f32]>, Tensor>;

impl Vector {
    pub fn new(values: Vec<f32>, backend: &Backend) -> Result<Self> {
        let len = values.len();
        Ok(match backend {
            Backend::Cpu => Self::Cpu(values.into()),
            Backend::Tensors(device) => Self::Tensors(Tensor::from_vec(values, len, device)?),
        })
    }

    /// Whether two are one in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu(a), Self::Cpu(b)) => Arc::ptr_eq(a, b),
            (Self::Tensors(a), Self::Tensors(b)) => a.id() == b.id(),
            _ => false,
        }
    }

    /// The values on the CPU.
    pub fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(values) => Ok(values.to_vec()),
            Self::Tensors(tensor) => to_f32(tensor),
        }
    }

    /// The values that our kernels read.
    pub(super) fn slice(&self) -> Result<&[f32]> {
        self.cpu().map(AsRef::as_ref)
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
