//! The register tile, and products of plain rows that are made of it.

use crate::kernels::simd::{LANES, Simd};

/// The sums of a register tile, in vectors.
pub const SUMS: usize = 24;
/// Panels that are multiplied together.
pub const PANELS: usize = 4;

/// Where the register tile reads weights.
pub trait Columns<S: Simd>: Copy {
    /// Sixteen values that begin `offset` values behind the first, as F32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load(self, offset: usize) -> S::V;
}

/// Weights of some columns that a single row is multiplied with.
pub trait OneRow<S: Simd>: Copy {
    /// `c[p] = start[p] + Σ_k a[k] · b[p][k]`, or added to what `c` holds where `start` is `None`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `a` and each `b` are good for `steps`, `c` for `P` vectors.
    unsafe fn multiply<const P: usize>(
        b: [Self; P],
        steps: usize,
        a: *const f32,
        c: *mut f32,
        start: Option<&[f32; PANELS * LANES]>,
    );
}

/// Columns as they are read for several rows.
#[derive(Clone, Copy)]
pub struct ByColumns<B>(pub B);

impl<S: Simd, B: Columns<S>> OneRow<S> for ByColumns<B> {
    #[inline(always)]
    unsafe fn multiply<const P: usize>(
        b: [Self; P],
        steps: usize,
        a: *const f32,
        c: *mut f32,
        start: Option<&[f32; PANELS * LANES]>,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { multiply::<S, B, 1, P>(steps, a, 0, 1, b.map(|b| b.0), LANES, c, 0, start) }
    }
}

/// Rows of values: where the first is, and the next row and the next step from there.
#[derive(Clone, Copy)]
pub struct Left {
    pub first: *const f32,
    pub row: usize,
    pub step: usize,
}

/// Vectors of sixteen values: where the first is, and the next vector and the next step from there.
#[derive(Clone, Copy)]
pub struct Right {
    pub first: *const f32,
    pub vector: usize,
    pub step: usize,
}

/// `c[r][v] = Σ_i a[r][i] · b[v][i]`, or added to what `c` holds: any number of rows and vectors.
///
/// # Safety
/// The processor has the instructions of `S`; `a` and `b` are good for `steps`, `c` for `rows` rows of `vectors` vectors, `c_row` apart.
#[inline(always)]
pub unsafe fn rows_by_vectors<S: Simd>(
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
                2.. if !S::WIDE && S::PAIRS && rows == 1 => all_rows::<S, 2>(rows, steps, a, b, c, c_row, add),
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
                12 if const { fits::<S>(12, P) } => {
                    multiply::<S, _, 12, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start)
                }
                6 if const { fits::<S>(6, P) } => {
                    multiply::<S, _, 6, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start)
                }
                4 if const { fits::<S>(4, P) } => {
                    multiply::<S, _, 4, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start)
                }
                2 if const { fits::<S>(2, P) } => {
                    multiply::<S, _, 2, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start)
                }
                _ => multiply::<S, _, 1, P>(steps, first, a.row, a.step, vectors, b.step, c, c_row, start),
            }
        }
        done += rows;
    }
    P
}

/// Whether the registers hold the sums of so many rows and vectors.
#[inline(always)]
pub const fn fits<S: Simd>(rows: usize, vectors: usize) -> bool {
    if S::WIDE { rows * vectors <= SUMS } else { vectors == 1 && rows <= 6 || rows == 1 }
}

/// How `rows` are cut into register tiles: the largest that the registers hold, the rest by the largest that fits.
pub fn tiles<S: Simd, const P: usize>(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let rows = [12, 6, 4, 2, 1].into_iter().find(|&rows| rows <= left && fits::<S>(rows, P))?;
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
pub unsafe fn multiply<S: Simd, B: Columns<S>, const R: usize, const P: usize>(
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
    // does not unroll it, and the product is then ten times slower. Conditions are constants by name, so that what does not hold is not
    // compiled at all.
    macro_rules! each {
        (ROW => $work:block) => {
            each!(@ ROW R $work 0 1 2 3 4 5 6 7 8 9 10 11)
        };
        (VECTOR => $work:block) => {
            each!(@ VECTOR P $work 0 1 2 3)
        };
        (@ $index:ident $count:ident $work:block $($value:literal)*) => {
            $(if const { $count > $value } {
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
                if const { R > 4 } {
                    (sum[ROW][0], sum[ROW][1], a) = S::then(sum[ROW][0], sum[ROW][1], a);
                }
            });
        }
        each!(ROW => {
            each!(VECTOR => { S::store(c.add(ROW * c_row + VECTOR * LANES), sum[ROW][VECTOR]); });
        });
    }
}
