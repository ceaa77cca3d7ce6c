//! Quantised matrices as products read them: bit planes of codes, scales apart, one layout for every format.
//!
//! A panel is sixteen rows. Its columns stand in spans of 256, the last of them as long as it has to be; a span is
//!
//! | part | bytes | of |
//! | --- | --- | --- |
//! | `d`, `dmin` | 64: an F32, or two F16, a row | formats whose scales have two levels |
//! | scales and mins | 16 to 64 a group, filled up to 64 | all |
//! | codes | 64 a bit and 32 columns | all |
//!
//! A vector of codes has 64 bytes: sixteen rows by four neighbouring columns, a byte each, which is what instructions for sums
//! of bytes read. Planes of fewer bits than eight have several such vectors in one. Of 32 columns, whose planes stand side by side:
//!
//! | bits of a plane | vectors | vector v, shifted by | holds columns |
//! | --- | --- | --- | --- |
//! | 8 | 8 | | 4v to 4v + 3 |
//! | 4 | 4 | 4i | 8v + 4i to 8v + 4i + 3 |
//! | 2 | 2 | 2i | 16v + 4i to 16v + 4i + 3 |
//! | 1 | 1 | i | 4i to 4i + 3 |
//!
//! Codes of 3, 5 and 6 bits are planes of 2 + 1, 4 + 1 and 4 + 2, the lowest bits first. A lane is a row all the way: nothing is
//! shuffled. A weight takes as many bits as in a file, or up to a fifth of a bit more; formats that pack values below two bits or look
//! several up in a grid take more (1.7 to 2.1, 3.1 to 4.4, and up to twice as much), and need neither divisions nor grids then.
//!
//! A matrix may consist of segments of different formats: files keep the parts of one matrix as precisely as each deserves.

mod product;

use std::ops::Range;

use half::f16;

use super::format::Format;
use super::format::coding::{CodedBlock, Coding, Levels, MOST, Scales};
use super::memory::huge_zeros;
use super::parallel::each_chunk;
use super::simd::{Kernel, LANES, Simd};

pub use product::Product;

/// Columns of a span: as many as the longest block has.
const SPAN: usize = MOST;
/// Columns whose planes stand side by side.
const CHUNK: usize = 32;
/// Columns that are widened together: half of a chunk, and no group of scales is shorter.
const HALF: usize = CHUNK / 2;
/// Bytes of a vector.
const LINE: usize = 64;

/// Bytes that begin with a cache line.
struct Lines {
    room: Vec<u8>,
    /// Bytes before the first of these.
    before: usize,
}

impl Lines {
    /// Zeros; `None` if there is no memory for them.
    fn new(len: usize) -> Option<Self> {
        let mut room = huge_zeros(len.checked_add(LINE)?)?;
        let before = room.as_ptr().addr().next_multiple_of(LINE) - room.as_ptr().addr();
        room.truncate(before + len);
        Some(Self { room, before })
    }

    fn bytes(&self) -> &[u8] {
        &self.room[self.before..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.before..]
    }
}

/// A quantised matrix.
pub struct Planes {
    cols: usize,
    /// The first begins with the first row.
    segments: Vec<Segment>,
}

/// Rows of one format; all but the last segment have whole panels.
struct Segment {
    format: Format,
    coding: &'static Coding,
    rows: Range<usize>,
    /// Columns.
    cols: usize,
    /// Of a span, and of the last one if it is shorter.
    whole: Parts,
    last: Parts,
    panel_bytes: usize,
    /// `[panel][span]`
    lines: Lines,
}

/// Bytes of the parts of a span.
#[derive(Clone, Copy)]
struct Parts {
    /// Where the scales of groups begin.
    groups: usize,
    /// Of a group.
    group: usize,
    /// Where planes begin.
    planes: usize,
    /// Of all.
    all: usize,
}

impl Coding {
    /// Of a span of so many columns.
    fn parts(&self, cols: usize) -> Parts {
        let (d, group) = match self.scales {
            Scales::F16 => (0, 2 * LANES),
            Scales::F16AndMin => (0, 4 * LANES),
            Scales::F16AndZero => (0, 3 * LANES),
            Scales::TwoLevels => (LINE, LANES),
            Scales::TwoLevelsAndMin => (LINE, 2 * LANES),
            Scales::TwoLevelsAndMinInByte => (LINE, LANES),
            Scales::Float8 { .. } => (0, LANES),
            Scales::Float8Times { .. } => (LINE, LANES),
        };
        let planes = d + (cols.div_ceil(self.group) * group).next_multiple_of(LINE);
        Parts { groups: d, group, planes, all: planes + cols.div_ceil(CHUNK) * self.chunk_bytes() }
    }

    /// Bytes of the planes of a chunk.
    fn chunk_bytes(&self) -> usize {
        self.bits as usize * LINE
    }

    /// Bytes of a panel; `None` if there are too many.
    fn panel_bytes(&self, cols: usize) -> Option<usize> {
        let last = match cols % SPAN {
            0 => 0,
            rest => self.parts(rest).all,
        };
        (cols / SPAN).checked_mul(self.parts(SPAN).all)?.checked_add(last)
    }

