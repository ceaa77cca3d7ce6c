//! Adapters in the directory format of PEFT: adapter_config.json and adapter_model.safetensors.
//!
//! As PEFT 0.21 reads them, but strict: each tensor must have a place, each module that the configuration targets its tensors, and
//! an option that changes the result and is not implemented is an error that names it.

mod config;
mod plan;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use config::{BiasKind, PeftConfig, Targets, ends_with_name};
pub use plan::{Beside, Fresh, PeftPlan};

use super::replace::{replace, write_text};
use super::safetensors::{Tensors, write_safetensors};
use super::{Checkpoint, Json, MAX_JSON, ModelTensors, fnv, read_text};
use crate::error::{Error, Result};
use crate::nn::{Adapter, Entry, LowRank, Module, Prefix, Replaced, Role, Slot, TensorSource, Transformer, Weights};
use crate::ops::{Backend, Format, Matrix};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts into the names of a module that it saves whole: of what is trained, and of what was there before.
const SAVED: &str = ".modules_to_save.";
const ORIGINAL: &str = ".original_module.";
/// What PEFT puts in front of every name.
const PREFIX: &str = "base_model.model.";
/// What transformers calls modules that checkpoints store under another name (LFM3).
const RENAMED: [(&str, &str); 1] = [("self_attn.gate_proj", "self_attn.g_proj")];

/// An adapter and what its configuration says of it.
pub struct Peft {
    pub adapter: Adapter,
    /// What stands in front of the names of layers in its file.
    pub prefix: String,
    pub config_json: String,
    pub rank: usize,
    pub alpha: f32,
    /// Trained values.
    pub parameters: u64,
    /// Of the configuration and of the values: of those of a file a sample.
    pub fingerprint: u64,
}

impl Peft {
    /// Reads an adapter of a network.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Format` naming a tensor without a place, a module without its tensors, a shape that does not fit;
    /// `Unsupported` for an option that is not implemented.
    pub fn read(directory: &Path, network: &Transformer) -> Result<Self> {
        let config_json = read_text(&directory.join(CONFIG), MAX_JSON)?;
        let config = PeftConfig::parse(&Json::parse(CONFIG, &config_json)?)?;
        let mut on_bytes = |_, _| Ok(());
        let mut checkpoint = Checkpoint::open_file(&directory.join(TENSORS), &mut on_bytes)?;
        let reader = Reader::new(&config, network, &checkpoint)?;
        let cpu = Backend::new(&candle_core::Device::Cpu);
        let mut source = Named(&mut checkpoint);
        let mut weights = Weights::new(&mut source, &cpu, Some(Format::F32));
        let mut adapter = reader.changes(&mut weights)?;
        let mut parameters = weights.parameters();
        // A vocabulary's matrices are large: they stay as stored.
        let mut weights = Weights::new(&mut source, &cpu, None);
        adapter.weights = reader.weights(&mut weights)?;
        parameters += weights.parameters();
        if adapter.low_rank.is_empty() && adapter.weights.is_empty() {
            return Err(Error::format(format!("{CONFIG}: target_modules: expected a module of the model, found none")));
        }
        let prefix = reader.prefix.to_string();
        let fingerprint = fnv(checkpoint.fingerprint(), config_json.as_bytes());
        Ok(Self { adapter, prefix, rank: config.rank, alpha: config.alpha as f32, parameters, fingerprint, config_json })
    }

    /// Writes the adapter so that [`read`](Self::read) and PEFT read it: the configuration as it was, values in F32. Both files are
    /// written beside their places and renamed.
    ///
    /// # Errors
    /// `Io`, `NotFound`, naming the path.
    pub fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        let tensors = tensors_of(&self.adapter, &self.prefix)?;
        replace(&[directory.join(TENSORS), directory.join(CONFIG)], |parts| {
            write_safetensors(&parts[0], &tensors, &[TORCH])?;
            write_text(&parts[1], &self.config_json)
        })
    }
}

/// What stands in the metadata of tensors that torch may load.
const TORCH: (&str, &str) = ("format", "pt");

/// Names, shapes and values, sorted by name.
fn tensors_of<'a>(adapter: &'a Adapter, prefix: &str) -> Result<Tensors<'a>> {
    let mut tensors = BTreeMap::new();
    let name = |module: &Module, field: &str| tensor_name(module, prefix, field);
    let all = |matrix: &Matrix| {
        Ok::<_, Error>((vec![matrix.outputs(), matrix.inputs()], Cow::Owned(matrix.rows(0..matrix.outputs())?)))
    };
    for LowRank { module, a, b, b_bias, magnitude, .. } in &adapter.low_rank {
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

/// Tensors of which some are stored without `.weight` at the end: those that this library's first version wrote.
struct Named<'a, 'b>(&'a mut Checkpoint<'b>);

impl Named<'_, '_> {
    fn stored<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_suffix(".weight") {
            Some(short) if self.0.entry(name).is_none() => short,
            _ => name,
        }
    }
}

