//! What follows the pooling of a sentence embedder, where the network computes.
//!
//! Equal to the modules of sentence-transformers 6.2.

use candle_core::{Result, Tensor};

use super::{Slot, Transformer, Weights};
use crate::error;
use crate::ops::{self, Activation, AdaptedLinear, Backend, Context, Matrix, Norm, NormKind, Pooling, Vector};

/// One step from the pooled vector to the final one.
pub enum SentenceModule {
    Dense {
        projection: Projection,
        /// `None` = the identity.
        activation: Option<Activation>,
        residual: Option<Residual>,
    },
    LayerNorm(Norm),
    Normalize,
}

/// `y = x Wᵀ + b`
pub struct Projection {
    weight: Matrix,
    bias: Option<Vector>,
}

/// What a Dense module adds to its output.
pub enum Residual {
    Input,
    Projected(Projection),
}

impl SentenceModule {
    /// Reads a Dense module; `is_residual`: its input is added to the output.
    ///
    /// # Errors
    /// `ErrorKind::Format` naming a tensor that is missing or has another shape.
    pub fn dense(
        weights: &mut Weights<'_>,
        (inputs, outputs): (usize, usize),
        has_bias: bool,
        activation: Option<Activation>,
        is_residual: bool,
    ) -> error::Result<Self> {
        let weight = weights.matrix(&[Slot::whole("linear", outputs)], inputs)?;
        let bias = if has_bias { Some(weights.vector("linear.bias", outputs, 0.0)?) } else { None };
        let residual = match is_residual {
            false => None,
            true if inputs == outputs => Some(Residual::Input),
            true => {
                let weight = weights.matrix(&[Slot::whole("residual", outputs)], inputs)?;
                Some(Residual::Projected(Projection { weight, bias: None }))
            }
        };
        Ok(Self::Dense { projection: Projection { weight, bias }, activation, residual })
    }

    /// Reads a LayerNorm module.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn layer_norm(weights: &mut Weights<'_>, width: usize) -> error::Result<Self> {
        Ok(Self::LayerNorm(Norm {
            kind: NormKind::Layer,
            // torch's default, which the module does not change.
            eps: 1e-5,
            width,
            weight: Some(weights.vector("norm.weight", width, 0.0)?),
            bias: Some(weights.vector("norm.bias", width, 0.0)?),
        }))
    }

    /// # Shape
    /// `(sequences, inputs)` to `(sequences, outputs)`, F32.
    pub fn forward(&self, backend: &Backend, x: Tensor) -> Result<Tensor> {
        let cx = Context::forward(backend);
        match self {
            Self::Dense { projection, activation, residual } => {
                let y = projection.forward(cx, &x)?;
                let y = match activation {
                    Some(activation) => ops::activate(cx, y, *activation)?,
                    None => y,
                };
                match residual {
                    None => Ok(y),
                    Some(Residual::Input) => ops::add_scaled(cx, &x, y, 1.0, None),
                    Some(Residual::Projected(by)) => ops::add_scaled(cx, &by.forward(cx, &x)?, y, 1.0, None),
                }
            }
            Self::LayerNorm(norm) => ops::norm(cx, &x, norm),
            Self::Normalize => ops::unit_rows(cx, x),
        }
    }
}

impl Projection {
    fn forward(&self, cx: Context<'_>, x: &Tensor) -> Result<Tensor> {
        ops::linear(cx, x, AdaptedLinear { weight: &self.weight, bias: self.bias.as_ref(), deltas: None })
    }
}

impl Transformer {
    /// The vectors of sequences behind the modules that follow the network, read back.
    ///
    /// # Shape
    /// As [`encode`](Self::encode) and [`ops::pool`]; returns `(sequences, width)`.
    pub fn embed_sequences(
        &self,
        (ids, lengths): (&[u32], &[usize]),
        adapters: Option<&super::Adapters>,
        (skip, kinds): (usize, &[Pooling]),
        modules: &[SentenceModule],
    ) -> Result<Vec<f32>> {
        let (backend, cx) = (self.backend(), Context::forward(self.backend()));
        let pooled = match ids {
            // Texts without any token have no vectors to pool.
            [] => ops::zero_rows(cx, lengths.len(), kinds.len() * self.config().hidden_size)?,
            _ => ops::pool(cx, &self.encode(ids, lengths, adapters)?, lengths, skip, kinds)?,
        };
        ops::to_f32(&modules.iter().try_fold(pooled, |x, module| module.forward(backend, x))?)
    }
}