    /// Writes a block of `cols` values, the first of which is column `at` of a span of `span_cols`, into one row of it.
    fn write(&self, block: &CodedBlock, (at, cols): (usize, usize), lane: usize, (span, span_cols): (&mut [u8], usize)) {
        let parts = self.parts(span_cols);
        let f16 = |x: f32| f16::from_f32(x).to_le_bytes();
        match self.scales {
            Scales::F16 | Scales::F16AndMin | Scales::F16AndZero | Scales::Float8 { .. } => {}
            Scales::TwoLevels | Scales::Float8Times { .. } => put(span, 4 * lane, block.d.to_le_bytes()),
            Scales::TwoLevelsAndMin | Scales::TwoLevelsAndMinInByte => {
                put(span, 2 * lane, f16(block.d));
                // With the sign that adds it.
                put(span, 2 * (LANES + lane), f16(-block.dmin));
            }
        }
        for (group, (scale, min)) in (0..cols.div_ceil(self.group)).zip(block.scales.iter().zip(&block.mins)) {
            let to = &mut span[parts.groups + (at / self.group + group) * parts.group..][..parts.group];
            match self.scales {
                Scales::F16 => put(to, 2 * lane, scale.to_le_bytes()),
                Scales::F16AndMin => {
                    put(to, 2 * lane, scale.to_le_bytes());
                    put(to, 2 * (LANES + lane), min.to_le_bytes());
                }
                Scales::F16AndZero => {
                    put(to, 2 * lane, scale.to_le_bytes());
                    to[2 * LANES + lane] = *min as u8;
                }
                Scales::TwoLevels | Scales::Float8 { .. } | Scales::Float8Times { .. } => to[lane] = *scale as u8,
                Scales::TwoLevelsAndMin => (to[lane], to[LANES + lane]) = (*scale as u8, *min as u8),
                Scales::TwoLevelsAndMinInByte => to[lane] = (scale | min << 4) as u8,
            }
        }
        let to = &mut span[parts.planes + at / CHUNK * self.chunk_bytes()..];
        let codes = block.codes[..cols.next_multiple_of(CHUNK)].as_chunks().0;
        match self.bits {
            1 => write_codes::<1>(codes, lane, to),
            2 => write_codes::<2>(codes, lane, to),
            3 => write_codes::<3>(codes, lane, to),
            4 => write_codes::<4>(codes, lane, to),
            5 => write_codes::<5>(codes, lane, to),
            6 => write_codes::<6>(codes, lane, to),
            _ => write_codes::<8>(codes, lane, to),
        }
    }

    /// The block of all values of one row of a span.
    fn read(&self, (span, span_cols): (&[u8], usize), lane: usize, block: &mut CodedBlock) {
        let parts = self.parts(span_cols);
        let f16 = |at: usize| f16::from_le_bytes(take(span, at)).to_f32();
        match self.scales {
            Scales::F16 | Scales::F16AndMin | Scales::F16AndZero | Scales::Float8 { .. } => {}
            Scales::TwoLevels | Scales::Float8Times { .. } => block.d = f32::from_le_bytes(take(span, 4 * lane)),
            Scales::TwoLevelsAndMin | Scales::TwoLevelsAndMinInByte => {
                (block.d, block.dmin) = (f16(2 * lane), -f16(2 * (LANES + lane)));
            }
        }
        let groups = span[parts.groups..].chunks_exact(parts.group).take(span_cols.div_ceil(self.group));
        for (from, (scale, min)) in groups.zip(block.scales.iter_mut().zip(&mut block.mins)) {
            (*scale, *min) = match self.scales {
                Scales::F16 => (u16::from_le_bytes(take(from, 2 * lane)), 0),
                Scales::F16AndMin => {
                    (u16::from_le_bytes(take(from, 2 * lane)), u16::from_le_bytes(take(from, 2 * (LANES + lane))))
                }
                Scales::F16AndZero => (u16::from_le_bytes(take(from, 2 * lane)), from[2 * LANES + lane].into()),
                Scales::TwoLevels | Scales::Float8 { .. } | Scales::Float8Times { .. } => (from[lane].into(), 0),
                Scales::TwoLevelsAndMin => (from[lane].into(), from[LANES + lane].into()),
                Scales::TwoLevelsAndMinInByte => ((from[lane] & 15).into(), (from[lane] >> 4).into()),
            };
        }
        let chunks = span[parts.planes..].chunks_exact(self.chunk_bytes());
        for (chunk, codes) in chunks.zip(block.codes.as_chunks_mut::<CHUNK>().0) {
            let mut all = [0u32; 8];
            let mut vectors = chunk.chunks_exact(LINE);
            for (width, shift) in planes(self.bits) {
                for own in all.chunks_exact_mut(8 / width as usize) {
                    let bits = vectors.next().map_or(0, |vector| u32::from_le_bytes(take(vector, 4 * lane)));
                    for (i, code) in own.iter_mut().enumerate() {
                        *code |= (bits >> (i as u32 * width) & bytes_of(width)) << shift;
                    }
                }
            }
            codes.as_chunks_mut().0.iter_mut().zip(all).for_each(|(codes, all)| *codes = all.to_le_bytes());
        }
    }
}

