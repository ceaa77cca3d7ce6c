//! Sentence embeddings: texts to vectors, by what the model's directory says of its modules and prompts.
//!
//! Texts are sorted by length and evaluated in batches without padding; on the CPU a text has the same vector, bit for bit, alone
//! and in any batch. Equal to `SentenceTransformer.encode` of sentence-transformers 6.2.
//!
//! ```
//! use metal_candle::{EmbedOptions, LoadOptions, Model};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("models/tiny-embed", &LoadOptions::default(), None)?;
//! let texts = ["How do I append an element?", "Appends an element to a vector.", "Opens a file for reading."];
//! let vectors = model.embed(&texts, &EmbedOptions::default(), None)?;
//! let rows: Vec<&[f32]> = vectors.chunks(model.embedding_dim(&EmbedOptions::default())?).collect();
//! let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
//! assert!(cosine(rows[0], rows[1]) > cosine(rows[0], rows[2]));
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::collections::HashSet;

use rayon::prelude::*;
use tokenizers::TruncationDirection;

use super::lora::Attached;
use super::model::{Progress, ProgressFn, Stage, tell};
use super::options::{Field, Fields, OptionRange, OptionSlot, builders, field, limit_field, word_field};
use super::{Cancel, Lora, Model, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Checkpoint, Gguf, GgufSource, Json, ModuleConfig, ModulePlace, Origin, SentenceConfig, Similarity};
use crate::nn::{Config, SentenceModule, TensorSource, Weights};
use crate::ops::{self, Backend, Format, Pooling};

/// Texts that are tokenised between two looks at the cancel flag.
const TOKENIZE_TEXTS: usize = 1024;

/// The most tokens that are on their way through the network at a time: some batches, or one long text.
pub(super) fn rows_at_once(longest: usize, backend: &Backend) -> usize {
    let batching = backend.batching();
    longest.max(batching.tokens * batching.at_a_time)
}

/// What is put in front of every text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Prompt {
    /// The model's default prompt, if it has one.
    #[default]
    Default,
    /// One of the model's prompts by its name: `query`, `document` …
    Name(String),
    /// This text; the empty one for no prompt at all.
    Text(String),
}

/// How to embed. The default is what the model's directory says.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct EmbedOptions {
    /// In place of the model's own.
    pub pooling: Option<Pooling>,
    /// Whether vectors have length 1; `None` = what the model's modules say, `Some(false)` = without its last Normalize.
    pub normalize: Option<bool>,
    /// Only the first values of each vector (Matryoshka models), normalised where the whole vector would be.
    pub dimensions: Option<usize>,
    /// Tokens of a text, special ones included; of a longer text the rest is cut off. `None` = the model's own limit.
    pub max_length: Option<usize>,
    /// Most texts that go through the network together, on each thread; `None` = as many as are fastest. Changes no vector.
    pub batch_size: Option<usize>,
    pub prompt: Prompt,
    /// Adapters, each with its scale; their changes add up.
    pub adapters: Vec<(Lora, f32)>,
    /// Stops when the texts that are going through the network are done.
    pub cancel: Option<Cancel>,
}

builders!(EmbedOptions {
    pooling: Pooling => Some(pooling),
    normalize: bool => Some(normalize),
    dimensions: usize => Some(dimensions),
    max_length: usize => Some(max_length),
    batch_size: usize => Some(batch_size),
    prompt: Prompt,
    adapters: impl IntoIterator<Item = (Lora, f32)> => adapters.into_iter().collect(),
    cancel: Cancel => Some(cancel),
});

const POOLINGS: &[(&str, Pooling)] = &[
    ("mean", Pooling::Mean),
    ("cls", Pooling::Cls),
    ("last", Pooling::Last),
    ("max", Pooling::Max),
    ("mean_sqrt_len", Pooling::MeanSqrtLen),
    ("weighted_mean", Pooling::WeightedMean),
];

