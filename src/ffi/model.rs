//! Models: load one, ask what it is, write one.
//!
//! A model is a directory with config.json, safetensors and tokenizer.json, a GGUF file, or a repository on Hugging Face. It is immutable:
//! any number of sessions share one. Without options it is loaded onto the best device with its weights as they are stored; the options,
//! behind the calls, choose a device, quantise while loading, tell how far a load is, and stop it.
//!
//! @snippet inspect.c load
//! @see @ref generate, @ref session, @ref device, @ref tokenizer
//!
//! Threads: any. A model is used concurrently. Options are set by one thread at a time, with the functions that take them without `const`,
//! and then used concurrently.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::callback::HostProgress;
use super::cancel::{given_cancel, mc_cancel};
use super::device::mc_device;
use super::error::{mc_error, mc_status};
use super::handle::{Builder, Given, Object, Out, OutHandle, free, inert, new_handle, optional, retain};
use super::text::{self, Text, empty, optional_content, optional_name};
use super::values::{mc_string, mc_tokens};
use crate::engine::options::{Fields, OptionValue};
use crate::error::Result;
use crate::{Capability, Dtype, LoadOptions, Model, ProgressFn, Stage, architectures, estimate_memory};

/// The type that weights are kept in.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_dtype {
    /// As stored in the file.
    MC_DTYPE_DEFAULT = 0,
    /// 32-bit floating point.
    MC_DTYPE_F32 = 1,
    /// 16-bit IEEE floating point.
    MC_DTYPE_F16 = 2,
    /// 16-bit brain floating point.
    MC_DTYPE_BF16 = 3,
    /// Not a value: makes the enum 32 bits wide.
    MC_DTYPE_FORCE32 = 0x7fff_ffff,
}

/// Which part of a long call is running, and what `done` and `total` of mc_progress_event count.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_stage {
    /// Downloading files; bytes.
    MC_STAGE_DOWNLOAD = 1,
    /// Reading weights; bytes.
    MC_STAGE_READ = 2,
    /// Reading weights and quantising them, in place of MC_STAGE_READ; bytes that are read.
    MC_STAGE_QUANTIZE = 3,
    /// Compiling the device's kernels; kernels.
    MC_STAGE_COMPILE = 4,
    /// Evaluating the prompt; tokens.
    MC_STAGE_PREFILL = 5,
    /// Texts become vectors; counted in texts.
    MC_STAGE_EMBED = 6,
    /// Writing a model; bytes.
    MC_STAGE_WRITE = 7,
    /// Not a value: makes the enum 32 bits wide.
    MC_STAGE_FORCE32 = 0x7fff_ffff,
}

/// What a model can be asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_capability {
    /// Generating text.
    MC_CAPABILITY_GENERATE = 1,
    /// Embedding text.
    MC_CAPABILITY_EMBED = 2,
    /// Running with LoRA adapters.
    MC_CAPABILITY_LORA = 3,
    /// Training LoRA adapters.
    MC_CAPABILITY_TRAIN = 4,
    /// Rendering conversations: the model's files have a chat template.
    MC_CAPABILITY_CHAT_TEMPLATE = 5,
    /// Scores of how well documents answer a query: mc_rerank().
    MC_CAPABILITY_RERANK = 6,
    /// Not a value: makes the enum 32 bits wide.
    MC_CAPABILITY_FORCE32 = 0x7fff_ffff,
}

/// How far a long call is. Fields are only ever added at the end.
#[repr(C)]
pub struct mc_progress_event {
    /// Bytes of this struct as the library knows it.
    pub struct_size: usize,
    /// Which part of the call is running.
    pub stage: mc_stage,
    /// How much of it is done, in the unit of the stage.
    pub done: u64,
    /// How much there is to do; 0 = not known.
    pub total: u64,
}

/// Hears how far a call is. Called on the thread of that call, before it returns.
///
/// @param user_data  what was given with the callback.
/// @param event      valid during the call.
/// @return MC_CONTINUE to go on; everything else stops: loading ends with MC_CANCELLED, a generation with MC_OK and
///         MC_FINISH_CALLBACK.
pub type mc_progress_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, event: &mc_progress_event) -> i32>;

