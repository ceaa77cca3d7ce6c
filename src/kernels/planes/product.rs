//! Products with activations of eight bits: sums of whole numbers within a group of columns, and of F32 over groups.
//!
//! Of an output, for each 32 columns in their order, for each group in them: `S = Σ code · q - middle · Σ q`, exact in 32 bits;
//! `y = scale · (a · S) + y`, and `y = min · (a · Σ q) + y`. Each step of F32 is one instruction that rounds once, and no sum is
//! cut: rows alone and in company, any cut into threads and all instructions with fused multiply-adds give the same bits.
//!
//! One row reads codes in registers, panel after panel. For more rows they are written out as bytes, a span of two panels, which stays
//! in the first cache while all rows pass.

use std::ops::Range;

use super::{CHUNK, Coding, HALF, LINE, Levels, Planes, SPAN, Scales, Segment, Span, UNSIGNED, codes, scale_and_min};
use crate::kernels::dots::{Dots, DotsKernel};
use crate::kernels::int8::{Int8Rows, Record, TILE_ROWS, tiles};
use crate::kernels::parallel::Shared;
use crate::kernels::simd::{LANES, Simd};

/// Bytes of activations that stay in the second cache while panels pass.
const BLOCK_BYTES: usize = 512 * 1024;
/// Columns below which a byte is too little for an activation: errors of few products do not average out, and logits of models of such
/// a size moved by as much as a cosine of 0.994.
const LEAST_COLS: usize = 512;
/// Panels that several rows are multiplied with together, where registers hold so many sums.
const PANELS: usize = 2;

/// A part of a product.
pub struct Product<'a> {
    pub x: &'a Int8Rows,
    pub rows: Range<usize>,
    /// Of the matrix. The first begins a panel; the last ends one or is the last of all.
    pub outputs: Range<usize>,
    /// What sums begin with.
    pub bias: Option<&'a [f32]>,
    /// `(rows, N)`: these outputs of these rows are written, by nobody else.
    pub y: Shared<f32>,
}

impl Coding {
    /// How many bytes a value has in products with this. Rounding to one is an error of 0.5 to 1 %: nothing beside that of codes
    /// of four bits and fewer, but as much as that of five (`benches/divergence.py`: 40 % of a Q5_K_M's divergence).
    fn activation_bytes(&self) -> usize {
        if self.bits < 5 { 1 } else { 2 }
    }
}

impl Planes {
    /// Whether rounded activations are precise enough for this matrix. Where not, arithmetic is F32: there is little of it.
    pub fn takes_int8(&self) -> bool {
        self.cols >= LEAST_COLS || self.activation_bytes().all(|bytes| bytes == 2)
    }

    /// How many bytes a value has in products with some of the rows.
    pub fn activation_bytes(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.coding.activation_bytes())
    }

    /// The parts of a range of outputs that have one format, each with the bytes that a value has in products with them.
    pub fn parts(&self, outputs: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let within = move |segment: &Segment| outputs.start.max(segment.rows.start)..outputs.end.min(segment.rows.end);
        let parts = self.segments.iter().map(move |segment| (within(segment), segment.coding.activation_bytes()));
        parts.filter(|(rows, _)| !rows.is_empty())
    }

    /// Computes a part; its outputs are one of [`parts`](Self::parts).
    pub fn multiply(&self, product: Product<'_>) {
        let segment = self.segments.iter().find(|segment| segment.rows.contains(&product.outputs.start));
        let Some(segment) = segment else { return };
        assert!(product.outputs.end <= segment.rows.end, "outputs of one format");
        assert!((product.outputs.start - segment.rows.start).is_multiple_of(LANES), "whole panels");
        assert_eq!(product.x.planes(), segment.coding.activation_bytes(), "rows for this format");
        let all = self.segments.last().map_or(0, |last| last.rows.end);
        crate::kernels::dots::dispatch(Work { segment, product, y_stride: all });
    }
}

struct Work<'a> {
    segment: &'a Segment,
    product: Product<'a>,
    y_stride: usize,
}

/// How codes become bytes.
const CODE: u8 = 0;
const TABLE: u8 = 1;
const EIGHT: u8 = 2;