impl TensorSource for Named<'_, '_> {
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
    weight: Option<String>,
    bias: Option<String>,
}

/// How a name ends, and which tensor of its module it is. The first that fits counts.
type Field = fn(&mut Stored) -> &mut Option<String>;
const FIELDS: [(&str, Field); 10] = [
    (".lora_A.weight", |stored| &mut stored.a),
    (".lora_B.weight", |stored| &mut stored.b),
    (".lora_B.bias", |stored| &mut stored.b_bias),
    (".lora_magnitude_vector", |stored| &mut stored.magnitude),
    (".lora_a", |stored| &mut stored.a),
    (".lora_b", |stored| &mut stored.b),
    (".base_layer.weight", |stored| &mut stored.weight),
    (".base_layer.bias", |stored| &mut stored.bias),
    (".weight", |stored| &mut stored.weight),
    (".bias", |stored| &mut stored.bias),
];

/// An adapter's tensors, sorted by the modules of a network.
struct Reader<'a> {
    config: &'a PeftConfig,
    network: &'a Transformer,
    modules: &'a [Module],
    stored: Vec<Stored>,
    /// What PEFT saw in front of the names of layers.
    prefix: &'a str,
}

impl<'a> Reader<'a> {
    fn new(config: &'a PeftConfig, network: &'a Transformer, checkpoint: &Checkpoint<'_>) -> Result<Self> {
        let names = &network.config().names;
        let modules = network.modules();
        let mut tensors = checkpoint.names();
        tensors.sort_unstable();
        // A model that was trained without its head has no prefix.
        let layers = names.layers();
        let bare = |name: &&str| name.strip_prefix(PREFIX).unwrap_or(name).starts_with(layers);
        let old = tensors.iter().any(|name| old_name(name).is_some());
        let prefix = match names.prefixes.first() {
            Some(_) if !old && tensors.iter().any(bare) => "",
            Some(usual) => {
                let seen = |prefix: &&Prefix| {
                    let start = format!("{PREFIX}{}{layers}", prefix.network);
                    tensors.iter().any(|name| name.starts_with(&start))
                };
                names.prefixes.iter().find(seen).unwrap_or(usual).network
            }
            None => "",
        };
        let mut reader = Self { config, network, stored: vec![Stored::default(); modules.len()], modules, prefix };
        let paths: HashMap<String, usize> = (0..reader.modules.len()).map(|i| (reader.path(i), i)).collect();
        let mut ignored = Vec::new();
        for name in tensors {
            reader.sort(name, &paths, &mut ignored)?;
        }
        reader.check_targets(&ignored)?;
        Ok(reader)
    }

    /// A module's name as PEFT sees it.
    fn path(&self, module: usize) -> String {
        path(&self.modules[module], self.prefix)
    }

