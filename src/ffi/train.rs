//! Training: an adapter learns, stops anywhere and goes on.
//!
//! The model stays as it is, and what is trained is an adapter of it. A trainer takes a dataset (mc_lora_trainer_train()), or micro-batches of
//! tokens, one call each (mc_lora_trainer_train_step()). It stops at any micro-batch, and goes on from a checkpoint
//! (mc_lora_trainer_resume()) as if it had not: on the CPU bit for bit. What it has trained so far is an adapter like any other
//! (mc_lora_trainer_adapter()), to attach to sessions while training goes on. The options, behind the calls, say what the adapter is
//! (mc_lora_config) and how it learns (mc_train_options).
//!
//! @snippet finetune.c train
//! @see @ref dataset, @ref lora, @ref cancel
//!
//! Threads: any; a call runs on the thread that makes it. Functions that take a trainer as `const` run concurrently, each other one alone: a
//! second call meanwhile, also one from a callback, is MC_ERROR_BUSY, never waits and changes nothing. After MC_ERROR_PANIC every call but
//! mc_lora_trainer_step_count() and mc_lora_trainer_free() is MC_ERROR_POISONED. Options are set by one thread at a time, and then used
//! concurrently.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::callback::train_closure;
use super::cancel::{given_cancel, mc_cancel};
use super::dataset::mc_dataset;
use super::error::{mc_error, mc_status};
use super::handle::{Builder, Exclusive, Given, Object, Out, OutHandle, free, inert, new_handle, optional};
use super::lora::mc_lora;
use super::model::mc_model;
use super::text::{self, array, given_array, optional_content};
use crate::engine::options::{Fields, OptionValue, check_part};
use crate::error::{Error, Result};
use crate::kernels::owned;
use crate::{LoraConfig, LoraTrainer, Schedule, TrainEvent, TrainOptions, Weighting};

/// What the learning rate does behind the warm-up.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_schedule {
    /// It stays.
    MC_SCHEDULE_CONSTANT = 0,
    /// It falls to 0 in a line.
    MC_SCHEDULE_LINEAR = 1,
    /// It falls to 0 along half a cosine.
    MC_SCHEDULE_COSINE = 2,
    /// Not a value: makes the enum 32 bits wide.
    MC_SCHEDULE_FORCE32 = 0x7fff_ffff,
}

/// What the micro-batches of a step count.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_weighting {
    /// Each the same, whatever its number of tokens: a step's loss is the mean of their means.
    MC_WEIGHTING_MICRO_BATCHES = 0,
    /// Each token the same: a step's loss is the mean over all its tokens, as in the Trainer of transformers.
    MC_WEIGHTING_TOKENS = 1,
    /// Not a value: makes the enum 32 bits wide.
    MC_WEIGHTING_FORCE32 = 0x7fff_ffff,
}

/// One finished step of mc_lora_trainer_train(). Fields are only ever added at the end.
#[repr(C)]
pub struct mc_train_event {
    /// Bytes of this struct as the library knows it.
    pub struct_size: usize,
    /// From 1.
    pub step: u64,
    /// The step that the training ends with, unless it is stopped.
    pub total_steps: u64,
    /// From 1.
    pub epoch: u32,
    /// The mean cross entropy of the step's target tokens, in nats, before the step.
    pub loss: f32,
    /// The same of the evaluation dataset, after the step; NaN where it was not evaluated.
    pub eval_loss: f32,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The length of the gradient of all weights together, before it was cut.
    pub grad_norm: f32,
    /// All tokens of the step, targets or not, over the time since the last step.
    pub tokens_per_second: f32,
    /// Target tokens of the step.
    pub target_tokens: u64,
    /// The most memory that the process has had so far, in bytes; 0 where the system does not tell.
    pub peak_bytes: u64,
    /// Sequences of the training dataset that were cut to `max_length`. An example is one, but a conversation whose template rewrites
    /// earlier turns is one for each answer.
    pub truncated: u64,
    /// Sequences of the training dataset that have no target token, and are left out.
    pub skipped: u64,
    /// Whether `eval_loss` is the lowest so far.
    pub is_best: bool,
}

/// Receives each step of a training. Called on the thread of mc_lora_trainer_train(), before it returns.
///
/// @param user_data  what was given with the callback.
/// @param event      the step; valid during the call.
/// @return MC_CONTINUE to go on; everything else ends the training with MC_OK.
pub type mc_train_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, event: &mc_train_event) -> i32>;

