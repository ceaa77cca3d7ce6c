//! A weight matrix in the order in which the matrix product reads it.
//!
//! Rows are grouped by sixteen into panels; a panel holds, for each column, its sixteen rows side by side. One vector load
//! is then one column of sixteen outputs, a decode step reads memory front to back, and nothing is repacked at run time.
//! A table that rows are only looked up in has panels of one row: a row of a wide panel is a cache line a value.

use half::{bf16, f16};

use super::format::q8_0::{BLOCK, Q8_0, quantise};
use super::memory::huge_vec;
use super::simd::LANES;

/// The type of stored weights. Arithmetic is F32 with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    F32,
    F16,
    BF16,
}

impl StoredType {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// A way to keep a matrix for products in fewer bits than it is stored in. Arithmetic is F32 as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quant {
    /// See [`Q8_0`].
    Q8_0,
}

/// The values of a [`Packed`] matrix.
pub(super) enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Q8_0(Q8_0),
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

/// A matrix of `rows` outputs by `cols` inputs; the last panel is filled up with zeros.
pub struct Packed {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows of a panel.
    pub(super) lanes: usize,
    pub(super) panels: Panels,
}

impl Packed {
    /// A matrix of zeros, to be filled by [`fill`](Self::fill). `None` if there is no memory for its size.
    pub fn new(rows: usize, cols: usize, stored: StoredType, purpose: Use) -> Option<Self> {
        let lanes = purpose.lanes();
        let len = rows.div_ceil(lanes).checked_mul(lanes)?.checked_mul(cols)?;
        let panels = match stored {
            StoredType::F32 => Panels::F32(zeros(len)?),
            StoredType::F16 => Panels::F16(zeros(len)?),
            StoredType::BF16 => Panels::BF16(zeros(len)?),
        };
        Some(Self { rows, cols, lanes, panels })
    }

    /// The same for products, with values that are quantised when they are filled in.
    pub fn quantized(rows: usize, cols: usize, quant: Quant) -> Option<Self> {
        let len = |cols: usize| rows.div_ceil(LANES).checked_mul(LANES)?.checked_mul(cols);
        let panels = match quant {
            Quant::Q8_0 => Panels::Q8_0(Q8_0 { values: zeros(len(cols)?)?, scales: zeros(len(cols.div_ceil(BLOCK))?)? }),
        };
        Some(Self { rows, cols, lanes: LANES, panels })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of a matrix of this shape.
    pub fn bytes(rows: usize, cols: usize, stored: StoredType, purpose: Use) -> u64 {
        rows.next_multiple_of(purpose.lanes()) as u64 * cols as u64 * stored.size() as u64
    }

    /// The bytes of a quantised matrix of this shape.
    pub fn quantized_bytes(rows: usize, cols: usize, quant: Quant) -> u64 {
        match quant {
            Quant::Q8_0 => Q8_0::bytes(rows.next_multiple_of(LANES), cols),
        }
    }

    /// Writes whole rows from `first` on: little-endian values of type `from`, row after row. Returns `false` if a value of
    /// a finite F32 or BF16 does not fit F16, or if one cannot be quantised: it is not finite, or too large.
    pub fn fill(&mut self, first: usize, bytes: &[u8], from: StoredType) -> bool {
        let (cols, lanes) = (self.cols, self.lanes);
        assert_eq!(bytes.len() % (cols * from.size()), 0, "whole rows");
        match (&mut self.panels, from) {
            (Panels::F32(to), StoredType::F32) => scatter(to, cols, lanes, first, bytes, f32::from_le_bytes),
            (Panels::F32(to), StoredType::F16) => scatter(to, cols, lanes, first, bytes, |b| f16::from_le_bytes(b).to_f32()),
            (Panels::F32(to), StoredType::BF16) => scatter(to, cols, lanes, first, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            (Panels::BF16(to), StoredType::BF16) => scatter(to, cols, lanes, first, bytes, bf16::from_le_bytes),
            (Panels::BF16(to), StoredType::F32) => {
                scatter(to, cols, lanes, first, bytes, |b| bf16::from_f32(f32::from_le_bytes(b)));
            }
            (Panels::BF16(to), StoredType::F16) => {
                scatter(to, cols, lanes, first, bytes, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32()));
            }
            (Panels::F16(to), StoredType::F16) => scatter(to, cols, lanes, first, bytes, f16::from_le_bytes),
            (Panels::F16(to), from) => {
                let mut fits = true;
                let mut narrow = |x: f32| {
                    let y = f16::from_f32(x);
                    fits &= y.is_finite() || !x.is_finite();
                    y
                };
                match from {
                    StoredType::F32 => scatter(to, cols, lanes, first, bytes, |b| narrow(f32::from_le_bytes(b))),
                    _ => scatter(to, cols, lanes, first, bytes, |b| narrow(bf16::from_le_bytes(b).to_f32())),
                }
                return fits;
            }
            (Panels::Q8_0(to), from) => {
                let Some((values, scales)) = quantise(&widen(bytes, from), cols) else { return false };
                scatter(&mut to.values, cols, lanes, first, &values, i8::from_le_bytes);
                scatter(&mut to.scales, cols.div_ceil(BLOCK), lanes, first, &scales, f16::from_le_bytes);
            }
        }
        true
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
            Panels::Q8_0(p) => p.row(row, out),
        }
    }
}