impl Fields for EmbedOptions {
    const NAME: &'static str = "mc_embed_options";

    fn fields() -> &'static [Field<Self>] {
        const FIELDS: &[Field<EmbedOptions>] = &[
            word_field!("pooling", POOLINGS, pooling or nothing),
            field!("normalize", OptionRange::Bool, normalize),
            limit_field!("dimensions", dimensions),
            limit_field!("max_length", max_length),
            limit_field!("batch_size", batch_size),
            Field {
                name: "prompt_name",
                range: OptionRange::Text,
                get: |options| options.prompt.name().into(),
                set: |options, value| {
                    options.prompt = OptionSlot::of(value).map_or(Prompt::Default, Prompt::Name);
                    Ok(())
                },
            },
            Field {
                name: "prefix",
                range: OptionRange::Text,
                get: |options| options.prompt.text().into(),
                set: |options, value| {
                    options.prompt = OptionSlot::of(value).map_or(Prompt::Default, Prompt::Text);
                    Ok(())
                },
            },
        ];
        FIELDS
    }
}

impl EmbedOptions {
    /// Sets the fields that a JSON object has, by their names; `null` is a field's default. [`prompt`](Self::prompt) is a `prompt_name`
    /// or a `prefix`; [`pooling`](Self::pooling) is `mean`, `cls`, `last`, `max`, `mean_sqrt_len` or `weighted_mean`.
    ///
    /// # Errors
    /// As [`GenerateOptions::set_json`](crate::GenerateOptions::set_json).
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

impl Prompt {
    pub(super) fn name(&self) -> Option<&str> {
        if let Self::Name(name) = self { Some(name) } else { None }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// What follows the network.
pub(super) struct Embedder {
    config: SentenceConfig,
    /// `None` = the model's own.
    tokenizer: Option<Tokenizer>,
    /// The tokens that tokenizer_config.json and special_tokens_map.json name.
    special: HashSet<u32>,
    pub(super) max_length: usize,
    pub(super) cut: TruncationDirection,
    /// Without a Normalize at their end.
    modules: Vec<SentenceModule>,
    normalize: bool,
}

/// What becomes length 1.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Normalize {
    Nothing,
    /// Before the first values are kept: their length is then another.
    Whole,
    /// The values that are kept.
    Kept,
}

/// The options of one call, resolved.
struct Plan<'a> {
    tokenizer: &'a Tokenizer,
    prompt: String,
    max_length: usize,
    pooling: Vec<Pooling>,
    normalize: Normalize,
    /// Width of the result.
    dim: usize,
    batch_size: usize,
}

impl Model {
    /// The width of the vectors that [`embed`](Self::embed) gives with these options.
    ///
    /// # Errors
    /// Those of the options.
    pub fn embedding_dim(&self, options: &EmbedOptions) -> Result<usize> {
        Ok(self.plan(options)?.dim)
    }

    /// How the model's vectors are meant to be compared.
    pub fn similarity(&self) -> Similarity {
        self.embedder().config.similarity
    }

    /// The names of the model's prompts.
    pub fn prompt_names(&self) -> impl Iterator<Item = &str> {
        self.embedder().config.prompts.iter().map(|(name, _)| name.as_str())
    }

