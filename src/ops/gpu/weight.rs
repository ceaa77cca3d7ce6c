//! A weight matrix on a device: a tensor, or codes and scales that the GPU's kernels decode.
//!
//! Few rows are multiplied with the codes. For many the matrix is decoded piece by piece, and each piece multiplied by the device's own
//! matrix product: a piece is what such a matrix takes beyond its codes, whatever its size.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Device, Error, Result, Tensor, bail};

use crate::kernels::gpu::{
    DecodedRows, Element, Gpu, GpuFormat, GpuMatrix, GpuSlice, GpuView, GpuWeight, MOST_ROWS, ProductWith,
};
use crate::kernels::{Format, Packed, Use};
use crate::ops::matrix::uploaded;

/// Rows of activations that are multiplied with codes: each reads them again, and decoding a weight takes as long as reading it eight
/// times or so.
const FEW: usize = 8;
/// Values of a piece: 64 MB of 16 bits each. Few in unit tests, whose matrices are small.
const PIECE: usize = if cfg!(test) { 1 << 12 } else { 1 << 25 };

/// A weight matrix `(N, C)` on a device; immutable, shared by clones.
#[derive(Clone)]
pub enum DeviceMatrix {
    Dense(Tensor),
    Coded(Arc<CodedMatrix>),
}

impl DeviceMatrix {
    /// `(N, C)`
    pub fn dims(&self) -> (usize, usize) {
        match self {
            Self::Dense(tensor) => (tensor.dims()[0], tensor.dims()[1]),
            Self::Coded(coded) => (coded.outputs, coded.inputs),
        }
    }

    /// The type of the activations that it is multiplied with.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(tensor) => tensor.dtype(),
            Self::Coded(coded) => coded.dtype,
        }
    }

    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            Self::Coded(coded) => coded.gpu.device(),
        }
    }

    /// Whether two are one in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dense(a), Self::Dense(b)) => a.id() == b.id(),
            (Self::Coded(a), Self::Coded(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The tensor.
    ///
    /// # Errors
    /// If it is none.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Coded(_) => bail!("expected a matrix of numbers, found a quantised one"),
        }
    }

    /// Some rows, `(n, C)`, in F32 where they are decoded.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => tensor.narrow(0, rows.start, rows.len()),
            Self::Coded(coded) => coded.rows(rows),
        }
    }

    /// `x Wᵀ`
    ///
    /// # Shape
    /// `x`: `(T, C)`, its values side by side; returns `(T, N)`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => x.matmul(&tensor.t()?),
            Self::Coded(coded) => coded.product(x),
        }
    }

    /// `dy W`
    ///
    /// # Shape
    /// `dy`: `(T, N)`, its values side by side; returns `(T, C)`.
    pub fn transposed_product(&self, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => dy.matmul(tensor),
            Self::Coded(coded) => coded.transposed_product(dy),
        }
    }

    /// How rows are kept: so many of each format, one after another.
    pub fn formats(&self) -> Vec<(usize, &'static str)> {
        match self {
            Self::Dense(_) => vec![(self.dims().0, number_format(self.dtype()))],
            Self::Coded(coded) => coded.segments.iter().map(Segment::format).collect(),
        }
    }

    /// Whether it is of one format.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Dense(_) => true,
            Self::Coded(coded) => coded.segments.len() == 1,
        }
    }

    /// What a product by the kernels is made of: neighbouring outputs in one format, each with the first of them.
    pub(super) fn segments(&self, gpu: &Gpu) -> Result<Vec<(usize, GpuWeight)>> {
        match self {
            Self::Dense(tensor) => Ok(vec![(0, dense_weight(gpu, tensor)?)]),
            Self::Coded(coded) => Ok(coded.segments.iter().map(|segment| (segment.first, segment.weight.clone())).collect()),
        }
    }
}

/// Codes and scales on a device; parts of other formats are neighbours.
pub struct CodedMatrix {
    gpu: Gpu,
    outputs: usize,
    inputs: usize,
    /// What it is decoded to.
    dtype: DType,
    segments: Vec<Segment>,
}