/// Writes codes of one row, chunk after chunk. A loop whose widths the compiler knows: loading a model is this for the most part.
fn write_codes<const BITS: u32>(chunks: &[[u8; CHUNK]], lane: usize, to: &mut [u8]) {
    assert!(lane < LANES, "a row of a panel");
    for (codes, to) in chunks.iter().zip(to.chunks_exact_mut(BITS as usize * LINE)) {
        let codes: [u32; CHUNK / 4] = std::array::from_fn(|i| u32::from_le_bytes(codes.as_chunks().0[i]));
        let mut vectors = to.as_chunks_mut::<LINE>().0.iter_mut();
        let mut shift = 0;
        macro_rules! planes {
            ($($width:literal)*) => {
                $(if BITS & $width != 0 {
                    for (own, vector) in codes.as_chunks::<{ 8 / $width }>().0.iter().zip(vectors.by_ref().take($width)) {
                        let bits = own.iter().rev().fold(0, |bits, code| bits << $width % 8 | code >> shift & bytes_of($width));
                        put(vector, 4 * lane, bits.to_le_bytes());
                    }
                    shift += $width;
                })*
            };
        }
        planes!(8 4 2 1);
        debug_assert_eq!(shift, BITS);
    }
}

/// The planes of codes: their bits, and where those begin in a code.
fn planes(bits: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut shift = 0;
    [8, 4, 2, 1].into_iter().filter(move |width| bits & width != 0).map(move |width| {
        shift += width;
        (width, shift - width)
    })
}

/// The lowest bits of each of four bytes.
const fn bytes_of(bits: u32) -> u32 {
    (0xff >> (8 - bits)) * 0x0101_0101
}

fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    to[at..at + N].copy_from_slice(&bytes);
}

fn take<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| from[at + i])
}

impl Planes {
    /// Zeros: so many rows of each format, one after another. `None` if there is no memory for them, a format is not
    /// quantised, or one begins within a panel.
    pub fn new(parts: &[(usize, Format)], cols: usize) -> Option<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut first = 0usize;
        for &(rows, format) in parts {
            let coding = format.coding()?;
            let end = first.checked_add(rows)?;
            match segments.last_mut() {
                Some(last) if last.format == format => last.rows.end = end,
                _ if !first.is_multiple_of(LANES) => return None,
                _ => segments.push(Segment {
                    format,
                    coding,
                    rows: first..end,
                    cols,
                    whole: coding.parts(SPAN),
                    last: coding.parts(cols % SPAN),
                    panel_bytes: coding.panel_bytes(cols)?,
                    lines: Lines { room: Vec::new(), before: 0 },
                }),
            }
            first = end;
        }
        for segment in &mut segments {
            segment.lines = Lines::new(segment.rows.len().div_ceil(LANES).checked_mul(segment.panel_bytes)?)?;
        }
        Some(Self { cols, segments })
    }

    /// How many rows there are of each format, one after another.
    pub fn formats(&self) -> Vec<(usize, Format)> {
        self.segments.iter().map(|segment| (segment.rows.len(), segment.format)).collect()
    }

    /// The bytes of a matrix of this shape.
    pub fn bytes(parts: &[(usize, Format)], cols: usize) -> u64 {
        let mut bytes = 0u64;
        for own in parts.chunk_by(|a, b| a.1 == b.1) {
            let panels = own.iter().map(|(rows, _)| rows).sum::<usize>().div_ceil(LANES);
            let panel = own[0].1.coding().and_then(|coding| coding.panel_bytes(cols)).unwrap_or(usize::MAX);
            bytes = bytes.saturating_add((panels as u64).saturating_mul(panel as u64));
        }
        bytes
    }

    /// Whether rows of these formats can be one matrix.
    pub fn can_hold(parts: &[(usize, Format)]) -> bool {
        let mut first = 0usize;
        parts.chunk_by(|a, b| a.1 == b.1).all(|own| {
            let start = first;
            first = own.iter().fold(first, |rows, part| rows.saturating_add(part.0));
            own[0].1.is_quantised() && start.is_multiple_of(LANES)
        })
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them: as they are, or quantised to this one. Returns
    /// `false` if a scale is not finite, or if a value cannot be quantised.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let Some(row_bytes) = from.row_bytes(self.cols) else { return false };
        let blocks = |row: usize, columns: Range<usize>| {
            let (size, block) = (from.block_bytes(), from.block());
            &bytes[row * row_bytes + columns.start / block * size..][..columns.len() / block * size]
        };
        let at_once = from.unpacked_at_once();
        self.write_rows(first, bytes.len() / row_bytes, |span, format, row, columns| {
            let blocks = blocks(row, columns.clone());
            if !from.has_finite_scales(blocks) {
                return false;
            }
            if format != from {
                let mut values = [0f32; SPAN];
                let values = &mut values[..columns.len()];
                from.widen_into(blocks, values);
                return span.quantise(format, values);
            }
            for (blocks, at) in blocks.chunks(at_once / from.block() * from.block_bytes()).zip((0..).step_by(at_once)) {
                from.unpack(blocks, span.block);
                span.write(at, at_once.min(columns.len() - at));
            }
            true
        })
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        let cols = self.cols;
        self.write_rows(first, values.len() / cols, |span, format, row, columns| {
            span.quantise(format, &values[row * cols + columns.start..][..columns.len()])
        })
    }

    /// Writes rows by a function that writes a span of one of them, whose format, row (from the first of these on) and columns it is
    /// told, and returns whether it could. All threads write panels, span by span, which stays in the first cache.
    fn write_rows(
        &mut self,
        first: usize,
        count: usize,
        write: impl Fn(&mut RowSpan<'_>, Format, usize, Range<usize>) -> bool + Sync,
    ) -> bool {
        let (cols, end, mut done) = (self.cols, first + count, first);
        for segment in &mut self.segments {
            let rows = first.max(segment.rows.start)..end.min(segment.rows.end);
            if rows.is_empty() {
                continue;
            }
            let Segment { format, coding, whole, panel_bytes, .. } = *segment;
            let start = segment.rows.start;
            let panels = (rows.start - start) / LANES..(rows.end - start).div_ceil(LANES);
            let bytes = &mut segment.lines.bytes_mut()[panels.start * panel_bytes..panels.end * panel_bytes];
            let fits = each_chunk(bytes, panel_bytes, |panel, bytes| {
                let first_of_panel = start + (panels.start + panel) * LANES;
                let rows = rows.start.max(first_of_panel)..rows.end.min(first_of_panel + LANES);
                let mut block = CodedBlock::default();
                (0..cols).step_by(SPAN).enumerate().all(|(i, column)| {
                    let columns = column..cols.min(column + SPAN);
                    rows.clone().all(|row| {
                        let span = (&mut bytes[i * whole.all..], columns.len());
                        let mut span = RowSpan { coding, span, lane: row - first_of_panel, block: &mut block };
                        write(&mut span, format, row - first, columns.clone())
                    })
                })
            });
            if !fits {
                return false;
            }
            done = rows.end;
        }
        done == end
    }

    /// Copies one row into `out`, in F32.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let mut block = CodedBlock::default();
        for segment in self.segments.iter().filter(|segment| segment.rows.contains(&row)) {
            let within = row - segment.rows.start;
            for (i, out) in out.chunks_mut(SPAN).enumerate() {
                let span = segment.span(within / LANES, i);
                segment.coding.read((span, out.len()), within % LANES, &mut block);
                segment.coding.widen(&block, out);
            }
        }
    }
}