impl DotsKernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        let coding = self.segment.coding;
        let halves = coding.group == HALF;
        // SAFETY: passed on from the caller.
        unsafe {
            match (coding.bits, coding.levels) {
                (1, _) => self.by_codes::<D, 1, TABLE, false, false, 1>(),
                (2, Levels::Unsigned) if halves => self.by_codes::<D, 2, CODE, true, true, 1>(),
                (2, Levels::Unsigned) => self.by_codes::<D, 2, CODE, false, true, 1>(),
                (2, _) => self.by_codes::<D, 2, TABLE, false, false, 1>(),
                (3, Levels::Unsigned) => self.by_codes::<D, 3, CODE, false, true, 1>(),
                (3, Levels::Signed) => self.by_codes::<D, 3, CODE, true, false, 1>(),
                (3, _) if halves => self.by_codes::<D, 3, TABLE, true, false, 1>(),
                (3, _) => self.by_codes::<D, 3, TABLE, false, false, 1>(),
                (4, Levels::Unsigned) => self.by_codes::<D, 4, CODE, false, true, 1>(),
                (4, Levels::Signed) => self.by_codes::<D, 4, CODE, false, false, 1>(),
                (4, _) if halves => self.by_codes::<D, 4, TABLE, true, false, 1>(),
                (4, _) => self.by_codes::<D, 4, TABLE, false, false, 1>(),
                (5, Levels::Unsigned) => self.by_codes::<D, 5, CODE, false, true, 2>(),
                (5, _) => self.by_codes::<D, 5, CODE, false, false, 2>(),
                (6, Levels::Unsigned) => self.by_codes::<D, 6, CODE, false, true, 2>(),
                (6, _) => self.by_codes::<D, 6, CODE, true, false, 2>(),
                (_, Levels::Unsigned) => self.by_codes::<D, 8, EIGHT, false, true, 2>(),
                _ => self.by_codes::<D, 8, EIGHT, false, false, 2>(),
            }
        }
    }
}

