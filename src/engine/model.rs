//! A loaded model: its network, tokenizer, chat template and generation defaults. Immutable, cheap to clone, shared by
//! any number of sessions on any threads.
//!
//! ```
//! use metal_candle::{LoadOptions, Model};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//! assert_eq!((model.architecture(), model.context_length(), model.vocab_size()), ("qwen2", 1024, 4096));
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::constraint::Vocabulary;
use super::device::check_threads;
use super::embed::{self, Embedder};
use super::files::Files;
use super::options::{Field, Fields, OptionRange, builders, field, limit_field, word_field};
use super::rerank::{Reranker, load_head};
use super::sampling::Sampling;
use super::save::LoadedFrom;
use super::tokenizer::gives_types;
use super::{Cancel, ChatTemplate, Device, DeviceKind, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{ModelTensors, ModuleConfig, fnv};
use crate::models::{self, Family};
use crate::nn::{Changed, Config, Prefix, RowAdapters, States, Step, Transformer, Weights};
use crate::ops::{Arithmetic, Format, KvFormat, Unsupported};

/// The type that weights are stored in. On the CPU arithmetic is F32 with each of them (with quantised weights see
/// [`LoadOptions::exact`]); on a GPU it has this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, 10 of them fraction.
    F16,
    /// 16 bits with the range of F32.
    BF16,
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Text generation: an encoder cannot, nor can a checkpoint without an output matrix.
    Generate,
    /// Sentence embeddings: every model with a tokenizer.
    Embed,
    /// LoRA adapters.
    Lora,
    /// Training of adapters.
    Train,
    /// Conversations by a chat template of its own.
    ChatTemplate,
    /// Scores of how well documents answer a query.
    Rerank,
}

/// Which part of a long call is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Files come from the Hub.
    Download,
    /// Weights are read.
    Read,
    /// Weights are read and quantised: of a model that is quantised, in place of `Read`.
    Quantize,
    /// Kernels are compiled.
    Compile,
    /// The prompt is evaluated.
    Prefill,
    /// Texts become vectors.
    Embed,
    /// A model is written.
    Write,
}

/// How far a stage is: bytes of the files for `Download`, `Read`, `Quantize` and `Write`, kernels for `Compile`, tokens for `Prefill`, texts for `Embed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}

