//! A CPU operation on rows as a candle operation: it takes strided rows.

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Rows of F32, `stride` values apart.
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub cols: usize,
}

impl Rows<'_> {
    /// The same values where the rows follow one another without a gap.
    pub fn packed(&self) -> Result<&[f32]> {
        if self.stride != self.cols {
            bail!("rows of {} values lie {} apart", self.cols, self.stride)
        }
        Ok(self.values)
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
        let mut out = vec![0f32; count * self.cols];
        if count > 0 {
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

/// Lends the rows of a CPU tensor.
pub fn with_rows<R>(x: &Tensor, read: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a kernel of the CPU met a tensor on a GPU") };
    read(rows_of(storage, layout)?)
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

/// `work` changes the rows where they are.
struct InPlace<F> {
    name: &'static str,
    work: F,
}

impl<F: Fn(&mut [f32], usize) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (cols, len, packed) = {
            let rows = rows_of(storage, layout)?;
            (rows.cols, rows.values.len(), rows.packed().is_ok())
        };
        let CpuStorage::F32(values) = storage else { bail!("activations on the CPU are F32") };
        if !packed {
            bail!("{}: rows that are changed must follow one another", self.name)
        }
        if len > 0 { (self.work)(&mut values[layout.start_offset()..][..len], cols) } else { Ok(()) }
    }
}

/// Runs `work` on the values of a CPU tensor and the width of its rows; nobody else may hold the tensor's values.
pub fn in_place(name: &'static str, x: Tensor, work: impl Fn(&mut [f32], usize) -> Result<()>) -> Result<Tensor> {
    x.inplace_op1(&InPlace { name, work })?;
    Ok(x)
}
