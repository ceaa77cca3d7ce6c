//! The product of activations and a packed weight matrix, `y = x Wᵀ + b`.
//!
//! Register tiles of up to six rows by four panels (sixty-four outputs): of the shapes that fill the registers the one that reads
//! least. Each output is one chain of fused multiply-adds over the columns in order, whatever the tile, so the number of rows changes
//! no bit of a row's result. Quantised weights are widened on the way: for several rows a few columns at a time in the first cache,
//! for one row in registers; or they meet activations of few bits (`planes/product.rs`).
//! Blocking after Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

mod backward;
mod source;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use self::source::PanelSource;
use self::tile::{Columns, OneRow, PANELS, SUMS, fits, multiply, tiles};
use super::int8::Int8Rows;
use super::packed::{Arithmetic, MatmulWeight, Packed, Panels};
use super::parallel::{Shared, each, parts};
use super::planes::{Planes, Product};
use super::simd::{Kernel, LANES, Simd, dispatch};
use crate::error::OutOfMemory;

pub use backward::{matmul_transposed_add, outer_sum};
pub(super) use source::{WIDENED, Widened};
pub(super) use tile::{Left, Right, rows_by_vectors};

/// Columns of a block: what of the panels that are multiplied together stays in the second cache while the rows of a block pass.
const BLOCK_COLS: usize = 1024;
/// Values of a block of rows, for the second cache: half a megabyte. The more rows it has, the less often the panels are read.
const BLOCK_VALUES: usize = 120 * 1024;
/// Rows below which a part of its own does not pay: each part reads all its panels again.
const PART_ROWS: usize = 120;
/// Multiply-adds below which a part of its own does not pay.
const SPLIT_WORK: usize = 1 << 17;

/// What the sums begin with.
#[derive(Clone, Copy)]
enum Start<'a> {
    Bias(Option<&'a [f32]>),
    /// What `y` holds.
    Add,
}

/// What becomes of a product before its outputs leave the cache: `y = gain · W x + bias`, and what low-rank
/// terms add.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `(N)`
    pub gain: Option<&'a [f32]>,
    /// `(N)`
    pub bias: Option<&'a [f32]>,
    pub low_rank: &'a [LowRankTerm<'a>],
}

/// `y[t][start..start + n] += B inner[t]`.
///
/// # Shape
/// `inner`: rows of `R` values, `stride` apart; `b`: `(n, R)`.
#[derive(Clone, Copy)]
pub struct LowRankTerm<'a> {
    pub inner: &'a [f32],
    pub stride: usize,
    pub b: &'a Packed,
    pub start: usize,
}

/// `y[t][n] = Σ_k x[t][k] · W[n][k]` for every row `t`, and what the epilogue makes of it.
///
/// # Shape
/// `x`: rows of `W.cols()` values, `x_stride` apart; `y`: `(rows, W.rows())`.
///
/// # Errors
/// `OutOfMemory` for rounded activations.
pub fn matmul<'a>(
    x: &[f32],
    x_stride: usize,
    weight: impl Into<MatmulWeight<'a>>,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let weight = weight.into();
    let rows = y.len() / weight.packed.rows;
    assert_eq!(y.len(), rows * weight.packed.rows, "whole rows of y");
    checked(x, x_stride, weight, epilogue, Shared::new(y), rows)
}

/// The same in memory of its own, `(rows, W.rows())`, which nobody has filled with zeros before.
///
/// # Errors
/// `OutOfMemory`.
pub fn matmul_new<'a>(
    x: &[f32],
    x_stride: usize,
    weight: impl Into<MatmulWeight<'a>>,
    epilogue: Epilogue<'_>,
    rows: usize,
) -> Result<Vec<f32>, OutOfMemory> {
    let weight = weight.into();
    let len = rows * weight.packed.rows;
    let mut y = Vec::new();
    y.try_reserve_exact(len).map_err(|_| OutOfMemory { what: format!("{len} values of a product") })?;
    checked(x, x_stride, weight, epilogue, Shared::of(&mut y), rows)?;
    // SAFETY: there is room for `len` values, and a product that does not begin with what is there writes each of them.
    unsafe { y.set_len(len) };
    Ok(y)
}

