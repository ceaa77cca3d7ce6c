//! The directory format of sentence-transformers, versions 2 to 6: which modules follow the network, and with what settings.
//!
//! What is not implemented is an error that names the file and the key, also for settings of a module that are not known here.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::{Json, MAX_JSON, check_json_room, read_text};
use crate::error::{Error, Result};
use crate::ops::{Pooling, TorchActivation};

const MODULES: &str = "modules.json";
/// Larger than any vector: the product of two still has room.
const MAX_WIDTH: usize = 1 << 20;
/// Larger than any text, in tokens.
const MAX_TOKENS: usize = 1 << 30;

/// How vectors of a model are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Similarity {
    /// The cosine of the angle between them.
    #[default]
    Cosine,
    /// The scalar product.
    Dot,
    /// Minus the Euclidean distance.
    Euclidean,
    /// Minus the sum of the absolute differences.
    Manhattan,
}

/// How a reranker makes its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scored {
    /// By the head of a network `…ForSequenceClassification`.
    Head,
    /// By the logit of a token that may come next, less that of another where there is one.
    NextToken(u32, Option<u32>),
    /// So by the tokens `yes` and `no`, as any model is that was made to generate: whether it was trained for it nothing says.
    YesOrNo,
}

/// What the network of a reranker reads of a query and a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairFormat {
    /// Both texts, with what the tokenizer puts between them.
    Texts,
    /// What the chat template makes of a message of each; `None` = as the template looks.
    Messages(Option<MessageContent>),
    /// `Messages(None)` where there is a chat template, else `Texts`.
    Default,
}

/// The content of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageContent {
    Text,
    /// A list with one part, which is the text.
    Parts,
}

/// What a chat template is given besides the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateSettings {
    pub add_generation_prompt: bool,
    pub variables: Vec<(String, Value)>,
    /// Whether what the template puts behind a document stays when the document is cut.
    pub keeps_suffix: bool,
}

impl Default for TemplateSettings {
    fn default() -> Self {
        Self { add_generation_prompt: false, variables: Vec::new(), keeps_suffix: true }
    }
}

/// Arguments of rendering that are no variable of a template.
const OF_RENDERING: [&str; 15] = [
    "chat_template",
    "common_kwargs",
    "continue_final_message",
    "conversation",
    "documents",
    "max_length",
    "padding",
    "processor_kwargs",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];

/// What a network does, and how its outputs are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    task: &'static str,
    output: &'static str,
    of_network: &'static str,
}

const EMBEDS: Task = Task { task: "feature-extraction", output: "token_embeddings", of_network: "last_hidden_state" };
const CLASSIFIES: Task = Task { task: "sequence-classification", output: "scores", of_network: "logits" };
const GENERATES: Task = Task { task: "text-generation", output: "causal_logits", of_network: "logits" };
const TASKS: [Task; 3] = [EMBEDS, CLASSIFIES, GENERATES];

/// What a model directory says of scores of pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct RerankerConfig {
    pub scored: Scored,
    /// The full name of a class of torch; `None` = the sigmoid.
    pub activation: Option<String>,
    pub pairs: PairFormat,
    pub template: TemplateSettings,
}

impl RerankerConfig {
    /// What the reference does where nothing else is said.
    fn new(scored: Scored) -> Self {
        Self { scored, activation: None, pairs: PairFormat::Default, template: TemplateSettings::default() }
    }
}

/// One step from the pooled vector to the final one.
#[derive(Debug, Clone, PartialEq)]
pub enum ModuleConfig {
    Dense {
        place: ModulePlace,
        inputs: usize,
        outputs: usize,
        bias: bool,
        activation: TorchActivation,
        /// The input is added to the output.
        residual: bool,
    },
    LayerNorm {
        directory: PathBuf,
        width: usize,
    },
    Normalize,
}

/// Where the weights of a module are.
#[derive(Debug, Clone, PartialEq)]
pub enum ModulePlace {
    Directory(PathBuf),
    /// A tensor of a GGUF file.
    Gguf {
        path: PathBuf,
        tensor: &'static str,
    },
}

impl ModuleConfig {
    /// What sentence-transformers calls it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "Dense",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Normalize => "Normalize",
        }
    }

    /// What its weights take.
    pub fn bytes(&self) -> u64 {
        let values = match self {
            Self::Dense { inputs, outputs, residual, .. } => {
                let projected = if *residual && inputs != outputs { 2 } else { 1 };
                projected * *inputs as u64 * *outputs as u64 + *outputs as u64
            }
            Self::LayerNorm { width, .. } => 2 * *width as u64,
            Self::Normalize => 0,
        };
        values * size_of::<f32>() as u64
    }
}

