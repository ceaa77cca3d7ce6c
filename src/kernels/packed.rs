//! A weight matrix in the order in which the matrix product reads it.
//!
//! Rows are grouped by sixteen into panels; a panel holds, for each column, its sixteen rows side by side. One vector load
//! is then one column of sixteen outputs, a decode step reads memory front to back, and nothing is repacked at run time.
//! A table that rows are only looked up in has panels of one row: a row of a wide panel is a cache line a value.

use half::{bf16, f16};

use super::format::{Format, bf16_from_le_bytes, f16_from_le_bytes};
use super::memory::huge_vec;
use super::planes::Planes;
use super::simd::LANES;

/// The values of a [`Packed`] matrix.
pub enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    /// Of quantised formats.
    Planes(Planes),
    /// Rows of a table as a file holds them, with their format.
    Blocks(Vec<u8>, Format),
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Products, and single rows now and then.
    Product,
    /// Rows only.
    Lookup,
}

impl Use {
    /// Rows of a panel.
    fn lanes(self) -> usize {
        match self {
            Self::Product => LANES,
            Self::Lookup => 1,
        }
    }
}

/// What products with quantised weights compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// Weights are widened, and the results are those of the matrix that they stand for.
    F32,
    /// Activations are rounded to eight bits, or sixteen where weights have more than four, and sums are whole numbers; where that is
    /// precise enough.
    Int8,
}

/// A matrix of `rows` outputs by `cols` inputs; the last panel is filled up with zeros. Quantised formats are kept as they are.
pub struct Packed {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows of a panel.
    pub(super) lanes: usize,
    pub(super) panels: Panels,
    arithmetic: Arithmetic,
}

/// A matrix, and what a product with it computes in.
#[derive(Clone, Copy)]
pub struct MatmulWeight<'a> {
    pub(super) packed: &'a Packed,
    pub(super) arithmetic: Arithmetic,
}

impl<'a> From<&'a Packed> for MatmulWeight<'a> {
    fn from(packed: &'a Packed) -> Self {
        packed.in_arithmetic(packed.arithmetic)
    }
}

impl Packed {
    /// A matrix of zeros, to be filled by [`fill`](Self::fill). `None` if there is no memory for its size.
    pub fn new(rows: usize, cols: usize, format: Format, purpose: Use) -> Option<Self> {
        let lanes = purpose.lanes();
        let len = || rows.div_ceil(lanes).checked_mul(lanes)?.checked_mul(cols);
        let panels = match (format, purpose) {
            (Format::F32, _) => Panels::F32(zeros(len()?)?),
            (Format::F16, _) => Panels::F16(zeros(len()?)?),
            (Format::BF16, _) => Panels::BF16(zeros(len()?)?),
            (_, Use::Product) => Panels::Planes(Planes::new(&[(rows, format)], cols)?),
            (_, Use::Lookup) => Panels::Blocks(zeros(rows.checked_mul(format.row_bytes(cols)?)?)?, format),
        };
        Some(Self { rows, cols, lanes, panels, arithmetic: Arithmetic::F32 })
    }

    /// The same of rows of several formats, one after another, as they are kept together.
    pub fn of_parts(parts: &[(usize, Format)], cols: usize, purpose: Use) -> Option<Self> {
        let rows = parts.iter().try_fold(0usize, |rows, part| rows.checked_add(part.0))?;
        match kept_together(parts, purpose) {
            Some(format) => Self::new(rows, cols, format, purpose),
            None => {
                let panels = Panels::Planes(Planes::new(parts, cols)?);
                Some(Self { rows, cols, lanes: LANES, panels, arithmetic: Arithmetic::F32 })
            }
        }
    }

    /// A matrix of these rows of `cols` values, in F32. `None` if there is no memory for it.
    pub fn from_f32(values: &[f32], cols: usize, purpose: Use) -> Option<Self> {
        let mut packed = Self::new(values.len() / cols, cols, Format::F32, purpose)?;
        packed.fill_f32(0, values);
        Some(packed)
    }