/// Called with each progress; `Break` stops the work.
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// How to load a model. The default: best device, weights as stored, the tokenizer beside the weights.
///
/// ```
/// use metal_candle::LoadOptions;
/// let options = LoadOptions::default().quantization("q4_k_m").max_context(4096);
/// assert_eq!(options.max_context, Some(4096));
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// `None` = [`DeviceKind::Auto`].
    pub device: Option<Device>,
    /// `None` = as stored. On the CPU quantised weights of the files are widened to it; on a GPU they stay quantised, and it
    /// is the type that prompts are computed in, F32 where it is `None` and the embedding is quantised.
    pub dtype: Option<Dtype>,
    /// Another tokenizer.json, a directory with one, or a GGUF file.
    pub tokenizer_path: Option<PathBuf>,
    /// Quantise while loading the matrices for products (projections, the output matrix, and with it an embedding
    /// that it shares): to `q8_0`, `q6_k`, `q4_0` or `iq4_nl` as ggml has them, to the mixes `q5_k_m` or `q4_k_m` of llama.cpp, or to `mlx4`,
    /// MLX's four bits in groups of 64. The output matrix has six bits at least, but for `mlx4`. Rows that are no whole blocks of a
    /// format have the next finer one of shorter blocks, or F16. Tables that are only looked up, norms, biases and layers behind
    /// the pooling keep the type of `dtype`. Adapters act on the quantised weights and are F32 themselves; so is a matrix that one was
    /// merged into. What the files hold quantised in another way is widened and quantised once more.
    pub quantization: Option<String>,
    /// Compute in F32 with quantised weights on the CPU, as if they were stored as the F32 that they stand for: two to four times
    /// slower. By default activations are rounded for products with them: in each row 32 neighbours share a scale and become eight
    /// bits each, sixteen where weights have more than four; matrices of fewer than 512 columns whose weights have no more are
    /// left out. That changes logits less than quantising has changed them. Training computes in F32 whatever this says.
    pub exact: bool,
    /// What sessions keep keys and values of tokens in: `f32`, `f16` or `q8_0`; `None` = `f32`. On a GPU `f32` is the type of
    /// [`dtype`](Self::dtype), in which it computes.
    ///
    /// `f16` rounds each value to the nearest, once, and takes half. A value beyond 65504 becomes NaN and not the largest that there is:
    /// what attends to it is then no number, and generation reports it, where it would go on with another value.
    ///
    /// `q8_0`, on the CPU, takes 0.27 of `f32`: of each head 32 neighbours become a byte each and a common scale in F16, as in
    /// ggml; where the values of a head are no multiple of 32, its last block is shorter. A block with a value that is not finite or
    /// is beyond 8.3 million becomes NaN.
    ///
    /// Arithmetic is what it is without, over the values as they are kept; on the CPU the same bits come of any chunks, threads and
    /// company. A file of a session is for a model with the same type. A model that only embeds keeps nothing, and refuses `f16` and `q8_0`.
    pub kv_cache: Option<String>,
    /// The GGUF file of a directory or of a repository that has several. `None` = its safetensors, or the one GGUF file there is; of
    /// several in a repository the one whose name says `Q4_K_M`. A split model is named by its first part.
    pub file: Option<String>,
    /// Tokens; `None` = what the configuration says. A larger number than that extrapolates.
    pub max_context: Option<usize>,
    /// Where the Hub's files are kept, in the layout of the Hub's own client; `None` = its place, `.cache/huggingface/hub` in
    /// the home directory (`Library/Caches/huggingface/hub` on iOS). Environment variables that move it are not read.
    pub hub_cache_dir: Option<PathBuf>,
    /// Branch, tag or commit; `None` = `main`.
    pub hub_revision: Option<String>,
    /// For private and gated repositories; sent to the Hub only, never to the hosts it redirects to, and not logged.
    pub hub_token: Option<String>,
    /// Download by the crate hf-hub and not by the library's own client. It has no timeouts, stops between two files
    /// only, and takes neither a token nor a revision with other characters than letters, digits and `-._~/`.
    #[cfg(feature = "hf-hub")]
    pub hf_hub: bool,
    /// Use what is in the cache, and no network. Optional files that are not there count as not existing.
    pub offline: bool,
    /// Stops loading between two tensors, and a download between two blocks.
    pub cancel: Option<Cancel>,
}

builders!(LoadOptions {
    device: Device => Some(device),
    dtype: Dtype => Some(dtype),
    tokenizer_path: impl Into<PathBuf> => Some(tokenizer_path.into()),
    quantization: impl Into<String> => Some(quantization.into()),
    exact: bool,
    kv_cache: impl Into<String> => Some(kv_cache.into()),
    file: impl Into<String> => Some(file.into()),
    max_context: usize => Some(max_context),
    hub_cache_dir: impl Into<PathBuf> => Some(hub_cache_dir.into()),
    hub_revision: impl Into<String> => Some(hub_revision.into()),
    hub_token: impl Into<String> => Some(hub_token.into()),
    offline: bool,
    cancel: Cancel => Some(cancel),
});

#[cfg(feature = "hf-hub")]
builders!(LoadOptions { hf_hub: bool });

