//! The one generation loop: sample, decide, show. Push and pull, stateless and session calls all go through [`Answer`].

use std::ops::ControlFlow;
use std::time::Instant;

use super::answer_parts::AnswerParts;
use super::chat::{AnswerFormat, AnswerPart, ToolCall};
use super::constraint::Constraint;
use super::evaluated::Needs;
use super::options::{Field, Fields, OptionRange, OptionSlot, OptionValue, SIZE, builders, field};
use super::sampling::{sampling_builders, token_logprob};
use super::session::PREFILL_CHUNK;
use super::text_stream::TextStream;
use super::{Cancel, Lora, Model, ProgressFn, Sampler, SamplingOptions, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::BestToken;

/// How to generate; unset sampling fields take what generation_config.json says.
///
/// ```
/// use metal_candle::GenerateOptions;
/// let options = GenerateOptions::default().max_tokens(64).temperature(0.7).seed(1).stop(["\n\n"]);
/// assert_eq!(options.sampling.temperature, Some(0.7));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// 0 = until the model stops or the context is full.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the answer; they are not part of it. Each at least one byte.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token, for measurements. With a schema: go on as long as it allows.
    pub ignore_eos: bool,
    /// A JSON Schema: the answer is one JSON text that conforms to it, whatever the sampling options, and then ends with
    /// [`FinishReason::Eos`]. Tokens that would break it cannot be chosen; log-probabilities stay the model's own. An answer that
    /// ends for another reason (`max_tokens`, a full context, a stop text, a cancel) is the beginning of such a text.
    ///
    /// The schema is an object or a boolean, of draft 4 to 2020-12. Understood are `type`, `enum`, `const`, `anyOf`, `allOf`, `$ref`
    /// within the schema, `oneOf` where its cases exclude one another; `properties`, `required`, `additionalProperties`,
    /// `patternProperties`, `minProperties`, `maxProperties`; `items`, `prefixItems`, `minItems`, `maxItems`; `pattern`, `format`,
    /// `minLength`, `maxLength`; `minimum`, `maximum` and their exclusive kinds, `multipleOf`. Another keyword of JSON Schema (`not`,
    /// `if`, `contains`, `uniqueItems`, …) is an error; a word that is none is an annotation, as the standard says. Properties come
    /// in the schema's order. Names that the schema leaves free may come twice, so more of `minProperties` than the required ones and
    /// one more are of those in `properties`, or an error. Between values stands at most one space, or a line break with an indentation.
    /// A number without bounds may have more digits than an `f64` holds.
    ///
    /// The model does not see the schema: a prompt that asks for it gives better answers.
    ///
    /// Schemas that would take too long or too much memory are errors: more than 64 KiB, 4096 levels or 65536 values once each `$ref`
    /// is replaced by what it names, 64 patterns in `patternProperties`, or the limits of the grammar that it becomes.
    pub json_schema: Option<String>,
    /// How the answer is told apart into text, thoughts and calls of tools; `None` = as the session's conversation says, and not at
    /// all for an answer to another prompt. The answer's text and tokens are the same either way.
    ///
    /// A call that generates more behind an answer begins anew: what that one was in the middle of is not known to it.
    ///
    /// Behind a prompt that has opened a thought, a schema binds what follows the thought, which then ends with its mark alone.
    pub answer_format: Option<AnswerFormat>,
    /// Whether the answer may call tools, must, or must not: those of the session's conversation, or of the answer format.
    pub tool_choice: ToolChoice,
    /// Tokens that a thought may have: then the model's own mark closes it, and the answer goes on. `None` = as many as the model
    /// likes. Without an answer format, or with one that knows no thoughts, it has no effect.
    pub reasoning_budget: Option<usize>,
    /// Add what the tokenizer puts around a text (BOS) to a stateless prompt. Off for a rendered chat, which has its own.
    pub add_special: bool,
    /// Tokens a prefill step, at most 512; 0 = 512. Changes the speed and how often cancel and progress are looked at, not the result.
    pub prefill_chunk: usize,
    /// Adapters for this answer, each with its scale, in place of the session's own; none of them = the model alone. `None` = the
    /// session's own. What the session computed with other adapters is computed again, for this answer and behind it.
    pub adapters: Option<Vec<(Lora, f32)>>,
    /// Stops within one prefill step or token.
    pub cancel: Option<Cancel>,
}

