//! The product of activations and a packed weight matrix, `y = x Wᵀ + b`.
//!
//! Register tiles of up to twelve rows by two panels (thirty-two outputs); each output is one chain of fused multiply-adds
//! over the columns in order, whatever the tile, so the number of rows changes no bit of a row's result.
//! Blocking after Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

use super::packed::{Packed, Panels};
use super::parallel::{Shared, each, parts};
use super::simd::{Kernel, LANES, Simd, dispatch};
use half::{bf16, f16};

/// Columns of a block: what of a pair of panels stays in the first caches while the rows of a block pass.
const BLOCK_COLS: usize = 1024;
/// Values of a block of rows, for the second cache: half a megabyte. The more rows it has, the less often the panels are read.
const BLOCK_VALUES: usize = 120 * 1024;
/// Rows below which a part of its own does not pay: each part reads all its panels again.
const PART_ROWS: usize = 60;
/// Multiply-adds below which a part of its own does not pay.
const SPLIT_WORK: usize = 1 << 17;

/// `y[t][n] = Σ_k x[t][k] · W[n][k] + bias[n]` for every row `t`.
///
/// # Shape
/// `x`: rows of `W.cols()` values, `x_stride` apart; `y`: `(rows, W.rows())`; `bias`: `W.rows()` values.
pub fn matmul(x: &[f32], x_stride: usize, weight: &Packed, bias: Option<&[f32]>, y: &mut [f32]) {
    let (n, k) = (weight.rows, weight.cols);
    let rows = y.len() / n;
    assert_eq!(y.len(), rows * n, "whole rows of y");
    assert_eq!(weight.lanes, LANES, "a matrix for products");
    assert!(rows == 0 || x.len() >= (rows - 1) * x_stride + k, "x holds {rows} rows");
    assert!(bias.is_none_or(|b| b.len() == n), "a bias for each output");
    match &weight.panels {
        Panels::F32(p) => product(x, x_stride, p, (rows, n, k), bias, y),
        Panels::F16(p) => product(x, x_stride, p, (rows, n, k), bias, y),
        Panels::BF16(p) => product(x, x_stride, p, (rows, n, k), bias, y),
    }
}

fn product<W: Weight>(x: &[f32], x_stride: usize, w: &[W], shape: (usize, usize, usize), bias: Option<&[f32]>, y: &mut [f32]) {
    let (rows, n, k) = shape;
    let panels = n.div_ceil(LANES);
    assert_eq!(w.len(), panels * LANES * k, "whole panels");
    let pairs = panels.div_ceil(2);
    // By rows where there are many, so that a part's rows meet all panels while they are in its cache; the rest by panels.
    let most = parts(rows * n * k / SPLIT_WORK);
    let row_parts = most.min(rows.div_ceil(PART_ROWS)).max(1);
    let panel_parts = most.div_ceil(row_parts).min(pairs);
    let part_rows = rows.div_ceil(row_parts).next_multiple_of(12);
    let y = Shared::new(y);
    each(row_parts * panel_parts, |part| {
        let (row, panel) = (part / panel_parts * part_rows, part % panel_parts);
        dispatch(Part {
            x,
            x_stride,
            w,
            rows: row.min(rows)..(row + part_rows).min(rows),
            n,
            k,
            bias,
            y,
            panels: pairs * panel / panel_parts * 2..(pairs * (panel + 1) / panel_parts * 2).min(panels),
        });
    });
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

/// One thread's share: some rows, some panels.
struct Part<'a, W> {
    x: &'a [f32],
    x_stride: usize,
    w: &'a [W],
    rows: std::ops::Range<usize>,
    n: usize,
    k: usize,
    bias: Option<&'a [f32]>,
    y: Shared<f32>,
    panels: std::ops::Range<usize>,
}

impl<W: Weight> Kernel for Part<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Blocks of equal height, in whole register tiles.
        let most = (BLOCK_VALUES / self.k.clamp(1, BLOCK_COLS)).max(12);
        let block_rows = self.rows.len().div_ceil(self.rows.len().div_ceil(most).max(1)).next_multiple_of(12);
        for row in self.rows.clone().step_by(block_rows.max(12)) {
            let rows = block_rows.min(self.rows.end - row);
            for col in (0..self.k).step_by(BLOCK_COLS) {
                let cols = BLOCK_COLS.min(self.k - col);
                let mut panel = self.panels.start;
                while panel < self.panels.end {
                    // SAFETY: the caller vouches for the instructions of `S`.
                    unsafe {
                        if S::WIDE && panel + 1 < self.panels.end {
                            self.rows_by_panels::<S, 2>(row, rows, col, cols, panel);
                            panel += 2;
                        } else {
                            self.rows_by_panels::<S, 1>(row, rows, col, cols, panel);
                            panel += 1;
                        }
                    }
                }
            }
        }
    }
}

