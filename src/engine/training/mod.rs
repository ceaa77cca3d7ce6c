//! Training of LoRA adapters: the model stays as it is, and what is trained is an adapter of it.
//!
//! A trainer takes micro-batches of tokens, one call each, or a whole dataset; it stops at any micro-batch, and goes on from a
//! checkpoint as if it had not.
//!
//! ```
//! use metal_candle::{LoadOptions, LoraConfig, LoraTrainer, Model, Session, TrainOptions};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("tests/golden/decoders/qwen2_untied_old", &LoadOptions::default(), None)?;
//! let config = LoraConfig::default().rank(4).targets(["q_proj", "v_proj"]);
//! let options = TrainOptions::default().learning_rate(0.01);
//! let mut trainer = LoraTrainer::new(&model, &config, &options)?;
//! // Two sequences, of three tokens and of four.
//! let (tokens, offsets) = ([5, 6, 7, 1, 2, 3, 4], [0, 3, 7]);
//! let before = trainer.eval_step(&tokens, None, &offsets)?;
//! for _ in 0..5 {
//!     trainer.train_step(&tokens, None, &offsets)?;
//! }
//! assert!(trainer.eval_step(&tokens, None, &offsets)? < before);
//! Session::new(&model, 0)?.set_adapters(&[(trainer.adapter()?, 1.0)])?;
//! # Ok::<(), metal_candle::Error>(())
//! ```

mod options;
mod schedule;
mod batches;
mod run;
mod checkpoint;
mod memory;
#[cfg(all(test, reference_data))]
mod tests;

pub use options::{LoraConfig, TrainOptions, Weighting};
pub use run::{TrainEnd, TrainEvent, TrainFn, TrainReport};
pub use schedule::Schedule;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use batches::BatchSequences;

use super::random::Random;
use super::{Cancel, Capability, Lora, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Fresh, PeftPlan};
use crate::nn::{Pass, Role, TrainedModule, TrainedValues, Transformer};
use crate::ops::{AdamW, Dropout, Optimized, ParameterValues};

/// What is drawn from the streams of a seed: the fresh weights; the dropout of each micro-batch; the order of each epoch.
const WEIGHTS: u64 = 0;
const DROPOUT: u64 = 1 << 62;
const ORDER: u64 = 2 << 62;

/// The most tokens of an example where the options name no limit: a long one must not decide how much memory a phone needs.
const USUAL_LENGTH: usize = 2048;

/// An adapter in training, with the model that it is for. Not shared between threads; its snapshots are.
pub struct LoraTrainer {
    model: Model,
    plan: PeftPlan,
    dropout: f32,
    /// Of fresh weights and dropout.
    seed: u64,
    options: TrainOptions,
    /// Where the network computes, as are the gradients.
    state: Optimized,
    /// Of the micro-batches since the last step, weighted, if there are any.
    gradients: Option<ParameterValues>,
    progress: Counters,
}

/// All numbers that a training goes on from.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counters {
    /// Finished steps.
    step: u64,
    /// Finished micro-batches of all steps.
    micro_steps: u64,
    /// Of the step in the making.
    micro: usize,
    /// Of the step in the making, or of the last one while there is none: what its loss is made of, and its target tokens.
    loss_sum: f64,
    targets: u64,
    /// Of the last step.
    loss: f64,
    grad_norm: f64,
    /// The last step was not yet evaluated and told.
    pending: bool,
    /// The fingerprint of the data; 0 = there was no training on a dataset.
    data: u64,
    /// Finished epochs, and finished batches of the next one.
    epoch: usize,
    position: usize,
    /// Finished steps when the training on this dataset began, and the steps of each of its epochs.
    first_step: u64,
    epoch_steps: u64,
    best_loss: f64,
    /// Evaluations since the best one.
    stale_evals: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            step: 0,
            micro_steps: 0,
            micro: 0,
            loss_sum: 0.0,
            targets: 0,
            loss: 0.0,
            grad_norm: 0.0,
            pending: false,
            data: 0,
            epoch: 0,
            position: 0,
            first_step: 0,
            epoch_steps: 0,
            best_loss: f64::INFINITY,
            stale_evals: 0,
        }
    }
}

/// What one micro-batch did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MicroStep {
    /// The mean cross entropy of its target tokens, in nats, before anything was changed by it.
    pub loss: f32,
    pub target_tokens: usize,
    /// The step that it completed.
    pub update: Option<Update>,
}

/// What one step of the optimizer did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Update {
    /// From 1.
    pub step: u64,
    pub learning_rate: f64,
    /// The length of the gradient of all weights together, before it was cut.
    pub grad_norm: f32,
}

