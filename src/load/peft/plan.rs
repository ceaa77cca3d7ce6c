//! An adapter in training: which modules of a network a configuration means, and the adapter that their values are.
//!
//! A configuration is always read from its text, that of a new adapter too: what is written is then what was trained.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::config::{BiasKind, PeftConfig, ends_with_name};
use super::{
    CONFIG, Naming, Peft, TENSORS, TORCH, TargetedStack, embedding_tensors, host_matrix, is_looked_up, path, replace, same_stack,
    stack_tensors, stacks, tensor_name, write_safetensors, write_text,
};
use crate::error::{Error, Result};
use crate::load::{FNV_START, Json, Tensors, fnv};
use crate::nn::{Adapter, ExpertStack, LowRank, Module, Role, TrainedModule, Transformer};

/// What PEFT calls every matrix of the layers.
const ALL: &str = "all-linear";

/// The output matrices of Mamba 2, which are not among them: the kernels that others run it by read the matrix past an adapter, so PEFT
/// refuses one of it in Falcon-H1 and Nemotron-H.
const STATE_OUTPUTS: [&str; 2] = ["mamba.out_proj", "mixer.out_proj"];

/// An adapter that does not exist yet.
pub struct Fresh<'a> {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub rslora: bool,
    /// How paths of modules end, or full names of parameters of experts; none = every matrix of the layers.
    pub targets: &'a [String],
}

/// The modules of an adapter in training.
pub struct PeftPlan {
    pub config_json: String,
    /// Of the modules in its file.
    pub naming: Naming,
    /// In the network's order, then the experts of one parameter after those of another; their values lie one after another.
    pub modules: Vec<TrainedModule>,
    stacks: Vec<TargetedStack>,
    rank: usize,
    alpha: f32,
}

/// A file of tensors that is written together with an adapter, and replaced before it.
pub struct Beside<'a> {
    pub path: PathBuf,
    pub tensors: Tensors<'a>,
    pub metadata: &'a [(&'a str, &'a str)],
}

