//! A model as files again: a GGUF file, or a directory in the layout of the Hub. So a model that adapters were merged into is kept.
//!
//! ```no_run
//! use metal_candle::{LoadOptions, Lora, Model};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//! let merged = model.merge(&Lora::load(&model, "my-adapter")?, 1.0)?;
//! merged.save("my-model", Some("bf16"), None)?;
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::files::Files;
use super::model::tell;
use super::{LoadOptions, Model, Progress, ProgressFn, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{
    GgufChanges, JoinedExperts, Json, ModelTensors, Put, Rewrite, Rows, beside, python_text, replace, write_rows, write_tensors,
    write_text,
};
use crate::models;
use crate::nn::{MIXES, Mix, Module, Part, Restored, Role, Tying};
use crate::ops::{Format, copied, zeros};

/// The files that a model was read from, which a saved one takes from them what has not changed.
#[derive(Debug, Clone)]
pub(super) struct LoadedFrom {
    path: PathBuf,
    file: Option<String>,
    tokenizer_path: Option<PathBuf>,
    stamps: Vec<Stamp>,
}

/// What tells that a file is still the same.
#[derive(Debug, Clone, PartialEq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

impl LoadedFrom {
    pub(super) fn new(path: &Path, options: &LoadOptions, tensors: &dyn ModelTensors) -> Result<Self> {
        let (file, tokenizer_path) = (options.file.clone(), options.tokenizer_path.clone());
        // The process may go to another directory until the model is saved.
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, e));
        let tokenizer_path = tokenizer_path.as_deref().map(absolute).transpose()?;
        Ok(Self { path: absolute(path)?, file, tokenizer_path, stamps: stamps(tensors)? })
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { file: self.file.clone(), tokenizer_path: self.tokenizer_path.clone(), ..LoadOptions::default() }
    }

    fn check(&self, tensors: &dyn ModelTensors) -> Result<()> {
        if self.stamps == stamps(tensors)? {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::new(ErrorKind::Mismatch, format!("{path}: expected the files that the model was loaded from, found others")))
    }
}

fn stamps(tensors: &dyn ModelTensors) -> Result<Vec<Stamp>> {
    let stamp = |(path, file): &(PathBuf, std::fs::File)| {
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        Ok(Stamp { len: metadata.len(), modified: metadata.modified().ok() })
    };
    tensors.files().iter().map(stamp).collect()
}

/// What matrices become that are not quantised yet.
#[derive(Clone, Copy)]
enum Target {
    /// Nothing else; merged ones are F32.
    AsTheyAre,
    Type(Format),
    Mix(&'static Mix),
}

impl Target {
    /// # Errors
    /// `ErrorKind::Unsupported` for a name that is not there.
    fn named(name: Option<&str>, mixes: impl Fn(&Mix) -> bool) -> Result<Self> {
        let Some(name) = name else { return Ok(Self::AsTheyAre) };
        let types = [("f32", Format::F32), ("f16", Format::F16), ("bf16", Format::BF16)];
        let mut mixes = MIXES.iter().filter(|mix| mixes(mix));
        if let Some((_, format)) = types.iter().find(|(own, _)| *own == name) {
            return Ok(Self::Type(*format));
        }
        let known = types.iter().map(|(name, _)| *name).chain(mixes.clone().map(|mix| mix.name)).collect::<Vec<_>>().join(", ");
        let unknown = || Error::unsupported(format!("format: {name:?} is not supported ({known})"));
        mixes.find(|mix| mix.name == name).map(Self::Mix).ok_or_else(unknown)
    }