fn zeros<T: Copy + Default>(len: usize) -> Option<Vec<T>> {
    let mut vec = huge_vec(len)?;
    vec.resize(len, T::default());
    Some(vec)
}

/// Reads `N`-byte values row by row and writes them into panels.
fn scatter<T: Copy, const N: usize>(
    to: &mut [T],
    cols: usize,
    lanes: usize,
    first: usize,
    bytes: &[u8],
    mut read: impl FnMut([u8; N]) -> T,
) {
    let mut value = |at: usize| read(bytes[at * N..][..N].try_into().expect("N bytes"));
    let rows = bytes.len() / N / cols;
    let mut row = 0;
    while row < rows {
        let lane = (first + row) % lanes;
        let panel = &mut to[(first + row) / lanes * lanes * cols..][..lanes * cols];
        let filled = (lanes - lane).min(rows - row);
        // Columns outside, lanes inside: the writes are sequential, and sixteen sequential reads are what caches are built for.
        for (k, column) in panel.chunks_exact_mut(lanes).enumerate() {
            for (i, slot) in column[lane..lane + filled].iter_mut().enumerate() {
                *slot = value((row + i) * cols + k);
            }
        }
        row += filled;
    }
}

/// Little-endian values of type `from` as F32.
pub fn widen(bytes: &[u8], from: StoredType) -> Vec<f32> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.chunks_exact(N).map(|b| read(b.try_into().expect("N bytes"))).collect()
    }
    match from {
        StoredType::F32 => each(bytes, f32::from_le_bytes),
        StoredType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        StoredType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_filled_in_any_pieces() {
        let (rows, cols) = (37, 5);
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.5 - 30.0).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (stored, purpose) in [
            (StoredType::F32, Use::Product),
            (StoredType::F16, Use::Product),
            (StoredType::BF16, Use::Product),
            (StoredType::F32, Use::Lookup),
        ] {
            for piece in [1, 7, 16, 37] {
                let mut packed = Packed::new(rows, cols, stored, purpose).unwrap();
                for (i, part) in bytes.chunks(piece * cols * 4).enumerate() {
                    assert!(packed.fill(i * piece, part, StoredType::F32));
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
        let filled = |piece: usize, bytes: &[u8], from: StoredType| {
            let mut packed = Packed::quantized(rows, cols, Quant::Q8_0).unwrap();
            for (i, part) in bytes.chunks(piece * cols * from.size()).enumerate() {
                assert!(packed.fill(i * piece, part, from));
            }
            let mut all = vec![f32::NAN; rows * cols];
            all.chunks_exact_mut(cols).enumerate().for_each(|(r, out)| packed.row(r, out));
            all
        };
        let want = filled(1, &bytes, StoredType::F32);
        for (value, want) in values.iter().zip(&want) {
            assert!((value - want).abs() < 0.6 / 127.0, "half a step of a scale of at most 1 / 127: {value} {want}");
        }
        for piece in [7, 16, 37] {
            assert_eq!(filled(piece, &bytes, StoredType::F32), want);
            assert_eq!(filled(piece, &narrow, StoredType::BF16), want);
        }
        assert_eq!(Packed::quantized_bytes(rows, cols, Quant::Q8_0), 48 * (45 + 2 * 2));
    }

    #[test]
    fn a_value_beyond_f16_is_reported() {
        let mut packed = Packed::new(1, 1, StoredType::F16, Use::Product).unwrap();
        assert!(!packed.fill(0, &70000f32.to_le_bytes(), StoredType::F32));
        assert!(packed.fill(0, &f32::INFINITY.to_le_bytes(), StoredType::F32));
    }

    #[test]
    fn a_size_beyond_the_memory_is_refused() {
        assert!(Packed::new(1 << 30, 1 << 20, StoredType::F32, Use::Product).is_none());
        assert!(Packed::new(usize::MAX / 2, 8, StoredType::F32, Use::Lookup).is_none());
        assert!(Packed::quantized(1 << 30, 1 << 20, Quant::Q8_0).is_none());
    }
}