    /// The same for products in this arithmetic; without, it is F32.
    pub fn computing_in(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// The same for a product that is to compute in this arithmetic.
    pub fn in_arithmetic(&self, arithmetic: Arithmetic) -> MatmulWeight<'_> {
        MatmulWeight { packed: self, arithmetic }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How rows are kept: so many of each format, one after another.
    pub fn formats(&self) -> Vec<(usize, Format)> {
        match &self.panels {
            Panels::F32(_) => vec![(self.rows, Format::F32)],
            Panels::F16(_) => vec![(self.rows, Format::F16)],
            Panels::BF16(_) => vec![(self.rows, Format::BF16)],
            Panels::Planes(planes) => planes.formats(),
            Panels::Blocks(_, format) => vec![(self.rows, *format)],
        }
    }

    /// The bytes of a matrix of this shape.
    pub fn bytes(rows: usize, cols: usize, format: Format, purpose: Use) -> u64 {
        let padded = rows.next_multiple_of(purpose.lanes());
        match (format, purpose) {
            (Format::F32 | Format::F16 | Format::BF16, _) => padded as u64 * cols as u64 * format.block_bytes() as u64,
            (_, Use::Product) => Planes::bytes(&[(rows, format)], cols),
            (_, Use::Lookup) => rows as u64 * format.row_bytes(cols).unwrap_or(usize::MAX) as u64,
        }
    }

    /// The bytes of a matrix of these parts.
    pub fn bytes_of_parts(parts: &[(usize, Format)], cols: usize, purpose: Use) -> u64 {
        match kept_together(parts, purpose) {
            Some(format) => Self::bytes(parts.iter().map(|part| part.0).sum(), cols, format, purpose),
            None => Planes::bytes(parts, cols),
        }
    }

    /// Whether rows of these formats are kept as they are in one matrix for products.
    pub fn can_hold(parts: &[(usize, Format)]) -> bool {
        parts.iter().all(|part| part.1 == parts[0].1) || Planes::can_hold(parts)
    }

    /// Writes whole rows from `first` on, as a file of the format `from` holds them, row after row. Returns `false` if a
    /// finite value does not fit F16, if one cannot be quantised (it is not finite, or too large), or if the scale of a
    /// stored block is not finite. Nothing is quantised to formats that are not written, and `false` as well.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let (cols, lanes) = (self.cols, self.lanes);
        let row_bytes = from.row_bytes(cols).expect("whole blocks");
        assert_eq!(bytes.len() % row_bytes, 0, "whole rows");
        match (&mut self.panels, from) {
            // What is kept as it is stored.
            (Panels::F16(to), Format::F16) => scatter(to, cols, lanes, first, bytes.as_chunks().0, f16::from_le_bytes),
            (Panels::BF16(to), Format::BF16) => scatter(to, cols, lanes, first, bytes.as_chunks().0, bf16::from_le_bytes),
            (Panels::Planes(to), quantised) => return to.fill(first, bytes, quantised),
            (Panels::Blocks(to, format), quantised) => {
                if *format != quantised || !quantised.has_finite_scales(bytes) {
                    return false;
                }
                to[first * row_bytes..][..bytes.len()].copy_from_slice(bytes);
            }
            (_, Format::F32) => return self.convert(first, bytes.as_chunks().0, f32::from_le_bytes),
            (_, Format::F16) => return self.convert(first, bytes.as_chunks().0, f16_from_le_bytes),
            (_, Format::BF16) => return self.convert(first, bytes.as_chunks().0, bf16_from_le_bytes),
            (_, quantised) => return self.fill_widened(first, bytes, quantised),
        }
        true
    }