/// Whether an answer calls tools, in the words of chat APIs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// The model chooses.
    #[default]
    Auto,
    /// It calls none: marks that open calls cannot be chosen where they are tokens, and what is written like a call stays text.
    None,
    /// The answer consists of calls in the model's own format, of any tools of the conversation or of the answer format, and their
    /// arguments conform to the tools' schemas. In a format that numbers its calls, or writes one alone, there is one.
    ///
    /// It binds what follows a thought that the prompt has opened. An answer that ends for another reason than the model's end is
    /// the beginning of such calls. Schemas are read as [`GenerateOptions::json_schema`] reads them, each of at most 64 KiB and all of
    /// them of at most 512 KiB, without what describes them (description, title, default, examples); parameters of which no property is
    /// named and nothing is said of others are none. Where a format writes values as bare text (`qwen3-xml`, `seed`, `glm4`, `gemma4`,
    /// `functiongemma`) or one by one (`lfm2`, `minicpm`, `gemma3`), those of parameters are understood as far as the format can write
    /// them exactly, anything else is an error, and numbers without bounds stay within 2^53.
    Required,
    /// The answer is one such call of this tool.
    Function(String),
}

impl ToolChoice {
    /// `auto`, `none`, `required`, or the name of a tool.
    pub fn named(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "none" => Self::None,
            "required" => Self::Required,
            name => Self::Function(name.to_string()),
        }
    }

    /// The name that [`named`](Self::named) takes.
    fn name(&self) -> &str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Required => "required",
            Self::Function(name) => name,
        }
    }
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 0,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            ignore_eos: false,
            json_schema: None,
            answer_format: None,
            tool_choice: ToolChoice::Auto,
            reasoning_budget: None,
            add_special: true,
            prefill_chunk: 0,
            adapters: None,
            cancel: None,
        }
    }
}

builders!(GenerateOptions {
    max_tokens: usize,
    sampling: SamplingOptions,
    stop: impl IntoIterator<Item = impl Into<String>> => stop.into_iter().map(Into::into).collect(),
    ignore_eos: bool,
    json_schema: impl Into<String> => Some(json_schema.into()),
    answer_format: AnswerFormat => Some(answer_format),
    tool_choice: ToolChoice,
    reasoning_budget: usize => Some(reasoning_budget),
    add_special: bool,
    prefill_chunk: usize,
    adapters: impl IntoIterator<Item = (Lora, f32)> => Some(adapters.into_iter().collect()),
    cancel: Cancel => Some(cancel),
});
sampling_builders!(GenerateOptions, |options| options.sampling);

impl Fields for GenerateOptions {
    const NAME: &'static str = "mc_generate_options";

