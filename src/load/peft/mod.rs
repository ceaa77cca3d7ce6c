//! Adapters in the directory format of PEFT: adapter_config.json and adapter_model.safetensors.
//!
//! As PEFT 0.21 reads them, but strict: each tensor must have a place, each module that the configuration targets its tensors, and
//! an option that changes the result and is not implemented is an error that names it.

mod config;
mod gguf;
mod head;
mod native;
mod plan;
mod stacks;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use config::{BiasKind, ModuleNames, PeftConfig, Targets};
pub use head::{HeadChange, HeadLayer};
pub use plan::{Beside, Fresh, PeftPlan};
use stacks::TargetedStack;
pub use stacks::transposed;

use super::replace::{replace, write_text};
use super::safetensors::{Tensors, write_safetensors};
use super::{Checkpoint, Json, MAX_JSON, ModelTensors, fnv, read_text};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{
    Adapter, Entry, ExpertStack, LowRank, Module, Replaced, Role, Slot, TensorSource, TokenRows, Transformer, Weights,
};
use crate::ops::{Backend, Format, Matrix, MatrixBuilder, Use};

const CONFIG: &str = "adapter_config.json";
/// Where it names the model.
const BASE: &str = "base_model_name_or_path";
const TENSORS: &str = "adapter_model.safetensors";
/// What older versions of PEFT wrote.
const PICKLE: &str = "adapter_model.bin";
/// What PEFT puts into the names of a module that it saves whole: of what is trained, and of what was there before.
const SAVED: &str = ".modules_to_save.";
const ORIGINAL: &str = ".original_module.";
/// What it puts into those of a table of which rows are trained: a table within it is the model's own.
const TOKENS_TABLE: &str = ".token_adapter.base_layer.";
/// What PEFT saves of a classifier, without being asked to.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];
/// What PEFT calls an adapter that nobody has named. Its parameters have it in a model's own state, which some programs save as it is.
const UNNAMED: &str = "default";
/// What PEFT puts in front of every name.
const PREFIX: &str = "base_model.model.";
/// In front of the layers of a language model alone, and of one within another, as transformers 5 and 4 have it. Whichever of them was
/// trained, the layers are the same: its `AutoModelForCausalLM` makes of some checkpoints the one, of some the other.
const LANGUAGE_MODELS: [&str; 3] = ["model.", "model.language_model.", "language_model.model."];
/// What transformers 5 calls modules that checkpoints store under another name: LFM3's, and what chooses experts of Mixtral and Granite.
const RENAMED: [(&str, &str); 3] = [
    ("self_attn.gate_proj", "self_attn.g_proj"),
    ("block_sparse_moe.gate", "mlp.gate"),
    ("block_sparse_moe.router.layer", "block_sparse_moe.router"),
];

/// How the names of modules that PEFT saw are made of those of the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// What stands in front of the names of layers.
    pub prefix: String,
    /// Whether no module has another name: transformers 4 called some as they are stored.
    pub as_stored: bool,
}

/// An adapter and what its configuration says of it.
pub struct Peft {
    pub adapter: Adapter,
    /// Of a classifier's head, which merging alone applies.
    pub head: Vec<HeadChange>,
    /// Of the modules in its file.
    pub naming: Naming,
    pub config_json: String,
    pub rank: usize,
    pub alpha: f32,
    /// Trained values.
    pub parameters: u64,
    /// Of the configuration and of the values: of those of a file a sample.
    pub fingerprint: u64,
}

