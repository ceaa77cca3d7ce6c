//! The small files of a model directory: what a model is, before its weights are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::chat::{NAMED_TEMPLATES, named_templates};
use super::sampling::Sampling;
use super::{ChatTemplate, Device, DeviceKind, LoadOptions, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{
    ApartExperts, Checkpoint, Gguf, GgufSource, GgufVocabulary, Json, MAX_JSON, ModelTensors, ModuleConfig, ModulePlace, OnBytes,
    Origin, Quantization, QuantizedCheckpoint, SentenceConfig, Tensors, WHOLE_CLASS, copy_file, read_text, write_safetensors,
    write_text,
};
use crate::models::{self, Family, GgufModel, GgufProjection};
use crate::nn::{Config, MIXES, Mix, is_of_mlx};
use crate::ops::{KvFormat, Pooling, TorchActivation};

/// What they say, checked.
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) family: &'static Family,
    pub(super) config: Config,
    pub(super) config_json: String,
    /// What matrices are quantised to.
    pub(super) quant: Option<&'static Mix>,
    /// What sessions keep keys and values in.
    pub(super) kv_format: KvFormat,
    /// How the matrices of safetensors were quantised.
    stored: Option<Quantization>,
    pub(super) raw: Json,
    generation: Option<Json>,
    pub(super) tokenizer_config: Option<Json>,
    pub(super) sentence: SentenceConfig,
    /// Where the tensors are, if not in the directory's safetensors: a file, and what its tensors are to the network.
    gguf: Option<GgufTensors>,
    /// Whether the tokenizer is another one than the model's.
    tokenizer_given: bool,
    /// Whether a tokenizer.json in the directory is the model's: not where a file was named, beside which anything may lie.
    tokenizer_beside: bool,
}

/// A file, and what its tensors are to the network.
struct GgufTensors {
    gguf: Gguf,
    origins: Vec<(String, Origin)>,
    unused_layers: Range<usize>,
}

impl GgufTensors {
    fn source<'a>(self, on_bytes: &'a mut OnBytes<'a>) -> Result<GgufSource<'a>> {
        GgufSource::new(self.gguf, self.origins, |name| models::is_unused(name, &self.unused_layers), on_bytes)
    }
}

impl Files {
    pub(super) fn open(path: &Path, options: &LoadOptions) -> Result<Self> {
        let (quant, kv_format) = (quant(options)?, kv_format(options)?);
        if path.as_os_str().is_empty() {
            return Err(Error::argument("path: expected a directory or a GGUF file, found an empty text"));
        }
        let metadata = std::fs::metadata(path).map_err(|e| missing(path, e))?;
        let mut files = match gguf_file(path, &metadata, options.file.as_deref())? {
            Some(file) => {
                let mut files = Self::of_gguf(&file)?;
                files.tokenizer_beside = metadata.is_dir();
                files
            }
            None if metadata.is_dir() => Self::of_directory(path)?,
            None => return Err(no_model(path)),
        };
        (files.quant, files.kv_format) = (quant, kv_format);
        files.tokenizer_given = options.tokenizer_path.is_some();
        if let Some(tokens) = options.max_context {
            files.limit_context(tokens)?;
        }
        Ok(files)
    }

    fn of_directory(path: &Path) -> Result<Self> {
        refuse_adapter(path)?;
        if !path.join("modules.json").exists() {
            refuse_empty(path)?;
        }
        let sentence = SentenceConfig::read(path)?;
        let path = sentence.network.clone();
        refuse_adapter(&path)?;
        let config_json = read_text(&path.join("config.json"), MAX_JSON)?;
        let raw = Json::parse("config.json", &config_json)?;
        let (family, config) = models::parse(&raw)?;
        Ok(Self {
            family,
            config,
            config_json,
            quant: None,
            kv_format: KvFormat::F32,
            generation: Json::read_optional(&path.join("generation_config.json"))?,
            tokenizer_config: Json::read_optional(&path.join("tokenizer_config.json"))?,
            directory: path,
            sentence,
            stored: Quantization::of(&raw)?,
            raw,
            gguf: None,
            tokenizer_given: false,
            tokenizer_beside: true,
        })
    }

