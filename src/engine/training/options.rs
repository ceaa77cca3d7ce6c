//! What is trained, and how.

use std::path::PathBuf;

use super::Schedule;
use crate::engine::options::{Field, Fields, OptionRange, builders, field, word_field};
use crate::engine::{Cancel, Lora};
use crate::error::Result;

/// Larger than any use: a change of this rank has more values than most matrices.
const MOST_RANK: u64 = 1 << 13;
/// Enough for any training.
pub(super) const MOST_EPOCHS: u64 = 1 << 30;
/// Counters stay exact in an `f64`, and far from overflow.
pub(super) const MOST: u64 = 1 << 53;

/// The adapter that is to be trained. The default: rank 8 and alpha 16 on every matrix of the layers, from fresh weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoraConfig {
    /// 1 to 8192. Not used with [`initial`](Self::initial).
    pub rank: usize,
    /// A change counts `alpha / rank` times. Not used with [`initial`](Self::initial).
    pub alpha: f32,
    /// The share of a change's inputs that a training pass does not see, at least 0 and below 1.
    pub dropout: f32,
    /// A change counts `alpha / √rank` times instead. Not used with [`initial`](Self::initial).
    pub rslora: bool,
    /// Decides the fresh weights and the dropout.
    pub seed: u64,
    /// The matrices that get a change, as PEFT names them: each whose path ends with one of these (`q_proj`, `self_attn.q_proj`), or
    /// `all-linear`. Empty = every matrix of the layers, but for `out_proj` of Mamba 2, of which PEFT takes no adapter. The matrices
    /// of all experts of a layer are meant by the parameter that transformers has them as, `experts.gate_up_proj`, and are saved as
    /// PEFT's `target_parameters`, without dropout; single experts, and what chooses among them, by names that say where they are, as
    /// `experts.0.w1`. The embedding is one more, `embed_tokens`; the output matrix cannot be trained. Not used with
    /// [`initial`](Self::initial).
    pub targets: Vec<String>,
    /// Goes on with this adapter: its rank, alpha and targets are taken, and its weights copied.
    pub initial: Option<Lora>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, rslora: false, seed: 0, targets: Vec::new(), initial: None }
    }
}

builders!(LoraConfig {
    rank: usize,
    alpha: f32,
    dropout: f32,
    rslora: bool,
    seed: u64,
    targets: impl IntoIterator<Item = impl Into<String>> => targets.into_iter().map(Into::into).collect(),
    initial: Lora => Some(initial),
});

impl LoraConfig {
    /// # Errors
    /// `InvalidArgument` naming the field that is out of its range.
    pub fn check(&self) -> Result<()> {
        self.check_fields()
    }

    /// Sets the fields that a JSON object has, by their names; `null` is a field's default.
    ///
    /// # Errors
    /// As [`GenerateOptions::set_json`](crate::GenerateOptions::set_json).
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

impl Fields for LoraConfig {
    const NAME: &'static str = "mc_lora_config";

    fn fields() -> &'static [Field<Self>] {
        const FIELDS: &[Field<LoraConfig>] = &[
            field!("rank", OptionRange::Whole(1, MOST_RANK), rank),
            field!("alpha", OptionRange::Single("a number above 0", |value| value > 0.0), alpha),
            field!("dropout", OptionRange::Single("at least 0 and below 1", |value| (0.0..1.0).contains(&value)), dropout),
            field!("rslora", OptionRange::Bool, rslora),
            field!("seed", OptionRange::Whole(0, u64::MAX), seed),
            field!("targets", OptionRange::Texts, targets),
        ];
        FIELDS
    }
}

/// What the micro-batches of a step count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weighting {
    /// Each the same, whatever its number of tokens: a step's loss is the mean of their means.
    MicroBatches,
    /// Each token the same: a step's loss is the mean over all its tokens, as in the Trainer of transformers.
    Tokens,
}

/// How to train.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TrainOptions {
    /// 0 to 1; default 2e-4.
    pub learning_rate: f64,
    /// 0 to 1: each step takes this times the learning rate off every weight; default 0.01.
    pub weight_decay: f64,
    /// How much the moving average of the gradient keeps, at least 0 and below 1; default 0.9.
    pub beta1: f64,
    /// The same of the gradient's square; default 0.999.
    pub beta2: f64,
    /// Added to the root of the second average, above 0; default 1e-8.
    pub epsilon: f64,
    /// The length that the gradient of all weights together is cut to; 0 = not cut; default 1.
    pub grad_clip: f64,
    /// Micro-batches of a step, at least 1; default 1.
    pub grad_accumulation: usize,
    /// What the micro-batches of a step count.
    pub weighting: Weighting,
    /// Default: constant.
    pub schedule: Schedule,
    /// Steps in which the learning rate rises; default 0.
    pub warmup_steps: u64,
    /// The first step has the learning rate 0, as in the Trainer of transformers, and not the first part of it; default off.
    pub warmup_from_zero: bool,
    /// Where the schedule ends, and with it a training on a dataset. 0 (the default) = with the last epoch, which only a training
    /// on a dataset knows.
    pub total_steps: u64,
    /// The step that a training on a dataset ends with at the latest, counted from the trainer's first. The schedule is that of the whole
    /// training all the same: resumed with a larger number it goes on as if it had not ended. 0 (the default) = none.
    pub max_steps: u64,
    /// Sequences of a micro-batch, at least 1; default 4.
    pub batch_size: usize,
    /// How often a training on a dataset sees each example; default 1.
    pub epochs: usize,
    /// Tokens of an example of a dataset, of a longer one the rest is cut off; at least 2. 0 (the default) = the model's context,
    /// but at most 2048.
    pub max_length: usize,
    /// Of completions and conversations, learn the answers alone; default on.
    pub mask_prompt: bool,
    /// Decides the order of a dataset's examples.
    pub seed: u64,
    /// Keep the inputs of layers alone and compute the rest a second time: a third more time, and memory for one layer instead of
    /// all; default on.
    pub gradient_checkpointing: bool,
    /// Where a training on a dataset writes checkpoints: when it ends, or every so many steps. The best adapter of those that were
    /// evaluated is written into its folder `best`.
    pub checkpoint: Option<PathBuf>,
    /// 0 (the default) = only when the training ends.
    pub checkpoint_every: u64,
    /// Steps between two evaluations; there is one at the end in any case. 0 (the default) = only that one.
    pub eval_every: u64,
    /// Ends the training after so many evaluations without a new best; 0 (the default) = never.
    pub patience: u64,
    /// Stops a call within one layer of the network; the trainer stays at the last finished micro-batch.
    pub cancel: Option<Cancel>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            grad_clip: 1.0,
            grad_accumulation: 1,
            weighting: Weighting::MicroBatches,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            warmup_from_zero: false,
            total_steps: 0,
            max_steps: 0,
            batch_size: 4,
            epochs: 1,
            max_length: 0,
            mask_prompt: true,
            seed: 0,
            gradient_checkpointing: true,
            checkpoint: None,
            checkpoint_every: 0,
            eval_every: 0,
            patience: 0,
            cancel: None,
        }
    }
}

