//! Training on disk. One file is the truth, `training_state.safetensors`:
//!
//! | tensors, each `.a` and `.b` of a module | |
//! |---|---|
//! | `weights`, `first_moments`, `second_moments` | the adapter and its optimizer |
//! | `gradients` | of the micro-batches since the last step, if there are any |
//!
//! Its metadata is a JSON text with the adapter's configuration, the options and all counters; numbers are their 64 bits in
//! hexadecimal digits, as JSON's own need not survive. Beside it lies the adapter in PEFT's format, for everyone else.
//!
//! All are written beside their places, brought to the disk and renamed, the state first: whenever the process ends, the directory
//! holds a whole state. What is read is untrusted.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::options::{MOST, MOST_EPOCHS};
use super::run::BEST;
use super::{Counters, LoraTrainer, Schedule, TrainOptions, Weighting};
use crate::engine::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Beside, Checkpoint, Json, Naming, PeftPlan, Tensors, remove_parts};
use crate::nn::{Module, TensorSource, TrainedModule};
use crate::ops::{Format, Optimized, ParameterValues, zeros};

pub(super) const FILE: &str = "training_state.safetensors";
const STATE: &str = "training_state";
const VERSION: u64 = 1;
const GROUPS: [&str; 4] = ["weights", "first_moments", "second_moments", "gradients"];

/// What 64 bits hold.
trait Bits: Sized {
    fn bits(&self) -> u64;
    fn from_bits(bits: u64) -> Option<Self>;
}

macro_rules! bits {
    ($($type:ty: $bits:expr, $from:expr;)*) => {
        $(impl Bits for $type {
            fn bits(&self) -> u64 {
                ($bits)(*self)
            }

            fn from_bits(bits: u64) -> Option<Self> {
                ($from)(bits)
            }
        })*
    };
}

bits! {
    u64: |x| x, Some;
    usize: |x| x as u64, |bits| usize::try_from(bits).ok();
    f64: f64::to_bits, |bits| Some(f64::from_bits(bits));
    f32: |x: f32| x.to_bits().into(), |bits| u32::try_from(bits).ok().map(f32::from_bits);
    bool: u64::from, |bits| (bits < 2).then_some(bits == 1);
    Schedule: |x| x as u64, |bits| [Schedule::Constant, Schedule::Linear, Schedule::Cosine].into_iter().find(|x| x.bits() == bits);
    Weighting: |x| x as u64, |bits| [Weighting::MicroBatches, Weighting::Tokens].into_iter().find(|x| x.bits() == bits);
}

/// Fields of a struct as an object of JSON and back; the fields that are not named keep their default, and those behind a semicolon where
/// an older checkpoint lacks them.
macro_rules! stored {
    ($type:ident: $($field:ident)* $(; $later:ident)*) => {
        impl $type {
            fn fields(&self) -> Value {
                let fields = [
                    $((stringify!($field).to_string(), digits(&self.$field)),)*
                    $((stringify!($later).to_string(), digits(&self.$later)),)*
                ];
                fields.into_iter().collect::<Map<_, _>>().into()
            }

            fn from_fields(json: &Json) -> Result<Self> {
                #[allow(clippy::needless_update, unused_mut)]
                let mut fields = Self { $($field: number(json, stringify!($field))?,)* ..Self::default() };
                $(if json.get(stringify!($later)).is_some() {
                    fields.$later = number(json, stringify!($later))?;
                })*
                Ok(fields)
            }
        }
    };
}

stored!(TrainOptions: learning_rate weight_decay beta1 beta2 epsilon grad_clip grad_accumulation weighting schedule warmup_steps
    warmup_from_zero total_steps batch_size epochs max_length mask_prompt seed gradient_checkpointing checkpoint_every eval_every
    patience; max_steps);
stored!(Counters: step micro_steps micro loss_sum targets loss grad_norm pending data epoch position first_step epoch_steps best_loss
    stale_evals);

fn digits(value: &impl Bits) -> Value {
    format!("{:016x}", value.bits()).into()
}

fn number<T: Bits>(json: &Json, key: &str) -> Result<T> {
    let field = json.get(key).ok_or_else(|| json.invalid(key, "expected 16 hexadecimal digits, found nothing"))?;
    let bits = field.value().as_str().filter(|text| text.len() == 16).and_then(|text| u64::from_str_radix(text, 16).ok());
    bits.and_then(T::from_bits).ok_or_else(|| field.expected("16 hexadecimal digits of a possible value"))
}

fn object(json: &Json, key: &str) -> Result<Json> {
    json.object(key)?.ok_or_else(|| json.invalid(key, "expected an object, found nothing"))
}

fn text(json: &Json, key: &str) -> Result<String> {
    json.text(key)?.ok_or_else(|| json.invalid(key, "expected text, found nothing"))
}

fn tensor_name(group: &str, module: &Module, field: char) -> String {
    format!("{group}.{}.{field}", module.name)
}