    /// Finds the module of a tensor.
    fn sort(&mut self, name: &str, paths: &HashMap<String, usize>, ignored: &mut Vec<String>) -> Result<()> {
        let no_place = || Error::format(format!("{TENSORS}: {name}: a tensor that the model has no place for"));
        let inner = name.strip_prefix(PREFIX).unwrap_or(name);
        let inner = inner.strip_suffix(".weight").filter(|rest| rest.ends_with(".lora_magnitude_vector")).unwrap_or(inner);
        // Saved with `save_embedding_layers`, a module stands there as it was before, as it is now, and as it is in the model.
        if inner.contains(ORIGINAL) {
            return Ok(());
        }
        let saved = inner.replace(SAVED, ".");
        let (is_saved, inner) = (saved != inner, saved.as_str());
        if inner.contains(".lora_embedding_") {
            return Err(Error::unsupported(format!("{TENSORS}: {name}: LoRA on the embedding is not supported")));
        }
        if inner.ends_with(".trainable_tokens_delta") {
            return Err(Error::unsupported(format!("{CONFIG}: trainable_token_indices is not supported: {name}")));
        }
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
            if self.config.modules_to_save.iter().any(|name| path.ends_with(name.as_str())) {
                return Err(Error::unsupported(format!(
                    "{CONFIG}: modules_to_save: {path} is not supported: only the embedding and the output matrix can be replaced"
                )));
            }
            let bare = path.strip_prefix(self.prefix).unwrap_or(path);
            // A part of the model that this library has no use for, such as BERT's pooler.
            if self.network.config().names.unused.iter().any(|unused| format!("{bare}.").starts_with(unused)) {
                ignored.push(path.to_string());
                return Ok(());
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
        let known = || paths.iter().chain(ignored);
        if let Targets::Names(names) = &self.config.targets
            && !names.is_empty()
            // As PEFT: a list for several architectures may name what this one lacks, as long as it names something.
            && !names.iter().any(|name| known().any(|path| ends_with_name(path, name)))
        {
            let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            return Err(Error::format(format!("{CONFIG}: target_modules: {names}: the model has no such module")));
        }
        for name in &self.config.modules_to_save {
            if ignored.iter().any(|path| path.ends_with(name.as_str())) {
                continue;
            }
            let found = (0..paths.len()).find(|&i| paths[i].ends_with(name.as_str()));
            match found.filter(|&i| matches!(self.modules[i].role, Role::Embedding | Role::Head)) {
                Some(i) if self.stored[i].weight.is_some() => {}
                Some(i) => return Err(lacks(&format!("{}.weight", paths[i]), "modules_to_save names")),
                None => {
                    let whole = |module: &&Module| matches!(module.role, Role::Embedding | Role::Head);
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

    /// Reads what is small: low-rank changes and biases.
    fn changes(&self, weights: &mut Weights<'_>) -> Result<Adapter> {
        let mut adapter = Adapter::default();
        for (i, (module, stored)) in self.modules.iter().zip(&self.stored).enumerate() {
            let path = self.path(i);
            let targeted = self.config.targets(&path, module.role)?;
            if module.role == Role::Embedding && targeted {
                return Err(Error::unsupported(format!(
                    "{CONFIG}: target_modules: LoRA on the embedding ({path}) is not supported"
                )));
            }
            self.check_tensors(&path, module, stored, targeted)?;
            if targeted {
                adapter.low_rank.push(self.low_rank(&path, module, stored, weights)?);
            }
            if let Some(name) = &stored.bias {
                let bias = finite(name, weights.values(&[(name.clone(), module.outputs)])?)?;
                adapter.biases.push((module.clone(), bias));
            }
        }
        Ok(adapter)
    }

    /// Reads matrices that replace the model's.
    fn weights(&self, weights: &mut Weights<'_>) -> Result<Vec<Replaced>> {
        let mut replaced = Vec::new();
        for (module, stored) in self.modules.iter().zip(&self.stored) {
            let Some(name) = &stored.weight else { continue };
            let name = name.strip_suffix(".weight").unwrap_or(name);
            let weight = match module.role {
                Role::Embedding => weights.table(name, module.outputs, module.inputs)?,
                _ => weights.matrix(&[Slot::whole(name, module.outputs)], module.inputs)?,
            };
            replaced.push(Replaced::new(self.network, module.clone(), weight)?);
        }
        Ok(replaced)
    }

    /// What is stored for a module is what the configuration says.
    fn check_tensors(&self, path: &str, module: &Module, stored: &Stored, targeted: bool) -> Result<()> {
        let config = self.config;
        let whole = matches!(module.role, Role::Embedding | Role::Head);
        let bias = module.bias && (config.bias == BiasKind::All || (config.bias == BiasKind::Targeted && targeted));
        // The tensor, whether there must be one, whether there may be one, and the option that says so.
        let rules = [
            (&stored.a, targeted, targeted, "lora_A.weight", "target_modules"),
            (&stored.b, targeted, targeted, "lora_B.weight", "target_modules"),
            (&stored.b_bias, targeted && config.lora_bias, targeted && config.lora_bias, "lora_B.bias", "lora_bias"),
            (&stored.magnitude, targeted && config.dora, targeted && config.dora, "lora_magnitude_vector", "use_dora"),
            (&stored.bias, bias, bias || (whole && module.bias && stored.weight.is_some()), "bias", "bias"),
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
            let name = name.as_deref().unwrap_or_default();
            let matrix = weights.matrix(&[Slot::whole(name.strip_suffix(".weight").unwrap_or(name), rows)], cols)?;
            finite(name, matrix.rows(0..rows)?)?;
            Ok::<_, Error>(matrix)
        };
        let both = (matrix(&stored.a, rank, module.inputs)?, matrix(&stored.b, module.outputs, rank)?);
        let mut vector = |name: &Option<String>| match name {
            Some(name) => finite(name, weights.values(&[(name.clone(), module.outputs)])?).map(Some),
            None => Ok(None),
        };
        let vectors = (vector(&stored.b_bias)?, vector(&stored.magnitude)?);
        LowRank::new(self.network, module.clone(), both, vectors, self.config.scaling(path, rank)?)
    }
}

/// A module's name as PEFT sees it: all but the output matrix lie within the model.
fn path(module: &Module, prefix: &str) -> String {
    let renamed = RENAMED.iter().find_map(|(stored, name)| Some(format!("{}{name}", module.name.strip_suffix(stored)?)));
    let name = renamed.unwrap_or_else(|| module.name.clone());
    if module.role == Role::Head { name } else { format!("{prefix}{name}") }
}

fn tensor_name(module: &Module, prefix: &str, field: &str) -> String {
    format!("{PREFIX}{}.{field}", path(module, prefix))
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