/// The adapter that is to be trained: a builder. A bad value is remembered and reported by the first call that uses it, as
/// MC_ERROR_INVALID_ARGUMENT with the field, the value and what was expected. Can be used many times.
pub struct mc_lora_config {
    _opaque: [u8; 0],
}

/// How to train: a builder. A bad value is remembered and reported by the first call that uses the options, as
/// MC_ERROR_INVALID_ARGUMENT with the field, the value and what was expected. Can be used many times.
pub struct mc_train_options {
    _opaque: [u8; 0],
}

/// An adapter in training. Holds its model.
pub struct mc_lora_trainer {
    _opaque: [u8; 0],
}

pub(super) struct TrainerState {
    state: Exclusive<LoraTrainer>,
    /// Finished steps, for a caller that does not want to hear `Busy`.
    steps: AtomicU64,
}

impl Object for mc_lora_config {
    const NAME: &'static str = "mc_lora_config";
    type Inner = Builder<LoraConfig>;
}

impl Object for mc_train_options {
    const NAME: &'static str = "mc_train_options";
    type Inner = Builder<TrainOptions>;
}

impl Object for mc_lora_trainer {
    const NAME: &'static str = "mc_lora_trainer";
    type Inner = TrainerState;
}

impl Enumeration for mc_schedule {
    const NAME: &'static str = "mc_schedule";
    type Meaning = Schedule;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_SCHEDULE_CONSTANT, Schedule::Constant),
        (Self::MC_SCHEDULE_LINEAR, Schedule::Linear),
        (Self::MC_SCHEDULE_COSINE, Schedule::Cosine),
    ];
}

impl Enumeration for mc_weighting {
    const NAME: &'static str = "mc_weighting";
    type Meaning = Weighting;
    const TABLE: &'static [(Self, Self::Meaning)] =
        &[(Self::MC_WEIGHTING_MICRO_BATCHES, Weighting::MicroBatches), (Self::MC_WEIGHTING_TOKENS, Weighting::Tokens)];
}

impl TrainerState {
    fn new(trainer: LoraTrainer) -> Self {
        Self { steps: AtomicU64::new(trainer.step_count()), state: Exclusive::new(trainer) }
    }

    /// The trainer alone, and where its steps are counted.
    fn change<R>(&self, change: impl FnOnce(&mut LoraTrainer) -> Result<R>) -> Result<R> {
        self.state.change("trainer", |trainer| {
            let result = change(trainer);
            self.steps.store(trainer.step_count(), Ordering::Relaxed);
            result
        })
    }
}

/// The bytes that a trainer takes beside its model, at most, with micro-batches of the longest examples: the adapter, its optimizer and
/// gradients, and what a pass keeps of each layer for the backward pass.
///
/// @param model    the model.
/// @param config   the adapter; NULL = the defaults.
/// @param options  how to train; NULL = the defaults.
/// @param bytes    receives the number.
/// @param err      NULL, or receives the error.
/// @return MC_OK; as mc_lora_trainer_new().
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_estimate_training_memory(
    model: MaybeUninit<&mc_model>,
    config: *const mc_lora_config,
    options: *const mc_train_options,
    bytes: MaybeUninit<&mut u64>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let bytes = Out::new(bytes, "bytes")?;
        let (model, config) = (model.get("model")?, lora_config(config)?);
        let options = train_options(options)?.unwrap_or_default();
        bytes.set(LoraTrainer::estimate_memory(&model.model, &config, &options)?);
        Ok(mc_status::MC_OK)
    })
}

/// Makes a trainer with fresh weights, which change nothing yet, or with those of an initial adapter.
///
/// @param model    the model; the trainer keeps it alive, and leaves it as it is.
/// @param config   the adapter; NULL = the defaults. Copied.
/// @param options  how to train; NULL = the defaults. Copied.
/// @param out      receives one reference; free it with mc_lora_trainer_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for a target that the model does not have; MC_ERROR_UNSUPPORTED if the model cannot
///         generate (MC_CAPABILITY_TRAIN), for the output matrix as a target, and for an initial adapter with magnitudes
///         (DoRA), biases or replaced matrices; MC_ERROR_MISMATCH for an initial adapter of another model; MC_ERROR_OUT_OF_MEMORY;
///         MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_new(
    model: MaybeUninit<&mc_model>,
    config: *const mc_lora_config,
    options: *const mc_train_options,
    out: MaybeUninit<&mut *mut mc_lora_trainer>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, config) = (model.get("model")?, lora_config(config)?);
        let options = train_options(options)?.unwrap_or_default();
        out.set(TrainerState::new(LoraTrainer::new(&model.model, &config, &options)?));
        Ok(mc_status::MC_OK)
    })
}