fn checked(
    x: &[f32],
    x_stride: usize,
    MatmulWeight { packed: weight, arithmetic }: MatmulWeight<'_>,
    epilogue: Epilogue<'_>,
    y: Shared<f32>,
    rows: usize,
) -> Result<(), OutOfMemory> {
    let (n, k) = (weight.rows, weight.cols);
    assert_eq!(weight.lanes, LANES, "a matrix for products");
    assert!(k > 0 && (rows == 0 || x.len() >= (rows - 1) * x_stride + k), "x holds {rows} rows");
    for vector in [epilogue.gain, epilogue.bias].into_iter().flatten() {
        assert_eq!(vector.len(), n, "a value for each output");
    }
    for LowRankTerm { inner, stride, b, start } in epilogue.low_rank {
        assert!(b.lanes == LANES && start + b.rows <= n, "a term of these outputs");
        assert!(rows == 0 || inner.len() >= (rows - 1) * stride + b.cols, "a term of {rows} rows");
    }
    match &weight.panels {
        Panels::F32(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::F16(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::BF16(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::Planes(p) if arithmetic == Arithmetic::Int8 && p.takes_int8() => {
            int8_product(x, x_stride, p, (rows, n, k), epilogue, y)?;
        }
        Panels::Planes(p) => product(x, x_stride, p, (rows, n, k), epilogue, y),
        Panels::Blocks(..) => unreachable!("a matrix for products has panels of sixteen rows"),
    }
    Ok(())
}

fn product<W: PanelSource>(
    x: &[f32],
    x_stride: usize,
    w: W,
    (rows, n, k): (usize, usize, usize),
    epilogue: Epilogue<'_>,
    y: Shared<f32>,
) {
    let start = Start::Bias(epilogue.start());
    in_parts((rows, n, k), epilogue, y, |rows, outputs| {
        dispatch(Partition { x, x_stride, w, k, start, y, y_stride: n, rows, outputs });
    });
}

/// The same with activations of few bits.
fn int8_product(
    x: &[f32],
    x_stride: usize,
    w: &Planes,
    (rows, n, k): (usize, usize, usize),
    epilogue: Epilogue<'_>,
    y: Shared<f32>,
) -> Result<(), OutOfMemory> {
    let quantised = |bytes| {
        let is_read = w.activation_bytes().any(|own| own == bytes);
        is_read.then(|| Int8Rows::new(x, x_stride, (rows, k), bytes)).transpose()
    };
    let x = [quantised(1)?, quantised(2)?];
    in_parts((rows, n, k), epilogue, y, |rows, outputs| {
        for (outputs, bytes) in w.parts(outputs) {
            let Some(x) = &x[bytes - 1] else { continue };
            w.multiply(Product { x, rows: rows.clone(), outputs, bias: epilogue.start(), y });
        }
    });
    Ok(())
}

/// Calls `work` with some rows and some outputs, whole panels of them, until all are computed; then comes the epilogue.
fn in_parts(
    (rows, n, k): (usize, usize, usize),
    epilogue: Epilogue<'_>,
    y: Shared<f32>,
    work: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let panels = n.div_ceil(LANES);
    let groups = panels.div_ceil(PANELS);
    // By rows where there are many, so that a part's rows meet all panels while they are in its cache; the rest by panels.
    let most = parts(rows * n * k / SPLIT_WORK);
    let row_parts = most.min(rows / PART_ROWS).max(1);
    let panel_parts = most.div_ceil(row_parts).min(groups);
    let part_rows = rows.div_ceil(row_parts).next_multiple_of(12);
    each(row_parts * panel_parts, |part| {
        let (row, panel) = (part / panel_parts * part_rows, part % panel_parts);
        let rows = row.min(rows)..(row + part_rows).min(rows);
        let outputs = |panel: usize| (groups * panel / panel_parts * PANELS * LANES).min(n);
        let outputs = outputs(panel)..outputs(panel + 1);
        work(rows.clone(), outputs.clone());
        // SAFETY: these outputs of these rows lie in y, are written by now, and belong to this part alone.
        unsafe {
            if let Some(gain) = epilogue.gain {
                rescale(gain, epilogue.bias, rows.clone(), outputs.clone(), y, n);
            }
            epilogue.low_rank.iter().for_each(|term| term.add(rows.clone(), outputs.clone(), y, n));
        }
    });
}

impl<'a> Epilogue<'a> {
    /// The bias, if sums begin with it: a gain comes first.
    fn start(&self) -> Option<&'a [f32]> {
        if self.gain.is_some() { None } else { self.bias }
    }
}

/// `y = gain · y + bias` for some outputs of some rows.
///
/// # Safety
/// They lie in `y`, whose rows are `n` long, and are the caller's alone.
unsafe fn rescale(gain: &[f32], bias: Option<&[f32]>, rows: Range<usize>, outputs: Range<usize>, y: Shared<f32>, n: usize) {
    for row in rows {
        // SAFETY: by this function's contract.
        let y = unsafe { std::slice::from_raw_parts_mut(y.get().add(row * n + outputs.start), outputs.len()) };
        y.iter_mut().zip(&gain[outputs.clone()]).for_each(|(y, g)| *y *= g);
        if let Some(bias) = bias {
            y.iter_mut().zip(&bias[outputs.clone()]).for_each(|(y, b)| *y += b);
        }
    }
}

impl LowRankTerm<'_> {
    /// Adds what it is of some outputs of some rows.
    ///
    /// # Safety
    /// As [`rescale`].
    unsafe fn add(&self, rows: Range<usize>, outputs: Range<usize>, y: Shared<f32>, n: usize) {
        let outputs = outputs.start.max(self.start)..outputs.end.min(self.start + self.b.rows);
        if outputs.is_empty() || rows.is_empty() {
            return;
        }
        let own = outputs.start - self.start..outputs.end - self.start;
        // SAFETY: the first of its outputs lies in y; the rest is passed on from the caller.
        unsafe {
            let y = y.add(self.start);
            match &self.b.panels {
                Panels::F32(p) => self.add_by(p.as_slice(), rows, own, y, n),
                Panels::F16(p) => self.add_by(p.as_slice(), rows, own, y, n),
                Panels::BF16(p) => self.add_by(p.as_slice(), rows, own, y, n),
                Panels::Planes(p) => self.add_by(p, rows, own, y, n),
                Panels::Blocks(..) => unreachable!("a matrix for products has panels of sixteen rows"),
            }
        }
    }

    /// `outputs` are those of the term, whose first is the first of `y`.
    ///
    /// # Safety
    /// As [`rescale`].
    unsafe fn add_by<W: PanelSource>(&self, w: W, rows: Range<usize>, outputs: Range<usize>, y: Shared<f32>, y_stride: usize) {
        let (x, x_stride, k) = (self.inner, self.stride, self.b.cols);
        dispatch(Partition { x, x_stride, w, k, start: Start::Add, y, y_stride, rows, outputs });
    }
}

/// One thread's share: some rows, some outputs.
struct Partition<'a, W> {
    x: &'a [f32],
    x_stride: usize,
    w: W,
    k: usize,
    start: Start<'a>,
    y: Shared<f32>,
    y_stride: usize,
    rows: Range<usize>,
    /// Of the matrix, whose first output is the first of `y`. Panels may be another part's as well.
    outputs: Range<usize>,
}

