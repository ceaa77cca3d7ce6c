//! Rerankers: how well documents answer a query, by networks that read both at once.
//!
//! Cross-encoders, which are encoders or decoders `…ForSequenceClassification` with one label, and causal models that say "yes" or
//! "no", such as Qwen3-Reranker. Equal to `CrossEncoder.predict` of sentence-transformers 6.2. On the CPU a pair has the same score,
//! bit for bit, alone and in any company.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde_json::json;
use tokenizers::TruncationDirection;

use super::embed::Prompt;
use super::options::{Field, Fields, OptionRange, OptionSlot, builders, limit_field, word_field};
use super::tokenizer::FirstText;
use super::{Cancel, Chat, ChatTemplate, Model, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{HeadChange, HeadLayer, Json, MessageContent, PairFormat, Scored, SentenceConfig, TemplateSettings};
use crate::models::{Classifier, ClassifierLayer, classifier};
use crate::nn::{Config, SentenceModule, Weights};
use crate::ops::{self, Backend, Pooling, TorchActivation};

/// Documents that are tokenised between two looks at the cancel flag.
const TOKENIZE_TEXTS: usize = 256;

/// What Qwen3-Reranker reads around a pair.
///
/// # Source
/// <https://huggingface.co/Qwen/Qwen3-Reranker-0.6B>
const QWEN3_PREFIX: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                            Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const QWEN3_SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// What becomes of a logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScoreActivation {
    /// Nothing.
    Identity,
    /// A number from 0 to 1.
    Sigmoid,
}

/// How to rerank. The default is what the model's directory says.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct RerankOptions {
    /// In front of the query; where pairs go through a chat template, its system message. For a Qwen3-Reranker whose files have no
    /// template for pairs, a text here is the instruction, without which it is none.
    pub prompt: Prompt,
    /// `None` = what the model's files say, else the sigmoid.
    pub activation: Option<ScoreActivation>,
    /// Tokens of a pair, special ones included; of longer pairs the longer text is cut first. `None` = the model's own limit.
    pub max_length: Option<usize>,
    /// Most pairs that go through the network together, on each thread; `None` = as many as are fastest. Changes no score.
    pub batch_size: Option<usize>,
    /// Stops when the pairs that are going through the network are done.
    pub cancel: Option<Cancel>,
}

builders!(RerankOptions {
    prompt: Prompt,
    activation: ScoreActivation => Some(activation),
    max_length: usize => Some(max_length),
    batch_size: usize => Some(batch_size),
    cancel: Cancel => Some(cancel),
});

const ACTIVATIONS: &[(&str, ScoreActivation)] = &[("identity", ScoreActivation::Identity), ("sigmoid", ScoreActivation::Sigmoid)];

impl Fields for RerankOptions {
    const NAME: &'static str = "mc_rerank_options";