impl<W: Weight> Part<'_, W> {
    /// All rows of a block against `P` panels.
    #[inline(always)]
    unsafe fn rows_by_panels<S: Simd, const P: usize>(&self, row: usize, rows: usize, col: usize, cols: usize, panel: usize) {
        // The start value of each sum, where this block is the first.
        let mut start = [0f32; 2 * LANES];
        if let Some(bias) = self.bias {
            let bias = &bias[panel * LANES..self.n.min((panel + P) * LANES)];
            start[..bias.len()].copy_from_slice(bias);
        }
        let start = if col == 0 { Some(&start) } else { None };
        let w: [*const W; P] =
            std::array::from_fn(|p| self.w[(panel + p) * LANES * self.k + col * LANES..][..cols * LANES].as_ptr());
        let mut done = 0;
        for tile_rows in tiles::<S>(rows) {
            let a = &self.x[(row + done) * self.x_stride + col..][..(tile_rows - 1) * self.x_stride + cols];
            // SAFETY: `a` and `w` hold `cols` steps; the output tile is handled in `tile`.
            unsafe {
                match tile_rows {
                    12 => self.tile::<S, 12, P>(a, &w, cols, row + done, panel, start),
                    6 => self.tile::<S, 6, P>(a, &w, cols, row + done, panel, start),
                    4 => self.tile::<S, 4, P>(a, &w, cols, row + done, panel, start),
                    2 => self.tile::<S, 2, P>(a, &w, cols, row + done, panel, start),
                    _ => self.tile::<S, 1, P>(a, &w, cols, row + done, panel, start),
                }
            }
            done += tile_rows;
        }
    }

    /// `R` rows by `P` panels of the output.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const P: usize>(
        &self,
        a: &[f32],
        w: &[*const W; P],
        cols: usize,
        row: usize,
        panel: usize,
        start: Option<&[f32; 2 * LANES]>,
    ) {
        let first = panel * LANES;
        let width = (self.n - first).min(P * LANES);
        // SAFETY: rows `row..row + R` and columns `first..first + width` lie in y and belong to this part alone.
        let y = unsafe { self.y.get().add(row * self.n + first) };
        // SAFETY: `a` holds R rows of cols values, `w` points at cols × 16 values each; y is good for `width` columns, and a narrower
        // tile goes through a buffer of full width.
        unsafe {
            if width == P * LANES {
                multiply::<S, W, R, P>(cols, a.as_ptr(), self.x_stride, 1, *w, LANES, y, self.n, start);
                return;
            }
            let mut buffer = [0f32; 12 * 2 * LANES];
            if start.is_none() {
                for r in 0..R {
                    std::ptr::copy_nonoverlapping(y.add(r * self.n), buffer.as_mut_ptr().add(r * P * LANES), width);
                }
            }
            multiply::<S, W, R, P>(cols, a.as_ptr(), self.x_stride, 1, *w, LANES, buffer.as_mut_ptr(), P * LANES, start);
            for r in 0..R {
                std::ptr::copy_nonoverlapping(buffer.as_ptr().add(r * P * LANES), y.add(r * self.n), width);
            }
        }
    }
}

