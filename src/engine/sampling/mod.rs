//! From logits to a token: a chain of small samplers, the order of transformers' logits processors.
//!
//! Repetition penalty, frequency and presence penalty, logit bias, what a schema allows, temperature, top-k, top-p, min-p, then a
//! draw. Nothing allocates for a token once the buffers have grown, and nothing sorts the vocabulary: top-k keeps a small buffer of
//! the best, and top-p sorts only the tokens around its border.
//!
//! ```
//! use metal_candle::{Sampler, Sampling};
//! let sampling = Sampling::default().temperature(0.5).top_k(2);
//! let kept = Sampler::new(sampling, 4)?.distribution(&[1.0, 3.0, 2.0, 0.0], &[], &[])?.to_vec();
//! assert_eq!(kept.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2]);
//! assert!((kept[0].1 - 0.880797).abs() < 1e-6); // e⁶ / (e⁶ + e⁴)
//! # Ok::<(), metal_candle::Error>(())
//! ```

mod penalties;
mod logit_bias;
mod allowed;
mod temperature;
mod top_k;
mod top_p;
mod min_p;

use super::GenerateOptions;
use super::options::{Fields, builders};
use super::random::Random;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::{exp_sum, first_at, highest as highest_number};

/// The natural logarithm of the probability that logits give to a token.
///
/// # Errors
/// `ErrorKind::Device` if a logit is no number.
pub(super) fn token_logprob(logits: &[f32], token: u32) -> Result<f32> {
    Ok(log_probability(logits, best_of(logits)?, token))
}

/// The `count` most probable tokens, the most probable first and of equals the lower id, each with its natural logarithm.
///
/// # Errors
/// As [`token_logprob`], and `ErrorKind::OutOfMemory`.
pub(super) fn top_logprobs(logits: &[f32], count: usize) -> Result<Vec<(u32, f32)>> {
    let normaliser = log_sum_exp(logits, best_of(logits)?);
    let mut tokens: Vec<u32> = Vec::new();
    let no_memory = |_| Error::new(ErrorKind::OutOfMemory, format!("{} token ids do not fit the memory", logits.len()));
    tokens.try_reserve_exact(logits.len()).map_err(no_memory)?;
    tokens.extend(0..logits.len() as u32);
    let by_rank = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, by_rank);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(by_rank);
    Ok(tokens.into_iter().map(|token| (token, (f64::from(logits[token as usize]) - normaliser) as f32)).collect())
}

fn log_probability(logits: &[f32], best: f32, token: u32) -> f32 {
    (f64::from(logits[token as usize]) - log_sum_exp(logits, best)) as f32
}

/// # Errors
/// As [`token_logprob`].
pub(super) fn check_logits(logits: &[f32]) -> Result<()> {
    best_of(logits).map(drop)
}

/// The highest logit, or what is wrong with the row.
fn highest(logits: &[f32]) -> std::result::Result<f32, String> {
    match highest_number(logits) {
        Some(f32::NEG_INFINITY) => Err("expected a number, found minus infinity for every token".to_owned()),
        Some(best) => Ok(best),
        None => {
            // NaN is not below anything.
            let is_number = |logit: f32| logit < f32::INFINITY;
            let wrong = logits.iter().enumerate().find(|(_, logit)| !is_number(**logit));
            Err(wrong.map_or_else(String::new, |(id, logit)| format!("token {id}: expected a number, found {logit}")))
        }
    }
}

/// `ln Σ exp(logits)`; `best` is the highest.
fn log_sum_exp(logits: &[f32], best: f32) -> f64 {
    f64::from(best) + exp_sum(logits, best).ln()
}

/// The highest logit.
fn best_of(logits: &[f32]) -> Result<f32> {
    highest(logits).map_err(|found| Error::new(ErrorKind::Device, format!("logits: {found}")))
}

/// Settings of one generation, every field decided.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// 0 = argmax, the lowest id on ties.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: usize,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// How many of the last tokens (prompt and answer) it looks at; 0 = all.
    pub repetition_last_n: usize,
    /// Taken from a token's logit for each time that it was generated; 0 = off.
    pub frequency_penalty: f32,
    /// Taken from a token's logit once it was generated; 0 = off.
    pub presence_penalty: f32,
    /// `(token, bias)`: added to its logit after the penalties; minus infinity forbids it; several of one token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None` = a seed from the system.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_last_n: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