impl Peft {
    /// Reads an adapter of a network, and of the head that follows it.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Format` naming a tensor without a place, a module without its tensors, a shape that does not fit;
    /// `Unsupported` for an option that is not implemented.
    pub fn read(directory: &Path, network: &Transformer, head: &[HeadLayer]) -> Result<Self> {
        let config_json = read_text(&directory.join(CONFIG), MAX_JSON)?;
        let mut on_bytes = |_, _| Ok(());
        let path = directory.join(TENSORS);
        if !path.exists() && directory.join(PICKLE).exists() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{}: expected {TENSORS}, found {PICKLE}, a pickle of torch, which is not read: save the adapter as safetensors, as \
                     save_pretrained of a current version does",
                    directory.display()
                ),
            ));
        }
        let mut checkpoint = Checkpoint::open_file(&path, &mut on_bytes)?;
        Self::of(config_json, &mut checkpoint, network, head)
    }

    /// The same of what a configuration and tensors are.
    fn of(config_json: String, checkpoint: &mut dyn ModelTensors, network: &Transformer, head: &[HeadLayer]) -> Result<Self> {
        let raw = Json::parse(CONFIG, &config_json)?;
        let config = PeftConfig::parse(&raw, network.is_tied())?;
        Self::fit(config, config_json, checkpoint, network, head).map_err(|error| match (error.kind(), raw.text(BASE)) {
            // What does not fit is most often of another model.
            (ErrorKind::Format, Ok(Some(base))) => {
                Error::new(ErrorKind::Format, format!("{}; the adapter's {BASE} is {base:?}", error.message())).with_source(error)
            }
            _ => error,
        })
    }

    fn fit(
        mut config: PeftConfig,
        config_json: String,
        checkpoint: &mut dyn ModelTensors,
        network: &Transformer,
        head: &[HeadLayer],
    ) -> Result<Self> {
        let native = native::modules(network, &checkpoint.names());
        let layers = if native.is_some() { native::LAYERS } else { network.config().names.layers() };
        let modules = native.map_or(Cow::Borrowed(network.modules()), Cow::Owned);
        let (naming, is_headless) = naming(network, &modules, layers, &checkpoint.names());
        if is_headless {
            config.untie();
        }
        let reader = Reader::new(&config, (network, head), modules, (naming, is_headless), checkpoint)?;
        let cpu = Backend::new(&candle_core::Device::Cpu);
        let mut source = Named(&mut *checkpoint);
        let mut weights = Weights::new(&mut source, &cpu, Some(Format::F32));
        let (mut adapter, along) = reader.changes(&mut weights)?;
        let head = reader.head_changes(&mut weights)?;
        let mut parameters = weights.parameters() - along;
        // A vocabulary's matrices are large: they stay as stored.
        let mut weights = Weights::new(&mut source, &cpu, None);
        adapter.weights = reader.weights(&mut weights)?;
        parameters += adapter.weights.iter().map(|own| own.module.outputs as u64 * own.module.inputs as u64).sum::<u64>();
        if adapter.low_rank.is_empty() && adapter.weights.is_empty() && adapter.tokens.is_empty() && head.is_empty() {
            return Err(Error::format(format!("{CONFIG}: target_modules: expected a module of the model, found none")));
        }
        let naming = reader.naming;
        let fingerprint = fnv(checkpoint.fingerprint(), config_json.as_bytes());
        Ok(Self { adapter, head, naming, rank: config.rank, alpha: config.alpha as f32, parameters, fingerprint, config_json })
    }

    /// Writes the adapter so that [`read`](Self::read) and PEFT read it: the configuration as it was, values in F32. Both files are
    /// written beside their places and renamed.
    ///
    /// # Errors
    /// `Io`, `NotFound`, naming the path.
    pub fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        let config = PeftConfig::parse(&Json::parse(CONFIG, &self.config_json)?, false)?;
        let mut tensors = tensors_of(&self.adapter, &config, &self.naming)?;
        tensors.extend(self.head.iter().flat_map(HeadChange::tensors));
        replace(&[directory.join(TENSORS), directory.join(CONFIG)], |parts| {
            write_safetensors(&parts[0], &tensors, &[TORCH])?;
            write_text(&parts[1], &self.config_json)
        })
    }
}

/// Rows of matrices that are compared at once.
const COMPARED_ROWS: usize = 256;

/// What stands in the metadata of tensors that torch may load.
const TORCH: (&str, &str) = ("format", "pt");

/// Names, shapes and values, sorted by name.
fn tensors_of<'a>(adapter: &'a Adapter, config: &PeftConfig, naming: &Naming) -> Result<Tensors<'a>> {
    let mut tensors = BTreeMap::new();
    let name = |module: &Module, field: &str| tensor_name(module, naming, field);
    let all = |matrix: &Matrix| {
        Ok::<_, Error>((vec![matrix.outputs(), matrix.inputs()], Cow::Owned(matrix.rows(0..matrix.outputs())?)))
    };
    let (stacked, plain): (Vec<&LowRank>, Vec<&LowRank>) = adapter.low_rank.iter().partition(|one| one.module.stack.is_some());
    let stack = |one: &LowRank| one.module.stack.as_ref().map(|(stack, _)| stack.clone());
    let groups: Vec<&[&LowRank]> = stacked.chunk_by(|a, b| same_stack(&a.module, &b.module)).collect();
    let stacks: Vec<_> = groups.iter().filter_map(|group| stack(group[0])).collect();
    for (TargetedStack { stack, path, .. }, group) in stacks::targeted(config, naming, &stacks).iter().zip(groups) {
        let rank = group[0].a.outputs();
        let rows = |one: &&LowRank| Ok((one.a.rows(0..rank)?, one.b.rows(0..stack.outputs)?));
        let each = group.iter().map(rows).collect::<Result<Vec<_>>>()?;
        let each: Vec<_> = each.iter().map(|(a, b)| (a.as_slice(), b.as_slice())).collect();
        tensors.extend(stack_tensors(stack, path, rank, &each)?);
    }
    for TokenRows { module, rows, .. } in &adapter.tokens {
        tensors.insert(name(module, "token_adapter.trainable_tokens_delta"), all(rows)?);
    }
    for LowRank { module, a, b, b_bias, magnitude, .. } in plain {
        if is_looked_up(module, config, naming) {
            let (a, b) = (a.rows(0..a.outputs())?, b.rows(0..b.outputs())?);
            tensors.extend(embedding_tensors(module, naming, &a, &b)?);
            continue;
        }
        tensors.insert(name(module, "lora_A.weight"), all(a)?);
        tensors.insert(name(module, "lora_B.weight"), all(b)?);
        for (field, vector) in [("lora_B.bias", b_bias), ("lora_magnitude_vector", magnitude)] {
            if let Some(values) = vector {
                tensors.insert(name(module, field), (vec![values.len()], Cow::Borrowed(values.as_slice())));
            }
        }
    }
    // PEFT keeps a module that it changes within another one.
    let own = |module: &Module, field: &str| {
        let wrapped = adapter.low_rank.iter().any(|low_rank| low_rank.module.name == module.name);
        name(module, &if wrapped { format!("base_layer.{field}") } else { field.to_string() })
    };
    for (module, bias) in &adapter.biases {
        tensors.insert(own(module, "bias"), (vec![bias.len()], Cow::Borrowed(bias.as_slice())));
    }
    for Replaced { module, weight, .. } in &adapter.weights {
        tensors.insert(own(module, "weight"), all(weight)?);
    }
    Ok(tensors)
}