/// How the configuration of a pooling names each.
const POOLING_FLAGS: [(&str, Pooling); 6] = [
    ("pooling_mode_cls_token", Pooling::Cls),
    ("pooling_mode_max_tokens", Pooling::Max),
    ("pooling_mode_mean_tokens", Pooling::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
    ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ("pooling_mode_lasttoken", Pooling::Last),
];

/// Whose settings a file of a network may name: `sentence_bert_config.json`, or its name in early versions.
pub(super) const NETWORK_SETTINGS: [&str; 7] = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"];

/// Arguments of loading that say how the reference computes, not what.
const WITHOUT_EFFECT: [&str; 8] = [
    "add_pooling_layer",
    "attn_implementation",
    "device_map",
    "local_files_only",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_cache",
    "use_safetensors",
];

/// Of loading a tokenizer, by the names of three versions: padding is no part of a vector here, on whichever side it stands.
const OF_TOKENIZER: [&str; 3] = ["tokenizer_args", "tokenizer_kwargs", "processor_kwargs"];

/// Of loading a network, by two names.
const OF_NETWORK: [&str; 2] = ["model_args", "model_kwargs"];

/// The types that weights keep their values in: their own one, and the widest.
const WHOLE_DTYPES: [&str; 3] = ["auto", "float32", "torch.float32"];

/// What a model directory says of its embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceConfig {
    /// Where modules.json is, if there is one.
    pub root: PathBuf,
    /// Where the network and its tokenizer are.
    pub network: PathBuf,
    /// Tokens; `None` = what the tokenizer says.
    pub max_length: Option<usize>,
    pub lower_case: bool,
    /// Texts that may be put in front, by name.
    pub prompts: Vec<(String, String)>,
    pub default_prompt: Option<String>,
    /// Only the first values of each vector are kept, which are not normalised again.
    pub truncate_dim: Option<usize>,
    pub similarity: Similarity,
    /// Side by side where there are several.
    pub pooling: Vec<Pooling>,
    /// Width of a token's vector, where the pooling says it.
    pub width: Option<usize>,
    /// Whether a prompt's tokens are pooled.
    pub include_prompt: bool,
    pub modules: Vec<ModuleConfig>,
    /// `None` = the directory is of no reranker.
    pub reranker: Option<RerankerConfig>,
}

impl SentenceConfig {
    /// What the reference does where nothing is said.
    pub fn new(directory: &Path) -> Self {
        Self {
            root: directory.to_path_buf(),
            network: directory.to_path_buf(),
            max_length: None,
            lower_case: false,
            // The reference knows these two without being told.
            prompts: ["query", "document"].map(|name| (name.to_string(), String::new())).to_vec(),
            default_prompt: None,
            truncate_dim: None,
            similarity: Similarity::default(),
            pooling: vec![Pooling::Mean],
            width: None,
            include_prompt: true,
            modules: Vec::new(),
            reranker: None,
        }
    }

