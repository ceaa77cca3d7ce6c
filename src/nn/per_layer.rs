//! Per-layer embeddings: values of each token that the layers take in besides the stream, every layer its own.

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Context, LayerInputPart, Matrix, Norm, PerLayerPart};

/// Of a token with the vector `x` and this id, for each layer: `p = norm(projection(x) / √C)`, or `(p + table[id] · √dim) / √2`.
///
/// # Source
/// Google 2026, Gemma 4: `Gemma4TextModel.project_per_layer_inputs` of transformers 5.24.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerLayerConfig {
    /// Values for each layer.
    pub dim: usize,
    pub projection: Name,
    pub norm: Name,
    /// Its name and rows, of which each holds the values for all layers.
    pub table: Option<(Name, usize)>,
}

impl PerLayerConfig {
    /// Values of a row that are in memory at a time while a pass goes forward: two steps of them, and the result.
    pub fn forward_values(&self, layers: usize) -> usize {
        3 * layers * self.dim
    }
}

/// The loaded tables and projections.
#[derive(Clone)]
pub struct PerLayer {
    layers: usize,
    scale: f32,
    projection: Linear,
    norm: Norm,
    table: Option<Matrix>,
}

impl PerLayer {
    pub(super) fn load(
        config: &PerLayerConfig,
        layers: usize,
        hidden_size: usize,
        loader: &mut Loader<'_, '_>,
    ) -> error::Result<Self> {
        let all = layers * config.dim;
        let table = match config.table {
            Some((name, rows)) => {
                let name = loader.at(name);
                Some(loader.weights.table(&name, rows, all)?)
            }
            None => None,
        };
        let projection = loader.linear(&[(&Slot::whole(config.projection, all), Part::Other)], hidden_size, Bias::None)?;
        let mut norm = loader.norm(config.norm, config.dim)?;
        // Before the norm the projection is divided by √C: that changes what is added to the mean of squares, and nothing else.
        norm.eps *= hidden_size as f32;
        Ok(Self { layers, scale: (config.dim as f32 / 2.0).sqrt(), projection, norm, table })
    }

    pub(super) fn linear(&self) -> &Linear {
        &self.projection
    }

    pub(super) fn linear_mut(&mut self) -> &mut Linear {
        &mut self.projection
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> PerLayerPart<'_> {
        let (projection, scale) = (self.projection.part(), (self.norm.width as f32).sqrt());
        PerLayerPart { projection, norm: &self.norm, table: self.table.as_ref(), scale }
    }

    /// What each layer takes in.
    ///
    /// # Shape
    /// `x`: `(T, C)`, what the first layer reads; returns `(T, dim)` for each layer.
    pub(super) fn forward(&self, cx: Context<'_>, x: &Tensor, ids: &[u32], adapters: &RowAdapters<'_>) -> Result<Vec<Tensor>> {
        let projected = ops::norm(cx, &self.projection.forward(cx, x, adapters)?, &self.norm)?;
        let all = match &self.table {
            Some(table) => {
                let known = ops::embedding(table, ids, self.scale)?;
                ops::add_scaled(cx, &known, projected, std::f32::consts::FRAC_1_SQRT_2, None)?
            }
            None => projected,
        };
        ops::split_evenly(cx, &all, self.layers)
    }
}

/// `down(act(gate(x)) · e)`, where `e` is what the layer takes in of the per-layer embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInputConfig {
    pub dim: usize,
    pub gate: Slot,
    pub down: Slot,
    pub activation: Activation,
}

impl LayerInputConfig {
    /// See [`Config::forward_values`](super::Config::forward_values).
    pub fn forward_values(&self) -> usize {
        2 * self.dim
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        3 * self.dim
    }
}

/// A loaded one.
#[derive(Clone)]
pub struct LayerInput {
    activation: Activation,
    gate: Linear,
    down: Linear,
}

impl LayerInput {
    pub(super) fn load(config: &LayerInputConfig, hidden_size: usize, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        Ok(Self {
            activation: config.activation,
            gate: loader.linear(&[(&config.gate, Part::Other)], hidden_size, Bias::None)?,
            down: loader.linear(&[(&config.down, Part::Other)], config.dim, Bias::None)?,
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.gate, &self.down]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.gate, &mut self.down]
    }

    /// What it is to a GPU's kernels, in the layer of this number.
    pub(super) fn part(&self, number: usize) -> LayerInputPart<'_> {
        LayerInputPart { activation: self.activation, gate: self.gate.part(), down: self.down.part(), number }
    }

    /// # Shape
    /// `x`: `(T, C)`, `input`: `(T, dim)`; returns `(T, C)`.
    pub(super) fn forward(&self, cx: Context<'_>, x: &Tensor, input: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        let gate = self.gate.forward(cx, x, adapters)?;
        self.down.forward(cx, &ops::gate(cx, input, &gate, Some(self.activation))?, adapters)
    }
}