    fn fields() -> &'static [Field<Self>] {
        const FIELDS: &[Field<RerankOptions>] = &[
            word_field!("activation", ACTIVATIONS, activation or nothing),
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
                name: "prompt",
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

impl RerankOptions {
    /// Sets the fields that a JSON object has, by their names; `null` is a field's default. [`prompt`](Self::prompt) is a `prompt_name`
    /// or, as a text, a `prompt`; [`activation`](Self::activation) is `identity` or `sigmoid`.
    ///
    /// # Errors
    /// As [`GenerateOptions::set_json`](crate::GenerateOptions::set_json).
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

/// What makes scores of what the network gives.
pub(super) struct Reranker {
    scorer: Scorer,
    activation: TorchActivation,
    pairs: PairFormat,
    settings: TemplateSettings,
    /// Rows of the table of token types, where the tokenizer gives types.
    types: Option<usize>,
    /// Whether the files say so: any causal model could be asked for yes or no.
    is_declared: bool,
    /// The layers of a head, in the order of its modules.
    layers: Vec<HeadLayer>,
    /// Those that adapters were merged into.
    changed: BTreeSet<usize>,
}

#[derive(Clone)]
enum Scorer {
    /// `is_late`: the scores of tokens are pooled.
    Head {
        pooling: Pooling,
        is_late: bool,
        modules: Vec<SentenceModule>,
        padding: Option<u32>,
    },
    NextToken {
        tokens: Vec<u32>,
    },
}

/// A head that was read, and the names of its tensors.
#[derive(Default)]
pub(super) struct LoadedHead {
    head: Option<Scorer>,
    layers: Vec<HeadLayer>,
    names: Vec<String>,
    pub(super) bytes: u64,
    pub(super) parameters: u64,
}

impl LoadedHead {
    /// Marks its tensors as read.
    pub(super) fn skip_in(&self, weights: &mut Weights<'_>) {
        self.names.iter().for_each(|name| weights.skip(name));
    }
}

/// Reads the head of a classifier with one label; none of other models. `weights` keep what they read in F32.
///
/// # Errors
/// `ErrorKind::Format` naming a tensor that is missing or has another shape.
pub(super) fn load_head(sentence: &SentenceConfig, raw: &Json, config: &Config, weights: &mut Weights<'_>) -> Result<LoadedHead> {
    let Some(Scored::Head) = sentence.reranker.as_ref().map(|reranker| reranker.scored) else { return Ok(LoadedHead::default()) };
    let Ok(Classifier { pooling, is_late, layers, padding }) = classifier(raw, config) else {
        // Why it makes no score is told when it is asked for some.
        return Ok(LoadedHead { names: vec!["score.weight".to_string()], ..LoadedHead::default() });
    };
    let mut loaded = LoadedHead::default();
    let mut modules = Vec::with_capacity(layers.len());
    let mut width = config.vector_size();
    for layer in layers {
        let (ClassifierLayer::Dense { name, .. } | ClassifierLayer::LayerNorm { name, .. }) = layer;
        let mut prefixed = config.names.prefixes.iter().map(|prefix| format!("{}{name}", prefix.network));
        let is_stored = |name: &String| weights.has(&format!("{name}.weight"));
        let name = prefixed.rfind(is_stored).unwrap_or_else(|| name.to_string());
        let (module, has_bias, inputs) = match layer {
            ClassifierLayer::Dense { outputs, bias, activation, .. } => {
                let inputs = std::mem::replace(&mut width, outputs);
                let module = SentenceModule::head_dense(weights, &name, (inputs, outputs), bias, activation)?;
                (module, bias, Some(inputs))
            }
            ClassifierLayer::LayerNorm { eps, bias, .. } => {
                (SentenceModule::layer_norm(weights, &name, width, eps, bias)?, bias, None)
            }
        };
        modules.push(module);
        loaded.layers.push(HeadLayer { name: name.clone(), outputs: width, inputs, bias: has_bias });
        loaded.names.push(format!("{name}.weight"));
        if has_bias {
            loaded.names.push(format!("{name}.bias"));
        }
    }
    loaded.head = Some(Scorer::Head { pooling, is_late, modules, padding });
    (loaded.bytes, loaded.parameters) = (weights.bytes(), weights.parameters());
    Ok(loaded)
}

impl Reranker {
    /// What a model's files say of scores, or why there are none.
    pub(super) fn new(
        sentence: &SentenceConfig,
        raw: &Json,
        config: &Config,
        (tokenizer, gives_types): (Option<&Tokenizer>, bool),
        head: LoadedHead,
    ) -> std::result::Result<Self, String> {
        let Some(reranker) = &sentence.reranker else {
            let expected = "expected a network ForSequenceClassification with one label, or a causal one whose chat template has a \
                            place for a query and a document";
            let found = raw.get("architectures").map_or_else(|| "none".to_string(), |named| named.value().to_string());
            return Err(format!("architectures: {expected}, found {found}"));
        };
        let said = |error: Error| error.message().to_string();
        let activation = match &reranker.activation {
            None => TorchActivation::Sigmoid,
            Some(class) => TorchActivation::named(class).ok_or_else(|| {
                format!("activation_fn: expected one of torch.nn: {}, found {class:?}", TorchActivation::names())
            })?,
        };
        let by_name = |name: &str| tokenizer.and_then(|tokenizer| tokenizer.token_id(name).ok());
        let tokens = match reranker.scored {
            Scored::Head => Vec::new(),
            Scored::NextToken(yes, no) => std::iter::once(yes).chain(no).collect(),
            Scored::YesOrNo => match (by_name("yes"), by_name("no")) {
                (Some(yes), Some(no)) => vec![yes, no],
                _ => return Err("tokenizer.json: expected the tokens yes and no of a causal reranker".to_string()),
            },
        };
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
            return Err(format!("LogitScore: token id {token} is outside the model's vocabulary of {}", config.vocab_size));
        }
        let scorer = match head.head {
            Some(head) => head,
            None if tokens.is_empty() => {
                return Err(classifier(raw, config).map_or_else(said, |_| "no head was read".to_string()));
            }
            None => Scorer::NextToken { tokens },
        };
        let types = config.token_types.filter(|&rows| gives_types && rows > 1);
        let is_declared = reranker.scored != Scored::YesOrNo;
        let (layers, changed) = (head.layers, BTreeSet::new());
        let settings = reranker.template.clone();
        Ok(Self { scorer, activation, pairs: reranker.pairs, settings, types, is_declared, layers, changed })
    }

    /// What adapters may change of the head, none of a reranker without one.
    pub(super) fn layers(&self) -> &[HeadLayer] {
        &self.layers
    }

    /// The same with what an adapter changes of its head, times `scale`.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub(super) fn merged(&self, changes: &[HeadChange], scale: f32, backend: &Backend) -> Result<Self> {
        let (mut scorer, mut changed) = (self.scorer.clone(), self.changed.clone());
        if let Scorer::Head { modules, .. } = &mut scorer {
            for change in changes {
                let Some(module) = modules.get_mut(change.layer) else { continue };
                let (weight, bias) = module.values()?;
                let (weight, bias) = change.merged(weight, bias, scale)?;
                *module = module.with_values(weight, bias, backend)?;
                changed.insert(change.layer);
            }
        }
        let (settings, layers) = (self.settings.clone(), self.layers.clone());
        let Self { activation, pairs, types, is_declared, .. } = *self;
        Ok(Self { scorer, activation, pairs, settings, types, is_declared, layers, changed })
    }

    /// The tensors of the head that adapters were merged into, by their names, and their values.
    ///
    /// # Errors
    /// A failed device operation.
    pub(super) fn changed_tensors(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let Scorer::Head { modules, .. } = &self.scorer else { return Ok(Vec::new()) };
        let mut tensors = Vec::new();
        for (i, (layer, module)) in self.layers.iter().zip(modules).enumerate() {
            if !self.changed.contains(&i) {
                continue;
            }
            let (weight, bias) = module.values()?;
            tensors.push((format!("{}.weight", layer.name), weight));
            tensors.extend(bias.map(|bias| (format!("{}.bias", layer.name), bias)));
        }
        Ok(tensors)
    }
}

/// How the pairs of a call become tokens.
enum Form<'a> {
    Pair(FirstText),
    Messages {
        query: &'a str,
        prompt: String,
        template: PairTemplate<'a>,
        /// What the template puts behind a document.
        suffix: Vec<u32>,
    },
    Qwen3 {
        query: &'a str,
        instruction: String,
        prefix: Vec<u32>,
        suffix: Vec<u32>,
    },
}