/// How to load a model: a builder. A bad value is remembered and reported by the first call that uses the options, as
/// MC_ERROR_INVALID_ARGUMENT with the field, the value and what was expected. Can be used many times.
pub struct mc_model_options {
    _opaque: [u8; 0],
}

/// A loaded model: its network, tokenizer, chat template and generation defaults. Immutable.
pub struct mc_model {
    _opaque: [u8; 0],
}

#[derive(Clone, Default)]
pub(super) struct ModelOptions {
    load: LoadOptions,
    progress: HostProgress,
}

pub(super) struct ModelState {
    pub(super) model: Model,
    architecture: Text,
}

impl ModelState {
    pub(super) fn new(model: Model) -> Self {
        Self { architecture: Text::line(model.architecture()), model }
    }
}

impl Object for mc_model_options {
    const NAME: &'static str = "mc_model_options";
    type Inner = Builder<ModelOptions>;
}

impl Object for mc_model {
    const NAME: &'static str = "mc_model";
    type Inner = ModelState;
}

impl Enumeration for mc_dtype {
    const NAME: &'static str = "mc_dtype";
    type Meaning = Option<Dtype>;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_DTYPE_DEFAULT, None),
        (Self::MC_DTYPE_F32, Some(Dtype::F32)),
        (Self::MC_DTYPE_F16, Some(Dtype::F16)),
        (Self::MC_DTYPE_BF16, Some(Dtype::BF16)),
    ];
}

impl Enumeration for mc_capability {
    const NAME: &'static str = "mc_capability";
    type Meaning = Capability;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_CAPABILITY_GENERATE, Capability::Generate),
        (Self::MC_CAPABILITY_EMBED, Capability::Embed),
        (Self::MC_CAPABILITY_LORA, Capability::Lora),
        (Self::MC_CAPABILITY_TRAIN, Capability::Train),
        (Self::MC_CAPABILITY_CHAT_TEMPLATE, Capability::ChatTemplate),
        (Self::MC_CAPABILITY_RERANK, Capability::Rerank),
    ];
}

impl From<Dtype> for mc_dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::MC_DTYPE_F32,
            Dtype::F16 => Self::MC_DTYPE_F16,
            Dtype::BF16 => Self::MC_DTYPE_BF16,
        }
    }
}

impl From<Stage> for mc_stage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Download => Self::MC_STAGE_DOWNLOAD,
            Stage::Read => Self::MC_STAGE_READ,
            Stage::Quantize => Self::MC_STAGE_QUANTIZE,
            Stage::Compile => Self::MC_STAGE_COMPILE,
            Stage::Prefill => Self::MC_STAGE_PREFILL,
            Stage::Embed => Self::MC_STAGE_EMBED,
            Stage::Write => Self::MC_STAGE_WRITE,
        }
    }
}

