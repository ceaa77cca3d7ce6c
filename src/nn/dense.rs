//! The MLP: each token for itself.

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::linear::Restored;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Context, GateClamp, MlpPart, Unsupported};

/// `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` where there is no gate.
///
/// # Source
/// Shazeer 2020, <https://arxiv.org/abs/2002.05202>.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseConfig {
    pub intermediate_size: usize,
    pub gate: Option<Slot>,
    pub up: Slot,
    pub down: Slot,
    /// What MLX's converter calls gate, up and down, each by itself, where that is something else.
    pub mlx: Option<[Name; 3]>,
    pub bias: Bias,
    pub activation: Activation,
    /// Of a gated one, instead of an activation alone.
    pub clamp: Option<GateClamp>,
    /// A factor of what is activated of a gated one.
    pub gate_scale: f32,
}

impl DenseConfig {
    /// The same under the names of gate, up and down, each by itself.
    fn renamed(&self, [gate, up, down]: [Name; 3]) -> Self {
        let slot = |name: Name, of: &Slot| Slot::whole(name, of.len());
        let gate = self.gate.as_ref().map(|of| slot(gate, of));
        Self { gate, up: slot(up, &self.up), down: slot(down, &self.down), mlx: None, ..self.clone() }
    }

    /// Notes what tensors of these names were before MLX's converter: parts of one may lie in it one after another.
    fn restore(&self, [gate, up, down]: [Name; 3], hidden_size: usize, loader: &mut Loader<'_, '_>) {
        let gate = self.gate.iter().map(|slot| (slot, gate, hidden_size));
        let mut all: Vec<Restored> = Vec::new();
        for (slot, stored, inputs) in gate.chain([(&self.up, up, hidden_size), (&self.down, down, self.intermediate_size)]) {
            for field in ["weight", "bias"].into_iter().take(if self.bias == Bias::Stored { 2 } else { 1 }) {
                let name = loader.at(&format!("{}.{field}", slot.name));
                let piece = (loader.at(&format!("{stored}.{field}")), 0..slot.len());
                match all.iter_mut().find(|restored| restored.name == name) {
                    Some(restored) => {
                        restored.shape[0] += slot.len();
                        restored.pieces.push(piece);
                    }
                    None => {
                        let shape = if field == "bias" { vec![slot.len()] } else { vec![slot.len(), inputs] };
                        all.push(Restored { name, shape, pieces: vec![piece], each: 1, plus: 0.0 });
                    }
                }
            }
        }
        all.into_iter().for_each(|restored| loader.restore(restored));
    }

    /// Values of a row between the two products.
    fn inner_values(&self) -> usize {
        self.intermediate_size * if self.gate.is_some() { 3 } else { 2 }
    }

    /// See [`Config::forward_values`](super::Config::forward_values).
    pub fn forward_values(&self) -> usize {
        self.inner_values()
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        self.inner_values()
    }
}

/// A loaded MLP.
#[derive(Clone)]
pub struct Dense {
    activation: Activation,
    clamp: Option<GateClamp>,
    gate_scale: f32,
    intermediate_size: usize,
    is_gated: bool,
    /// Gate and up as one matrix, or up alone.
    up: Linear,
    down: Linear,
}

impl Dense {
    pub(super) fn load(config: &DenseConfig, hidden_size: usize, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        if let Some(names) = config.mlx.filter(|[.., down]| loader.weights.has(&loader.at(&format!("{down}.weight")))) {
            let dense = Self::load(&config.renamed(names), hidden_size, loader)?;
            config.restore(names, hidden_size, loader);
            return Ok(dense);
        }
        let up: Vec<_> = config.gate.iter().chain([&config.up]).map(|slot| (slot, Part::Other)).collect();
        Ok(Self {
            activation: config.activation,
            clamp: config.clamp,
            gate_scale: config.gate_scale,
            intermediate_size: config.intermediate_size,
            is_gated: config.gate.is_some(),
            up: loader.linear(&up, hidden_size, config.bias)?,
            down: loader.linear(&[(&config.down, Part::Down)], config.intermediate_size, config.bias)?,
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.up, &self.down]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.up, &mut self.down]
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> std::result::Result<MlpPart<'_>, Unsupported> {
        // Every field by its name: what is added to an MLP is decided on here.
        let Self { activation, clamp, gate_scale, intermediate_size: _, is_gated, up, down } = self;
        if clamp.is_some() || *gate_scale != 1.0 {
            return Unsupported::new("a gate with a bound or a factor");
        }
        Ok(MlpPart { is_gated: *is_gated, activation: *activation, up: up.part(), down: down.part() })
    }

    /// # Shape
    /// `(T, C)`; returns the same.
    pub(super) fn forward(&self, cx: Context<'_>, x: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        let up = self.up.forward(cx, x, adapters)?;
        let activated = match (self.is_gated, self.clamp) {
            (true, Some(clamp)) => ops::gated_clamped(cx, &up, clamp)?,
            (true, None) if self.gate_scale == 1.0 => ops::gated(cx, &up, self.activation)?,
            (true, None) => {
                let [gate, up] = ops::split(cx, &up, [self.intermediate_size; 2])?;
                ops::gate(cx, &up, &ops::scaled(cx, &gate, self.gate_scale)?, Some(self.activation))?
            }
            (false, _) => ops::activate(cx, up, self.activation)?,
        };
        self.down.forward(cx, &activated, adapters)
    }
}
