//! A few tokens by the GPU's own kernels, where they have all that the network is made of.

use std::ops::Range;

use candle_core::Result;

use super::transformer::{Step, Transformer};
use super::{LayerState, LinearId, States};
use crate::ops::{DecodeStep, StepChange, StepChanges, StepLogits, StepSequence, StepState, Unsupported};

/// Groups of rows that are evaluated one after another, in place of tensor operations, which decode every quantised matrix for them.
/// Where groups of dense weights stop paying is not measured.
const MOST_GROUPS: usize = 4;

impl Transformer {
    /// The step of this network by the kernels of its device; `None` where the device has none.
    ///
    /// # Errors
    /// A failed device operation; what the kernels lack is the inner error.
    pub(super) fn new_decode_step(&self) -> Result<Option<std::result::Result<DecodeStep, Unsupported>>> {
        if !DecodeStep::is_for(self.backend()) {
            return Ok(None);
        }
        match self.decoder_parts() {
            Ok(parts) => DecodeStep::new(&parts, self.backend()),
            Err(unsupported) => Ok(Some(Err(unsupported))),
        }
    }

    /// Evaluates the tokens of some steps by the kernels of the network's device: eight, or where each step has one of them, four times
    /// as many; the logits behind a row become each of `logits`, `(V)`. Steps with adapters have one token each. `false` if that cannot
    /// be, and nothing was done.
    ///
    /// # Errors
    /// A failed device operation; the states may then hold some of the tokens: truncate them.
    pub fn decode(&self, steps: &mut [Step<'_>], logits: &mut [StepLogits<'_>]) -> Result<bool> {
        let Some(decode) = self.decode_step() else { return Ok(false) };
        let (rows, most) = (steps.iter().map(|step| step.ids.len()).sum::<usize>(), decode.most_rows());
        let (are_single, are_plain) =
            (steps.iter().all(|step| step.ids.len() == 1), steps.iter().all(|step| step.adapters.is_none()));
        if !(1..=if are_single { MOST_GROUPS * most } else { most }).contains(&rows) {
            return Ok(false);
        }
        if are_plain {
            let groups = steps.chunks_mut(if are_single { most } else { rows });
            for (group, first) in groups.zip((0..).step_by(most)) {
                let mut sequences = group.iter_mut().map(|step| self.sequence(step)).collect::<Vec<_>>();
                decode.run(&mut sequences, &mut behind(logits, first..first + most), None)?;
            }
            return Ok(true);
        }
        if !are_single || !steps.iter().all(|step| step.adapters.is_none_or(|adapters| adapters.are_plain())) {
            return Ok(false);
        }
        // Each by itself: what they change is added to one row.
        for (row, step) in steps.iter_mut().enumerate() {
            let change = |id: usize| {
                let change = step.adapters?.at(LinearId(id))?;
                Some(StepChange { bias: change.bias.as_ref(), deltas: change.deltas.as_ref() })
            };
            let change: &StepChanges<'_> = &change;
            let changes = step.adapters.map(|_| change);
            let sequence = self.sequence_of(step.ids, step.length, &mut *step.states);
            decode.run(&mut [sequence], &mut behind(logits, row..row + 1), changes)?;
        }
        Ok(true)
    }

    fn sequence<'a>(&self, step: &'a mut Step<'_>) -> StepSequence<'a> {
        self.sequence_of(step.ids, step.length, &mut *step.states)
    }

    /// Tokens of one sequence behind what its states hold.
    fn sequence_of<'a>(&self, ids: &'a [u32], length: usize, states: &'a mut States) -> StepSequence<'a> {
        let position = states.len();
        let mut turns = Vec::new();
        for position in position..position + ids.len() {
            self.ropes().iter().for_each(|rope| rope.turns(position, length, &mut turns));
        }
        let states = states.iter_mut().map(|state| match state {
            LayerState::Kv(cache) => StepState::Kv(cache),
            LayerState::Conv(conv) => StepState::Conv(conv),
            LayerState::Scan(conv, scan) => StepState::Scan(conv, scan),
        });
        StepSequence { ids, states: states.collect(), turns }
    }
}

/// Those behind some rows, counted from the first of these.
fn behind<'a>(logits: &'a mut [StepLogits<'_>], rows: Range<usize>) -> Vec<StepLogits<'a>> {
    let own = logits.iter_mut().filter(|logits| rows.contains(&logits.row));
    own.map(|StepLogits { row, out }| StepLogits { row: *row - rows.start, out: out.lent() }).collect()
}