/// Loads a model from this machine. Files are checked: a missing, left over or wrongly shaped tensor is an error that names it.
///
/// A GGUF file, as llama.cpp writes them, is the model that it was made from: the same names of tensors, so that the same
/// adapters fit, and a config.json, tokenizer, chat template and sampling from its metadata. Architectures: arcee, bert,
/// chatglm, cohere2, command-r, ernie4_5, eurobert, exaone4, falcon-h1, gemma, gemma-embedding, gemma2, gemma3, gemma4, glm4, gpt-oss,
/// granite, granite_swa, granitehybrid, granitemoe, hunyuan-dense, lfm2, lfm2moe, llama (Mixtral too), mistral3, modern-bert,
/// nemotron, nemotron_h, nemotron_h_moe, nomic-bert, olmo, olmo2, olmoe, phi2, phi3, qwen2, qwen3, qwen35, qwen35moe, qwen3moe,
/// seed_oss, smollm3, stablelm, starcoder2. Every tensor type of weights is read. On the CPU quantised ones stay as large as in the
/// file, with products as mc_model_options_set_exact() says. On a GPU they stay quantised too, in the nearest format that its kernels
/// decode: codes are the file's, scales and mins become F16, and a code takes 4, 5, 6 or 8 bits. There rows of no whole 32 columns
/// are widened: mc_model_estimate_memory() says what that takes.
///
/// Of safetensors, matrices that MLX, FP8, AWQ, GPTQ without act order or compressed-tensors have quantised are read as well. On
/// the CPU they stay about as large as in the files, with the very values that these stand for: those of MLX in four bits of any
/// kind, and, where their scales are exact in F16 and shared by multiples of 32 columns, all of MLX, AWQ, and GPTQ and
/// compressed-tensors in 4 and 8 bits. The others are widened, floats of eight bits to BF16 if that holds them, else to F32. A GPU
/// has them as it has those of GGUF files.
///
/// @param path     a directory with config.json, safetensors and tokenizer.json; or a .gguf file, of a model in several
///                 files the first; or a directory with such a file and no config.json, of several the one that
///                 mc_model_options_set_file() names.
/// @param options  how to load it; NULL = the defaults.
/// @param out      receives one reference; free it with mc_model_free().
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_CANCELLED; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND, MC_ERROR_IO or MC_ERROR_FORMAT for a file;
///         MC_ERROR_UNSUPPORTED for an architecture or setting; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE;
///         MC_ERROR_SUSPENDED.
///
/// Threads: any; it runs on the calling thread and takes seconds.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_load(
    path: MaybeUninit<&c_char>,
    options: *const mc_model_options,
    out: MaybeUninit<&mut *mut mc_model>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || load(&path, "path", options, out, |path, options, progress| Model::load(path, options, progress)))
}

/// Loads a model from Hugging Face: downloads the files that are not in the cache, then does as mc_model_load().
///
/// @param repo_id  "owner/name".
/// @param options  how to load it, and the revision, cache and token; NULL = the defaults.
/// @param out      receives one reference; free it with mc_model_free().
/// @param err      NULL, or receives the error.
/// @return as mc_model_load(); MC_ERROR_NETWORK if a download fails, MC_ERROR_NOT_FOUND if there is no such repository,
///         revision or file, or it is private and no token opens it, MC_ERROR_UNSUPPORTED in a build without the feature "hub".
///
/// Threads: any; it runs on the calling thread and takes as long as the download.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_load_hub(
    repo_id: MaybeUninit<&c_char>,
    options: *const mc_model_options,
    out: MaybeUninit<&mut *mut mc_model>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || load(&repo_id, "repo_id", options, out, Model::load_hub))
}

/// The same steps for a path and for a repository.
fn load(
    source: &MaybeUninit<&c_char>,
    source_name: &str,
    options: *const mc_model_options,
    out: MaybeUninit<&mut *mut mc_model>,
    load: impl FnOnce(&str, &LoadOptions, Option<&mut ProgressFn<'_>>) -> Result<Model>,
) -> Result<mc_status> {
    let out = OutHandle::new(out, "out")?;
    let source = text::name(source, source_name)?;
    let options = load_options(options)?;
    let mut progress = options.progress.closure();
    let model = load(source, &options.load, progress.as_mut().map(|progress| progress as &mut ProgressFn<'_>))?;
    out.set(ModelState::new(model));
    Ok(mc_status::MC_OK)
}

/// How much memory a model takes, without loading it: weights, the KV cache of the whole context, and the workspace.
///
/// @param path     a model as for mc_model_load().
/// @param options  how it would be loaded; NULL = the defaults.
/// @param bytes    receives the estimate, in bytes.
/// @param err      NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8, MC_ERROR_NOT_FOUND, MC_ERROR_IO, MC_ERROR_FORMAT, MC_ERROR_UNSUPPORTED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_estimate_memory(
    path: MaybeUninit<&c_char>,
    options: *const mc_model_options,
    bytes: MaybeUninit<&mut u64>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let bytes = Out::new(bytes, "bytes")?;
        let path = text::name(&path, "path")?;
        bytes.set(estimate_memory(path, &load_options(options)?.load)?);
        Ok(mc_status::MC_OK)
    })
}