impl LoraTrainer {
    /// A trainer with fresh weights, which change nothing yet, or with those of the initial adapter.
    ///
    /// # Errors
    /// `InvalidArgument` for a field out of its range and for a target that the model does not have, naming it; `Unsupported` for a
    /// model that does not generate text, for its output matrix as a target, and for an initial adapter with magnitudes
    /// (DoRA), biases or replaced matrices; `Mismatch` for an initial adapter of another model; `OutOfMemory`; `Suspended`; `Device`.
    pub fn new(model: &Model, config: &LoraConfig, options: &TrainOptions) -> Result<Self> {
        let plan = plan(model, config)?;
        check_options(model, options)?;
        let values = match &config.initial {
            Some(lora) => copied(&plan, lora)?,
            None => drawn(&plan, config.seed)?,
        };
        Ok(Self {
            model: model.clone(),
            dropout: config.dropout,
            seed: config.seed,
            options: options.clone(),
            state: model.device().work(|| Ok(Optimized::new(values, model.device().backend())?))?,
            gradients: None,
            progress: Counters::default(),
            plan,
        })
    }

    /// Learns from one micro-batch; with every [`grad_accumulation`](TrainOptions::grad_accumulation)-th one the weights change.
    ///
    /// # Shape
    /// `tokens`: all sequences one after another, sequence `i` at `offsets[i]..offsets[i + 1]`. `loss_mask`: whether each token is
    /// a target, that is predicted from those before it in its sequence; `None` = every one. The first of a sequence never is.
    ///
    /// # Errors
    /// `InvalidArgument` naming the token, offset or option that is wrong, and for a loss or gradient that is not finite;
    /// `ContextFull` for a sequence that is longer than the model's context; `Cancelled`; `Suspended`; `OutOfMemory`; `Device`. The
    /// trainer then is as it was.
    pub fn train_step(&mut self, tokens: &[u32], loss_mask: Option<&[bool]>, offsets: &[usize]) -> Result<MicroStep> {
        let sequences = BatchSequences::new(&self.model, tokens, loss_mask, offsets)?;
        let step = self.micro_step(&sequences, false)?;
        // A step that a cancelled evaluation left untold is of the past now.
        self.progress.pending = false;
        Ok(step)
    }

    /// What [`train_step`](Self::train_step) says of offsets, before there are tokens.
    pub(crate) fn check_offsets(&self, offsets: &[usize]) -> Result<()> {
        batches::lengths(&self.model, offsets).map(drop)
    }

    /// The mean cross entropy of one micro-batch with the weights as they are, in nats; changes nothing.
    ///
    /// # Errors
    /// As [`train_step`](Self::train_step).
    pub fn eval_step(&self, tokens: &[u32], loss_mask: Option<&[bool]>, offsets: &[usize]) -> Result<f32> {
        let sequences = BatchSequences::new(&self.model, tokens, loss_mask, offsets)?;
        Ok((self.loss(&sequences)? / sequences.target_tokens() as f64) as f32)
    }