builders!(Sampling {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    repetition_last_n: usize,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: impl IntoIterator<Item = (u32, f32)> => logit_bias.into_iter().collect(),
    seed: u64 => Some(seed),
});

impl Sampling {
    fn check(&self) -> Result<()> {
        let sampling = SamplingOptions {
            temperature: Some(self.temperature),
            top_k: Some(self.top_k),
            top_p: Some(self.top_p),
            min_p: Some(self.min_p),
            repetition_penalty: Some(self.repetition_penalty),
            repetition_last_n: Some(self.repetition_last_n),
            frequency_penalty: Some(self.frequency_penalty),
            presence_penalty: Some(self.presence_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        GenerateOptions { sampling, ..GenerateOptions::default() }.check_fields()
    }
}

/// What the caller of a generation sets; `None` = the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SamplingOptions {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens it looks at; 0 = all.
    pub repetition_last_n: Option<usize>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    /// Empty = the model's default.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
}

/// What sets the fields of `SamplingOptions`, for them and for what holds them.
macro_rules! sampling_builders {
    ($options:ident, |$this:ident| $place:expr) => {
        $crate::engine::options::builders!($options, |$this| $place, SamplingOptions {
            temperature: f32 => Some(temperature),
            top_k: usize => Some(top_k),
            top_p: f32 => Some(top_p),
            min_p: f32 => Some(min_p),
            repetition_penalty: f32 => Some(repetition_penalty),
            repetition_last_n: usize => Some(repetition_last_n),
            frequency_penalty: f32 => Some(frequency_penalty),
            presence_penalty: f32 => Some(presence_penalty),
            logit_bias: impl IntoIterator<Item = (u32, f32)> => logit_bias.into_iter().collect(),
            seed: u64 => Some(seed),
        });
    };
}
pub(super) use sampling_builders;

sampling_builders!(SamplingOptions, |options| options);

impl SamplingOptions {
    /// The model's defaults with what the caller set on top; biases add up.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` naming the field that is out of range or not a number.
    pub fn resolve(&self, defaults: &Sampling) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            repetition_last_n: self.repetition_last_n.unwrap_or(defaults.repetition_last_n),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            logit_bias: [defaults.logit_bias.as_slice(), &self.logit_bias].concat(),
            seed: self.seed.or(defaults.seed),
        };
        sampling.check()?;
        Ok(sampling)
    }
}

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Its probability over that of the best: `exp((logit - best) / temperature)`.
    weight: f32,
}

/// Drops tokens from the candidates, which are in the order of their ids; the best stays. The last argument is a buffer.
type Cut = fn(&Sampling, &mut Vec<Candidate>, &mut Vec<Candidate>);

/// The samplers behind temperature and top-k, in their order. Top-k is not among them: it works on the row itself, so that these see
/// k tokens instead of the vocabulary.
const SAMPLERS: [(&str, Cut); 2] = [("top_p", top_p::cut), ("min_p", min_p::cut)];