    /// Reads a directory. One without modules.json pools as the reference does, which then looks at no other setting either: the
    /// mean, or the last token of a network that was made to generate.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut config = Self::new(directory);
        let modules = directory.join(MODULES);
        if !modules.exists() {
            let json = Json::read(&directory.join("config.json"))?;
            let architecture = json.texts("architectures")?.and_then(|list| list.into_iter().next()).unwrap_or_default();
            let generates = architecture.ends_with("ForCausalLM") && json.flag("is_causal", true)?;
            if generates {
                config.pooling = vec![Pooling::Last];
            }
            if generates || architecture.ends_with("ForSequenceClassification") {
                let scored = if generates { Scored::YesOrNo } else { Scored::Head };
                config.reranker = Some(RerankerConfig { activation: activation_of(&json)?, ..RerankerConfig::new(scored) });
            }
            return Ok(config);
        }
        let pooled = config.read_modules(directory, &modules)?;
        let (task, pairs, template) = config.read_network_settings()?;
        config.check_task(pooled, task)?;
        if let Some(reranker) = &mut config.reranker {
            (reranker.pairs, reranker.template) = (pairs, template);
            reranker.activation = activation_of(&Json::read(&config.network.join("config.json"))?)?;
        }
        if let Some(json) = Json::read_optional(&directory.join("config_sentence_transformers.json"))? {
            config.read_model_settings(&json)?;
        }
        Ok(config)
    }

    /// The files of a directory that say and hold what follows the network, from its root on; not all need exist.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let path = self.root.join(MODULES);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let mut files = [MODULES, "config_sentence_transformers.json"].map(PathBuf::from).to_vec();
        for folder in folders(&path)? {
            let names: &[&str] =
                if self.root.join(&folder) == self.network { &[] } else { &["config.json", "model.safetensors"] };
            files.extend(names.iter().map(|name| folder.join(name)));
        }
        let network = self.network.strip_prefix(&self.root).unwrap_or(Path::new(""));
        files.extend(NETWORK_SETTINGS.iter().map(|kind| network.join(format!("sentence_{kind}_config.json"))));
        Ok(files)
    }

    /// What a directory has to hold so that [`read`](Self::read) finds the pooling, and the modules of a GGUF file behind it: names and
    /// texts.
    pub fn written(&self, width: usize) -> Vec<(PathBuf, Value)> {
        if self.modules.is_empty() && self.pooling == [Pooling::Mean] {
            return Vec::new();
        }
        let mut pooling = json!({ "word_embedding_dimension": width });
        for (key, mode) in POOLING_FLAGS {
            pooling[key] = self.pooling.contains(&mode).into();
        }
        let kinds = ["Transformer", "Pooling"].into_iter().chain(self.modules.iter().map(ModuleConfig::kind));
        let module = |(i, kind): (usize, &str)| {
            let path = if i == 0 { String::new() } else { format!("{i}_{kind}") };
            json!({ "idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}") })
        };
        let modules = kinds.enumerate().map(module).collect();
        let mut files = vec![(PathBuf::from("1_Pooling/config.json"), pooling), (PathBuf::from(MODULES), modules)];
        for (folder, _, inputs, outputs) in self.projections() {
            let identity = "torch.nn.modules.linear.Identity";
            let config =
                json!({ "in_features": inputs, "out_features": outputs, "bias": false, "activation_function": identity });
            files.push((folder.join("config.json"), config));
        }
        files
    }

    /// The projections of a GGUF file: the folder of each in a directory, its tensor, and its inputs and outputs.
    pub fn projections(&self) -> impl Iterator<Item = (PathBuf, &'static str, usize, usize)> {
        let behind_pooling = self.modules.iter().zip(2..);
        behind_pooling.filter_map(|(module, i)| match module {
            ModuleConfig::Dense { place: ModulePlace::Gguf { tensor, .. }, inputs, outputs, .. } => {
                Some((PathBuf::from(format!("{i}_{}", module.kind())), *tensor, *inputs, *outputs))
            }
            _ => None,
        })
    }

    /// Returns whether there is a Pooling.
    fn read_modules(&mut self, directory: &Path, path: &Path) -> Result<bool> {
        let mut pooled = false;
        for (i, entry) in entries(path)?.into_iter().enumerate() {
            known_keys(&entry, &["idx", "name", "path", "type", "kwargs"])?;
            // Names of arguments that a caller may give the reference for this module, where he gives some.
            if entry.get("kwargs").is_some_and(|names| names.value().as_object().is_none_or(|fields| !fields.is_empty())) {
                entry.texts("kwargs")?;
            }
            let kind = entry.text("type")?.ok_or_else(|| entry.invalid("type", "expected text, found nothing"))?;
            let folder = directory.join(folder(&entry)?);
            let name = kind.strip_prefix("sentence_transformers.").and_then(|kind| kind.rsplit('.').next());
            match (name, i, pooled) {
                (Some("Transformer"), 0, _) => self.network = folder,
                (Some("Pooling"), _, false) if i > 0 => {
                    self.read_pooling(&folder)?;
                    pooled = true;
                }
                (Some("LogitScore"), 1, false) => {
                    let scored = logit_score(&folder)?;
                    self.reranker = Some(RerankerConfig::new(scored));
                    self.pooling = vec![Pooling::Last];
                }
                (Some("Dense"), _, true) => self.modules.push(dense(&folder)?),
                (Some("LayerNorm"), _, true) => self.modules.push(layer_norm(&folder)?),
                (Some("Normalize"), _, true) => self.modules.push(normalize(&folder)?),
                // It does nothing outside of training.
                (Some("Dropout"), _, true) => {}
                _ => {
                    let expected =
                        "expected Transformer, then Pooling and any of Dense, LayerNorm, Normalize, Dropout, or LogitScore";
                    return Err(entry.unsupported("type", expected));
                }
            }
        }
        Ok(pooled)
    }

    /// Whether the modules are those of what the network does.
    fn check_task(&mut self, pooled: bool, task: Task) -> Result<()> {
        match (pooled, self.reranker.is_some()) {
            (true, false) if task == EMBEDS => Ok(()),
            (false, true) if task == GENERATES => Ok(()),
            (false, false) if task == CLASSIFIES => {
                self.reranker = Some(RerankerConfig::new(Scored::Head));
                Ok(())
            }
            (false, false) if task == EMBEDS => Err(Error::format("modules.json: expected a Pooling module, found none")),
            _ => {
                let expected = format!(
                    "{:?} before a Pooling, {:?} before a LogitScore, {:?} alone",
                    EMBEDS.task, GENERATES.task, CLASSIFIES.task
                );
                Err(Error::unsupported(format!("transformer_task: expected {expected}, found {:?}", task.task)))
            }
        }
    }

    fn read_pooling(&mut self, folder: &Path) -> Result<()> {
        let json = read_config(folder)?;
        let mut keys = vec!["word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"];
        keys.extend(POOLING_FLAGS.map(|(key, _)| key));
        known_keys(&json, &keys)?;
        self.width = match json.count("embedding_dimension", MAX_WIDTH)? {
            Some(width) => Some(width),
            None => json.count("word_embedding_dimension", MAX_WIDTH)?,
        };
        self.include_prompt = json.flag("include_prompt", true)?;
        self.pooling = match json.get("pooling_mode") {
            None => {
                let mut modes = Vec::new();
                for (key, pooling) in POOLING_FLAGS {
                    if json.flag(key, false)? {
                        modes.push(pooling);
                    }
                }
                if modes.is_empty() { vec![Pooling::Mean] } else { modes }
            }
            Some(mode) => {
                let names = if mode.value().is_array() {
                    json.texts("pooling_mode")?
                } else {
                    json.text("pooling_mode")?.map(|n| vec![n])
                };
                let names = names.unwrap_or_default();
                let modes = names.iter().map(|name| pooling_named(name)).collect::<Option<Vec<_>>>().filter(|m| !m.is_empty());
                modes.ok_or_else(|| {
                    json.unsupported("pooling_mode", "expected cls, max, mean, mean_sqrt_len_tokens, weightedmean or lasttoken")
                })?
            }
        };
        Ok(())
    }

    /// `sentence_bert_config.json`, or its name in early versions. Returns what the network does, what it reads of pairs, and what
    /// else a template does.
    fn read_network_settings(&mut self) -> Result<(Task, PairFormat, TemplateSettings)> {
        let mut files = NETWORK_SETTINGS.iter().map(|kind| self.network.join(format!("sentence_{kind}_config.json")));
        let Some(path) = files.find(|path| path.exists()) else {
            return Ok((EMBEDS, PairFormat::Default, TemplateSettings::default()));
        };
        let json = Json::read(&path)?;
        let arguments = ["model_args", "config_args", "tokenizer_args", "model_kwargs", "processor_kwargs"];
        let settings = ["max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"];
        // Padding is no part of a vector here, whether it is removed or not.
        let others = ["unpad_inputs", "config_kwargs", "tokenizer_kwargs", "processing_kwargs"];
        known_keys(&json, &[&settings[..], &arguments, &others].concat())?;
        json.flag("unpad_inputs", false)?;
        for key in arguments.into_iter().chain(["config_kwargs", "tokenizer_kwargs"]) {
            json.object(key)?.map_or(Ok(()), |given| check_arguments(key, &given))?;
        }
        self.max_length = json.count("max_seq_length", MAX_TOKENS)?;
        if self.max_length == Some(0) {
            return Err(json.invalid("max_seq_length", "expected at least 1 or null, found 0"));
        }
        self.lower_case = json.flag("do_lower_case", false)?;
        let template = match json.object("processing_kwargs")? {
            Some(given) => {
                known_keys(&given, &["chat_template"])?;
                given.object("chat_template")?.map(|given| template_settings(&given)).transpose()?.unwrap_or_default()
            }
            None => TemplateSettings::default(),
        };
        let task = json.text("transformer_task")?.unwrap_or_else(|| EMBEDS.task.to_string());
        let Some(task) = TASKS.iter().copied().find(|known| known.task == task) else {
            let known = TASKS.map(|task| task.task).join(", ");
            return Err(json.unsupported("transformer_task", &format!("expected one of {known}")));
        };
        let only = |json: &Json, key: &str, only: &str| match json.text(key)? {
            Some(found) if found != only => Err(json.unsupported(key, &format!("expected {only:?}"))),
            _ => Ok(()),
        };
        only(&json, "module_output_name", task.output)?;
        let Some(modality) = json.object("modality_config")? else {
            return Ok((task, PairFormat::Default, template));
        };
        let scores = task != EMBEDS;
        known_keys(&modality, if scores { &["text", "message"] } else { &["text"] })?;
        let mut pairs = PairFormat::Texts;
        for kind in ["text", "message"] {
            let Some(given) = modality.object(kind)? else { continue };
            known_keys(
                &given,
                if kind == "text" { &["method", "method_output_name"] } else { &["method", "method_output_name", "format"] },
            )?;
            only(&given, "method", "forward")?;
            only(&given, "method_output_name", task.of_network)?;
            if kind == "message" {
                pairs = PairFormat::Messages(match given.text("format")?.as_deref() {
                    None | Some("auto") => None,
                    Some("flat") => Some(MessageContent::Text),
                    Some("structured") => Some(MessageContent::Parts),
                    Some(_) => return Err(given.unsupported("format", "expected flat or structured")),
                });
            }
        }
        Ok((task, pairs, template))
    }

    fn read_model_settings(&mut self, json: &Json) -> Result<()> {
        let kind = if self.reranker.is_some() { "CrossEncoder" } else { "SentenceTransformer" };
        if json.text("model_type")?.is_some_and(|found| found != kind) {
            return Err(json.unsupported("model_type", &format!("expected {kind:?}")));
        }
        if let Some(reranker) = &mut self.reranker {
            reranker.activation = json.text("activation_fn")?.or(reranker.activation.take());
        }
        self.truncate_dim = json.count("truncate_dim", MAX_WIDTH)?;
        if self.truncate_dim == Some(0) {
            return Err(json.invalid("truncate_dim", "expected at least 1 or null, found 0"));
        }
        if let Some(prompts) = json.object("prompts")? {
            for name in prompts.value().as_object().into_iter().flat_map(|prompts| prompts.keys()) {
                let prompt = prompts.text(name)?.unwrap_or_default();
                match self.prompts.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => *known = prompt,
                    None => self.prompts.push((name.clone(), prompt)),
                }
            }
        }
        if let Some(name) = json.text("default_prompt_name")? {
            let prompt = self.prompts.iter().find(|(known, _)| *known == name);
            let prompt =
                prompt.ok_or_else(|| json.invalid("default_prompt_name", &format!("expected one of prompts, found {name:?}")))?;
            self.default_prompt = Some(prompt.1.clone());
        }
        self.similarity = match json.text("similarity_fn_name")?.as_deref() {
            None | Some("cosine" | "cos_sim") => Similarity::Cosine,
            Some("dot" | "dot_score") => Similarity::Dot,
            Some("euclidean" | "euclidean_sim") => Similarity::Euclidean,
            Some("manhattan" | "manhattan_sim") => Similarity::Manhattan,
            Some(_) => return Err(json.unsupported("similarity_fn_name", "expected cosine, dot, euclidean or manhattan")),
        };
        Ok(())
    }
}