impl Segment {
    /// Where a span of a panel of this segment lies among the bytes.
    fn place(&self, panel: usize, span: usize) -> Range<usize> {
        let start = panel * self.panel_bytes + span * self.whole.all;
        let parts = if self.cols - span * SPAN < SPAN { &self.last } else { &self.whole };
        start..start + parts.all
    }

    fn span(&self, panel: usize, span: usize) -> &[u8] {
        &self.lines.bytes()[self.place(panel, span)]
    }
}

/// A span of one row, that is written.
struct RowSpan<'a> {
    coding: &'static Coding,
    /// Of the panel, and its columns.
    span: (&'a mut [u8], usize),
    lane: usize,
    /// What is written.
    block: &'a mut CodedBlock,
}

impl RowSpan<'_> {
    /// Writes the block of columns from `at` on.
    fn write(&mut self, at: usize, cols: usize) {
        self.coding.write(self.block, (at, cols), self.lane, (self.span.0, self.span.1));
    }

    /// Writes all values of the span; `false` if they cannot be quantised.
    fn quantise(&mut self, format: Format, values: &[f32]) -> bool {
        let fits = format.quantise(values, self.block);
        if fits {
            self.write(0, values.len());
        }
        fits
    }
}

/// A panel of a matrix, as products read it.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    segment: &'a Segment,
    bytes: &'a [u8],
}

/// A span of a panel.
#[derive(Clone, Copy)]
struct Span<'a> {
    bytes: *const u8,
    parts: &'a Parts,
    /// The first of its columns, and the one behind its last.
    first: usize,
    end: usize,
}

impl Segment {
    /// The span of a panel that begins with a column.
    fn at(&self, panel: usize, column: usize) -> Span<'_> {
        Panel { segment: self, bytes: &self.lines.bytes()[panel * self.panel_bytes..][..self.panel_bytes] }.span(column)
    }
}

impl Planes {
    /// One of the panels.
    pub fn panel(&self, panel: usize) -> Panel<'_> {
        let segment = self.segments.iter().rev().find(|segment| segment.rows.start / LANES <= panel);
        let segment = segment.expect("the first segment begins with the first panel");
        let within = panel - segment.rows.start / LANES;
        Panel { segment, bytes: &segment.lines.bytes()[within * segment.panel_bytes..][..segment.panel_bytes] }
    }
}

