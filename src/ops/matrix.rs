//! Weights where the arithmetic is: packed panels on the CPU, a tensor or codes on a GPU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::gpu::{CodedBuilder, can_code};
use super::{Backend, DeviceMatrix, On};
use crate::error::OutOfMemory;
use crate::kernels::{Arithmetic, Format, Packed, Panels, Use, zeros};

/// A weight matrix `(outputs, inputs)`; immutable, shared by clones.
pub type Matrix = On<Arc<Packed>, DeviceMatrix>;

impl Matrix {
    /// `N`
    pub fn outputs(&self) -> usize {
        match self {
            Self::Cpu(packed) => packed.rows(),
            Self::Tensors(matrix) => matrix.dims().0,
        }
    }

    /// `C`
    pub fn inputs(&self) -> usize {
        match self {
            Self::Cpu(packed) => packed.cols(),
            Self::Tensors(matrix) => matrix.dims().1,
        }
    }

    /// How rows are kept: so many of each format, by its name, one after another. Those of a GPU's kernels have names of their own.
    pub fn formats(&self) -> Vec<(usize, &'static str)> {
        match self {
            Self::Cpu(packed) => packed.formats().into_iter().map(|(rows, format)| (rows, format.name())).collect(),
            Self::Tensors(matrix) => matrix.formats(),
        }
    }

    /// Whether two are one in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu(a), Self::Cpu(b)) => Arc::ptr_eq(a, b),
            (Self::Tensors(a), Self::Tensors(b)) => a.is_same(b),
            _ => false,
        }
    }

    /// Whether a backend computes with it as it is.
    pub fn is_for(&self, backend: &Backend) -> bool {
        match (self, backend) {
            (Self::Cpu(_), Backend::Cpu) => true,
            (Self::Tensors(matrix), Backend::Tensors(device)) => matrix.device().same_device(device),
            _ => false,
        }
    }

    /// Some rows in F32, row-major, on the CPU.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(packed) => {
                let mut values = zeros(rows.len() * packed.cols())?;
                for (out, row) in values.chunks_exact_mut(packed.cols()).zip(rows) {
                    packed.row(row, out);
                }
                Ok(values)
            }
            Self::Tensors(matrix) => to_f32(&matrix.rows(rows)?),
        }
    }

    /// The type that arithmetic with this matrix has: F32 by our kernels, that of tensors on a GPU.
    pub fn computed_type(&self) -> Format {
        match self {
            Self::Cpu(_) => Format::F32,
            Self::Tensors(matrix) => match matrix.dtype() {
                DType::F16 => Format::F16,
                DType::BF16 => Format::BF16,
                _ => Format::F32,
            },
        }
    }
}

/// A matrix that is being read, row block by row block.
pub struct MatrixBuilder {
    rows: Rows,
    backend: Backend,
}

enum Rows {
    /// Of our kernels on the CPU, or of a tensor.
    Packed(Packed),
    /// Of a GPU's kernels.
    Coded(CodedBuilder),
}

/// What rows are kept for.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub purpose: Use,
    /// What tensors compute in, and what quantised rows become that no kernel of the backend decodes.
    pub computed: Format,
}

impl MatrixBuilder {
    /// Room for `rows · cols` weights; `None` if there is no memory for them.
    pub fn new(rows: usize, cols: usize, format: Format, purpose: Use, backend: &Backend) -> Option<Self> {
        Self::of_parts(&[(rows, format)], cols, Kept { purpose, computed: format }, backend).ok().flatten()
    }