    fn fields() -> &'static [Field<Self>] {
        // No comparison holds for NaN. What the sampler computes with is F32, as logits are.
        const FIELDS: &[Field<GenerateOptions>] = &[
            field!("max_tokens", OptionRange::Whole(0, SIZE), max_tokens),
            field!("temperature", OptionRange::Single("0 or more", |value| value >= 0.0), sampling.temperature),
            field!("top_k", OptionRange::Whole(0, SIZE), sampling.top_k),
            field!("top_p", OptionRange::Single("above 0, up to 1", |value| value > 0.0 && value <= 1.0), sampling.top_p),
            field!("min_p", OptionRange::Single("0 to 1", |value| (0.0..=1.0).contains(&value)), sampling.min_p),
            field!("repetition_penalty", OptionRange::Single("above 0", |value| value > 0.0), sampling.repetition_penalty),
            field!("repetition_last_n", OptionRange::Whole(0, SIZE), sampling.repetition_last_n),
            field!("frequency_penalty", OptionRange::Single("a number", |_| true), sampling.frequency_penalty),
            field!("presence_penalty", OptionRange::Single("a number", |_| true), sampling.presence_penalty),
            field!("logit_bias", OptionRange::Biases, sampling.logit_bias),
            field!("seed", OptionRange::Whole(0, u64::MAX), sampling.seed),
            field!("stop", OptionRange::Texts, stop),
            Field {
                name: "json_schema",
                range: OptionRange::Schema,
                get: |options| options.json_schema.clone().map_or(OptionValue::Unset, OptionValue::Json),
                set: |options, value| {
                    options.json_schema = match value {
                        OptionValue::Json(schema) => Some(schema),
                        _ => None,
                    };
                    Ok(())
                },
            },
            Field {
                name: "answer_format",
                range: OptionRange::Text,
                get: |options| options.answer_format.as_ref().map(AnswerFormat::name).into(),
                set: |options, value| {
                    options.answer_format = match value {
                        OptionValue::Text(name) => Some(AnswerFormat::named(&name)?),
                        _ => None,
                    };
                    Ok(())
                },
            },
            Field {
                name: "tool_choice",
                range: OptionRange::Text,
                get: |options| Some(options.tool_choice.name()).into(),
                set: |options, value| {
                    if let OptionValue::Text(name) = value {
                        options.tool_choice = ToolChoice::named(&name);
                    }
                    Ok(())
                },
            },
            field!("reasoning_budget", OptionRange::Whole(0, SIZE), reasoning_budget),
            field!("ignore_eos", OptionRange::Bool, ignore_eos),
            field!("add_special", OptionRange::Bool, add_special),
            Field {
                name: "prefill_chunk",
                range: OptionRange::Whole(1, PREFILL_CHUNK as u64),
                // 0 is Rust's word for the default, and out of the range.
                get: |options| if options.prefill_chunk == 0 { OptionValue::Unset } else { options.prefill_chunk.into() },
                set: |options, value| {
                    options.prefill_chunk = usize::of(value).unwrap_or(0);
                    Ok(())
                },
            },
        ];
        FIELDS
    }
}

impl GenerateOptions {
    /// Sets the fields that a JSON object has, by their names; those of [`sampling`](Self::sampling) are among them, and
    /// `repetition_last_n`. `null` is a field's default. `logit_bias` is an object of numbers by ids of tokens, with `false` for minus
    /// infinity; `answer_format` is a name as of [`AnswerFormat::named`], and `tool_choice` as of [`ToolChoice::named`].
    ///
    /// # Errors
    /// `InvalidArgument` for what is no JSON object, is longer than a mebibyte or has a name twice, and for a field that is not known, is
    /// of another type, or is out of its range; fields before the first bad one are set.
    pub fn set_json(&mut self, json: &str) -> Result<()> {
        self.set_fields(Some(json))
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its answer, or nothing may follow by its schema.
    Eos,
    /// A stop text appeared.
    StopText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// No room for another token.
    ContextFull,
    /// The callback said so.
    Callback,
    /// The cancel flag was triggered.
    Cancelled,
}

/// One token: its id, and the text that became certain with it (whole characters; may be empty).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenEvent {
    pub text: String,
    pub token: u32,
    /// 0 for the first token of this answer.
    pub index: u32,
    /// Natural logarithm of the probability that the model itself gave the token.
    pub logprob: f32,
    /// The parts that became certain with it; of an answer that is not told apart, its text.
    pub parts: Vec<AnswerPart>,
}