impl<'a> Panel<'a> {
    /// Widens columns, which begin with a half of a chunk; `to` holds as many whole halves.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub unsafe fn widen<S: Simd>(self, columns: Range<usize>, to: &mut [[f32; LANES]]) {
        assert!(columns.start.is_multiple_of(HALF) && columns.end <= self.segment.cols, "columns of this panel");
        assert!(to.len() >= columns.len().next_multiple_of(HALF), "room for them");
        // SAFETY: passed on from the caller.
        unsafe { S::call(Widen { panel: self, columns, to: to.as_mut_ptr().cast() }) }
    }

    /// `sums[p] += Σ_c x[c] · w[p][c]` over the same columns of several panels, in their order. The columns begin with a half of
    /// a chunk.
    ///
    /// # Safety
    /// As [`widen`](Self::widen); `x` is good for a value a column.
    #[inline(always)]
    pub unsafe fn add_products<S: Simd, const P: usize>(
        panels: [Self; P],
        columns: Range<usize>,
        x: *const f32,
        sums: &mut [[f32; LANES]; P],
    ) {
        assert!(columns.start.is_multiple_of(HALF) && columns.end <= panels[0].segment.cols, "columns of these panels");
        // Two at a time: one chain of sums alone would wait for itself.
        let ((pairs, one), (pair_sums, one_sum)) = (panels.as_chunks(), sums.as_chunks_mut());
        // SAFETY: passed on from the caller.
        unsafe {
            for (panels, sums) in pairs.iter().zip(pair_sums) {
                let &[a, b] = panels;
                if std::ptr::eq(a.segment, b.segment) {
                    S::call(AddProducts { panels: [a, b], columns: columns.clone(), x, sums });
                    continue;
                }
                for (panel, sum) in panels.iter().zip(sums) {
                    let sums = std::array::from_mut(sum);
                    S::call(AddProducts { panels: [*panel], columns: columns.clone(), x, sums });
                }
            }
            for (panel, sum) in one.iter().zip(one_sum) {
                S::call(AddProducts { panels: [*panel], columns: columns.clone(), x, sums: std::array::from_mut(sum) });
            }
        }
    }

    /// The span of a column.
    #[inline(always)]
    fn span(self, column: usize) -> Span<'a> {
        let (Segment { cols, whole, last, .. }, start) = (self.segment, column / SPAN * SPAN);
        let parts = if cols - start < SPAN { last } else { whole };
        // In bounds: as many whole spans lie before it.
        let bytes = self.bytes.as_ptr().wrapping_add(column / SPAN * whole.all);
        Span { bytes, parts, first: start, end: start + SPAN.min(cols - start) }
    }
}

/// Work on codes whose bits and levels the compiler knows.
trait Coded {
    /// # Safety
    /// The processor has the instructions of `S`.
    unsafe fn run<S: Simd, const BITS: u32, const LEVELS: u8>(self);
}

/// [`Levels`], as a number.
const UNSIGNED: u8 = 0;
const SIGNED: u8 = 1;
const TABLE: u8 = 2;

/// Runs work on the codes of a coding.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn with_codes<S: Simd>(coding: &Coding, work: impl Coded) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (coding.bits, coding.levels) {
            (1, _) => work.run::<S, 1, TABLE>(),
            (2, Levels::Unsigned) if !S::LOOKS_UP => work.run::<S, 2, UNSIGNED>(),
            (2, _) => work.run::<S, 2, TABLE>(),
            (3, Levels::Signed) if !S::LOOKS_UP => work.run::<S, 3, SIGNED>(),
            (3, _) => work.run::<S, 3, TABLE>(),
            (4, Levels::Unsigned) if !S::LOOKS_UP => work.run::<S, 4, UNSIGNED>(),
            (4, Levels::Signed) if !S::LOOKS_UP => work.run::<S, 4, SIGNED>(),
            (4, _) => work.run::<S, 4, TABLE>(),
            (5, Levels::Unsigned) => work.run::<S, 5, UNSIGNED>(),
            (5, _) => work.run::<S, 5, SIGNED>(),
            (6, Levels::Unsigned) => work.run::<S, 6, UNSIGNED>(),
            (6, _) => work.run::<S, 6, SIGNED>(),
            (_, Levels::Unsigned) => work.run::<S, 8, UNSIGNED>(),
            _ => work.run::<S, 8, SIGNED>(),
        }
    }
}

/// Where widened columns go.
trait Sink<S: Simd> {
    /// Takes column `at` of sixteen.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    unsafe fn take(&mut self, at: usize, column: S::V);
}

struct Store(*mut f32);

impl<S: Simd> Sink<S> for Store {
    #[inline(always)]
    unsafe fn take(&mut self, at: usize, column: S::V) {
        // SAFETY: whoever made this has room for sixteen columns of sixteen values.
        unsafe { S::store(self.0.add(at * LANES), column) }
    }
}

struct Sum<S: Simd> {
    x: *const f32,
    sum: S::V,
}

impl<S: Simd> Sink<S> for Sum<S> {
    #[inline(always)]
    unsafe fn take(&mut self, at: usize, column: S::V) {
        // SAFETY: whoever made this has sixteen values.
        unsafe { self.sum = S::fma(S::splat(*self.x.add(at)), column, self.sum) }
    }
}

struct Widen<'a> {
    panel: Panel<'a>,
    columns: Range<usize>,
    to: *mut f32,
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on from the caller.
        unsafe { with_codes::<S>(self.panel.segment.coding, self) }
    }
}