/// A chat template as pairs go through it.
#[derive(Clone, Copy)]
struct PairTemplate<'a> {
    template: &'a ChatTemplate,
    content: MessageContent,
    settings: &'a TemplateSettings,
}

impl PairTemplate<'_> {
    /// A message of the system, if there is a prompt, one with the query and one with the document.
    fn render(&self, prompt: &str, query: &str, document: &str, cancel: Option<&Cancel>) -> Result<String> {
        let message = |(role, text): (&str, &str)| {
            let content = match self.content {
                MessageContent::Text => json!(text),
                MessageContent::Parts => json!([{ "type": "text", "text": text }]),
            };
            json!({ "role": role, "content": content })
        };
        let system = Some(("system", prompt)).filter(|(_, prompt)| !prompt.is_empty());
        let messages = system.into_iter().chain([("query", query), ("document", document)]);
        let mut chat = Chat::from_value(messages.map(message).collect())?;
        for (name, value) in &self.settings.variables {
            chat.set_variable_json(name, Some(&value.to_string()))?;
        }
        let (template, begins_answer) = (Some(self.template), self.settings.add_generation_prompt);
        match cancel {
            Some(cancel) => chat.render_cancellable(template, begins_answer, cancel),
            None => chat.render(template, begins_answer),
        }
    }
}

