//! The backward passes of a product: with the transpose, and sums over rows.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::source::{PanelSource, Weight};
use super::tile::{Left, Right, rows_by_vectors};
use super::{PART_ROWS, Partition, SPLIT_WORK, Start};
use crate::error::OutOfMemory;
use crate::kernels::memory::zeros;
use crate::kernels::packed::{Packed, Panels};
use crate::kernels::parallel::{Shared, each, parts};
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};

/// Outputs of a block that is transposed for the product with the transpose, and its inputs: a megabyte.
const TRANSPOSED_BLOCK: (usize, usize) = (512, 512);

/// The product with the transpose: `y[t][k] += Σ_n x[t][n] · W[n][k]` for every row `t`.
///
/// Blocks of the matrix are transposed one by one: a copy of the whole would take its memory twice.
///
/// # Shape
/// `x`: `rows` of `W.rows()` values, `x_stride` apart; `y`: as many of `W.cols()` values, `y_stride` apart.
///
/// # Errors
/// `OutOfMemory` for the blocks; `y` is then a part of the sum.
pub fn matmul_transposed_add(
    rows: usize,
    (x, x_stride): (&[f32], usize),
    weight: &Packed,
    (y, y_stride): (&mut [f32], usize),
) -> Result<(), OutOfMemory> {
    let (n, k) = (weight.rows, weight.cols);
    if rows == 0 {
        return Ok(());
    }
    assert_eq!(weight.lanes, LANES, "a matrix for products");
    assert!(x.len() >= (rows - 1) * x_stride + n, "x holds {rows} rows");
    assert!(y_stride >= k && y.len() >= (rows - 1) * y_stride + k, "y holds {rows} rows");
    let (size, y) = ((rows, n, k), (Shared::new(y), y_stride));
    match &weight.panels {
        Panels::F32(p) => transposed(x, x_stride, p.as_slice(), size, y),
        Panels::F16(p) => transposed(x, x_stride, p.as_slice(), size, y),
        Panels::BF16(p) => transposed(x, x_stride, p.as_slice(), size, y),
        Panels::Planes(p) => transposed(x, x_stride, p, size, y),
        Panels::Blocks(..) => unreachable!("a matrix for products has panels of sixteen rows"),
    }
}