impl<W: PanelSource> Kernel for Partition<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Blocks of equal height, in whole register tiles.
        let most = (BLOCK_VALUES / self.k.clamp(1, BLOCK_COLS)).max(12);
        let block_rows = self.rows.len().div_ceil(self.rows.len().div_ceil(most).max(1)).next_multiple_of(12);
        let panels = self.outputs.start / LANES..self.outputs.end.div_ceil(LANES);
        let mut room = Default::default();
        for row in self.rows.clone().step_by(block_rows.max(12)) {
            let rows = block_rows.min(self.rows.end - row);
            for col in (0..self.k).step_by(BLOCK_COLS) {
                let cols = col..self.k.min(col + BLOCK_COLS);
                let mut panel = panels.start;
                while panel < panels.end {
                    let left = PANELS.min(panels.end - panel);
                    // SAFETY: the caller vouches for the instructions of `S`.
                    panel += unsafe {
                        match left {
                            2.. if rows == 1 && S::PAIRS => self.row_by_panels::<S, 2>(row, cols.clone(), panel),
                            _ if rows == 1 => self.row_by_panels::<S, 1>(row, cols.clone(), panel),
                            PANELS if S::WIDE => self.rows_by_panels::<S, PANELS>(row, rows, cols.clone(), panel, &mut room),
                            2.. if S::WIDE => self.rows_by_panels::<S, 2>(row, rows, cols.clone(), panel, &mut room),
                            _ => self.rows_by_panels::<S, 1>(row, rows, cols.clone(), panel, &mut room),
                        }
                    };
                }
            }
        }
    }
}

