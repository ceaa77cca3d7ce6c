//! What a sequence has evaluated: its tokens, the states of the layers, and the logits behind the last token.
//!
//! One invariant holds between them: the states hold the first `states.len()` of `tokens`, computed with the adapters of
//! `computed_with` and the rope frequencies of `regime`; the logits, where they are known, are those behind the last token by
//! the same, and the states then hold all tokens.

use std::ops::Range;

use super::Model;
use super::lora::Attached;
use super::sampling::token_logprob;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{RowAdapters, States, Step};
use crate::ops::{self, BestToken, StepLogits, StepOutput};

/// What is needed behind the last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Logits,
    /// The most probable token; the logits where they come anyway.
    Best,
}

/// The rope frequencies that states were computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Regime {
    /// All with those of one; see [`Rope::regime`](crate::nn::Rope::regime).
    One(usize),
    /// Tokens that saw different frequencies: equal to none.
    Mixed,
}

pub(super) struct Evaluated {
    model: Model,
    tokens: Vec<u32>,
    /// Behind by what was pushed since, or by the token that was chosen last: it is evaluated when the next one is asked for.
    states: States,
    regime: Regime,
    /// The fingerprint of the adapters.
    computed_with: u64,
    /// Whether the last of `tokens` was chosen by an answer, not given by the caller.
    is_chosen: bool,
    /// Where the turn of a user begins to be answered, while nothing stands behind it: the next turn may rewrite all of this one.
    turn: Option<usize>,
    logits: Option<Vec<f32>>,
    /// The most probable token behind the last one, of a pass that was asked for no more.
    best: Option<BestToken>,
    /// Memory of logits that are no longer known, for the next ones: half a megabyte for every token.
    spare: Vec<f32>,
}

impl Evaluated {
    pub fn new(model: &Model) -> Self {
        Self {
            tokens: Vec::new(),
            states: model.transformer().new_states(),
            regime: Regime::One(0),
            computed_with: 0,
            is_chosen: false,
            turn: None,
            logits: None,
            best: None,
            spare: Vec::new(),
            model: model.clone(),
        }
    }

    /// What a file holds.
    pub fn restored(model: &Model, tokens: Vec<u32>, states: States, regime: Regime, computed_with: u64) -> Self {
        Self { tokens, states, regime, computed_with, ..Self::new(model) }
    }

    /// A copy that goes its own way.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`, `Suspended`.
    pub fn fork(&self) -> Result<Self> {
        let no_memory =
            |_| Error::new(ErrorKind::OutOfMemory, format!("fork: {} tokens do not fit the memory", self.tokens.len()));
        Ok(Self {
            model: self.model.clone(),
            tokens: ops::copied(&self.tokens).map_err(no_memory)?,
            states: self.model.device().work(|| Ok(self.states.fork()?))?,
            logits: self.logits.as_deref().map(ops::copied).transpose().map_err(no_memory)?,
            spare: Vec::new(),
            ..*self
        })
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn states(&self) -> &States {
        &self.states
    }

    /// The bytes of tokens, states and logits.
    pub fn held_bytes(&self) -> u64 {
        let logits = self.logits.as_ref().map_or(0, Vec::capacity) + self.spare.capacity();
        let beside = self.tokens.capacity() * size_of::<u32>() + logits * size_of::<f32>();
        self.states.held_bytes() + beside as u64
    }

    pub fn regime(&self) -> Regime {
        self.regime
    }

    pub fn computed_with(&self) -> u64 {
        self.computed_with
    }

    /// Those behind the last token, where they are known.
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits.as_deref()
    }

    /// The most probable token, where that and no more is known.
    pub fn best(&self) -> Option<BestToken> {
        self.best
    }

    fn forget_logits(&mut self) {
        self.best = None;
        if let Some(logits) = self.logits.take() {
            self.spare = logits;
        }
    }

    /// Holds tokens that its caller gives, without evaluating them yet.
    pub fn push(&mut self, tokens: &[u32]) {
        if !tokens.is_empty() {
            self.tokens.extend_from_slice(tokens);
            self.is_chosen = false;
            self.turn = None;
            self.forget_logits();
        }
    }