const DTYPES: &[(&str, Dtype)] = &[("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)];

impl Fields for LoadOptions {
    const NAME: &'static str = "mc_model_options";

    fn fields() -> &'static [Field<Self>] {
        const FIELDS: &[Field<LoadOptions>] = &[
            word_field!("dtype", DTYPES, dtype or nothing),
            field!("tokenizer_path", OptionRange::Text, tokenizer_path),
            field!("quantization", OptionRange::Text, quantization),
            field!("exact", OptionRange::Bool, exact),
            field!("kv_cache", OptionRange::Text, kv_cache),
            limit_field!("max_context", max_context),
            field!("file", OptionRange::Text, file),
            field!("hub_cache_dir", OptionRange::Text, hub_cache_dir),
            field!("hub_revision", OptionRange::Text, hub_revision),
            field!("hub_token", OptionRange::Text, hub_token),
            field!("offline", OptionRange::Bool, offline),
        ];
        FIELDS
    }
}

impl LoadOptions {
    /// Sets the fields that a JSON object has, by their names; `null` is a field's default. [`dtype`](Self::dtype) is `f32`, `f16` or
    /// `bf16`; a [`device`](Self::device) is not among them.
    ///
    /// # Errors
    /// As [`GenerateOptions::set_json`](crate::GenerateOptions::set_json).
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

/// A loaded model; clones are the same.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    family: &'static Family,
    transformer: Transformer,
    config_json: String,
    parameters: u64,
    dtype: Dtype,
    device: Device,
    tokenizer: Option<Tokenizer>,
    chat_template: ChatTemplate,
    eos: Vec<u32>,
    sampling: Sampling,
    fingerprint: u64,
    embedder: Arc<Embedder>,
    /// Why there is none otherwise.
    reranker: Arc<std::result::Result<Reranker, String>>,
    /// Where the rest of a saved model comes from.
    origin: LoadedFrom,
    /// See [`models::is_multiplied`].
    is_multiplied: bool,
    /// What adapters were merged into since.
    changed: Changed,
    /// Built with the first answer that keeps to a schema.
    vocabulary: OnceLock<Vocabulary>,
}

impl Model {
    /// Loads a directory in the layout of the Hub: config.json, model.safetensors or its shards, and, where there are any,
    /// generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja; or one in the layout of
    /// sentence-transformers, with modules.json; or a GGUF file (`.gguf`), of a model in several files the first, or a directory
    /// with such a file and without config.json, of several the one that [`LoadOptions::file`] names.
    ///
    /// A GGUF file is loaded as the directory of transformers that it was made from: names, rows and values of its tensors are
    /// transformers', so that the same adapters fit, and config.json, tokenizer, chat template and sampling follow from its
    /// metadata. On the CPU quantised matrices stay about as large as in the file, with products as [`LoadOptions::exact`] says. On
    /// a GPU they stay quantised too, in the nearest format that its kernels decode: codes are the file's, scales and mins become F16.
    /// There rows of no whole 32 columns are widened: [`estimate_memory`] says what that takes. Matrices of safetensors that MLX (affine), FP8, AWQ, GPTQ without act order or compressed-tensors have quantised are read as well.
    ///
    /// # Errors
    /// `NotFound` for a missing file, `Format` for one that contradicts itself or the model, `Unsupported` for an unknown
    /// family or a setting that is not implemented, `Cancelled`, `OutOfMemory`, `Device`, `Suspended`.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions, mut progress: Option<&mut ProgressFn<'_>>) -> Result<Self> {
        let mut files = Files::open(path.as_ref(), options)?;
        check_threads()?;
        let cancel = options.cancel.clone();
        cancel.as_ref().map_or(Ok(()), Cancel::check)?;
        let device = match &options.device {
            Some(device) => device.clone(),
            None => Device::new(DeviceKind::Auto, 0)?,
        };
        let stage = if files.quant.is_some() { Stage::Quantize } else { Stage::Read };
        let mut told = 0;
        let mut on_bytes = |done: u64, total: u64| {
            cancel.as_ref().map_or(Ok(()), Cancel::check)?;
            device.check()?;
            // A model has hundreds of small tensors; a caller wants a bar that moves.
            if done - told < total / 256 && done < total {
                return Ok(());
            }
            told = done;
            device.aside(|| tell(&mut progress, Progress { stage, done, total }))
        };
        let tokenizer = files.tokenizer(options)?;
        let chat_template = files.chat_template()?;
        let (eos, sampling) = (files.eos(tokenizer.as_ref())?, files.sampling()?);
        let special_tokens = files.special_tokens()?;
        let (tokenizer_config, limited) = (files.tokenizer_config.as_ref(), options.max_context.is_some());
        let embedder = device.work(|| {
            let (sentence, tokenizer, special) = (files.sentence.clone(), tokenizer.as_ref(), special_tokens.as_ref());
            Embedder::load(sentence, tokenizer, tokenizer_config, special, &files.config, device.backend(), limited)
        })?;

        let gives_types = gives_types(tokenizer_config, Some(&files.raw), files.family.model_type)?;

        let mut checkpoint = files.tensors(&mut on_bytes)?;
        let stored = stored_type(&*checkpoint, &files.config, &device, options);
        let backend = device.backend();
        // As what follows the pooling of an embedder, a head computes in F32 on every device.
        let head = device.work(|| {
            let mut weights = Weights::new(&mut *checkpoint, backend, Some(Format::F32));
            load_head(&files.sentence, &files.raw, &files.config, &mut weights)
        })?;
        let arithmetic = if options.exact { Arithmetic::F32 } else { Arithmetic::Int8 };
        let mut weights = Weights::new(&mut *checkpoint, backend, stored)
            .keeping_quantised(keeps_quantised(&device))
            .quantized(files.quant)
            .computing_in(arithmetic);
        head.skip_in(&mut weights);
        let transformer = device.work(|| Transformer::load(files.config, &mut weights))?.with_kv_format(files.kv_format);
        check_kv_format(&transformer, files.kv_format, files.family)?;
        let parameters = weights.parameters() + head.parameters;
        let tokens = (tokenizer.as_ref(), gives_types);
        let reranker = Reranker::new(&files.sentence, &files.raw, transformer.config(), tokens, head);
        let dtype = dtype_of(stored, &*checkpoint, transformer.config());
        // What was computed with rounded weights, or in another type, does not continue what was computed with whole ones; nor what
        // was computed by another configuration of the same weights.
        let kept = options.quantization.as_deref().unwrap_or_default();
        let exact = if options.exact { "exact" } else { "" };
        let fingerprint = [kept, exact, Format::from(dtype).name(), &files.config_json]
            .into_iter()
            .fold(checkpoint.fingerprint(), |hash, text| fnv(hash, text.as_bytes()));
        // What was not read (buffers of old checkpoints) counts as done.
        checkpoint.finish()?;
        let origin = LoadedFrom::new(path.as_ref(), options, &*checkpoint)?;
        drop(checkpoint);
        if backend.compiles_at_first_use() {
            warm_up(&transformer, &device, options, &mut progress)?;
        }
        let transformer = with_decode_step(transformer, &device)?;
        let model = Self(Arc::new(Inner {
            family: files.family,
            transformer,
            config_json: files.config_json,
            parameters,
            dtype,
            device,
            tokenizer,
            chat_template,
            eos,
            sampling,
            fingerprint,
            embedder: Arc::new(embedder),
            reranker: Arc::new(reranker),
            origin,
            is_multiplied: models::is_multiplied(&files.raw)?,
            changed: Changed::default(),
            vocabulary: OnceLock::new(),
        }));
        let (architecture, device) = (model.architecture(), model.device().name());
        log::info!("loaded {architecture}: {parameters} parameters, {dtype:?} on {device}");
        Ok(model)
    }

    /// Loads a repository of the Hub, `owner/name`, downloading what the cache lacks; then as [`load`](Self::load). Progress has
    /// the stage `Download` if anything is downloaded, and then those of `load`. A model that cannot be loaded is refused before its
    /// weights are downloaded. A call that is cancelled keeps the files that are whole.
    ///
    /// # Errors
    /// As [`load`](Self::load); `InvalidArgument` for a name or revision that cannot exist; `NotFound` for a repository,
    /// revision or file that does not; `Network`; `Unsupported` in a build without the `hub` feature.
    pub fn load_hub(repo_id: &str, options: &LoadOptions, progress: Option<&mut ProgressFn<'_>>) -> Result<Self> {
        #[cfg(feature = "hub")]
        return super::hub::load(repo_id, options, progress);
        #[cfg(not(feature = "hub"))]
        {
            let _ = (repo_id, options, progress.is_some());
            Err(Error::unsupported("load_hub: this build has no Hub client"))
        }
    }

    /// `model_type` of config.json.
    pub fn architecture(&self) -> &str {
        self.0.family.model_type
    }

    /// Tokens that a session may hold.
    pub fn context_length(&self) -> usize {
        self.config().context_length
    }

    /// Scores that the model gives: at least the tokenizer's vocabulary, often padded.
    pub fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.config().hidden_size
    }

    /// Transformer blocks.
    pub fn layer_count(&self) -> usize {
        self.config().layers.len()
    }

    /// Weights, a shared embedding counted once.
    pub fn parameter_count(&self) -> u64 {
        self.0.parameters
    }

    /// What the matrices are stored as in memory; of a quantised model, those that are not quantised.
    pub fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    /// What this model and this library can do together.
    pub fn supports(&self, capability: Capability) -> bool {
        match capability {
            Capability::Generate | Capability::Train => self.transformer().generates(),
            Capability::ChatTemplate => self.0.chat_template.has_template(),
            Capability::Embed => self.0.tokenizer.is_some(),
            Capability::Rerank => self.0.tokenizer.is_some() && self.is_reranker(),
            Capability::Lora => true,
        }
    }

    /// config.json as it was read, or as it follows from the metadata of a GGUF file.
    pub fn config_json(&self) -> &str {
        &self.0.config_json
    }

    /// Where it was loaded.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// # Errors
    /// `ErrorKind::NotFound` if the model has none, saying which file is missing.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "tokenizer.json: the model has none, nor one in a GGUF file, so only calls with token ids work; where its files have \
                 tokenizer.model, or vocab.json and merges.txt, transformers writes one: \
                 AutoTokenizer.from_pretrained(directory).save_pretrained(directory)",
            )
        })
    }

    /// # Errors
    /// `ErrorKind::NotFound` if the model has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        Some(&self.0.chat_template).filter(|template| template.has_template()).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "chat template: the model has none in tokenizer_config.json, chat_template.jinja or a GGUF file",
            )
        })
    }

    /// What renders a conversation: the template, if there is one, and the special tokens that one of the conversation's own reads too.
    pub(crate) fn template_files(&self) -> &ChatTemplate {
        &self.0.chat_template
    }

    pub(crate) fn transformer(&self) -> &Transformer {
        &self.0.transformer
    }

    /// Whether two are one: clones are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn origin(&self) -> &LoadedFrom {
        &self.0.origin
    }

    /// What adapters were merged into since it was loaded.
    pub(super) fn changed(&self) -> &Changed {
        &self.0.changed
    }

    pub(super) fn embedder(&self) -> &Embedder {
        &self.0.embedder
    }

    pub(super) fn reranker(&self) -> &std::result::Result<Reranker, String> {
        &self.0.reranker
    }

    fn config(&self) -> &Config {
        self.0.transformer.config()
    }

    /// The same model with another network, and with another head if there is one.
    pub(super) fn with_transformer(&self, transformer: Transformer, reranker: Option<Reranker>, fingerprint: u64) -> Self {
        let inner = &*self.0;
        let (mut changed, new) = (inner.changed.clone(), transformer.changes(&inner.transformer));
        changed.weights.extend(new.weights);
        changed.biases.extend(new.biases);
        Self(Arc::new(Inner {
            origin: inner.origin.clone(),
            is_multiplied: inner.is_multiplied,
            changed,
            family: inner.family,
            dtype: if transformer.backend().computes_in_f32() { Dtype::F32 } else { inner.dtype },
            // What is no longer shared counts twice.
            parameters: inner.parameters + inner.transformer.tied_parameters() - transformer.tied_parameters(),
            transformer,
            config_json: inner.config_json.clone(),
            device: inner.device.clone(),
            tokenizer: inner.tokenizer.clone(),
            chat_template: inner.chat_template.clone(),
            eos: inner.eos.clone(),
            sampling: inner.sampling.clone(),
            fingerprint,
            embedder: inner.embedder.clone(),
            reranker: reranker.map_or_else(|| inner.reranker.clone(), |reranker| Arc::new(Ok(reranker))),
            vocabulary: OnceLock::new(),
        }))
    }

    /// Whether multipliers are a part of the weights, so that adapters of the original model do not fit.
    pub(super) fn is_multiplied(&self) -> bool {
        self.0.is_multiplied
    }

    /// The tokens that end an answer, the usual one first; empty if no file names one.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.0.eos
    }

    /// The token that ends a text; `None` if no file names one.
    pub(super) fn eos(&self) -> Option<u32> {
        self.0.eos.first().copied()
    }

    /// Whether a token ends an answer.
    pub(crate) fn is_eos(&self, token: u32) -> bool {
        self.0.eos.contains(&token)
    }

    /// The tokens as a grammar reads them. Two threads that both come first both build it; one result is kept.
    pub(super) fn vocabulary(&self) -> Result<&Vocabulary> {
        if let Some(vocabulary) = self.0.vocabulary.get() {
            return Ok(vocabulary);
        }
        let vocabulary = Vocabulary::new(self.tokenizer()?, self.vocab_size(), &self.0.eos)?;
        Ok(self.0.vocabulary.get_or_init(|| vocabulary))
    }

    /// What generation_config.json recommends.
    pub(crate) fn sampling(&self) -> &Sampling {
        &self.0.sampling
    }

    /// What computes which part of the model, as JSON:
    ///
    /// ```json
    /// {"device": "CUDA 0", "prompts": "tensors", "single_tokens": "kernels", "weights": {"BF16": 136134656, "four": 357826560}}
    /// ```
    ///
    /// `prompts`: several tokens at once, and texts: by `kernels`, the library's own, or by `tensors`, candle's products with the
    /// library's kernels between them. `prompts_lack`: why tensor operations are there instead of these kernels, where the system does not
    /// compile them.
    /// `single_tokens`: the tokens of an answer; absent where there are none. `lacks`: what of the model the kernels of its GPU lack, where
    /// single tokens are evaluated by tensors for it. `unproved`: that kernels which are used have not run on this kind of device. `weights`: how many are kept in each format, norms and biases apart: numbers
    /// (`F32`, `F16`, `BF16`); on the CPU the formats of GGUF files, and of MLX (`affine4_64`: bits, and weights of a scale); on a GPU those
    /// of its kernels: `four`, `five`, `six` or `eight` bits with a scale and an offset of 16 bits each, `_sym` with a scale alone,
    /// `table` with sixteen levels and a scale; `_16` where sixteen weights share one.
    pub fn backend_json(&self) -> String {
        let (transformer, device) = (self.transformer(), self.device());
        let by = device.backend().evaluates_by();
        let mut json = serde_json::json!({
            "device": device.name(),
            "prompts": by,
            "weights": transformer.weights_by_format(),
        });
        if let Some(what) = transformer.lacks_for_batches() {
            json["prompts_lack"] = what.into();
        }
        if transformer.generates() {
            json["single_tokens"] = if transformer.decodes_by_kernels() { "kernels" } else { by }.into();
            if let Some(Unsupported(what)) = transformer.lacks() {
                json["lacks"] = what.as_str().into();
            }
        }
        if device.kind() == DeviceKind::Metal {
            json["unproved"] = "the kernels are type-checked for Metal and have not run on Apple's hardware".into();
        }
        json.to_string()
    }

    /// Differs between models whose caches must not be exchanged.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.fingerprint
    }
}