    fn of_gguf(path: &Path) -> Result<Self> {
        let mut gguf = Gguf::open(path)?;
        let GgufModel { family, config, json, origins, pooling, projections, unused_layers } = models::parse_gguf(&mut gguf)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut sentence = SentenceConfig::new(directory);
        match pooling {
            // A file that says how to pool is one of a model of embeddings, whose vectors llama.cpp normalises.
            Some(pooling) => {
                let projections = projections.into_iter().map(|projection| projected(path, &projection));
                sentence.pooling = vec![pooling];
                sentence.modules = projections.chain([ModuleConfig::Normalize]).collect();
            }
            None if config.is_causal() => sentence.pooling = vec![Pooling::Last],
            None => {}
        }
        Ok(Self {
            family,
            config,
            config_json: format!("{:#}\n", json.value()),
            quant: None,
            kv_format: KvFormat::F32,
            generation: Some(generation_config(&gguf)?),
            tokenizer_config: tokenizer_config(&gguf)?,
            directory: directory.to_path_buf(),
            sentence,
            stored: None,
            raw: json,
            gguf: Some(GgufTensors { gguf, origins, unused_layers }),
            tokenizer_given: false,
            tokenizer_beside: false,
        })
    }

    fn limit_context(&mut self, tokens: usize) -> Result<()> {
        let config = &mut self.config;
        if !(1..=models::MAX_CONTEXT).contains(&tokens) {
            return Err(Error::argument(format!("max_context: expected 1 to {}, found {tokens}", models::MAX_CONTEXT)));
        }
        if config.positions.is_some() && tokens > config.context_length {
            let most = config.context_length;
            return Err(Error::argument(format!("max_context: expected at most the model's {most} positions, found {tokens}")));
        }
        config.context_length = tokens;
        Ok(())
    }

    /// Opens the tensors; they can be opened once.
    pub(super) fn tensors<'a>(&mut self, on_bytes: &'a mut OnBytes<'a>) -> Result<Box<dyn ModelTensors + 'a>> {
        match self.gguf.take() {
            Some(tensors) => Ok(Box::new(tensors.source(on_bytes)?)),
            None => {
                let checkpoint = Checkpoint::open(&self.directory, on_bytes)?;
                if is_of_mlx(&checkpoint) {
                    self.follow_mlx()?;
                }
                Ok(match (&self.stored, self.config.stacks_of_inputs()) {
                    (Some(quantization), _) => Box::new(QuantizedCheckpoint::new(checkpoint, quantization)?),
                    (None, Some(experts)) => Box::new(ApartExperts::new(checkpoint, experts)?),
                    (None, None) => Box::new(checkpoint),
                })
            }
        }
    }

    /// What MLX's converter makes a part of the weights is no longer one of the configuration.
    fn follow_mlx(&mut self) -> Result<()> {
        let Some(json) = models::folded_by_mlx(&self.raw)? else { return Ok(()) };
        let (_, config) = models::parse(&json)?;
        self.config = Config { context_length: self.config.context_length, ..config };
        self.config_json = format!("{:#}\n", json.value());
        self.raw = json;
        Ok(())
    }

    /// The same of a GGUF file; `None` for safetensors.
    pub(super) fn gguf_source<'a>(&mut self, on_bytes: &'a mut OnBytes<'a>) -> Result<Option<GgufSource<'a>>> {
        self.gguf.take().map(|tensors| tensors.source(on_bytes)).transpose()
    }

    /// Where the network's files are below those of a model of embeddings; empty for the same place.
    pub(super) fn relative_network(&self) -> Result<PathBuf> {
        let relative = self.directory.strip_prefix(&self.sentence.root).map_err(|e| {
            Error::format(format!("{}: expected a place below {}", self.directory.display(), self.sentence.root.display()))
                .with_source(e)
        })?;
        Ok(if self.gguf.is_some() { PathBuf::new() } else { relative.to_path_buf() })
    }

