//! The product of activations and a packed weight matrix, `y = x Wᵀ + b`.
//!
//! Register tiles of up to six rows by four panels (sixty-four outputs): of the shapes that fill the registers the one that reads
//! least. Each output is one chain of fused multiply-adds over the columns in order, whatever the tile, so the number of rows changes
//! no bit of a row's result. Quantised weights are widened on the way: for several rows a few columns at a time in the first cache,
//! for one row in registers.
//! Blocking after Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

use std::ops::Range;

use super::format::q8_0::{self, Q8_0, WIDENED, Widened};
use super::packed::{Packed, Panels};
use super::parallel::{Shared, each, parts};
use super::simd::{Kernel, LANES, Simd, dispatch};
use half::{bf16, f16};

/// The sums of a register tile, in vectors.
const SUMS: usize = 24;
/// Panels that are multiplied together.
pub(super) const PANELS: usize = 4;
/// Columns of a block: what of the panels that are multiplied together stays in the second cache while the rows of a block pass.
const BLOCK_COLS: usize = 1024;
/// Values of a block of rows, for the second cache: half a megabyte. The more rows it has, the less often the panels are read.
const BLOCK_VALUES: usize = 120 * 1024;
/// Rows below which a part of its own does not pay: each part reads all its panels again.
const PART_ROWS: usize = 120;
/// Multiply-adds below which a part of its own does not pay.
const SPLIT_WORK: usize = 1 << 17;
/// Outputs of a block that is transposed for the product with the transpose, and its inputs: a megabyte.
const TRANSPOSED_BLOCK: (usize, usize) = (512, 512);

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
/// `inner`: `(rows, R)`; `b`: `(n, R)`.
#[derive(Clone, Copy)]
pub struct LowRankTerm<'a> {
    pub inner: &'a [f32],
    pub b: &'a Packed,
    pub start: usize,
}

/// `y[t][n] = Σ_k x[t][k] · W[n][k]` for every row `t`, and what the epilogue makes of it.
///
/// # Shape
/// `x`: rows of `W.cols()` values, `x_stride` apart; `y`: `(rows, W.rows())`.
pub fn matmul(x: &[f32], x_stride: usize, weight: &Packed, epilogue: Epilogue<'_>, y: &mut [f32]) {
    let rows = y.len() / weight.rows;
    assert_eq!(y.len(), rows * weight.rows, "whole rows of y");
    checked(x, x_stride, weight, epilogue, Shared::new(y), rows);
}

/// The same in memory of its own, `(rows, W.rows())`, which nobody has filled with zeros before.
pub fn matmul_new(x: &[f32], x_stride: usize, weight: &Packed, epilogue: Epilogue<'_>, rows: usize) -> Vec<f32> {
    let len = rows * weight.rows;
    let mut y = Vec::with_capacity(len);
    checked(x, x_stride, weight, epilogue, Shared::of(&mut y), rows);
    // SAFETY: there is room for `len` values, and a product that does not begin with what is there writes each of them.
    unsafe { y.set_len(len) };
    y
}