/// The bytes that a model takes: its weights, and the KV cache of its whole context with the workspace of a prefill step, or, if it
/// only embeds, the workspace of a batch of its longest texts.
///
/// # Errors
/// As [`Model::load`]; names and shapes of all tensors are checked, no weight is read but scales of quantised ones.
pub fn estimate_memory(path: impl AsRef<Path>, options: &LoadOptions) -> Result<u64> {
    let mut files = Files::open(path.as_ref(), options)?;
    let device = match &options.device {
        Some(device) => device.clone(),
        None => Device::new(DeviceKind::Auto, 0)?,
    };
    let mut on_bytes = |_, _| Ok(());
    let mut checkpoint = files.tensors(&mut on_bytes)?;
    let stored = stored_type(&*checkpoint, &files.config, &device, options);
    let dtype = dtype_of(stored, &*checkpoint, &files.config);
    let config = files.config.clone();
    let backend = device.backend();
    let mut weights = Weights::dry(&mut *checkpoint, backend, Some(Format::F32));
    let head = load_head(&files.sentence, &files.raw, &files.config, &mut weights)?;
    let mut weights =
        Weights::dry(&mut *checkpoint, backend, stored).keeping_quantised(keeps_quantised(&device)).quantized(files.quant);
    head.skip_in(&mut weights);
    let transformer = Transformer::load(files.config, &mut weights)?;
    check_kv_format(&transformer, files.kv_format, files.family)?;
    let modules = head.bytes + files.sentence.modules.iter().map(ModuleConfig::bytes).sum::<u64>();
    if !transformer.generates() {
        // A table of positions ends; see `Embedder::load`.
        let most = if config.positions.is_some() { config.context_length } else { usize::MAX };
        let longest = files.sentence.max_length.unwrap_or(config.context_length).min(most);
        return Ok(weights.bytes() + modules + workspace_bytes(&config, embed::rows_at_once(longest, backend)));
    }
    let states = States::bytes(&config, config.context_length, files.kv_format, dtype.into(), backend);
    let rows = super::session::PREFILL_CHUNK.min(config.context_length);
    // Tensor operations have the scores of all rows at once.
    let scores = if backend.needs_one_type() { config.score_values(rows, config.context_length) } else { 0 };
    let scores = (scores as u64).saturating_mul(if dtype == Dtype::F32 { 4 } else { 2 });
    Ok(weights.bytes() + modules + states + workspace_bytes(&config, rows) + scores)
}