    /// Copies the files beside the weights, without config.json; for a GGUF file, writes what stands for them. `tokenizer` is the
    /// model's, or what was given in its place.
    pub(super) fn copy_small(&self, to: &Path, to_network: &Path, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let write = |path: PathBuf, json: &serde_json::Value| write_text(&path, &format!("{json:#}\n"));
        let Some(GgufTensors { gguf, .. }) = &self.gguf else {
            for name in BESIDE_WEIGHTS {
                copy_if_there(&self.directory.join(name), &to_network.join(name))?;
            }
            for path in named_templates(&self.directory)? {
                let name = path.file_name().unwrap_or_default();
                copy_if_there(&path, &to_network.join(NAMED_TEMPLATES).join(name))?;
            }
            if let (true, Some(tokenizer)) = (self.tokenizer_given, tokenizer) {
                write_text(&to_network.join("tokenizer.json"), &tokenizer.to_json()?)?;
                let config = self.tokenizer_config.as_ref().map(Json::value);
                write(to_network.join("tokenizer_config.json"), &of_whole_tokenizer(config))?;
            } else {
                for name in OF_TOKENIZER {
                    copy_if_there(&self.directory.join(name), &to_network.join(name))?;
                }
            }
            for name in self.sentence.files()? {
                copy_if_there(&self.sentence.root.join(&name), &to.join(&name))?;
            }
            return Ok(());
        };
        if let Some(tokenizer) = tokenizer {
            write_text(&to.join("tokenizer.json"), &tokenizer.to_json()?)?;
        }
        let config = self.tokenizer_config.as_ref().map(Json::value);
        let config = if self.tokenizer_given { Some(of_whole_tokenizer(config)) } else { config.cloned() };
        for (name, json) in
            [("tokenizer_config.json", config.as_ref()), ("generation_config.json", self.generation.as_ref().map(Json::value))]
        {
            json.map_or(Ok(()), |json| write(to.join(name), json))?;
        }
        for (name, json) in self.sentence.written(self.config.vector_size()) {
            let path = to.join(name);
            let directory = path.parent().unwrap_or(to);
            std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
            write(path, &json)?;
        }
        for (folder, tensor, inputs, outputs) in self.sentence.projections() {
            let values = gguf.values(tensor)?;
            let tensors = Tensors::from([("linear.weight".to_string(), (vec![outputs, inputs], Cow::Owned(values)))]);
            write_safetensors(&to.join(folder).join("model.safetensors"), &tensors, &[("format", "pt")])?;
        }
        Ok(())
    }

    pub(super) fn tokenizer(&self, options: &LoadOptions) -> Result<Option<Tokenizer>> {
        let path = options.tokenizer_path.clone().unwrap_or_else(|| self.directory.join("tokenizer.json"));
        if options.tokenizer_path.is_none() && !(self.tokenizer_beside && path.exists()) {
            let Some(GgufTensors { gguf, .. }) = &self.gguf else {
                return Tokenizer::of_vocabulary(
                    &self.directory,
                    self.tokenizer_config.as_ref(),
                    Some(&self.raw),
                    self.family.model_type,
                );
            };
            return GgufVocabulary::read(gguf.metadata())?.as_ref().map(Tokenizer::of_gguf).transpose();
        }
        let tokenizer = Tokenizer::load(path)?;
        if options.tokenizer_path.is_some() {
            return Ok(Some(tokenizer));
        }
        let config = self.tokenizer_config.as_ref();
        // A GGUF file's configuration is its own, whatever lies beside it.
        if self.gguf.is_some() {
            return match config {
                Some(_) => tokenizer.configured(config, None, self.family.model_type).map(Some),
                None => Ok(Some(tokenizer)),
            };
        }
        tokenizer.configured(config, Some(&self.raw), self.family.model_type)?.declared(&self.directory).map(Some)
    }