    /// What a matrix for products or, of one type for all, a table becomes; `None` = what it is.
    fn format(self, (role, part, inputs): (Role, Part, usize), layers: usize, is_tied: bool) -> Option<Format> {
        let depth = if let Role::Layer(layer) = role { (layer, layers) } else { (0, 1) };
        match self {
            Self::AsTheyAre => None,
            Self::Type(format) => Some(format),
            Self::Mix(_) if role == Role::Embedding && !is_tied => None,
            Self::Mix(mix) => Some(in_file(mix.format(part, depth, inputs), inputs)),
        }
    }
}

/// What a file has a format as: its blocks are whole.
fn in_file(format: Format, cols: usize) -> Format {
    if format.row_bytes(cols).is_some() { format } else { Format::F16 }
}

impl Model {
    /// Writes the model as a directory in the layout of the Hub, which this library and transformers load: model.safetensors,
    /// config.json, the tokenizer's files, and the settings of sentence-transformers where there are any.
    ///
    /// Tensors have the bytes of the files that the model was loaded from, which must still be there; matrices that adapters were
    /// merged into are F32. `format`, one of `f32`, `f16` and `bf16`, is the type of all matrices instead, small ones such as norms
    /// excepted. Quantised matrices are written as the numbers that they stand for, in F32 or `format`; what the model was quantised
    /// to while loading is not looked at: its files have more. What MLX's converter calls or lays out in another way is as it was before,
    /// but for what reads pictures and sounds. Buffers of other types than weights have are left out.
    ///
    /// `directory` is made, or is empty; it appears when all is written. Progress has the stage `Write`.
    ///
    /// # Errors
    /// `InvalidArgument` for a directory with files; `Unsupported` for a format that is not there; `NotFound` and `Mismatch` if the
    /// model's files are gone or others; `Format` for a value beyond the range of `format`; `Io`; `Cancelled`; `Device`.
    pub fn save(
        &self,
        directory: impl AsRef<Path>,
        format: Option<&str>,
        mut progress: Option<&mut ProgressFn<'_>>,
    ) -> Result<()> {
        let (directory, target) = (directory.as_ref(), Target::named(format, |_| false)?);
        if directory.exists() && !is_empty(directory)? {
            let found = directory.display();
            return Err(Error::argument(format!("directory: expected none, or one without files, found files in {found}")));
        }
        let part = beside(directory)?;
        let written = self.write_directory(&part, target, &mut progress).and_then(|()| {
            // An empty directory gives way.
            std::fs::rename(&part, directory).map_err(|e| Error::io(directory, e))
        });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = std::fs::remove_dir_all(&part);
        }
        written.map_err(|error| error.of_place(&part, directory))
    }

    /// Writes a model that was loaded from a GGUF file as one, which this library and llama.cpp load.
    ///
    /// Tensors have the bytes of the file that the model was loaded from, which must still be there; matrices that adapters were
    /// merged into are F32. `format` is what matrices that are not quantised become instead: `f32`, `f16` or `bf16`, or one of
    /// `q8_0`, `q6_k`, `q5_k_m`, `q4_k_m`, `q4_0` and `iq4_nl`, as [`LoadOptions::quantization`] has them. What is quantised and not
    /// merged into stays as it is. Metadata stay; a model in several files becomes one.
    ///
    /// A file that is there is replaced, once all is written. Progress has the stage `Write`.
    ///
    /// # Errors
    /// `Unsupported` for a model that was loaded from safetensors, for a format that is not there, and for an output matrix that adapters
    /// made another one than the embedding where llama.cpp reads none (Cohere, Gemma and Gemma 2); otherwise as [`save`](Self::save).
    pub fn save_gguf(
        &self,
        path: impl AsRef<Path>,
        format: Option<&str>,
        mut progress: Option<&mut ProgressFn<'_>>,
    ) -> Result<()> {
        let target = Target::named(format, |mix| mix.file_type.is_some())?;
        let mut files = Files::open(&self.origin().path, &self.origin().options())?;
        let mut on_bytes = writing(&mut progress);
        let Some(mut source) = files.gguf_source(&mut on_bytes)? else {
            let message = "save_gguf: expected a model that was loaded from a GGUF file, found one from safetensors";
            return Err(Error::unsupported(message));
        };
        self.origin().check(&source)?;
        let Plan { rewrites, added } = self.changes_of(&source, target)?;
        if added.iter().any(|(module, _)| module.role == Role::Head) && !models::may_have_output(files.family) {
            let message = "save_gguf: the output matrix is no longer the embedding, and llama.cpp reads none beside it of this \
                           architecture: save the model as a directory";
            return Err(Error::unsupported(format!("{message} ({})", files.family.model_type)));
        }
        let added = added.into_iter().map(|(module, rewrite)| {
            let name = if module.role == Role::Head { "output.weight" } else { "token_embd.weight" };
            (name.to_string(), vec![module.outputs, module.inputs], rewrite)
        });
        let changes = GgufChanges { rewrites, added: added.collect(), file_type: target.file_type() };
        let path = path.as_ref().to_path_buf();
        replace(&[path], |paths| paths.iter().try_for_each(|path| source.write(path, &changes)))?;
        source.finish()
    }

