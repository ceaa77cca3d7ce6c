//! A CPU operation on rows as a candle operation: it takes strided rows.

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail};

use crate::kernels::{Strided, zeros};

/// Rows of F32, `stride` values apart.
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub cols: usize,
}

impl Rows<'_> {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.cols]
    }

    /// The same values where the rows follow one another without a gap.
    pub fn packed(&self) -> Result<&[f32]> {
        if self.stride != self.cols {
            bail!("rows of {} values lie {} apart", self.cols, self.stride)
        }
        Ok(self.values)
    }
}

impl<'a> From<&Rows<'a>> for Strided<'a> {
    fn from(rows: &Rows<'a>) -> Self {
        Self { values: rows.values, stride: rows.stride }
    }
}

/// `work` fills the output, `(T, cols)`, from the input's rows.
struct RowOp<F> {
    name: &'static str,
    cols: usize,
    work: F,
}

impl<F: Fn(Rows<'_>, &mut [f32]) -> Result<()> + Send + Sync> CustomOp1 for RowOp<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = rows_of(storage, layout)?;
        let count = layout.dims()[0];
        let mut out = zeros(count * self.cols)?;
        if !out.is_empty() {
            (self.work)(rows, &mut out)?;
        }
        Ok((CpuStorage::F32(out), (count, self.cols).into()))
    }
}

/// The rows behind a `(T, C)` view.
pub fn rows_of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Rows<'a>> {
    let CpuStorage::F32(values) = storage else { bail!("activations on the CPU are F32, found {:?}", storage) };
    let (&[count, cols], &[stride, step]) = (layout.dims(), layout.stride()) else {
        bail!("expected rows (T, C), found shape {:?}", layout.dims())
    };
    if step != 1 && cols > 1 {
        bail!("the values of a row must follow one another, found stride {step}")
    }
    let start = layout.start_offset();
    let end = if count == 0 { start } else { start + (count - 1) * stride + cols };
    Ok(Rows { values: &values[start..end], stride, cols })
}

/// What our kernels read of a tensor.
///
/// # Errors
/// If it lies on a GPU.
pub fn on_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("expected activations on the CPU, found them on a GPU"),
    }
}

/// Lends the rows of a CPU tensor.
pub fn with_rows<R>(x: &Tensor, read: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    read(rows_of(on_cpu(&storage)?, layout)?)
}

/// Runs `work` on the rows of a CPU tensor.
pub fn row_op(
    name: &'static str,
    x: &Tensor,
    cols: usize,
    work: impl Fn(Rows<'_>, &mut [f32]) -> Result<()> + Send + Sync,
) -> Result<Tensor> {
    x.apply_op1_no_bwd(&RowOp { name, cols, work })
}

/// A tensor to change where it is: itself, or a copy where its memory holds more than it.
fn own(x: Tensor) -> Result<Tensor> {
    let (storage, layout) = x.storage_and_layout();
    let CpuStorage::F32(values) = on_cpu(&storage)? else { bail!("activations on the CPU are F32, found {:?}", x.dtype()) };
    let is_all = layout.contiguous_offsets() == Some((0, values.len()));
    drop(storage);
    if is_all { Ok(x) } else { x.force_contiguous() }
}

/// All values of a tensor that is [`own`], and the width of its rows.
fn whole<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<(&'a mut [f32], usize)> {
    match (storage, layout.dims()) {
        (CpuStorage::F32(values), &[_, cols]) => Ok((values, cols)),
        _ => bail!("activations on the CPU are rows (T, C) of F32, found shape {:?}", layout.dims()),
    }
}

/// `work` changes rows where they are.
struct InPlace<F> {
    name: &'static str,
    work: F,
}

impl<F: Fn(&mut [f32], usize)> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (values, cols) = whole(storage, layout)?;
        if !values.is_empty() {
            (self.work)(values, cols);
        }
        Ok(())
    }
}

/// `work` changes rows where they are and reads others.
struct InPlaceFrom<F> {
    name: &'static str,
    work: F,
}

impl<F: Fn(Rows<'_>, &mut [f32], usize) -> Result<()>> InplaceOp2 for InPlaceFrom<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, y_at: &Layout, x: &CpuStorage, x_at: &Layout) -> Result<()> {
        let (x, (y, cols)) = (rows_of(x, x_at)?, whole(y, y_at)?);
        if y.is_empty() { Ok(()) } else { (self.work)(x, y, cols) }
    }
}

/// Runs `work` on the values of a CPU tensor and the width of its rows, in its memory if that holds nothing else.
pub fn in_place(name: &'static str, x: Tensor, work: impl Fn(&mut [f32], usize)) -> Result<Tensor> {
    let x = own(x)?;
    x.inplace_op1(&InPlace { name, work })?;
    Ok(x)
}

/// The same with the rows of `x`, which may lie in the memory of `y`: it is then copied, so that no lock waits for itself.
pub fn in_place_from(
    name: &'static str,
    y: Tensor,
    x: &Tensor,
    work: impl Fn(Rows<'_>, &mut [f32], usize) -> Result<()>,
) -> Result<Tensor> {
    let is_shared = std::ptr::eq(&*x.storage_and_layout().0, &*y.storage_and_layout().0);
    let y = if is_shared { y.force_contiguous()? } else { own(y)? };
    y.inplace_op2(x, &InPlaceFrom { name, work })?;
    Ok(y)
}