impl Work<'_> {
    /// `HALVES`: groups are halves of chunks; `MINS`: they have mins, and codes no middle.
    #[inline(always)]
    unsafe fn by_codes<D: Dots, const BITS: u32, const KIND: u8, const HALVES: bool, const MINS: bool, const BYTES: usize>(self) {
        let coding = self.segment.coding;
        assert!(HALVES == (coding.group == HALF) && MINS == coding.scales.has_mins(), "a coding that kernels know");
        assert!(BYTES == coding.activation_bytes(), "rows for this format");
        // SAFETY: passed on from the caller.
        unsafe {
            if self.product.rows.len() == 1 {
                self.one_row::<D, BITS, KIND, HALVES, MINS, BYTES>();
            } else if D::S::WIDE {
                self.by_panels::<D, BITS, KIND, HALVES, MINS, BYTES, PANELS>();
            } else {
                self.by_panels::<D, BITS, KIND, HALVES, MINS, BYTES, 1>();
            }
        }
    }

    /// One panel after another: what is read lies in memory as it is read, which is what processors read ahead. Two at a time took a
    /// fifth more time.
    #[inline(always)]
    unsafe fn one_row<D: Dots, const BITS: u32, const KIND: u8, const HALVES: bool, const MINS: bool, const BYTES: usize>(&self) {
        for panel in self.panels() {
            for column in (0..self.segment.cols).step_by(SPAN) {
                let w = InSpan::<BITS, KIND> { coding: self.segment.coding, span: self.segment.at(panel, column) };
                // SAFETY: passed on from the caller.
                unsafe { self.tile::<D, _, 1, 1, HALVES, MINS, BYTES>([w], panel, self.product.rows.start, column) };
            }
        }
    }

    /// `P` panels at a time. If fewer are left, what is computed of the others goes nowhere.
    #[inline(always)]
    unsafe fn by_panels<
        D: Dots,
        const BITS: u32,
        const KIND: u8,
        const HALVES: bool,
        const MINS: bool,
        const BYTES: usize,
        const P: usize,
    >(
        &self,
    ) {
        let (rows, panels) = (self.product.rows.clone(), self.panels());
        let spans = |panel: usize, column| -> [_; P] {
            let panel = |p: usize| (panel + p).min(panels.end - 1);
            let span = |p: usize| self.segment.at(panel(p), column);
            std::array::from_fn(|p| InSpan::<BITS, KIND> { coding: self.segment.coding, span: span(p) })
        };
        let row_bytes = self.segment.cols.div_ceil(CHUNK) * Record::of(BYTES).bytes;
        let height = (BLOCK_BYTES / row_bytes / TILE_ROWS).max(2) * TILE_ROWS;
        let mut room: [SpanRoom; P] = std::array::from_fn(|_| SpanRoom::default());
        for first in rows.clone().step_by(height) {
            let rows = first..rows.end.min(first + height);
            for panel in panels.clone().step_by(P) {
                for column in (0..self.segment.cols).step_by(SPAN) {
                    for (w, room) in spans(panel, column).into_iter().zip(&mut room) {
                        // SAFETY: passed on from the caller.
                        unsafe { D::call(Unpack::<_, HALVES, MINS> { w, chunks: self.chunks(column), room }) };
                    }
                    // SAFETY: passed on from the caller.
                    unsafe {
                        if const { KIND == CODE } {
                            let w = room.each_ref().map(InRoom::<false>);
                            self.tiles::<D, _, P, HALVES, MINS, BYTES>(w, panel, rows.clone(), column);
                        } else {
                            let w = room.each_ref().map(InRoom::<true>);
                            self.tiles::<D, _, P, HALVES, MINS, BYTES>(w, panel, rows.clone(), column);
                        }
                    }
                }
            }
        }
    }

    /// All rows of a block against a span of `P` panels.
    #[inline(always)]
    unsafe fn tiles<D: Dots, W: Weights, const P: usize, const HALVES: bool, const MINS: bool, const BYTES: usize>(
        &self,
        w: [W; P],
        panel: usize,
        rows: Range<usize>,
        column: usize,
    ) {
        for (row, height) in tiles(rows) {
            // SAFETY: passed on from the caller.
            unsafe {
                match height {
                    6 => self.tile::<D, W, 6, P, HALVES, MINS, BYTES>(w, panel, row, column),
                    2 => self.tile::<D, W, 2, P, HALVES, MINS, BYTES>(w, panel, row, column),
                    _ => self.tile::<D, W, 1, P, HALVES, MINS, BYTES>(w, panel, row, column),
                }
            }
        }
    }

    /// `R` rows by a span of `P` panels.
    #[inline(always)]
    unsafe fn tile<
        D: Dots,
        W: Weights,
        const R: usize,
        const P: usize,
        const HALVES: bool,
        const MINS: bool,
        const BYTES: usize,
    >(
        &self,
        w: [W; P],
        panel: usize,
        row: usize,
        column: usize,
    ) {
        let (x, chunks) = (self.product.x.tile((row, R), column / CHUNK), self.chunks(column));
        assert!(x.len() >= chunks * R * Record::of(BYTES).bytes, "records of these chunks");
        let first = self.segment.rows.start + panel * LANES;
        let own = self.product.outputs.end.min(first + P * LANES) - first;
        let mut start = [0f32; PANELS * LANES];
        if let Some(bias) = self.product.bias {
            start[..own].copy_from_slice(&bias[first..first + own]);
        }
        let start = (column == 0).then_some(&start);
        // SAFETY: these outputs of these rows lie in y and belong to this part alone; where they are not whole vectors they go
        // through a buffer.
        unsafe {
            let y = self.product.y.get().add(row * self.y_stride + first);
            let tile = |y, y_row| Tile::<W, R, P, HALVES, MINS, BYTES> {
                w,
                middle: self.segment.coding.middle_bits(),
                chunks,
                x: x.as_ptr(),
                y,
                y_row,
                start,
            };
            if own == P * LANES {
                D::call(tile(y, self.y_stride));
                return;
            }
            let mut buffer = [[[0f32; LANES]; P]; R];
            if start.is_none() {
                for (r, to) in buffer.iter_mut().enumerate() {
                    std::ptr::copy_nonoverlapping(y.add(r * self.y_stride), to.as_mut_ptr().cast(), own);
                }
            }
            D::call(tile(buffer.as_mut_ptr().cast(), P * LANES));
            for (r, from) in buffer.iter().enumerate() {
                std::ptr::copy_nonoverlapping(from.as_ptr().cast(), y.add(r * self.y_stride), own);
            }
        }
    }

    /// Of a span that begins with this column.
    fn chunks(&self, column: usize) -> usize {
        SPAN.min(self.segment.cols - column).div_ceil(CHUNK)
    }

    /// Panels of the segment.
    fn panels(&self) -> Range<usize> {
        let outputs = &self.product.outputs;
        (outputs.start - self.segment.rows.start) / LANES..(outputs.end - self.segment.rows.start).div_ceil(LANES)
    }
}