/// Goes on where mc_lora_trainer_save() or mc_lora_trainer_train() has left off. With the same data the results are, on the CPU, those of a
/// training without an interruption, bit for bit. Unfinished files of a process that was killed are removed from the directory.
///
/// @param model           the model that the checkpoint was trained on.
/// @param checkpoint_dir  the directory.
/// @param options         NULL = those of the checkpoint, without a cancel flag, and with new checkpoints in the same directory if
///                        they were written at all. Else these, where all but `batch_size`, `grad_accumulation`, `weighting`,
///                        `max_length`, `mask_prompt` and `seed` may differ from those of the checkpoint. Copied.
/// @param out             receives one reference; free it with mc_lora_trainer_free().
/// @param err             NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an option that differs and must not; MC_ERROR_INVALID_UTF8;
///         MC_ERROR_NOT_FOUND, MC_ERROR_IO or MC_ERROR_FORMAT for the file; MC_ERROR_MISMATCH for a checkpoint of another model;
///         MC_ERROR_UNSUPPORTED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_resume(
    model: MaybeUninit<&mc_model>,
    checkpoint_dir: MaybeUninit<&c_char>,
    options: *const mc_train_options,
    out: MaybeUninit<&mut *mut mc_lora_trainer>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, options) = (model.get("model")?, train_options(options)?);
        let directory = text::name(&checkpoint_dir, "checkpoint_dir")?;
        out.set(TrainerState::new(LoraTrainer::resume(&model.model, directory, options.as_ref())?));
        Ok(mc_status::MC_OK)
    })
}

/// A micro-batch as C gives it: tokens, mask and offsets.
type Arrays<'a> = (&'a [u32], Option<Vec<bool>>, &'a [usize]);

fn arrays<'a>(
    trainer: &LoraTrainer,
    tokens: MaybeUninit<&'a u32>,
    loss_mask: *const u8,
    offsets: MaybeUninit<&'a usize>,
    sequences: usize,
) -> Result<Arrays<'a>> {
    let count =
        sequences.checked_add(1).ok_or_else(|| Error::argument(format!("sequences: expected less, found {sequences}")))?;
    let offsets = given_array(offsets, count, "offsets")?;
    // Before anything is read up to the last of them.
    trainer.check_offsets(offsets)?;
    let len = offsets.last().copied().unwrap_or(0);
    let tokens = given_array(tokens, len, "tokens")?;
    let mask = if loss_mask.is_null() { None } else { Some(array(loss_mask, len, "loss_mask")?) };
    Ok((tokens, mask.map(|mask| mask.iter().map(|&byte| byte != 0).collect()), offsets))
}

/// Learns from one micro-batch. The weights change with every call that completes `grad_accumulation` of them.
///
/// @param trainer    the trainer.
/// @param tokens     ids of all sequences one after another: `offsets[sequences]` of them, below mc_model_vocab_size().
/// @param loss_mask  as many bytes: whether each token is a target, that is predicted from those before it in its sequence. The first of a
///                   sequence never is. NULL = every other one.
/// @param offsets    `sequences` + 1 numbers: sequence `i` is at `offsets[i]` to `offsets[i + 1]`; the first number is 0.
/// @param sequences  how many sequences; at least 1.
/// @param loss       receives the mean cross entropy of the target tokens of this micro-batch, in nats, before it changed anything.
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for a loss or gradient that is not finite, and for a schedule that falls
///         without `total_steps`; MC_ERROR_CONTEXT_FULL for a sequence longer than the model's context; MC_ERROR_BUSY;
///         MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED. If it is not MC_OK the trainer is as it was.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_train_step(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    tokens: MaybeUninit<&u32>,
    loss_mask: *const u8,
    offsets: MaybeUninit<&usize>,
    sequences: usize,
    loss: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let loss = Out::new(loss, "loss")?;
        let step = trainer.get("trainer")?.change(|trainer| {
            let (tokens, mask, offsets) = arrays(trainer, tokens, loss_mask, offsets, sequences)?;
            trainer.train_step(tokens, mask.as_deref(), offsets)
        })?;
        loss.set(step.loss);
        Ok(mc_status::MC_OK)
    })
}