    pub(super) fn special_tokens(&self) -> Result<Option<Json>> {
        match &self.gguf {
            Some(_) => Ok(None),
            None => Json::read_optional(&self.directory.join("special_tokens_map.json")),
        }
    }

    /// The chat template, or what the files give to one that a conversation brings.
    pub(super) fn chat_template(&self) -> Result<ChatTemplate> {
        match (&self.gguf, &self.tokenizer_config) {
            (Some(_), Some(config)) => ChatTemplate::of_config(config),
            _ => ChatTemplate::read(&self.directory),
        }
    }

    /// The tokens that end an answer: the tokenizer's own first, then those of generation_config.json, or else of config.json.
    pub(super) fn eos(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let mut eos = match &self.generation {
            Some(generation) if generation.get("eos_token_id").is_some() => generation.ids("eos_token_id")?,
            _ => match self.raw.object("text_config")? {
                // Of a multimodal model: what the language model says, where the whole says nothing.
                Some(text) if !self.raw.has("eos_token_id") => text.ids("eos_token_id")?,
                _ => self.raw.ids("eos_token_id")?,
            },
        };
        if let (Some(tokenizer), Some(config)) = (tokenizer, &self.tokenizer_config) {
            let token = match config.get("eos_token") {
                Some(token) if token.value().is_object() => token.text("content")?,
                Some(_) => config.text("eos_token")?,
                None => None,
            };
            // A name that the vocabulary lacks can never be sampled.
            if let Some(own) = token.and_then(|token| tokenizer.token_id(&token).ok()) {
                eos.retain(|id| *id != own);
                eos.insert(0, own);
            }
        }
        Ok(eos)
    }

    /// What generation_config.json recommends: sampling where `do_sample` says so, else greedy. What it leaves out is as in
    /// transformers.
    pub(super) fn sampling(&self) -> Result<Sampling> {
        let mut sampling = Sampling::default();
        let Some(json) = &self.generation else { return Ok(sampling) };
        sampling.repetition_penalty = json.positive("repetition_penalty", 1.0)? as f32;
        if json.flag("do_sample", false)? {
            let within = |key: &str, default: f64| -> Result<f32> {
                let value = json.number(key)?.unwrap_or(default);
                if (0.0..=1.0).contains(&value) {
                    Ok(value as f32)
                } else {
                    Err(json.invalid(key, &format!("expected 0 to 1, found {value}")))
                }
            };
            sampling.temperature = json.number("temperature")?.unwrap_or(1.0).max(0.0) as f32;
            sampling.top_k = json.count("top_k", usize::MAX >> 1)?.unwrap_or(TOP_K);
            // Of 0 the best token is left, as of less than one token has of a vocabulary of millions.
            sampling.top_p = within("top_p", 1.0)?.max(f32::EPSILON);
            sampling.min_p = within("min_p", 0.0)?;
        }
        sampling.logit_bias = self.biases(json)?;
        for (key, without_effect) in NOT_FOLLOWED {
            if json.get(key).is_some_and(|field| without_effect.is_none() || field.value().as_f64() != without_effect) {
                log::warn!("{key}: what generation_config.json says of it is not followed");
            }
        }
        Ok(sampling)
    }