    /// What is held ends with what a user said: the turn begins here, of which a prompt with the next one may keep nothing but the
    /// answer. However many prompts come within the turn, it can be gone back to at no cost.
    pub fn begin_turn(&mut self) {
        self.turn = Some(self.tokens.len());
    }

    fn take_snapshot(&mut self) {
        self.states.take_snapshot(self.turn.is_some_and(|turn| turn == self.states.len()));
    }

    /// Holds a token that an answer chose.
    pub fn choose(&mut self, token: u32) {
        if !self.is_chosen {
            // Where the next turn is likely to be taken up, whatever its template makes of this answer.
            self.take_snapshot();
        }
        self.push(&[token]);
        self.is_chosen = true;
    }

    /// Keeps the first `len` tokens. What of the states cannot be cut back is computed again when it is next needed.
    pub fn keep(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.states.truncate(len);
            self.is_chosen = false;
            self.turn = None;
            self.forget_logits();
        }
    }

    /// Holds tokens and evaluates them. After an error it holds those that it held, and what was evaluated of the new ones.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn extend(
        &mut self,
        tokens: &[u32],
        adapters: &Attached,
        chunk: usize,
        on_piece: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let (held, is_chosen) = (self.tokens.len(), self.is_chosen);
        self.push(tokens);
        if tokens.is_empty() {
            return Ok(());
        }
        let result = self.evaluate(adapters, Needs::Logits, chunk, on_piece);
        if result.is_err() {
            // An answer's last token is held although it is not evaluated yet.
            self.tokens.truncate(self.states.len().max(held));
            self.is_chosen = is_chosen && self.tokens.len() == held;
        }
        result
    }

    /// Whether the last token was chosen by an answer.
    pub fn is_chosen(&self) -> bool {
        self.is_chosen
    }

    /// Makes ready to go on with these adapters: forgets what was computed otherwise. Returns how many tokens are to be evaluated
    /// before what is needed is known.
    pub fn prepare(&mut self, adapters: &Attached, needs: Needs) -> usize {
        if adapters.fingerprint() != self.computed_with {
            self.states.truncate(0);
            self.forget_logits();
            self.computed_with = adapters.fingerprint();
        }
        let total = self.tokens.len();
        if self.logits.is_some() || (self.best.is_some() && needs == Needs::Best) || total == 0 {
            return 0;
        }
        self.best = None;
        let transformer = self.model.transformer();
        let regime = Regime::One(transformer.regime(total));
        if regime != self.regime {
            if self.states.len() + 1 == total && self.is_chosen && transformer.is_dynamic() {
                // An answer beyond the trained length: the frequencies move a little with each token, and evaluating all of
                // them again for every new one would be quadratic. The reference keeps the old keys as well.
                self.regime = Regime::Mixed;
            } else {
                self.states.truncate(0);
                self.regime = regime;
            }
        }
        // The logits of a token that the states hold come with evaluating it again.
        total - self.states.truncate(total - 1)
    }

    /// Evaluates every token that is held and not yet evaluated, in pieces of at most `chunk`, until what is needed behind the last one
    /// is known. `on_piece` is told how many are done and of how many, before the first piece and behind each; an error of it stops.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`, `Suspended`, and those of `on_piece`: what was finished is kept.
    pub fn evaluate(
        &mut self,
        adapters: &Attached,
        needs: Needs,
        chunk: usize,
        on_piece: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let total = self.prepare(adapters, needs);
        let mut left = total;
        while left > 0 {
            on_piece(total - left, total)?;
            let piece = left.min(chunk);
            pass(&mut [PassPart { evaluated: self, adapters, needs, piece }])?;
            left -= piece;
        }
        if total > 0 { on_piece(total, total) } else { Ok(()) }
    }

    /// The log-probability that the model gives each of `tokens` behind what is held, at least one token, and behind those in front of
    /// it. What is held stays.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn score(
        &mut self,
        tokens: &[u32],
        adapters: &Attached,
        chunk: usize,
        on_piece: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let (held, length) = (self.tokens.len(), self.tokens.len() + tokens.len());
        let transformer = self.model.transformer();
        let regime = Regime::One(transformer.regime(length));
        if Regime::One(transformer.regime(held)) == regime {
            self.evaluate(adapters, Needs::Logits, chunk, &mut |_, _| on_piece(0, tokens.len()))?;
        }
        let (mut logprobs, mut known) = (Vec::new(), Vec::new());
        let no_memory = |_| Error::new(ErrorKind::OutOfMemory, format!("score: {length} tokens do not fit the memory"));
        logprobs.try_reserve_exact(tokens.len()).map_err(no_memory)?;
        known.try_reserve_exact(length).map_err(no_memory)?;
        let Some((first, (_, all_but_last))) = tokens.first().zip(tokens.split_last()) else { return Ok(logprobs) };
        let mut targets = tokens;
        let mut states = None;
        match self.logits.as_deref() {
            Some(logits) if self.regime == regime => {
                logprobs.push(token_logprob(logits, *first)?);
                targets = &tokens[1..];
                self.take_snapshot();
            }
            // With as many tokens in all, every one of them is another computation.
            _ => {
                known.extend_from_slice(&self.tokens);
                states = Some(self.model.transformer().new_states());
            }
        }
        // What is evaluated: all but the last token, each row of which predicts the next one.
        known.extend_from_slice(all_but_last);
        let scores = Scores { model: &self.model, adapters, length, logprobs, targets };
        let result = scores.run(&known, states.as_mut().unwrap_or(&mut self.states), chunk, on_piece);
        // Whatever came of it, what was scored is not held.
        self.states.truncate(held);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Cancelled
        {
            self.forget_failed(error);
        }
        result
    }

    /// What a device wrote that then failed is not known, of earlier passes either: all is computed again from the tokens.
    fn forget_failed(&mut self, error: &Error) {
        self.forget_logits();
        if error.kind() != ErrorKind::Suspended {
            self.states = self.model.transformer().new_states();
        }
    }
}

