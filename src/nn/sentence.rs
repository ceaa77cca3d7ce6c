//! What follows the pooling of a sentence embedder, where the network computes.
//!
//! Equal to the modules of sentence-transformers 6.2.

use candle_core::{Result, Tensor, bail};

use super::{Slot, Transformer, Weights};
use crate::error;
use crate::ops::{
    self, Activation, AdaptedLinear, Backend, Context, Format, Matrix, MatrixBuilder, Norm, NormKind, Pooling, TorchActivation,
    Use, Vector,
};

/// One step from the pooled vector to the final one.
#[derive(Clone)]
pub enum SentenceModule {
    Dense { projection: Projection, activation: ModuleActivation, residual: Option<Residual> },
    LayerNorm(Norm),
    Normalize,
}

/// What follows a projection.
#[derive(Clone, Copy)]
pub enum ModuleActivation {
    /// As networks compute it; `None` = the identity.
    OfNetworks(Option<Activation>),
    OfTorch(TorchActivation),
}

/// `y = x Wᵀ + b`
#[derive(Clone)]
pub struct Projection {
    weight: Matrix,
    bias: Option<Vector>,
}

/// What a Dense module adds to its output.
#[derive(Clone)]
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
        activation: TorchActivation,
        is_residual: bool,
    ) -> error::Result<Self> {
        let projection = Projection::load(weights, "linear", (inputs, outputs), has_bias)?;
        let residual = match is_residual {
            false => None,
            true if inputs == outputs => Some(Residual::Input),
            true => Some(Residual::Projected(Projection::load(weights, "residual", (inputs, outputs), false)?)),
        };
        let activation = match (activation, activation.of_networks()) {
            (TorchActivation::Identity, _) => ModuleActivation::OfNetworks(None),
            (_, Some(same)) => ModuleActivation::OfNetworks(Some(same)),
            (other, None) => ModuleActivation::OfTorch(other),
        };
        Ok(Self::Dense { projection, activation, residual })
    }

    /// Reads a layer of a head, whose tensors have this name.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn head_dense(
        weights: &mut Weights<'_>,
        name: &str,
        sizes: (usize, usize),
        has_bias: bool,
        activation: Option<Activation>,
    ) -> error::Result<Self> {
        let projection = Projection::load(weights, name, sizes, has_bias)?;
        Ok(Self::Dense { projection, activation: ModuleActivation::OfNetworks(activation), residual: None })
    }

    /// Reads a norm whose tensors have this name.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn layer_norm(weights: &mut Weights<'_>, name: &str, width: usize, eps: f32, has_bias: bool) -> error::Result<Self> {
        let weight = Some(weights.vector(&format!("{name}.weight"), width, 0.0)?);
        let bias = if has_bias { Some(weights.vector(&format!("{name}.bias"), width, 0.0)?) } else { None };
        Ok(Self::LayerNorm(Norm { kind: NormKind::Layer, eps, width, weight, bias }))
    }

    /// The weight, row by row, and the bias of a layer of a head; nothing of what has none.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn values(&self) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let (weight, bias) = match self {
            Self::Dense { projection: Projection { weight, bias }, .. } => (weight.rows(0..weight.outputs())?, bias),
            Self::LayerNorm(Norm { weight, bias, .. }) => {
                (weight.as_ref().map(Vector::values).transpose()?.unwrap_or_default(), bias)
            }
            Self::Normalize => return Ok((Vec::new(), None)),
        };
        Ok((weight, bias.as_ref().map(Vector::values).transpose()?))
    }

    /// The same with others, as many.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub fn with_values(&self, weight: Vec<f32>, bias: Option<Vec<f32>>, backend: &Backend) -> error::Result<Self> {
        let bias = bias.map(|bias| Vector::new(bias, backend)).transpose()?;
        Ok(match self {
            Self::Dense { projection, activation, residual } => {
                let (rows, cols) = (projection.weight.outputs(), projection.weight.inputs());
                let no_room =
                    || error::Error::new(error::ErrorKind::OutOfMemory, format!("head: {rows} rows do not fit the memory"));
                let mut builder = MatrixBuilder::new(rows, cols, Format::F32, Use::Product, backend).ok_or_else(no_room)?;
                builder.fill_f32(0, &weight);
                let projection = Projection { weight: builder.finish()?, bias };
                Self::Dense { projection, activation: *activation, residual: residual.clone() }
            }
            Self::LayerNorm(norm) => Self::LayerNorm(Norm { weight: Some(Vector::new(weight, backend)?), bias, ..norm.clone() }),
            Self::Normalize => Self::Normalize,
        })
    }

    /// # Shape
    /// `(sequences, inputs)` to `(sequences, outputs)`, F32.
    pub fn forward(&self, backend: &Backend, x: Tensor) -> Result<Tensor> {
        let cx = Context::forward(backend);
        match self {
            Self::Dense { projection, activation, residual } => {
                let y = projection.forward(cx, &x)?;
                let y = match activation {
                    ModuleActivation::OfNetworks(Some(activation)) => ops::activate(cx, y, *activation)?,
                    ModuleActivation::OfNetworks(None) => y,
                    ModuleActivation::OfTorch(activation) => ops::torch_activation(cx, y, *activation)?,
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
    fn load(weights: &mut Weights<'_>, name: &str, (inputs, outputs): (usize, usize), has_bias: bool) -> error::Result<Self> {
        let weight = weights.matrix(&[Slot::whole(name, outputs)], inputs)?;
        let bias = if has_bias { Some(weights.vector(&format!("{name}.bias"), outputs, 0.0)?) } else { None };
        Ok(Self { weight, bias })
    }

    fn forward(&self, cx: Context<'_>, x: &Tensor) -> Result<Tensor> {
        ops::linear(cx, x, AdaptedLinear { weight: &self.weight, bias: self.bias.as_ref(), deltas: None })
    }
}

impl Transformer {
    /// The vectors of sequences behind the modules that follow the network, read back.
    ///
    /// # Shape
    /// As [`encode_typed`](Self::encode_typed) and [`ops::pool`]; returns `(sequences, width)`.
    pub fn embed_sequences(
        &self,
        (ids, types, lengths): (&[u32], &[u32], &[usize]),
        adapters: Option<&super::Adapters>,
        (skip, kinds): (usize, &[Pooling]),
        modules: &[SentenceModule],
    ) -> Result<Vec<f32>> {
        let (backend, cx) = (self.backend(), Context::forward(self.backend()));
        let pooled = match ids {
            // Texts without any token have no vectors to pool.
            [] => ops::zero_rows(cx, lengths.len(), kinds.len() * self.config().hidden_size)?,
            _ => ops::pool(cx, &self.encode_typed((ids, types), lengths, adapters)?, lengths, skip, kinds)?,
        };
        ops::to_f32(&modules.iter().try_fold(pooled, |x, module| module.forward(backend, x))?)
    }

    /// As [`embed_sequences`](Self::embed_sequences) of at least one token each, but the modules come first: what they make of each
    /// token is pooled.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn pool_late(
        &self,
        (ids, types, lengths): (&[u32], &[u32], &[usize]),
        (skip, kinds): (usize, &[Pooling]),
        modules: &[SentenceModule],
    ) -> Result<Vec<f32>> {
        let (backend, cx) = (self.backend(), Context::forward(self.backend()));
        let tokens = self.encode_typed((ids, types), lengths, None)?;
        let tokens = modules.iter().try_fold(tokens, |x, module| module.forward(backend, x))?;
        ops::to_f32(&ops::pool(cx, &tokens, lengths, skip, kinds)?)
    }

    /// The logits of some tokens, each behind a sequence.
    ///
    /// # Shape
    /// As [`encode`](Self::encode), each sequence of at least one token; returns `(sequences, tokens)`.
    ///
    /// # Errors
    /// If the network has no output matrix.
    pub fn next_token_logits(&self, ids: &[u32], lengths: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let cx = Context::forward(self.backend());
        let Some(head) = self.head() else { bail!("the model has no output matrix") };
        let ends = lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end - 1)
        });
        let rows: Vec<usize> = ends.collect();
        let x = ops::select_rows(cx, &self.encode(ids, lengths, None)?, &rows)?;
        let (config, mut logits) = (self.config(), Vec::new());
        ops::logits(self.backend(), &x, head, config.logit_scale, config.logit_softcap, &mut logits)?;
        let row = |row: &[f32]| tokens.iter().map(|&token| row[token as usize]).collect::<Vec<_>>();
        Ok(logits.chunks_exact(config.vocab_size).flat_map(row).collect())
    }
}