/// An option without an effect is an error.
fn check_kv_format(transformer: &Transformer, format: KvFormat, family: &Family) -> Result<()> {
    if format == KvFormat::F32 || transformer.generates() {
        return Ok(());
    }
    let (name, found) = (format.name(), family.model_type);
    Err(Error::unsupported(format!(
        "kv_cache: {name:?} is for a model that generates text, found one of {found} that only embeds"
    )))
}

/// GPU kernels are compiled when they are first used: a short prompt, a long one and two single tokens use them all, or two texts
/// where texts are all there is, so that the first answer does not wait.
fn warm_up(
    transformer: &Transformer,
    device: &Device,
    options: &LoadOptions,
    progress: &mut Option<&mut ProgressFn<'_>>,
) -> Result<()> {
    let mut states = transformer.new_states();
    let mut scores = Vec::new();
    let short = [8, 64.min(transformer.config().context_length)];
    let steps = if transformer.generates() { &[8, super::session::PREFILL_CHUNK - 8, 1, 1][..] } else { &short[..] };
    for (done, &length) in steps.iter().enumerate() {
        options.cancel.as_ref().map_or(Ok(()), Cancel::check)?;
        tell(progress, Progress { stage: Stage::Compile, done: done as u64, total: steps.len() as u64 })?;
        device.compute(|| {
            if !transformer.generates() {
                transformer.encode(&vec![0; length], &[length], None)?;
                return Ok(());
            }
            let (ids, whole) = (vec![0; length], super::session::PREFILL_CHUNK + 2);
            let step = Step { ids: &ids, states: &mut states, length: whole, adapters: None };
            let hidden = transformer.forward(&mut [step])?;
            Ok(transformer.logits(&hidden, &[length - 1], &RowAdapters::all(None), &mut scores)?)
        })?;
    }
    tell(progress, Progress { stage: Stage::Compile, done: steps.len() as u64, total: steps.len() as u64 })
}