impl Coded for Widen<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, const BITS: u32, const LEVELS: u8>(self) {
        let (coding, mut column, mut to) = (self.panel.segment.coding, self.columns.start, Store(self.to));
        // SAFETY: the columns are the panel's, and there is room for them; the caller vouches for the instructions of `S`.
        unsafe {
            let table = S::table(&coding.table);
            while column < self.columns.end {
                let span = self.panel.span(column);
                let end = self.columns.end.min(span.end);
                while column < end {
                    sixteen::<S, BITS, LEVELS, _>(coding, &span, column - span.first, table, &mut to);
                    column += HALF;
                    to.0 = to.0.wrapping_add(HALF * LANES);
                }
            }
        }
    }
}

struct AddProducts<'a, const P: usize> {
    panels: [Panel<'a>; P],
    columns: Range<usize>,
    x: *const f32,
    sums: &'a mut [[f32; LANES]; P],
}

impl<const P: usize> Kernel for AddProducts<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on from the caller.
        unsafe { with_codes::<S>(self.panels[0].segment.coding, self) }
    }
}

impl<const P: usize> Coded for AddProducts<'_, P> {
    #[inline(always)]
    unsafe fn run<S: Simd, const BITS: u32, const LEVELS: u8>(self) {
        let (coding, mut column, mut x) = (self.panels[0].segment.coding, self.columns.start, self.x);
        // SAFETY: the columns are the panels', and `x` has a value for each; the caller vouches for the instructions of `S`.
        unsafe {
            let table = S::table(&coding.table);
            let mut sums = self.sums.each_ref().map(|sum| S::load(sum.as_ptr()));
            while column < self.columns.end {
                let spans = self.panels.map(|panel| panel.span(column));
                let end = self.columns.end.min(spans[0].end);
                while column < end {
                    let (at, left) = (column - spans[0].first, self.columns.end - column);
                    for (span, sum) in spans.iter().zip(&mut sums) {
                        // Blocks of eight bits alone may be shorter.
                        if const { BITS < 8 } || left >= HALF {
                            let mut sink = Sum::<S> { x, sum: *sum };
                            sixteen::<S, BITS, LEVELS, _>(coding, span, at, table, &mut sink);
                            *sum = sink.sum;
                        } else {
                            // No values stand for the rest of them.
                            let mut room = [[0f32; LANES]; HALF];
                            sixteen::<S, BITS, LEVELS, _>(coding, span, at, table, &mut Store(room.as_mut_ptr().cast()));
                            for (i, column) in room[..left].iter().enumerate() {
                                *sum = S::fma(S::splat(*x.add(i)), S::load(column.as_ptr()), *sum);
                            }
                        }
                    }
                    column += HALF;
                    x = x.wrapping_add(HALF);
                }
            }
            self.sums.iter_mut().zip(sums).for_each(|(to, sum)| S::store(to.as_mut_ptr(), sum));
        }
    }
}

/// Sixteen columns, the first of which is column `at` of a span.
///
/// # Safety
/// The processor has the instructions of `S`, and the span has these columns.
#[inline(always)]
unsafe fn sixteen<S: Simd, const BITS: u32, const LEVELS: u8, K: Sink<S>>(
    coding: &Coding,
    span: &Span<'_>,
    at: usize,
    table: S::Table,
    sink: &mut K,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let scales = scale_and_min::<S>(coding, span, at);
        let chunk = span.bytes.add(span.parts.planes + at / CHUNK * BITS as usize * LINE);
        if at.is_multiple_of(CHUNK) {
            half::<S, BITS, LEVELS, 0, K>(chunk, scales, table, sink);
        } else {
            half::<S, BITS, LEVELS, 1, K>(chunk, scales, table, sink);
        }
    }
}

/// The scale and the min of each row, of the group of a column of a span.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
unsafe fn scale_and_min<S: Simd>(coding: &Coding, span: &Span<'_>, at: usize) -> (S::V, S::V) {
    // SAFETY: the parts of a span hold so much of sixteen rows; the rest is passed on from the caller.
    unsafe {
        let group = span.bytes.add(span.parts.groups + (at >> coding.group.trailing_zeros()) * span.parts.group);
        let (f16, none) = (|p: *const u8| p.cast::<f16>(), S::splat(-0.0));
        let (d, dmin) = (f16(span.bytes), f16(span.bytes).wrapping_add(LANES));
        match coding.scales {
            Scales::F16 => (S::load_f16(f16(group)), none),
            Scales::F16AndMin => (S::load_f16(f16(group)), S::load_f16(f16(group).add(LANES))),
            Scales::F16AndZero => {
                let (scale, zero) = (S::load_f16(f16(group)), S::to_f32(S::load_u8(group.add(2 * LANES))));
                (scale, S::mul(scale, S::mul(zero, S::splat(-1.0))))
            }
            Scales::TwoLevels => (S::mul(S::load_i8(group.cast()), S::load(span.bytes.cast())), none),
            Scales::TwoLevelsAndMin => {
                let (scale, min) = (S::to_f32(S::load_u8(group)), S::to_f32(S::load_u8(group.add(LANES))));
                (S::mul(scale, S::load_f16(d)), S::mul(min, S::load_f16(dmin)))
            }
            Scales::TwoLevelsAndMinInByte => {
                let both = S::load_u8(group);
                let (scale, min) = (S::to_f32(S::and(both, S::splat_u32(15))), S::to_f32(S::shr(both, 4)));
                (S::mul(scale, S::load_f16(d)), S::mul(min, S::load_f16(dmin)))
            }
            Scales::Float8 { shift, factor } => (S::mul(S::from_bits(S::shl(S::load_u8(group), shift)), S::splat(factor)), none),
            Scales::Float8Times { shift, factor } => {
                let scale = S::mul(S::from_bits(S::shl(S::load_u8(group), shift)), S::splat(factor));
                (S::mul(scale, S::load(span.bytes.cast())), none)
            }
        }
    }
}