    /// One vector for each text, in their order. Progress has the stage `Embed` and counts texts.
    ///
    /// # Shape
    /// `(texts, dim)`, row-major.
    ///
    /// # Errors
    /// `InvalidArgument` for an option outside its range, naming it; `NotFound` for a model without a tokenizer; `Mismatch` for an
    /// adapter of another model; `Cancelled`; `OutOfMemory`; `Suspended`; `Device` for a vector that is not finite, as one of weights
    /// that are not.
    pub fn embed(&self, texts: &[&str], options: &EmbedOptions, mut progress: Option<&mut ProgressFn<'_>>) -> Result<Vec<f32>> {
        let plan = self.plan(options)?;
        let attached = Attached::new(self, &options.adapters)?;
        let check = || options.cancel.as_ref().map_or(Ok(()), Cancel::check);
        let room = || Error::new(ErrorKind::OutOfMemory, format!("{} vectors do not fit the memory", texts.len()));
        let len = texts.len().checked_mul(plan.dim).ok_or_else(room)?;
        let mut vectors = Vec::new();
        vectors.try_reserve_exact(len).map_err(|_| room())?;
        vectors.resize(len, 0f32);

        let mut tokens = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TOKENIZE_TEXTS) {
            check()?;
            tokens.extend(self.tokenize(texts, &plan, options.cancel.as_ref())?);
        }
        // The longest first: memory is then needed at once or not at all, and the last batch is a short one.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tokens[i].len()));
        let (batches, skip) = (self.batches(&order, &tokens, plan.batch_size), self.not_pooled(&plan)?);
        let (mut done, total) = (0, texts.len());
        for batches in batches.chunks(self.batches_at_once()) {
            let rows = self.embed_batches(batches, &tokens, |batch| {
                check()?;
                self.embed_batch(batch, &tokens, &plan, skip, &attached)
            });
            for (batch, rows) in batches.iter().zip(rows) {
                for (&i, row) in batch.iter().zip(rows?.chunks_exact(plan.dim)) {
                    vectors[i * plan.dim..][..plan.dim].copy_from_slice(row);
                }
                done += batch.len();
            }
            tell(&mut progress, Progress { stage: Stage::Embed, done: done as u64, total: total as u64 })?;
        }
        if let Some(at) = vectors.iter().position(|x| !x.is_finite()) {
            let (text, found) = (at / plan.dim, vectors[at]);
            return Err(Error::new(
                ErrorKind::Device,
                format!("texts[{text}]: expected a vector of finite values, found {found}"),
            ));
        }
        Ok(vectors)
    }