/// Scores in the making.
struct Scores<'a> {
    model: &'a Model,
    adapters: &'a Attached,
    /// Of the whole sequence.
    length: usize,
    logprobs: Vec<f32>,
    /// What the last rows that are evaluated predict.
    targets: &'a [u32],
}

impl Scores<'_> {
    /// Evaluates `ids` behind what the states hold.
    fn run(
        mut self,
        ids: &[u32],
        states: &mut States,
        chunk: usize,
        on_piece: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        // The first rows of all predict what is known.
        let skipped = ids.len() - self.targets.len();
        for (i, piece) in ids.chunks(chunk).enumerate() {
            on_piece(i * chunk, ids.len())?;
            let scored = skipped.saturating_sub(i * chunk).min(piece.len())..piece.len();
            self.model.device().compute(|| self.piece(piece, scored, states))?;
        }
        if !ids.is_empty() {
            on_piece(ids.len(), ids.len())?;
        }
        Ok(self.logprobs)
    }

    /// # Shape
    /// `scored`: those of the piece's rows that predict a target.
    fn piece(&mut self, piece: &[u32], scored: Range<usize>, states: &mut States) -> Result<()> {
        let (transformer, adapters) = (self.model.transformer(), self.adapters.adapters());
        let hidden = transformer.forward(&mut [Step { ids: piece, states, length: self.length, adapters }])?;
        let (rows, vocab_size) = (scored.collect::<Vec<_>>(), self.model.vocab_size());
        let mut logits = Vec::new();
        for rows in rows.chunks(ops::scored_at_once(vocab_size)) {
            transformer.logits(&hidden, rows, &RowAdapters::all(adapters), &mut logits)?;
            let (targets, rest) = self.targets.split_at(rows.len());
            for (row, &target) in logits.chunks_exact(vocab_size).zip(targets) {
                self.logprobs.push(token_logprob(row, target)?);
            }
            self.targets = rest;
        }
        Ok(())
    }
}

/// A share of a pass: the next `piece` tokens of a sequence that is [prepared](Evaluated::prepare).
pub(super) struct PassPart<'a> {
    pub evaluated: &'a mut Evaluated,
    pub adapters: &'a Attached,
    pub needs: Needs,
    pub piece: usize,
}