fn checked(x: &[f32], x_stride: usize, weight: &Packed, epilogue: Epilogue<'_>, y: Shared<f32>, rows: usize) {
    let (n, k) = (weight.rows, weight.cols);
    assert_eq!(weight.lanes, LANES, "a matrix for products");
    assert!(k > 0 && (rows == 0 || x.len() >= (rows - 1) * x_stride + k), "x holds {rows} rows");
    for vector in [epilogue.gain, epilogue.bias].into_iter().flatten() {
        assert_eq!(vector.len(), n, "a value for each output");
    }
    for LowRankTerm { inner, b, start } in epilogue.low_rank {
        assert!(b.lanes == LANES && inner.len() >= rows * b.cols && start + b.rows <= n, "a term of these outputs");
    }
    match &weight.panels {
        Panels::F32(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::F16(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::BF16(p) => product(x, x_stride, p.as_slice(), (rows, n, k), epilogue, y),
        Panels::Q8_0(p) => product(x, x_stride, p, (rows, n, k), epilogue, y),
    }
}

fn product<W: Source>(
    x: &[f32],
    x_stride: usize,
    w: W,
    (rows, n, k): (usize, usize, usize),
    epilogue: Epilogue<'_>,
    y: Shared<f32>,
) {
    let panels = n.div_ceil(LANES);
    let groups = panels.div_ceil(PANELS);
    // By rows where there are many, so that a part's rows meet all panels while they are in its cache; the rest by panels.
    let most = parts(rows * n * k / SPLIT_WORK);
    let row_parts = most.min(rows / PART_ROWS).max(1);
    let panel_parts = most.div_ceil(row_parts).min(groups);
    let part_rows = rows.div_ceil(row_parts).next_multiple_of(12);
    let start = Start::Bias(if epilogue.gain.is_some() { None } else { epilogue.bias });
    each(row_parts * panel_parts, |part| {
        let (row, panel) = (part / panel_parts * part_rows, part % panel_parts);
        let rows = row.min(rows)..(row + part_rows).min(rows);
        let outputs = |panel: usize| (groups * panel / panel_parts * PANELS * LANES).min(n);
        let outputs = outputs(panel)..outputs(panel + 1);
        dispatch(Part { x, x_stride, w, k, start, y, y_stride: n, rows: rows.clone(), outputs: outputs.clone() });
        // SAFETY: these outputs of these rows lie in y, are written by now, and belong to this part alone.
        unsafe {
            if let Some(gain) = epilogue.gain {
                rescale(gain, epilogue.bias, rows.clone(), outputs.clone(), y, n);
            }
            epilogue.low_rank.iter().for_each(|term| term.add(rows.clone(), outputs.clone(), y, n));
        }
    });
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
                Panels::Q8_0(p) => self.add_by(p, rows, own, y, n),
            }
        }
    }

    /// `outputs` are those of the term, whose first is the first of `y`.
    ///
    /// # Safety
    /// As [`rescale`].
    unsafe fn add_by<W: Source>(&self, w: W, rows: Range<usize>, outputs: Range<usize>, y: Shared<f32>, y_stride: usize) {
        let (x, k) = (self.inner, self.b.cols);
        dispatch(Part { x, x_stride: k, w, k, start: Start::Add, y, y_stride, rows, outputs });
    }
}

/// The product with the transpose: `y[t][k] += Σ_n x[t][n] · W[n][k]` for every row `t`.
///
/// Blocks of the matrix are transposed one by one: a copy of the whole would take its memory twice.
///
/// # Shape
/// `x`: rows of `W.rows()` values, `x_stride` apart; `y`: `(rows, W.cols())`.
pub fn matmul_transposed_add(x: &[f32], x_stride: usize, weight: &Packed, y: &mut [f32]) {
    let (n, k) = (weight.rows, weight.cols);
    let rows = y.len() / k;
    assert_eq!(y.len(), rows * k, "whole rows of y");
    assert_eq!(weight.lanes, LANES, "a matrix for products");
    assert!(rows == 0 || x.len() >= (rows - 1) * x_stride + n, "x holds {rows} rows");
    match &weight.panels {
        Panels::F32(p) => transposed(x, x_stride, p.as_slice(), (rows, n, k), y),
        Panels::F16(p) => transposed(x, x_stride, p.as_slice(), (rows, n, k), y),
        Panels::BF16(p) => transposed(x, x_stride, p.as_slice(), (rows, n, k), y),
        Panels::Q8_0(p) => transposed(x, x_stride, p, (rows, n, k), y),
    }
}

fn transposed<W: Source>(x: &[f32], x_stride: usize, w: W, (rows, n, k): (usize, usize, usize), y: &mut [f32]) {
    if rows == 0 {
        return;
    }
    let panels = k.div_ceil(LANES);
    let most = parts(rows * n * k / SPLIT_WORK);
    let panel_parts = most.max(k.div_ceil(TRANSPOSED_BLOCK.1)).min(panels.div_ceil(2));
    // By rows as well where a low rank leaves too few columns.
    let row_parts = (most / panel_parts).min(rows / PART_ROWS).max(1);
    let part_rows = rows.div_ceil(row_parts).next_multiple_of(12);
    let y = Shared::new(y);
    each(row_parts * panel_parts, |part| {
        let (row, part) = (part / panel_parts * part_rows, part % panel_parts);
        let rows = row.min(rows)..(row + part_rows).min(rows);
        let panels = panels * part / panel_parts..panels * (part + 1) / panel_parts;
        let mut transposed = vec![0f32; TRANSPOSED_BLOCK.0.min(n) * panels.len() * LANES];
        for first in (0..n).step_by(TRANSPOSED_BLOCK.0) {
            let outputs = first..n.min(first + TRANSPOSED_BLOCK.0);
            dispatch(Transpose { w, k, outputs: outputs.clone(), panels: panels.clone(), transposed: &mut transposed });
            dispatch(Part {
                x: &x[first..],
                x_stride,
                w: transposed.as_slice(),
                k: outputs.len(),
                start: Start::Add,
                // SAFETY: the columns of these panels lie in y; in these rows they belong to this part alone.
                y: unsafe { y.add(panels.start * LANES) },
                y_stride: k,
                rows: rows.clone(),
                outputs: 0..(panels.end * LANES).min(k) - panels.start * LANES,
            });
        }
    });
}

