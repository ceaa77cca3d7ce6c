//! What training takes beside the loaded model.

use super::{LoraConfig, LoraTrainer, TrainOptions, USUAL_LENGTH, check_options, plan};
use crate::engine::Model;
use crate::error::Result;
use crate::ops;

/// What a layer takes in the backward pass beside what was kept of it, in layers: gradients of its values, and copies. Measured: between 1.4
/// and 3 layers.
const WORKSPACE_LAYERS: usize = 3;

impl LoraTrainer {
    /// The bytes that a trainer takes beside its model, at most, with batches of the longest examples: the adapter, the two moments
    /// of its optimizer and its gradients, what a pass keeps of each layer for the backward pass, and the workspace of a layer and of the
    /// scores. With gradient checkpointing a pass keeps one vector of each token and layer.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn estimate_memory(model: &Model, config: &LoraConfig, options: &TrainOptions) -> Result<u64> {
        check_options(model, options)?;
        let plan = plan(model, config)?;
        let c = model.transformer().config();
        let longest = if options.max_length == 0 { c.context_length.min(USUAL_LENGTH) } else { options.max_length };
        let tokens = options.batch_size.saturating_mul(longest);
        let layers = c.layers.len();
        let ranks = plan.modules.iter().map(|trained| trained.rank).sum::<usize>() / layers.max(1);
        let layer = c.backward_values() + ranks;
        let kept = if options.gradient_checkpointing { layers * c.hidden_size + layer } else { layers * layer };
        // A gradient of the pass, and the sum that it is added to.
        let gradients = if options.grad_accumulation > 1 { 2 } else { 1 };
        // Two moments, and in a pass copies as products read them: of each matrix, and of every `A` beside the others of its input.
        let values = plan.parameters().saturating_mul(5 + gradients);
        // What all layers take in besides the stream is there throughout, and so are its gradients.
        let taken_in = c.per_layer.map_or(0, |per_layer| 3 * layers * per_layer.dim);
        let row = kept + WORKSPACE_LAYERS * layer + taken_in;
        let scores = tokens.min(ops::scored_at_once(c.vocab_size)).saturating_mul(c.vocab_size);
        let values = values.saturating_add(tokens.saturating_mul(row)).saturating_add(scores);
        Ok((values as u64).saturating_mul(size_of::<f32>() as u64))
    }
}
