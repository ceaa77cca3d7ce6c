//! From the vectors of a text's tokens to one vector.
//!
//! Equal to `Pooling` and `Normalize` of sentence-transformers 6.2.

use candle_core::{DType, Device, Result, Tensor};

use super::Backend;
use super::row_op::{in_place, with_rows};
use crate::kernels;

/// One way of pooling; several at once stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first token (`[CLS]`).
    Cls,
    /// The largest value of all tokens, for each dimension.
    Max,
    /// The mean of all tokens.
    Mean,
    /// The sum of all tokens over the square root of their number.
    MeanSqrtLen,
    /// The mean, weighted with the position: 1 for the first token.
    WeightedMean,
    /// The last token.
    Last,
}

/// The vectors of sequences, whose rows lie one after another.
///
/// # Shape
/// `hidden`: `(T, C)`, as many rows as `lengths` sum to; of each sequence the first `skip` are left out (a prompt). Returns
/// `(sequences, kinds · C)` in F32, the kinds side by side. Of nothing the result is zero, but for `Cls`, which then takes the first
/// row.
pub fn pool(backend: &Backend, hidden: &Tensor, lengths: &[usize], skip: usize, kinds: &[Pooling]) -> Result<Tensor> {
    let (_, width) = hidden.dims2()?;
    let shape = (lengths.len(), kinds.len() * width);
    if !backend.kernels {
        return by_tensors(hidden, lengths, skip, kinds)?.reshape(shape);
    }
    let mut pooled = vec![0f32; shape.0 * shape.1];
    with_rows(hidden, |hidden| {
        let mut left = hidden.packed()?;
        for (out, len) in pooled.chunks_exact_mut(shape.1).zip(lengths) {
            let rows;
            (rows, left) = left.split_at(len * width);
            kinds.iter().zip(out.chunks_exact_mut(width)).for_each(|(kind, out)| kind.apply(rows, skip, out));
        }
        Ok(())
    })?;
    Tensor::from_vec(pooled, shape, &Device::Cpu)
}

fn by_tensors(hidden: &Tensor, lengths: &[usize], skip: usize, kinds: &[Pooling]) -> Result<Tensor> {
    let (_, width) = hidden.dims2()?;
    let mut pooled = Vec::with_capacity(lengths.len() * kinds.len());
    let mut first = 0;
    for &len in lengths {
        let count = len.saturating_sub(skip);
        let rows = |start: usize, count: usize| hidden.narrow(0, start, count)?.to_dtype(DType::F32);
        let pooled_rows = if count > 0 { Some(rows(first + skip, count)?) } else { None };
        for kind in kinds {
            pooled.push(match (kind, &pooled_rows) {
                (Pooling::Cls, None) if len > 0 => rows(first, 1)?,
                (_, None) => Tensor::zeros((1, width), DType::F32, hidden.device())?,
                (kind, Some(rows)) => by_kind(*kind, rows, skip)?,
            });
        }
        first += len;
    }
    Tensor::cat(&pooled, 0)
}

/// All of some rows, of which the first is the one behind `skip`.
fn by_kind(kind: Pooling, rows: &Tensor, skip: usize) -> Result<Tensor> {
    let count = rows.dims()[0];
    match kind {
        Pooling::Cls => rows.narrow(0, 0, 1),
        Pooling::Last => rows.narrow(0, count - 1, 1),
        Pooling::Max => rows.max_keepdim(0),
        Pooling::Mean => rows.sum_keepdim(0)? / count as f64,
        Pooling::MeanSqrtLen => rows.sum_keepdim(0)? / (count as f64).sqrt(),
        Pooling::WeightedMean => {
            let weights: Vec<f32> = (skip + 1..=skip + count).map(|position| position as f32).collect();
            let total = weights.iter().sum::<f32>();
            let weights = Tensor::from_vec(weights, (count, 1), rows.device())?;
            rows.broadcast_mul(&weights)?.sum_keepdim(0)? / f64::from(total)
        }
    }
}
/// Rows of zeros in F32, `(rows, cols)`: what nothing is pooled to.
pub fn zero_rows(backend: &Backend, rows: usize, cols: usize) -> Result<Tensor> {
    Tensor::zeros((rows, cols), DType::F32, &backend.device)
}

