//! Single tokens by the GPU's own kernels, where they have all that the network is made of.

use candle_core::{Result, bail};

use super::LayerState;
use super::transformer::{Step, Transformer};
use crate::ops::{DecodeStep, Unsupported};

impl Transformer {
    /// The step of this network by the kernels of its device; `None` where the device has none.
    ///
    /// # Errors
    /// A failed device operation; what the kernels lack is the inner error.
    pub(super) fn new_decode_step(&self) -> Result<Option<std::result::Result<DecodeStep, Unsupported>>> {
        match self.decoder_parts() {
            Ok(parts) => DecodeStep::new(&parts, self.backend()),
            Err(unsupported) => Ok(Some(Err(unsupported))),
        }
    }

    /// Evaluates the one token of a step by the kernels of the network's device; `logits` become those behind it, `(V)`. `false` if that
    /// cannot be, and nothing was done: there is more than one token or an adapter, or the kernels lack something.
    ///
    /// # Errors
    /// A failed device operation; the states then hold what they held.
    pub fn decode(&self, step: &mut Step<'_>, logits: &mut Vec<f32>) -> Result<bool> {
        let (Some(decode), [id], None) = (self.decode_step(), step.ids, step.adapters) else { return Ok(false) };
        let position = step.states.len();
        let mut turns = Vec::new();
        for rope in self.ropes() {
            rope.turns(position, step.length, &mut turns);
        }
        let mut caches = Vec::new();
        for state in step.states.iter_mut() {
            match state {
                LayerState::Kv(cache) => caches.push(cache),
                LayerState::Conv(_) | LayerState::Scan(..) => bail!("a step of attention met the state of another mixer"),
            }
        }
        decode.run(*id, &mut caches, &turns, logits)?;
        Ok(true)
    }
}