/// The tensors of a module, each with its shape and where its values lie among all.
fn fields(trained: &TrainedModule) -> [(char, [usize; 2], Range<usize>); 2] {
    let (module, rank) = (&trained.module, trained.rank);
    [('a', [rank, module.inputs], trained.a()), ('b', [module.outputs, rank], trained.b())]
}

impl LoraTrainer {
    /// Writes a checkpoint, to go on later with [`resume`](Self::resume) as if nothing had been in between; the directory is also
    /// the adapter in PEFT's format. Files that are there are replaced; if the process is killed meanwhile they are the old ones or
    /// the new ones.
    ///
    /// # Errors
    /// `Io`, `NotFound`, naming the path; `InvalidArgument` for a training that has left the finite numbers; `Device`, and `Suspended`
    /// where the values are on a GPU.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        let directory = directory.as_ref();
        let Optimized { values, first, second } = &self.state;
        let groups = [Some(values), Some(first), Some(second), self.gradients.as_ref()];
        let groups = groups.into_iter().flatten().map(|group| self.downloaded(group)).collect::<Result<Vec<_>>>()?;
        let tensors = self.tensors(&groups);
        for (name, (_, values)) in &tensors {
            // Such a state could not be resumed, and would replace one that can.
            if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                let message = format!("{name}: expected finite values, found {x}: the learning rate may be too high");
                return Err(Error::argument(message));
            }
        }
        let metadata = self.metadata().to_string();
        let beside = Beside { path: directory.join(FILE), tensors, metadata: &[(STATE, metadata.as_str())] };
        self.plan.write(directory, &groups[0], Some(&beside))
    }

    fn metadata(&self) -> Value {
        json!({
            "version": VERSION,
            "model": digits(&self.model.fingerprint()),
            "adapter_config": self.plan.config_json,
            "prefix": self.plan.naming.prefix,
            "as_stored": self.plan.naming.as_stored,
            "dropout": digits(&self.dropout),
            "seed": digits(&self.seed),
            "checkpoints": self.options.checkpoint.is_some(),
            "options": self.options.fields(),
            "progress": self.progress.fields(),
        })
    }

    fn tensors<'a>(&self, groups: &'a [Cow<'_, [f32]>]) -> Tensors<'a> {
        let mut tensors = Tensors::new();
        for (group, values) in GROUPS.into_iter().zip(groups) {
            for trained in &self.plan.modules {
                for (field, shape, range) in fields(trained) {
                    let values = Cow::Borrowed(&values[range]);
                    tensors.insert(tensor_name(group, &trained.module, field), (shape.to_vec(), values));
                }
            }
        }
        tensors
    }

    /// Goes on where [`save`](Self::save) or a training on a dataset has left off: with the same data the results are, on the CPU,
    /// those of a training without an interruption, bit for bit. Unfinished files of a process that was killed are removed from the
    /// directory.
    ///
    /// Without `options` those of the checkpoint count, without a cancel flag, and new checkpoints go into the same directory if
    /// they were written at all. With `options`, all may differ but those that decide what a step sees: `batch_size`,
    /// `grad_accumulation`, `weighting`, `max_length`, `mask_prompt` and `seed`.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Format` for a file that is damaged; `Mismatch` for a checkpoint of another model; `InvalidArgument` for an
    /// option that is out of its range or differs and must not, naming it and both values; `OutOfMemory`; `Suspended`; `Device`.
    pub fn resume(model: &Model, directory: impl AsRef<Path>, options: Option<&TrainOptions>) -> Result<Self> {
        let directory = directory.as_ref();
        Self::read(model, directory, options).map_err(|error| match error.kind() {
            ErrorKind::Format | ErrorKind::Mismatch => error.within(directory.display()),
            _ => error,
        })
    }

    fn read(model: &Model, directory: &Path, options: Option<&TrainOptions>) -> Result<Self> {
        super::check_model(model)?;
        let mut on_bytes = |_, _| Ok(());
        let mut file = Checkpoint::open_file(&directory.join(FILE), &mut on_bytes)?;
        let state = file.metadata(STATE);
        let state =
            state.ok_or_else(|| Error::format(format!("{FILE}: expected the state of a training, found other tensors")))?;
        let json = Json::parse(FILE, state)?;
        if json.value()["version"] != VERSION {
            return Err(json.unsupported("version", &format!("expected {VERSION}")));
        }
        let (expected, found) = (model.fingerprint(), number::<u64>(&json, "model")?);
        if expected != found {
            let message =
                format!("model: expected a checkpoint of this one ({expected:016x}), found one of another ({found:016x})");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let mut own = TrainOptions::from_fields(&object(&json, "options")?)?;
        super::check_options(model, &own).map_err(|error| json.invalid("options", error.message()))?;
        own.checkpoint = json.flag("checkpoints", false)?.then(|| directory.to_path_buf());
        let options = match options {
            Some(options) => {
                super::check_options(model, options)?;
                same_data(&own, options)?.clone()
            }
            None => own,
        };
        let progress = Counters::from_fields(&object(&json, "progress")?)?;
        progress.check(&options).map_err(|message| json.invalid("progress", &message))?;
        let (dropout, seed): (f32, u64) = (number(&json, "dropout")?, number(&json, "seed")?);
        if !(0.0..1.0).contains(&dropout) {
            return Err(json.invalid("dropout", &format!("expected at least 0 and below 1, found {dropout}")));
        }
        let naming = Naming { prefix: text(&json, "prefix")?, as_stored: json.flag("as_stored", false)? };
        let plan = PeftPlan::read(model.transformer(), text(&json, "adapter_config")?, naming)?;

        let groups = if progress.micro > 0 { &GROUPS[..] } else { &GROUPS[..3] };
        let (expected, found) = (groups.len() * plan.modules.len() * 2, file.names().len());
        if expected != found {
            return Err(Error::format(format!("{FILE}: expected {expected} tensors, found {found}")));
        }
        let mut read = |group: &str| -> Result<Vec<f32>> {
            let mut all = super::zeros(&plan)?;
            for trained in &plan.modules {
                for (field, shape, range) in fields(trained) {
                    let name = tensor_name(group, &trained.module, field);
                    all[range].copy_from_slice(&values(&mut file, &name, shape)?);
                }
            }
            Ok(all)
        };
        let (weights, first, second) = (read(GROUPS[0])?, read(GROUPS[1])?, read(GROUPS[2])?);
        let gradients = if progress.micro > 0 { Some(read(GROUPS[3])?) } else { None };
        if second.iter().any(|x| *x < 0.0) {
            return Err(Error::format(format!("{FILE}: second_moments: expected numbers from 0, found a negative one")));
        }
        let upload = |values| ParameterValues::new(values, model.device().backend());
        let (state, gradients) = model.device().work(|| {
            let state = Optimized { values: upload(weights)?, first: upload(first)?, second: upload(second)? };
            Ok((state, gradients.map(upload).transpose()?))
        })?;
        remove_parts(directory);
        remove_parts(&directory.join(BEST));
        Ok(Self { model: model.clone(), plan, dropout, seed, options, state, gradients, progress })
    }
}

impl Counters {
    /// Whether these numbers can be; else what is wrong with them.
    fn check(&self, options: &TrainOptions) -> std::result::Result<(), String> {
        let counters = [
            ("step", self.step, MOST),
            ("micro_steps", self.micro_steps, MOST),
            ("micro", self.micro as u64, options.grad_accumulation as u64 - 1),
            ("targets", self.targets, MOST),
            ("epoch", self.epoch as u64, MOST_EPOCHS),
            ("position", self.position as u64, MOST),
            ("first_step", self.first_step, self.step),
            ("epoch_steps", self.epoch_steps, MOST),
            ("stale_evals", self.stale_evals, MOST),
        ];
        if let Some((name, found, most)) = counters.into_iter().find(|(_, found, most)| found > most) {
            return Err(format!("{name}: expected at most {most}, found {found}"));
        }
        let numbers = [("loss_sum", self.loss_sum), ("loss", self.loss), ("grad_norm", self.grad_norm)];
        if let Some((name, found)) = numbers.into_iter().find(|(_, found)| !found.is_finite()) {
            return Err(format!("{name}: expected a finite number, found {found}"));
        }
        if self.pending && self.step == 0 {
            return Err("pending: expected none before the first step, found one".to_string());
        }
        if self.best_loss.is_nan() {
            return Err("best_loss: expected a number, found NaN".to_string());
        }
        Ok(())
    }
}

/// The new options, if a step sees the same data with them.
fn same_data<'a>(old: &TrainOptions, new: &'a TrainOptions) -> Result<&'a TrainOptions> {
    let decisive = |options: &TrainOptions| {
        [
            ("batch_size", options.batch_size.to_string()),
            ("grad_accumulation", options.grad_accumulation.to_string()),
            ("weighting", format!("{:?}", options.weighting)),
            ("max_length", options.max_length.to_string()),
            ("mask_prompt", options.mask_prompt.to_string()),
            ("seed", options.seed.to_string()),
        ]
    };
    for ((name, old), (_, new)) in decisive(old).into_iter().zip(decisive(new)) {
        if old != new {
            return Err(Error::argument(format!("{name}: expected {old}, as in the checkpoint, found {new}")));
        }
    }
    Ok(new)
}

/// A tensor in F32 of this shape, with finite values.
fn values(file: &mut Checkpoint<'_>, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
    let entry = file.entry(name).ok_or_else(|| Error::format(format!("{FILE}: {name}: expected this tensor, found none")))?;
    if entry.shape != shape || entry.stored != Ok(Format::F32) {
        let (shape_found, found) = (&entry.shape, &entry.stored);
        return Err(Error::format(format!(
            "{FILE}: {name}: expected F32 of shape {shape:?}, found {found:?} of {shape_found:?}"
        )));
    }
    // The file holds so many bytes, and so does the address space.
    let mut bytes = zeros(shape[0] * shape[1] * size_of::<f32>())?;
    file.read(name, 0, &mut bytes)?;
    let values = Format::F32.try_widen(&bytes)?;
    match values.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::format(format!("{FILE}: {name}: expected finite values, found {} at {at}", values[at]))),
        None => Ok(values),
    }
}