/// Draws tokens; holds the generator and the buffers.
///
/// A draw depends on the logits, the two lists of tokens and the generator's state alone. The kept tokens are walked in the order of
/// their ids, and the exponential is our own, so a seed gives the same tokens for the same logits on every machine.
pub struct Sampler {
    sampling: Sampling,
    vocab_size: usize,
    random: Random,
    /// The logits after penalties, biases and what is allowed; unused if there are none.
    changed: Vec<f32>,
    /// How often each token was seen; zeros between two calls.
    counts: Vec<u32>,
    best_logits: Vec<f32>,
    candidates: Vec<Candidate>,
    border: Vec<Candidate>,
    kept: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for rows of `vocab_size` logits.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if a setting is out of its range or a biased token is not in the vocabulary.
    pub fn new(sampling: Sampling, vocab_size: usize) -> Result<Self> {
        sampling.check()?;
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(Error::argument(format!("vocab_size: expected 1 to {}, found {vocab_size}", u32::MAX)));
        }
        if let Some((id, _)) = sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
            return Err(Error::argument(format!("logit_bias[{id}]: expected a token below {vocab_size}")));
        }
        Ok(Self {
            random: Random::new(sampling.seed),
            sampling,
            vocab_size,
            changed: Vec::new(),
            counts: Vec::new(),
            best_logits: Vec::new(),
            candidates: Vec::new(),
            border: Vec::new(),
            kept: Vec::new(),
        })
    }

    /// The tokens that the chain keeps and their probabilities, in the order of their ids; draws nothing.
    ///
    /// `context`: the prompt, `generated`: the answer so far. At temperature 0 one token is left.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if the row is not as long as the vocabulary, or penalties and biases leave no token or overflow.
    /// `ErrorKind::Device` if the row holds NaN or plus infinity, or nothing but minus infinity: the model computed no distribution.
    pub fn distribution(&mut self, logits: &[f32], context: &[u32], generated: &[u32]) -> Result<&[(u32, f32)]> {
        let best = self.check_row(logits)?;
        self.choose(logits, best, None, context, generated)?;
        let total = total_weight(&self.candidates);
        self.kept.clear();
        self.kept.extend(self.candidates.iter().map(|candidate| (candidate.id, (f64::from(candidate.weight) / total) as f32)));
        Ok(&self.kept)
    }

    /// The token and its log-probability under the model's own distribution (log softmax of `logits`).
    ///
    /// # Errors
    /// As [`distribution`](Self::distribution).
    pub fn sample(&mut self, logits: &[f32], context: &[u32], generated: &[u32]) -> Result<(u32, f32)> {
        self.sample_allowed(logits, None, context, generated)
    }

    /// Whether every token is the most probable one of the logits as they are.
    pub(in crate::engine) fn takes_best(&self) -> bool {
        let sampling = &self.sampling;
        sampling.temperature == 0.0 && !penalties::is_on(sampling) && sampling.logit_bias.is_empty()
    }

    /// The same among the tokens whose bit is set: bit `id % 32` of word `id / 32`; `None` = all. The log-probability is still
    /// that of the whole row.
    ///
    /// # Errors
    /// As [`distribution`](Self::distribution), and `ErrorKind::InvalidArgument` if no allowed token is left.
    pub(in crate::engine) fn sample_allowed(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
        context: &[u32],
        generated: &[u32],
    ) -> Result<(u32, f32)> {
        let best = self.check_row(logits)?;
        self.choose(logits, best, allowed, context, generated)?;
        let id = match self.candidates.as_slice() {
            // The only one: the generator stays where it is.
            [only] => only.id,
            _ => self.draw(),
        };
        Ok((id, log_probability(logits, best, id)))
    }

    /// The highest logit.
    fn check_row(&self, logits: &[f32]) -> Result<f32> {
        if logits.len() != self.vocab_size {
            return Err(Error::argument(format!("logits: expected {} values, found {}", self.vocab_size, logits.len())));
        }
        best_of(logits)
    }

    /// Fills `candidates` with the tokens that the chain keeps, in the order of their ids.
    fn choose(&mut self, logits: &[f32], best: f32, allowed: Option<&[u32]>, context: &[u32], generated: &[u32]) -> Result<()> {
        let Self { sampling, changed, counts, best_logits, candidates, border, .. } = self;
        let mut row = (logits, best);
        if penalties::is_on(sampling) || !sampling.logit_bias.is_empty() || allowed.is_some() {
            changed.clear();
            changed.extend_from_slice(logits);
            penalties::apply(sampling, changed, counts, context, generated);
            logit_bias::apply(sampling, changed);
            let mut subject = "penalties and logit_bias";
            if let Some(allowed) = allowed {
                allowed::apply(allowed, changed);
                subject = "penalties, logit_bias and json_schema";
            }
            let best = highest(changed).map_err(|found| Error::argument(format!("{subject}: {found}")))?;
            row = (changed.as_slice(), best);
        }
        let (logits, best) = row;
        candidates.clear();
        if sampling.temperature == 0.0 {
            let id = first_at(logits, best).unwrap_or(0) as u32;
            candidates.push(Candidate { id, logit: best, weight: 1.0 });
            return Ok(());
        }
        let floor = top_k::floor(sampling, logits, best_logits);
        temperature::weigh(sampling, logits, best, floor, candidates);
        for (_, cut) in SAMPLERS {
            cut(sampling, candidates, border);
        }
        Ok(())
    }

    /// A candidate by its weight.
    fn draw(&mut self) -> u32 {
        let mut left = self.random.uniform() * total_weight(&self.candidates);
        let mut drawn = 0;
        for candidate in self.candidates.iter().filter(|candidate| candidate.weight > 0.0) {
            drawn = candidate.id;
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                break;
            }
        }
        // Rounding may leave something behind the last candidate: it belongs to that one.
        drawn
    }
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}