    fn write_directory(&self, directory: &Path, target: Target, progress: &mut Option<&mut ProgressFn<'_>>) -> Result<()> {
        let mut files = Files::open(&self.origin().path, &self.origin().options())?;
        // Small ones first: what they lack is known before the weights are written.
        let network = directory.join(files.relative_network()?);
        std::fs::create_dir_all(&network).map_err(|e| Error::io(&network, e))?;
        files.copy_small(directory, &network, self.tokenizer().ok())?;
        write_text(&network.join("config.json"), &self.saved_config()?)?;

        let mut on_bytes = writing(progress);
        let mut source = files.tensors(&mut on_bytes)?;
        self.origin().check(&*source)?;
        let Plan { rewrites, added } = self.changes_of(&*source, target)?;
        let mut tensors: Vec<(String, Format, Vec<usize>)> = Vec::new();
        for name in source.names() {
            // Buffers of integers, which old checkpoints carry along.
            let Some((Ok(stored), shape)) = source.entry(name).map(|entry| (entry.stored.clone(), &entry.shape)) else {
                continue;
            };
            let plain = match target {
                _ if !stored.is_quantised() => stored,
                Target::Type(format) => format,
                Target::AsTheyAre | Target::Mix(_) => Format::F32,
            };
            let format = rewrites.get(name).map_or(plain, |rewrite| rewrite.format);
            tensors.push((name.to_string(), format, shape.clone()));
        }
        let of_head = match self.reranker().as_ref() {
            Ok(reranker) => self.device().compute(|| reranker.changed_tensors())?,
            Err(_) => Vec::new(),
        };
        let mut all = rewrites;
        for (module, rewrite) in added {
            let name = format!("{}.weight", self.transformer().stored_name(module));
            tensors.push((name.clone(), rewrite.format, vec![module.outputs, module.inputs]));
            all.insert(name, rewrite);
        }
        for (name, values) in &of_head {
            if let Some((_, format, shape)) = tensors.iter_mut().find(|(own, ..)| own == name) {
                *format = Format::F32;
                let len = values.len() / rows_of(shape).max(1);
                let rows: Box<Rows<'_>> = Box::new(move |rows: Range<usize>| copy(&values[rows.start * len..rows.end * len]));
                all.insert(name.clone(), Rewrite { format: Format::F32, rows: Some(rows) });
            }
        }
        let restored = restore(&mut tensors, self.transformer().restored());
        let counts: BTreeMap<String, usize> = tensors.iter().map(|(name, _, shape)| (name.clone(), rows_of(shape))).collect();
        let joined = match self.transformer().config().stacks_of_inputs().is_some() {
            true => JoinedExperts::take(&mut tensors),
            false => Vec::new(),
        };
        tensors.extend(joined.iter().map(|joined| (joined.name.clone(), joined.format, joined.shape.clone())));
        let joined: BTreeMap<&str, &JoinedExperts> = joined.iter().map(|joined| (joined.name.as_str(), joined)).collect();
        let mut origins: BTreeMap<String, (String, Format, usize)> = BTreeMap::new();
        for (name, format, shape) in &mut tensors {
            let saved = self.transformer().saved_name(name);
            origins.insert(saved.clone(), (std::mem::replace(name, saved), *format, rows_of(shape)));
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        write_tensors(&network.join("model.safetensors"), &tensors, &[("format", "pt")], &mut |saved, put| {
            let Some((name, format, rows)) = origins.get(saved).map(|(name, format, rows)| (name.as_str(), *format, *rows))
            else {
                return Err(Error::format(format!("{saved}: not in the files")));
            };
            let changed = |name: &str| all.get(name).and_then(|rewrite| rewrite.rows.as_ref());
            if !joined.contains_key(name) && !restored.contains_key(name) {
                return match changed(name) {
                    Some(changed) => write_rows(saved, rows, format, changed, put),
                    None => write_stored(name, &mut *source, format, put),
                };
            }
            let source = RefCell::new(&mut *source);
            let stored = |name: &str, rows: Range<usize>| match changed(name) {
                Some(changed) => changed(rows),
                None => stored_rows(name, &mut **source.borrow_mut(), rows),
            };
            let values = |name: &str, rows: Range<usize>| match restored.get(name) {
                Some(restored) => restored.rows(rows, stored),
                None => stored(name, rows),
            };
            let Some(joined) = joined.get(name) else {
                return write_rows(saved, rows, format, &|rows: Range<usize>| values(name, rows), put);
            };
            let last = RefCell::new(None);
            let part = |name: &str| values(name, 0..counts.get(name).copied().unwrap_or(0));
            write_rows(saved, rows, format, &|rows: Range<usize>| joined.rows(rows, &mut last.borrow_mut(), part), put)
        })?;
        source.finish()
    }

    /// What of the model's tensors is no longer what the files say.
    fn changes_of(&self, source: &dyn ModelTensors, target: Target) -> Result<Plan<'_>> {
        let (network, changed) = (self.transformer(), self.changed());
        let mut plan = Plan { rewrites: BTreeMap::new(), added: Vec::new() };
        for module in network.modules() {
            let stored = network.stored_name(module);
            let format = target.format((module.role, module.part, module.inputs), self.layer_count(), network.is_tied());
            let weight = format!("{stored}.weight");
            let rows: Box<Rows<'_>> = Box::new(move |rows: Range<usize>| {
                self.device().compute(|| Ok(self.transformer().module_rows(module, rows.clone())?))
            });
            let is_merged = changed.weights.contains(&module.linear);
            let merged = format.unwrap_or(Format::F32);
            match source.entry(&weight) {
                Some(_) if is_merged => {
                    plan.rewrites.insert(weight, Rewrite { format: merged, rows: Some(rows) });
                }
                Some(entry) if entry.stored.as_ref().is_ok_and(|stored| !stored.is_quantised()) => {
                    if let Some(format) = format {
                        plan.rewrites.insert(weight, Rewrite { format, rows: None });
                    }
                }
                Some(_) => {}
                // One of two that were one.
                None if !network.is_tied() => plan.added.push((module, Rewrite { format: merged, rows: Some(rows) })),
                None => {}
            }
            if changed.biases.contains(&module.linear)
                && let Some(bias) = self.device().compute(|| Ok(network.module_bias(module)?))?
            {
                let rows: Box<Rows<'_>> = Box::new(move |rows: Range<usize>| copy(&bias[rows]));
                plan.rewrites.insert(format!("{stored}.bias"), Rewrite { format: Format::F32, rows: Some(rows) });
            }
        }
        let is_plain =
            |name: &str| source.entry(name).is_some_and(|entry| entry.stored.as_ref().is_ok_and(|stored| !stored.is_quantised()));
        for stack in network.stored_stacks() {
            let format = target.format((stack.role, stack.part, stack.inputs), self.layer_count(), network.is_tied());
            let rows: Box<Rows<'_>> =
                Box::new(move |rows: Range<usize>| self.device().compute(|| Ok(network.stack_rows(stack, rows.clone())?)));
            if stack.pieces.iter().any(|(_, linear, _)| changed.weights.contains(linear)) {
                let format = format.unwrap_or(Format::F32);
                plan.rewrites.insert(stack.name.clone(), Rewrite { format, rows: Some(rows) });
            } else if let (Some(format), true) = (format, is_plain(&stack.name)) {
                plan.rewrites.insert(stack.name.clone(), Rewrite { format, rows: None });
            }
        }
        // What no adapter changes: of one type for all it becomes that too.
        if let (Target::Type(format), Some(name)) = (target, network.stored_table().filter(|name| is_plain(name))) {
            plan.rewrites.insert(name.to_string(), Rewrite { format, rows: None });
        }
        Ok(plan)
    }

    /// config.json of what is written: nothing in it is quantised, and what is no longer tied is not.
    fn saved_config(&self) -> Result<String> {
        const TIE: &str = "tie_word_embeddings";
        let mut config = Json::parse("config.json", self.config_json())?.value().clone();
        // Versions of transformers before 5 read infinite numbers in this way alone.
        let is_pythons = serde_json::from_str::<Value>(self.config_json()).is_err();
        let is_untied = self.transformer().config().tying == Tying::Tied && !self.transformer().is_tied();
        if let Some(config) = config.as_object_mut() {
            config.retain(|key, _| !["quantization", "quantization_config", "compression_config"].contains(&key.as_str()));
            if is_untied && self.transformer().generates() {
                if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
                    text.insert(TIE.to_string(), json!(false));
                }
                config.insert(TIE.to_string(), json!(false));
            }
        }
        let text = if is_pythons { python_text(&config) } else { format!("{config:#}\n") };
        let (_, parsed) = models::parse(&Json::parse("config.json", &text)?)?;
        if is_untied && self.transformer().generates() && parsed.tying == Tying::Tied {
            let message = "save: the output matrix is no longer the embedding, which config.json of this family cannot say";
            return Err(Error::unsupported(message));
        }
        Ok(text)
    }
}