    /// What generation_config.json adds to the logits of single tokens: those that it suppresses have none. Ids that the model lacks
    /// are left out.
    ///
    /// # Source
    /// `SuppressTokensLogitsProcessor`, `NoBadWordsLogitsProcessor` and `SequenceBiasLogitsProcessor` of transformers 5.24.
    fn biases(&self, json: &Json) -> Result<Vec<(u32, f32)>> {
        let mut biases: BTreeMap<u32, f32> = json.ids("suppress_tokens")?.into_iter().map(|id| (id, f32::NEG_INFINITY)).collect();
        let mut single = |key: &str, ids: &serde_json::Value, bias: f32| -> Result<()> {
            match Json::of(key, ids.clone()).ids("token")?[..] {
                [id] => *biases.entry(id).or_default() += bias,
                _ => log::warn!("{key}: what generation_config.json says of several tokens in a row is not followed"),
            }
            Ok(())
        };
        let list = |key: &str, what: &str| match json.get(key) {
            None => Ok(Vec::new()),
            Some(field) => field.value().as_array().cloned().ok_or_else(|| field.expected(what)),
        };
        for ids in list("bad_words_ids", "a list of lists of token ids")? {
            single("bad_words_ids", &ids, f32::NEG_INFINITY)?;
        }
        let what = "a list of pairs: token ids, and a number";
        for pair in list("sequence_bias", what)? {
            let (Some(ids), Some(bias)) = (pair.get(0), pair.get(1).and_then(serde_json::Value::as_f64)) else {
                return Err(json.invalid("sequence_bias", &format!("expected {what}, found {pair}")));
            };
            single("sequence_bias", ids, bias as f32)?;
        }
        if let Some((id, bias)) = biases.iter().find(|(_, bias)| **bias == f32::INFINITY || bias.is_nan()) {
            return Err(json.invalid("sequence_bias", &format!("token {id}: expected a number or minus infinity, found {bias}")));
        }
        Ok(biases.into_iter().filter(|(id, _)| (*id as usize) < self.config.vocab_size).collect())
    }
}

/// `_get_default_generation_params` of transformers 5: of a generation_config.json that samples and does not say.
const TOP_K: usize = 50;

/// What generation_config.json may ask for and does not get, and what asks for nothing.
const NOT_FOLLOWED: [(&str, Option<f64>); 9] = [
    ("begin_suppress_tokens", None),
    ("no_repeat_ngram_size", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("min_length", Some(0.0)),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("typical_p", Some(1.0)),
    ("num_beams", Some(1.0)),
    ("stop_strings", None),
];

/// What may lie beside the weights of a network and is the model's.
const BESIDE_WEIGHTS: [&str; 4] =
    ["generation_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

/// The same of its tokenizer alone.
const OF_TOKENIZER: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
];

/// A directory of PEFT holds what changed of a model that lies elsewhere.
fn refuse_adapter(directory: &Path) -> Result<()> {
    if directory.join("config.json").exists() {
        return Ok(());
    }
    let Some(adapter) = Json::read_optional(&directory.join("adapter_config.json"))? else { return Ok(()) };
    let base = adapter.text("base_model_name_or_path")?.map(|base| format!(" of {base:?}")).unwrap_or_default();
    let message = format!("{}: expected a model, found an adapter{base}: load its model, then the adapter", directory.display());
    Err(Error::new(ErrorKind::NotFound, message))
}

/// Says what a directory without a model holds, so that somebody sees which one it is.
fn refuse_empty(directory: &Path) -> Result<()> {
    if std::fs::symlink_metadata(directory.join("config.json")).is_ok() {
        return Ok(());
    }
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .map_err(|e| Error::io(directory, e))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .take(MANY_FILES)
        .collect();
    names.sort();
    let found = match names.as_slice() {
        [] => "an empty directory".to_string(),
        names if names.iter().any(|name| name == "snapshots") => {
            "a repository in the cache of the Hub: its models lie in the directories of snapshots".to_string()
        }
        names => {
            let (shown, others) = names.split_at(names.len().min(3));
            shown.join(", ") + if others.is_empty() { "" } else { " and others" }
        }
    };
    let message = format!("{}: expected config.json or a GGUF file in it, found {found}", directory.display());
    Err(Error::new(ErrorKind::NotFound, message))
}

/// Names that are looked at of a directory that is no model.
const MANY_FILES: usize = 100;

/// A file that is none of a model, or one of several.
fn no_model(path: &Path) -> Error {
    let is = |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    let starts = |magic: &[u8]| {
        let mut start = vec![0; magic.len()];
        File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| start == magic)
    };
    let is_regular = path.metadata().is_ok_and(|metadata| metadata.is_file()); // a pipe would be waited for
    let found = match () {
        () if is("safetensors") || path.file_name().is_some_and(|name| name == "config.json") => {
            "a file of such a directory, which is what is loaded"
        }
        () if is_regular && starts(b"GGUF") => "a GGUF file under another name, expected one that ends in .gguf",
        () => "another file",
    };
    Error::unsupported(format!("{}: expected a directory with config.json, or a GGUF file, found {found}", path.display()))
}

