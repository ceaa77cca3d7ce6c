//! The gated short convolution: what a token projects, multiplied before and behind a convolution with the few tokens before it.

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::layer::Call;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Context, Convolution, ShortConvPart};

/// `o(c · conv(b · x))`, where b, c and x are projections of the same input.
///
/// # Source
/// Liquid AI 2025, <https://arxiv.org/abs/2511.23404>; equals `Lfm2ShortConv` of transformers 5.24.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvConfig {
    pub channels: usize,
    pub taps: usize,
    /// b, c and x, one after another.
    pub inputs: Slot,
    pub o: Slot,
    /// `(channels, 1, taps)`
    pub conv: Name,
    /// Of all three.
    pub bias: Bias,
}

impl ShortConvConfig {
    /// See [`Config::forward_values`](super::Config::forward_values).
    pub fn forward_values(&self) -> usize {
        6 * self.channels
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        6 * self.channels
    }
}

/// A loaded short convolution.
#[derive(Clone)]
pub struct ShortConv {
    channels: usize,
    /// The number of its state.
    state: usize,
    inputs: Linear,
    conv: Convolution,
    o: Linear,
}

impl ShortConv {
    pub(super) fn load(config: &ShortConvConfig, hidden_size: usize, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        let ShortConvConfig { channels, taps, bias, .. } = *config;
        Ok(Self {
            channels,
            inputs: loader.linear(&[(&config.inputs, Part::Other)], hidden_size, bias)?,
            conv: loader.convolution(config.conv, channels, taps, bias)?,
            o: loader.linear(&[(&config.o, Part::Other)], channels, bias)?,
            state: loader.next_state(),
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.inputs, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.inputs, &mut self.o]
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> ShortConvPart<'_> {
        ShortConvPart { inputs: self.inputs.part(), o: self.o.part(), conv: &self.conv, state: self.state }
    }

    /// What the convolution gives of each token and those before it, gated.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns `(T, channels)`.
    pub(super) fn mix(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let inputs = self.inputs.forward(cx, x, &call.adapters)?;
        let [b, c, x] = ops::split(cx, &inputs, [self.channels; 3])?;
        let convolved = call.convolve(cx, &ops::gate(cx, &x, &b, None)?, &self.conv, self.state)?;
        ops::gate(cx, &convolved, &c, None)
    }

    /// The projection of what came out, each row for itself.
    ///
    /// # Shape
    /// `(T, channels)` to `(T, C)`.
    pub(super) fn project(&self, cx: Context<'_>, mixed: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        self.o.forward(cx, mixed, adapters)
    }
}