    /// Room for rows of these formats, one after another, as one matrix; `None` if there is no memory for them.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn of_parts(parts: &[(usize, Format)], cols: usize, kept: Kept, backend: &Backend) -> Result<Option<Self>> {
        let parts = computed(parts, cols, kept, backend);
        let rows = match backend {
            Backend::Tensors(device) if is_quantised(&parts) => {
                CodedBuilder::new(&parts, cols, dtype(kept.computed), device)?.map(Rows::Coded)
            }
            _ => Packed::of_parts(&parts, cols, layout(kept.purpose, backend)).map(Rows::Packed),
        };
        Ok(rows.map(|rows| Self { rows, backend: backend.clone() }))
    }

    /// The same for products in this arithmetic.
    pub fn computing_in(self, arithmetic: Arithmetic) -> Self {
        match self.rows {
            Rows::Packed(packed) => Self { rows: Rows::Packed(packed.computing_in(arithmetic)), ..self },
            Rows::Coded(_) => self,
        }
    }

    /// The bytes that they take on a device.
    pub fn bytes(parts: &[(usize, Format)], cols: usize, kept: Kept, backend: &Backend) -> u64 {
        let parts = computed(parts, cols, kept, backend);
        match backend {
            Backend::Tensors(_) if is_quantised(&parts) => CodedBuilder::bytes(&parts, cols),
            _ => Packed::bytes_of_parts(&parts, cols, layout(kept.purpose, backend)),
        }
    }

    /// Whether rows of these formats are kept as they are in one matrix for products on the CPU: what is quantised on loading is the same
    /// on every device.
    pub fn can_hold(parts: &[(usize, Format)]) -> bool {
        Packed::can_hold(parts)
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them; `false` if a value does not fit what
    /// it is kept in.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        match &mut self.rows {
            Rows::Packed(packed) => packed.fill(first, bytes, from),
            Rows::Coded(coded) => coded.fill(first, bytes, from),
        }
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        match &mut self.rows {
            Rows::Packed(packed) => packed.fill_f32(first, values),
            Rows::Coded(coded) => coded.fill_f32(first, values),
        }
    }

    /// The finished matrix, on its device.
    pub fn finish(self) -> Result<Matrix> {
        Ok(match (self.rows, self.backend) {
            (Rows::Packed(packed), Backend::Cpu) => Matrix::Cpu(Arc::new(packed)),
            (Rows::Packed(packed), Backend::Tensors(device)) => Matrix::Tensors(DeviceMatrix::Dense(uploaded(packed, &device)?)),
            (Rows::Coded(coded), _) => Matrix::Tensors(DeviceMatrix::Coded(Arc::new(coded.finish()?))),
        })
    }
}

/// A matrix of numbers as a tensor.
pub(super) fn uploaded(packed: Packed, device: &Device) -> Result<Tensor> {
    let shape = (packed.rows(), packed.cols());
    match packed.into_panels() {
        Panels::F32(values) => Tensor::from_vec(values, shape, device),
        Panels::F16(values) => Tensor::from_vec(values, shape, device),
        Panels::BF16(values) => Tensor::from_vec(values, shape, device),
        Panels::Planes(_) | Panels::Blocks(..) => bail!("a quantised weight met tensor operations"),
    }
}

fn is_quantised(parts: &[(usize, Format)]) -> bool {
    parts.iter().any(|part| part.1.is_quantised())
}

/// F32 rows of `cols` values on the CPU.
pub(super) fn f32_matrix(values: &[f32], cols: usize) -> Result<Matrix> {
    let packed = Packed::from_f32(values, cols, Use::Product);
    let packed = packed.ok_or_else(|| OutOfMemory { what: format!("{} values of an adapter", values.len()) })?;
    Ok(Matrix::Cpu(Arc::new(packed)))
}

/// What a backend keeps the rows of each format in: tensors are numbers of one type.
fn computed(parts: &[(usize, Format)], cols: usize, kept: Kept, backend: &Backend) -> Vec<(usize, Format)> {
    let keeps = |format: Format| match backend {
        Backend::Cpu => true,
        Backend::Tensors(_) => format.is_quantised() && backend.keeps_quantised() && can_code(format, cols),
    };
    parts.iter().map(|(rows, format)| (*rows, if keeps(*format) { *format } else { kept.computed })).collect()
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

/// The bytes of a tensor's values.
pub fn tensor_bytes(x: &Tensor) -> u64 {
    (x.elem_count() * x.dtype().size_in_bytes()) as u64
}

/// Reads a tensor back as F32, row-major.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    // `to_vec` would download the whole storage behind a view.
    x.to_dtype(DType::F32)?.force_contiguous()?.flatten_all()?.to_vec1()
}