/// Copies outputs of a packed matrix so that inputs are side by side: `[panel of inputs][output][16]`.
struct Transpose<'a, W> {
    w: W,
    k: usize,
    /// Begins with a panel.
    outputs: Range<usize>,
    /// Panels of inputs.
    panels: Range<usize>,
    transposed: &'a mut [f32],
}

impl<W: Source> Kernel for Transpose<'_, W> {
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
/// `a`: `(rows, R)`; `b`: rows of `C` values, `b_stride` apart; `y`: `(R, C)`.
pub fn outer_sum(a: &[f32], b: &[f32], b_stride: usize, cols: usize, y: &mut [f32]) {
    let height = y.len() / cols;
    let rows = a.len() / height;
    assert!(y.len() == height * cols && a.len() == rows * height, "whole rows of y and a");
    y.fill(0.0);
    if rows == 0 {
        return;
    }
    assert!(b.len() >= (rows - 1) * b_stride + cols, "b holds {rows} rows");
    let panels = cols.div_ceil(LANES);
    let most = parts(rows * height * cols / SPLIT_WORK).min(panels.div_ceil(2));
    let y = Shared::new(y);
    each(most, |part| {
        let panels = panels * part / most..panels * (part + 1) / most;
        dispatch(Outer { a, b, b_stride, height, rows, cols, panels, y });
    });
}

/// One thread's columns of a sum over rows.
struct Outer<'a> {
    a: &'a [f32],
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
            let a = &self.a[first * self.height..][..steps * self.height];
            let b = &self.b[first * self.b_stride..][..(steps - 1) * self.b_stride + self.cols];
            // SAFETY: steps rows of `height` values in `a`, and of whole vectors in `b`; these columns of y are this part's.
            unsafe {
                let a = Left { first: a.as_ptr(), row: 1, step: self.height };
                let b = Right { first: b.as_ptr().add(whole.start * LANES), vector: LANES, step: self.b_stride };
                let y = self.y.get().add(whole.start * LANES);
                rows_by_vectors::<S>((self.height, whole.len(), steps), a, b, y, self.cols, true);
            }
            if whole.end < self.panels.end {
                for r in 0..self.height {
                    for c in whole.end * LANES..self.cols {
                        // SAFETY: row r and column c of y, which are this part's.
                        let y = unsafe { &mut *self.y.get().add(r * self.cols + c) };
                        *y = (0..steps).fold(*y, |sum, t| S::fma1(a[t * self.height + r], b[t * self.b_stride + c], sum));
                    }
                }
            }
        }
    }
}

/// A value that weights are stored as.
pub trait Weight: Copy + Send + Sync {
    /// Sixteen values as F32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load(p) }
    }
}
impl Weight for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load_f16(p) }
    }
}
impl Weight for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::load_bf16(p) }
    }
}

/// Panels that a product reads.
trait Source: Copy + Send + Sync {
    type Value: Weight;
    /// Columns that are read at once.
    const COLS: usize;
    /// For those of one panel, where they are not in memory as they are read.
    type Room: Default;
    /// Columns that are read at once by a single row, and how: widened values would be stored for nobody else.
    const ONCE_COLS: usize;
    type Once<S: Simd>: Columns<S>;

    /// Columns of a panel of `k` inputs, sixteen values each.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    unsafe fn columns<'a, S: Simd>(
        self,
        panel: usize,
        k: usize,
        columns: Range<usize>,
        room: &'a mut Self::Room,
    ) -> &'a [Self::Value]
    where
        Self: 'a;

    /// The same to be read once: at most [`ONCE_COLS`](Self::ONCE_COLS), from a multiple of it on.
    ///
    /// # Safety
    /// As [`columns`](Self::columns); it lives no longer than the panels.
    unsafe fn once<S: Simd>(self, panel: usize, k: usize, columns: Range<usize>) -> Self::Once<S>;
}