/// Evaluates tokens of several sequences of one model in one pass; with the last token of one comes what is needed behind it.
///
/// # Errors
/// `OutOfMemory`, `Device`, `Suspended`: then for all of them.
pub(super) fn pass(parts: &mut [PassPart<'_>]) -> Result<()> {
    let Some(model) = parts.first().map(|part| part.evaluated.model.clone()) else { return Ok(()) };
    let result = model.device().compute(|| {
        let transformer = model.transformer();
        let mut steps = Vec::with_capacity(parts.len());
        let (mut rows, mut adapters, mut first) = (Vec::new(), Vec::new(), 0);
        let mut logits = Vec::new();
        for PassPart { evaluated, adapters: attached, needs, piece } in &mut *parts {
            let Evaluated { tokens, states, spare, best, .. } = &mut **evaluated;
            let (from, length) = (states.len(), tokens.len());
            first += *piece;
            if from + *piece == length {
                rows.push(first - 1);
                adapters.push((1, attached.adapters()));
                logits.push((spare, best, *needs));
            }
            steps.push(Step { ids: &tokens[from..from + *piece], states, length, adapters: attached.adapters() });
        }
        let wanted = rows.iter().zip(&mut logits).map(|(row, (logits, best, needs))| {
            let out = if *needs == Needs::Best { StepOutput::Best(best) } else { StepOutput::All(logits) };
            StepLogits { row: *row, out }
        });
        let mut wanted: Vec<_> = wanted.collect();
        if transformer.decode(&mut steps, &mut wanted)? {
            return Ok(());
        }
        let hidden = transformer.forward(&mut steps)?;
        drop(steps);
        let adapters = RowAdapters::new(adapters);
        // Tensor operations give all of them.
        if let [(only, ..)] = &mut logits[..] {
            return Ok(transformer.logits(&hidden, &rows, &adapters, only)?);
        }
        let mut all = Vec::new();
        transformer.logits(&hidden, &rows, &adapters, &mut all)?;
        for (row, (out, ..)) in all.chunks_exact(model.vocab_size()).zip(logits) {
            out.clear();
            let no_memory = |_| Error::new(ErrorKind::OutOfMemory, format!("{} logits do not fit the memory", row.len()));
            out.try_reserve_exact(row.len()).map_err(no_memory)?;
            out.extend_from_slice(row);
        }
        Ok(())
    });
    for PassPart { evaluated, .. } in parts {
        match &result {
            Ok(()) if evaluated.states.len() == evaluated.tokens.len() && evaluated.best.is_none() => {
                evaluated.logits = Some(std::mem::take(&mut evaluated.spare));
            }
            Ok(()) => {}
            Err(error) => evaluated.forget_failed(error),
        }
    }
    result
}

#[cfg(all(test, reference_data))]
mod tests {
    use super::*;
    use crate::engine::LoadOptions;
    use crate::engine::session_file::{self, SessionParts};

    /// What is held and its logits after a text more, whatever came before.
    fn goes_on(mut evaluated: Evaluated) {
        let (none, tokens) = (Attached::default(), [7, 3, 11, 2, 5, 1]);
        let mut fresh = Evaluated::new(&evaluated.model);
        fresh.push(&evaluated.tokens);
        assert!(evaluated.states.len() <= evaluated.tokens.len());
        for evaluated in [&mut fresh, &mut evaluated] {
            evaluated.extend(&tokens, &none, 512, &mut |_, _| Ok(())).unwrap();
        }
        assert_eq!(evaluated.logits(), fresh.logits());
    }

    #[test]
    fn scoring_that_ends_early_leaves_what_was_held() {
        let model = Model::load("tests/golden/decoders/qwen2_tied", &LoadOptions::default(), None).unwrap();
        let (none, tokens) = (Attached::default(), (0..30).collect::<Vec<u32>>());
        for kind in [ErrorKind::Cancelled, ErrorKind::Suspended, ErrorKind::Device] {
            for at in 0..30 {
                let mut evaluated = Evaluated::new(&model);
                evaluated.push(&[1, 2, 3]);
                let stop = |done: usize, _| if done >= at { Err(Error::new(kind, "here")) } else { Ok(()) };
                let error = evaluated.score(&tokens, &none, 4, &mut { stop }).err();
                assert_eq!(error.map(|error| error.kind()), Some(kind));
                assert_eq!(evaluated.tokens(), [1, 2, 3]);
                goes_on(evaluated);
            }
        }
    }

    /// Decoders whose states cannot all be cut back.
    const HYBRIDS: [&str; 7] =
        ["qwen3_5_text", "qwen3_5_nested", "lfm2", "lfm3", "falcon_h1", "nemotron_h_old", "granitemoehybrid_dense"];

    fn hybrid(name: &str) -> Model {
        Model::load(format!("tests/golden/decoders/{name}"), &LoadOptions::default(), None).unwrap()
    }

    /// How many tokens are evaluated for a text more.
    fn evaluated_for(evaluated: &mut Evaluated, new: &[u32]) -> usize {
        let mut count = 0;
        let counts = &mut |done, _| {
            count = done;
            Ok(())
        };
        evaluated.extend(new, &Attached::default(), 5, counts).unwrap();
        count
    }

    fn answers(evaluated: &mut Evaluated, ids: impl Iterator<Item = u32>) {
        ids.for_each(|id| evaluated.choose(id));
        evaluated.evaluate(&Attached::default(), Needs::Logits, 512, &mut |_, _| Ok(())).unwrap();
    }

    #[test]
    fn turns_that_are_rewritten_evaluate_nothing_twice_but_the_last() {
        for (name, is_told) in
            ["qwen3_5_text", "nemotron_h_old"].map(|name| (name, true)).into_iter().chain([("lfm2_old", false)])
        {
            let mut evaluated = Evaluated::new(&hybrid(name));
            let (mut begins, mut all_taken_back, mut all_again) = (0, 0, 0);
            for turn in 0..200 {
                // What a template makes of all that came behind the last question, and a question more; now and then also of the end of
                // the last prompt.
                let (back, new) = (turn as usize % 4, 6 + turn % 5);
                let taken_back = evaluated.tokens.len() - begins + back.min(begins);
                evaluated.keep(evaluated.tokens.len() - taken_back);
                let new: Vec<u32> = (0..new).map(|i| (i * 13 + turn * 7) % 83).collect();
                let count = evaluated_for(&mut evaluated, &new);
                // The turn before has at most ten tokens, and those behind it were taken back.
                assert!(count >= new.len(), "{name}: {count} tokens in turn {turn}");
                assert!(!is_told || count <= new.len() + 10 + 3, "{name}: {count} tokens in turn {turn}");
                (all_taken_back, all_again) = (all_taken_back + taken_back, all_again + count - new.len());
                if is_told {
                    evaluated.begin_turn();
                }
                begins = evaluated.tokens.len();
                // Thinking and an answer, all of which goes; in front of it calls of tools, each with more thinking, and what they gave,
                // behind an end that is now and then spelled in another way.
                for step in 0..[0, 0, 2, 3, 4, 5][turn as usize % 6] {
                    answers(&mut evaluated, (0..15).map(|i| (turn * 3 + step * 11 + i) % 83));
                    let other = (turn + step) as usize % 3;
                    evaluated.keep(evaluated.tokens.len() - other);
                    let result: Vec<u32> = (0..7).map(|i| (i * 17 + turn + step) % 83).collect();
                    let count = evaluated_for(&mut evaluated, &result);
                    assert!(count <= result.len() + 15, "{name}: {count} tokens in step {step} of turn {turn}");
                }
                answers(&mut evaluated, (0..20).map(|i| (turn * 5 + i) % 83));
            }
            // Of turns that nobody tells it of, no more in the long run than is taken back.
            assert!(all_again <= all_taken_back, "{name}: {all_again} evaluated again for {all_taken_back} taken back");
            goes_on(evaluated);
        }
    }

    #[test]
    fn a_saved_session_goes_back_to_the_ends_of_its_prompts_without_evaluating_them_again() {
        let (none, folder) = (Attached::default(), tempfile::tempdir().unwrap());
        let path = folder.path().join("session");
        for name in HYBRIDS {
            let model = hybrid(name);
            let mut evaluated = Evaluated::new(&model);
            for (prompt, answer) in [(30, 20), (9, 25)] {
                let prompt: Vec<u32> = (0..prompt).map(|i| (i * 29 + 3) % 83).collect();
                evaluated.extend(&prompt, &none, 512, &mut |_, _| Ok(())).unwrap();
                if answer == 25 {
                    evaluated.begin_turn();
                }
                answers(&mut evaluated, 0..answer);
            }
            let parts = SessionParts { max_context: 0, evaluated: &evaluated, interrupted: None };
            session_file::save(&path, &parts).unwrap();
            let loaded = session_file::load(&path, &model).unwrap().evaluated;
            let turns =
                |evaluated: &Evaluated| evaluated.states.snapshots().map(|(len, turn, _)| (len, turn)).collect::<Vec<_>>();
            assert_eq!(turns(&loaded), [(30, false), (59, true)], "{name}");
            assert_eq!(turns(&loaded), turns(&evaluated), "{name}");
            for (keep, held) in [(84, 84), (59, 59), (40, 30), (30, 30), (20, 0)] {
                let mut loaded = session_file::load(&path, &model).unwrap().evaluated;
                let mut kept = evaluated.fork().unwrap();
                for evaluated in [&mut loaded, &mut kept] {
                    evaluated.keep(keep);
                    assert!(evaluated.states.len() >= held, "{name}: {} of {keep} tokens", evaluated.states.len());
                }
                assert_eq!(loaded.states.len(), kept.states.len(), "{name}");
                goes_on(loaded);
            }
            // A snapshot that is of more tokens than there are, or of none.
            let whole = std::fs::read(&path).unwrap();
            let of_snapshot: u64 = evaluated.states.of_snapshot().map(|state| state.bytes(0).unwrap()).sum();
            let last = whole.len() - 8 - of_snapshot as usize - 16;
            for len in [0u64, 30, 85, u64::MAX] {
                let mut damaged = whole.clone();
                damaged[last..last + 8].copy_from_slice(&len.to_le_bytes());
                std::fs::write(&path, &damaged).unwrap();
                let error = session_file::load(&path, &model).err().unwrap();
                assert!(error.message().contains("damaged: a snapshot of"), "{name}: {error}");
            }
            let mut damaged = whole.clone();
            damaged[last + 8] = 2;
            std::fs::write(&path, &damaged).unwrap();
            let error = session_file::load(&path, &model).err().unwrap();
            assert!(error.message().contains("expected 0 or 1 for where a turn begins, found 2"), "{name}: {error}");
            let mut damaged = whole.clone();
            damaged[64] = 4;
            std::fs::write(&path, &damaged).unwrap();
            let error = session_file::load(&path, &model).err().unwrap();
            assert!(error.message().contains("expected at most 3 snapshots, found 4"), "{name}: {error}");
        }
    }

    #[test]
    fn states_that_cannot_be_cut_back_go_on_as_if_they_could() {
        let (none, tokens) = (Attached::default(), (0..70).map(|i| (i * 29 + 3) % 83).collect::<Vec<u32>>());
        for name in HYBRIDS {
            let model = hybrid(name);
            let begun = |chunk| {
                let mut evaluated = Evaluated::new(&model);
                evaluated.extend(&tokens, &none, chunk, &mut |_, _| Ok(())).unwrap();
                evaluated
            };
            for keep in [69, 65, 64, 63, 33, 5, 1] {
                let mut evaluated = begun(512);
                evaluated.keep(keep);
                goes_on(evaluated);
            }
            // Scores, and a fork of what was scored.
            let mut evaluated = begun(7);
            evaluated.score(&tokens, &none, 4, &mut |_, _| Ok(())).unwrap();
            assert_eq!(evaluated.states.len(), 70, "{name}: a snapshot was gone back to");
            goes_on(evaluated.fork().unwrap());
            goes_on(evaluated);
            // A pass that failed behind the first layers.
            for kind in [ErrorKind::Cancelled, ErrorKind::Suspended, ErrorKind::Device] {
                let mut evaluated = begun(512);
                let stop = |done: usize, _| if done >= 20 { Err(Error::new(kind, "here")) } else { Ok(()) };
                evaluated.extend(&tokens, &none, 10, &mut { stop }).unwrap_err();
                goes_on(evaluated);
            }
        }
    }
}
