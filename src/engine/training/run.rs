//! Training on a dataset: epochs, evaluations, the best adapter, checkpoints, and what is told of each step.

use std::ops::ControlFlow;
use std::time::Instant;

use super::super::dataset::{Sample, Tokenized};
use super::super::random::Random;
use super::batches::{BatchSequences, batches};
use super::{Counters, LoraTrainer, ORDER, USUAL_LENGTH};
use crate::engine::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{FNV_START, fnv, try_directory};
use crate::ops;

/// The folder of the best adapter within that of checkpoints.
pub(super) const BEST: &str = "best";

/// One finished step of a training on a dataset.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TrainEvent {
    /// From 1.
    pub step: u64,
    /// The step that the training ends with, unless it is stopped.
    pub total_steps: u64,
    /// From 1.
    pub epoch: usize,
    /// The mean cross entropy of the step's target tokens, in nats, before the step.
    pub loss: f32,
    /// The same of the evaluation dataset, after the step, where it was evaluated.
    pub eval_loss: Option<f32>,
    /// Whether it was evaluated with the lowest loss so far.
    pub is_best: bool,
    pub learning_rate: f64,
    /// The length of the gradient of all weights together, before it was cut.
    pub grad_norm: f32,
    /// All tokens of the step, targets or not, over the time since the last step.
    pub tokens_per_second: f32,
    /// Target tokens of the step.
    pub target_tokens: u64,
    /// The most memory that the process has had so far; 0 where the system does not tell.
    pub peak_bytes: u64,
    /// Sequences of the training dataset that were cut to `max_length`, and those that have no target token: an example is one, but a
    /// conversation whose template rewrites earlier turns is one for each answer.
    pub truncated: usize,
    pub skipped: usize,
}

/// Why a training on a dataset returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrainEnd {
    /// All its epochs or steps are done.
    Complete,
    /// [`patience`](super::TrainOptions#structfield.patience) ended: so many evaluations brought no new best.
    Patience,
    /// `on_step` said so; another call goes on.
    Callback,
}

/// What a call of [`LoraTrainer::train`] did.
///
/// The trainer has the last weights; those of the lowest [`best_loss`](Self::best_loss) are in the folder `best` of the checkpoints, if
/// they have a place.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TrainReport {
    pub end: TrainEnd,
    /// Finished steps of the trainer, those of earlier calls and of the checkpoint that it was resumed from included.
    pub step: u64,
    /// The step that the training ends with, unless it is stopped.
    pub total_steps: u64,
    /// Steps that this call told `on_step`; 0 where there was nothing left to do.
    pub steps: u64,
    /// The mean cross entropy of the last step's target tokens, in nats, before that step; `None` before the first.
    pub loss: Option<f32>,
    /// The same of the evaluation dataset, when this call evaluated it last.
    pub eval_loss: Option<f32>,
    /// The lowest of all evaluations.
    pub best_loss: Option<f32>,
    /// Target tokens of these steps.
    pub target_tokens: u64,
    /// What this call took, from reading the datasets to the last checkpoint.
    pub seconds: f64,
    /// Sequences of the training dataset that were cut to `max_length`, and those that have no target token, as
    /// [`TrainEvent`] counts them.
    pub truncated: usize,
    pub skipped: usize,
}

/// Called with each step; `Break` stops the training.
pub type TrainFn<'a> = dyn FnMut(&TrainEvent) -> ControlFlow<()> + 'a;

/// What a run works on.
struct Data {
    train: Tokenized,
    eval: Option<Tokenized>,
}

/// What passed since the last step.
struct Clock {
    since: Instant,
    tokens: usize,
}

impl Clock {
    fn start() -> Self {
        Self { since: Instant::now(), tokens: 0 }
    }
}