/// One half of a chunk.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
unsafe fn half<S: Simd, const BITS: u32, const LEVELS: u8, const WHICH: usize, K: Sink<S>>(
    chunk: *const u8,
    (scale, min): (S::V, S::V),
    table: S::Table,
    sink: &mut K,
) {
    // Spelled out, so that shifts are constants.
    macro_rules! columns {
        ($codes:ident $i:literal: $($j:literal)*) => {
            $(sink.take(4 * $i + $j, S::fma(level::<S, BITS, LEVELS>($codes, $j, table), scale, min));)*
        };
        ($($i:literal)*) => {
            $(let four = codes::<S, BITS, LEVELS>(chunk, 4 * WHICH + $i);
            columns!(four $i: 0 1 2 3);)*
        };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        columns!(0 1 2 3);
    }
}

/// The codes of columns 4i to 4i + 3 of a chunk, a byte each. Of signed levels their lowest bits are numbers with a sign.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
unsafe fn codes<S: Simd, const BITS: u32, const LEVELS: u8>(chunk: *const u8, i: usize) -> S::I {
    // SAFETY: passed on from the caller.
    unsafe {
        let codes = match BITS {
            8 => S::load_u32(chunk.add(i * LINE)),
            6 => S::or(plane::<S>(chunk, 4, i), S::shl(plane::<S>(chunk.add(4 * LINE), 2, i), 4)),
            5 => S::or(plane::<S>(chunk, 4, i), S::shl(plane::<S>(chunk.add(4 * LINE), 1, i), 4)),
            3 => S::or(plane::<S>(chunk, 2, i), S::shl(plane::<S>(chunk.add(2 * LINE), 1, i), 2)),
            _ => plane::<S>(chunk, BITS, i),
        };
        // The highest bit the other way round is that of a number with a sign.
        if const { LEVELS == SIGNED } { S::xor(codes, S::splat_u32(bytes_of(1) << (BITS - 1))) } else { codes }
    }
}

/// The same of a plane of fewer bits than eight.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
unsafe fn plane<S: Simd>(vectors: *const u8, bits: u32, i: usize) -> S::I {
    let inside = 8 / bits as usize;
    // SAFETY: passed on from the caller.
    unsafe {
        let vector = S::load_u32(vectors.add(i / inside * LINE));
        S::and(S::shr(vector, (i % inside) as u32 * bits), S::splat_u32(bytes_of(bits)))
    }
}