impl Scales {
    fn has_mins(self) -> bool {
        matches!(self, Self::F16AndMin | Self::F16AndZero | Self::TwoLevelsAndMin | Self::TwoLevelsAndMinInByte)
    }
}

impl Coding {
    /// The middle of codes that stand for themselves less it, or of bytes without a sign, as a power of two.
    fn middle_bits(&self) -> u32 {
        if matches!(self.levels, Levels::Table(_)) { 7 } else { self.bits - 1 }
    }
}

/// Where a register tile reads weights.
trait Weights: Copy {
    /// Whether they are bytes already: then a loop over columns is as fast as columns that are spelled out.
    const IN_MEMORY: bool;
    /// Whether they use all of a byte.
    const WIDE: bool;

    /// Of columns `4 · step` to `4 · step + 3` of a chunk.
    ///
    /// # Safety
    /// The processor has the instructions of `D`, and there is such a chunk.
    unsafe fn codes<D: Dots>(self, chunk: usize, step: usize) -> <D::S as Simd>::I;

    /// The scale, and what is added for each -1 of the sum of activations, of a half of a chunk or of all of it.
    ///
    /// # Safety
    /// As [`codes`](Self::codes).
    unsafe fn scale_and_min<D: Dots>(self, chunk: usize, half: usize) -> (<D::S as Simd>::V, <D::S as Simd>::V);
}

/// Codes that become bytes in registers.
#[derive(Clone, Copy)]
struct InSpan<'a, const BITS: u32, const KIND: u8> {
    coding: &'a Coding,
    span: Span<'a>,
}

impl<const BITS: u32, const KIND: u8> Weights for InSpan<'_, BITS, KIND> {
    const IN_MEMORY: bool = false;
    const WIDE: bool = KIND != CODE;

    #[inline(always)]
    unsafe fn codes<D: Dots>(self, chunk: usize, step: usize) -> <D::S as Simd>::I {
        // SAFETY: passed on from the caller.
        unsafe {
            let planes = self.span.bytes.add(self.span.parts.planes + chunk * BITS as usize * LINE);
            let codes = codes::<D::S, BITS, UNSIGNED>(planes, step);
            match KIND {
                TABLE => D::lookup(D::levels(&self.coding.whole), codes),
                EIGHT if D::SIGNED => D::S::xor(codes, D::S::splat_u32(0x8080_8080)),
                _ => codes,
            }
        }
    }

    #[inline(always)]
    unsafe fn scale_and_min<D: Dots>(self, chunk: usize, half: usize) -> (<D::S as Simd>::V, <D::S as Simd>::V) {
        // SAFETY: passed on from the caller.
        unsafe {
            let (scale, min) = scale_and_min::<D::S>(self.coding, &self.span, chunk * CHUNK + half * HALF);
            let scale = if KIND == TABLE { D::S::mul(scale, D::S::splat(self.coding.unit)) } else { scale };
            (scale, D::S::mul(min, D::S::splat(-1.0)))
        }
    }
}

/// A span of a panel as bytes.
#[repr(align(64))]
struct SpanRoom {
    /// Of four columns a vector, or, where matrices are multiplied, of eight columns two of them.
    codes: [[[f32; LANES]; CHUNK / 4]; SPAN / CHUNK],
    /// Of each half of a chunk: the scales and the mins.
    scales: [[[[f32; LANES]; 2]; 2]; SPAN / CHUNK],
}