impl<W: Weight> Source for &[W] {
    type Value = W;
    const COLS: usize = BLOCK_COLS;
    type Room = ();
    const ONCE_COLS: usize = BLOCK_COLS;
    type Once<S: Simd> = *const W;

    #[inline(always)]
    unsafe fn columns<'a, S: Simd>(self, panel: usize, k: usize, columns: Range<usize>, (): &'a mut ()) -> &'a [W]
    where
        Self: 'a,
    {
        &self[(panel * k + columns.start) * LANES..][..columns.len() * LANES]
    }

    #[inline(always)]
    unsafe fn once<S: Simd>(self, panel: usize, k: usize, columns: Range<usize>) -> *const W {
        self[(panel * k + columns.start) * LANES..][..columns.len() * LANES].as_ptr()
    }
}

impl Source for &Q8_0 {
    type Value = f32;
    const COLS: usize = WIDENED;
    type Room = Widened;
    const ONCE_COLS: usize = q8_0::BLOCK;
    type Once<S: Simd> = q8_0::Block<S>;

    #[inline(always)]
    unsafe fn columns<'a, S: Simd>(self, panel: usize, k: usize, columns: Range<usize>, room: &'a mut Widened) -> &'a [f32]
    where
        Self: 'a,
    {
        // SAFETY: passed on from the caller.
        unsafe { self.widen::<S>(panel, k, columns, room) }.as_flattened()
    }

    #[inline(always)]
    unsafe fn once<S: Simd>(self, panel: usize, k: usize, columns: Range<usize>) -> q8_0::Block<S> {
        // SAFETY: passed on from the caller.
        unsafe { self.block::<S>(panel, k, columns) }
    }
}

/// Where the register tile reads weights.
pub(super) trait Columns<S: Simd>: Copy {
    /// Sixteen values that begin `offset` values behind the first, as F32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load(self, offset: usize) -> S::V;
}

impl<S: Simd, W: Weight> Columns<S> for *const W {
    #[inline(always)]
    unsafe fn load(self, offset: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { W::load::<S>(self.add(offset)) }
    }
}

impl<S: Simd> Columns<S> for q8_0::Block<S> {
    #[inline(always)]
    unsafe fn load(self, offset: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { S::fma(S::load_i8(self.values.add(offset)), self.scale, S::splat(0.0)) }
    }
}

/// One thread's share: some rows, some outputs.
struct Part<'a, W> {
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

