//! Weights where the arithmetic is: packed panels on the CPU, a tensor on a GPU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};

use super::{Backend, On};
use crate::kernels::{Packed, Quant, StoredType, Use, widen};

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
    pub fn computed_type(&self) -> StoredType {
        match self {
            Self::Cpu(_) => StoredType::F32,
            Self::Tensors(tensor) => match tensor.dtype() {
                DType::F16 => StoredType::F16,
                DType::BF16 => StoredType::BF16,
                _ => StoredType::F32,
            },
        }
    }
}

/// A matrix that is being read, row block by row block.
pub enum MatrixBuilder {
    Packed(Packed),
    Bytes { rows: usize, cols: usize, stored: StoredType, bytes: Vec<u8>, device: Device },
}

impl MatrixBuilder {
    /// Room for `rows · cols` weights; `None` if there is no memory for them.
    pub fn new(rows: usize, cols: usize, stored: StoredType, purpose: Use, backend: &Backend) -> Option<Self> {
        let Backend::Tensors(device) = backend else {
            return Packed::new(rows, cols, stored, purpose).map(Self::Packed);
        };
        let len = rows.checked_mul(cols)?.checked_mul(stored.size())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        Some(Self::Bytes { rows, cols, stored, bytes, device: device.clone() })
    }

    /// The bytes that `rows · cols` weights take on a device.
    pub fn bytes(rows: usize, cols: usize, stored: StoredType, purpose: Use, backend: &Backend) -> u64 {
        match backend {
            Backend::Cpu => Packed::bytes(rows, cols, stored, purpose),
            Backend::Tensors(_) => rows as u64 * cols as u64 * stored.size() as u64,
        }
    }

    /// The same for a matrix that is quantised, by our kernels.
    pub fn quantized(rows: usize, cols: usize, quant: Quant) -> Option<Self> {
        Packed::quantized(rows, cols, quant).map(Self::Packed)
    }

    /// The bytes that `rows · cols` quantised weights take.
    pub fn quantized_bytes(rows: usize, cols: usize, quant: Quant) -> u64 {
        Packed::quantized_bytes(rows, cols, quant)
    }

    /// Adds whole rows, in order, `first` being the first of them; `false` if a value does not fit what it is kept in.
    pub fn fill(&mut self, first: usize, values: &[u8], from: StoredType) -> bool {
        match self {
            Self::Packed(packed) => packed.fill(first, values, from),
            Self::Bytes { stored, bytes, .. } if *stored == from => {
                bytes.extend_from_slice(values);
                true
            }
            // A dtype change happens on the CPU, before the upload.
            Self::Bytes { stored, bytes, .. } => {
                let mut fits = true;
                for x in widen(values, from) {
                    match stored {
                        StoredType::F32 => bytes.extend_from_slice(&x.to_le_bytes()),
                        StoredType::BF16 => bytes.extend_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
                        StoredType::F16 => {
                            let y = half::f16::from_f32(x);
                            fits &= y.is_finite() || !x.is_finite();
                            bytes.extend_from_slice(&y.to_le_bytes());
                        }
                    }
                }
                fits
            }
        }
    }

    /// The finished matrix, on its device.
    pub fn finish(self) -> Result<Matrix> {
        match self {
            Self::Packed(packed) => Ok(Matrix::Cpu(Arc::new(packed))),
            Self::Bytes { rows, cols, stored, bytes, device } => {
                Ok(Matrix::Tensors(Tensor::from_raw_buffer(&bytes, dtype(stored), &[rows, cols], &device)?))
            }
        }
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

/// candle's name for a stored type.
pub fn dtype(stored: StoredType) -> DType {
    match stored {
        StoredType::F32 => DType::F32,
        StoredType::F16 => DType::F16,
        StoredType::BF16 => DType::BF16,
    }
}

/// Lends a tensor's values as F32, row-major: where they are if they are on the CPU, else a copy.
pub fn with_f32<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(read(&values[from..to]));
    }
    drop(storage);
    Ok(read(&to_f32(x)?))
}

/// Reads a tensor back as F32, row-major.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    // `to_vec` would download the whole storage behind a view.
    x.to_dtype(DType::F32)?.force_contiguous()?.flatten_all()?.to_vec1()
}