    fn plan(&self, options: &EmbedOptions) -> Result<Plan<'_>> {
        let Embedder { config, max_length, normalize, .. } = self.embedder();
        let tokenizer = self.texts_tokenizer()?;
        let pooling = options.pooling.map_or_else(|| config.pooling.clone(), |pooling| vec![pooling]);
        let whole = width(&config.modules, pooling.len() * self.transformer().config().vector_size()).map_err(|expected| {
            Error::argument(format!("pooling: expected one that gives the {expected} values that the model's next module reads"))
        })?;
        let dim = options.dimensions.or(config.truncate_dim.map(|dim| dim.min(whole))).unwrap_or(whole);
        if !(1..=whole).contains(&dim) {
            return Err(Error::argument(format!("dimensions: expected 1 to {whole}, found {dim}")));
        }
        if let Some(found) = options.max_length {
            let (least, most) = (tokenizer.special_per_text() + 1, self.context_length().max(*max_length));
            if !(least..=most).contains(&found) {
                return Err(Error::argument(format!("max_length: expected {least} to {most} tokens, found {found}")));
            }
        }
        let max_length = options.max_length.unwrap_or(*max_length);
        if options.batch_size == Some(0) {
            return Err(Error::argument("batch_size: expected at least 1, found 0"));
        }
        let prompt = self.prompt(&options.prompt)?;
        let normalize = match options.normalize.unwrap_or(*normalize) {
            false => Normalize::Nothing,
            // What the directory itself cuts is not normalised again.
            true if options.normalize.is_none() && options.dimensions.is_none() => Normalize::Whole,
            true => Normalize::Kept,
        };
        let batch_size = options.batch_size.unwrap_or(usize::MAX);
        Ok(Plan { tokenizer, prompt, max_length, pooling, normalize, dim, batch_size })
    }

    /// What puts texts into tokens that are evaluated whole.
    pub(super) fn texts_tokenizer(&self) -> Result<&Tokenizer> {
        self.embedder().tokenizer.as_ref().map_or_else(|| self.tokenizer(), Ok)
    }

    /// The text of a prompt; empty for none.
    pub(super) fn prompt(&self, prompt: &Prompt) -> Result<String> {
        let config = &self.embedder().config;
        match prompt {
            Prompt::Default => Ok(config.default_prompt.clone().unwrap_or_default()),
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Name(name) => match config.prompts.iter().find(|(known, _)| known == name) {
                Some((_, prompt)) => Ok(prompt.clone()),
                None => {
                    let known: Vec<&str> = self.prompt_names().collect();
                    let known = known.join(", ");
                    Err(Error::argument(format!("prompt_name: expected one of the model's ({known}), found {name:?}")))
                }
            },
        }
    }

    /// Tokens at the beginning of every text that are not pooled.
    fn not_pooled(&self, plan: &Plan<'_>) -> Result<usize> {
        let Embedder { config, special, cut, .. } = self.embedder();
        if config.include_prompt || plan.prompt.is_empty() {
            return Ok(0);
        }
        let ids = plan.tokenizer.encode_within(&plan.prompt, plan.max_length, *cut, None)?;
        // What the tokenizer puts behind a text does not stand behind a prompt; the reference takes any token that has a name
        // for it.
        let added = plan.tokenizer.encode(&plan.prompt, false)?.last() != ids.last();
        let behind = |id: &&u32| special.contains(id) || added && plan.tokenizer.is_special(**id);
        Ok(ids.len() - usize::from(ids.last().filter(behind).is_some()))
    }

    fn tokenize(&self, texts: &[&str], plan: &Plan<'_>, cancel: Option<&Cancel>) -> Result<Vec<Vec<u32>>> {
        let vocabulary = self.vocab_size();
        let encode = |text: &&str| {
            let prompted = if plan.prompt.is_empty() { None } else { Some(format!("{}{text}", plan.prompt)) };
            let ids = plan.tokenizer.encode_within(
                prompted.as_deref().unwrap_or(text),
                plan.max_length,
                self.embedder().cut,
                cancel,
            )?;
            match ids.iter().find(|&&id| id as usize >= vocabulary) {
                Some(id) => {
                    Err(Error::format(format!("tokenizer.json: token id {id} is outside the model's vocabulary of {vocabulary}")))
                }
                None => Ok(ids),
            }
        };
        // One text is not worth waking a thread.
        if let [text] = texts {
            encode(text).map(|ids| vec![ids])
        } else {
            ops::install(|| texts.par_iter().map(encode).collect())
        }
    }

    /// Cuts `order` into the texts that go through the network together.
    pub(super) fn batches<'a>(&self, mut order: &'a [usize], tokens: &[Vec<u32>], batch_size: usize) -> Vec<&'a [usize]> {
        let most = self.transformer().backend().batching();
        let mut batches = Vec::new();
        while let Some(&first) = order.first() {
            let mut sum = 0;
            let mut within = |n: usize, i: usize| {
                sum += tokens[i].len();
                let size = if most.padded { (n + 1) * tokens[first].len() } else { sum };
                n == 0 || (size <= most.tokens && n < batch_size)
            };
            let count = order.iter().enumerate().map_while(|(n, &i)| within(n, i).then_some(n + 1)).last().unwrap_or(1);
            let (batch, rest) = order.split_at(count);
            batches.push(batch);
            order = rest;
        }
        batches
    }

    /// Batches between two reports of progress: many for each thread, as all wait for the last.
    pub(super) fn batches_at_once(&self) -> usize {
        match self.transformer().backend().batching().at_a_time {
            1 => 1,
            threads => 16 * threads,
        }
    }

    /// A thread takes a batch; the first ones, where each is longer than a thread's share of all, have all threads one after another.
    pub(super) fn embed_batches<R: Send>(
        &self,
        batches: &[&[usize]],
        tokens: &[Vec<u32>],
        embed: impl Fn(&[usize]) -> R + Sync,
    ) -> Vec<R> {
        let size = |batch: &[usize]| batch.iter().map(|&i| tokens[i].len()).sum::<usize>();
        let most = self.transformer().backend().batching();
        let share = batches.iter().map(|batch| size(batch)).sum::<usize>() / most.at_a_time;
        let long = batches.iter().take_while(|batch| size(batch) > share.max(most.tokens)).count();
        let (long, others) = batches.split_at(long);
        let mut rows: Vec<R> = long.iter().map(|batch| embed(batch)).collect();
        rows.extend(ops::parallel_map(others, |batch| embed(batch)));
        rows
    }

    /// # Shape
    /// `(batch, dim)`
    fn embed_batch(
        &self,
        batch: &[usize],
        tokens: &[Vec<u32>],
        plan: &Plan<'_>,
        skip: usize,
        attached: &Attached,
    ) -> Result<Vec<f32>> {
        let ids: Vec<u32> = batch.iter().flat_map(|&i| tokens[i].iter().copied()).collect();
        let lengths: Vec<usize> = batch.iter().map(|&i| tokens[i].len()).collect();
        let transformer = self.transformer();
        self.device().compute(|| {
            let kinds = &plan.pooling;
            let modules = &self.embedder().modules;
            let mut whole = transformer.embed_sequences((&ids, &[], &lengths), attached.adapters(), (skip, kinds), modules)?;
            let width = whole.len() / batch.len();
            let mut rows = Vec::with_capacity(batch.len() * plan.dim);
            for row in whole.chunks_exact_mut(width) {
                match plan.normalize {
                    Normalize::Nothing => {}
                    Normalize::Whole => ops::unit_length(row),
                    Normalize::Kept => ops::unit_length(&mut row[..plan.dim]),
                }
                rows.extend_from_slice(&row[..plan.dim]);
            }
            Ok(rows)
        })
    }
}

