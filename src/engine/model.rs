//! A loaded model: its network, tokenizer, chat template and generation defaults. Immutable, cheap to clone, shared by
//! any number of sessions on any threads.
//!
//! ```
//! use metal_candle::{LoadOptions, Model};
//! let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//! assert_eq!((model.architecture(), model.context_length(), model.vocab_size()), ("qwen2", 1024, 4096));
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::constraint::Vocabulary;
use super::embed::{self, Embedder};
use super::files::Files;
use super::sampling::Sampling;
use super::{Cancel, ChatTemplate, Device, DeviceKind, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Checkpoint, Json, Module, fnv};
use crate::models::Family;
use crate::nn::{Config, KvCache, TensorSource, Transformer, Weights};
use crate::ops::StoredType;

/// The type that weights are stored in. On the CPU arithmetic is F32 with each of them; on a GPU it has this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, 10 of them fraction.
    F16,
    /// 16 bits with the range of F32.
    BF16,
}

impl From<Dtype> for StoredType {
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
}

/// Which part of a long call is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
}

/// How far a stage is: bytes of the files for `Download`, `Read` and `Quantize`, kernels for `Compile`, tokens for `Prefill`, texts for `Embed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}

/// Called with each progress; `Break` stops the work.
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// How to load a model. The default: best device, weights as stored, the tokenizer beside the weights.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// `None` = [`DeviceKind::Auto`].
    pub device: Option<Device>,
    /// `None` = as stored.
    pub dtype: Option<Dtype>,
    /// Another tokenizer.json, or a directory with one.
    pub tokenizer_path: Option<PathBuf>,
    /// Quantise while loading, on the CPU. There is `q8_0`: in each row of a matrix for products (projections, the output matrix, and
    /// with it an embedding that it shares) 32 neighbours become a byte each and a common scale in F16, 8.5 bits a weight, as in
    /// ggml. Tables that are only looked up, norms, biases and layers behind the pooling keep the type of `dtype`. Adapters act on
    /// the quantised weights and are F32 themselves; so is a matrix that one was merged into.
    pub quantization: Option<String>,
    /// Tokens; `None` = what the configuration says. A larger number than that extrapolates.
    pub max_context: Option<usize>,
    /// Where the Hub's files are kept, in the layout of the Hub's own client; `None` = its place, `.cache/huggingface/hub` in
    /// the home directory (`Library/Caches/huggingface/hub` on iOS). Environment variables that move it are not read.
    pub hub_cache_dir: Option<PathBuf>,
    /// Branch, tag or commit; `None` = `main`.
    pub hub_revision: Option<String>,
    /// For private and gated repositories; sent to the Hub only, never to the hosts it redirects to, and not logged.
    pub hub_token: Option<String>,
    /// Use what is in the cache, and no network. Optional files that are not there count as not existing.
    pub offline: bool,
    /// Stops loading between two tensors, and a download between two blocks.
    pub cancel: Option<Cancel>,
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
    chat_template: Option<ChatTemplate>,
    eos: Vec<u32>,
    sampling: Sampling,
    fingerprint: u64,
    embedder: Arc<Embedder>,
    /// Built with the first answer that keeps to a schema.
    vocabulary: OnceLock<Vocabulary>,
}