/// Writes a model as a directory in the layout of the Hub, which this library and transformers load: model.safetensors, config.json,
/// the tokenizer's files, and the settings of sentence-transformers where there are any. So a model that adapters were merged into
/// (mc_model_merge()) is kept.
///
/// Tensors have the bytes of the files that the model was loaded from, which must still be there; matrices that adapters were merged
/// into are F32. Quantised matrices are written as the numbers that they stand for, in F32 or `format`; what the model was quantised
/// to while loading is not looked at: its files have more. Buffers of other types than weights have are left out.
///
/// @param model      the model.
/// @param directory  is made, or is there and empty; it appears when all is written.
/// @param format     the type of all matrices but small ones such as norms: "f32", "f16" or "bf16"; NULL = as described.
/// @param progress   called with MC_STAGE_WRITE, on this thread; what is not MC_CONTINUE stops. NULL = nobody.
/// @param user_data  handed to `progress`; may be NULL.
/// @param err        NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT for a directory with files; MC_ERROR_UNSUPPORTED for another format; MC_ERROR_NOT_FOUND or
///         MC_ERROR_MISMATCH if the model's files are gone or others by now; MC_ERROR_FORMAT for a value beyond the range of `format`;
///         MC_ERROR_IO; MC_CANCELLED; MC_ERROR_INVALID_UTF8; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
///
/// Threads: any; it runs on the calling thread and may take seconds.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_save(
    model: MaybeUninit<&mc_model>,
    directory: MaybeUninit<&c_char>,
    format: *const c_char,
    progress: mc_progress_fn,
    user_data: *mut c_void,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        save(model, (&directory, "directory"), format, (progress, user_data), |model, path, format, progress| {
            model.save(path, format, progress)
        })
    })
}

/// Writes a model that was loaded from a GGUF file as one, which this library and llama.cpp load. A model in several files becomes one.
///
/// Tensors have the bytes of the file that the model was loaded from, which must still be there; matrices that adapters were merged
/// into are F32. Metadata stay as they are.
///
/// @param model      the model.
/// @param path       the file; one that is there is replaced, once all is written.
/// @param format     what matrices become that are not quantised, such as those that adapters were merged into: "f32", "f16", "bf16",
///                   "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0" or "iq4_nl", as mc_model_options_set_quantization() has them; NULL =
///                   as described. What is quantised and not merged into stays as it is.
/// @param progress   called with MC_STAGE_WRITE, on this thread; what is not MC_CONTINUE stops. NULL = nobody.
/// @param user_data  handed to `progress`; may be NULL.
/// @param err        NULL, or receives the error.
/// @return as mc_model_save(); MC_ERROR_UNSUPPORTED also for a model that was loaded from safetensors, and for an output matrix that
///         adapters made another one than the embedding where llama.cpp reads none (Cohere, Gemma and Gemma 2).
///
/// Threads: any; it runs on the calling thread and may take seconds.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_save_gguf(
    model: MaybeUninit<&mc_model>,
    path: MaybeUninit<&c_char>,
    format: *const c_char,
    progress: mc_progress_fn,
    user_data: *mut c_void,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        save(model, (&path, "path"), format, (progress, user_data), |model, path, format, progress| {
            model.save_gguf(path, format, progress)
        })
    })
}

/// Saves a model by one of the two ways.
fn save(
    model: MaybeUninit<&mc_model>,
    (path, name): (&MaybeUninit<&c_char>, &str),
    format: *const c_char,
    (function, user_data): (mc_progress_fn, *mut c_void),
    save: impl Fn(&Model, &str, Option<&str>, Option<&mut ProgressFn<'_>>) -> Result<()>,
) -> Result<mc_status> {
    let model = model.get("model")?;
    let (path, format) = (text::name(path, name)?, text::optional_name(format, "format")?);
    let mut progress = HostProgress::new(function, user_data).closure();
    save(&model.model, path, format, progress.as_mut().map(|progress| progress as &mut ProgressFn<'_>))?;
    Ok(mc_status::MC_OK)
}

/// Adds a reference to a model, for a second owner; each reference is dropped with mc_model_free().
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_retain(model: MaybeUninit<&mc_model>) {
    guard_or((), || retain(model.pointer(), "model"));
}

/// Drops a reference to a model. Sessions keep what they need of it.
///
/// @param model  the model, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_free(model: *mut mc_model) {
    guard_or((), || free(model, "model"));
}

/// The model's architecture, as `model_type` of config.json has it, such as "qwen2".
///
/// @param model  the model.
/// @return UTF-8, NUL-terminated, valid until the model is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_architecture(model: MaybeUninit<&mc_model>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(model.lend("model")?.architecture.pointer()))
}

/// The tokens that end an answer, as the model's files name them.
///
/// @param model  the model.
/// @param out    receives their ids, the usual one first, none if no file names one; free it with mc_tokens_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_eos_tokens(
    model: MaybeUninit<&mc_model>,
    out: MaybeUninit<&mut *mut mc_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(model.get("model")?.model.eos_tokens().to_vec());
        Ok(mc_status::MC_OK)
    })
}