/// Called with each token; `Break` stops the generation.
pub type TokenFn<'a> = dyn FnMut(&TokenEvent) -> ControlFlow<()> + 'a;

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// What was shown: the texts of all events joined.
    pub text: String,
    /// The text without thoughts and calls, where parts are told apart; else all of it.
    pub content: String,
    /// The model's thoughts, without the marks around them.
    pub reasoning: String,
    /// The calls of tools, in their order; only the last may be incomplete.
    pub tool_calls: Vec<ToolCall>,
    /// With the end-of-sequence token where that ended the answer.
    pub tokens: Vec<u32>,
    /// Tokens that the answer stands behind.
    pub prompt_tokens: usize,
    pub finish_reason: FinishReason,
    /// Evaluating the prompt, since the answer before this one.
    pub prefill_seconds: f64,
    /// From the first token to the end.
    pub decode_seconds: f64,
}

impl Generation {
    /// An answer to a prompt that was not read to its end.
    fn cancelled() -> Self {
        Self {
            text: String::new(),
            content: String::new(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            tokens: Vec::new(),
            prompt_tokens: 0,
            finish_reason: FinishReason::Cancelled,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
        }
    }
}

impl Model {
    /// Answers a prompt in a session of its own. A cancel gives `Ok` with [`FinishReason::Cancelled`].
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range or an empty prompt, `ContextFull` for a prompt longer than the context,
    /// `Mismatch` for an adapter of another model, `Unsupported` for a schema where the tokenizer's tokens are not known as bytes.
    pub fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        prefill_progress: Option<&mut ProgressFn<'_>>,
        on_token: &mut TokenFn<'_>,
    ) -> Result<Generation> {
        let mut session = Session::new(self, 0)?;
        let tokens = match self.tokenizer()?.encode_cancellable(prompt, options.add_special, options.cancel.as_ref()) {
            Err(error) if error.kind() == ErrorKind::Cancelled => return Ok(Generation::cancelled()),
            tokens => tokens?,
        };
        session.push(&tokens)?;
        session.generate(options, prefill_progress, on_token)
    }
}

/// What is known behind the last token.
#[derive(Debug, Clone, Copy)]
pub(super) enum KnownLogits<'a> {
    All(&'a [f32]),
    Best(BestToken),
}

/// # Errors
/// `Device` if there is no distribution, as [`Sampler::sample`] has it for logits.
fn checked(best: BestToken) -> Result<(u32, f32)> {
    let BestToken { id, logprob } = best;
    if !logprob.is_finite() {
        let message = "logits: expected numbers, found NaN, infinity, or minus infinity for every token";
        return Err(Error::new(ErrorKind::Device, message));
    }
    Ok((id, logprob))
}

/// One answer in the making.
pub(super) struct Answer {
    sampler: Sampler,
    constraint: Option<Constraint>,
    stream: Option<TextStream>,
    parts: Option<AnswerParts>,
    /// Whether the schema does not bind yet: the prompt has opened a thought.
    waits: bool,
    eos: bool,
    max_tokens: usize,
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    finish: Option<FinishReason>,
    prefill_seconds: f64,
    /// Since the first token was asked for.
    started: Option<Instant>,
    decode_seconds: f64,
}