/// Copies a file that may not exist.
fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let directory = to.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
    copy_file(from, to)
}

/// tokenizer_config.json of a model beside another tokenizer than its own: what it says of that one's normaliser and tokens goes.
fn of_whole_tokenizer(config: Option<&serde_json::Value>) -> serde_json::Value {
    let mut config = config.cloned().unwrap_or_else(|| json!({}));
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|key, _| !["added_tokens_decoder", "tokenizer_file", "vocab_file", "merges_file"].contains(&key.as_str()));
    }
    config["tokenizer_class"] = WHOLE_CLASS.into();
    config
}

/// What a file says in place of tokenizer_config.json.
fn tokenizer_config(gguf: &Gguf) -> Result<Option<Json>> {
    let config = GgufVocabulary::read(gguf.metadata())?.map(|vocabulary| vocabulary.config()).transpose()?;
    config.map(|config| Json::parse("tokenizer_config.json", &config.to_string())).transpose()
}

/// What was to be read cannot be; a path that may be meant as a repository's name or address is told how to load one.
fn missing(path: &Path, error: std::io::Error) -> Error {
    let is_absent = error.kind() == std::io::ErrorKind::NotFound;
    let error = Error::io(path, error);
    let mut parts = path.to_str().into_iter().flat_map(|text| text.split('/'));
    let is_part = |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && !part.starts_with('.'));
    let is_name = is_part(parts.next()) && is_part(parts.next()) && parts.next().is_none();
    let starts = |start: &str| path.to_str().is_some_and(|text| text.starts_with(start));
    let hint = match () {
        () if !is_absent => return error,
        () if starts("~") => "`~` stands for a directory in shells alone",
        () if starts("http://") || starts("https://") => {
            "a repository of the Hub is loaded by its name, owner/name, and mc_model_load_hub, Model::load_hub"
        }
        () if is_name => "a repository of the Hub is loaded by mc_model_load_hub, Model::load_hub",
        () => return error,
    };
    Error::new(error.kind(), format!("{}; {hint}", error.message())).with_source(error)
}

/// What a file says in place of generation_config.json.
fn generation_config(gguf: &Gguf) -> Result<Json> {
    let metadata = gguf.metadata();
    let ends = GgufVocabulary::read(metadata)?.map(|vocabulary| vocabulary.ends()).unwrap_or_default();
    let mut config = json!({ "eos_token_id": ends });
    for (field, key) in
        [("repetition_penalty", "penalty_repeat"), ("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p")]
    {
        if let Some(x) = metadata.f32(&format!("general.sampling.{key}"))? {
            config[field] = x.into();
        }
    }
    if let Some(suppressed) = metadata.ints("tokenizer.ggml.suppress_tokens")? {
        config["suppress_tokens"] = suppressed.into();
    }
    // A file that says nothing of it means nothing by it, unlike a generation_config.json.
    config["top_k"] = metadata.u32("general.sampling.top_k")?.unwrap_or(0).into();
    config["do_sample"] = config.get("temperature").is_some_and(|x| x.as_f64().is_some_and(|x| x > 0.0)).into();
    Json::parse("general.sampling", &config.to_string())
}