fn transposed<W: PanelSource>(
    x: &[f32],
    x_stride: usize,
    w: W,
    (rows, n, k): (usize, usize, usize),
    (y, y_stride): (Shared<f32>, usize),
) -> Result<(), OutOfMemory> {
    let panels = k.div_ceil(LANES);
    let most = parts(rows * n * k / SPLIT_WORK);
    let panel_parts = most.max(k.div_ceil(TRANSPOSED_BLOCK.1)).min(panels.div_ceil(2));
    // By rows as well where a low rank leaves too few columns.
    let row_parts = (most / panel_parts).min(rows / PART_ROWS).max(1);
    let part_rows = rows.div_ceil(row_parts).next_multiple_of(12);
    let failed = Mutex::new(Ok(()));
    each(row_parts * panel_parts, |part| {
        let (row, part) = (part / panel_parts * part_rows, part % panel_parts);
        let rows = row.min(rows)..(row + part_rows).min(rows);
        let panels = panels * part / panel_parts..panels * (part + 1) / panel_parts;
        let mut transposed = match zeros::<f32>(TRANSPOSED_BLOCK.0.min(n) * panels.len() * LANES) {
            Ok(transposed) => transposed,
            Err(error) => {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                return;
            }
        };
        for first in (0..n).step_by(TRANSPOSED_BLOCK.0) {
            let outputs = first..n.min(first + TRANSPOSED_BLOCK.0);
            dispatch(Transpose { w, k, outputs: outputs.clone(), panels: panels.clone(), transposed: &mut transposed });
            dispatch(Partition {
                x: &x[first..],
                x_stride,
                w: transposed.as_slice(),
                k: outputs.len(),
                start: Start::Add,
                // SAFETY: the columns of these panels lie in y; in these rows they belong to this part alone.
                y: unsafe { y.add(panels.start * LANES) },
                y_stride,
                rows: rows.clone(),
                outputs: 0..(panels.end * LANES).min(k) - panels.start * LANES,
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Copies outputs of a packed matrix so that inputs are side by side: `[panel of inputs][output][16]`.
pub(super) struct Transpose<'a, W> {
    pub w: W,
    pub k: usize,
    /// Begins with a panel.
    pub outputs: Range<usize>,
    /// Panels of inputs.
    pub panels: Range<usize>,
    pub transposed: &'a mut [f32],
}

impl<W: PanelSource> Kernel for Transpose<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let count = self.outputs.len();
        let mut room = W::Room::default();
        for (panel, transposed) in self.panels.zip(self.transposed.chunks_exact_mut(count * LANES)) {
            let inputs = panel * LANES..self.k.min((panel + 1) * LANES);
            for (output, transposed) in self.outputs.clone().step_by(LANES).zip(transposed.chunks_mut(LANES * LANES)) {
                let mut block = [[0f32; LANES]; LANES];
                // SAFETY: `w` and `row` hold sixteen values; the caller vouches for the instructions of `S`.
                unsafe {
                    let w = self.w.columns::<S>(output / LANES, self.k, inputs.clone(), &mut room);
                    for (w, row) in w.chunks_exact(LANES).zip(&mut block) {
                        S::store(row.as_mut_ptr(), W::Value::load::<S>(w.as_ptr()));
                    }
                }
                for (lane, transposed) in transposed.chunks_exact_mut(LANES).enumerate() {
                    for (to, row) in transposed.iter_mut().zip(&block) {
                        *to = row[lane];
                    }
                }
            }
        }
    }
}

/// `y[r][c] = Σ_t a[t][r] · b[t][c]`: a sum over rows, in their order.
///
/// # Shape
/// `a`: `rows` of `R` values, `a_stride` apart; `b`: as many of `C` values, `b_stride` apart; `y`: `(R, C)`.
pub fn outer_sum(rows: usize, (a, a_stride): (&[f32], usize), (b, b_stride): (&[f32], usize), cols: usize, y: &mut [f32]) {
    let height = y.len() / cols;
    assert_eq!(y.len(), height * cols, "whole rows of y");
    y.fill(0.0);
    if rows == 0 {
        return;
    }
    assert!(a.len() >= (rows - 1) * a_stride + height, "a holds {rows} rows");
    assert!(b.len() >= (rows - 1) * b_stride + cols, "b holds {rows} rows");
    let panels = cols.div_ceil(LANES);
    let most = parts(rows * height * cols / SPLIT_WORK).min(panels.div_ceil(2));
    let y = Shared::new(y);
    each(most, |part| {
        let panels = panels * part / most..panels * (part + 1) / most;
        dispatch(Outer { a, a_stride, b, b_stride, height, rows, cols, panels, y });
    });
}

/// One thread's columns of a sum over rows.
struct Outer<'a> {
    a: &'a [f32],
    a_stride: usize,
    b: &'a [f32],
    b_stride: usize,
    height: usize,
    rows: usize,
    cols: usize,
    panels: Range<usize>,
    y: Shared<f32>,
}

impl Kernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Rows at a time: few enough that those of `b` are in the cache when the next columns are read.
        const ROWS: usize = 64;
        let whole = self.panels.start..self.panels.end.min(self.cols / LANES);
        for first in (0..self.rows).step_by(ROWS) {
            let steps = ROWS.min(self.rows - first);
            let a = &self.a[first * self.a_stride..][..(steps - 1) * self.a_stride + self.height];
            let b = &self.b[first * self.b_stride..][..(steps - 1) * self.b_stride + self.cols];
            // SAFETY: steps rows of `height` values in `a`, and of whole vectors in `b`; these columns of y are this part's.
            unsafe {
                let a = Left { first: a.as_ptr(), row: 1, step: self.a_stride };
                let b = Right { first: b.as_ptr().add(whole.start * LANES), vector: LANES, step: self.b_stride };
                let y = self.y.get().add(whole.start * LANES);
                rows_by_vectors::<S>((self.height, whole.len(), steps), a, b, y, self.cols, true);
            }
            if whole.end < self.panels.end {
                for r in 0..self.height {
                    for c in whole.end * LANES..self.cols {
                        // SAFETY: row r and column c of y, which are this part's.
                        let y = unsafe { &mut *self.y.get().add(r * self.cols + c) };
                        *y = (0..steps).fold(*y, |sum, t| S::fma1(a[t * self.a_stride + r], b[t * self.b_stride + c], sum));
                    }
                }
            }
        }
    }
}