/// The options of one call, resolved.
struct Plan<'a> {
    reranker: &'a Reranker,
    tokenizer: &'a Tokenizer,
    form: Form<'a>,
    max_length: usize,
    cut: TruncationDirection,
    vocabulary: usize,
    cancel: Option<&'a Cancel>,
}

impl Model {
    /// Whether pairs of texts have scores: [`rerank`](Self::rerank) may still ask for an instruction.
    pub(super) fn is_reranker(&self) -> bool {
        self.reranker()
            .as_ref()
            .is_ok_and(|reranker| reranker.is_declared || self.pair_template(reranker).is_ok_and(|template| template.is_some()))
    }

    /// How well each document answers the query: a score each, in their order.
    ///
    /// # Errors
    /// `Unsupported` for a model that is no reranker, saying why, and for one whose files say of no prompt how a pair is written;
    /// `InvalidArgument` for an option outside its range, naming it, and for a pair without a token; `NotFound` for a model without a
    /// tokenizer; `Cancelled`; `OutOfMemory`; `Suspended`; `Device` for a score that is not finite, as one of weights that are not.
    pub fn rerank(&self, query: &str, documents: &[&str], options: &RerankOptions) -> Result<Vec<f32>> {
        let plan = self.rerank_plan(query, options)?;
        let check = || options.cancel.as_ref().map_or(Ok(()), Cancel::check);
        let no_room = |_| Error::new(ErrorKind::OutOfMemory, format!("{} scores do not fit the memory", documents.len()));
        let mut scores = Vec::new();
        scores.try_reserve_exact(documents.len()).map_err(no_room)?;
        scores.resize(documents.len(), 0f32);

        let (mut tokens, mut types) = (Vec::new(), Vec::new());
        for (n, chunk) in documents.chunks(TOKENIZE_TEXTS).enumerate() {
            check()?;
            let encode = |(i, document): (usize, &&str)| plan.encode(n * TOKENIZE_TEXTS + i, document);
            let encoded = if let [document] = chunk {
                vec![encode((0, document))]
            } else {
                ops::install(|| chunk.par_iter().enumerate().map(encode).collect::<Vec<_>>())
            };
            for pair in encoded {
                let (ids, of) = pair?;
                tokens.push(ids);
                types.push(of);
            }
        }
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tokens[i].len()));
        let batches = self.batches(&order, &tokens, options.batch_size.unwrap_or(usize::MAX));
        let activation = match options.activation {
            None => plan.reranker.activation,
            Some(ScoreActivation::Identity) => TorchActivation::Identity,
            Some(ScoreActivation::Sigmoid) => TorchActivation::Sigmoid,
        };
        for batches in batches.chunks(self.batches_at_once()) {
            let of_batches = self.embed_batches(batches, &tokens, |batch| {
                check()?;
                self.rerank_batch(batch, &tokens, &types, &plan.reranker.scorer)
            });
            for (batch, logits) in batches.iter().zip(of_batches) {
                for (&i, logit) in batch.iter().zip(logits?) {
                    scores[i] = activation.value(logit);
                }
            }
        }
        if let Some(at) = scores.iter().position(|x| !x.is_finite()) {
            let found = scores[at];
            return Err(Error::new(ErrorKind::Device, format!("documents[{at}]: expected a finite score, found {found}")));
        }
        Ok(scores)
    }

    fn rerank_plan<'a>(&'a self, query: &'a str, options: &'a RerankOptions) -> Result<Plan<'a>> {
        let reranker = self.reranker().as_ref().map_err(|why| Error::unsupported(format!("rerank: {why}")))?;
        let tokenizer = self.texts_tokenizer()?;
        let own = self.embedder().max_length;
        if let Some(found) = options.max_length {
            let (least, most) = (tokenizer.special_per_pair() + 1, self.context_length().max(own));
            if !(least..=most).contains(&found) {
                return Err(Error::argument(format!("max_length: expected {least} to {most} tokens, found {found}")));
            }
        }
        if options.batch_size == Some(0) {
            return Err(Error::argument("batch_size: expected at least 1, found 0"));
        }
        let max_length = options.max_length.unwrap_or(own);
        let (prompt, cancel) = (self.prompt(&options.prompt)?, options.cancel.as_ref());
        let form = match self.pair_template(reranker) {
            Ok(Some(template)) => messages(query, prompt, template, tokenizer, cancel)?,
            Ok(None) if reranker.is_declared => Form::Pair(tokenizer.encode_first(&format!("{prompt}{query}"), cancel)?),
            _ if self.architecture() == "qwen3" && !prompt.is_empty() => {
                let ids = |text: &str| tokenizer.encode_cancellable(text, false, cancel);
                let (prefix, suffix) = (ids(QWEN3_PREFIX)?, ids(QWEN3_SUFFIX)?);
                let fixed = prefix.len() + suffix.len();
                if fixed >= max_length {
                    return Err(Error::argument(format!("max_length: expected more than {fixed} tokens, found {max_length}")));
                }
                Form::Qwen3 { query, instruction: prompt, prefix, suffix }
            }
            Ok(None) => return Err(no_template("the model has none", self.architecture())),
            Err(why) => return Err(no_template(&why, self.architecture())),
        };
        let (cut, vocabulary) = (self.embedder().cut, self.vocab_size());
        Ok(Plan { reranker, tokenizer, form, max_length, cut, vocabulary, cancel })
    }

    /// The chat template that pairs go through, and what contents it reads; `None` where they go through none, an error where it has no
    /// place for them.
    fn pair_template<'a>(&'a self, reranker: &'a Reranker) -> std::result::Result<Option<PairTemplate<'a>>, String> {
        let content = match reranker.pairs {
            PairFormat::Texts => return Ok(None),
            PairFormat::Default if self.chat_template().is_err() => return Ok(None),
            PairFormat::Default => None,
            PairFormat::Messages(content) => content,
        };
        let template = self.chat_template().map_err(|error| error.message().to_string())?;
        let content = content.unwrap_or_else(|| {
            // What the reference looks for.
            let of_parts = ["content[0]", ".type", "'type'", "\"type\"", "message.content["];
            let source = template.source().unwrap_or_default();
            if of_parts.iter().any(|part| source.contains(part)) { MessageContent::Parts } else { MessageContent::Text }
        });
        let template = PairTemplate { template, content, settings: &reranker.settings };
        let rendered = |query, document| template.render("", query, document, None).map_err(|error| error.message().to_string());
        let base = rendered("alpha", "bravo")?;
        for (role, varied) in [("query", rendered("charlie", "bravo")?), ("document", rendered("alpha", "foxtrot")?)] {
            if varied == base {
                return Err(format!("it has no place for the {role}"));
            }
        }
        Ok(Some(template))
    }

    /// The logit of each pair of a batch.
    fn rerank_batch(&self, batch: &[usize], tokens: &[Vec<u32>], types: &[Vec<u32>], scorer: &Scorer) -> Result<Vec<f32>> {
        let ids: Vec<u32> = batch.iter().flat_map(|&i| tokens[i].iter().copied()).collect();
        let types: Vec<u32> = batch.iter().flat_map(|&i| types[i].iter().copied()).collect();
        let lengths: Vec<usize> = batch.iter().map(|&i| tokens[i].len()).collect();
        let transformer = self.transformer();
        self.device().compute(|| match scorer {
            Scorer::Head { pooling, is_late, modules, .. } => {
                let (tokens, pooling) = ((&ids[..], &types[..], &lengths[..]), (0, &[*pooling][..]));
                Ok(match is_late {
                    true => transformer.pool_late(tokens, pooling, modules)?,
                    false => transformer.embed_sequences(tokens, None, pooling, modules)?,
                })
            }
            Scorer::NextToken { tokens } => {
                let logits = transformer.next_token_logits(&ids, &lengths, tokens)?;
                Ok(logits.chunks_exact(tokens.len()).map(|row| row[0] - row.get(1).copied().unwrap_or(0.0)).collect())
            }
        })
    }
}