/// The GGUF file that a path is, or that its directory holds in place of safetensors.
///
/// # Errors
/// `ErrorKind::Format` for a directory with several models; `ErrorKind::InvalidArgument` for a choice of no such file, or where there is
/// none to choose.
fn gguf_file(path: &Path, metadata: &Metadata, choice: Option<&str>) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if let Some(choice) = choice {
        let is_name = Path::new(choice).file_name().is_some_and(|name| name == choice);
        if !metadata.is_dir() || !is_name || !is_gguf(Path::new(choice)) {
            return Err(Error::argument(format!("file: expected the name of a .gguf file of a directory, found {choice:?}")));
        }
        return Ok(Some(path.join(choice)));
    }
    if !metadata.is_dir() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if path.join("config.json").exists() || path.join("modules.json").exists() {
        return Ok(None);
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if is_gguf(&file) && !is_later_split(&file) && !file.is_dir() {
            found.push(file);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [file] => Ok(Some(file.clone())),
        [first, second, ..] => Err(Error::format(format!(
            "{}: expected one model, found {} and {}: name the file",
            path.display(),
            first.display(),
            second.display()
        ))),
    }
}

/// Whether a file is one of several of a model, and not the first: `x-00002-of-00003.gguf`.
fn is_later_split(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    let Some((start, _)) = stem.rsplit_once("-of-").filter(|(_, count)| number(count).is_some()) else { return false };
    start.rsplit_once('-').and_then(|(_, no)| number(no)).is_some_and(|no| no > 1)
}

/// A projection of a GGUF file as the module that it was.
fn projected(path: &Path, &GgufProjection { tensor, inputs, outputs }: &GgufProjection) -> ModuleConfig {
    let place = ModulePlace::Gguf { path: path.to_path_buf(), tensor };
    ModuleConfig::Dense { place, inputs, outputs, bias: false, activation: TorchActivation::Identity, residual: false }
}

/// # Errors
/// `ErrorKind::Unsupported` for a kind that is not there, and on a device without kernels for quantised weights.
fn quant(options: &LoadOptions) -> Result<Option<&'static Mix>> {
    let Some(kind) = &options.quantization else { return Ok(None) };
    let device = match &options.device {
        Some(device) => device.clone(),
        None => Device::new(DeviceKind::Auto, 0)?,
    };
    quant_on(kind, device.name(), device.backend().keeps_quantised()).map(Some)
}

fn quant_on(kind: &str, device: &str, keeps_quantised: bool) -> Result<&'static Mix> {
    let Some(quant) = Mix::named(kind) else {
        let names = MIXES.iter().map(|mix| mix.name).collect::<Vec<_>>().join(", ");
        return Err(Error::unsupported(format!("quantization: {kind:?} is not supported ({names})")));
    };
    if !keeps_quantised {
        return Err(Error::unsupported(format!(
            "quantization: {kind:?} needs kernels for quantised weights, found the device {device} without"
        )));
    }
    Ok(quant)
}

/// # Errors
/// `ErrorKind::Unsupported` for a name that is not there, and for blocks on a GPU.
fn kv_format(options: &LoadOptions) -> Result<KvFormat> {
    let Some(name) = &options.kv_cache else { return Ok(KvFormat::F32) };
    let Some(format) = KvFormat::ALL.into_iter().find(|format| format.name() == name) else {
        let names = KvFormat::ALL.map(KvFormat::name).join(", ");
        return Err(Error::unsupported(format!("kv_cache: {name:?} is not supported ({names})")));
    };
    let device = match &options.device {
        Some(device) => device.clone(),
        None => Device::new(DeviceKind::Auto, 0)?,
    };
    if !device.backend().keeps(format) {
        let found = device.name();
        return Err(Error::unsupported(format!("kv_cache: {name:?} is for our kernels on the CPU, found the device {found}")));
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn quantised_weights_are_for_devices_with_kernels_for_them() {
        for quant in MIXES {
            let kind = quant.name;
            assert_eq!(quant_on(kind, "CPU", true).unwrap(), quant);
            let error = quant_on(kind, "CPU by tensor operations", false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!([kind, "kernels", "CPU by tensor operations"].iter().all(|word| error.message().contains(word)), "{error}");
        }
    }
}
