//! From the vectors of a text's tokens to one vector.
//!
//! Equal to `Pooling` of sentence-transformers 6.2.

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

impl Pooling {
    /// Pools one sequence.
    ///
    /// # Shape
    /// `hidden`: `(T, C)`, of which the first `skip` rows are left out (a prompt); `out`: `C`. Of nothing the result is zero, but for `Cls`,
    /// which then takes the first row.
    pub fn apply(self, hidden: &[f32], skip: usize, out: &mut [f32]) {
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
    }
}
