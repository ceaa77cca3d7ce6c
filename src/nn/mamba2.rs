//! Mamba 2: a short convolution, and a matrix a head that each token lets fade for as long as its step is, writes to and reads.

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::layer::Call;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Context, Convolution, Decay, Norm, ScanShape, Vector};

/// `o(norm(scan(c, b, step · x) + d x) · silu(gate))`, or with the norm behind the gate, or without it; x, b and c come out of one
/// convolution and are activated by SiLU. In the words of the scan c is the query, b the key and x the value.
///
/// # Source
/// Dao and Gu 2024, <https://arxiv.org/abs/2405.21060>; equals `GraniteMoeHybridMambaLayer`, `NemotronHMamba2Mixer` and `FalconH1Mixer` of
/// transformers 5.24, but that steps are within their limits in decoding too.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba2Config {
    pub shape: ScanShape,
    /// Of the convolution.
    pub taps: usize,
    /// Gate, x, b, c and steps, one after another.
    pub inputs: Slot,
    pub o: Slot,
    pub input_bias: Bias,
    pub o_bias: Bias,
    /// `(channels, 1, taps)`, x, b and c one after another.
    pub conv: Name,
    pub conv_bias: Bias,
    /// The logarithm of how fast each head fades, what is added to the projection of its steps, and the factor of x that goes past the
    /// scan: full names.
    pub a_log: Name,
    pub dt_bias: Name,
    pub d: Name,
    /// What a step is at least and at most.
    pub step_limits: (f32, f32),
    pub norm: Option<GatedNormConfig>,
    /// Of gate, x, b, c and steps.
    pub factors: [f32; 5],
}

/// A norm of as many values as one of the scan's groups has, each with a weight of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatedNormConfig {
    pub name: Name,
    pub place: GatedNormPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedNormPlace {
    BeforeGate,
    BehindGate,
}

impl Mamba2Config {
    /// Of the convolution.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Values of a row's b, and of its c.
    fn keys(&self) -> usize {
        self.shape.groups * self.shape.key_dim
    }

    /// Values of a row's gate, x and output.
    pub fn values(&self) -> usize {
        self.shape.heads * self.shape.value_dim
    }

    /// See [`Config::forward_values`](super::Config::forward_values).
    pub fn forward_values(&self) -> usize {
        3 * self.channels() + 4 * self.values() + 4 * self.shape.heads
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        3 * self.channels() + 4 * self.values() + 4 * self.shape.heads
    }
}

/// A loaded Mamba 2.
#[derive(Clone)]
pub struct Mamba2 {
    config: Mamba2Config,
    /// The number of its state.
    state: usize,
    inputs: Linear,
    conv: Convolution,
    step: Decay,
    decay: Decay,
    skip: Vector,
    norm: Option<Norm>,
    o: Linear,
}

impl Mamba2 {
    pub(super) fn load(config: &Mamba2Config, hidden_size: usize, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        let ScanShape { heads, groups, .. } = config.shape;
        let inputs = loader.linear(&[(&config.inputs, Part::Other)], hidden_size, config.input_bias)?;
        // A factor of what is convolved is one of the taps.
        let [_, x, b, c, _] = config.factors;
        let factors = [(config.values(), x), (config.keys(), b), (config.keys(), c)];
        let conv = loader.convolution(config.conv, config.channels(), config.taps, config.conv_bias)?;
        let conv = loader.scaled_convolution(conv, &factors)?;
        let rate = loader.values(config.a_log, heads)?.into_iter().map(|a| -a.exp()).collect();
        let (bias, skip) = (loader.values(config.dt_bias, heads)?, loader.values(config.d, heads)?);
        let backend = loader.weights.backend();
        let (bias, skip) = (Vector::new(bias, backend)?, Vector::new(skip, backend)?);
        let step = Decay { bias, rate: None, limits: config.step_limits };
        let decay = Decay { rate: Some(Vector::new(rate, backend)?), ..step.clone() };
        let norm = match config.norm {
            Some(norm) => Some(loader.norm_of(&[(norm.name.to_string(), config.values())], config.values() / groups)?),
            None => None,
        };
        let o = loader.linear(&[(&config.o, Part::Other)], config.values(), config.o_bias)?;
        let state = loader.next_state();
        Ok(Self { config: config.clone(), state, inputs, conv, step, decay, skip, norm, o })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.inputs, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.inputs, &mut self.o]
    }

    /// What each token reads of those before it, gated and normalised.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · P)`.
    pub(super) fn mix(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let (config, [of_gate, .., of_steps]) = (&self.config, self.config.factors);
        let inputs = self.inputs.forward(cx, x, &call.adapters)?;
        let [gate, xbc, steps] = ops::split(cx, &inputs, [config.values(), config.channels(), config.shape.heads])?;
        let (gate, steps) = (ops::scaled(cx, &gate, of_gate)?, ops::scaled(cx, &steps, of_steps)?);
        let xbc = ops::activate(cx, call.convolve(cx, &xbc, &self.conv, self.state)?, Activation::Silu)?;
        let [x, b, c] = ops::split(cx, &xbc, [config.values(), config.keys(), config.keys()])?;
        let (step, g) = (ops::decay(cx, &steps, &self.step)?, ops::decay(cx, &steps, &self.decay)?);
        let read = call.scan(cx, [&c, &b, &x, &g, &step], (config.shape, Some(&self.skip)), self.state)?;
        match (&self.norm, config.norm.map(|norm| norm.place)) {
            (Some(norm), Some(GatedNormPlace::BehindGate)) => {
                ops::norm(cx, &ops::gate(cx, &read, &gate, Some(Activation::Silu))?, norm)
            }
            (norm, _) => ops::gate(cx, &ops::optional_norm(cx, read, norm.as_ref())?, &gate, Some(Activation::Silu)),
        }
    }

    /// The projection of what was read, each row for itself.
    ///
    /// # Shape
    /// `(T, H · P)` to `(T, C)`.
    pub(super) fn project(&self, cx: Context<'_>, mixed: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        self.o.forward(cx, mixed, adapters)
    }
}