    /// The modules in training with their values as they are.
    fn trained(&self) -> TrainedValues<'_> {
        TrainedValues { modules: &self.plan.modules, values: &self.state.values }
    }

    /// The summed cross entropy.
    fn loss(&self, sequences: &BatchSequences<'_>) -> Result<f64> {
        let sum = self.pass(None, |network, pass| network.loss(sequences.batch(), self.trained(), pass))?;
        finite("loss", sum)
    }

    /// One micro-batch, and the step if it is its last, which that of an epoch always is.
    fn micro_step(&mut self, sequences: &BatchSequences<'_>, ends_epoch: bool) -> Result<MicroStep> {
        let total = self.schedule_end()?;
        let seed = || Random::stream(self.seed, DROPOUT | self.progress.micro_steps).bits();
        let dropout = (self.dropout > 0.0).then(|| Dropout { share: self.dropout, seed: seed() });
        let pass = |network: &Transformer, pass: Pass<'_>| network.gradients(sequences.batch(), self.trained(), pass);
        let (sum, gradients) = self.pass(dropout, pass)?;
        let target_tokens = sequences.target_tokens();
        let mean = finite("loss", sum / target_tokens as f64)?;
        let (loss, weight) = match self.options.weighting {
            Weighting::MicroBatches => (mean, 1.0 / target_tokens as f64),
            Weighting::Tokens => (sum, 1.0),
        };
        let gradients = self.accumulated(gradients, weight as f32)?;
        let mut progress = self.progress;
        if progress.micro == 0 {
            (progress.loss_sum, progress.targets) = (0.0, 0);
        }
        progress.loss_sum += loss;
        progress.targets += target_tokens as u64;
        progress.micro += 1;
        progress.micro_steps += 1;
        let is_last = ends_epoch || progress.micro == self.options.grad_accumulation;
        let update = if is_last { Some(self.update(gradients, &mut progress, total)?) } else { self.hold(gradients) };
        self.progress = progress;
        Ok(MicroStep { loss: mean as f32, target_tokens, update })
    }

    /// The sum with what was there before, which stays as it is.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not finite.
    fn accumulated(&self, gradients: ParameterValues, weight: f32) -> Result<ParameterValues> {
        let sum = || {
            let sum = gradients.scaled(weight, self.gradients.as_ref())?;
            Ok((sum.norm()?, sum))
        };
        let (norm, sum) = self.model.device().compute(sum)?;
        finite("gradient", norm)?;
        Ok(sum)
    }

    /// Keeps gradients for the next micro-batch; there is no step yet.
    fn hold(&mut self, gradients: ParameterValues) -> Option<Update> {
        self.gradients = Some(gradients);
        None
    }

    /// The step of the optimizer.
    ///
    /// # Errors
    /// `Suspended`, `Device`: nothing has changed then.
    fn update(&mut self, gradients: ParameterValues, progress: &mut Counters, total: u64) -> Result<Update> {
        let count = match self.options.weighting {
            Weighting::MicroBatches => progress.micro as f64,
            Weighting::Tokens => progress.targets as f64,
        };
        let learning_rate = self.options.learning_rate_at(progress.step, total);
        let TrainOptions { beta1, beta2, epsilon, weight_decay, grad_clip, .. } = self.options;
        let adam = AdamW { beta1, beta2, epsilon, weight_decay, learning_rate, step: progress.step + 1 };
        let state = &mut self.state;
        let grad_norm = self.model.device().compute(|| {
            let mean = gradients.scaled((1.0 / count) as f32, None)?;
            let norm = mean.norm()?;
            let clip = match grad_clip {
                0.0 => 1.0,
                // torch's, with what keeps it from dividing by 0.
                most => (most / (norm + 1e-6)).min(1.0),
            };
            state.step(&adam, &mean, clip as f32)?;
            Ok(norm)
        })?;
        self.gradients = None;
        progress.micro = 0;
        progress.step += 1;
        progress.loss = progress.loss_sum / count;
        progress.grad_norm = grad_norm;
        Ok(Update { step: progress.step, learning_rate, grad_norm: grad_norm as f32 })
    }

    /// Where the schedule ends, in steps.
    fn schedule_end(&self) -> Result<u64> {
        let total = self.total_steps();
        if total == 0 && self.options.schedule != Schedule::Constant {
            let schedule = self.options.schedule;
            return Err(Error::argument(format!(
                "total_steps: expected at least 1 for a schedule that is {schedule:?}, found 0, which only a training on a dataset knows"
            )));
        }
        Ok(total)
    }

    /// 0 = not known.
    fn total_steps(&self) -> u64 {
        let Counters { data, first_step, epoch_steps, .. } = self.progress;
        match self.options.total_steps {
            0 if data != 0 => first_step.saturating_add(epoch_steps.saturating_mul(self.options.epochs as u64)),
            total => total,
        }
    }

    /// Work of the network, which a cancel flag stops and a suspended device.
    fn pass<R: Send>(
        &self,
        dropout: Option<Dropout>,
        work: impl FnOnce(&Transformer, Pass<'_>) -> candle_core::Result<Option<R>> + Send,
    ) -> Result<R> {
        let (device, cancel) = (self.model.device(), self.options.cancel.as_ref());
        cancel.map_or(Ok(()), Cancel::check)?;
        // Which of the two it was: by the time that the pass has ended, both may be over.
        let was_cancelled = AtomicBool::new(false);
        let stop = || {
            let is_cancelled = cancel.is_some_and(Cancel::is_triggered);
            was_cancelled.fetch_or(is_cancelled, Ordering::Relaxed);
            is_cancelled || device.check().is_err()
        };
        let pass = Pass { checkpointing: self.options.gradient_checkpointing, dropout, stop: &stop };
        let network = self.model.transformer();
        let done = device.compute(|| Ok(work(network, pass)?))?;
        done.ok_or_else(|| match was_cancelled.load(Ordering::Relaxed) {
            true => Error::cancelled(),
            false => Error::new(ErrorKind::Suspended, "training: the device was suspended, resume it first"),
        })
    }

    /// The adapter as it is now: an immutable copy, to attach to sessions or to save, while training goes on.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`, `Suspended`.
    pub fn adapter(&self) -> Result<Lora> {
        let values = self.downloaded(&self.state.values)?;
        let peft = self.model.device().work(|| self.plan.adapter(self.model.transformer(), &values))?;
        Ok(Lora::new(&self.model, peft))
    }

    /// Values on the CPU. Where they are there already no device is asked: a suspended training can be saved.
    fn downloaded<'a>(&self, values: &'a ParameterValues) -> Result<Cow<'a, [f32]>> {
        match values.on_cpu() {
            Some(values) => Ok(values.into()),
            None => self.model.device().work(|| Ok(values.values()?)),
        }
    }

    /// Finished steps of the optimizer.
    pub fn step_count(&self) -> u64 {
        self.progress.step
    }

    /// What the last step did; `None` before the first.
    pub fn last_update(&self) -> Option<Update> {
        let last = self.progress.step.checked_sub(1)?;
        let learning_rate = self.options.learning_rate_at(last, self.total_steps());
        Some(Update { step: self.progress.step, learning_rate, grad_norm: self.progress.grad_norm as f32 })
    }

    /// The model that the adapter is for.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn save_adapter(&self, directory: &Path) -> Result<()> {
        self.plan.write(directory, &self.downloaded(&self.state.values)?, None)
    }
}