impl Plan<'_> {
    /// The ids and types of the tokens of the query with a document.
    fn encode(&self, i: usize, document: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let (mut ids, mut types) = match &self.form {
            Form::Pair(query) => self.tokenizer.encode_pair(query, document, self.max_length, self.cut, self.cancel)?,
            Form::Messages { query, prompt, template, suffix } => {
                let text = template.render(prompt, query, document, self.cancel)?;
                let mut ids = self.cut(self.tokenizer.encode_cancellable(&text, false, self.cancel)?, self.max_length);
                if ids.len() == self.max_length {
                    let kept = suffix.len().min(ids.len());
                    let end = ids.len() - kept;
                    ids[end..].copy_from_slice(&suffix[suffix.len() - kept..]);
                }
                (ids, Vec::new())
            }
            Form::Qwen3 { query, instruction, prefix, suffix } => {
                let text = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}");
                let most = self.max_length - prefix.len() - suffix.len();
                let ids = self.cut(self.tokenizer.encode_cancellable(&text, false, self.cancel)?, most);
                ([prefix.as_slice(), &ids, suffix].concat(), Vec::new())
            }
        };
        if let Scorer::Head { padding: Some(padding), .. } = self.reranker.scorer {
            let kept = ids.iter().rposition(|&id| id != padding).map_or(1, |last| last + 1);
            ids.truncate(kept);
            types.truncate(kept);
        }
        if ids.is_empty() {
            return Err(Error::argument(format!("documents[{i}]: expected a query and a document with a token, found none")));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            let message = format!("tokenizer.json: token id {id} is outside the model's vocabulary of {}", self.vocabulary);
            return Err(Error::format(message));
        }
        match self.reranker.types {
            None => types.clear(),
            Some(rows) => {
                if let Some(found) = types.iter().find(|&&of| of as usize >= rows) {
                    return Err(Error::format(format!("tokenizer.json: token type {found} is not one of the model's {rows}")));
                }
            }
        }
        Ok((ids, types))
    }

    fn cut(&self, mut ids: Vec<u32>, most: usize) -> Vec<u32> {
        match self.cut {
            TruncationDirection::Right => ids.truncate(most),
            TruncationDirection::Left => drop(ids.drain(..ids.len().saturating_sub(most))),
        }
        ids
    }
}