impl Model {
    /// Loads a directory in the layout of the Hub: config.json, model.safetensors or its shards, and, where there are any,
    /// generation_config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja; or one in the layout of
    /// sentence-transformers, with modules.json.
    ///
    /// # Errors
    /// `NotFound` for a missing file, `Format` for one that contradicts itself or the model, `Unsupported` for an unknown
    /// family or a setting that is not implemented, `Cancelled`, `OutOfMemory`, `Device`, `Suspended`.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions, mut progress: Option<&mut ProgressFn<'_>>) -> Result<Self> {
        let files = Files::open(path.as_ref(), options)?;
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
            tell(&mut progress, Progress { stage, done, total })
        };
        let tokenizer = files.tokenizer(options)?;
        let chat_template = ChatTemplate::load(&files.directory)?;
        let (eos, sampling) = (files.eos(tokenizer.as_ref())?, files.sampling()?);
        let special_tokens = Json::read_optional(&files.directory.join("special_tokens_map.json"))?;
        let embedder = Embedder::load(
            files.sentence,
            tokenizer.as_ref(),
            files.tokenizer_config.as_ref(),
            special_tokens.as_ref(),
            &files.config,
            options.max_context.is_some(),
        )?;

        let mut checkpoint = Checkpoint::open(&files.directory, &mut on_bytes)?;
        let stored = stored_type(&checkpoint, &files.config, &device, options);
        let backend = device.backend();
        let mut weights = Weights::new(&mut checkpoint, backend, stored).quantized(files.quant);
        let transformer = device.work(|| Transformer::load(files.config, &mut weights))?;
        let parameters = weights.parameters();
        let dtype = dtype_of(stored, &checkpoint, transformer.config());
        // What was computed with rounded weights does not continue what was computed with whole ones.
        let fingerprint = options.quantization.iter().fold(checkpoint.fingerprint(), |hash, kind| fnv(hash, kind.as_bytes()));
        // What was not read (buffers of old checkpoints) counts as done.
        checkpoint.finish()?;
        if !backend.kernels {
            warm_up(&transformer, &device, options, &mut progress)?;
        }
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
            Capability::ChatTemplate => self.0.chat_template.is_some(),
            Capability::Embed => self.0.tokenizer.is_some(),
            Capability::Lora => true,
        }
    }

    /// config.json as it was read.
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
            Error::new(ErrorKind::NotFound, "tokenizer.json: the model's directory has none, so only calls with token ids work")
        })
    }

    /// # Errors
    /// `ErrorKind::NotFound` if the model has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.0.chat_template.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "chat template: the model has none in tokenizer_config.json or chat_template.jinja")
        })
    }

    pub(crate) fn transformer(&self) -> &Transformer {
        &self.0.transformer
    }

    pub(super) fn embedder(&self) -> &Embedder {
        &self.0.embedder
    }

    fn config(&self) -> &Config {
        self.0.transformer.config()
    }

    /// The same model with another network.
    pub(super) fn with_transformer(&self, transformer: Transformer, fingerprint: u64) -> Self {
        let inner = &*self.0;
        Self(Arc::new(Inner {
            family: inner.family,
            dtype: if transformer.backend().kernels { Dtype::F32 } else { inner.dtype },
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
            vocabulary: OnceLock::new(),
        }))
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

    /// Differs between models whose caches must not be exchanged.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.0.fingerprint
    }
}

/// The bytes that a model takes: its weights, and the KV cache of its whole context with the workspace of a prefill step, or, if it
/// only embeds, the workspace of a batch of its longest texts.
///
/// # Errors
/// As [`Model::load`]; names and shapes of all tensors are checked, no weight is read.
pub fn estimate_memory(path: impl AsRef<Path>, options: &LoadOptions) -> Result<u64> {
    let files = Files::open(path.as_ref(), options)?;
    let device = match &options.device {
        Some(device) => device.clone(),
        None => Device::new(DeviceKind::Auto, 0)?,
    };
    let mut on_bytes = |_, _| Ok(());
    let mut checkpoint = Checkpoint::open(&files.directory, &mut on_bytes)?;
    let stored = stored_type(&checkpoint, &files.config, &device, options);
    let value_bytes = dtype_of(stored, &checkpoint, &files.config);
    let config = files.config.clone();
    let backend = device.backend();
    let mut weights = Weights::dry(&mut checkpoint, backend, stored).quantized(files.quant);
    let generates = Transformer::load(files.config, &mut weights)?.generates();
    let modules: u64 = files.sentence.modules.iter().map(Module::bytes).sum();
    if !generates {
        // A table of positions ends; see `Embedder::load`.
        let most = if config.positions.is_some() { config.context_length } else { usize::MAX };
        let longest = files.sentence.max_length.unwrap_or(config.context_length).min(most);
        return Ok(weights.bytes() + modules + workspace_bytes(&config, embed::rows_at_once(longest)));
    }
    let cache = KvCache::bytes(&config, config.context_length, StoredType::from(value_bytes).size(), backend);
    let rows = super::session::PREFILL_CHUNK.min(config.context_length);
    Ok(weights.bytes() + modules + cache + workspace_bytes(&config, rows))
}