/// The architectures that this build knows, decoders and encoders.
///
/// @param out  receives a JSON array of texts in alphabetical order, as `model_type` of config.json has them; free it with
///             mc_string_free().
/// @param err  NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_architectures_json(out: MaybeUninit<&mut *mut mc_string>, err: *mut *mut mc_error) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(serde_json::Value::from_iter(architectures()).to_string()));
        Ok(mc_status::MC_OK)
    })
}

/// The longest context of a session, in tokens.
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_context_length(model: MaybeUninit<&mc_model>) -> usize {
    guard_or(0, || Ok(model.get("model")?.model.context_length()))
}

/// How many token ids the network knows: the number of logits.
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_vocab_size(model: MaybeUninit<&mc_model>) -> usize {
    guard_or(0, || Ok(model.get("model")?.model.vocab_size()))
}

/// The width of the network, in numbers a token.
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_hidden_size(model: MaybeUninit<&mc_model>) -> usize {
    guard_or(0, || Ok(model.get("model")?.model.hidden_size()))
}

/// How many layers the network has.
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_layer_count(model: MaybeUninit<&mc_model>) -> usize {
    guard_or(0, || Ok(model.get("model")?.model.layer_count()))
}

/// How many weights the network has; shared ones count once.
///
/// @param model  the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_parameter_count(model: MaybeUninit<&mc_model>) -> u64 {
    guard_or(0, || Ok(model.get("model")?.model.parameter_count()))
}

/// The type of the weights as loaded; of a quantised model, of those that are not quantised.
///
/// @param model  the model.
/// @return never MC_DTYPE_DEFAULT, except for a wrong handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_dtype(model: MaybeUninit<&mc_model>) -> mc_dtype {
    guard_or(mc_dtype::MC_DTYPE_DEFAULT, || Ok(model.get("model")?.model.dtype().into()))
}

/// Whether a model can be asked for something.
///
/// @param model       the model.
/// @param capability  what for.
/// @return false for a number that is no capability.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_supports(model: MaybeUninit<&mc_model>, capability: MaybeUninit<mc_capability>) -> bool {
    guard_or(false, || {
        let capability = checked(capability, "capability")?;
        Ok(model.get("model")?.model.supports(capability))
    })
}

/// The model's configuration: config.json as it was read, or as it follows from the metadata of a GGUF file.
///
/// @param model  the model.
/// @param out    receives one reference; free it with mc_string_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_config_json(
    model: MaybeUninit<&mc_model>,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(model.get("model")?.model.config_json()));
        Ok(mc_status::MC_OK)
    })
}