/// Whether a module's low-rank change is that of a table whose rows are looked up.
fn is_looked_up(module: &Module, config: &PeftConfig, naming: &Naming) -> bool {
    module.role == Role::Embedding && config.weight_key(&path(module, naming)).is_none()
}

/// The two tensors of such a change, of `A`, `(R, C)`, and `B`, `(V, R)`.
fn embedding_tensors<'a>(module: &Module, naming: &Naming, a: &[f32], b: &[f32]) -> Result<Tensors<'a>> {
    let (rank, name) = (a.len() / module.inputs, |field: &str| tensor_name(module, naming, field));
    Ok(Tensors::from([
        (name("lora_embedding_A"), (vec![rank, module.outputs], Cow::Owned(stacks::transposed(b, rank)?))),
        (name("lora_embedding_B"), (vec![module.inputs, rank], Cow::Owned(stacks::transposed(a, module.inputs)?))),
    ]))
}

/// Whether two modules are matrices of one parameter.
fn same_stack(a: &Module, b: &Module) -> bool {
    match (&a.stack, &b.stack) {
        (Some((a, _)), Some((b, _))) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// The two tensors of a parameter of all experts, of `A` and `B` of each.
fn stack_tensors<'a>(stack: &ExpertStack, path: &str, rank: usize, each: &[(&[f32], &[f32])]) -> Result<Tensors<'a>> {
    let (a, b) = stacks::joined(stack, rank, each)?;
    let ranks = rank * each.len();
    Ok(Tensors::from([
        (format!("{PREFIX}{path}.lora_A.weight"), (vec![ranks, stack.inputs], Cow::Owned(a))),
        (format!("{PREFIX}{path}.lora_B.weight"), (vec![stack.outputs, ranks], Cow::Owned(b))),
    ]))
}

/// Tensors of which some are stored without `.weight` at the end: those that this library's first version wrote.
struct Named<'a>(&'a mut dyn ModelTensors);

impl Named<'_> {
    fn stored<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_suffix(".weight") {
            Some(short) if self.0.entry(name).is_none() => short,
            _ => name,
        }
    }
}

impl TensorSource for Named<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.0.entry(self.stored(name))
    }

    fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.read(self.stored(name), offset, into)
    }
}

/// The stored names of what there is for one module.
#[derive(Default, Clone)]
struct Stored {
    a: Option<String>,
    b: Option<String>,
    b_bias: Option<String>,
    magnitude: Option<String>,
    embedding_a: Option<String>,
    embedding_b: Option<String>,
    tokens: Option<String>,
    weight: Option<String>,
    bias: Option<String>,
}

impl Stored {
    /// Those that are there.
    fn names(&self) -> Vec<&str> {
        let Self { a, b, b_bias, magnitude, embedding_a, embedding_b, tokens, weight, bias } = self;
        let all = [a, b, b_bias, magnitude, embedding_a, embedding_b, tokens, weight, bias];
        all.into_iter().flatten().map(String::as_str).collect()
    }
}