/// GPU kernels are compiled when they are first used: a short prompt, a long one and two single tokens use them all, or two texts
/// where texts are all there is, so that the first answer does not wait.
fn warm_up(
    transformer: &Transformer,
    device: &Device,
    options: &LoadOptions,
    progress: &mut Option<&mut ProgressFn<'_>>,
) -> Result<()> {
    let mut cache = transformer.new_cache();
    let mut scores = Vec::new();
    let short = [8, 64.min(transformer.config().context_length)];
    let steps = if transformer.generates() { &[8, super::session::PREFILL_CHUNK - 8, 1, 1][..] } else { &short[..] };
    for (done, &length) in steps.iter().enumerate() {
        options.cancel.as_ref().map_or(Ok(()), Cancel::check)?;
        tell(progress, Progress { stage: Stage::Compile, done: done as u64, total: steps.len() as u64 })?;
        device.step(|| {
            if !transformer.generates() {
                transformer.encode(&vec![0; length], &[length], None)?;
                return Ok(());
            }
            let hidden = transformer.forward(&vec![0; length], &mut cache, super::session::PREFILL_CHUNK + 2, None)?;
            Ok(transformer.logits(&hidden.narrow(0, length - 1, 1)?, &mut scores, None)?)
        })?;
    }
    tell(progress, Progress { stage: Stage::Compile, done: steps.len() as u64, total: steps.len() as u64 })
}

/// What steps of so many tokens in all hold beyond weights and cache, in F32.
fn workspace_bytes(c: &Config, rows: usize) -> u64 {
    let attention = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim + 2 * c.num_heads * c.head_dim;
    let mlp = c.intermediate_size * if c.gated { 3 } else { 2 };
    let row = 4 * c.hidden_size + attention.max(mlp);
    // Scores of one block of queries on each thread, the packed rows of a product, two rows of logits.
    let fixed = 24 * c.context_length + 2 * 120 * 1024 + 2 * c.vocab_size;
    (rows * row + fixed) as u64 * size_of::<f32>() as u64
}

/// The type that matrices are kept in: what was asked for, else as stored. A GPU needs one type for all.
fn stored_type(checkpoint: &Checkpoint<'_>, config: &Config, device: &Device, options: &LoadOptions) -> Option<StoredType> {
    let asked = options.dtype.map(StoredType::from);
    if asked.is_some() || device.backend().kernels { asked } else { Some(file_type(checkpoint, config)) }
}

/// What the file stores the embedding as.
fn file_type(checkpoint: &Checkpoint<'_>, config: &Config) -> StoredType {
    let prefixes = config.names.prefixes.iter().copied().chain([""]);
    let embed = prefixes.map(|prefix| format!("{prefix}{}.weight", config.names.embed));
    let mut names = embed.chain(config.names.head.map(|name| format!("{name}.weight")));
    names.find_map(|name| checkpoint.entry(&name)?.stored.clone().ok()).unwrap_or(StoredType::F32)
}

fn dtype_of(stored: Option<StoredType>, checkpoint: &Checkpoint<'_>, config: &Config) -> Dtype {
    match stored.unwrap_or_else(|| file_type(checkpoint, config)) {
        StoredType::F32 => Dtype::F32,
        StoredType::F16 => Dtype::F16,
        StoredType::BF16 => Dtype::BF16,
    }
}