/// How `rows` are cut into register tiles: the largest that the registers hold, the rest by the largest that fits.
pub(super) fn tiles<S: Simd>(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let sizes: &[usize] = if S::WIDE { &[12, 6, 4, 2, 1] } else { &[6, 4, 2, 1] };
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
pub(super) unsafe fn multiply<S: Simd, W: Weight, const R: usize, const P: usize>(
    steps: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: [*const W; P],
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    start: Option<&[f32; 2 * LANES]>,
) {
    // Each row is spelled out, with a constant index: sums that a loop would index stay in memory wherever the compiler does
    // not unroll it, and the product is then ten times slower.
    let mut sum = [[unsafe { S::splat(0.0) }; 2]; 12]; // SAFETY: the processor has the instructions of `S`.
    macro_rules! each_row {
        ($row:ident => $work:block) => {
            each_row!(@ $row $work 0 1 2 3 4 5 6 7 8 9 10 11)
        };
        (@ $row:ident $work:block $($index:literal)*) => {
            $(if R > $index {
                const $row: usize = $index;
                $work
            })*
        };
    }
    // SAFETY: in bounds by this function's contract.
    unsafe {
        each_row!(ROW => {
            let (first, second) = match start {
                Some(start) => (start.as_ptr(), start.as_ptr().add(LANES)),
                None => (c.add(ROW * c_row).cast_const(), c.add(ROW * c_row + LANES).cast_const()),
            };
            sum[ROW][0] = S::load(first);
            if P > 1 {
                sum[ROW][1] = S::load(second);
            }
        });
        for k in 0..steps {
            let first = W::load::<S>(b[0].add(k * b_step));
            let second = if P > 1 { W::load::<S>(b[P - 1].add(k * b_step)) } else { first };
            let mut a = a.add(k * a_step);
            each_row!(ROW => {
                let x = S::splat(*a.add(ROW * a_row));
                sum[ROW][0] = S::fma(x, first, sum[ROW][0]);
                if P > 1 {
                    sum[ROW][1] = S::fma(x, second, sum[ROW][1]);
                }
                // Or the compiler reads all rows first, has no registers left for the sums, and moves them about in memory.
                if R > 4 {
                    (sum[ROW][0], sum[ROW][1], a) = S::then(sum[ROW][0], sum[ROW][1], a);
                }
            });
        }
        each_row!(ROW => {
            S::store(c.add(ROW * c_row), sum[ROW][0]);
            if P > 1 {
                S::store(c.add(ROW * c_row + LANES), sum[ROW][1]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::super::packed::{StoredType, Use};
    use super::*;

    fn pack(values: &[f32], rows: usize, cols: usize, stored: StoredType) -> Packed {
        let mut packed = Packed::new(rows, cols, stored, Use::Product).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(packed.fill(0, &bytes, StoredType::F32));
        packed
    }

    #[test]
    fn every_shape_equals_the_naive_product() {
        for (rows, n, k) in
            [(1, 1, 1), (1, 16, 7), (3, 17, 32), (5, 31, 9), (12, 32, 64), (13, 48, 33), (130, 70, 1100), (7, 100, 2100)]
        {
            for stored in [StoredType::F32, StoredType::F16, StoredType::BF16] {
                let (x, w, bias) = (noise(rows * k, 1), noise(n * k, 2), noise(n, 3));
                let packed = pack(&w, n, k, stored);
                let mut y = vec![f32::NAN; rows * n];
                matmul(&x, k, &packed, Some(&bias), &mut y);
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
    fn a_row_has_the_same_bits_in_any_company() {
        let (rows, n, k) = (29, 75, 1500);
        let x = noise(rows * k, 5);
        let packed = pack(&noise(n * k, 6), n, k, StoredType::BF16);
        let mut all = vec![0.0; rows * n];
        matmul(&x, k, &packed, None, &mut all);
        for t in 0..rows {
            let mut one = vec![0.0; n];
            matmul(&x[t * k..][..k], k, &packed, None, &mut one);
            assert_eq!(one, all[t * n..][..n]);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_product() {
        struct Product<'a>(&'a [f32], &'a Packed);
        impl Kernel for Product<'_> {
            type Output = Vec<f32>;
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> Vec<f32> {
                let Self(x, packed) = self;
                let Panels::BF16(w) = &packed.panels else { panic!("BF16 weights") };
                let (n, k) = (packed.rows, packed.cols);
                let (rows, panels) = (x.len() / k, 0..n.div_ceil(LANES));
                let mut y = vec![0.0; rows * n];
                let part = Part { x, x_stride: k, w, rows: 0..rows, n, k, bias: None, y: Shared::new(&mut y), panels };
                // SAFETY: passed on from the caller.
                unsafe { part.run::<S>() };
                y
            }
        }
        let (rows, n, k) = (17, 50, 70);
        let x = noise(rows * k, 8);
        let packed = pack(&noise(n * k, 9), n, k, StoredType::BF16);
        let widest = dispatch(Product(&x, &packed));
        for (name, run) in super::super::simd::levels::<Product<'_>>() {
            for (a, b) in run(Product(&x, &packed)).iter().zip(&widest) {
                // Without a fused multiply-add each step rounds once more.
                assert!((a - b).abs() <= if name == "portable" { 1e-5 } else { 0.0 }, "{name}: {a} {b}");
            }
        }
    }
}