/// Rows of length 1; a row of zeros stays one. On the CPU in the memory of `x`.
///
/// # Shape
/// `(B, C)` in F32; returns the same.
pub fn unit_rows(backend: &Backend, x: Tensor) -> Result<Tensor> {
    if backend.kernels {
        return in_place("unit_rows", x, |x, width| {
            x.chunks_exact_mut(width).for_each(kernels::unit_length);
            Ok(())
        });
    }
    x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(kernels::LEAST_LENGTH)?)
}

impl Pooling {
    #[cfg(any(test, feature = "selftest"))]
    pub const ALL: [Self; 6] = [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLen, Self::WeightedMean, Self::Last];

    /// Pools one sequence on the CPU.
    ///
    /// # Shape
    /// `hidden`: `(T, C)`, of which the first `skip` rows are left out (a prompt); `out`: `C`. Of nothing the result is zero, but for `Cls`,
    /// which then takes the first row.
    fn apply(self, hidden: &[f32], skip: usize, out: &mut [f32]) {
        let width = out.len();
        out.fill(0.0);
        let rows = || hidden.chunks_exact(width).enumerate().skip(skip);
        let count = rows().count() as f32;
        match self {
            Self::Cls => {
                if let Some(row) = rows().map(|(_, row)| row).next().or_else(|| hidden.chunks_exact(width).next()) {
                    out.copy_from_slice(row);
                }
            }
            Self::Last => {
                if let Some((_, row)) = rows().last() {
                    out.copy_from_slice(row);
                }
            }
            Self::Max => {
                for (i, (_, row)) in rows().enumerate() {
                    for (y, x) in out.iter_mut().zip(row) {
                        *y = if i == 0 { *x } else { y.max(*x) };
                    }
                }
            }
            Self::Mean | Self::MeanSqrtLen | Self::WeightedMean => {
                let mut total = 0.0;
                for (t, row) in rows() {
                    let weight = if self == Self::WeightedMean { (t + 1) as f32 } else { 1.0 };
                    total += weight;
                    for (y, x) in out.iter_mut().zip(row) {
                        *y += weight * x;
                    }
                }
                let divisor = if self == Self::MeanSqrtLen { count.sqrt() } else { total };
                if divisor > 0.0 {
                    out.iter_mut().for_each(|y| *y /= divisor);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_its_formula_with_and_without_a_prompt() {
        let hidden = [1.0, -8.0, 2.0, 4.0, 6.0, -2.0]; // three tokens of two values
        let pool = |pooling: Pooling, skip| {
            let mut out = [f32::NAN; 2];
            pooling.apply(&hidden, skip, &mut out);
            out
        };
        assert_eq!([pool(Pooling::Cls, 0), pool(Pooling::Cls, 1), pool(Pooling::Cls, 3)], [[1.0, -8.0], [2.0, 4.0], [1.0, -8.0]]);
        assert_eq!([pool(Pooling::Last, 0), pool(Pooling::Last, 3)], [[6.0, -2.0], [0.0, 0.0]]);
        assert_eq!([pool(Pooling::Max, 0), pool(Pooling::Max, 2)], [[6.0, 4.0], [6.0, -2.0]]);
        assert_eq!(
            [pool(Pooling::Mean, 0), pool(Pooling::Mean, 1), pool(Pooling::Mean, 3)],
            [[3.0, -2.0], [4.0, 1.0], [0.0, 0.0]]
        );
        assert_eq!(pool(Pooling::MeanSqrtLen, 0), [9.0 / 3f32.sqrt(), -6.0 / 3f32.sqrt()]);
        // Tokens keep the weights of their positions when a prompt is left out.
        assert_eq!(pool(Pooling::WeightedMean, 1), [(2.0 * 2.0 + 3.0 * 6.0) / 5.0, (2.0 * 4.0 - 3.0 * 2.0) / 5.0]);

        // The same of several sequences, on every backend.
        let two = Tensor::from_vec([[1.0, 1.0].as_slice(), &hidden].concat(), (4, 2), &Device::Cpu).unwrap();
        for kind in Pooling::ALL {
            for (kernels, skip) in [(true, 0), (true, 1), (true, 3), (false, 0), (false, 1), (false, 3)] {
                let backend = Backend { device: Device::Cpu, kernels };
                let found =
                    super::pool(&backend, &two, &[1, 0, 3], skip, &[kind, Pooling::Last]).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(found[1], [0.0; 4]);
                let want = [pool(kind, skip), pool(Pooling::Last, skip)].concat();
                let error = found[2].iter().zip(want).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(error < 1e-6, "{kind:?}, kernels {kernels}, without {skip}: {error}");
            }
        }
    }
}