/// What changes.
struct Plan<'a> {
    /// By the names of the source.
    rewrites: BTreeMap<String, Rewrite<'a>>,
    /// What the source has no tensor for.
    added: Vec<(&'a Module, Rewrite<'a>)>,
}

impl Target {
    /// `general.file_type` of a file of such matrices.
    fn file_type(self) -> Option<u32> {
        match self {
            Self::AsTheyAre => None,
            Self::Type(Format::F32) => Some(0),
            Self::Type(Format::F16) => Some(1),
            Self::Type(_) => Some(32),
            Self::Mix(mix) => mix.file_type,
        }
    }
}

/// Writes a stored tensor, in its own bytes where it has the format already.
fn write_stored(name: &str, source: &mut dyn ModelTensors, format: Format, put: &mut Put<'_>) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let Some(entry) = source.entry(name).cloned() else { return Err(Error::format(format!("{name}: not in the files"))) };
    let stored = entry.stored.clone().unwrap_or(Format::F32);
    let rows: usize = entry.shape.split_last().map_or(1, |(_, above)| above.iter().product());
    let cols = entry.shape.last().copied().unwrap_or(1);
    let wrong = || Error::format(format!("{name}: no memory has the bytes of shape {:?}", entry.shape));
    let row_bytes = stored.row_bytes(cols).ok_or_else(wrong)?;
    if stored == format {
        let total = rows * row_bytes;
        let (mut buffer, mut at) = (zeros(PIECE.min(total))?, 0);
        while at < total {
            buffer.truncate(total - at);
            source.read(name, at as u64, &mut buffer)?;
            put(&buffer)?;
            at += buffer.len();
        }
        return Ok(());
    }
    let source = RefCell::new(source);
    let values = |rows: Range<usize>| {
        let mut bytes = zeros(rows.len() * row_bytes)?;
        source.borrow_mut().read(name, (rows.start * row_bytes) as u64, &mut bytes)?;
        Ok(stored.try_widen(&bytes)?)
    };
    write_rows(name, rows, format, &values, put)
}