impl LoraTrainer {
    /// Trains on a dataset until [`epochs`](super::TrainOptions::epochs), [`total_steps`](super::TrainOptions::total_steps) or
    /// [`max_steps`](super::TrainOptions::max_steps) are reached or [`patience`](super::TrainOptions::patience) ends; what was done before,
    /// and is in a checkpoint, counts. Examples come in another order each epoch; the last step of an epoch takes what is left of it.
    ///
    /// `Break` from `on_step`, a cancel flag and an error leave the trainer at the last finished micro-batch, and another call with
    /// the same dataset goes on there. After the end another call does nothing; to train on something else, give the
    /// [`adapter`](Self::adapter) to a new trainer. The trainer keeps the last weights, not those of the best evaluation: these are
    /// in the folder `best` of the checkpoints, if they have a place.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use metal_candle::{Dataset, LoadOptions, LoraConfig, LoraTrainer, Model, TrainEnd, TrainOptions};
    /// # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
    /// let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
    /// let facts = Dataset::load_jsonl("examples/data/facts.jsonl")?;
    /// let options = TrainOptions::default().max_steps(2);
    /// let mut trainer = LoraTrainer::new(&model, &LoraConfig::default().rank(4), &options)?;
    /// let report = trainer.train(&facts, None, &mut |_| ControlFlow::Continue(()))?;
    /// assert_eq!((report.end, report.steps), (TrainEnd::Complete, 2));
    /// # Ok::<(), metal_candle::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` for a dataset without a target token; `Mismatch` for another dataset than that which the first call had;
    /// those of the tokenizer and the chat template; `Io`; and those of [`train_step`](Self::train_step).
    pub fn train(&mut self, train: &Dataset, eval: Option<&Dataset>, on_step: &mut TrainFn<'_>) -> Result<TrainReport> {
        let started = Instant::now();
        if let Some(directory) = self.options.checkpoint.as_ref().filter(|_| !self.is_done()) {
            // Before hours of training, not behind them.
            try_directory(directory)?;
        }
        let data =
            Data { train: self.tokenized(train, "train")?, eval: eval.map(|eval| self.tokenized(eval, "eval")).transpose()? };
        self.begin(&data.train.examples)?;
        let (mut steps, mut target_tokens, mut eval_loss) = (0, 0, None);
        let on_step: &mut TrainFn<'_> = &mut |event| {
            steps += 1;
            target_tokens += event.target_tokens;
            eval_loss = event.eval_loss.or(eval_loss);
            on_step(event)
        };
        let mut clock = Clock::start();
        // A cancel came between a step and its evaluation.
        let mut flow = if self.progress.pending { self.finish_step(&data, &clock, on_step)? } else { ControlFlow::Continue(()) };
        while flow.is_continue() && !self.is_done() {
            flow = self.epoch(&data, &mut clock, on_step)?;
        }
        let Counters { step, loss, best_loss, .. } = self.progress;
        let best_loss = eval_loss.map_or(best_loss, |loss: f32| best_loss.min(f64::from(loss)));
        Ok(TrainReport {
            end: match flow {
                // Of the last step it stops nothing.
                ControlFlow::Break(()) if !self.is_done() => TrainEnd::Callback,
                _ if self.is_complete() => TrainEnd::Complete,
                _ => TrainEnd::Patience,
            },
            step,
            total_steps: self.last_step(),
            steps,
            loss: (step > 0).then_some(loss as f32),
            eval_loss,
            best_loss: best_loss.is_finite().then_some(best_loss as f32),
            target_tokens,
            seconds: started.elapsed().as_secs_f64(),
            truncated: data.train.truncated,
            skipped: data.train.skipped,
        })
    }

    /// The step that a training on its dataset ends with.
    fn last_step(&self) -> u64 {
        let Counters { first_step, epoch_steps, .. } = self.progress;
        let end = first_step.saturating_add(epoch_steps.saturating_mul(self.options.epochs as u64));
        [self.options.total_steps, self.options.max_steps].into_iter().filter(|&most| most > 0).fold(end, u64::min)
    }

    fn tokenized(&self, dataset: &Dataset, name: &str) -> Result<Tokenized> {
        let most = match self.options.max_length {
            0 => self.model.context_length().min(USUAL_LENGTH),
            most => most,
        };
        let tokenized = dataset.tokenized(&self.model, most, self.options.mask_prompt, self.options.cancel.as_ref())?;
        if tokenized.examples.is_empty() {
            let found = dataset.len();
            return Err(Error::argument(format!("{name}: expected an example with a target token, found none among {found}")));
        }
        Ok(tokenized)
    }

    /// Takes a dataset up, for the first time or again.
    fn begin(&mut self, samples: &[Sample]) -> Result<()> {
        let fingerprint = fingerprint(samples);
        let progress = &mut self.progress;
        let batches = samples.len().div_ceil(self.options.batch_size);
        if progress.data == 0 {
            if progress.micro > 0 {
                let found = progress.micro;
                return Err(Error::argument(format!(
                    "train: expected no step in the making, found one of {found} micro-batches: complete it by train_step first"
                )));
            }
            progress.data = fingerprint;
            progress.first_step = progress.step;
            progress.epoch_steps = batches.div_ceil(self.options.grad_accumulation) as u64;
        } else if progress.data != fingerprint {
            let (old, new) = (progress.data, fingerprint);
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("train: expected the dataset that this training began with ({old:016x}), found another ({new:016x})"),
            ));
        }
        if progress.position >= batches {
            let found = progress.position;
            return Err(Error::format(format!("position: expected less than {batches} batches of an epoch, found {found}")));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_complete() || (self.options.patience > 0 && self.progress.stale_evals >= self.options.patience)
    }

    fn is_complete(&self) -> bool {
        self.is_through() || ends(self.options.max_steps, self.progress.step)
    }

    /// The same without [`max_steps`](super::TrainOptions::max_steps), behind which it may go on.
    fn is_through(&self) -> bool {
        let (options, Counters { step, epoch, .. }) = (&self.options, self.progress);
        epoch >= options.epochs || ends(options.total_steps, step)
    }

    /// What is left of an epoch.
    fn epoch(&mut self, data: &Data, clock: &mut Clock, on_step: &mut TrainFn<'_>) -> Result<ControlFlow<()>> {
        let samples = &data.train.examples;
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
        let order = Random::stream(self.options.seed, ORDER | self.progress.epoch as u64);
        let batches = batches(&lengths, self.options.batch_size, order);
        for (i, batch) in batches.iter().enumerate().skip(self.progress.position) {
            let ends_epoch = i + 1 == batches.len();
            let sequences = BatchSequences::of(samples, batch)?;
            let micro = self.micro_step(&sequences, ends_epoch)?;
            clock.tokens += sequences.tokens();
            let progress = &mut self.progress;
            (progress.epoch, progress.position) = if ends_epoch { (progress.epoch + 1, 0) } else { (progress.epoch, i + 1) };
            if micro.update.is_none() {
                continue;
            }
            progress.pending = true;
            let flow = self.finish_step(data, clock, on_step)?;
            *clock = Clock::start();
            if flow.is_break() || self.is_done() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What follows a step: its evaluation, the best adapter, a checkpoint, and telling it.
    fn finish_step(&mut self, data: &Data, clock: &Clock, on_step: &mut TrainFn<'_>) -> Result<ControlFlow<()>> {
        let tokens_per_second = clock.tokens as f32 / clock.since.elapsed().as_secs_f32().max(f32::MIN_POSITIVE);
        let step = self.progress.step;
        let is_due = |every: u64| every > 0 && step.is_multiple_of(every);
        let counts = self.is_through() || is_due(self.options.eval_every);
        let eval = data.eval.as_ref().filter(|_| self.is_done() || counts);
        let eval_loss = eval.map(|eval| self.evaluate(&eval.examples)).transpose()?;
        let is_best = eval_loss.is_some_and(|loss| loss < self.progress.best_loss);
        if let (Some(directory), true) = (&self.options.checkpoint, is_best) {
            self.save_adapter(&directory.join(BEST))?;
        }
        let before = self.progress;
        let progress = &mut self.progress;
        // One that is made only because this is the last step for now would not be there for a training that goes on.
        if let Some(loss) = eval_loss.filter(|_| counts) {
            progress.best_loss = progress.best_loss.min(loss);
            progress.stale_evals = if is_best { 0 } else { progress.stale_evals + 1 };
        }
        progress.pending = false;
        let is_saved = self.is_done() || is_due(self.options.checkpoint_every);
        if is_saved && let Err(error) = self.checkpoint() {
            // Another call tries again, and tells the step then.
            self.progress = before;
            return Err(error);
        }
        let Counters { loss, grad_norm, targets, epoch, position, .. } = self.progress;
        let flow = on_step(&TrainEvent {
            step,
            total_steps: self.last_step(),
            epoch: if position == 0 { epoch } else { epoch + 1 },
            loss: loss as f32,
            eval_loss: eval_loss.map(|loss| loss as f32),
            is_best,
            learning_rate: self.options.learning_rate_at(step - 1, self.total_steps()),
            grad_norm: grad_norm as f32,
            tokens_per_second,
            target_tokens: targets,
            peak_bytes: ops::peak_bytes().unwrap_or(0),
            truncated: data.train.truncated,
            skipped: data.train.skipped,
        });
        if flow.is_break() && !is_saved {
            self.checkpoint()?;
        }
        Ok(flow)
    }

    fn checkpoint(&self) -> Result<()> {
        self.options.checkpoint.as_ref().map_or(Ok(()), |directory| self.save(directory))
    }

    /// The mean cross entropy of all target tokens.
    fn evaluate(&self, samples: &[Sample]) -> Result<f64> {
        let mut order: Vec<usize> = (0..samples.len()).collect();
        // The longest first: if it does not fit the memory, that is known at once.
        order.sort_by_key(|&i| std::cmp::Reverse(samples[i].ids.len()));
        let (mut sum, mut targets) = (0.0, 0);
        for batch in order.chunks(self.options.batch_size) {
            let sequences = BatchSequences::of(samples, batch)?;
            sum += self.loss(&sequences)?;
            targets += sequences.target_tokens();
        }
        Ok(sum / targets as f64)
    }
}

/// Whether a training of `most` steps ends with this one; 0 = of any number.
fn ends(most: u64, step: u64) -> bool {
    most > 0 && step >= most
}

/// Of all tokens and which of them are targets; never 0.
fn fingerprint(samples: &[Sample]) -> u64 {
    let hash = samples.iter().fold(FNV_START, |hash, Sample { ids, targets }| {
        let hash = fnv(hash, &(ids.len() as u64).to_le_bytes());
        ids.iter().zip(targets).fold(hash, |hash, (id, target)| fnv(fnv(hash, &id.to_le_bytes()), &[u8::from(*target)]))
    });
    hash.max(1)
}