impl Embedder {
    /// Loads the modules that follow `network`; `limited`: its context is what the caller set.
    pub(super) fn load(
        config: SentenceConfig,
        tokenizer: Option<&Tokenizer>,
        tokenizer_config: Option<&Json>,
        special_tokens: Option<&Json>,
        network: &Config,
        backend: &Backend,
        limited: bool,
    ) -> Result<Self> {
        let (size, context_length) = (network.vector_size(), network.context_length);
        if let Some(width) = config.width.filter(|&width| width != size) {
            return Err(Error::format(format!("pooling: expected vectors of {size} values, found {width}")));
        }
        width(&config.modules, config.pooling.len() * size)
            .map_err(|expected| Error::format(format!("modules.json: a module reads {expected} values and gets others")))?;
        let mut modules = config.modules.iter().map(|module| load(module, backend)).collect::<Result<Vec<_>>>()?;
        let normalize = modules.pop_if(|module| matches!(module, SentenceModule::Normalize)).is_some();
        let max_length = match config.max_length {
            // Rotary positions have no end, unless the caller set one; a table has.
            Some(limit) if network.positions.is_none() && !limited => limit,
            Some(limit) => limit.min(context_length),
            // "No limit" is a number of thirty digits there.
            None => match tokenizer_config.map(|json| json.number("model_max_length")).transpose()?.flatten() {
                Some(limit) if limit >= 1.0 => context_length.min(limit as usize),
                Some(limit) => {
                    return Err(Error::format(format!(
                        "tokenizer_config.json: model_max_length: expected at least 1, found {limit}"
                    )));
                }
                None => context_length,
            },
        };
        let cut = match tokenizer_config.map(|json| json.text("truncation_side")).transpose()?.flatten().as_deref() {
            None => tokenizer.and_then(Tokenizer::cut).unwrap_or(TruncationDirection::Right),
            Some("right") => TruncationDirection::Right,
            Some("left") => TruncationDirection::Left,
            Some(other) => {
                let message = format!("tokenizer_config.json: truncation_side: expected \"left\" or \"right\", found {other:?}");
                return Err(Error::format(message));
            }
        };
        let files = || tokenizer_config.into_iter().chain(special_tokens);
        let special = tokenizer.map(|tokenizer| files().flat_map(|json| named_tokens(json, tokenizer)).collect());
        let special = special.unwrap_or_default();
        let tokenizer = if config.lower_case { tokenizer.map(Tokenizer::lower_cased).transpose()? } else { None };
        Ok(Self { max_length, tokenizer, special, cut, modules, normalize, config })
    }
}