/// What computes which part of the model: what of it runs by the library's own kernels on this device, and how its weights are kept.
///
/// A JSON object such as
/// {"device": "CUDA 0", "prompts": "tensors", "single_tokens": "kernels", "weights": {"BF16": 136134656, "four": 357826560}}:
///
/// - device: its name.
/// - prompts: what evaluates several tokens at once, and texts: "kernels", the library's own, or "tensors", candle's products with
///   the library's kernels between them.
/// - prompts_lack: in words, why tensor operations stand instead of those kernels: the compiler's message, where the system does not
///   compile them.
/// - single_tokens: what evaluates the tokens of an answer; absent where the model gives none.
/// - lacks: what of the model the kernels of its GPU lack, in words, where single tokens are evaluated by tensors for it; also that
///   the system does not compile them, with the compiler's message.
/// - unproved: in words, that kernels which are used have not run on this kind of device yet: on Metal, whose kernels are type-checked.
/// - weights: how many are kept in each format, norms and biases apart. "F32", "F16", "BF16" are numbers. On the CPU others are those of
///   GGUF files, and of MLX ("affine4_64": bits, and weights of a scale); on a GPU those of its kernels: "four", "five", "six" and
///   "eight" bits with a scale and an offset of 16 bits each, "..._sym" with a scale alone, "table" with sixteen levels and a scale,
///   "..._16" where sixteen weights share one.
///
/// Later versions may add fields and formats.
///
/// @param model  the model.
/// @param out    receives one reference; free it with mc_string_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_backend_json(
    model: MaybeUninit<&mc_model>,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(model.get("model")?.model.backend_json()));
        Ok(mc_status::MC_OK)
    })
}

/// Makes load options: best device, weights as stored, the model's own context, the tokenizer beside the weights.
///
/// @return one reference; free it with mc_model_options_free().
#[unsafe(no_mangle)]
pub extern "C" fn mc_model_options_new() -> NonNull<mc_model_options> {
    guard_or(inert(), || Ok(new_handle(Builder::new(ModelOptions::default()))))
}

fn set(options: MaybeUninit<&mut mc_model_options>, setter: impl FnOnce(&mut LoadOptions) -> Result<()>) {
    guard_or((), || options.get("options")?.set(|options| setter(&mut options.load)));
}

fn set_field(options: MaybeUninit<&mut mc_model_options>, name: &str, value: impl Into<OptionValue>) {
    set(options, |load| load.set_field(name, value.into()));
}

/// Sets options from JSON, each as its setter does, in the order in which they are written.
///
/// `dtype`: "f32", "f16" or "bf16". `tokenizer_path`, `quantization`, `kv_cache`, `file`, `hub_cache_dir`, `hub_revision`, `hub_token`:
/// texts. `exact`, `offline`: true or false. `max_context`: a number. What is a handle or a callback has its setter alone.
///
/// @param options   the options.
/// @param json      an object, UTF-8, such as `{"quantization": "q4_k_m", "max_context": 8192}`; a member that is null has its default
///                  again. Bad values are what is no such object, is longer than a mebibyte or nested deeper than 128 levels, a name that
///                  stands in an object twice or is none of these, and a value of another type or out of its setter's range. NULL = all of
///                  these have their defaults again.
/// @param json_len  bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_json(
    options: MaybeUninit<&mut mc_model_options>,
    json: *const c_char,
    json_len: usize,
) {
    set(options, |load| load.set_fields(optional_content(json, json_len, "json")?));
}

/// Where the model runs.
///
/// @param options  the options.
/// @param device   the device; the options keep it alive. NULL (the default) = the best one, as MC_DEVICE_AUTO.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_device(options: MaybeUninit<&mut mc_model_options>, device: *const mc_device) {
    set(options, |load| {
        load.device = optional(device, "device")?.map(|device| device.device.clone());
        Ok(())
    });
}

/// The type to keep weights in.
///
/// @param options  the options.
/// @param dtype    the type; MC_DTYPE_DEFAULT (the default) = as stored. On the CPU quantised weights of the files are widened to
///                 it; on a GPU they stay quantised, and it is the type that prompts are computed in: F32 by default
///                 where the embedding is quantised; MC_DTYPE_BF16 takes half the memory for what of a matrix is decoded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_dtype(options: MaybeUninit<&mut mc_model_options>, dtype: MaybeUninit<mc_dtype>) {
    set(options, |load| {
        load.dtype = checked(dtype, "dtype")?;
        Ok(())
    });
}

/// Another tokenizer than the model's, or one for a directory without.
///
/// @param options  the options.
/// @param path     a tokenizer.json, a directory with one, or a .gguf file; NULL (the default) = the model's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_tokenizer_path(options: MaybeUninit<&mut mc_model_options>, path: *const c_char) {
    set(options, |load| load.set_text("tokenizer_path", optional_name(path, "tokenizer_path")?));
}

