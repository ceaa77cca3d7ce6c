//! What an adapter changes of a classifier's head, whose layers follow the network: merging alone applies it, since nothing but a score
//! goes through a head.

use super::config::BiasKind;
use super::{CONFIG, Naming, PREFIX, Reader, Stored, TENSORS, finite, lacks, read_matrix};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::copied;
use crate::load::safetensors::Tensors;
use crate::nn::{LinearId, Module, Part, Role, Weights};

/// A layer of a head.
#[derive(Debug, Clone)]
pub struct HeadLayer {
    /// What its tensors are called in full: `bert.pooler.dense`.
    pub name: String,
    pub outputs: usize,
    /// `None` of a norm.
    pub inputs: Option<usize>,
    pub bias: bool,
}

/// What was trained of one.
pub struct HeadChange {
    /// Which layer of the head it is.
    pub layer: usize,
    /// What PEFT calls it.
    path: String,
    inputs: Option<usize>,
    /// In place of the model's own.
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    delta: Option<HeadDelta>,
}

struct HeadDelta {
    rank: usize,
    /// `(R, inputs)`
    a: Vec<f32>,
    /// `(outputs, R)`
    b: Vec<f32>,
    magnitude: Option<Vec<f32>>,
    scaling: f32,
}

impl HeadLayer {
    /// As targets are looked for: all of them are inner ones to PEFT, but for what it saves.
    fn module(&self, inputs: usize) -> Module {
        Module {
            name: self.name.clone(),
            inputs,
            outputs: self.outputs,
            bias: self.bias,
            role: Role::Layer(0),
            of_experts: false,
            part: Part::Other,
            // None: it follows the network.
            linear: LinearId::EMBEDDING,
            parts: Vec::new(),
            stack: None,
        }
    }
}

impl HeadChange {
    /// The layer's weight and bias with the change, of those that the model has.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn merged(&self, weight: Vec<f32>, bias: Option<Vec<f32>>, scale: f32) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let copy = |values: &Vec<f32>| {
            let no_memory = |e| {
                let message = format!("{}: a copy of {} values does not fit the memory", self.path, values.len());
                Error::new(ErrorKind::OutOfMemory, message).with_source(e)
            };
            copied(values).map_err(no_memory)
        };
        let mut weight = self.weight.as_ref().map(copy).transpose()?.unwrap_or(weight);
        let bias = self.bias.as_ref().map(copy).transpose()?.or(bias);
        if let (Some(HeadDelta { rank, a, b, magnitude, scaling }), Some(inputs)) = (&self.delta, self.inputs) {
            let rows = weight.chunks_exact_mut(inputs).zip(b.chunks_exact(*rank)).enumerate();
            for (output, (row, b)) in rows {
                for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
                    row.iter_mut().zip(a).for_each(|(x, a)| *x += scale * scaling * b * a);
                }
                if let Some(magnitude) = magnitude {
                    let gain = magnitude[output] / row.iter().map(|x| x * x).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|x| *x *= gain);
                }
            }
        }
        Ok((weight, bias))
    }

    /// As PEFT stores it.
    pub(super) fn tensors<'a>(&'a self) -> Tensors<'a> {
        let mut tensors = Tensors::new();
        let mut add = |field: &str, cols: Option<usize>, values: &'a [f32]| {
            let shape = cols.map_or(vec![values.len()], |cols| vec![values.len() / cols, cols]);
            tensors.insert(format!("{PREFIX}{}.{field}", self.path), (shape, values.into()));
        };
        // PEFT keeps a module that it changes within another one.
        let own = if self.delta.is_some() { "base_layer." } else { "" };
        if let Some(weight) = &self.weight {
            add(&format!("{own}weight"), self.inputs, weight);
        }
        if let Some(bias) = &self.bias {
            add(&format!("{own}bias"), None, bias);
        }
        if let Some(HeadDelta { rank, a, b, magnitude, .. }) = &self.delta {
            add("lora_A.weight", self.inputs, a);
            add("lora_B.weight", Some(*rank), b);
            if let Some(magnitude) = magnitude {
                add("lora_magnitude_vector", None, magnitude);
            }
        }
        tensors
    }
}

/// What PEFT may call a layer: with what stands in front of the network's names, or without.
pub(super) fn paths(layer: &HeadLayer, naming: &Naming, prefixes: impl Iterator<Item = &'static str>) -> [String; 2] {
    let inner = prefixes.filter(|prefix| !prefix.is_empty()).find_map(|prefix| layer.name.strip_prefix(prefix));
    let bare = inner.unwrap_or(&layer.name);
    [format!("{}{bare}", naming.prefix), bare.to_string()]
}

