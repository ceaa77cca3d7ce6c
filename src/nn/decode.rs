//! A few tokens by the GPU's own kernels, where they have all that the network is made of.

use candle_core::{Result, bail};

use super::transformer::{Step, Transformer};
use super::{LayerState, LinearId, States};
use crate::ops::{DecodeStep, StepChange, StepChanges, StepLogits, StepSequence, Unsupported};

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

    /// Evaluates the tokens of some steps, eight at most, by the kernels of the network's device; the logits behind a row become each of
    /// `logits`, `(V)`. Steps with adapters have one token each. `false` if that cannot be, and nothing was done.
    ///
    /// # Errors
    /// A failed device operation; the states may then hold some of the tokens: truncate them.
    pub fn decode(&self, steps: &mut [Step<'_>], logits: &mut [StepLogits<'_>]) -> Result<bool> {
        let rows: usize = steps.iter().map(|step| step.ids.len()).sum();
        let Some(decode) = self.decode_step().filter(|decode| (1..=decode.most_rows()).contains(&rows)) else { return Ok(false) };
        let is_known = |step: &Step<'_>| step.adapters.is_none_or(|adapters| step.ids.len() == 1 && adapters.are_plain());
        if !steps.iter().all(is_known) {
            return Ok(false);
        }
        if steps.iter().all(|step| step.adapters.is_none()) {
            let mut sequences = steps.iter_mut().map(|step| self.sequence(step)).collect::<Result<Vec<_>>>()?;
            decode.run(&mut sequences, logits, None)?;
            return Ok(true);
        }
        // Each by itself: what they change is added to one row.
        for (row, step) in steps.iter_mut().enumerate() {
            let mut own: Vec<StepLogits<'_>> = logits
                .iter_mut()
                .filter(|logits| logits.row == row)
                .map(|logits| StepLogits { row: 0, out: &mut *logits.out })
                .collect();
            let change = |id: usize| {
                let change = step.adapters?.at(LinearId(id))?;
                Some(StepChange { bias: change.bias.as_ref(), deltas: change.deltas.as_ref() })
            };
            let change: &StepChanges<'_> = &change;
            let changes = step.adapters.map(|_| change);
            decode.run(&mut [self.sequence_of(step.ids, step.length, &mut *step.states)?], &mut own, changes)?;
        }
        Ok(true)
    }

    fn sequence<'a>(&self, step: &'a mut Step<'_>) -> Result<StepSequence<'a>> {
        self.sequence_of(step.ids, step.length, &mut *step.states)
    }

    /// Tokens of one sequence behind what its states hold.
    fn sequence_of<'a>(&self, ids: &'a [u32], length: usize, states: &'a mut States) -> Result<StepSequence<'a>> {
        let position = states.len();
        let mut turns = Vec::new();
        for position in position..position + ids.len() {
            self.ropes().iter().for_each(|rope| rope.turns(position, length, &mut turns));
        }
        let mut caches = Vec::new();
        for state in states.iter_mut() {
            match state {
                LayerState::Kv(cache) => caches.push(cache),
                LayerState::Conv(_) | LayerState::Scan(..) => bail!("a step of attention met the state of another mixer"),
            }
        }
        Ok(StepSequence { ids, caches, turns })
    }
}
