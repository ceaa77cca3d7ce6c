//! The gradient of a low-rank change: the network's forward pass, and back through it.

use candle_core::{Result, bail};

use super::{Module, Transformer};

/// The low-rank change of one module in training, on the CPU in F32 wherever the network computes.
#[derive(Debug, Clone)]
pub struct Trained {
    pub module: Module,
    pub rank: usize,
    /// `alpha / R`, or `alpha / √R`.
    pub scaling: f32,
    /// `(R, inputs)`, row-major.
    pub a: Vec<f32>,
    /// `(outputs, R)`, row-major.
    pub b: Vec<f32>,
}

/// Sequences to learn from, one after another.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Below the vocabulary.
    pub ids: &'a [u32],
    /// They sum to the number of ids; none is 0.
    pub lengths: &'a [usize],
    /// Whether each token is to be foretold from those before it. The first of a sequence never counts.
    pub targets: &'a [bool],
}

/// How a pass is done.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Keep the inputs of layers alone and compute the rest a second time: less memory, a third more time.
    pub checkpointing: bool,
    /// The share of inputs that low-rank changes do not see, and what decides which ones.
    pub dropout: Option<(f32, u64)>,
    /// Read between layers: `true` stops.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// The gradient of one [`Trained`].
pub struct Gradient {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

impl Transformer {
    /// The cross entropy of the targets, in nats: summed, not averaged. No dropout. `None` if it was stopped.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn loss(&self, _batch: Batch<'_>, _trained: &[Trained], _pass: Pass<'_>) -> Result<Option<f64>> {
        bail!("unimplemented")
    }

    /// The cross entropy of the targets, in nats: summed, not averaged; and its gradient for each of `trained`, in their order.
    /// `None` if it was stopped.
    ///
    /// # Errors
    /// A failed device operation; a trained module that gets no gradient.
    pub fn gradients(&self, _batch: Batch<'_>, _trained: &[Trained], _pass: Pass<'_>) -> Result<Option<(f64, Vec<Gradient>)>> {
        bail!("unimplemented")
    }
}