    /// The same from a format that this matrix is not kept in, by sixteen rows, which take no more memory than a panel.
    fn fill_widened(&mut self, first: usize, bytes: &[u8], from: Format) -> bool {
        let row_bytes = from.row_bytes(self.cols).expect("whole blocks");
        let mut values = vec![0.0; self.cols * LANES.min(bytes.len() / row_bytes)];
        bytes.chunks(row_bytes * LANES).enumerate().all(|(i, rows)| {
            let values = &mut values[..rows.len() / row_bytes * self.cols];
            from.widen_into(rows, values);
            from.has_finite_scales(rows) && self.fill_f32(first + i * LANES, values)
        })
    }

    /// The same from numbers.
    pub fn fill_f32(&mut self, first: usize, values: &[f32]) -> bool {
        assert_eq!(values.len() % self.cols, 0, "whole rows");
        match &mut self.panels {
            Panels::Planes(to) => to.fill_f32(first, values),
            _ => self.convert(first, values, |x| x),
        }
    }

    fn convert<U: Copy>(&mut self, first: usize, from: &[U], widen: impl Fn(U) -> f32) -> bool {
        let (cols, lanes) = (self.cols, self.lanes);
        let mut fits = true;
        match &mut self.panels {
            Panels::F32(to) => scatter(to, cols, lanes, first, from, widen),
            Panels::BF16(to) => scatter(to, cols, lanes, first, from, |x| bf16::from_f32(widen(x))),
            Panels::F16(to) => scatter(to, cols, lanes, first, from, |x| {
                let x = widen(x);
                let y = f16::from_f32(x);
                fits &= y.is_finite() || !x.is_finite();
                y
            }),
            Panels::Planes(_) | Panels::Blocks(..) => fits = false,
        }
        fits
    }

    /// The values; row after row if the matrix is for lookups.
    pub fn into_panels(self) -> Panels {
        self.panels
    }

    /// Copies one row into `out`, in F32.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of this matrix");
        fn gather<T: Copy>(panels: &[T], lanes: usize, row: usize, out: &mut [f32], widen: impl Fn(T) -> f32) {
            let panel = &panels[row / lanes * lanes * out.len()..][..lanes * out.len()];
            for (x, column) in out.iter_mut().zip(panel.chunks_exact(lanes)) {
                *x = widen(column[row % lanes]);
            }
        }
        match &self.panels {
            Panels::F32(p) => gather(p, self.lanes, row, out, |x| x),
            Panels::F16(p) => gather(p, self.lanes, row, out, f16::to_f32),
            Panels::BF16(p) => gather(p, self.lanes, row, out, bf16::to_f32),
            Panels::Planes(p) => p.row(row, out),
            Panels::Blocks(p, format) => {
                let row_bytes = p.len() / self.rows;
                format.widen_into(&p[row * row_bytes..][..row_bytes], out);
            }
        }
    }
}

/// The one format of rows of these, or the one that holds all of them; `None` if each keeps its own.
fn kept_together(parts: &[(usize, Format)], purpose: Use) -> Option<Format> {
    let (_, format) = *parts.first()?;
    if parts.iter().all(|part| part.1 == format) {
        return Some(format);
    }
    if purpose == Use::Product && Planes::can_hold(parts) { None } else { Some(Format::F32) }
}

pub(super) fn zeros<T: Copy + Default>(len: usize) -> Option<Vec<T>> {
    let mut vec = huge_vec(len)?;
    vec.resize(len, T::default());
    Some(vec)
}

/// Reads values row by row and writes them into panels.
fn scatter<U: Copy, T>(to: &mut [T], cols: usize, lanes: usize, first: usize, from: &[U], mut read: impl FnMut(U) -> T) {
    if lanes == 1 {
        let to = &mut to[first * cols..][..from.len()];
        to.iter_mut().zip(from).for_each(|(slot, x)| *slot = read(*x));
        return;
    }
    let rows = from.len() / cols;
    let mut row = 0;
    while row < rows {
        let lane = (first + row) % lanes;
        let panel = &mut to[(first + row) / lanes * lanes * cols..][..lanes * cols];
        let filled = (lanes - lane).min(rows - row);
        // Columns outside, lanes inside: the writes are sequential, and sixteen sequential reads are what caches are built for.
        for (k, column) in panel.chunks_exact_mut(lanes).enumerate() {
            for (i, slot) in column[lane..lane + filled].iter_mut().enumerate() {
                *slot = read(from[(row + i) * cols + k]);
            }
        }
        row += filled;
    }
}