/// Neighbouring outputs in one format.
struct Segment {
    first: usize,
    weight: GpuWeight,
    /// Of numbers, which are not decoded.
    dense: Option<Tensor>,
}

impl Segment {
    fn format(&self) -> (usize, &'static str) {
        let name = match &self.dense {
            Some(tensor) => number_format(tensor.dtype()),
            None => self.weight.format().row().name,
        };
        (self.weight.outputs(), name)
    }
}

/// The name of a type that matrices of numbers have.
fn number_format(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => Format::F16.name(),
        DType::BF16 => Format::BF16.name(),
        _ => Format::F32.name(),
    }
}

impl CodedMatrix {
    /// Rows by their numbers, times `scale`: `ids` is `(T)`, of U32 below `N`.
    ///
    /// # Errors
    /// If the matrix is of several formats.
    pub fn lookup(&self, ids: &Tensor, scale: f32) -> Result<Tensor> {
        let [Segment { weight, .. }] = &self.segments[..] else { bail!("lookup: expected a table of one format") };
        let count = ids.dims1()?;
        let mut parts = Vec::new();
        for first in (0..count).step_by(MOST_ROWS) {
            let ids = ids.narrow(0, first, MOST_ROWS.min(count - first))?.force_contiguous()?;
            let len = ids.dims1()?;
            parts.push(self.decoded(weight, DecodedRows::ById(GpuView::of(&ids)?, len), len, scale, self.dtype)?);
        }
        joined(parts, 0)
    }

    /// Some rows in F32.
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut parts = Vec::new();
        self.each_piece(rows, DType::F32, |_, piece| {
            parts.push(piece.to_dtype(DType::F32)?);
            Ok(())
        })?;
        joined(parts, 0)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dims2()?.0;
        let mut parts = Vec::new();
        if rows <= FEW {
            let x = x.to_dtype(DType::F32)?;
            for Segment { weight, .. } in &self.segments {
                let y = self.gpu.room((rows, weight.outputs()), DType::F32)?;
                let mut list = self.gpu.list();
                list.product(weight, GpuView::of(&x)?, GpuView::of(&y)?, ProductWith { rows, ..ProductWith::default() })?;
                list.start()?;
                parts.push(y);
            }
            return joined(parts, D::Minus1)?.to_dtype(self.dtype);
        }
        self.each_piece(0..self.outputs, self.dtype, |_, piece| {
            parts.push(x.matmul(&piece.t()?)?);
            Ok(())
        })?;
        joined(parts, D::Minus1)
    }

    fn transposed_product(&self, dy: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        self.each_piece(0..self.outputs, self.dtype, |outputs, piece| {
            let part = dy.narrow(1, outputs.start, outputs.len())?.force_contiguous()?.matmul(&piece)?;
            sum = Some(match sum.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
            Ok(())
        })?;
        sum.map_or_else(|| bail!("a product with a matrix of no outputs"), Ok)
    }

    /// Gives `work` some outputs piece by piece, each with its rows `(n, C)`.
    fn each_piece(
        &self,
        outputs: Range<usize>,
        dtype: DType,
        mut work: impl FnMut(Range<usize>, Tensor) -> Result<()>,
    ) -> Result<()> {
        let most = (PIECE / self.inputs.max(1)).clamp(1, MOST_ROWS);
        for Segment { first, weight, dense } in &self.segments {
            let end = outputs.end.min(first + weight.outputs());
            let mut next = outputs.start.max(*first);
            while next < end {
                let len = if dense.is_some() { end - next } else { most.min(end - next) };
                let within = next - first..next - first + len;
                let piece = match dense {
                    Some(tensor) => tensor.narrow(0, within.start, len)?,
                    None => self.decoded(weight, DecodedRows::Neighbours(within), len, 1.0, dtype)?,
                };
                work(next..next + len, piece)?;
                next += len;
            }
        }
        Ok(())
    }

    fn decoded(&self, weight: &GpuWeight, rows: DecodedRows<'_>, count: usize, scale: f32, dtype: DType) -> Result<Tensor> {
        let y = self.gpu.room((count, self.inputs), dtype)?;
        let mut list = self.gpu.list();
        list.decode(weight, rows, scale, GpuView::of(&y)?, dtype != DType::F32)?;
        list.start()?;
        Ok(y)
    }
}