impl std::fmt::Debug for LoraTrainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoraTrainer({} values, step {})", self.plan.parameters(), self.progress.step)
    }
}

/// # Errors
/// `Unsupported` for a model that cannot be trained.
fn check_model(model: &Model) -> Result<()> {
    if model.supports(Capability::Train) {
        return Ok(());
    }
    let found = model.architecture();
    Err(Error::unsupported(format!("trainer: expected a model that generates text, found one of {found} that only embeds")))
}

/// # Errors
/// `InvalidArgument` naming the option that is out of its range for this model.
fn check_options(model: &Model, options: &TrainOptions) -> Result<()> {
    options.check()?;
    let (most, found) = (model.context_length(), options.max_length);
    if found > most {
        return Err(Error::argument(format!("max_length: expected at most {most}, the model's context, found {found}")));
    }
    Ok(())
}

/// What a configuration means for a model.
fn plan(model: &Model, config: &LoraConfig) -> Result<PeftPlan> {
    config.check()?;
    check_model(model)?;
    let LoraConfig { rank, alpha, dropout, rslora, ref targets, ref initial, .. } = *config;
    match initial {
        Some(lora) => {
            lora.check_base(model)?;
            PeftPlan::of(model.transformer(), lora.peft(), dropout).map_err(|error| error.within("initial"))
        }
        None => PeftPlan::new(model.transformer(), &Fresh { rank, alpha, dropout, rslora, targets }),
    }
}

/// Fresh weights as PEFT makes them: `a` uniform within `1 / √inputs` (Kaiming's with `a = √5`), of an embedding from a normal
/// distribution; `b` zero, so that the adapter changes nothing yet.
fn drawn(plan: &PeftPlan, seed: u64) -> Result<Vec<f32>> {
    let (mut values, mut random) = (zeros(plan)?, Random::stream(seed, WEIGHTS));
    for trained in &plan.modules {
        let bound = 1.0 / (trained.module.inputs as f64).sqrt();
        let a = &mut values[trained.a()];
        match trained.module.role {
            Role::Embedding => a.fill_with(|| random.normal() as f32),
            _ => a.fill_with(|| ((2.0 * random.uniform() - 1.0) * bound) as f32),
        }
    }
    Ok(values)
}

/// The weights of an adapter.
fn copied(plan: &PeftPlan, lora: &Lora) -> Result<Vec<f32>> {
    let mut values = zeros(plan)?;
    let low_ranks = &lora.peft().adapter.low_rank;
    let by_name: HashMap<&str, _> = low_ranks.iter().map(|low_rank| (low_rank.module.name.as_str(), low_rank)).collect();
    for trained in &plan.modules {
        let TrainedModule { module, rank, .. } = trained;
        let low_rank = by_name.get(module.name.as_str());
        let Some(low_rank) = low_rank.filter(|low_rank| low_rank.a.outputs() == *rank) else {
            return Err(Error::format(format!("initial: {}: expected an adapter of rank {rank}, found none", module.name)));
        };
        values[trained.a()].copy_from_slice(&low_rank.a.rows(0..*rank)?);
        values[trained.b()].copy_from_slice(&low_rank.b.rows(0..module.outputs)?);
    }
    Ok(values)
}

fn zeros(plan: &PeftPlan) -> Result<Vec<f32>> {
    let (mut values, len) = (Vec::new(), plan.parameters());
    values
        .try_reserve_exact(len)
        .map_err(|_| Error::new(ErrorKind::OutOfMemory, format!("trainer: {len} values of an adapter do not fit the memory")))?;
    values.resize(len, 0.0);
    Ok(values)
}

fn finite(name: &str, x: f64) -> Result<f64> {
    if x.is_finite() {
        return Ok(x);
    }
    let message =
        format!("{name}: expected a finite number, found {x}: weights are not finite, or the learning rate is too high");
    Err(Error::new(ErrorKind::Device, message))
}