/// Single tokens are evaluated by the device's own kernels, where it has some and they have all that the network is made of.
pub(super) fn with_decode_step(transformer: Transformer, device: &Device) -> Result<Transformer> {
    let transformer = device.work(|| Ok(transformer.with_decode_step()?))?;
    match transformer.lacks() {
        Some(Unsupported(what)) if transformer.generates() => {
            log::info!("{} evaluates single tokens by tensor operations: its kernels lack {what}", device.name());
        }
        _ if transformer.decodes_by_kernels() => log::info!("{} evaluates single tokens by its own kernels", device.name()),
        _ => {}
    }
    Ok(transformer)
}

/// What steps of so many tokens in all hold beyond weights and cache, in F32.
fn workspace_bytes(c: &Config, rows: usize) -> u64 {
    let row = c.forward_values();
    // Scores of one block of queries on each thread, the packed rows of a product, two rows of logits.
    let fixed = 24 * c.context_length + 2 * 120 * 1024 + 2 * c.vocab_size;
    (rows * row + fixed) as u64 * size_of::<f32>() as u64
}

/// The type that matrices are kept in: what was asked for, else as stored. A GPU needs one type for all.
fn stored_type(checkpoint: &dyn ModelTensors, config: &Config, device: &Device, options: &LoadOptions) -> Option<Format> {
    let asked = options.dtype.map(Format::from);
    if asked.is_some() || !device.backend().needs_one_type() { asked } else { Some(file_type(checkpoint, config)) }
}