/// How a name ends, and which tensor of its module it is. The first that fits counts.
type Field = fn(&mut Stored) -> &mut Option<String>;
const FIELDS: [(&str, Field); 13] = [
    (".lora_A.weight", |stored| &mut stored.a),
    (".lora_B.weight", |stored| &mut stored.b),
    (".lora_B.bias", |stored| &mut stored.b_bias),
    (".lora_magnitude_vector", |stored| &mut stored.magnitude),
    (".lora_embedding_A", |stored| &mut stored.embedding_a),
    (".lora_embedding_B", |stored| &mut stored.embedding_b),
    (".token_adapter.trainable_tokens_delta", |stored| &mut stored.tokens),
    (".lora_a", |stored| &mut stored.a),
    (".lora_b", |stored| &mut stored.b),
    (".base_layer.weight", |stored| &mut stored.weight),
    (".base_layer.bias", |stored| &mut stored.bias),
    (".weight", |stored| &mut stored.weight),
    (".bias", |stored| &mut stored.bias),
];

/// How the modules of an adapter's tensors are called, where those of layers begin with `layers`, and whether what was trained had no
/// output matrix.
fn naming(network: &Transformer, modules: &[Module], layers: &str, tensors: &[&str]) -> (Naming, bool) {
    let names = &network.config().names;
    // A model that was trained without its head has no prefix.
    let is_inner = |rest: &str| rest.starts_with(layers) || rest.starts_with(names.embed);
    let inner = || tensors.iter().map(|name| name.strip_prefix(PREFIX).unwrap_or(name));
    let is_seen = |prefix: &str| inner().any(|name| name.strip_prefix(prefix).is_some_and(is_inner));
    let old = tensors.iter().any(|name| old_name(name).is_some());
    let (prefix, is_headless) = match names.prefixes.first() {
        Some(usual) if !old && is_seen("") => {
            let has_head = names.head.is_some_and(|head| inner().any(|name| name.starts_with(head)));
            ("", !usual.network.is_empty() && !has_head)
        }
        Some(usual) => {
            let mut known = names.prefixes.iter().map(|prefix| prefix.network).chain(LANGUAGE_MODELS);
            (known.find(|prefix| is_seen(prefix)).unwrap_or(usual.network), false)
        }
        None => ("", false),
    };
    let start = |module: &Module| format!("{PREFIX}{}.", path(module, &Naming { prefix: prefix.to_string(), as_stored: true }));
    let renamed: Vec<String> = modules.iter().filter(|module| renamed(&module.name).is_some()).map(start).collect();
    let as_stored = tensors.iter().any(|name| renamed.iter().any(|start| name.starts_with(start)));
    (Naming { prefix: prefix.to_string(), as_stored }, is_headless)
}

/// An adapter's tensors, sorted by the modules of a network.
struct Reader<'a> {
    config: &'a PeftConfig,
    network: &'a Transformer,
    /// Of a classifier.
    head: &'a [HeadLayer],
    modules: Cow<'a, [Module]>,
    /// Of each module, then of each parameter of experts that is meant, then of each layer of the head.
    stored: Vec<Stored>,
    stacks: Vec<TargetedStack>,
    naming: Naming,
    /// What was trained had no output matrix: whatever names it means nothing.
    is_headless: bool,
}

impl<'a> Reader<'a> {
    fn new(
        config: &'a PeftConfig,
        (network, head): (&'a Transformer, &'a [HeadLayer]),
        modules: Cow<'a, [Module]>,
        (naming, is_headless): (Naming, bool),
        checkpoint: &dyn ModelTensors,
    ) -> Result<Self> {
        let mut tensors = checkpoint.names();
        tensors.sort_unstable();
        let stacks = stacks::targeted(config, &naming, network.stacks());
        let stored = vec![Stored::default(); modules.len() + stacks.len() + head.len()];
        let count = modules.len();
        let mut reader = Self { config, network, head, stored, modules, stacks, naming, is_headless };
        let mut paths: HashMap<String, usize> = (0..count).map(|i| (reader.path(i), i)).collect();
        paths.extend(reader.stacks.iter().enumerate().map(|(i, stack)| (stack.path.clone(), count + i)));
        let (count, prefixes) = (count + reader.stacks.len(), &network.config().names.prefixes);
        for (i, layer) in head.iter().enumerate() {
            let names = head::paths(layer, &reader.naming, prefixes.iter().map(|prefix| prefix.network));
            for path in names {
                paths.entry(path).or_insert(count + i);
            }
        }
        let mut ignored = Vec::new();
        for name in tensors {
            reader.sort(name, &paths, &mut ignored)?;
        }
        reader.check_targets(&ignored)?;
        Ok(reader)
    }

    /// A module's name as PEFT sees it.
    fn path(&self, module: usize) -> String {
        path(&self.modules[module], &self.naming)
    }

    /// Whether a module was not there when the adapter was trained.
    fn is_absent(&self, module: &Module) -> bool {
        self.is_headless && module.role == Role::Head
    }