impl<W: Source> Kernel for Part<'_, W> {
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
                    // One row is read from memory: two panels keep that busy.
                    let left = if rows == 1 { 2 } else { PANELS }.min(panels.end - panel);
                    // SAFETY: the caller vouches for the instructions of `S`.
                    panel += unsafe {
                        match left {
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

impl<W: Source> Part<'_, W> {
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
        // The start value of each sum, where these columns are the first.
        let mut bias = [0f32; PANELS * LANES];
        if let Start::Bias(Some(all)) = self.start {
            let own = &all[panel * LANES..self.outputs.end.min((panel + P) * LANES)];
            bias[..own.len()].copy_from_slice(own);
        }
        let start = |col: usize| if col == 0 && matches!(self.start, Start::Bias(_)) { Some(&bias) } else { None };
        if rows == 1 {
            for col in block.clone().step_by(W::ONCE_COLS) {
                let cols = col..block.end.min(col + W::ONCE_COLS);
                let a = &self.x[row * self.x_stride + col..][..cols.len()];
                // SAFETY: `a` and `w` hold as many steps; the output tile is handled in `tile`.
                unsafe {
                    let w = std::array::from_fn::<_, P, _>(|p| self.w.once::<S>(panel + p, self.k, cols.clone()));
                    self.tile::<S, _, 1, P>(a, &w, cols.len(), row, panel, start(col));
                }
            }
            return P;
        }
        for col in block.clone().step_by(W::COLS) {
            let (cols, start) = (W::COLS.min(block.end - col), start(col));
            let mut w = [std::ptr::null(); P];
            for (p, (w, room)) in w.iter_mut().zip(&mut *room).enumerate() {
                // SAFETY: passed on from the caller.
                *w = unsafe { self.w.columns::<S>(panel + p, self.k, col..col + cols, room) }.as_ptr();
            }
            let mut done = 0;
            for tile_rows in tiles::<S, P>(rows) {
                let a = &self.x[(row + done) * self.x_stride + col..][..(tile_rows - 1) * self.x_stride + cols];
                // SAFETY: `a` and `w` hold `cols` steps; the output tile is handled in `tile`.
                unsafe {
                    match tile_rows {
                        12 if 12 * P <= SUMS => self.tile::<S, _, 12, P>(a, &w, cols, row + done, panel, start),
                        6 => self.tile::<S, _, 6, P>(a, &w, cols, row + done, panel, start),
                        4 => self.tile::<S, _, 4, P>(a, &w, cols, row + done, panel, start),
                        2 => self.tile::<S, _, 2, P>(a, &w, cols, row + done, panel, start),
                        _ => self.tile::<S, _, 1, P>(a, &w, cols, row + done, panel, start),
                    }
                }
                done += tile_rows;
            }
        }
        P
    }

    /// `R` rows by `P` panels of the output.
    #[inline(always)]
    unsafe fn tile<S: Simd, B: Columns<S>, const R: usize, const P: usize>(
        &self,
        a: &[f32],
        w: &[B; P],
        cols: usize,
        row: usize,
        panel: usize,
        start: Option<&[f32; PANELS * LANES]>,
    ) {
        let first = panel * LANES;
        let own = self.outputs.start.saturating_sub(first)..(self.outputs.end - first).min(P * LANES);
        // SAFETY: columns `own` of rows `row..row + R` lie in y and belong to this part alone; `first`
        // lies in y too, no later than they do.
        let y = unsafe { self.y.get().add(row * self.y_stride + first) };
        // SAFETY: `a` holds R rows of cols values, `w` points at cols × 16 values each; y is good for the columns
        // `own`, and where these are not the whole tile it goes through a buffer of full width.
        unsafe {
            if own == (0..P * LANES) {
                multiply::<S, _, R, P>(cols, a.as_ptr(), self.x_stride, 1, *w, LANES, y, self.y_stride, start);
                return;
            }
            let mut buffer = [0f32; SUMS * LANES];
            let (y, kept) = (y.add(own.start), buffer.as_mut_ptr().add(own.start));
            if start.is_none() {
                for r in 0..R {
                    std::ptr::copy_nonoverlapping(y.add(r * self.y_stride), kept.add(r * P * LANES), own.len());
                }
            }
            multiply::<S, _, R, P>(cols, a.as_ptr(), self.x_stride, 1, *w, LANES, buffer.as_mut_ptr(), P * LANES, start);
            let kept = buffer.as_ptr().add(own.start);
            for r in 0..R {
                std::ptr::copy_nonoverlapping(kept.add(r * P * LANES), y.add(r * self.y_stride), own.len());
            }
        }
    }
}

/// Rows of values: where the first is, and the next row and the next step from there.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub first: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Vectors of sixteen values: where the first is, and the next vector and the next step from there.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub first: *const f32,
    pub vector: usize,
    pub step: usize,
}

/// `c[r][v] = Σ_i a[r][i] · b[v][i]`, or added to what `c` holds: any number of rows and vectors.
///
/// # Safety
/// The processor has the instructions of `S`; `a` and `b` are good for `steps`, `c` for `rows` rows of `vectors` vectors, `c_row` apart.
#[inline(always)]
pub(super) unsafe fn rows_by_vectors<S: Simd>(
    (rows, vectors, steps): (usize, usize, usize),
    a: Left,
    b: Right,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    let mut done = 0;
    while done < vectors {
        // SAFETY: passed on from the caller.
        done += unsafe {
            let (b, c) = (Right { first: b.first.add(done * b.vector), ..b }, c.add(done * LANES));
            match vectors - done {
                PANELS.. if S::WIDE => all_rows::<S, PANELS>(rows, steps, a, b, c, c_row, add),
                2.. if S::WIDE => all_rows::<S, 2>(rows, steps, a, b, c, c_row, add),
                _ => all_rows::<S, 1>(rows, steps, a, b, c, c_row, add),
            }
        };
    }
}

/// As [`rows_by_vectors`], of `P` vectors; returns `P`.
///
/// # Safety
/// As [`rows_by_vectors`].
#[inline(always)]
unsafe fn all_rows<S: Simd, const P: usize>(
    rows: usize,
    steps: usize,
    a: Left,
    b: Right,
    c: *mut f32,
    c_row: usize,
    add: bool,
) -> usize {
    let zero = [0f32; PANELS * LANES];
    let start = if add { None } else { Some(&zero) };
    let mut done = 0;
    for rows in tiles::<S, P>(rows) {
        // SAFETY: passed on from the caller.
        unsafe {
            let (first, c) = (a.first.add(done * a.row), c.add(done * c_row));
            let vectors = std::array::from_fn::<_, P, _>(|p| b.first.add(p * b.vector));
            match rows {
                12 if 12 * P <= SUMS => multiply::<S, _, 12, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
                6 => multiply::<S, _, 6, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
                4 => multiply::<S, _, 4, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
                2 => multiply::<S, _, 2, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
                _ => multiply::<S, _, 1, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
            }
        }
        done += rows;
    }
    P
}