#[cfg(test)]
mod tests {
    use super::super::with_one_factor;
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_filled_in_any_pieces() {
        let (rows, cols) = (37, 5);
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.5 - 30.0).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (format, purpose) in
            [(Format::F32, Use::Product), (Format::F16, Use::Product), (Format::BF16, Use::Product), (Format::F32, Use::Lookup)]
        {
            for piece in [1, 7, 16, 37] {
                let mut packed = Packed::new(rows, cols, format, purpose).unwrap();
                for (i, part) in bytes.chunks(piece * cols * 4).enumerate() {
                    assert!(packed.fill(i * piece, part, Format::F32));
                }
                for r in 0..rows {
                    let mut out = vec![0.0; cols];
                    packed.row(r, &mut out);
                    assert_eq!(out, values[r * cols..][..cols]);
                }
            }
        }
    }

    #[test]
    fn quantised_rows_are_the_same_in_any_pieces_and_from_any_type() {
        let (rows, cols) = (37, 45);
        let values: Vec<f32> = super::super::noise(rows * cols, 4).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let narrow: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let filled = |piece: usize, bytes: &[u8], from: Format| {
            let mut packed = Packed::new(rows, cols, Format::Q8_0, Use::Product).unwrap();
            for (i, part) in bytes.chunks(piece * from.row_bytes(cols).unwrap()).enumerate() {
                assert!(packed.fill(i * piece, part, from));
            }
            let mut all = vec![f32::NAN; rows * cols];
            all.chunks_exact_mut(cols).enumerate().for_each(|(r, out)| packed.row(r, out));
            all
        };
        let want = filled(1, &bytes, Format::F32);
        for (value, want) in values.iter().zip(&want) {
            assert!((value - want).abs() < 0.6 / 127.0, "half a step of a scale of at most 1 / 127: {value} {want}");
        }
        for piece in [7, 16, 37] {
            assert_eq!(filled(piece, &bytes, Format::F32), want);
            assert_eq!(filled(piece, &narrow, Format::BF16), want);
        }
        assert_eq!(Packed::bytes(rows, cols, Format::Q8_0, Use::Product), 48 * (64 + 2 * 2));
    }

    #[test]
    fn a_format_without_panels_is_widened_in_any_pieces() {
        let (rows, cols) = (37, 256);
        for from in Format::all().filter(|format| format.is_quantised()) {
            let row_bytes = from.row_bytes(cols).unwrap();
            // Any bytes but for those of scales that are not finite, and of values beyond F16: zeros above the lowest bits.
            let mut blocks: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 7 % 61) as u8).collect();
            with_one_factor(from, &mut blocks);
            let want = from.widen(&blocks);
            assert_eq!(want.len(), rows * cols);
            for (kept, purpose) in
                [(from, Use::Product), (from, Use::Lookup), (Format::F32, Use::Lookup), (Format::F16, Use::Product)]
            {
                for piece in [1, 7, 16, 37] {
                    let mut packed = Packed::new(rows, cols, kept, purpose).unwrap();
                    for (i, part) in blocks.chunks(piece * row_bytes).enumerate() {
                        assert!(packed.fill(i * piece, part, from), "{from:?}");
                    }
                    for (r, want) in want.chunks(cols).enumerate() {
                        let mut out = vec![f32::NAN; cols];
                        packed.row(r, &mut out);
                        let near =
                            |(x, y): (&f32, &f32)| if kept == Format::F16 { f16::from_f32(*y).to_f32() == *x } else { x == y };
                        assert!(out.iter().zip(want).all(near), "{from:?} as {kept:?}: row {r} in pieces of {piece}");
                    }
                }
            }
            assert_eq!(Packed::bytes(rows, cols, from, Use::Lookup), (rows * row_bytes) as u64);
        }
    }

    #[test]
    fn numbers_are_not_written_in_formats_that_are_only_read() {
        for purpose in [Use::Product, Use::Lookup] {
            let mut packed = Packed::new(3, 256, Format::Q3_K, purpose).unwrap();
            assert!(!packed.fill_f32(0, &[1.0; 256]) && !packed.fill(0, &[0; 1024], Format::F32));
            assert!(!packed.fill(0, &[0; 210], Format::Q6_K));
        }
    }

    #[test]
    fn parts_of_different_formats_stay_what_they_are_where_panels_allow() {
        let bytes = |parts: &[(usize, Format)], purpose| {
            let packed = Packed::of_parts(parts, 256, purpose).unwrap();
            assert_eq!(packed.rows(), parts.iter().map(|part| part.0).sum::<usize>());
            (Packed::bytes_of_parts(parts, 256, purpose), matches!(packed.panels, Panels::F32(_)))
        };
        let of = |rows, format| Packed::bytes(rows, 256, format, Use::Product);
        let (q4_k, q6_k) = ((32, Format::Q4_K), (16, Format::Q6_K));
        assert_eq!(bytes(&[q4_k, q6_k], Use::Product), (of(32, Format::Q4_K) + of(16, Format::Q6_K), false));
        assert_eq!(bytes(&[q4_k, q4_k], Use::Product), (of(64, Format::Q4_K), false));
        assert_eq!(bytes(&[q4_k, (8, Format::Q8_0)], Use::Product), (of(32, Format::Q4_K) + of(16, Format::Q8_0), false));
        for (parts, purpose) in
            [([(24, Format::Q4_K), q6_k], Use::Product), ([q4_k, (16, Format::F16)], Use::Product), ([q4_k, q6_k], Use::Lookup)]
        {
            let rows = parts[0].0 + parts[1].0;
            assert_eq!(bytes(&parts, purpose), (Packed::bytes(rows, 256, Format::F32, purpose), true));
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_is_reported_whatever_it_is_kept_in() {
        let bad = [f16::INFINITY.to_le_bytes().as_slice(), &[0; 142]].concat();
        assert!(!Packed::new(1, 256, Format::Q4_K, Use::Lookup).unwrap().fill(0, &bad, Format::Q4_K));
        let blocks = [vec![0; 17 * 144], bad].concat();
        for kept in [Format::Q4_K, Format::F16, Format::BF16, Format::Q8_0] {
            let mut packed = Packed::new(18, 256, kept, Use::Product).unwrap();
            assert!(packed.fill(0, &blocks[..17 * 144], Format::Q4_K));
            assert!(!packed.fill(0, &blocks, Format::Q4_K), "{kept:?}");
        }
        let q8_0 = [f16::NAN.to_le_bytes().as_slice(), &[0; 32]].concat();
        assert!(!Packed::new(1, 32, Format::F32, Use::Product).unwrap().fill(0, &q8_0, Format::Q8_0));
    }

    #[test]
    fn a_value_beyond_f16_is_reported() {
        let mut packed = Packed::new(1, 1, Format::F16, Use::Product).unwrap();
        assert!(!packed.fill(0, &70000f32.to_le_bytes(), Format::F32));
        assert!(packed.fill(0, &f32::INFINITY.to_le_bytes(), Format::F32));
    }

    #[test]
    fn a_size_beyond_the_memory_is_refused() {
        assert!(Packed::new(1 << 30, 1 << 20, Format::F32, Use::Product).is_none());
        assert!(Packed::new(usize::MAX / 2, 8, Format::F32, Use::Lookup).is_none());
        assert!(Packed::new(1 << 30, 1 << 20, Format::Q8_0, Use::Product).is_none());
        for purpose in [Use::Product, Use::Lookup] {
            assert!(Packed::new(1 << 32, 1 << 20, Format::Q4_K, purpose).is_none());
            assert!(Packed::new(usize::MAX / 2, 256, Format::Q4_K, purpose).is_none());
        }
    }
}