/// A matrix of several formats, or one that is quantised, that is being read.
pub struct CodedBuilder {
    gpu: Gpu,
    inputs: usize,
    dtype: DType,
    /// Each with its first row.
    parts: Vec<(usize, Part)>,
}

enum Part {
    Numbers(Packed),
    Codes(GpuMatrix),
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Self::Numbers(packed) => packed.rows(),
            Self::Codes(matrix) => matrix.shape().0,
        }
    }
}

impl CodedBuilder {
    /// Room for rows of these formats; `None` if there is no memory for them. What is not quantised is of `dtype`.
    ///
    /// # Errors
    /// A failed device operation; a device that has no kernels.
    pub fn new(parts: &[(usize, Format)], cols: usize, dtype: DType, device: &Device) -> Result<Option<Self>> {
        let Some(gpu) = Gpu::of(device)? else { bail!("a quantised weight: expected a device with kernels for it") };
        let (mut built, mut first) = (Vec::new(), 0);
        for together in grouped(parts, cols) {
            let part = match together {
                [(rows, format)] if !format.is_quantised() => Packed::new(*rows, cols, *format, Use::Lookup).map(Part::Numbers),
                _ => GpuMatrix::new(together, cols).map(Part::Codes),
            };
            let Some(part) = part else { return Ok(None) };
            first += part.rows();
            built.push((first - part.rows(), part));
        }
        Ok(Some(Self { gpu, inputs: cols, dtype, parts: built }))
    }

    /// The bytes that they take on a device.
    pub fn bytes(parts: &[(usize, Format)], cols: usize) -> u64 {
        let of = |together: &[(usize, Format)]| match together {
            [(rows, format)] if !format.is_quantised() => Packed::bytes(*rows, cols, *format, Use::Lookup),
            _ => GpuMatrix::bytes(together, cols).unwrap_or(u64::MAX),
        };
        grouped(parts, cols).into_iter().map(of).fold(0, u64::saturating_add)
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them; `false` if a value does not fit what it is kept in.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let Some(row_bytes) = from.row_bytes(self.inputs) else { return false };
        self.each(first, bytes.len() / row_bytes, |part, to, rows| {
            let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
            match part {
                Part::Numbers(packed) => packed.fill(to, bytes, from),
                Part::Codes(matrix) => matrix.fill(to, bytes, from),
            }
        })
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        let cols = self.inputs;
        self.each(first, values.len() / cols.max(1), |part, to, rows| {
            let values = &values[rows.start * cols..rows.end * cols];
            match part {
                Part::Numbers(packed) => packed.fill_f32(to, values),
                Part::Codes(matrix) => matrix.fill_f32(to, values),
            }
        })
    }

    /// Fills each part that holds some of `count` rows from `first` on: with its own first row of them, and which of the rows they are.
    fn each(&mut self, first: usize, count: usize, fill: impl Fn(&mut Part, usize, Range<usize>) -> bool) -> bool {
        let end = first + count;
        self.parts.iter_mut().all(|(start, part)| {
            let rows = first.max(*start)..end.min(*start + part.rows());
            rows.is_empty() || fill(part, rows.start - *start, rows.start - first..rows.end - first)
        })
    }

    /// The finished matrix, on its device.
    pub fn finish(self) -> Result<CodedMatrix> {
        let Self { gpu, inputs, dtype, parts } = self;
        let (mut segments, mut outputs) = (Vec::with_capacity(parts.len()), 0);
        for (first, part) in parts {
            outputs = first + part.rows();
            segments.push(match part {
                Part::Numbers(packed) => {
                    let tensor = uploaded(packed, gpu.device())?;
                    Segment { first, weight: dense_weight(&gpu, &tensor)?, dense: Some(tensor) }
                }
                Part::Codes(matrix) => Segment { first, weight: coded_weight(&gpu, matrix, dtype)?, dense: None },
            });
        }
        Ok(CodedMatrix { gpu, outputs, inputs, dtype, segments })
    }
}

