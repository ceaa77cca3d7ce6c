//! Where a product reads a matrix: of each way to keep one, its columns as F32.

use std::ops::Range;

use half::{bf16, f16};

use super::BLOCK_COLS;
use super::tile::{ByColumns, Columns, OneRow, PANELS};
use crate::kernels::planes::{Panel, Planes};
use crate::kernels::simd::{LANES, Simd};

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
pub trait PanelSource: Copy + Send + Sync {
    type Value: Weight;
    /// Columns that are read at once.
    const COLS: usize;
    /// For those of one panel, where they are not in memory as they are read.
    type Room: Default;
    /// Columns that are read at once by a single row, and how: widened values would be stored for nobody else.
    const ONCE_COLS: usize;
    type Once<S: Simd>: OneRow<S>;

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

impl<W: Weight> PanelSource for &[W] {
    type Value = W;
    const COLS: usize = BLOCK_COLS;
    type Room = ();
    const ONCE_COLS: usize = BLOCK_COLS;
    type Once<S: Simd> = ByColumns<*const W>;

    #[inline(always)]
    unsafe fn columns<'a, S: Simd>(self, panel: usize, k: usize, columns: Range<usize>, (): &'a mut ()) -> &'a [W]
    where
        Self: 'a,
    {
        &self[(panel * k + columns.start) * LANES..][..columns.len() * LANES]
    }

    #[inline(always)]
    unsafe fn once<S: Simd>(self, panel: usize, k: usize, columns: Range<usize>) -> ByColumns<*const W> {
        ByColumns(self[(panel * k + columns.start) * LANES..][..columns.len() * LANES].as_ptr())
    }
}

/// Columns that are widened at once: 16 kB of four panels, so that they are still in the first cache when the product reads them.
pub const WIDENED: usize = 64;

/// Columns of a panel in F32; a column is a cache line.
#[repr(align(64))]
pub struct Widened([[f32; LANES]; WIDENED]);

impl Default for Widened {
    fn default() -> Self {
        Self([[0.0; LANES]; WIDENED])
    }
}

impl Widened {
    /// The first columns.
    pub fn first(&mut self, columns: usize) -> &mut [[f32; LANES]] {
        &mut self.0[..columns]
    }
}

impl<'p> PanelSource for &'p Planes {
    type Value = f32;
    const COLS: usize = WIDENED;
    type Room = Widened;
    const ONCE_COLS: usize = BLOCK_COLS;
    type Once<S: Simd> = PanelColumns<'p>;

    #[inline(always)]
    unsafe fn columns<'a, S: Simd>(self, panel: usize, _: usize, columns: Range<usize>, room: &'a mut Widened) -> &'a [f32]
    where
        Self: 'a,
    {
        let count = columns.len();
        // SAFETY: passed on from the caller.
        unsafe { self.panel(panel).widen::<S>(columns, room.first(WIDENED)) };
        room.first(count).as_flattened()
    }

    #[inline(always)]
    unsafe fn once<S: Simd>(self, panel: usize, _: usize, columns: Range<usize>) -> PanelColumns<'p> {
        PanelColumns { panel: self.panel(panel), first: columns.start }
    }
}

/// Columns of a panel of bit planes, from one on.
#[derive(Clone, Copy)]
pub struct PanelColumns<'a> {
    panel: Panel<'a>,
    first: usize,
}

impl<S: Simd> OneRow<S> for PanelColumns<'_> {
    #[inline(always)]
    unsafe fn multiply<const P: usize>(
        b: [Self; P],
        steps: usize,
        a: *const f32,
        c: *mut f32,
        start: Option<&[f32; PANELS * LANES]>,
    ) {
        let columns = b[0].first..b[0].first + steps;
        // SAFETY: `start` has sixteen values for each of at most four panels; the rest is passed on from the caller.
        unsafe {
            let from = start.map_or(c.cast_const(), |start| start.as_ptr());
            let mut sums = from.cast::<[[f32; LANES]; P]>().read();
            Panel::add_products::<S, P>(b.map(|b| b.panel), columns, a, &mut sums);
            c.cast::<[[f32; LANES]; P]>().write(sums);
        }
    }
}

impl<S: Simd, W: Weight> Columns<S> for *const W {
    #[inline(always)]
    unsafe fn load(self, offset: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { W::load::<S>(self.add(offset)) }
    }
}