impl Answer {
    /// # Errors
    /// `InvalidArgument` naming the option that is out of range, `Unsupported` for a schema or tokenizer that is not implemented.
    ///
    /// `held`: the tokens that it stands behind; `format`: of the conversation that they are.
    pub fn new(model: &Model, options: &GenerateOptions, held: &[u32], format: Option<&AnswerFormat>) -> Result<Self> {
        let mut sampling = options.sampling.resolve(model.sampling())?;
        let stream = match model.tokenizer() {
            Ok(tokenizer) => Some(TextStream::behind(tokenizer, &options.stop, held)?),
            Err(error) if !options.stop.is_empty() => return Err(error.within("stop")),
            Err(_) => None,
        };
        let format = match (&options.answer_format, format) {
            (Some(named), Some(format)) => Some(named.clone().with_tools_of(format)),
            (named, format) => named.as_ref().or(format).cloned(),
        };
        let marks = format.as_ref().map(AnswerFormat::opens).unwrap_or_default();
        let format = match options.tool_choice {
            ToolChoice::None => format.map(AnswerFormat::without_calls),
            _ => format,
        };
        let shown = format.as_ref().filter(|format| !format.is_plain());
        let parts =
            shown.map(|format| AnswerParts::new(model, format, options.reasoning_budget, &options.stop, held)).transpose()?;
        let is_thinking = parts.as_ref().is_some_and(AnswerParts::is_thinking);
        let name = match &options.tool_choice {
            ToolChoice::Auto => None,
            ToolChoice::None => {
                // A call cannot be opened by a mark that is one token; one that is written otherwise stays text.
                let tokenizer = model.tokenizer().ok();
                let ids = marks.iter().filter_map(|mark| tokenizer?.token_id(mark).ok());
                sampling
                    .logit_bias
                    .extend(ids.filter(|&id| (id as usize) < model.vocab_size()).map(|id| (id, f32::NEG_INFINITY)));
                None
            }
            ToolChoice::Required => Some(None),
            ToolChoice::Function(name) => Some(Some(name.as_str())),
        };
        let constraint = match (&options.json_schema, name) {
            (Some(_), Some(_)) => {
                return Err(Error::argument(
                    "tool_choice: expected auto or none beside a json_schema, found a call that has to be",
                ));
            }
            (Some(schema), None) => Some(Constraint::new(model, schema, options.cancel.as_ref())?),
            (None, Some(name)) => {
                let format = format.unwrap_or_default();
                let pieces = format.call_pieces(name, model.tokenizer()?, is_thinking)?;
                Some(Constraint::of_pieces(model, pieces, |token| format.reads_token(token), options.cancel.as_ref())?)
            }
            (None, None) => None,
        };
        Ok(Self {
            waits: constraint.is_some() && is_thinking,
            parts,
            sampler: Sampler::new(sampling, model.vocab_size())?,
            constraint,
            stream,
            eos: !options.ignore_eos,
            max_tokens: if options.max_tokens == 0 { usize::MAX } else { options.max_tokens },
            prompt_tokens: held.len(),
            tokens: Vec::new(),
            text: String::new(),
            finish: None,
            prefill_seconds: 0.0,
            started: None,
            decode_seconds: 0.0,
        })
    }

    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    pub fn finish(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
        self.decode_seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    }

    /// Time spent on the prompt; decoding starts now.
    pub fn start(&mut self, prefill_seconds: f64) {
        self.prefill_seconds = prefill_seconds;
        self.started = Some(Instant::now());
    }

    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// What [`choose`](Self::choose) has to be told.
    pub fn needs(&self) -> Needs {
        let is_free = self.constraint.is_none() && !self.parts.as_ref().is_some_and(AnswerParts::may_force);
        if is_free && self.sampler.takes_best() { Needs::Best } else { Needs::Logits }
    }

    /// Chooses the next token from what is known behind `held`, all tokens of the session; `room` is how many more fit. Returns
    /// the event, and whether the session goes on behind this token (an end-of-sequence token is not kept).
    pub fn choose(&mut self, model: &Model, known: KnownLogits<'_>, held: &[u32], room: usize) -> Result<(TokenEvent, bool)> {
        let binds = !self.waits;
        let (token, logprob) = match known {
            KnownLogits::Best(best) => checked(best)?,
            KnownLogits::All(logits) => self.sample(model, logits, held)?,
        };
        // A schema allows these tokens only where the text may end.
        let ends = model.is_eos(token) && (self.eos || self.constraint.is_some());
        let is_complete = match &mut self.constraint {
            Some(constraint) if !ends && binds => constraint.accept(token)?,
            _ => false,
        };
        let index = self.tokens.len() as u32;
        self.tokens.push(token);
        let mut text = String::new();
        let mut reason = ends.then_some(FinishReason::Eos);
        if let (None, Some(stream)) = (reason, &mut self.stream)
            && stream.add(token, &mut text)?
        {
            reason = Some(FinishReason::StopText);
        }
        if reason.is_none() && is_complete {
            reason = Some(FinishReason::Eos);
        } else if reason.is_none() && self.tokens.len() >= self.max_tokens {
            reason = Some(FinishReason::MaxTokens);
        } else if reason.is_none() && room <= 1 {
            reason = Some(FinishReason::ContextFull);
        }
        if let (Some(FinishReason::Eos | FinishReason::MaxTokens | FinishReason::ContextFull), Some(stream)) =
            (reason, &mut self.stream)
        {
            stream.flush(&mut text)?;
        }
        self.text.push_str(&text);
        let mut told = Vec::new();
        if self.parts.is_none() && !text.is_empty() {
            told.push(AnswerPart::Text(text.clone()));
        }
        if let Some(parts) = &mut self.parts {
            if !ends {
                told = parts.add(token)?;
            }
            self.waits &= parts.is_thinking();
            if reason.is_some() {
                told.extend(parts.finish(reason != Some(FinishReason::StopText))?);
            }
        }
        if let Some(reason) = reason {
            self.finish(reason);
        }
        Ok((TokenEvent { text, token, index, logprob, parts: told }, !ends))
    }