/// The loss of one micro-batch with the weights as they are; changes nothing.
///
/// @param trainer    the trainer.
/// @param tokens     as mc_lora_trainer_train_step().
/// @param loss_mask  as mc_lora_trainer_train_step().
/// @param offsets    as mc_lora_trainer_train_step().
/// @param sequences  how many sequences; at least 1.
/// @param loss       receives the mean cross entropy of the target tokens, in nats.
/// @param err        NULL, or receives the error.
/// @return as mc_lora_trainer_train_step().
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_eval_step(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    tokens: MaybeUninit<&u32>,
    loss_mask: *const u8,
    offsets: MaybeUninit<&usize>,
    sequences: usize,
    loss: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let loss = Out::new(loss, "loss")?;
        loss.set(trainer.get("trainer")?.change(|trainer| {
            let (tokens, mask, offsets) = arrays(trainer, tokens, loss_mask, offsets, sequences)?;
            trainer.eval_step(tokens, mask.as_deref(), offsets)
        })?);
        Ok(mc_status::MC_OK)
    })
}

/// Trains on a dataset until the last epoch, `total_steps` or `patience` ends it; what was done before, and is in a checkpoint, counts.
/// Examples come in another order each epoch, those of near lengths together.
///
/// A stop by the callback, a cancel flag and an error leave the trainer at the last finished micro-batch, and another call with the same
/// dataset goes on there: so a callback that wants the adapter as it is now stops, and its caller takes the adapter and calls again. After
/// the end another call with it does nothing; to train on something else, give the adapter to a new trainer. The trainer keeps the last
/// weights, not those of the best evaluation: these are in the folder "best" of the checkpoints, if they have a place.
///
/// @param trainer    the trainer. `on_step` may free it, and gets MC_ERROR_BUSY for other calls on it.
/// @param train      what to learn; not empty, and not to be changed meanwhile.
/// @param eval       what to evaluate; NULL = nothing.
/// @param on_step    called with each step, on this thread; NULL = nobody.
/// @param user_data  handed to `on_step`; may be NULL.
/// @param err        NULL, or receives the error.
/// @return MC_OK, also if `on_step` stopped it; MC_CANCELLED; MC_ERROR_INVALID_ARGUMENT also for a dataset without a target token, and
///         for a loss, gradient or weight that is not finite; MC_ERROR_MISMATCH for another dataset than that which the first call had;
///         MC_ERROR_NOT_FOUND if the model has no tokenizer; MC_ERROR_TEMPLATE also if it has no chat template for conversations;
///         MC_ERROR_FORMAT for a tokenizer of another vocabulary; MC_ERROR_IO for a checkpoint; MC_ERROR_BUSY also if a dataset is in
///         use; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_train(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    train: MaybeUninit<&mc_dataset>,
    eval: *const mc_dataset,
    on_step: mc_train_fn,
    user_data: *mut c_void,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (state, train, eval) = (trainer.get("trainer")?, train.get("train")?, optional(eval, "eval")?);
        let train = train.read("train")?;
        let eval = eval.as_ref().map(|eval| eval.read("eval")).transpose()?;
        let mut tell = train_closure(on_step, user_data);
        state.change(|trainer| {
            trainer.train(&train, eval.as_deref(), &mut |event: &TrainEvent| {
                state.steps.store(event.step, Ordering::Relaxed);
                tell(event)
            })
        })?;
        Ok(mc_status::MC_OK)
    })
}

/// How many steps of the optimizer are finished; never MC_ERROR_BUSY, and during mc_lora_trainer_train() as of the last step.
///
/// @param trainer  the trainer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_trainer_step_count(trainer: MaybeUninit<&mc_lora_trainer>) -> u64 {
    guard_or(0, || Ok(trainer.lend("trainer")?.steps.load(Ordering::Relaxed)))
}