/// Whether quantised weights stay so whatever type is asked for, which is then what a GPU computes in; on the CPU it is what they are
/// widened to.
fn keeps_quantised(device: &Device) -> bool {
    device.backend().needs_one_type() && device.backend().keeps_quantised()
}

/// What the file stores the embedding as.
fn file_type(checkpoint: &dyn ModelTensors, config: &Config) -> Format {
    let prefixes = || config.names.prefixes.iter().copied().chain([Prefix::of("")]);
    let embed = prefixes().map(|prefix| format!("{}{}.weight", prefix.network, config.names.embed));
    let head = config.names.head;
    let heads = prefixes().filter_map(|prefix| Some(format!("{}{}.weight", prefix.head, head?)));
    let stored = embed.chain(heads).find_map(|name| checkpoint.entry(&name)?.stored.clone().ok());
    // What tensors cannot be kept as is widened.
    stored.filter(|format| !format.is_quantised()).unwrap_or(Format::F32)
}

fn dtype_of(stored: Option<Format>, checkpoint: &dyn ModelTensors, config: &Config) -> Dtype {
    match stored.unwrap_or_else(|| file_type(checkpoint, config)) {
        Format::F16 => Dtype::F16,
        Format::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// Passes a progress on; a caller that stops has cancelled.
pub(super) fn tell(progress: &mut Option<&mut ProgressFn<'_>>, event: Progress) -> Result<()> {
    match progress.as_mut().map(|progress| progress(event)) {
        Some(ControlFlow::Break(())) => Err(Error::cancelled()),
        _ => Ok(()),
    }
}

#[cfg(all(test, reference_data))]
mod tests;