builders!(TrainOptions {
    learning_rate: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    grad_clip: f64,
    grad_accumulation: usize,
    weighting: Weighting,
    schedule: Schedule,
    warmup_steps: u64,
    warmup_from_zero: bool,
    total_steps: u64,
    max_steps: u64,
    batch_size: usize,
    epochs: usize,
    max_length: usize,
    mask_prompt: bool,
    seed: u64,
    gradient_checkpointing: bool,
    checkpoint: impl Into<PathBuf> => Some(checkpoint.into()),
    checkpoint_every: u64,
    eval_every: u64,
    patience: u64,
    cancel: Cancel => Some(cancel),
});

impl TrainOptions {
    /// # Errors
    /// `InvalidArgument` naming the field that is out of its range.
    pub fn check(&self) -> Result<()> {
        self.check_fields()
    }

    /// Sets the fields that a JSON object has, by their names; `null` is a field's default. `schedule` is `constant`, `linear` or
    /// `cosine`, `weighting` is `micro_batches` or `tokens`.
    ///
    /// # Errors
    /// As [`GenerateOptions::set_json`](crate::GenerateOptions::set_json).
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

const SCHEDULES: &[(&str, Schedule)] =
    &[("constant", Schedule::Constant), ("linear", Schedule::Linear), ("cosine", Schedule::Cosine)];

const WEIGHTINGS: &[(&str, Weighting)] = &[("micro_batches", Weighting::MicroBatches), ("tokens", Weighting::Tokens)];

impl Fields for TrainOptions {
    const NAME: &'static str = "mc_train_options";

    fn fields() -> &'static [Field<Self>] {
        const FIELDS: &[Field<TrainOptions>] = &[
            field!("learning_rate", OptionRange::Number("0 to 1", |value| (0.0..=1.0).contains(&value)), learning_rate),
            field!("weight_decay", OptionRange::Number("0 to 1", |value| (0.0..=1.0).contains(&value)), weight_decay),
            field!("beta1", OptionRange::Number("at least 0 and below 1", |value| (0.0..1.0).contains(&value)), beta1),
            field!("beta2", OptionRange::Number("at least 0 and below 1", |value| (0.0..1.0).contains(&value)), beta2),
            // In F32, which the optimizer computes in.
            field!(
                "epsilon",
                OptionRange::Number("a number above 0", |value| value as f32 > 0.0 && (value as f32).is_finite()),
                epsilon
            ),
            field!("grad_clip", OptionRange::Number("a number from 0", |value| value >= 0.0), grad_clip),
            field!("grad_accumulation", OptionRange::Whole(1, 1 << 20), grad_accumulation),
            word_field!("weighting", WEIGHTINGS, weighting),
            word_field!("schedule", SCHEDULES, schedule),
            field!("warmup_steps", OptionRange::Whole(0, MOST), warmup_steps),
            field!("warmup_from_zero", OptionRange::Bool, warmup_from_zero),
            field!("total_steps", OptionRange::Whole(0, MOST), total_steps),
            field!("max_steps", OptionRange::Whole(0, MOST), max_steps),
            field!("batch_size", OptionRange::Whole(1, 1 << 20), batch_size),
            field!("epochs", OptionRange::Whole(1, MOST_EPOCHS), epochs),
            field!("max_length", OptionRange::ZeroOr(2), max_length),
            field!("mask_prompt", OptionRange::Bool, mask_prompt),
            field!("seed", OptionRange::Whole(0, u64::MAX), seed),
            field!("gradient_checkpointing", OptionRange::Bool, gradient_checkpointing),
            field!("checkpoint", OptionRange::Text, checkpoint),
            field!("checkpoint_every", OptionRange::Whole(0, u64::MAX), checkpoint_every),
            field!("eval_every", OptionRange::Whole(0, u64::MAX), eval_every),
            field!("patience", OptionRange::Whole(0, u64::MAX), patience),
        ];
        FIELDS
    }
}