/// A low-rank change as products of the kernels: `B A x`, whose rank is filled up with zeros to whole runs of 32.
#[derive(Clone)]
pub struct StepDelta {
    pub a: GpuWeight,
    pub b: GpuWeight,
    /// `A x`, and what becomes the bias of the product: `(N)`.
    pub inner: GpuSlice,
    pub sum: GpuSlice,
}

impl StepDelta {
    /// `a`: `(R, C)`; `b`: `(N, R)`.
    pub fn new(gpu: &Gpu, a: &Tensor, b: &Tensor) -> Result<Self> {
        let rank = a.dims2()?.0;
        let more = rank.next_multiple_of(32) - rank;
        let (a, b) = (a.pad_with_zeros(0, 0, more)?.contiguous()?, b.pad_with_zeros(1, 0, more)?.contiguous()?);
        let vector = |len: usize| GpuSlice::of(&Tensor::zeros(len, DType::F32, gpu.device())?);
        let (inner, sum) = (vector(rank + more)?, vector(b.dims2()?.0)?);
        // A launch may read its weights before those in front of it have ended, and tensor operations have just written these.
        gpu.device().synchronize()?;
        Ok(Self { a: dense_weight(gpu, &a)?, b: dense_weight(gpu, &b)?, inner, sum })
    }
}

/// Whether the kernels decode rows of a format.
pub fn can_code(format: Format, cols: usize) -> bool {
    GpuMatrix::can_hold(&[(1, format)], cols)
}

/// Parts that are one matrix for the kernels, one after another.
fn grouped(parts: &[(usize, Format)], cols: usize) -> Vec<&[(usize, Format)]> {
    let (mut groups, mut first) = (Vec::new(), 0);
    for end in 1..=parts.len() {
        let goes_on = end < parts.len()
            && parts[first..=end].iter().all(|part| part.1.is_quantised())
            && GpuMatrix::can_hold(&parts[first..=end], cols);
        if !goes_on {
            groups.push(&parts[first..end]);
            first = end;
        }
    }
    groups
}

fn coded_weight(gpu: &Gpu, matrix: GpuMatrix, dtype: DType) -> Result<GpuWeight> {
    // Of the element is what is decoded; to F32 every library of a format decodes alike.
    let element = if dtype == DType::BF16 { Element::BF16 } else { Element::F16 };
    // Numbers can do without kernels: see `DecodeStep::new`.
    let kernels = gpu
        .product_kernels(element, matrix.format())
        .map_err(|error| Error::msg(format!("quantised weights need kernels that this system does not compile: {error}")))?;
    let (shape, group_shift) = (matrix.shape(), matrix.group_shift());
    let (codes, extra, scales) = matrix.into_parts();
    let device = gpu.device();
    let lens = (codes.len(), extra.len(), scales.len());
    let codes = GpuSlice::of(&Tensor::from_vec(codes, lens.0, device)?)?;
    let extra = GpuSlice::of(&Tensor::from_vec(extra, lens.1, device)?)?;
    let scales = GpuSlice::of(&Tensor::from_vec(scales, lens.2, device)?)?;
    GpuWeight::new(kernels, shape, group_shift, codes, Some((extra, scales)))
}

fn dense_weight(gpu: &Gpu, tensor: &Tensor) -> Result<GpuWeight> {
    let Some(element) = element(tensor.dtype()) else { bail!("a matrix of kernels: expected F32, F16 or BF16") };
    let kernels = gpu.product_kernels(element, GpuFormat::dense)?;
    GpuWeight::new(kernels, tensor.dims2()?, 0, GpuSlice::of(tensor)?, None)
}

/// What kernels call a type.
pub(super) fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::F16 => Some(Element::F16),
        DType::BF16 => Some(Element::BF16),
        _ => None,
    }
}

/// One tensor of parts that are neighbours in a dimension.
fn joined(mut parts: Vec<Tensor>, dim: impl candle_core::shape::Dim) -> Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Tensor::cat(&parts, dim),
    }
}