/// What the last step of the optimizer did: whether mc_lora_trainer_train_step() made one shows in `step`.
///
/// @param trainer        the trainer.
/// @param step           receives its number, from 1; 0 if there was none yet, the other two are then 0 as well.
/// @param learning_rate  receives its learning rate.
/// @param grad_norm      receives the length of the gradient of all weights together, before it was cut.
/// @param err            NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_last_update(
    trainer: MaybeUninit<&mc_lora_trainer>,
    step: MaybeUninit<&mut u64>,
    learning_rate: MaybeUninit<&mut f64>,
    grad_norm: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (step, learning_rate) = (Out::new(step, "step")?, Out::new(learning_rate, "learning_rate")?);
        let grad_norm = Out::new(grad_norm, "grad_norm")?;
        let update = trainer.get("trainer")?.state.read("trainer")?.last_update();
        step.set(update.map_or(0, |update| update.step));
        learning_rate.set(update.map_or(0.0, |update| update.learning_rate));
        grad_norm.set(update.map_or(0.0, |update| update.grad_norm));
        Ok(mc_status::MC_OK)
    })
}

/// The adapter as it is now: an immutable copy, to attach to sessions of the model or to save with mc_lora_save(), while training goes on.
///
/// @param trainer  the trainer.
/// @param out      receives one reference; free it with mc_lora_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_adapter(
    trainer: MaybeUninit<&mc_lora_trainer>,
    out: MaybeUninit<&mut *mut mc_lora>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let trainer = trainer.get("trainer")?;
        let adapter = trainer.state.read("trainer")?.adapter()?;
        out.set(adapter);
        Ok(mc_status::MC_OK)
    })
}

/// Writes a checkpoint, for mc_lora_trainer_resume(): the adapter, the optimizer, what was accumulated, and where the training is in its
/// data. The directory is also the adapter in PEFT's format, for mc_lora_load(). If the process is killed meanwhile, the files are the old
/// ones or the new ones.
///
/// @param trainer         the trainer.
/// @param checkpoint_dir  the directory; it is made if it does not exist. A checkpoint that is there is replaced, and stays as it is if
///                        writing fails.
/// @param err             NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT for a training that has left the finite numbers; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND;
///         MC_ERROR_IO; MC_ERROR_BUSY; MC_ERROR_POISONED; MC_ERROR_DEVICE; and MC_ERROR_SUSPENDED on a GPU, where the values are: save
///         before mc_device_suspend().
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_trainer_save(
    trainer: MaybeUninit<&mc_lora_trainer>,
    checkpoint_dir: MaybeUninit<&c_char>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let trainer = trainer.get("trainer")?;
        let directory = Path::new(text::name(&checkpoint_dir, "checkpoint_dir")?);
        trainer.state.read("trainer")?.save(directory)?;
        Ok(mc_status::MC_OK)
    })
}

/// Frees a trainer. In a callback of a call on it, that call goes on and ends as usual.
///
/// @param trainer  the trainer, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_trainer_free(trainer: *mut mc_lora_trainer) {
    guard_or((), || free(trainer, "trainer"));
}

/// Makes the description of an adapter: rank 8 and alpha 16 on every matrix of the layers, from fresh weights.
///
/// @return one reference; free it with mc_lora_config_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_lora_config_new() -> NonNull<mc_lora_config> {
    guard_or(inert(), || Ok(new_handle(Builder::new(LoraConfig::default()))))
}

fn configure(config: MaybeUninit<&mut mc_lora_config>, setter: impl FnOnce(&mut LoraConfig) -> Result<()>) {
    guard_or((), || config.get("config")?.set(setter));
}

fn configure_field(config: MaybeUninit<&mut mc_lora_config>, name: &str, value: impl Into<OptionValue>) {
    configure(config, |config| config.set_field(name, value.into()));
}

/// Sets fields of the description from JSON, each as its setter does, in the order in which they are written.
///
/// `rank`, `alpha`, `dropout`, `seed`: numbers. `rslora`: true or false. `targets`: a list of texts, in place of those before. An initial
/// adapter has its setter alone.
///
/// @param config    the description.
/// @param json      an object, UTF-8, such as `{"rank": 16, "targets": ["q_proj", "v_proj"]}`; a member that is null has its default again.
///                  Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a name that stands
///                  in an object twice or is none of these, and a value of another type or out of its setter's range. NULL = all of these
///                  have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_json(config: MaybeUninit<&mut mc_lora_config>, json: *const c_char, json_len: usize) {
    configure(config, |config| config.set_fields(optional_content(json, json_len, "json")?));
}

/// How many values each input and output of a changed matrix gets.
///
/// @param config  the description.
/// @param value   1 to 8192. Default: 8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_rank(config: MaybeUninit<&mut mc_lora_config>, value: usize) {
    configure_field(config, "rank", value);
}