    /// The tokens whose rows were trained of a module. The same of an embedding and of an output matrix that are one are stored once.
    fn token_ids(&self, path: &str, module: &Module) -> Option<&'a [usize]> {
        let ids = self.config.tokens(path, module)?;
        let is_again = module.role == Role::Head && self.network.is_tied() && self.embedding_ids() == Some(ids);
        (!is_again).then_some(ids)
    }

    fn embedding_ids(&self) -> Option<&'a [usize]> {
        let at = self.modules.iter().position(|module| module.role == Role::Embedding)?;
        self.config.tokens(&self.path(at), &self.modules[at])
    }

    /// Whether the rows of a module are those of the output matrix, too: of an embedding that is one with it, unless this has others.
    fn are_shared(&self, module: &Module) -> bool {
        let has_own = |i: usize| {
            let head = &self.modules[i];
            head.role == Role::Head && self.token_ids(&self.path(i), head).is_some()
        };
        module.role == Role::Embedding && !self.is_headless && self.network.is_tied() && !(0..self.modules.len()).any(has_own)
    }

    /// Finds the module of a tensor.
    fn sort(&mut self, name: &str, paths: &HashMap<String, usize>, ignored: &mut Vec<String>) -> Result<()> {
        let no_place = || Error::format(format!("{TENSORS}: {name}: a tensor that the model has no place for"));
        let inner = name.strip_prefix(PREFIX).unwrap_or(name);
        // Saved with `save_embedding_layers`, a module stands there as it was before, as it is now, and as it is in the model.
        if inner.contains(ORIGINAL) {
            return Ok(());
        }
        let (is_saved, inner) = (inner.contains(SAVED), plain_name(inner));
        let inner = inner.as_str();
        let field = FIELDS.iter().find_map(|(end, field)| Some((inner.strip_suffix(end)?, field)));
        let (path, field) = field.ok_or_else(no_place)?;
        let found = match old_name(inner) {
            Some((layer, target)) => {
                let stem = format!("{}.", self.network.config().names.layer.replace("{}", layer));
                let is_it = |module: &Module| {
                    let rest = module.name.strip_prefix(&stem);
                    rest.is_some_and(|rest| rest.rsplit('.').next() == Some(target))
                };
                self.modules.iter().position(is_it)
            }
            None => paths.get(path).copied(),
        };
        let Some(found) = found else {
            // PEFT saves what ends with such a name, within a word too.
            if self.config.modules_to_save.iter().any(|name| path.ends_with(name)) {
                return Err(Error::unsupported(format!(
                    "{CONFIG}: modules_to_save: {path} is not supported: only the embedding, the output matrix and the head of a reranker \
                     can be replaced; of what changes others, such as norms, merge_and_unload() of PEFT makes a model that is loaded"
                )));
            }
            let bare = path.strip_prefix(&self.naming.prefix).unwrap_or(path);
            // A part of the model that this library has no use for, such as BERT's pooler.
            if self.network.config().names.unused.iter().any(|unused| format!("{bare}.").starts_with(unused)) {
                ignored.push(path.to_string());
                return Ok(());
            }
            // PEFT means those of norms and convolutions, too.
            if self.config.bias == BiasKind::All && inner.ends_with(".bias") {
                return Err(Error::unsupported(format!(
                    "{CONFIG}: bias: {path}.bias is not supported: only biases of matrices can be replaced"
                )));
            }
            return Err(no_place());
        };
        let field = field(&mut self.stored[found]);
        match field.take() {
            // The same values under both names.
            Some(other) if is_saved || other.contains(SAVED) => {
                *field = Some(if is_saved { name.to_string() } else { other });
                Ok(())
            }
            None => {
                *field = Some(name.to_string());
                Ok(())
            }
            Some(other) => Err(Error::format(format!("{TENSORS}: {name}: the same tensor as {other}"))),
        }
    }

    /// Names in the configuration that stand for nothing.
    fn check_targets(&self, ignored: &[String]) -> Result<()> {
        let paths: Vec<String> = (0..self.modules.len()).map(|i| self.path(i)).collect();
        // Not all of what may be many.
        let some_of = |names: &ModuleNames| names.iter().take(20).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let of_head: Vec<String> = (0..self.head.len()).map(|i| self.head_path(i)).collect();
        let mut known = paths.iter().chain(&of_head).chain(ignored);
        let mut keys = paths.iter().map(|path| format!("{path}.weight"));
        let has_parameters = !self.stacks.is_empty() || keys.any(|key| self.config.targets_parameter(&key));
        if let Targets::Names(names) = &self.config.targets
            && !names.is_empty()
            // As PEFT: a list for several architectures may name what this one lacks, as long as it names something.
            && !known.any(|path| names.hold(path))
            && !has_parameters
        {
            let names = some_of(names);
            return Err(Error::format(format!("{CONFIG}: target_modules: {names}: the model has no such module")));
        }
        if !self.config.target_parameters.is_empty() && !has_parameters {
            let names = some_of(&self.config.target_parameters);
            return Err(Error::format(format!("{CONFIG}: target_parameters: {names}: the model has no such parameter")));
        }
        for name in self.config.modules_to_save.iter() {
            // PEFT names both of every classifier. What the head has of what is named is looked for where it is read.
            let is_of_head = !self.head.is_empty() && CLASSIFIERS.contains(&name);
            if is_of_head
                || ignored.iter().any(|path| path.ends_with(name))
                || of_head.iter().any(|path| head::is_saved(path, name))
            {
                continue;
            }
            let found = (0..paths.len()).find(|&i| paths[i].ends_with(name));
            match found.filter(|&i| !self.modules[i].role.is_inner()) {
                Some(i) if self.stored[i].weight.is_some() || self.is_absent(&self.modules[i]) => {}
                Some(i) => return Err(lacks(&format!("{}.weight", paths[i]), "modules_to_save names")),
                None => {
                    let whole = |module: &&Module| !module.role.is_inner();
                    let possible: Vec<&str> = self.modules.iter().filter(whole).map(|module| module.name.as_str()).collect();
                    return Err(Error::unsupported(format!(
                        "{CONFIG}: modules_to_save: {name:?} is not supported ({})",
                        possible.join(", ")
                    )));
                }
            }
        }
        Ok(())
    }

    /// Reads what is small: low-rank changes and biases; and how many values are the network's own.
    fn changes(&self, weights: &mut Weights<'_>) -> Result<(Adapter, u64)> {
        let (mut adapter, mut along) = (Adapter::default(), 0);
        for (i, (module, stored)) in self.modules.iter().zip(&self.stored).enumerate() {
            if self.is_absent(module) {
                continue;
            }
            let path = self.path(i);
            // PEFT may have meant others by the name of experts.
            let is_changed = !module.of_experts || stored.a.is_some() || stored.b.is_some();
            let targeted = is_changed && self.config.targets(&path, module)?;
            if module.role == Role::Embedding && targeted {
                let set = [("use_dora", self.config.dora), ("lora_bias", self.config.lora_bias)];
                if let Some((key, _)) = set.iter().find(|(_, is_set)| *is_set) {
                    return Err(Error::unsupported(format!("{CONFIG}: {key}: not supported on the embedding ({path})")));
                }
            }
            self.check_tensors(&path, module, stored, targeted)?;
            if targeted {
                adapter.low_rank.push(self.low_rank(&path, module, stored, weights)?);
            }
            if let Some(ids) = self.token_ids(&path, module) {
                adapter.tokens.push(self.tokens(&path, module, stored, ids, weights)?);
            }
            if let Some(name) = &stored.bias {
                let bias = finite(name, weights.values(&[(name.clone(), module.outputs)])?)?;
                // PEFT writes along what it has changed beside.
                if is_base_layer(name) && !module.role.is_inner() && self.network.module_bias(module)?.as_ref() == Some(&bias) {
                    along += bias.len() as u64;
                    continue;
                }
                adapter.biases.push((module.clone(), bias));
            }
        }
        for (stack, stored) in self.stacks.iter().zip(&self.stored[self.modules.len()..]) {
            adapter.low_rank.extend(self.low_ranks(stack, stored, weights)?);
        }
        Ok((adapter, along))
    }

    /// Rows of a table.
    fn tokens(
        &self,
        path: &str,
        module: &Module,
        stored: &Stored,
        ids: &[usize],
        weights: &mut Weights<'_>,
    ) -> Result<TokenRows> {
        const KEY: &str = "trainable_token_indices";
        if let Some(id) = ids.iter().find(|id| **id >= module.outputs) {
            let vocabulary = module.outputs;
            return Err(Error::format(format!("{CONFIG}: {KEY}: expected tokens below {vocabulary}, found {id}")));
        }
        let Some(name) = &stored.tokens else {
            return Err(lacks(&format!("{path}.token_adapter.trainable_tokens_delta"), &format!("{KEY} asks for")));
        };
        let rows = weights.values(&[(name.clone(), ids.len() * module.inputs)])?;
        let rows = host_matrix(&finite(name, rows)?, module.inputs)?;
        let ids = ids.iter().map(|id| *id as u32).collect();
        TokenRows::new(self.network, module.clone(), ids, rows, self.are_shared(module))
    }

    /// The changes of all experts' matrices in one parameter.
    fn low_ranks(&self, targeted: &TargetedStack, stored: &Stored, weights: &mut Weights<'_>) -> Result<Vec<LowRank>> {
        let TargetedStack { stack, key, path } = targeted;
        let Stored { a: _, b: _, b_bias, magnitude, embedding_a, embedding_b, tokens, weight, bias } = stored;
        let unknown = [b_bias, magnitude, embedding_a, embedding_b, tokens, weight, bias];
        if let Some(name) = unknown.into_iter().flatten().next() {
            return Err(Error::format(format!("{TENSORS}: {name}: a tensor that target_parameters does not ask for")));
        }
        let (rank, count) = (self.config.rank(key)?, stack.linears.len());
        let scaling = self.config.scaling(key, rank)?;
        let mut matrix = |name: &Option<String>, field: &str, rows: usize, cols: usize| match name {
            Some(name) => read_matrix(name, rows, cols, weights),
            None => Err(lacks(&format!("{path}.{field}"), "target_parameters asks for")),
        };
        let a = matrix(&stored.a, "lora_A.weight", count * rank, stack.inputs)?;
        let b = matrix(&stored.b, "lora_B.weight", stack.outputs, rank * count)?.rows(0..stack.outputs)?;
        let of = |expert: usize| {
            let own = host_matrix(&a.rows(expert * rank..(expert + 1) * rank)?, stack.inputs)?;
            let both = (own, host_matrix(&stacks::of_expert(stack, rank, expert, &b)?, rank)?);
            LowRank::new(self.network, stack.module(expert), both, (None, None), scaling)
        };
        (0..count).map(of).collect()
    }

    /// Reads matrices that replace the model's.
    fn weights(&self, weights: &mut Weights<'_>) -> Result<Vec<Replaced>> {
        let mut replaced = Vec::new();
        let ties = self.config.ties_saved();
        let embedding = self.modules.iter().zip(&self.stored).find(|(module, _)| module.role == Role::Embedding);
        let of_both = embedding.and_then(|(_, stored)| stored.weight.as_ref()).filter(|_| ties);
        for (module, stored) in self.modules.iter().zip(&self.stored) {
            // PEFT writes the same values twice, but other programs once.
            let other = of_both.filter(|_| module.role == Role::Head && !self.is_absent(module));
            let Some(name) = stored.weight.as_ref().or(other) else { continue };
            let name = name.strip_suffix(".weight").unwrap_or(name);
            let weight = match module.role {
                Role::Embedding => weights.table(name, module.outputs, module.inputs)?,
                _ => weights.matrix(&[Slot::whole(name, module.outputs)], module.inputs)?,
            };
            // PEFT writes along what it has changed beside.
            if is_base_layer(name) && self.is_own(module, &weight)? {
                continue;
            }
            replaced.push(Replaced::new(self.network, module.clone(), weight)?);
        }
        Ok(replaced)
    }

    /// Whether a matrix is the network's own.
    fn is_own(&self, module: &Module, weight: &Matrix) -> Result<bool> {
        for start in (0..module.outputs).step_by(COMPARED_ROWS) {
            let rows = start..module.outputs.min(start + COMPARED_ROWS);
            if self.network.module_rows(module, rows.clone())? != weight.rows(rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is stored for a module is what the configuration says.
    fn check_tensors(&self, path: &str, module: &Module, stored: &Stored, targeted: bool) -> Result<()> {
        let config = self.config;
        let whole = !module.role.is_inner();
        let looked_up = targeted && module.role == Role::Embedding && config.weight_key(path).is_none();
        let (multiplied, tokens) = (targeted && !looked_up, self.token_ids(path, module).is_some());
        let bias = module.bias && (config.bias == BiasKind::All || (config.bias == BiasKind::Targeted && targeted));
        // Experts are no modules with a bias in transformers. Of a matrix that is replaced, or was written along, its bias is, too.
        let is_along = || stored.weight.is_some() || stored.bias.as_deref().is_some_and(is_base_layer);
        let of_whole = whole && module.bias && is_along();
        // Of a matrix that is the embedding, too, its rows may be written twice.
        let is_same_rows = module.role == Role::Head && self.network.is_tied() && self.embedding_ids().is_some();
        // The tensor, whether there must be one, whether there may be one, and the option that says so.
        let rules = [
            (&stored.a, multiplied, multiplied, "lora_A.weight", "target_modules"),
            (&stored.b, multiplied, multiplied, "lora_B.weight", "target_modules"),
            (&stored.embedding_a, looked_up, looked_up, "lora_embedding_A", "target_modules"),
            (&stored.embedding_b, looked_up, looked_up, "lora_embedding_B", "target_modules"),
            (&stored.tokens, tokens, tokens || is_same_rows, "token_adapter.trainable_tokens_delta", "trainable_token_indices"),
            (&stored.b_bias, targeted && config.lora_bias, targeted && config.lora_bias, "lora_B.bias", "lora_bias"),
            (&stored.magnitude, targeted && config.dora, targeted && config.dora, "lora_magnitude_vector", "use_dora"),
            (&stored.bias, bias && !module.of_experts, bias || of_whole, "bias", "bias"),
            (&stored.weight, false, whole, "weight", "modules_to_save"),
        ];
        for (name, must, may, field, option) in rules {
            match name {
                None if must => return Err(lacks(&format!("{path}.{field}"), &format!("{option} asks for"))),
                Some(name) if !may => {
                    let message = format!("{TENSORS}: {name}: a tensor that {option} does not ask for");
                    return Err(if option == "modules_to_save" { Error::unsupported(message) } else { Error::format(message) });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn low_rank(&self, path: &str, module: &Module, stored: &Stored, weights: &mut Weights<'_>) -> Result<LowRank> {
        let rank = self.config.rank(path)?;
        let mut matrix = |name: &Option<String>, rows: usize, cols: usize| {
            read_matrix(name.as_deref().unwrap_or_default(), rows, cols, weights)
        };
        let both = match (&stored.embedding_a, &stored.embedding_b) {
            // By the places of what is looked up: an id's values are a column.
            (Some(_), Some(_)) => {
                let (b, a) =
                    (matrix(&stored.embedding_a, rank, module.outputs)?, matrix(&stored.embedding_b, module.inputs, rank)?);
                (transposed_matrix(&a)?, transposed_matrix(&b)?)
            }
            _ => (matrix(&stored.a, rank, module.inputs)?, matrix(&stored.b, module.outputs, rank)?),
        };
        let mut vector = |name: &Option<String>| match name {
            Some(name) => finite(name, weights.values(&[(name.clone(), module.outputs)])?).map(Some),
            None => Ok(None),
        };
        let vectors = (vector(&stored.b_bias)?, vector(&stored.magnitude)?);
        LowRank::new(self.network, module.clone(), both, vectors, self.config.scaling(path, rank)?)
    }
}

/// A matrix on the CPU with rows and columns exchanged.
fn transposed_matrix(matrix: &Matrix) -> Result<Matrix> {
    let values = matrix.rows(0..matrix.outputs())?;
    host_matrix(&stacks::transposed(&values, matrix.inputs())?, matrix.outputs())
}

/// A matrix of finite values, on the CPU.
fn read_matrix(name: &str, rows: usize, cols: usize, weights: &mut Weights<'_>) -> Result<Matrix> {
    let matrix = weights.matrix(&[Slot::whole(name.strip_suffix(".weight").unwrap_or(name), rows)], cols)?;
    finite(name, matrix.rows(0..rows)?)?;
    Ok(matrix)
}

/// A matrix on the CPU, of rows of `cols` values.
fn host_matrix(values: &[f32], cols: usize) -> Result<Matrix> {
    let (cpu, rows) = (Backend::new(&candle_core::Device::Cpu), values.len() / cols);
    let builder = MatrixBuilder::new(rows, cols, Format::F32, Use::Product, &cpu);
    let mut builder = builder
        .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, format!("adapter: {rows} × {cols} values do not fit the memory")))?;
    builder.fill_f32(0, values);
    Ok(builder.finish()?)
}

/// What transformers 5 calls a module that is stored under another name.
fn renamed(stored: &str) -> Option<String> {
    RENAMED.iter().find_map(|(end, name)| Some(format!("{}{name}", stored.strip_suffix(end)?)))
}

/// A module's name as PEFT sees it: all but the output matrix lie within the model.
fn path(module: &Module, naming: &Naming) -> String {
    let renamed = if naming.as_stored { None } else { renamed(&module.name) };
    let name = renamed.unwrap_or_else(|| module.name.clone());
    if module.role == Role::Head { name } else { format!("{}{name}", naming.prefix) }
}

fn tensor_name(module: &Module, naming: &Naming, field: &str) -> String {
    format!("{PREFIX}{}.{field}", path(module, naming))
}

/// Whether a tensor is of a module that PEFT has put another one around.
fn is_base_layer(name: &str) -> bool {
    ["", ".weight", ".bias"].iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.ends_with(".base_layer")))
}

/// A tensor's name without what PEFT's wrappers put into it.
fn plain_name(name: &str) -> String {
    let name = name.replace(SAVED, ".").replace(TOKENS_TABLE, ".base_layer.");
    let name = name.split('.').filter(|part| *part != UNNAMED).collect::<Vec<_>>().join(".");
    match name.strip_suffix(".weight") {
        Some(rest) if rest.ends_with(".lora_magnitude_vector") => rest.to_string(),
        _ => name,
    }
}

/// The layer and target of a name that this library's first version wrote: `layers.{i}.{target}.lora_a`.
fn old_name(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("layers.")?;
    let rest = rest.strip_suffix(".lora_a").or_else(|| rest.strip_suffix(".lora_b"))?;
    rest.split_once('.').filter(|(layer, target)| layer.bytes().all(|b| b.is_ascii_digit()) && !target.contains('.'))
}

fn lacks(name: &str, why: &str) -> Error {
    Error::format(format!("{TENSORS}: {PREFIX}{name}: {why} this tensor, and the file does not hold it"))
}

fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(Error::format(format!("{TENSORS}: {name}: expected finite values, found {x}"))),
        None => Ok(values),
    }
}