/// The arguments that a template is rendered with.
fn template_settings(given: &Json) -> Result<TemplateSettings> {
    let fields = given.value().as_object().into_iter().flatten();
    let variables = fields.filter(|(name, _)| !["add_generation_prompt", "restore_suffix"].contains(&name.as_str()));
    let variables: Vec<_> = variables.map(|(name, value)| (name.clone(), value.clone())).collect();
    if let Some((name, _)) = variables.iter().find(|(name, _)| OF_RENDERING.contains(&name.as_str())) {
        return Err(given.unsupported(name, "expected variables of the template, add_generation_prompt and restore_suffix"));
    }
    Ok(TemplateSettings {
        add_generation_prompt: given.flag("add_generation_prompt", false)?,
        variables,
        keeps_suffix: given.flag("restore_suffix", true)?,
    })
}

/// Whether arguments of loading change no vector.
fn check_arguments(key: &str, given: &Json) -> Result<()> {
    let (padding, dtypes): (&[&str], &[&str]) = (
        if OF_TOKENIZER.contains(&key) { &["padding_side"] } else { &[] },
        if OF_NETWORK.contains(&key) { &["dtype", "torch_dtype"] } else { &[] },
    );
    known_keys(given, &[&WITHOUT_EFFECT, padding, dtypes].concat())?;
    for dtype in dtypes {
        if given.text(dtype)?.is_some_and(|found| !WHOLE_DTYPES.contains(&found.as_str())) {
            return Err(given.unsupported(dtype, "expected float32 or auto: other types round weights"));
        }
    }
    Ok(())
}

