//! From the vectors of a text's tokens to one vector.
//!
//! Equal to `Pooling` and `Normalize` of sentence-transformers 6.2.

use candle_core::{Result, Tensor, bail};

use super::cpu::pooling as cpu;
use super::tensors::pooling as tensors;
use super::{Backend, Context};

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
    #[cfg(any(test, feature = "selftest"))]
    pub const ALL: [Self; 6] = [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLen, Self::WeightedMean, Self::Last];
}

/// The vectors of sequences, whose rows lie one after another.
///
/// # Shape
/// `hidden`: `(T, C)`, as many rows as `lengths` sum to; of each sequence the first `skip` are left out (a prompt). Returns
/// `(sequences, kinds · C)` in F32, the kinds side by side. Of nothing the result is zero, but for `Cls`, which then takes the first
/// row.
pub fn pool(cx: Context<'_>, hidden: &Tensor, lengths: &[usize], skip: usize, kinds: &[Pooling]) -> Result<Tensor> {
    let (rows, _) = hidden.dims2()?;
    if lengths.iter().sum::<usize>() != rows {
        bail!("pooling: expected sequences of {rows} rows in all, found {lengths:?}")
    }
    match cx.backend {
        Backend::Cpu => cpu::pool(hidden, lengths, skip, kinds),
        Backend::Tensors(_) => tensors::pool(hidden, lengths, skip, kinds),
    }
}

/// What nothing is pooled to: rows of zeros, `(rows, cols)` in F32.
pub fn zero_rows(cx: Context<'_>, rows: usize, cols: usize) -> Result<Tensor> {
    match cx.backend {
        Backend::Cpu => cpu::zero_rows(rows, cols),
        Backend::Tensors(device) => tensors::zero_rows(rows, cols, device),
    }
}

/// Rows of length 1; a row of zeros stays one. On the CPU in the memory of `x`.
///
/// # Shape
/// `(B, C)` in F32; returns the same.
pub fn unit_rows(cx: Context<'_>, x: Tensor) -> Result<Tensor> {
    match cx.backend {
        Backend::Cpu => cpu::unit_rows(x),
        Backend::Tensors(_) => tensors::unit_rows(&x),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const BACKENDS: [Backend; 2] = [Backend::Cpu, Backend::TENSORS_ON_CPU];

    #[test]
    fn each_way_is_its_formula_with_and_without_a_prompt() {
        let hidden = [1.0, -8.0, 2.0, 4.0, 6.0, -2.0]; // three tokens of two values
        let pool = |pooling: Pooling, skip| {
            let mut out = [f32::NAN; 2];
            cpu::apply(pooling, &hidden, skip, &mut out);
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

        // What is no number is not passed over.
        for kind in [Pooling::Max, Pooling::Mean, Pooling::MeanSqrtLen, Pooling::WeightedMean] {
            for rows in
                [[f32::NAN, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, f32::NAN, 3.0, 4.0, 5.0], [1.0, 1.0, 2.0, 3.0, f32::NAN, 5.0]]
            {
                let mut out = [0.0; 2];
                cpu::apply(kind, &rows, 0, &mut out);
                assert!(out[0].is_nan() && out[1].is_finite(), "{kind:?} of {rows:?}: {out:?}");
            }
        }

        // The same of several sequences, on every backend.
        let two = Tensor::from_vec([[1.0, 1.0].as_slice(), &hidden].concat(), (4, 2), &Device::Cpu).unwrap();
        for kind in Pooling::ALL {
            for (backend, skip) in BACKENDS.iter().flat_map(|backend| [0, 1, 3].map(|skip| (backend, skip))) {
                let found = super::pool(Context::forward(backend), &two, &[1, 0, 3], skip, &[kind, Pooling::Last])
                    .unwrap()
                    .to_vec2::<f32>()
                    .unwrap();
                assert_eq!(found[1], [0.0; 4]);
                let want = [pool(kind, skip), pool(Pooling::Last, skip)].concat();
                let error = found[2].iter().zip(want).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(error < 1e-6, "{kind:?}, {backend:?}, without {skip}: {error}");
            }
        }
    }
}