/// Asks for weights that are quantised while loading, to take less memory. This version does it on every device.
///
/// | kind | in each row of a matrix | bits a weight |
/// | --- | --- | --- |
/// | "q8_0" | 32 neighbours become a byte each and a common 16-bit scale | 8.5 |
/// | "q6_k" | six bits, scales of two levels for 16 neighbours | 6.6 |
/// | "q5_k_m" | five bits, scales and mins of two levels for 32 | 5.6, and 6.6 |
/// | "q4_k_m" | four bits, scales and mins of two levels for 32 | 4.6, and 6.6 |
/// | "q4_0" | four bits and a common 16-bit scale of 32 | 4.5 |
/// | "iq4_nl" | four bits, levels that lie closer around zero, a 16-bit scale of 32 | 4.5 |
/// | "mlx4" | four bits, a 16-bit scale and bias of 64, as mlx_lm converts | 4.5 |
///
/// Formats are ggml's and MLX's. "q5_k_m" and "q4_k_m" are mixes of llama.cpp: the value and down projections of half of the layers
/// and the output matrix have six bits, which the output matrix has with "q4_0" and "iq4_nl" too. Rows that are no whole blocks
/// of 256 have the next finer format of 32 (Q5_0, Q5_1, Q8_0), those of no whole blocks at all F16, or with "q8_0" a shorter block.
/// On a GPU scales and mins are rounded to F16, and rows of no whole 32 columns keep the type of mc_model_options_set_dtype().
///
/// That goes for all projections, the output matrix, and an embedding that is one with it. Tables that are only looked
/// up, norms, biases and the layers behind the pooling of a sentence embedder keep the type of
/// mc_model_options_set_dtype(). Such a model generates, embeds, takes adapters and trains them as any other; a merge
/// makes the matrices that it changes F32. An mc_lora, a saved session or a checkpoint is for a model of the same kind;
/// an adapter's directory is for all.
///
/// @param options  the options.
/// @param kind     one of these; NULL (the default) = as stored. Weights that the files hold quantised in another way are widened
///                 and quantised once more. Loading returns MC_ERROR_UNSUPPORTED for another kind, naming
///                 what there is; MC_ERROR_FORMAT for a weight that is not finite or too large for its scale in
///                 F16, which none up to 65504 is, with "q8_0" none up to 8.3 million.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_quantization(options: MaybeUninit<&mut mc_model_options>, kind: *const c_char) {
    set(options, |load| load.set_text("quantization", optional_name(kind, "quantization")?));
}

/// Computes in F32 with quantised weights on the CPU, as if they were stored as the F32 that they stand for.
///
/// By default activations are rounded for products with quantised weights: in each row 32 neighbours share a scale and become
/// eight bits each, sixteen where weights have more than four; matrices of fewer than 512 columns whose weights have no more
/// are left out. That is two to four times as fast, and changes logits less than quantising has changed them. Weights in F32,
/// F16 and BF16 are always exact, and so is training: an adapter that is trained over quantised weights gives exactly what
/// training has seen in a model that was loaded with this.
///
/// @param options  the options.
/// @param value    true = exact; false (the default) = fast. A saved session is for a model that was loaded the same way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_exact(options: MaybeUninit<&mut mc_model_options>, value: bool) {
    set_field(options, "exact", value);
}

/// The type in which sessions of this model keep the keys and values of tokens, the KV cache: the memory that grows with a context.
///
/// "f32" keeps them as they are computed; on a GPU that is the type of mc_model_options_set_dtype(). "f16" rounds each value to
/// the nearest, in half of the memory of "f32"; a value beyond 65504 becomes NaN, and the answer an error, where the largest
/// number in its place would change it in silence. "q8_0", on the CPU, takes 0.27 of "f32": in each head, 32 neighbours become
/// a byte each and a common 16-bit scale, as in ggml; all of them become NaN if one is not finite or is beyond 8.3 million.
/// Arithmetic stays as it is. A value is rounded once, when its token is evaluated: on the CPU a prompt at once, in chunks or
/// token by token, and sessions that go on together, have the same bits with each type. Training and embeddings keep nothing,
/// and do not change.
///
/// @param options  the options.
/// @param kind     "f32", "f16" or "q8_0"; NULL (the default) = "f32". Loading returns MC_ERROR_UNSUPPORTED for another kind, naming
///                 what there is, for "q8_0" on a GPU, and for "f16" and "q8_0" where a model only embeds. A saved session is
///                 for a model with the same kind, else mc_session_load() returns MC_ERROR_MISMATCH, naming both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_kv_cache(options: MaybeUninit<&mut mc_model_options>, kind: *const c_char) {
    set(options, |load| load.set_text("kv_cache", optional_name(kind, "kv_cache")?));
}