impl Default for SpanRoom {
    fn default() -> Self {
        Self { codes: [[[0.0; LANES]; CHUNK / 4]; SPAN / CHUNK], scales: [[[[0.0; LANES]; 2]; 2]; SPAN / CHUNK] }
    }
}

#[derive(Clone, Copy)]
struct InRoom<'a, const WIDE: bool>(&'a SpanRoom);

impl<const WIDE: bool> Weights for InRoom<'_, WIDE> {
    const IN_MEMORY: bool = true;
    const WIDE: bool = WIDE;

    #[inline(always)]
    unsafe fn codes<D: Dots>(self, chunk: usize, step: usize) -> <D::S as Simd>::I {
        // SAFETY: passed on from the caller.
        unsafe { D::S::load_u32(self.0.codes.as_ptr().add(chunk).cast::<u8>().add(step * LINE)) }
    }

    #[inline(always)]
    unsafe fn scale_and_min<D: Dots>(self, chunk: usize, half: usize) -> (<D::S as Simd>::V, <D::S as Simd>::V) {
        // SAFETY: passed on from the caller.
        unsafe {
            let pair = self.0.scales.as_ptr().add(chunk).cast::<[[f32; LANES]; 2]>().add(half).cast::<f32>();
            (D::S::load(pair), D::S::load(pair.add(LANES)))
        }
    }
}

/// Writes a span as bytes.
struct Unpack<'a, W, const HALVES: bool, const MINS: bool> {
    w: W,
    chunks: usize,
    room: &'a mut SpanRoom,
}

impl<W: Weights, const HALVES: bool, const MINS: bool> DotsKernel for Unpack<'_, W, HALVES, MINS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        let chunks = self.room.codes.iter_mut().zip(&mut self.room.scales).take(self.chunks);
        for (chunk, (codes, scales)) in chunks.enumerate() {
            macro_rules! steps {
                ($($step:literal)*) => {
                    $({
                        let joined = D::join_steps([self.w.codes::<D>(chunk, $step), self.w.codes::<D>(chunk, $step + 1)]);
                        D::S::store(codes[$step].as_mut_ptr(), D::S::from_bits(joined[0]));
                        D::S::store(codes[$step + 1].as_mut_ptr(), D::S::from_bits(joined[1]));
                    })*
                };
            }
            // SAFETY: the room has whole vectors; the rest is passed on from the caller.
            unsafe {
                steps!(0 2 4 6);
                for (half, [scale, min]) in scales.iter_mut().enumerate().take(1 + usize::from(HALVES)) {
                    let own = self.w.scale_and_min::<D>(chunk, half);
                    D::S::store(scale.as_mut_ptr(), own.0);
                    if MINS {
                        D::S::store(min.as_mut_ptr(), own.1);
                    }
                }
            }
        }
    }
}

/// The register tile: `R` rows by `P` panels, some chunks of them.
struct Tile<'a, W, const R: usize, const P: usize, const HALVES: bool, const MINS: bool, const BYTES: usize> {
    w: [W; P],
    middle: u32,
    chunks: usize,
    /// The records of the first chunk.
    x: *const u8,
    y: *mut f32,
    y_row: usize,
    /// What sums begin with, if not with what `y` holds.
    start: Option<&'a [f32; PANELS * LANES]>,
}

impl<W: Weights, const R: usize, const P: usize, const HALVES: bool, const MINS: bool, const BYTES: usize>
    Tile<'_, W, R, P, HALVES, MINS, BYTES>
{
    /// Codes with mins stand for themselves, but for those of eight bits where bytes have a sign.
    const fn has_middle<D: Dots>() -> bool {
        MINS == (W::WIDE && D::SIGNED)
    }

    /// Two rows at once; if there is one only, it is both of them, and the second's sums go nowhere.
    const fn by_twos<D: Dots>() -> bool {
        W::IN_MEMORY && D::MATRICES
    }

    /// Rows that have sums.
    const fn summed<D: Dots>() -> usize {
        if Self::by_twos::<D>() { R.next_multiple_of(2) } else { R }
    }
}