impl PeftPlan {
    /// # Errors
    /// `InvalidArgument` for a target that the network does not have; `Unsupported` for its output matrix.
    pub fn new(network: &Transformer, fresh: &Fresh<'_>) -> Result<Self> {
        // What checkpoints of Nemotron-H call their backbone is the model to transformers 5.
        let prefix = match network.config().names.prefixes.first() {
            Some(prefix) if prefix.network == "backbone." => "model.",
            prefix => prefix.map_or("", |prefix| prefix.network),
        };
        let naming = Naming { prefix: prefix.to_string(), as_stored: false };
        let modules = network.modules();
        let mut parameters = Vec::new();
        let in_layers = |module: &&Module| module.role.is_inner();
        // As PEFT names them: q_proj, not layers.0.self_attn.q_proj.
        let short = |module: &Module| module.name.rsplit('.').next().unwrap_or_default().to_string();
        let loads = |module: &&Module| !STATE_OUTPUTS.iter().any(|name| ends_with_name(&module.name, name));
        let all = modules.iter().filter(|module| in_layers(module) && !module.of_experts && loads(module));
        let all: BTreeSet<String> = all.map(short).collect();
        for target in fresh.targets.iter().filter(|target| *target != ALL) {
            let mut found = modules.iter().filter(|module| ends_with_name(&path(module, &naming), target)).peekable();
            let is_parameter = |stack: &Arc<ExpertStack>| {
                (0..stack.names.len()).any(|name| ends_with_name(&format!("{prefix}{}", stack.path(name)), target))
            };
            // A name alone means modules, where there are some.
            if (target.contains('.') || found.peek().is_none()) && network.stacks().iter().any(is_parameter) {
                parameters.push(target.clone());
                continue;
            }
            if found.peek().is_none() {
                let known = all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(Error::argument(format!("targets: expected modules of the model ({known}), found {target:?}")));
            }
            let of_experts = |module: &&Module| module.of_experts && !target.contains('.');
            if found.clone().all(|module| of_experts(&module)) {
                return Err(Error::argument(format!(
                    "targets: expected the place of experts, as in {:?}, found {target:?}",
                    found.peek().map_or("", |module| module.name.as_str())
                )));
            }
            if found.any(|module| module.role == Role::Head) {
                return Err(Error::unsupported(format!("targets: {target:?}: training the output matrix is not supported")));
            }
        }
        let every = fresh.targets.is_empty() || fresh.targets.iter().any(|target| target == ALL);
        let named = || fresh.targets.iter().filter(|target| !parameters.contains(target) && *target != ALL).cloned();
        let targets: BTreeSet<String> = if every { all } else { named().collect() };
        let mut config = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": decimal(fresh.alpha),
            "lora_dropout": decimal(fresh.dropout),
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": fresh.rank,
            "rank_pattern": {},
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": fresh.rslora,
        });
        // Versions of PEFT before 0.17 do not know the key.
        if !parameters.is_empty() {
            config["target_parameters"] = json!(parameters);
        }
        Self::read(network, format!("{config:#}\n"), naming)
    }

    /// Goes on with an adapter, with another dropout.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of(network: &Transformer, peft: &Peft, dropout: f32) -> Result<Self> {
        let mut config = Json::parse(CONFIG, &peft.config_json)?;
        if let Some(places) = places_of_experts(network, peft, &PeftConfig::parse(&config, network.is_tied())?) {
            config = config.with("target_modules", json!(places));
        }
        let mut config = config.value().clone();
        config["lora_dropout"] = decimal(dropout);
        let plan = Self::read(network, format!("{config:#}\n"), peft.naming.clone())?;
        let trained: HashSet<&str> = plan.modules.iter().map(|one| one.module.name.as_str()).collect();
        if let Some(left) = peft.adapter.low_rank.iter().find(|own| !trained.contains(own.module.name.as_str())) {
            return Err(Error::unsupported(format!(
                "expected a configuration that says where {} is: experts are trained by their place",
                left.module.name
            )));
        }
        if !peft.head.is_empty() {
            return Err(Error::unsupported(
                "expected an adapter of the network alone, found one of a classifier's head: it cannot be trained",
            ));
        }
        // Its file may hold them without a word in the configuration.
        let weights = peft.adapter.weights.iter().map(|replaced| format!("{}.weight", replaced.module.name));
        let biases = peft.adapter.biases.iter().map(|(module, _)| format!("{}.bias", module.name));
        if let Some(found) = weights.chain(biases).next() {
            return Err(Error::unsupported(format!(
                "expected an adapter of low-rank changes alone, found {found}: it cannot be trained"
            )));
        }
        Ok(plan)
    }

    /// Finds the modules that a configuration means.
    ///
    /// # Errors
    /// `Unsupported` for what adapters can have and training cannot change; `Format` for a configuration without a module.
    pub fn read(network: &Transformer, config_json: String, naming: Naming) -> Result<Self> {
        let json = Json::parse(CONFIG, &config_json)?;
        let config = PeftConfig::parse(&json, network.is_tied())?;
        for (key, is_set) in [
            ("use_dora", config.dora),
            ("lora_bias", config.lora_bias),
            ("bias", config.bias != BiasKind::None),
            ("modules_to_save", !config.modules_to_save.is_empty()),
            ("trainable_token_indices", config.has_tokens()),
        ] {
            if is_set {
                return Err(json.unsupported(key, "expected none: it cannot be trained"));
            }
        }
        let (mut modules, mut start) = (Vec::new(), 0);
        for module in network.modules() {
            let path = path(module, &naming);
            // There may be thousands of experts: they are trained where the configuration says which.
            if !config.targets(&path, module)? || (module.of_experts && !config.says_place(&path)) {
                continue;
            }
            if module.role == Role::Head {
                return Err(Error::unsupported(format!("{CONFIG}: target_modules: training {path} is not supported")));
            }
            let rank = config.rank(&path)?;
            let scaling = config.scaling(&path, rank)?;
            let trained = TrainedModule { module: module.clone(), rank, scaling, start };
            start = trained.b().end;
            modules.push(trained);
        }
        let stacks = stacks::targeted(&config, &naming, network.stacks());
        if !stacks.is_empty() && json.number("lora_dropout")?.is_some_and(|dropout| dropout != 0.0) {
            return Err(json.unsupported("lora_dropout", "expected 0 with target_parameters: PEFT has no dropout there"));
        }
        for TargetedStack { stack, key, .. } in &stacks {
            let rank = config.rank(key)?;
            let scaling = config.scaling(key, rank)?;
            for expert in 0..stack.linears.len() {
                let trained = TrainedModule { module: stack.module(expert), rank, scaling, start };
                start = trained.b().end;
                modules.push(trained);
            }
        }
        if modules.is_empty() {
            return Err(json.invalid("target_modules", "expected a module of the model, found none"));
        }
        Ok(Self { naming, modules, stacks, rank: config.rank, alpha: config.alpha as f32, config_json })
    }

    /// The values that are trained.
    pub fn parameters(&self) -> usize {
        self.modules.last().map_or(0, |last| last.b().end)
    }

    /// The adapter that these values are now.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`.
    pub fn adapter(&self, network: &Transformer, values: &[f32]) -> Result<Peft> {
        let config = fnv(FNV_START, self.config_json.as_bytes());
        let fingerprint = values.iter().fold(config, |hash, x| fnv(hash, &x.to_le_bytes()));
        let mut adapter = Adapter::default();
        for trained in &self.modules {
            let TrainedModule { module, rank, scaling, .. } = trained;
            let both = (host_matrix(&values[trained.a()], module.inputs)?, host_matrix(&values[trained.b()], *rank)?);
            adapter.low_rank.push(LowRank::new(network, module.clone(), both, (None, None), *scaling)?);
        }
        Ok(Peft {
            adapter,
            head: Vec::new(),
            naming: self.naming.clone(),
            config_json: self.config_json.clone(),
            rank: self.rank,
            alpha: self.alpha,
            parameters: self.parameters() as u64,
            fingerprint,
        })
    }

    /// Writes the adapter that these values are now, and a file beside it; all are written beside their places and renamed.
    ///
    /// # Errors
    /// `Io`, `NotFound`, naming the path.
    pub fn write(&self, directory: &Path, values: &[f32], beside: Option<&Beside<'_>>) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        let tensors = self.tensors(values)?;
        let adapter = [directory.join(TENSORS), directory.join(CONFIG)];
        let paths: Vec<PathBuf> = beside.iter().map(|beside| beside.path.clone()).chain(adapter).collect();
        replace(&paths, |parts| {
            let (first, parts) = parts.split_at(parts.len() - 2);
            if let (Some(Beside { tensors, metadata, .. }), [part]) = (beside, first) {
                write_safetensors(part, tensors, metadata)?;
            }
            write_safetensors(&parts[0], &tensors, &[TORCH])?;
            write_text(&parts[1], &self.config_json)
        })
    }

    /// These values by the names and in the shapes of PEFT.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn tensors<'a>(&self, values: &'a [f32]) -> Result<Tensors<'a>> {
        let both = |trained: &TrainedModule| {
            let name = |field| tensor_name(&trained.module, &self.naming, field);
            let (module, rank) = (&trained.module, trained.rank);
            [
                (name("lora_A.weight"), (vec![rank, module.inputs], Cow::Borrowed(&values[trained.a()]))),
                (name("lora_B.weight"), (vec![module.outputs, rank], Cow::Borrowed(&values[trained.b()]))),
            ]
        };
        let (stacked, plain): (Vec<_>, Vec<_>) = self.modules.iter().partition(|trained| trained.module.stack.is_some());
        let config = PeftConfig::parse(&Json::parse(CONFIG, &self.config_json)?, false)?;
        let is_row = |trained: &&TrainedModule| is_looked_up(&trained.module, &config, &self.naming);
        let (looked_up, plain): (Vec<_>, Vec<_>) = plain.into_iter().partition(is_row);
        let mut tensors: Tensors<'a> = plain.into_iter().flat_map(both).collect();
        for trained in looked_up {
            let (a, b) = (&values[trained.a()], &values[trained.b()]);
            tensors.extend(embedding_tensors(&trained.module, &self.naming, a, b)?);
        }
        let groups = stacked.chunk_by(|a, b| same_stack(&a.module, &b.module));
        for (TargetedStack { stack, path, .. }, group) in self.stacks.iter().zip(groups) {
            let each: Vec<_> = group.iter().map(|trained| (&values[trained.a()], &values[trained.b()])).collect();
            tensors.extend(stack_tensors(stack, path, group[0].rank, &each)?);
        }
        Ok(tensors)
    }
}