/// The activation that config.json names for scores, as versions from 4 on write it, or those before.
fn activation_of(config: &Json) -> Result<Option<String>> {
    match config.object("sentence_transformers")? {
        Some(settings) if settings.has("activation_fn") => settings.text("activation_fn"),
        _ => config.text("sbert_ce_default_activation_function"),
    }
}

fn logit_score(folder: &Path) -> Result<Scored> {
    let json = read_config(folder)?;
    known_keys(&json, &["true_token_id", "false_token_id", "module_input_name"])?;
    if json.text("module_input_name")?.is_some_and(|found| found != GENERATES.output) {
        return Err(json.unsupported("module_input_name", &format!("expected {:?}", GENERATES.output)));
    }
    let token = |key: &str| json.count(key, u32::MAX as usize).map(|id| id.map(|id| id as u32));
    let yes = token("true_token_id")?;
    let yes = yes.ok_or_else(|| json.invalid("true_token_id", "expected a token's id, found nothing"))?;
    Ok(Scored::NextToken(yes, token("false_token_id")?))
}

/// The modules that modules.json lists.
fn entries(path: &Path) -> Result<Vec<Json>> {
    let bad = |message: String| Error::format(format!("modules.json: {message}"));
    let text = read_text(path, MAX_JSON)?;
    check_json_room("modules.json", &text)?;
    let list: Value = serde_json::from_str(&text).map_err(|e| bad(format!("not valid JSON: {e}")).with_source(e))?;
    let list = list.as_array().ok_or_else(|| bad("expected a list".to_string()))?;
    list.iter().enumerate().map(|(i, entry)| Json::parse(&format!("modules.json: {i}"), &entry.to_string())).collect()
}