impl<W: PanelSource> Partition<'_, W> {
    /// One row against `P` panels; returns `P`. It is read from memory: two panels keep that busy.
    #[inline(always)]
    unsafe fn row_by_panels<S: Simd, const P: usize>(&self, row: usize, block: Range<usize>, panel: usize) -> usize {
        let bias = self.bias::<P>(panel);
        for col in block.clone().step_by(W::ONCE_COLS) {
            let cols = col..block.end.min(col + W::ONCE_COLS);
            let a = &self.x[row * self.x_stride + col..][..cols.len()];
            // SAFETY: `a` and `w` hold as many steps; the output tile is handled in `tile`.
            unsafe {
                let w = std::array::from_fn::<_, P, _>(|p| self.w.once::<S>(panel + p, self.k, cols.clone()));
                let work = OneRowTile { a, w, cols: cols.len() };
                self.tile::<S, 1, P>(work, row, panel, bias.as_ref().filter(|_| col == 0));
            }
        }
        P
    }

    /// What the sums of `P` panels begin with, if it is not what `y` holds: where columns are the first.
    #[inline(always)]
    fn bias<const P: usize>(&self, panel: usize) -> Option<[f32; PANELS * LANES]> {
        let Start::Bias(all) = self.start else { return None };
        let mut bias = [0f32; PANELS * LANES];
        if let Some(all) = all {
            let own = &all[panel * LANES..self.outputs.end.min((panel + P) * LANES)];
            bias[..own.len()].copy_from_slice(own);
        }
        Some(bias)
    }

    /// All rows of a block against `P` panels; returns `P`.
    #[inline(always)]
    unsafe fn rows_by_panels<S: Simd, const P: usize>(
        &self,
        row: usize,
        rows: usize,
        block: Range<usize>,
        panel: usize,
        room: &mut [W::Room; PANELS],
    ) -> usize {
        let bias = self.bias::<P>(panel);
        for col in block.clone().step_by(W::COLS) {
            let (cols, start) = (W::COLS.min(block.end - col), bias.as_ref().filter(|_| col == 0));
            let mut w = [std::ptr::null(); P];
            for (p, (w, room)) in w.iter_mut().zip(&mut *room).enumerate() {
                // SAFETY: passed on from the caller.
                *w = unsafe { self.w.columns::<S>(panel + p, self.k, col..col + cols, room) }.as_ptr();
            }
            let mut done = 0;
            for tile_rows in tiles::<S, P>(rows) {
                let a = &self.x[(row + done) * self.x_stride + col..][..(tile_rows - 1) * self.x_stride + cols];
                let (a_row, row) = (self.x_stride, row + done);
                // SAFETY: `a` and `w` hold `cols` steps; the output tile is handled in `tile`.
                unsafe {
                    match tile_rows {
                        12 if fits::<S>(12, P) => self.tile::<S, 12, P>(RowsTile { a, a_row, w, cols }, row, panel, start),
                        6 => self.tile::<S, 6, P>(RowsTile { a, a_row, w, cols }, row, panel, start),
                        4 => self.tile::<S, 4, P>(RowsTile { a, a_row, w, cols }, row, panel, start),
                        2 => self.tile::<S, 2, P>(RowsTile { a, a_row, w, cols }, row, panel, start),
                        _ => self.tile::<S, 1, P>(RowsTile { a, a_row, w, cols }, row, panel, start),
                    }
                }
                done += tile_rows;
            }
        }
        P
    }

    /// `R` rows by `P` panels of the output.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const P: usize>(
        &self,
        work: impl Tile<S, R, P>,
        row: usize,
        panel: usize,
        start: Option<&[f32; PANELS * LANES]>,
    ) {
        let first = panel * LANES;
        let own = self.outputs.start.saturating_sub(first)..(self.outputs.end - first).min(P * LANES);
        // SAFETY: columns `own` of rows `row..row + R` lie in y and belong to this part alone; `first`
        // lies in y too, no later than they do.
        let y = unsafe { self.y.get().add(row * self.y_stride + first) };
        // SAFETY: what `work` reads is there; y is good for the columns `own`, and where these are not the whole tile it goes
        // through a buffer of full width.
        unsafe {
            if own == (0..P * LANES) {
                work.multiply(y, self.y_stride, start);
                return;
            }
            let mut buffer = [0f32; SUMS * LANES];
            let (y, kept) = (y.add(own.start), buffer.as_mut_ptr().add(own.start));
            if start.is_none() {
                for r in 0..R {
                    std::ptr::copy_nonoverlapping(y.add(r * self.y_stride), kept.add(r * P * LANES), own.len());
                }
            }
            work.multiply(buffer.as_mut_ptr(), P * LANES, start);
            let kept = buffer.as_ptr().add(own.start);
            for r in 0..R {
                std::ptr::copy_nonoverlapping(kept.add(r * P * LANES), y.add(r * self.y_stride), own.len());
            }
        }
    }
}

