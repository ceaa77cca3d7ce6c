//! The gated delta net: a short convolution, and a matrix a head that each token lets fade, corrects and reads.

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::layer::Call;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Context, Convolution, Decay, DeltaNetPart, Norm, NormKind, ScanShape, Vector};

/// What the reference adds to the square of a query's or key's length.
const LENGTH_EPS: f32 = 1e-6;

/// `o(norm(scan(q, k, v)) · silu(gate))`, where q, k and v come out of one convolution and are activated by SiLU, q and k have length 1,
/// and q is divided by the root of its width. The norm is of each head, and its weights are as they are stored.
///
/// # Source
/// Yang et al. 2025, <https://arxiv.org/abs/2412.06464>; equals `Qwen3_5GatedDeltaNet` of transformers 5.24.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaNetConfig {
    pub shape: ScanShape,
    /// Of the convolution.
    pub taps: usize,
    /// Queries, keys and values, one after another.
    pub qkv: Slot,
    pub gate: Slot,
    pub beta: Slot,
    pub decay: Slot,
    pub o: Slot,
    /// `(channels, 1, taps)`, q, k and v one after another.
    pub conv: Name,
    /// The logarithm of how fast each head fades, and what is added to the projection of it: full names.
    pub a_log: Name,
    pub dt_bias: Name,
    pub norm: Name,
}

impl DeltaNetConfig {
    /// Of the convolution.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Values of a row's queries, and of its keys.
    fn keys(&self) -> usize {
        self.shape.groups * self.shape.key_dim
    }

    fn values(&self) -> usize {
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

/// A loaded delta net.
#[derive(Clone)]
pub struct DeltaNet {
    config: DeltaNetConfig,
    /// The number of its state.
    state: usize,
    /// q, k, v, gate, beta and decay of one input.
    inputs: Linear,
    conv: Convolution,
    q_norm: Norm,
    k_norm: Norm,
    decay: Decay,
    norm: Norm,
    o: Linear,
}

impl DeltaNet {
    pub(super) fn load(config: &DeltaNetConfig, hidden_size: usize, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        let ScanShape { heads, key_dim, value_dim, .. } = config.shape;
        let others = [&config.gate, &config.beta, &config.decay].map(|slot| (slot, Part::Other));
        let inputs = loader.linear(&[&[(&config.qkv, Part::Qkv)], &others[..]].concat(), hidden_size, Bias::None)?;
        let conv = loader.convolution(config.conv, config.channels(), config.taps, Bias::None)?;
        let rate = loader.values(config.a_log, heads)?.into_iter().map(|a| -a.exp()).collect();
        let bias = loader.values(config.dt_bias, heads)?;
        let backend = loader.weights.backend();
        let rate = Some(Vector::new(rate, backend)?);
        let decay = Decay { bias: Vector::new(bias, backend)?, rate, limits: Decay::UNLIMITED };
        // A norm by the mean of squares and a weight make the length 1.
        let unit = |scale: f32| -> error::Result<Norm> {
            let weight = Some(Vector::new(vec![scale; key_dim], backend)?);
            Ok(Norm { kind: NormKind::Rms, eps: LENGTH_EPS / key_dim as f32, width: key_dim, weight, bias: None })
        };
        let (q_norm, k_norm) = (unit(1.0 / key_dim as f32)?, unit(1.0 / (key_dim as f32).sqrt())?);
        let norm = loader.plain_norm(config.norm, value_dim)?;
        let o = loader.linear(&[(&config.o, Part::Other)], config.values(), Bias::None)?;
        let state = loader.next_state();
        Ok(Self { config: config.clone(), state, inputs, conv, q_norm, k_norm, decay, norm, o })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.inputs, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.inputs, &mut self.o]
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> DeltaNetPart<'_> {
        DeltaNetPart {
            inputs: self.inputs.part(),
            o: self.o.part(),
            conv: &self.conv,
            decay: &self.decay,
            shape: self.config.shape,
            length_eps: LENGTH_EPS,
            norm: &self.norm,
            state: self.state,
        }
    }

    /// What each token reads of those before it, normalised and gated.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · P)`.
    pub(super) fn mix(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let (c, heads) = (&self.config, self.config.shape.heads);
        let inputs = self.inputs.forward(cx, x, &call.adapters)?;
        let [qkv, gate, beta, decay] = ops::split(cx, &inputs, [c.channels(), c.values(), heads, heads])?;
        let qkv = ops::activate(cx, call.convolve(cx, &qkv, &self.conv, self.state)?, Activation::Silu)?;
        let [q, k, v] = ops::split(cx, &qkv, [c.keys(), c.keys(), c.values()])?;
        let (q, k) = (ops::norm(cx, &q, &self.q_norm)?, ops::norm(cx, &k, &self.k_norm)?);
        let g = ops::decay(cx, &decay, &self.decay)?;
        let beta = ops::activate(cx, beta, Activation::Sigmoid)?;
        let read = call.scan(cx, [&q, &k, &v, &g, &beta], (c.shape, None), self.state)?;
        ops::gate(cx, &ops::norm(cx, &read, &self.norm)?, &gate, Some(Activation::Silu))
    }

    /// The projection of what was read, each row for itself.
    ///
    /// # Shape
    /// `(T, H · P)` to `(T, C)`.
    pub(super) fn project(&self, cx: Context<'_>, mixed: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        self.o.forward(cx, mixed, adapters)
    }
}