/// The longest context that sessions of this model may have.
///
/// @param options  the options.
/// @param value    tokens; 0 (the default) = what the model's configuration says. More than that extrapolates, at a cost in
///                 quality.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_max_context(options: MaybeUninit<&mut mc_model_options>, value: usize) {
    set_field(options, "max_context", value);
}

/// Where mc_model_load_hub() keeps what it downloads.
///
/// @param options  the options.
/// @param value    a directory, in the layout of Hugging Face's own cache. NULL (the default) = theirs, in the home directory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_hub_cache_dir(options: MaybeUninit<&mut mc_model_options>, value: *const c_char) {
    set(options, |load| load.set_text("hub_cache_dir", optional_name(value, "hub_cache_dir")?));
}

/// Which GGUF file is loaded of a directory or a repository that has several.
///
/// @param options  the options.
/// @param value    its name, "model-Q4_K_M.gguf"; that of the first part of a split model. NULL (the default) = the safetensors, or the one
///                 GGUF file there is; of several in a repository the one whose name says Q4_K_M.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_file(options: MaybeUninit<&mut mc_model_options>, value: *const c_char) {
    set(options, |load| load.set_text("file", optional_name(value, "file")?));
}

/// Which revision of a repository mc_model_load_hub() loads.
///
/// @param options  the options.
/// @param value    a branch, tag or commit. NULL (the default) = "main".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_hub_revision(options: MaybeUninit<&mut mc_model_options>, value: *const c_char) {
    set(options, |load| load.set_text("hub_revision", optional_name(value, "hub_revision")?));
}

/// The access token for private and gated repositories.
///
/// @param options  the options.
/// @param value    the token; NULL (the default) = none. Tokens stored on this machine are not looked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_hub_token(options: MaybeUninit<&mut mc_model_options>, value: *const c_char) {
    set(options, |load| load.set_text("hub_token", optional_name(value, "hub_token")?));
}

/// Whether mc_model_load_hub() must do with what was downloaded before.
///
/// @param options  the options.
/// @param offline  true = no network; a file that is not in the cache is MC_ERROR_NOT_FOUND. Default: false.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_offline(options: MaybeUninit<&mut mc_model_options>, offline: bool) {
    set_field(options, "offline", offline);
}

/// A flag that stops loading.
///
/// @param options  the options.
/// @param cancel   the flag; the options keep it alive. NULL (the default) = none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_cancel(options: MaybeUninit<&mut mc_model_options>, cancel: *const mc_cancel) {
    set(options, |load| {
        load.cancel = given_cancel(cancel)?;
        Ok(())
    });
}

/// Who hears how far loading is.
///
/// @param options    the options.
/// @param progress   called during a load, on its thread; NULL (the default) = nobody.
/// @param user_data  handed to `progress`; may be NULL. Must live until the last load with these options is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_set_progress(
    options: MaybeUninit<&mut mc_model_options>,
    progress: mc_progress_fn,
    user_data: *mut c_void,
) {
    guard_or((), || {
        options.get("options")?.set(|options| {
            options.progress = HostProgress::new(progress, user_data);
            Ok(())
        })
    });
}

/// Frees options; a load that uses them goes on.
///
/// @param options  the options, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_options_free(options: *mut mc_model_options) {
    guard_or((), || free(options, "options"));
}

fn load_options(options: *const mc_model_options) -> Result<ModelOptions> {
    match optional(options, "options")? {
        Some(options) => options.options(),
        None => Ok(ModelOptions::default()),
    }
}