/// Reads a module onto the device of the network.
fn load(module: &ModuleConfig, backend: &Backend) -> Result<SentenceModule> {
    let mut on_bytes = |_, _| Ok(());
    match module {
        ModuleConfig::Normalize => Ok(SentenceModule::Normalize),
        ModuleConfig::Dense { place: ModulePlace::Gguf { path, tensor }, .. } => {
            let origin = ("linear.weight".to_string(), Origin::whole(tensor));
            read(module, &mut GgufSource::new(Gguf::open(path)?, [origin], |_| true, &mut on_bytes)?, backend)
        }
        ModuleConfig::Dense { place: ModulePlace::Directory(directory), .. } | ModuleConfig::LayerNorm { directory, .. } => {
            let folder = directory.file_name().unwrap_or_default().to_string_lossy();
            let checkpoint = Checkpoint::open(directory, &mut on_bytes);
            let module = checkpoint.and_then(|mut checkpoint| read(module, &mut checkpoint, backend));
            module.map_err(|error| error.within(folder))
        }
    }
}

fn read(module: &ModuleConfig, source: &mut dyn TensorSource, backend: &Backend) -> Result<SentenceModule> {
    // Pooled vectors are F32 on every device.
    let mut weights = Weights::new(source, backend, Some(Format::F32));
    let module = match *module {
        ModuleConfig::Dense { inputs, outputs, bias, activation, residual, .. } => {
            SentenceModule::dense(&mut weights, (inputs, outputs), bias, activation, residual)?
        }
        // The eps is torch's default, which the module does not change.
        ModuleConfig::LayerNorm { width, .. } => SentenceModule::layer_norm(&mut weights, "norm", width, 1e-5, true)?,
        ModuleConfig::Normalize => SentenceModule::Normalize,
    };
    weights.finish(|_| false)?;
    Ok(module)
}

/// The width behind all modules, or what the first that does not fit reads.
fn width(modules: &[ModuleConfig], pooled: usize) -> std::result::Result<usize, usize> {
    modules.iter().try_fold(pooled, |width, module| match module {
        ModuleConfig::Dense { inputs, outputs, .. } if *inputs == width => Ok(*outputs),
        ModuleConfig::Dense { inputs: expected, .. } => Err(*expected),
        ModuleConfig::LayerNorm { width: expected, .. } if *expected != width => Err(*expected),
        ModuleConfig::LayerNorm { .. } | ModuleConfig::Normalize => Ok(width),
    })
}

/// The tokens that a tokenizer_config.json or special_tokens_map.json names: `cls_token`, `additional_special_tokens` …
fn named_tokens(json: &Json, tokenizer: &Tokenizer) -> Vec<u32> {
    fn names(value: &serde_json::Value) -> Vec<&str> {
        match value {
            serde_json::Value::String(name) => vec![name],
            serde_json::Value::Array(list) => list.iter().flat_map(names).collect(),
            serde_json::Value::Object(fields) => match fields.get("content") {
                Some(content) => names(content),
                None => fields.values().flat_map(names).collect(),
            },
            _ => Vec::new(),
        }
    }
    let named = |key: &str| key.ends_with("_token") || key.ends_with("special_tokens");
    let fields = json.value().as_object().into_iter().flatten().filter(|(key, _)| named(key));
    fields.flat_map(|(_, value)| names(value)).filter_map(|name| tokenizer.token_id(name).ok()).collect()
}