/// How much a change counts: `value` / rank times.
///
/// @param config  the description.
/// @param value   above 0. Default: 16.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_alpha(config: MaybeUninit<&mut mc_lora_config>, value: f64) {
    configure_field(config, "alpha", value);
}

/// The share of a change's inputs that a training pass does not see; another share each time.
///
/// @param config  the description.
/// @param value   at least 0 and below 1. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_dropout(config: MaybeUninit<&mut mc_lora_config>, value: f64) {
    configure_field(config, "dropout", value);
}

/// Goes on with an adapter: its rank, alpha and targets are taken, whatever else is set here, and its weights copied.
///
/// @param config  the description.
/// @param lora    an adapter of the model that will be trained, without magnitudes (DoRA), trained biases and replaced matrices; the
///                description keeps it alive. NULL (the default) = fresh weights.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_initial(config: MaybeUninit<&mut mc_lora_config>, lora: *const mc_lora) {
    configure(config, |config| {
        config.initial = optional(lora, "lora")?.map(|lora| (*lora).clone());
        Ok(())
    });
}

/// Whether a change counts alpha / sqrt(rank) times instead of alpha / rank times.
///
/// @param config  the description.
/// @param value   default: false.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_rslora(config: MaybeUninit<&mut mc_lora_config>, value: bool) {
    configure_field(config, "rslora", value);
}

/// What decides the fresh weights and the dropout.
///
/// @param config  the description.
/// @param seed    any number. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_set_seed(config: MaybeUninit<&mut mc_lora_config>, seed: u64) {
    configure_field(config, "seed", seed);
}

/// Adds matrices that get a change; may be called for many. Without any, every matrix of the layers gets one, but for experts,
/// what chooses them, and "out_proj" of Mamba 2, of which PEFT takes no adapter. The matrices of all experts of a layer are meant by the parameter that transformers has them as, such as
/// "experts.gate_up_proj", and are saved as PEFT's target_parameters; a dropout there makes mc_lora_trainer_new() return
/// MC_ERROR_UNSUPPORTED. Single experts, and what chooses them, are meant by names that say where they are, as "experts.0.w1".
///
/// @param config  the description.
/// @param module  as PEFT names them: each matrix whose path ends with this, such as "q_proj", "layers.0.mlp.up_proj" or
///                "embed_tokens", or "all-linear". One that the model does not have makes mc_lora_trainer_new() return
///                MC_ERROR_INVALID_ARGUMENT, and the output matrix MC_ERROR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_add_target(config: MaybeUninit<&mut mc_lora_config>, module: MaybeUninit<&c_char>) {
    configure(config, |config| {
        let module = text::name(&module, "target")?;
        check_part("target", module)?;
        config.targets.push(owned("target", module)?);
        Ok(())
    });
}

/// Frees a description; trainers that were made with it go on.
///
/// @param config  the description, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_config_free(config: *mut mc_lora_config) {
    guard_or((), || free(config, "config"));
}

/// Makes training options with the defaults that each setter names.
///
/// @return one reference; free it with mc_train_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_train_options_new() -> NonNull<mc_train_options> {
    guard_or(inert(), || Ok(new_handle(Builder::new(TrainOptions::default()))))
}

fn set(options: MaybeUninit<&mut mc_train_options>, setter: impl FnOnce(&mut TrainOptions) -> Result<()>) {
    guard_or((), || options.get("options")?.set(setter));
}

fn set_field(options: MaybeUninit<&mut mc_train_options>, name: &str, value: impl Into<OptionValue>) {
    set(options, |options| options.set_field(name, value.into()));
}

/// Sets options from JSON, each as its setter does, in the order in which they are written.
///
/// `learning_rate`, `weight_decay`, `beta1`, `beta2`, `epsilon`, `grad_clip`, `grad_accumulation`, `warmup_steps`, `total_steps`,
/// `max_steps`, `batch_size`, `epochs`, `max_length`, `seed`, `checkpoint_every`, `eval_every`, `patience`: numbers. `schedule`:
/// "constant", "linear" or "cosine". `weighting`: "micro_batches" or "tokens". `warmup_from_zero`, `mask_prompt`, `gradient_checkpointing`:
/// true or false. `checkpoint`: a directory. A flag that cancels has its setter alone.
///
/// @param options   the options.
/// @param json      an object, UTF-8, such as `{"epochs": 3, "learning_rate": 1e-4, "schedule": "cosine"}`; a member that is null has its
///                  default again. Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a
///                  name that stands in an object twice or is none of these, and a value of another type or out of its setter's range. NULL
///                  = all of these have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_json(
    options: MaybeUninit<&mut mc_train_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |options| options.set_fields(optional_content(json, json_len, "json")?));
}