/// The product of some columns of `R` rows and `P` panels.
trait Tile<S: Simd, const R: usize, const P: usize> {
    /// Writes it, or adds it to what `c` holds where `start` is `None`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`, what is multiplied is there, and `c` is good for `R` rows of `P` vectors,
    /// `c_row` apart.
    unsafe fn multiply(&self, c: *mut f32, c_row: usize, start: Option<&[f32; PANELS * LANES]>);
}

struct RowsTile<'a, B, const P: usize> {
    a: &'a [f32],
    a_row: usize,
    w: [B; P],
    cols: usize,
}

impl<S: Simd, B: Columns<S>, const R: usize, const P: usize> Tile<S, R, P> for RowsTile<'_, B, P> {
    #[inline(always)]
    unsafe fn multiply(&self, c: *mut f32, c_row: usize, start: Option<&[f32; PANELS * LANES]>) {
        // SAFETY: `a` holds R rows of cols values, `w` points at cols × 16 values each; the rest is passed on from the caller.
        unsafe { multiply::<S, B, R, P>(self.cols, self.a.as_ptr(), self.a_row, 1, self.w, LANES, c, c_row, start) }
    }
}

struct OneRowTile<'a, B, const P: usize> {
    a: &'a [f32],
    w: [B; P],
    cols: usize,
}

impl<S: Simd, B: OneRow<S>, const P: usize> Tile<S, 1, P> for OneRowTile<'_, B, P> {
    #[inline(always)]
    unsafe fn multiply(&self, c: *mut f32, _: usize, start: Option<&[f32; PANELS * LANES]>) {
        // SAFETY: `a` and `w` hold as many steps; the rest is passed on from the caller.
        unsafe { B::multiply::<P>(self.w, self.cols, self.a.as_ptr(), c, start) }
    }
}