/// Passes a progress on; a caller that stops has cancelled.
pub(super) fn tell(progress: &mut Option<&mut ProgressFn<'_>>, event: Progress) -> Result<()> {
    match progress.as_mut().map(|progress| progress(event)) {
        Some(ControlFlow::Break(())) => Err(Error::cancelled()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::nn::{Adapters, Batch, Entry, Module, Pass, Place, Trained};
    use crate::ops::{Backend, Dropout, Quant, widen};

    /// The network of a directory, on the CPU, by our kernels or by the tensor operations of GPUs.
    fn network(directory: &Path, kernels: bool) -> Transformer {
        network_of(directory, kernels, StoredType::F32)
    }

    fn network_of(directory: &Path, kernels: bool, stored: StoredType) -> Transformer {
        network_with(directory, kernels, |weights| weights, stored)
    }

    /// By our kernels, with quantised matrices.
    fn quantised(directory: &Path, quant: Quant) -> Transformer {
        network_with(directory, true, |weights| weights.quantized(Some(quant)), StoredType::F32)
    }

    fn network_with(
        directory: &Path,
        kernels: bool,
        set: impl FnOnce(Weights<'_>) -> Weights<'_>,
        stored: StoredType,
    ) -> Transformer {
        let mut files = Files::open(directory, &LoadOptions::default()).unwrap();
        if files.config.positions.is_none() {
            files.config.context_length = 512; // a dynamic rope goes as far as its caller says
        }
        let mut on_bytes = |_, _| Ok(());
        let mut checkpoint = Checkpoint::open(directory, &mut on_bytes).unwrap();
        let backend = Backend { device: candle_core::Device::Cpu, kernels };
        Transformer::load(files.config, &mut set(Weights::new(&mut checkpoint, &backend, Some(stored)))).unwrap()
    }

    /// The logits after every token, evaluated in chunks.
    fn logits(network: &Transformer, ids: &[u32], chunk: usize, adapters: Option<&Adapters>) -> Vec<f32> {
        let mut cache = network.new_cache();
        let mut all = Vec::new();
        for part in ids.chunks(chunk) {
            let hidden = network.forward(part, &mut cache, ids.len(), adapters).unwrap();
            let mut out = Vec::new();
            network.logits(&hidden, &mut out, adapters).unwrap();
            all.extend(out);
        }
        all
    }

    #[test]
    fn the_path_of_gpus_equals_the_path_of_the_cpu() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut seen = 0;
        for folder in ["decoders", "families"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let directory = entry.unwrap().path();
                let notes = Json::read(&directory.join("golden.json")).unwrap();
                let prompt = &notes.value()["prompts"][3]["ids"];
                let ids: Vec<u32> = prompt.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                let want = logits(&network(&directory, true), &ids, ids.len(), None);
                let tensors = network(&directory, false);
                for chunk in [ids.len(), 7, 1] {
                    let got = logits(&tensors, &ids, chunk, None);
                    let error = want.iter().zip(&got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                    // Both are within 5e-4 of the reference; this is what the order of sums alone changes.
                    assert!(error < 2e-4, "{} in chunks of {chunk}: {error}", directory.display());
                }
                seen += 1;
            }
        }
        assert!(seen >= 50);
    }

    /// A checkpoint in F32 whose matrices for products went to Q8_0 and back.
    struct Rounded(HashMap<String, (Entry, Vec<u8>)>);

    impl Rounded {
        fn of(directory: &Path, config: &Config) -> Self {
            let mut on_bytes = |_, _| Ok(());
            let mut checkpoint = Checkpoint::open(directory, &mut on_bytes).unwrap();
            let names: Vec<String> = checkpoint.names().into_iter().map(str::to_owned).collect();
            let rounded = |name: String| {
                let entry = checkpoint.entry(&name)?.clone();
                let stored = entry.stored.clone().ok()?;
                let mut bytes = vec![0; entry.shape.iter().product::<usize>() * stored.size()];
                checkpoint.read(&name, 0, &mut bytes).unwrap();
                let mut values = widen(&bytes, stored);
                let looked_up = !config.tied && name.ends_with(&format!("{}.weight", config.names.embed));
                if let ([_, cols], false) = (entry.shape.as_slice(), looked_up) {
                    for block in values.chunks_mut(*cols).flat_map(|row| row.chunks_mut(32)) {
                        let scale = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                        let kept = half::f16::from_f32(scale).to_f32();
                        block.iter_mut().for_each(|x| *x = if scale == 0.0 { 0.0 } else { (*x * (1.0 / scale)).round() * kept });
                    }
                }
                let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                Some((name, (Entry { stored: Ok(StoredType::F32), ..entry }, bytes)))
            };
            Self(names.into_iter().filter_map(rounded).collect())
        }
    }

    impl TensorSource for Rounded {
        fn entry(&self, name: &str) -> Option<&Entry> {
            self.0.get(name).map(|(entry, _)| entry)
        }
        fn names(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }
        fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
            into.copy_from_slice(&self.0[name].1[offset as usize..][..into.len()]);
            Ok(())
        }
    }

    #[test]
    fn a_quantised_network_is_the_dense_one_of_its_rounded_weights() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let ids: Vec<u32> = (0..30).map(|i| 3 + i * 67 % 120).collect();
        let mut seen = 0;
        for folder in ["decoders", "families"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let directory = entry.unwrap().path();
                let quantised = quantised(&directory, Quant::Q8_0);
                let mut source = Rounded::of(&directory, quantised.config());
                let mut weights = Weights::new(&mut source, quantised.backend(), Some(StoredType::F32));
                let dense = Transformer::load(quantised.config().clone(), &mut weights).unwrap();
                let got = logits(&quantised, &ids, 7, None);
                assert!(got.iter().all(|x| x.is_finite()));
                assert_eq!(got, logits(&dense, &ids, 7, None), "{}", directory.display());
                assert_ne!(got, logits(&network(&directory, true), &ids, 7, None), "{}", directory.display());
                seen += 1;
            }
        }
        assert!(seen >= 50);
    }

    #[test]
    fn the_path_of_gpus_adapts_as_the_path_of_the_cpu() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let ids: Vec<u32> = (0..30).map(|i| 3 + i * 67 % 200).collect();
        let attached = |network: &Transformer, adapter: &Path| {
            let adapter = crate::load::Peft::read(adapter, network).unwrap().adapter;
            let scaled = adapter.scaled(network, 0.7).unwrap();
            Adapters::new(network, [(&adapter, &scaled)]).unwrap()
        };
        let max = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        let mut seen = 0;
        for folder in ["lora", "adapters"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let adapter = entry.unwrap().path();
                if !adapter.join("adapter_config.json").exists() {
                    continue;
                }
                let notes = Json::read(&adapter.join("golden.json")).unwrap();
                let directory = root.join(notes.text("base").unwrap().unwrap());
                let kernels = network(&directory, true);
                if !kernels.generates() || adapter.ends_with("qwen2_embed_lm_head") {
                    continue;
                }
                let want = logits(&kernels, &ids, ids.len(), Some(&attached(&kernels, &adapter)));
                let tensors = network(&directory, false);
                let adapters = attached(&tensors, &adapter);
                for chunk in [ids.len(), 7, 1] {
                    let error = max(&want, &logits(&tensors, &ids, chunk, Some(&adapters)));
                    assert!(error < 2e-4, "{} in chunks of {chunk}: {error}", adapter.display());
                }
                let error = max(&want, &logits(&tensors.merged(&adapters).unwrap(), &ids, ids.len(), None));
                assert!(error < 5e-4, "{} merged: {error}", adapter.display());
                // With 16 bits the types of all parts must still meet; the scores are about 20.
                let half = network_of(&directory, false, StoredType::F16);
                let adapters = attached(&half, &adapter);
                for found in [logits(&half, &ids, 7, Some(&adapters)), logits(&half.merged(&adapters).unwrap(), &ids, 7, None)] {
                    let error = max(&want, &found);
                    assert!(error < 1.0, "{} in F16: {error}", adapter.display());
                }
                seen += 1;
            }
        }
        assert!(seen >= 26);
    }

    /// A change of every matrix of the layers, of rank 3.
    fn in_training(network: &Transformer) -> Vec<Trained> {
        let mut seed = 1u32;
        let mut noise = |len: usize| -> Vec<f32> {
            let next = |_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
            };
            (0..len).map(next).collect()
        };
        let modules = network.modules().into_iter().filter(|module| !matches!(module.place, Place::Embed | Place::Head));
        let change = |module: Module| {
            let (a, b) = (noise(3 * module.inputs), noise(module.outputs * 3));
            Trained { module, rank: 3, scaling: 1.5, a, b }
        };
        modules.map(change).collect()
    }

    const LENGTHS: [usize; 3] = [11, 1, 23];

    fn targets(ids: &[u32]) -> Vec<bool> {
        (0..ids.len()).map(|t| ![0, 11, 12].contains(&t) && t % 5 != 3).collect()
    }

    fn pass(checkpointing: bool, dropout: Option<Dropout>) -> Pass<'static> {
        Pass { checkpointing, dropout, stop: &|| false }
    }

    #[test]
    fn every_family_trains_alike_by_kernels_and_by_tensor_operations_with_and_without_checkpoints() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 120).collect();
        let targets = targets(&ids);
        let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
        let mut seen = 0;
        for folder in ["decoders", "families"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let directory = entry.unwrap().path();
                let network_by = network(&directory, true);
                let trained = in_training(&network_by);
                let (loss, gradients) = network_by.gradients(batch, &trained, pass(false, None)).unwrap().unwrap();

                // The loss is that of the scores which inference gives, merged or not.
                let adapter = Adapters::in_training(&network_by, &trained, None).unwrap();
                let mut want = 0.0;
                for (i, len) in LENGTHS.into_iter().enumerate() {
                    let start: usize = LENGTHS[..i].iter().sum();
                    let mut cache = network_by.new_cache();
                    let hidden = network_by.forward(&ids[start..start + len], &mut cache, len, Some(&adapter)).unwrap();
                    let mut scores = Vec::new();
                    network_by.logits(&hidden, &mut scores, None).unwrap();
                    for (t, row) in scores.chunks_exact(scores.len() / len).take(len - 1).enumerate() {
                        if targets[start + t + 1] {
                            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                            want += sum.ln() - f64::from(row[ids[start + t + 1] as usize]);
                        }
                    }
                }
                assert!((loss - want).abs() < 1e-4 * want, "{}: {loss} {want}", directory.display());

                let (again, recomputed) = network_by.gradients(batch, &trained, pass(true, None)).unwrap().unwrap();
                let found = network(&directory, false).gradients(batch, &trained, pass(false, None)).unwrap().unwrap();
                assert_eq!(loss, again);
                assert!((loss - found.0).abs() < 1e-4 * loss, "{}: {loss} {}", directory.display(), found.0);
                let largest = gradients.iter().flat_map(|g| g.a.iter().chain(&g.b)).fold(0f32, |m, x| m.max(x.abs()));
                for ((g, recomputed), (found, change)) in gradients.iter().zip(&recomputed).zip(found.1.iter().zip(&trained)) {
                    assert!(g.a == recomputed.a && g.b == recomputed.b, "{}", directory.display());
                    for (one, other) in g.a.iter().zip(&found.a).chain(g.b.iter().zip(&found.b)) {
                        let error = (one - other).abs() / largest;
                        assert!(error < 5e-5, "{} {}: {one} {other}", directory.display(), change.module.name);
                    }
                    let any = |x: &[f32]| x.iter().any(|x| x.abs() > 1e-6 * largest);
                    assert!(any(&g.a) && any(&g.b), "{} {}", directory.display(), change.module.name);
                }
                seen += 1;
            }
        }
        assert!(seen >= 50);
    }

    #[test]
    fn layers_below_the_first_in_training_change_no_gradient() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders/qwen3_sharded");
        let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 120).collect();
        let targets = targets(&ids);
        let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
        let network = network(&directory, true);
        let mut all = in_training(&network);
        // The lower ones change nothing, so that leaving them out changes nothing either.
        let layers = network.config().layers.len();
        let upper = |change: &Trained| matches!(change.module.place, Place::Down(layer) if layer == layers - 1);
        all.iter_mut().filter(|change| !upper(change)).for_each(|change| change.b.fill(0.0));
        let alone: Vec<Trained> = all.iter().filter(|change| upper(change)).cloned().collect();
        assert!(layers > 1 && alone.len() == 1);
        for checkpointing in [true, false] {
            let (loss, gradients) = network.gradients(batch, &all, pass(checkpointing, None)).unwrap().unwrap();
            let (same, found) = network.gradients(batch, &alone, pass(checkpointing, None)).unwrap().unwrap();
            let want = &gradients[all.iter().position(upper).unwrap()];
            assert!(loss == same && found[0].a == want.a && found[0].b == want.b);
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 120).collect();
        let targets = targets(&ids);
        let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
        let stored = [StoredType::F32, StoredType::F16, StoredType::BF16];
        for directory in ["decoders/qwen2_untied_old", "decoders/gemma2", "decoders/phi3"] {
            let directory = root.join(directory);
            let mut bases = stored.map(|stored| (network_of(&directory, true, stored), None)).to_vec();
            bases.push((quantised(&directory, Quant::Q8_0), None));
            bases.push((network(&directory, true), Some(Dropout { share: 0.2, seed: 7 })));
            for (network, dropout) in bases {
                let trained = in_training(&network);
                let (_, gradients) = network.gradients(batch, &trained, pass(true, dropout)).unwrap().unwrap();
                let all = || gradients.iter().flat_map(|g| g.a.iter().chain(&g.b));
                let largest = all().fold(0f32, |m, x| m.max(x.abs()));
                for (i, gradient) in gradients.iter().enumerate() {
                    for (b, gradient) in [(false, &gradient.a), (true, &gradient.b)] {
                        // Along the gradient itself, where the slope is largest.
                        let length = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                        let loss = |step: f64| {
                            let mut moved = trained.clone();
                            let values = if b { &mut moved[i].b } else { &mut moved[i].a };
                            values.iter_mut().zip(gradient).for_each(|(x, g)| *x += (f64::from(*g) / length * step) as f32);
                            network.gradients(batch, &moved, pass(true, dropout)).unwrap().unwrap().0
                        };
                        let h = 0.005;
                        let slope = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
                        let name = &trained[i].module.name;
                        assert!((slope - length).abs() < 1e-3 * length + 1e-4 * f64::from(largest), "{name}: {slope} {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_path_of_gpus_encodes_as_the_path_of_the_cpu() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders");
        let mut seen = 0;
        for entry in std::fs::read_dir(root).unwrap() {
            let directory = entry.unwrap().path();
            let notes = Json::read(&directory.join("golden.json")).unwrap();
            let texts = notes.value()["token_ids"]["none"].as_array().unwrap().iter();
            let texts: Vec<Vec<u32>> =
                texts.map(|ids| ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()).collect();
            let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
            let encode = |kernels| {
                crate::ops::to_f32(&network(&directory, kernels).encode(&texts.concat(), &lengths, None).unwrap()).unwrap()
            };
            let error = encode(true).iter().zip(encode(false)).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(error < 2e-4, "{}: {error}", directory.display());
            seen += 1;
        }
        assert!(seen >= 15);
    }
}