/// Puts what tensors were before MLX's converter in place of what it has made of them; returns them by their names.
fn restore<'a>(tensors: &mut Vec<(String, Format, Vec<usize>)>, restored: &'a [Restored]) -> BTreeMap<String, &'a Restored> {
    let formats: BTreeMap<String, Format> = tensors.iter().map(|(name, format, _)| (name.clone(), *format)).collect();
    let taken: HashSet<&str> = restored.iter().flat_map(|one| &one.pieces).map(|(name, _)| name.as_str()).collect();
    tensors.retain(|(name, ..)| !taken.contains(name.as_str()));
    let restored: BTreeMap<String, &Restored> = restored.iter().map(|one| (one.name.clone(), one)).collect();
    for (name, one) in &restored {
        let of_pieces = one.pieces.iter().filter_map(|(name, _)| formats.get(name).copied());
        tensors.push((name.clone(), Format::finest(of_pieces).unwrap_or(Format::F32), one.shape.clone()));
    }
    restored
}

/// Some values of a tensor, as [`Rows`] gives them.
fn copy(values: &[f32]) -> Result<Vec<f32>> {
    let no_memory = |e| {
        let message = format!("a copy of {} values does not fit the memory", values.len());
        Error::new(ErrorKind::OutOfMemory, message).with_source(e)
    };
    copied(values).map_err(no_memory)
}

/// Rows of a stored tensor, as [`rows_of`] counts them.
fn stored_rows(name: &str, source: &mut dyn ModelTensors, rows: Range<usize>) -> Result<Vec<f32>> {
    let Some(entry) = source.entry(name).cloned() else { return Err(Error::format(format!("{name}: not in the files"))) };
    let stored = entry.stored.clone().unwrap_or(Format::F32);
    let wrong = || Error::format(format!("{name}: no memory has the bytes of shape {:?}", entry.shape));
    let row_bytes = stored.row_bytes(if let [.., _, cols] = entry.shape[..] { cols } else { 1 }).ok_or_else(wrong)?;
    let len = rows.len().checked_mul(row_bytes).ok_or_else(wrong)?;
    let mut bytes = zeros(len)?;
    source.read(name, (rows.start * row_bytes) as u64, &mut bytes)?;
    Ok(stored.try_widen(&bytes)?)
}

/// How many rows a tensor of this shape is written in: a value is one in a vector.
fn rows_of(shape: &[usize]) -> usize {
    match shape {
        [] => 1,
        [len] => *len,
        [above @ .., _] => above.iter().product(),
    }
}

/// Tells how many bytes are written.
fn writing<'a>(progress: &'a mut Option<&mut ProgressFn<'_>>) -> impl FnMut(u64, u64) -> Result<()> + 'a {
    let mut told = 0;
    move |done, total| {
        if done - told < total / 256 && done < total {
            return Ok(());
        }
        told = done;
        tell(progress, Progress { stage: Stage::Write, done, total })
    }
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(directory).map_err(|e| Error::io(directory, e))?.next().is_none())
}