/// The paths of all modules of an adapter, where its configuration has a name alone for some that are experts or choose them: trained
/// are then those that the adapter has.
fn places_of_experts(network: &Transformer, peft: &Peft, config: &PeftConfig) -> Option<Vec<String>> {
    let changed: HashSet<&str> = peft.adapter.low_rank.iter().map(|own| own.module.name.as_str()).collect();
    let of_stack = |one: &TargetedStack| (0..one.stack.linears.len()).map(|i| one.stack.module(i).name).collect::<Vec<_>>();
    let of_stacks: HashSet<String> = stacks::targeted(config, &peft.naming, network.stacks()).iter().flat_map(of_stack).collect();
    let is_held = |module: &&Module| changed.contains(module.name.as_str()) && !of_stacks.contains(&module.name);
    let held: Vec<(&Module, String)> =
        network.modules().iter().filter(is_held).map(|module| (module, path(module, &peft.naming))).collect();
    if held.iter().all(|(module, path)| !module.of_experts || config.says_place(path)) {
        return None;
    }
    Some(held.into_iter().map(|(_, path)| path).filter(|path| config.weight_key(path).is_none()).collect())
}

/// A number as it was written: 0.1 and not 0.10000000149011612; whole ones as PEFT writes them, 16.
fn decimal(x: f32) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x.to_string().parse::<f64>().unwrap_or(x.into())) }
}