/// How far a step goes.
///
/// @param options  the options.
/// @param value    0 to 1. Default: 2e-4.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_learning_rate(options: MaybeUninit<&mut mc_train_options>, value: f64) {
    set_field(options, "learning_rate", value);
}

/// What each step takes off every weight: this times the learning rate.
///
/// @param options  the options.
/// @param value    0 to 1. Default: 0.01.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_weight_decay(options: MaybeUninit<&mut mc_train_options>, value: f64) {
    set_field(options, "weight_decay", value);
}

/// How much the moving averages of AdamW keep.
///
/// @param options  the options.
/// @param beta1    of the gradient; at least 0 and below 1. Default: 0.9.
/// @param beta2    of its square; at least 0 and below 1. Default: 0.999.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_adam_betas(options: MaybeUninit<&mut mc_train_options>, beta1: f64, beta2: f64) {
    set(options, |options| {
        options.set_field("beta1", beta1.into())?;
        options.set_field("beta2", beta2.into())
    });
}

/// What AdamW adds to the root of the second average.
///
/// @param options  the options.
/// @param value    above 0. Default: 1e-8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_adam_epsilon(options: MaybeUninit<&mut mc_train_options>, value: f64) {
    set_field(options, "epsilon", value);
}

/// Where mc_lora_trainer_train() writes checkpoints, for mc_lora_trainer_resume(); each replaces the one before. The directory is also the
/// adapter in PEFT's format, and its folder "best" the adapter with the lowest loss of those that were evaluated.
///
/// @param options      the options.
/// @param dir          the directory; it is made if it does not exist, and tried before a training begins: MC_ERROR_IO or
///                     MC_ERROR_NOT_FOUND if nothing can be written there. NULL (the default) = none are written.
/// @param every_steps  steps between two checkpoints; there is one at the end in any case. 0 = only that one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_checkpoint(
    options: MaybeUninit<&mut mc_train_options>,
    dir: *const c_char,
    every_steps: u64,
) {
    set(options, |options| {
        options.set_text("checkpoint", text::optional_name(dir, "checkpoint")?)?;
        options.set_field("checkpoint_every", every_steps.into())
    });
}

/// How often mc_lora_trainer_train() evaluates its evaluation dataset.
///
/// @param options  the options.
/// @param steps    steps between two evaluations; there is one at the end in any case. 0 (the default) = only that one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_eval_every(options: MaybeUninit<&mut mc_train_options>, steps: u64) {
    set_field(options, "eval_every", steps);
}

/// Ends mc_lora_trainer_train() early, when evaluations find nothing better any more.
///
/// @param options      the options.
/// @param evaluations  how many in a row may be without a new lowest loss; 0 (the default) = any number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_patience(options: MaybeUninit<&mut mc_train_options>, evaluations: u64) {
    set_field(options, "patience", evaluations);
}

/// Whether a pass keeps the inputs of layers alone and computes the rest a second time: a third more time, and memory for one layer instead
/// of all.
///
/// @param options  the options.
/// @param value    default: true.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_gradient_checkpointing(options: MaybeUninit<&mut mc_train_options>, value: bool) {
    set_field(options, "gradient_checkpointing", value);
}

/// Cuts the gradient of all weights together to a length.
///
/// @param options  the options.
/// @param value    the length; 0 = as it is. Default: 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_grad_clip(options: MaybeUninit<&mut mc_train_options>, value: f64) {
    set_field(options, "grad_clip", value);
}

/// How many micro-batches make a step; the last step of an epoch takes what is left. More is as a larger batch, in the memory of one.
///
/// @param options  the options.
/// @param value    1 to 1048576. Default: 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_grad_accumulation(options: MaybeUninit<&mut mc_train_options>, value: usize) {
    set_field(options, "grad_accumulation", value);
}