/// Where the files of a module are, from the list's directory on.
fn folder(module: &Json) -> Result<PathBuf> {
    let folder = module.text("path")?.unwrap_or_default();
    // "." is the directory itself.
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&folder).components().all(inside) {
        return Err(module.invalid("path", &format!("expected a folder of this directory, found {folder:?}")));
    }
    Ok(PathBuf::from(folder))
}

fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    entries(path)?.iter().map(folder).collect()
}

fn pooling_named(name: &str) -> Option<Pooling> {
    Some(match name {
        "cls" => Pooling::Cls,
        "max" => Pooling::Max,
        "mean" => Pooling::Mean,
        "mean_sqrt_len_tokens" => Pooling::MeanSqrtLen,
        "weightedmean" => Pooling::WeightedMean,
        "lasttoken" => Pooling::Last,
        _ => return None,
    })
}

fn dense(folder: &Path) -> Result<ModuleConfig> {
    let json = read_config(folder)?;
    let keys =
        ["in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name", "use_residual"];
    known_keys(&json, &keys)?;
    on_the_sentence(&json)?;
    let activation = match json.text("activation_function")? {
        None => TorchActivation::Tanh,
        Some(class) => TorchActivation::named(&class).ok_or_else(|| {
            json.unsupported("activation_function", &format!("expected one of torch.nn: {}", TorchActivation::names()))
        })?,
    };
    Ok(ModuleConfig::Dense {
        place: ModulePlace::Directory(folder.to_path_buf()),
        inputs: json.size("in_features", MAX_WIDTH)?,
        outputs: json.size("out_features", MAX_WIDTH)?,
        bias: json.flag("bias", true)?,
        activation,
        residual: json.flag("use_residual", false)?,
    })
}

fn layer_norm(folder: &Path) -> Result<ModuleConfig> {
    let json = read_config(folder)?;
    known_keys(&json, &["dimension"])?;
    Ok(ModuleConfig::LayerNorm { directory: folder.to_path_buf(), width: json.size("dimension", MAX_WIDTH)? })
}