/// The levels of byte `j` of codes.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
unsafe fn level<S: Simd, const BITS: u32, const LEVELS: u8>(codes: S::I, j: u32, table: S::Table) -> S::V {
    // SAFETY: passed on from the caller.
    unsafe {
        match LEVELS {
            TABLE => S::lookup(table, codes, j),
            UNSIGNED => S::unsigned(codes, j),
            _ => S::signed(codes, j, BITS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random_blocks;
    use super::super::simd::levels;
    use super::*;

    fn quantised() -> impl Iterator<Item = Format> {
        Format::all().filter(|format| format.is_quantised())
    }

    /// Columns of whole and of broken spans.
    fn widths(format: Format) -> impl Iterator<Item = usize> {
        [1, 2, 3, 5, 8, 9, 27].into_iter().map(move |blocks| blocks * format.block()).filter(|cols| *cols <= 2304)
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn rows_of_every_format_have_the_bits_of_the_file_in_any_pieces() {
        let rows = 37;
        for format in quantised() {
            for cols in widths(format) {
                let row_bytes = format.row_bytes(cols).unwrap();
                let file = random_blocks(format, rows * cols / format.block(), cols as u64);
                let want = format.widen(&file);
                for piece in [1, 7, 16, 37] {
                    let mut planes = Planes::new(&[(rows, format)], cols).unwrap();
                    for (i, part) in file.chunks(piece * row_bytes).enumerate() {
                        assert!(planes.fill(i * piece, part, format), "{format:?}");
                    }
                    for (r, want) in want.chunks_exact(cols).enumerate() {
                        let mut row = vec![f32::NAN; cols];
                        planes.row(r, &mut row);
                        assert_eq!(bits(&row), bits(want), "{format:?}, {cols} columns, row {r} in pieces of {piece}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_widens_to_the_bits_of_the_file() {
        let rows = 37;
        for format in quantised() {
            for cols in widths(format) {
                let file = random_blocks(format, rows * cols / format.block(), 7 + cols as u64);
                let want = format.widen(&file);
                let mut planes = Planes::new(&[(rows, format)], cols).unwrap();
                assert!(planes.fill(0, &file, format));
                for (name, run) in levels::<Widen<'_>>() {
                    // All columns of a panel at once, by 64 and by 16.
                    for (panel, at_once) in (0..3).flat_map(|panel| [cols, 64, 16].map(|at_once| (panel, at_once))) {
                        for first in (0..cols).step_by(at_once) {
                            let columns = first..cols.min(first + at_once);
                            let mut to = vec![[f32::NAN; LANES]; at_once];
                            let panel_of = planes.panel(panel);
                            run(Widen { panel: panel_of, columns: columns.clone(), to: to.as_mut_ptr().cast() });
                            for (c, column) in columns.zip(&to) {
                                for (lane, x) in column[..LANES.min(rows - panel * LANES)].iter().enumerate() {
                                    let want = want[(panel * LANES + lane) * cols + c];
                                    assert_eq!(x.to_bits(), want.to_bits(), "{format:?} {name} {panel} {c} {lane}: {x} {want}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_weight_takes_little_more_than_in_a_file() {
        let thousandths = [
            (Format::Q1_0, 1125),
            (Format::TQ1_0, 2125),
            (Format::TQ2_0, 2125),
            (Format::Q2_0, 2250),
            (Format::Q2_K, 2625),
            (Format::IQ1_S, 3375),
            (Format::IQ2_XXS, 3375),
            (Format::IQ1_M, 3625),
            (Format::IQ2_XS, 3625),
            (Format::IQ2_S, 3625),
            (Format::Q3_K, 3625),
            (Format::MXFP4, 4250),
            (Format::IQ3_XXS, 4375),
            (Format::IQ3_S, 4375),
            (Format::IQ4_XS, 4375),
            (Format::NVFP4, 4500),
            (Format::NVFP4_SCALED, 4625),
            (Format::Q4_0, 4500),
            (Format::IQ4_NL, 4500),
            (Format::Q4_K, 4625),
            (Format::Q4_1, 5000),
            (Format::Q5_0, 5500),
            (Format::Q5_K, 5625),
            (Format::Q5_1, 6000),
            (Format::Q6_K, 6625),
            (Format::Q8_0, 8500),
            (Format::AFFINE2_32, 3000),
            (Format::AFFINE4_64, 4500),
            (Format::ZERO4_64, 4375),
            (Format::ZERO8_128, 8250),
        ];
        assert_eq!(quantised().filter(|format| format.number_of_ggml().is_some()).count() + 5, thousandths.len());
        for (format, want) in thousandths {
            let weights = 64 * 2048;
            assert_eq!(Planes::bytes(&[(60, format), (4, format)], 2048) * 8000 / weights, want, "{format:?}");
        }
        // 100 columns of blocks: a whole span; four groups, which fill a line; three chunks and a begun one.
        assert_eq!(Planes::bytes(&[(1, Format::Q8_0)], 356), (8 * 32 + 8 * 512) + (4 * 32 + 4 * 512));
        assert_eq!(Planes::bytes(&[(1, Format::Q4_0)], 32), 64 + 256);
    }

    #[test]
    fn segments_of_different_formats_begin_with_panels() {
        let (cols, parts) = (512, [(32, Format::Q4_K), (16, Format::Q6_K), (7, Format::Q4_0), (6, Format::Q4_0)]);
        assert!(Planes::can_hold(&parts));
        let mut planes = Planes::new(&parts, cols).unwrap();
        assert_eq!(planes.segments.len(), 3);
        let (mut first, mut want) = (0, Vec::new());
        for (rows, format) in parts {
            let file = random_blocks(format, rows * cols / format.block(), rows as u64);
            assert!(planes.fill(first, &file, format));
            want.extend(format.widen(&file));
            first += rows;
        }
        for (r, want) in want.chunks_exact(cols).enumerate() {
            let mut row = vec![f32::NAN; cols];
            planes.row(r, &mut row);
            assert_eq!(bits(&row), bits(want), "row {r}");
        }
        let bytes: u64 =
            [(32, Format::Q4_K), (16, Format::Q6_K), (13, Format::Q4_0)].map(|p| Planes::bytes(&[p], cols)).iter().sum();
        assert_eq!(Planes::bytes(&parts, cols), bytes);

        // Of another format that is not written, across the end of a segment, beyond the last row, or with a scale that is not finite.
        let mut of_q3_k = Planes::new(&[(32, Format::Q4_K), (16, Format::Q3_K)], cols).unwrap();
        assert!(!of_q3_k.fill(32, &random_blocks(Format::Q6_K, 2, 1), Format::Q6_K));
        assert!(!of_q3_k.fill(31, &random_blocks(Format::Q4_K, 4, 1), Format::Q4_K));
        assert!(!planes.fill(60, &random_blocks(Format::Q4_0, 32, 1), Format::Q4_0));
        assert!(!planes.fill(0, &[0xff; 288], Format::Q4_K));
        assert!(!of_q3_k.fill(32, &[0; 2048], Format::F32));

        for parts in [[(24, Format::Q4_K), (16, Format::Q6_K)], [(16, Format::Q4_K), (16, Format::F16)]] {
            assert!(!Planes::can_hold(&parts) && Planes::new(&parts, cols).is_none());
        }
        assert!(Planes::new(&[(usize::MAX, Format::Q4_K), (16, Format::Q4_K)], cols).is_none());
        assert!(Planes::new(&[(1 << 40, Format::Q4_K)], 1 << 20).is_none());
    }
}