    /// The next token from the logits behind `held`, and its log-probability.
    fn sample(&mut self, model: &Model, logits: &[f32], held: &[u32]) -> Result<(u32, f32)> {
        let (prompt, _) = held.split_at(self.prompt_tokens.min(held.len()));
        let binds = !self.waits;
        let constraint = self.constraint.as_mut().filter(|_| binds);
        let allowed = constraint.map(|constraint| constraint.allowed(self.eos)).transpose()?;
        let forced = self.parts.as_mut().map(AnswerParts::forced).transpose()?.flatten();
        let (mut token, mut logprob) = match forced {
            Some(token) => (token, token_logprob(logits, token)?),
            None if self.waits => self.sample_thought(logits, prompt)?,
            None => self.sampler.sample_allowed(logits, allowed, prompt, &self.tokens)?,
        };
        // The answer is what the schema is for: a thought does not end it.
        if self.waits
            && model.is_eos(token)
            && let Some(close) = self.parts.as_mut().map(AnswerParts::close_thought).transpose()?.flatten()
        {
            (token, logprob) = (close, token_logprob(logits, close)?);
        }
        Ok((token, logprob))
    }

    /// A token of a thought, and none that closes it and goes on: the schema would not see what stands behind the mark.
    fn sample_thought(&mut self, logits: &[f32], prompt: &[u32]) -> Result<(u32, f32)> {
        let mut allowed: Option<Vec<u32>> = None;
        loop {
            let (token, logprob) = self.sampler.sample_allowed(logits, allowed.as_deref(), prompt, &self.tokens)?;
            let overruns = self.parts.as_ref().map(|parts| parts.overruns(token)).transpose()?;
            if overruns != Some(true) {
                return Ok((token, logprob));
            }
            let allowed = allowed.get_or_insert_with(|| vec![u32::MAX; logits.len().div_ceil(32)]);
            allowed[token as usize / 32] &= !(1 << (token % 32));
        }
    }

    /// The answer; one that was not finished was stopped by its caller.
    pub fn into_generation(mut self) -> Generation {
        if self.finish.is_none() {
            self.finish(FinishReason::Callback);
        }
        let (content, reasoning, tool_calls) = match self.parts {
            Some(mut parts) => {
                // What no token told: of an answer that its caller stopped. Without text to add it cannot fail.
                let _ = parts.finish(false);
                parts.into_parts()
            }
            None => (self.text.clone(), String::new(), Vec::new()),
        };
        Generation {
            text: self.text,
            content,
            reasoning,
            tool_calls,
            tokens: self.tokens,
            prompt_tokens: self.prompt_tokens,
            finish_reason: self.finish.unwrap_or(FinishReason::Callback),
            prefill_seconds: self.prefill_seconds,
            decode_seconds: self.decode_seconds,
        }
    }
}