/// Its folder may be missing: it holds nothing.
fn normalize(folder: &Path) -> Result<ModuleConfig> {
    if folder.join("config.json").exists() {
        let json = read_config(folder)?;
        known_keys(&json, &["module_input_name", "module_output_name"])?;
        on_the_sentence(&json)?;
    }
    Ok(ModuleConfig::Normalize)
}

/// A module that works on the pooled vector and leaves it in its place.
fn on_the_sentence(json: &Json) -> Result<()> {
    for key in ["module_input_name", "module_output_name"] {
        if json.text(key)?.is_some_and(|found| found != "sentence_embedding") {
            return Err(json.unsupported(key, "expected \"sentence_embedding\""));
        }
    }
    Ok(())
}

fn read_config(folder: &Path) -> Result<Json> {
    let name = folder.file_name().map_or_else(String::new, |name| format!("{}/", name.to_string_lossy()));
    Json::parse(&format!("{name}config.json"), &read_text(&folder.join("config.json"), MAX_JSON)?)
}

/// A setting that nobody here knows may change the result.
fn known_keys(json: &Json, known: &[&str]) -> Result<()> {
    let mut keys = json.value().as_object().into_iter().flat_map(|fields| fields.keys());
    match keys.find(|key| !known.contains(&key.as_str()) && json.get(key).is_some()) {
        Some(key) => Err(json.unsupported(key, "expected no setting of this name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::ErrorKind;

    const TRANSFORMER: &str = r#"{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}"#;
    const POOLING: &str = r#"{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}"#;

    /// A directory with these modules and files.
    fn directory(modules: &[&str], files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("modules.json"), format!("[{}]", modules.join(","))).unwrap();
        for (name, text) in [("1_Pooling/config.json", r#"{"pooling_mode": "mean"}"#)].iter().chain(files) {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let dense = |path: &str| format!(r#"{{"path": "{path}", "type": "sentence_transformers.models.Dense"}}"#);
        let normalize = r#"{"path": "2_N", "type": "sentence_transformers.models.Normalize"}"#;
        type Case<'a> = (Vec<&'a str>, Vec<(&'a str, &'a str)>, ErrorKind, &'a str);
        let outside = dense("../elsewhere");
        let inside = dense("2_Dense");
        let cases: Vec<Case<'_>> = vec![
            (vec![TRANSFORMER], vec![], ErrorKind::Format, "Pooling"),
            (vec![POOLING, TRANSFORMER], vec![], ErrorKind::Unsupported, "modules.json: 0: type"),
            (vec![TRANSFORMER, normalize, POOLING], vec![], ErrorKind::Unsupported, "modules.json: 1: type"),
            (vec![TRANSFORMER, r#"{"path": "", "type": "custom.Pooling"}"#], vec![], ErrorKind::Unsupported, "custom.Pooling"),
            (vec![TRANSFORMER, POOLING, &outside], vec![], ErrorKind::Format, "elsewhere"),
            (
                vec![TRANSFORMER, POOLING],
                vec![("1_Pooling/config.json", r#"{"pooling_mode": "median"}"#)],
                ErrorKind::Unsupported,
                "median",
            ),
            (vec![TRANSFORMER, POOLING], vec![("1_Pooling/config.json", r#"{"new_key": 1}"#)], ErrorKind::Unsupported, "new_key"),
            (
                vec![TRANSFORMER, POOLING, &inside],
                vec![("2_Dense/config.json", r#"{"in_features": 2, "out_features": 2, "activation_function": "my.Own"}"#)],
                ErrorKind::Unsupported,
                "2_Dense/config.json: activation_function",
            ),
            (
                vec![TRANSFORMER, POOLING, &inside],
                vec![("2_Dense/config.json", r#"{"in_features": 2, "out_features": 1073741824}"#)],
                ErrorKind::Format,
                "2_Dense/config.json: out_features",
            ),
            (
                vec![TRANSFORMER, POOLING, normalize],
                vec![("2_N/config.json", r#"{"module_input_name": "token_embeddings"}"#)],
                ErrorKind::Unsupported,
                "module_input_name",
            ),
            (
                vec![TRANSFORMER, POOLING],
                vec![("sentence_bert_config.json", r#"{"max_seq_length": 0}"#)],
                ErrorKind::Format,
                "max_seq_length",
            ),
            (
                vec![TRANSFORMER, POOLING],
                vec![("config_sentence_transformers.json", r#"{"default_prompt_name": "search"}"#)],
                ErrorKind::Format,
                "default_prompt_name",
            ),
            (
                vec![TRANSFORMER, POOLING],
                vec![("config_sentence_transformers.json", r#"{"similarity_fn_name": "taxi"}"#)],
                ErrorKind::Unsupported,
                "similarity_fn_name",
            ),
        ];
        for (modules, files, kind, names) in cases {
            let directory = directory(&modules, &files);
            let error = SentenceConfig::read(directory.path()).unwrap_err();
            assert!(error.kind() == kind && error.message().contains(names), "{names}: {error:?}");
        }
    }

    #[test]
    fn settings_that_change_no_vector_are_accepted_and_their_neighbours_refused() {
        let with = |kwargs: &str| TRANSFORMER.replace("}", &format!(r#", "kwargs": {kwargs}}}"#));
        let read = |transformer: &str, settings: &str| {
            let directory = directory(&[transformer, POOLING], &[("sentence_bert_config.json", settings)]);
            SentenceConfig::read(directory.path()).map(|_| ())
        };
        for settings in [
            r#"{"tokenizer_args": {"padding_side": "left"}, "model_args": {"torch_dtype": "float32"}}"#,
            r#"{"tokenizer_kwargs": {"padding_side": "right"}, "model_kwargs": {"dtype": "auto", "attn_implementation": "sdpa"}}"#,
            r#"{"processor_kwargs": {"padding_side": "left"}, "model_args": {"dtype": "torch.float32", "torch_dtype": null}}"#,
        ] {
            read(TRANSFORMER, settings).unwrap();
        }
        for (settings, names) in [
            (r#"{"model_args": {"torch_dtype": "bfloat16"}}"#, "model_args: torch_dtype"),
            (r#"{"model_kwargs": {"padding_side": "left"}}"#, "model_kwargs: padding_side"),
            (r#"{"tokenizer_args": {"truncation_side": "left"}}"#, "tokenizer_args: truncation_side"),
            (r#"{"config_args": {"dtype": "float32"}}"#, "config_args: dtype"),
        ] {
            let error = read(TRANSFORMER, settings).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.message().contains(names), "{names}: {error}");
        }
        for kwargs in ["[]", "{}", "null", r#"["task"]"#] {
            read(&with(kwargs), "{}").unwrap();
        }
        for kwargs in ["7", r#"{"task": "a"}"#, "[7]"] {
            assert!(read(&with(kwargs), "{}").unwrap_err().message().contains("modules.json: 0: kwargs"), "{kwargs}");
        }
    }

    #[test]
    fn a_dense_module_has_any_function_of_torch_that_has_no_parameters() {
        const DENSE: &str = r#"{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}"#;
        let read = |activation: &str| {
            let config = format!(r#"{{"in_features": 2, "out_features": 2{activation}}}"#);
            let directory = directory(&[TRANSFORMER, POOLING, DENSE], &[("2_Dense/config.json", &config)]);
            SentenceConfig::read(directory.path()).map(|config| match &config.modules[..] {
                [ModuleConfig::Dense { activation, .. }] => *activation,
                other => panic!("{other:?}"),
            })
        };
        for (name, kind) in TorchActivation::ALL {
            assert_eq!(read(&format!(r#", "activation_function": "torch.nn.modules.activation.{name}""#)).unwrap(), kind);
        }
        assert_eq!(read("").unwrap(), TorchActivation::Tanh);
        let error = read(r#", "activation_function": "torch.nn.modules.activation.PReLU""#).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("PReLU"), "{error}");
    }

    #[test]
    fn both_styles_of_pooling_give_the_same_modes_in_their_order() {
        let flags = r#"{"pooling_mode_lasttoken": true, "pooling_mode_cls_token": true, "word_embedding_dimension": 3}"#;
        let names = r#"{"pooling_mode": ["lasttoken", "cls"], "embedding_dimension": 3}"#;
        for (text, want) in [(flags, [Pooling::Cls, Pooling::Last]), (names, [Pooling::Last, Pooling::Cls])] {
            let directory = directory(&[TRANSFORMER, POOLING], &[("1_Pooling/config.json", text)]);
            let config = SentenceConfig::read(directory.path()).unwrap();
            assert_eq!((config.pooling.as_slice(), config.width), (want.as_slice(), Some(3)));
        }
    }
}