/// What the micro-batches of a step count.
///
/// @param options  the options.
/// @param value    default: MC_WEIGHTING_MICRO_BATCHES.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_weighting(
    options: MaybeUninit<&mut mc_train_options>,
    value: MaybeUninit<mc_weighting>,
) {
    set(options, |options| {
        options.weighting = checked(value, "weighting")?;
        Ok(())
    });
}

/// What the learning rate does.
///
/// @param options       the options.
/// @param value         what it does behind the warm-up. Default: MC_SCHEDULE_CONSTANT.
/// @param warmup_steps  steps in which it rises: of W, step S from 1 has S / W of it. Default: 0.
/// @param total_steps   where the schedule ends, and with it mc_lora_trainer_train(). 0 (the default) = with the last epoch; for
///                      mc_lora_trainer_train_step(), which knows of no epochs, a schedule that falls needs a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_schedule(
    options: MaybeUninit<&mut mc_train_options>,
    value: MaybeUninit<mc_schedule>,
    warmup_steps: u64,
    total_steps: u64,
) {
    set(options, |options| {
        options.schedule = checked(value, "schedule")?;
        options.set_field("warmup_steps", warmup_steps.into())?;
        options.set_field("total_steps", total_steps.into())
    });
}

/// The step that mc_lora_trainer_train() ends with at the latest, as where a device trains for a while each day. The schedule is that of
/// the whole training all the same: the trainer, or one that is resumed from its checkpoint, goes on with a larger number as if it had not
/// ended.
///
/// @param options  the options.
/// @param steps    counted from the trainer's first step; 0 (the default) = as many as the epochs, or the schedule, have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_max_steps(options: MaybeUninit<&mut mc_train_options>, steps: u64) {
    set_field(options, "max_steps", steps);
}

/// Whether a warm-up begins with the learning rate 0, as in the Trainer of transformers: of W steps, step S from 1 then has (S - 1) / W of
/// it.
///
/// @param options  the options.
/// @param value    default: false.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_warmup_from_zero(options: MaybeUninit<&mut mc_train_options>, value: bool) {
    set_field(options, "warmup_from_zero", value);
}

/// How many examples of a dataset are a micro-batch.
///
/// @param options  the options.
/// @param value    1 to 1048576. Default: 4.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_batch_size(options: MaybeUninit<&mut mc_train_options>, value: usize) {
    set_field(options, "batch_size", value);
}

/// How often mc_lora_trainer_train() sees each example.
///
/// @param options  the options.
/// @param value    at least 1. Default: 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_epochs(options: MaybeUninit<&mut mc_train_options>, value: usize) {
    set_field(options, "epochs", value);
}

/// The most tokens of an example of a dataset; of a longer one the rest is cut off, which mc_train_event counts.
///
/// @param options  the options.
/// @param value    at least 2, up to mc_model_context_length(); 0 (the default) = that, but at most 2048.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_max_length(options: MaybeUninit<&mut mc_train_options>, value: usize) {
    set_field(options, "max_length", value);
}

/// Whether completions and conversations teach the answers alone, and not the prompts before them.
///
/// @param options  the options.
/// @param value    default: true.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_mask_prompt(options: MaybeUninit<&mut mc_train_options>, value: bool) {
    set_field(options, "mask_prompt", value);
}

/// What decides the order of a dataset's examples.
///
/// @param options  the options.
/// @param seed     any number. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_seed(options: MaybeUninit<&mut mc_train_options>, seed: u64) {
    set_field(options, "seed", seed);
}

/// A flag that stops every call on a trainer with these options, within one layer of the network; the trainer stays at the last finished
/// micro-batch.
///
/// @param options  the options.
/// @param cancel   the flag; the options and their trainers keep it alive. NULL (the default) = none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_set_cancel(options: MaybeUninit<&mut mc_train_options>, cancel: *const mc_cancel) {
    set(options, |options| {
        options.cancel = given_cancel(cancel)?;
        Ok(())
    });
}

/// Frees options; trainers that were made with them go on.
///
/// @param options  the options, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_train_options_free(options: *mut mc_train_options) {
    guard_or((), || free(options, "options"));
}

fn lora_config(config: *const mc_lora_config) -> Result<LoraConfig> {
    optional(config, "config")?.map_or_else(|| Ok(LoraConfig::default()), |config| config.options())
}

fn train_options(options: *const mc_train_options) -> Result<Option<TrainOptions>> {
    optional(options, "options")?.map(|options| options.options()).transpose()
}