/// How `rows` are cut into register tiles: the largest that the registers hold, the rest by the largest that fits.
fn tiles<S: Simd, const P: usize>(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let sizes: &[usize] = if S::WIDE && 12 * P <= SUMS { &[12, 6, 4, 2, 1] } else { &[6, 4, 2, 1] };
        let rows = sizes.iter().copied().find(|&r| r <= left)?;
        left -= rows;
        Some(rows)
    })
}

/// The register tile: `c[r][p] = start[p] + Σ_k a[r][k] · b[p][k]`, or added to what `c` holds where `start` is `None`.
///
/// # Safety
/// The processor has the instructions of `S`; `a` is good for rows `a_row` apart and steps `a_step` apart, each `b` for
/// sixteen values every `b_step`, `c` for `R` rows of `P` vectors, `c_row` apart.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn multiply<S: Simd, B: Columns<S>, const R: usize, const P: usize>(
    steps: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: [B; P],
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    start: Option<&[f32; PANELS * LANES]>,
) {
    // Each row and vector is spelled out, with a constant index: sums that a loop would index stay in memory wherever the compiler
    // does not unroll it, and the product is then ten times slower.
    macro_rules! each {
        (ROW => $work:block) => {
            each!(@ ROW R $work 0 1 2 3 4 5 6 7 8 9 10 11)
        };
        (VECTOR => $work:block) => {
            each!(@ VECTOR P $work 0 1 2 3)
        };
        (@ $index:ident $count:ident $work:block $($value:literal)*) => {
            $(if $count > $value {
                const $index: usize = $value;
                $work
            })*
        };
    }
    // SAFETY: in bounds by this function's contract.
    unsafe {
        let mut sum = [[S::splat(0.0); PANELS]; 12];
        each!(ROW => {
            each!(VECTOR => {
                let from = match start {
                    Some(start) => start.as_ptr().add(VECTOR * LANES),
                    None => c.add(ROW * c_row + VECTOR * LANES).cast_const(),
                };
                sum[ROW][VECTOR] = S::load(from);
            });
        });
        for k in 0..steps {
            let mut vectors = [S::splat(0.0); PANELS];
            each!(VECTOR => { vectors[VECTOR] = b[VECTOR].load(k * b_step); });
            let mut a = a.add(k * a_step);
            each!(ROW => {
                let x = S::splat(*a.add(ROW * a_row));
                each!(VECTOR => { sum[ROW][VECTOR] = S::fma(x, vectors[VECTOR], sum[ROW][VECTOR]); });
                // Or the compiler reads all rows first, has no registers left for the sums, and moves them about in memory.
                if R > 4 {
                    (sum[ROW][0], sum[ROW][1], a) = S::then(sum[ROW][0], sum[ROW][1], a);
                }
            });
        }
        each!(ROW => {
            each!(VECTOR => { S::store(c.add(ROW * c_row + VECTOR * LANES), sum[ROW][VECTOR]); });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Format;
    use super::super::noise;
    use super::super::packed::Use;
    use super::*;

    fn pack(values: &[f32], rows: usize, cols: usize, kept: Format) -> Packed {
        let mut packed = Packed::new(rows, cols, kept, Use::Product).unwrap();
        assert!(packed.fill_f32(0, values));
        packed
    }

    #[test]
    fn every_shape_equals_the_naive_product() {
        for (rows, n, k) in
            [(1, 1, 1), (1, 16, 7), (3, 17, 32), (5, 31, 9), (12, 32, 64), (13, 48, 33), (130, 70, 1100), (7, 100, 2100)]
        {
            for kept in Format::all() {
                let (x, w, bias) = (noise(rows * k, 1), noise(n * k, 2), noise(n, 3));
                let packed = pack(&w, n, k, kept);
                let mut y = vec![f32::NAN; rows * n];
                matmul(&x, k, &packed, Epilogue { bias: Some(&bias), ..Epilogue::default() }, &mut y);
                for t in 0..rows {
                    for o in 0..n {
                        let mut row = vec![0.0; k];
                        packed.row(o, &mut row);
                        let want: f64 =
                            (0..k).map(|i| f64::from(x[t * k + i]) * f64::from(row[i])).sum::<f64>() + f64::from(bias[o]);
                        assert!((f64::from(y[t * n + o]) - want).abs() < 1e-4, "{rows} {n} {k}: {} {want}", y[t * n + o]);
                    }
                }
            }
        }
    }

    #[test]
    fn products_with_the_transpose_and_sums_over_rows_equal_the_naive_ones() {
        for (rows, n, k) in [(1, 1, 1), (3, 17, 32), (13, 48, 33), (130, 600, 70), (70, 33, 1100)] {
            let (x, w, y) = (noise(rows * (n + 3), 1), noise(n * k, 2), noise(rows * k, 3));
            for kept in Format::all() {
                let packed = pack(&w, n, k, kept);
                let mut sum = y.clone();
                matmul_transposed_add(&x, n + 3, &packed, &mut sum);
                let mut rows_of_w = vec![0.0; n * k];
                rows_of_w.chunks_exact_mut(k).enumerate().for_each(|(o, row)| packed.row(o, row));
                for (i, (sum, y)) in sum.iter().zip(&y).enumerate() {
                    let product = |o: usize| f64::from(x[i / k * (n + 3) + o]) * f64::from(rows_of_w[o * k + i % k]);
                    let want = f64::from(*y) + (0..n).map(product).sum::<f64>();
                    assert!((f64::from(*sum) - want).abs() < 1e-4, "{rows} {n} {k}: {sum} {want}");
                }
            }
            let a = noise(rows * 5, 4);
            let mut sum = vec![f32::NAN; 5 * n];
            outer_sum(&a, &x, n + 3, n, &mut sum);
            for (i, sum) in sum.iter().enumerate() {
                let want = (0..rows).map(|t| f64::from(a[t * 5 + i / n]) * f64::from(x[t * (n + 3) + i % n])).sum::<f64>();
                assert!((f64::from(*sum) - want).abs() < 1e-4, "{rows} {n}: {sum} {want}");
            }
        }
    }

    #[test]
    fn an_epilogue_changes_its_outputs_alone() {
        let (n, k) = (600, 70);
        // Start, rank, outputs: they begin and end within panels, overlap, and cross the threads' parts.
        let terms = [(37, 3, 401), (1, 5, 17), (438, 1030, 20), (599, 2, 1), (16, 4, 48)];
        for (rows, kept) in [1, 29, 250].into_iter().flat_map(|rows| Format::all().map(move |kept| (rows, kept))) {
            let (x, packed) = (noise(rows * k, 1), pack(&noise(n * k, 2), n, k, kept));
            let (gain, bias) = (noise(n, 3), noise(n, 4));
            let b = terms.map(|(_, rank, n)| pack(&noise(n * rank, 5), n, rank, kept));
            let inner = terms.map(|(_, rank, ..)| noise(rows * rank, 6));
            let product = |first: usize, rows: usize, all: bool, nan: bool| {
                let none = inner.each_ref().map(|inner| vec![f32::NAN; inner.len()]);
                let term = |i: usize| {
                    let (start, rank, _) = terms[i];
                    let inner = &(if nan { &none } else { &inner })[i][first * rank..][..rows * rank];
                    LowRankTerm { inner, b: &b[i], start }
                };
                let low_rank = [0, 1, 2, 3, 4].map(term);
                let low_rank = if all { &low_rank[..] } else { &[] };
                let epilogue = Epilogue { gain: Some(&gain), bias: Some(&bias), low_rank };
                matmul_new(&x[first * k..], k, &packed, epilogue, rows)
            };
            let (found, plain) = (product(0, rows, true, false), product(0, rows, false, false));
            let mut want: Vec<f64> = plain.iter().map(|y| f64::from(*y)).collect();
            let mut changed = vec![false; n];
            for (((start, rank, n_of), b), inner) in terms.into_iter().zip(&b).zip(&inner) {
                let mut row = vec![0.0; rank];
                for o in 0..n_of {
                    b.row(o, &mut row);
                    changed[start + o] = true;
                    for (t, inner) in inner.chunks_exact(rank).enumerate() {
                        want[t * n + start + o] +=
                            inner.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                    }
                }
            }
            for (i, (found, want)) in found.iter().zip(&want).enumerate() {
                assert!((f64::from(*found) - want).abs() < 1e-4, "{kept:?}, {rows} rows, {i}: {found} {want}");
            }
            for (i, (found, plain)) in product(0, rows, true, true).iter().zip(&plain).enumerate() {
                let same = if changed[i % n] { found.is_nan() } else { found.to_bits() == plain.to_bits() };
                assert!(same, "{kept:?}, {rows} rows, {i}: {found} {plain}");
            }
            for (t, all) in found.chunks_exact(n).enumerate() {
                assert_eq!(product(t, 1, true, false), all, "{kept:?}, row {t}");
            }
            // Without terms and with no factor it is the product alone.
            let mut alone = vec![0.0; rows * n];
            matmul(&x, k, &packed, Epilogue::default(), &mut alone);
            for ((y, plain), (g, b)) in alone.iter().zip(&plain).zip(gain.iter().zip(&bias).cycle()) {
                assert_eq!(y * g + b, *plain);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        let (rows, n, k) = (29, 75, 1500);
        let x = noise(rows * k, 5);
        for kept in Format::all() {
            let packed = pack(&noise(n * k, 6), n, k, kept);
            let mut all = vec![0.0; rows * n];
            matmul(&x, k, &packed, Epilogue::default(), &mut all);
            for t in 0..rows {
                let mut one = vec![0.0; n];
                matmul(&x[t * k..][..k], k, &packed, Epilogue::default(), &mut one);
                assert_eq!(one, all[t * n..][..n], "{kept:?}");
            }
        }
    }

    #[test]
    fn a_quantised_matrix_gives_the_bits_of_the_one_that_it_stands_for() {
        let (rows, n, k) = (29, 75, 1500);
        let (x, quantised) = (noise(rows * k, 5), pack(&noise(n * k, 6), n, k, Format::Q8_0));
        let mut values = vec![0.0; n * k];
        values.chunks_exact_mut(k).enumerate().for_each(|(o, row)| quantised.row(o, row));
        let dense = pack(&values, n, k, Format::F32);
        let product = |packed: &Packed| {
            let mut y = vec![0.0; rows * n];
            matmul(&x, k, packed, Epilogue::default(), &mut y);
            let mut back = vec![0.0; rows * k];
            matmul_transposed_add(&y, n, packed, &mut back);
            (y, back)
        };
        assert_eq!(product(&quantised), product(&dense));
    }

    #[test]
    fn every_instruction_set_gives_the_same_products() {
        struct Products<'a, W>(&'a [f32], W, (usize, usize));
        impl<W: Source> Kernel for Products<'_, W> {
            type Output = Vec<f32>;
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> Vec<f32> {
                let Self(x, w, (n, k)) = self;
                let (rows, outputs) = (x.len() / k, 0..n);
                let (mut y, mut transposed) = (vec![0.0; rows * n], vec![0.0; n * k.next_multiple_of(LANES)]);
                let (start, y_stride) = (Start::Bias(None), n);
                let part = Part { x, x_stride: k, w, k, start, y: Shared::new(&mut y), y_stride, rows: 0..rows, outputs };
                let transpose = Transpose { w, k, outputs: 0..n, panels: 0..k.div_ceil(LANES), transposed: &mut transposed };
                // SAFETY: passed on from the caller.
                unsafe {
                    part.run::<S>();
                    transpose.run::<S>();
                }
                y.extend(transposed);
                y
            }
        }
        fn compare<W: Source>(x: &[f32], w: W, shape: (usize, usize)) {
            let widest = dispatch(Products(x, w, shape));
            for (name, run) in super::super::simd::levels::<Products<'_, W>>() {
                for (a, b) in run(Products(x, w, shape)).iter().zip(&widest) {
                    // Without a fused multiply-add each step rounds once more.
                    assert!((a - b).abs() <= if name == "portable" { 1e-5 } else { 0.0 }, "{name}: {a} {b}");
                }
            }
        }
        let (n, k) = (50, 70);
        for (kept, rows) in Format::all().flat_map(|kept| [(kept, 17), (kept, 1)]) {
            let x = noise(rows * k, 8);
            match &pack(&noise(n * k, 9), n, k, kept).panels {
                Panels::F32(w) => compare(&x, w.as_slice(), (n, k)),
                Panels::F16(w) => compare(&x, w.as_slice(), (n, k)),
                Panels::BF16(w) => compare(&x, w.as_slice(), (n, k)),
                Panels::Q8_0(w) => compare(&x, w, (n, k)),
            }
        }
    }
}