/// Pairs as the messages of a chat template.
fn messages<'a>(
    query: &'a str,
    prompt: String,
    template: PairTemplate<'a>,
    tokenizer: &Tokenizer,
    cancel: Option<&Cancel>,
) -> Result<Form<'a>> {
    if !template.settings.keeps_suffix {
        return Ok(Form::Messages { query, prompt, template, suffix: Vec::new() });
    }
    // Of two fillers that are written in other tokens, what ends alike is the template's.
    let skeleton = |filler: &str| {
        let text = template.render(&prompt, filler, filler, cancel)?;
        tokenizer.encode_cancellable(&text, false, cancel)
    };
    let (first, second) = (skeleton("0")?, skeleton("1 2 3 4")?);
    let same = first.iter().rev().zip(second.iter().rev()).take_while(|(a, b)| a == b).count();
    let suffix = if same < first.len().min(second.len()) { first[first.len() - same..].to_vec() } else { Vec::new() };
    Ok(Form::Messages { query, prompt, template, suffix })
}

/// Nothing says how the model reads a pair.
fn no_template(why: &str, architecture: &str) -> Error {
    let instruction = match architecture {
        "qwen3" => "; for a Qwen3-Reranker name its instruction as the prompt",
        _ => "",
    };
    Error::unsupported(format!(
        "rerank: chat template: expected one that writes messages of the roles query and document, but {why}{instruction}"
    ))
}