impl<W: Weights, const R: usize, const P: usize, const HALVES: bool, const MINS: bool, const BYTES: usize> DotsKernel
    for Tile<'_, W, R, P, HALVES, MINS, BYTES>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dots>(self) {
        let (record, half_sums) = (Record::of(BYTES), if HALVES { 0 } else { 8 });
        // As in the tile of F32, rows and vectors are spelled out: sums have constant indices, or they stay in memory. Conditions are
        // constants by name: what does not hold is not compiled at all.
        macro_rules! each {
            (ROW => $work:block) => {
                each!(@ ROW R; $work 0 1 2 3 4 5)
            };
            (SUMMED ROW => $work:block) => {
                each!(@ ROW Self::summed::<D>(); $work 0 1 2 3 4 5)
            };
            (VECTOR => $work:block) => {
                each!(@ VECTOR P; $work 0 1)
            };
            (@ $index:ident $count:expr; $work:block $($value:literal)*) => {
                $(if const { $count > $value } {
                    const $index: usize = $value;
                    $work
                })*
            };
        }
        // SAFETY: records, weights and outputs are there by the contract of whoever made this; the caller vouches for the
        // instructions of `D`.
        unsafe {
            let zero = D::S::splat_u32(0);
            let mut y = [[D::S::splat(0.0); PANELS]; TILE_ROWS];
            each!(ROW => {
                each!(VECTOR => {
                    let from = match self.start {
                        Some(start) => start.as_ptr().add(VECTOR * LANES),
                        None => self.y.add(ROW * self.y_row + VECTOR * LANES).cast_const(),
                    };
                    y[ROW][VECTOR] = D::S::load(from);
                });
            });
            let mut x = self.x;
            for chunk in 0..self.chunks {
                macro_rules! step {
                    ($sums:ident, $plane:literal, $step:expr) => {
                        let mut w = [zero; PANELS];
                        each!(VECTOR => { w[VECTOR] = self.w[VECTOR].codes::<D>(chunk, $step); });
                        each!(ROW => {
                            let x = x.add(ROW * record.bytes + $plane * CHUNK + 4 * $step);
                            each!(VECTOR => { $sums[ROW][VECTOR] = D::dot($sums[ROW][VECTOR], w[VECTOR], x, W::WIDE); });
                        });
                    };
                }
                // The same of two rows and two steps, one of which's weights are in registers: those of both are more than there are.
                macro_rules! two_steps {
                    ($sums:ident, $plane:literal, $first:expr) => {
                        two_steps!($sums, $plane, $first, 0);
                        two_steps!($sums, $plane, $first, 1);
                    };
                    ($sums:ident, $plane:literal, $first:expr, $step:literal) => {
                        each!(VECTOR => {
                            let w = self.w[VECTOR].codes::<D>(chunk, $first + $step);
                            each!(SUMMED ROW => {
                                if const { ROW.is_multiple_of(2) } {
                                    let (x, second) = (x.add($plane * CHUNK + 4 * $first), (ROW | 1).min(R - 1));
                                    let x = [x.add(ROW * record.bytes), x.add(second * record.bytes)];
                                    let sums = [$sums[ROW][VECTOR], $sums[ROW | 1][VECTOR]];
                                    [$sums[ROW][VECTOR], $sums[ROW | 1][VECTOR]] = D::dot_rows::<$step>(sums, w, x, W::WIDE);
                                }
                            });
                        });
                    };
                }
                macro_rules! steps {
                    ($sums:ident, $plane:literal: $($step:literal)*) => {
                        if const { Self::by_twos::<D>() } {
                            for step in [$($step),*].into_iter().step_by(2) {
                                two_steps!($sums, $plane, step);
                            }
                        } else if W::IN_MEMORY {
                            for step in [$($step),*] {
                                step!($sums, $plane, step);
                            }
                        } else {
                            $({ step!($sums, $plane, $step); })*
                        }
                    };
                }
                macro_rules! half {
                    ($half:literal: $($step:literal)*) => {
                        let mut sums = [[zero; PANELS]; TILE_ROWS];
                        // What the middle makes of the sums of activations, which are there with the sign that adds it.
                        macro_rules! middle {
                            (ROW) => {
                                if const { Self::by_twos::<D>() } {
                                    D::join_rows([middle!(@ ROW & !1), middle!(@ (ROW | 1).min(R - 1))])[ROW % 2]
                                } else {
                                    middle!(@ ROW)
                                }
                            };
                            (@ $row:expr) => {{
                                let sum = x.add(($row) * record.bytes + record.sums + half_sums + 4 * $half);
                                let middle = D::S::shl(D::S::splat_u32(sum.cast::<u32>().read_unaligned()), self.middle);
                                // With mins it is added.
                                if MINS { D::add(D::S::xor(middle, D::S::splat_u32(u32::MAX)), D::S::splat_u32(1)) } else { middle }
                            }};
                        }
                        if const { BYTES == 1 } {
                            if const { Self::has_middle::<D>() } {
                                each!(SUMMED ROW => {
                                    let middle = middle!(ROW);
                                    each!(VECTOR => { sums[ROW][VECTOR] = middle; });
                                });
                            }
                            steps!(sums, 0: $($step)*);
                        } else {
                            // First the high bytes, then the low ones.
                            steps!(sums, 0: $($step)*);
                            each!(SUMMED ROW => {
                                let middle = if const { Self::has_middle::<D>() } { middle!(ROW) } else { zero };
                                each!(VECTOR => { sums[ROW][VECTOR] = D::add(D::S::shl(sums[ROW][VECTOR], 7), middle); });
                            });
                            steps!(sums, 1: $($step)*);
                        }
                        each!(SUMMED ROW => {
                            if const { Self::by_twos::<D>() && ROW.is_multiple_of(2) } {
                                each!(VECTOR => {
                                    [sums[ROW][VECTOR], sums[ROW | 1][VECTOR]] =
                                        D::join_rows([sums[ROW][VECTOR], sums[ROW | 1][VECTOR]]);
                                });
                            }
                        });
                        let mut scales = [(y[0][0], y[0][0]); PANELS];
                        each!(VECTOR => { scales[VECTOR] = self.w[VECTOR].scale_and_min::<D>(chunk, $half); });
                        each!(ROW => {
                            let x = x.add(ROW * record.bytes);
                            let scale = D::S::splat(x.add(record.scale).cast::<f32>().read_unaligned());
                            let mut of_sum = scale;
                            if MINS {
                                let sum = x.add(record.sums + half_sums + 4 * $half).cast::<u32>().read_unaligned();
                                of_sum = D::S::mul(scale, D::S::to_f32(D::S::splat_u32(sum)));
                            }
                            each!(VECTOR => {
                                let sum = D::S::mul(scale, D::S::to_f32(sums[ROW][VECTOR]));
                                y[ROW][VECTOR] = D::S::fma(scales[VECTOR].0, sum, y[ROW][VECTOR]);
                                if MINS {
                                    y[ROW][VECTOR] = D::S::fma(scales[VECTOR].1, of_sum, y[ROW][VECTOR]);
                                }
                            });
                        });
                    };
                }
                if HALVES {
                    half!(0: 0 1 2 3);
                    half!(1: 4 5 6 7);
                } else {
                    half!(0: 0 1 2 3 4 5 6 7);
                }
                x = x.add(R * record.bytes);
            }
            each!(ROW => {
                each!(VECTOR => { D::S::store(self.y.add(ROW * self.y_row + VECTOR * LANES), y[ROW][VECTOR]); });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dots::levels;
    use crate::kernels::format::Format;
    use crate::kernels::{noise, random_blocks};

    /// Of all rows by all outputs, by some instructions.
    fn work<'a>(planes: &'a Planes, x: &'a Int8Rows, rows: usize, bias: &'a [f32], y: Shared<f32>) -> Work<'a> {
        let product = Product { x, rows: 0..rows, outputs: 0..bias.len(), bias: Some(bias), y };
        Work { segment: &planes.segments[0], product, y_stride: bias.len() }
    }

    #[test]
    fn every_instruction_set_gives_the_sums_of_rounded_activations() {
        let n = 37;
        for format in Format::all().filter(|format| format.is_quantised()) {
            for cols in [1, 2, 3, 9, 27].map(|blocks| blocks * format.block()).into_iter().filter(|cols| *cols <= 2304) {
                // Scales of a usual size: random ones differ by powers of ten, and the largest would hide all others.
                let file = random_blocks(format, n * cols / format.block(), cols as u64);
                let mut planes = Planes::new(&[(n, format)], cols).unwrap();
                assert!(planes.fill(0, &file, format));
                let w = format.widen(&file);
                let bias = noise(n, 3);
                for rows in [1, 2, 3, 7, 13] {
                    let x = noise(rows * cols, rows as u64);
                    let x = Int8Rows::new(&x, cols, (rows, cols), planes.activation_bytes().next().unwrap()).unwrap();
                    let values: Vec<f32> = (0..rows * cols).map(|i| x.value(i / cols, i % cols)).collect();
                    // What each output is, and the sum of what it is made of without their signs.
                    let want: Vec<(f64, f64)> = (0..rows * n)
                        .map(|i| {
                            let (w, x) = (&w[i % n * cols..][..cols], &values[i / n * cols..][..cols]);
                            let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                            products
                                .fold((f64::from(bias[i % n]), 1.0), |(sum, size), product| (sum + product, size + product.abs()))
                        })
                        .collect();
                    let mut first: Option<Vec<f32>> = None;
                    for (name, run) in levels::<Work<'_>>().into_iter().rev() {
                        let mut y = vec![f32::NAN; rows * n];
                        run(work(&planes, &x, rows, &bias, Shared::new(&mut y)));
                        for (i, (y, (want, size))) in y.iter().zip(&want).enumerate() {
                            if *size > 1e38 {
                                continue; // Beyond F32.
                            }
                            // Mins and codes are added up apart: each may be much more than the weight.
                            let error = (f64::from(*y) - want).abs() / size;
                            assert!(error < 1e-5, "{format:?} {name} {cols} {rows} {i}: {y} {want} {size}");
                        }
                        if name != "portable" || cfg!(target_arch = "aarch64") {
                            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                            let first = first.get_or_insert_with(|| y.clone());
                            assert_eq!(bits(&y), bits(first), "{format:?} {name} {cols} {rows}");
                        }
                    }
                }
            }
        }
    }
    #[test]
    fn a_row_that_is_not_finite_gives_no_number_and_leaves_the_others_alone() {
        let (n, blocks) = (37, 3);
        for format in Format::all().filter(|format| format.is_quantised()) {
            let cols = blocks * format.block();
            let file = random_blocks(format, n * blocks, 5);
            let mut planes = Planes::new(&[(n, format)], cols).unwrap();
            assert!(planes.fill(0, &file, format));
            let (bias, bytes) = (noise(n, 3), planes.activation_bytes().next().unwrap());
            // One row, and the tiles of two and of six; a bad value in any chunk of a row.
            for (rows, bad_row, bad_col, bad) in [
                (1, 0, 0, f32::NAN),
                (1, 0, cols - 1, f32::NEG_INFINITY),
                (3, 2, cols / 2, f32::INFINITY),
                (13, 4, cols - 1, f32::NAN),
                (13, 7, 0, f32::INFINITY),
            ] {
                let mut x = noise(rows * cols, rows as u64);
                let clean = Int8Rows::new(&x, cols, (rows, cols), bytes).unwrap();
                x[bad_row * cols + bad_col] = bad;
                let spoiled = Int8Rows::new(&x, cols, (rows, cols), bytes).unwrap();
                for (name, run) in levels::<Work<'_>>() {
                    let [found, want] = [&spoiled, &clean].map(|x| {
                        let mut y = vec![0.0; rows * n];
                        run(work(&planes, x, rows, &bias, Shared::new(&mut y)));
                        y
                    });
                    for (row, (found, want)) in found.chunks_exact(n).zip(want.chunks_exact(n)).enumerate() {
                        if row == bad_row {
                            assert!(found.iter().all(|y| y.is_nan()), "{format:?} {name} {rows}: {found:?}");
                        } else {
                            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(found), bits(want), "{format:?} {name} {rows}: row {row}");
                        }
                    }
                }
            }
        }
    }
}