/// Whether what is saved by this name is a module of this path, or one that it lies in.
pub(super) fn is_saved(path: &str, name: &str) -> bool {
    path.match_indices('.').map(|(dot, _)| &path[..dot]).chain([path]).any(|path| path.ends_with(name))
}

impl Reader<'_> {
    /// Reads what was trained of the head.
    pub(super) fn head_changes(&self, weights: &mut Weights<'_>) -> Result<Vec<HeadChange>> {
        let first = self.modules.len() + self.stacks.len();
        let layers = self.head.iter().zip(&self.stored[first..]).enumerate();
        layers.filter_map(|(i, (layer, stored))| self.head_change(i, layer, stored, weights).transpose()).collect()
    }

    /// What PEFT calls a layer of the head, by its tensors.
    pub(super) fn head_path(&self, layer: usize) -> String {
        let prefixes = self.network.config().names.prefixes.iter().map(|prefix| prefix.network);
        let [prefixed, bare] = paths(&self.head[layer], &self.naming, prefixes);
        let start = format!("{PREFIX}{prefixed}.");
        let names = self.stored[self.modules.len() + self.stacks.len() + layer].names();
        // Where it has none, as the checkpoint has it.
        let is_inner = match names[..] {
            [] => bare != self.head[layer].name,
            _ => names.iter().any(|name| name.starts_with(&start)),
        };
        if is_inner { prefixed } else { bare }
    }

    /// Whether `modules_to_save` means a module of this path, or one that it lies in.
    fn saves(&self, path: &str) -> bool {
        self.config.modules_to_save.iter().any(|name| is_saved(path, name))
    }

    fn head_change(&self, i: usize, layer: &HeadLayer, stored: &Stored, weights: &mut Weights<'_>) -> Result<Option<HeadChange>> {
        let (config, path) = (self.config, self.head_path(i));
        let is_saved = self.saves(&path);
        let has_delta = stored.a.is_some() || stored.b.is_some();
        let targeted = match layer.inputs {
            // PEFT leaves out the last one of a head, if it knows that the model is a classifier.
            Some(inputs) if has_delta || i + 1 < self.head.len() => config.targets(&path, &layer.module(inputs))?,
            _ => false,
        };
        if targeted && config.lora_bias {
            return Err(Error::unsupported(format!("{CONFIG}: lora_bias: not supported on the head ({path})")));
        }
        let bias = layer.bias && (is_saved || config.bias == BiasKind::All || (config.bias == BiasKind::Targeted && targeted));
        let Stored { a, b, b_bias, magnitude, embedding_a, embedding_b, tokens, weight, bias: own_bias } = stored;
        let rules = [
            (a, targeted, "lora_A.weight", "target_modules"),
            (b, targeted, "lora_B.weight", "target_modules"),
            (magnitude, targeted && config.dora, "lora_magnitude_vector", "use_dora"),
            (weight, is_saved, "weight", "modules_to_save"),
            (own_bias, bias, "bias", if is_saved { "modules_to_save" } else { "bias" }),
        ];
        for (name, must, field, option) in rules {
            match name {
                None if must => return Err(lacks(&format!("{path}.{field}"), &format!("{option} asks for"))),
                Some(name) if !must => {
                    return Err(Error::format(format!("{TENSORS}: {name}: a tensor that {option} does not ask for")));
                }
                _ => {}
            }
        }
        if let Some(name) = [b_bias, embedding_a, embedding_b, tokens].into_iter().flatten().next() {
            return Err(Error::format(format!("{TENSORS}: {name}: a tensor that the model has no place for")));
        }
        if stored.names().is_empty() {
            return Ok(None);
        }
        let mut vector = |name: &Option<String>| match name {
            Some(name) => finite(name, weights.values(&[(name.clone(), layer.outputs)])?).map(Some),
            None => Ok(None),
        };
        let (own_bias, magnitude) = (vector(own_bias)?, vector(magnitude)?);
        let weight = match (weight, layer.inputs) {
            (Some(name), Some(inputs)) => Some(values(name, layer.outputs, inputs, weights)?),
            (name, _) => vector(name)?,
        };
        let delta = match (a, b, layer.inputs) {
            (Some(a), Some(b), Some(inputs)) => {
                let rank = config.rank(&path)?;
                let (a, b) = (values(a, rank, inputs, weights)?, values(b, layer.outputs, rank, weights)?);
                Some(HeadDelta { rank, a, b, magnitude, scaling: config.scaling(&path, rank)? })
            }
            _ => None,
        };
        Ok(Some(HeadChange { layer: i, path, inputs: layer.inputs, weight, bias: own_bias, delta }))
    }
}

/// A matrix of finite values.
fn values(name: &str, rows: usize, cols: usize, weights: &mut Weights<'_>) -> Result<Vec<f32>> {
    Ok(read_matrix(name, rows, cols, weights)?.rows(0..rows)?)
}
