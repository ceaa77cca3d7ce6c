//! The one generation loop: sample, decide, show. Push and pull, stateless and session calls all go through [`Answer`].

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use unicode_segmentation::UnicodeSegmentation;

use super::constraint::Constraint;
use super::{Cancel, Lora, Model, ProgressFn, Sampler, SamplingOptions, Session, Tokenizer};
use crate::error::{Error, ErrorKind, Result};

/// How to generate; unset sampling fields take what generation_config.json says.
#[derive(Debug, Clone)]
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
    /// in the schema's order. Between values stands at most one space, or a line break with an indentation. A number without bounds
    /// may have more digits than an `f64` holds.
    ///
    /// The model does not see the schema: a prompt that asks for it gives better answers.
    ///
    /// Schemas that would take too long or too much memory are errors: more than 64 KiB, 4096 levels or 65536 values once each `$ref`
    /// is replaced by what it names, 64 patterns in `patternProperties`, or the limits of the grammar that it becomes.
    pub json_schema: Option<String>,
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

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 0,
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            ignore_eos: false,
            json_schema: None,
            add_special: true,
            prefill_chunk: 0,
            adapters: None,
            cancel: None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
pub struct TokenEvent {
    pub text: String,
    pub token: u32,
    /// 0 for the first token of this answer.
    pub index: u32,
    /// Natural logarithm of the probability that the model itself gave the token.
    pub logprob: f32,
}

/// Called with each token; `Break` stops the generation.
pub type TokenFn<'a> = dyn FnMut(&TokenEvent) -> ControlFlow<()> + 'a;

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// What was shown: the texts of all events joined.
    pub text: String,
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

/// One answer in the making.
pub(super) struct Answer {
    sampler: Sampler,
    constraint: Option<Constraint>,
    stream: Option<TextStream>,
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
    /// `held`: the tokens that it stands behind.
    pub fn new(model: &Model, options: &GenerateOptions, held: &[u32]) -> Result<Self> {
        let sampling = options.sampling.resolve(model.sampling())?;
        let stream = match model.tokenizer() {
            Ok(tokenizer) => Some(TextStream::new(tokenizer.clone(), &options.stop, held)?),
            Err(error) if !options.stop.is_empty() => return Err(error.within("stop")),
            Err(_) => None,
        };
        Ok(Self {
            sampler: Sampler::new(sampling, model.vocab_size())?,
            constraint: options
                .json_schema
                .as_deref()
                .map(|schema| Constraint::new(model, schema, options.cancel.as_ref()))
                .transpose()?,
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

    /// Chooses the next token from the scores behind `held`, all tokens of the session; `room` is how many more fit. Returns
    /// the event, and whether the session goes on behind this token (an end-of-sequence token is not kept).
    pub fn choose(&mut self, model: &Model, logits: &[f32], held: &[u32], room: usize) -> Result<(TokenEvent, bool)> {
        let (prompt, _) = held.split_at(self.prompt_tokens.min(held.len()));
        let allowed = self.constraint.as_mut().map(|constraint| constraint.allowed(self.eos)).transpose()?;
        let (token, logprob) = self.sampler.sample_allowed(logits, allowed, prompt, &self.tokens)?;
        // A schema allows these tokens only where the text may end.
        let ends = model.is_eos(token) && (self.eos || self.constraint.is_some());
        let is_complete = match &mut self.constraint {
            Some(constraint) if !ends => constraint.accept(token)?,
            _ => false,
        };
        let index = self.tokens.len() as u32;
        self.tokens.push(token);
        let mut text = String::new();
        let mut reason = ends.then_some(FinishReason::Eos);
        if let (None, Some(stream)) = (reason, &mut self.stream)
            && stream.push(token, &mut text)?
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
        if let Some(reason) = reason {
            self.finish(reason);
        }
        Ok((TokenEvent { text, token, index, logprob }, !ends))
    }

    /// The answer; one that was not finished was stopped by its caller.
    pub fn into_generation(mut self) -> Generation {
        if self.finish.is_none() {
            self.finish(FinishReason::Callback);
        }
        Generation {
            text: self.text,
            tokens: self.tokens,
            prompt_tokens: self.prompt_tokens,
            finish_reason: self.finish.unwrap_or(FinishReason::Callback),
            prefill_seconds: self.prefill_seconds,
            decode_seconds: self.decode_seconds,
        }
    }
}

/// Tokens of single bytes that are looked back over.
const MOST_BYTES: usize = 256;

/// Tokens to text that may be shown: whole characters and grapheme clusters, and nothing that may become a stop text.
struct TextStream {
    tokenizer: Tokenizer,
    stop: Vec<String>,
    /// Special tokens that are stop texts by themselves; their text is never shown.
    stop_tokens: HashSet<u32>,
    /// The last tokens: those that the text depends on, then those whose text is not yet known.
    tokens: Vec<u32>,
    /// How many of them are in `known`.
    read: usize,
    /// The text of the first `read` tokens.
    known: String,
    /// Decoded, not yet shown.
    held: String,
}

/// Tokens that a character may be waited for. Four bytes are four tokens at most, but where tokens end within characters one
/// unfinished character follows the other; a model that writes no UTF-8 at all must still be shown.
const MOST_WAITING: usize = 16;

impl TextStream {
    /// `held`: the tokens before, whose end the text continues.
    fn new(tokenizer: Tokenizer, stop: &[String], held: &[u32]) -> Result<Self> {
        if stop.iter().any(String::is_empty) {
            return Err(Error::new(ErrorKind::InvalidArgument, "stop: expected at least one byte, found an empty text"));
        }
        let stop_tokens =
            stop.iter().filter_map(|text| tokenizer.token_id(text).ok()).filter(|&id| tokenizer.is_special(id)).collect();
        let mut stream = Self {
            tokenizer,
            stop: stop.to_vec(),
            stop_tokens,
            tokens: Vec::new(),
            read: 0,
            known: String::new(),
            held: String::new(),
        };
        stream.continue_from(held)?;
        Ok(stream)
    }

    /// Puts the end of what stands before into view: a token's text depends on the one before it (a space at a beginning is none),
    /// and bytes of a character may have come before.
    fn continue_from(&mut self, held: &[u32]) -> Result<()> {
        // Behind a special token a text begins.
        let begin = held.iter().rposition(|&token| self.tokenizer.is_special(token)).map_or(0, |at| at + 1);
        let mut from = begin.max(held.len().saturating_sub(MOST_WAITING));
        // Bytes that are tokens are a text or none all together.
        while from > begin && held.len() - from < MOST_BYTES && self.tokenizer.is_byte(held[from]) {
            from -= 1;
        }
        self.tokens = held[from..].to_vec();
        self.read = self.tokens.len();
        self.known = self.tokenizer.decode_known(&self.tokens, true)?;
        // The tokens of a character that is not whole are still to be shown, with what comes.
        for count in 1..=self.tokens.len().min(3) {
            if !self.known.ends_with(char::REPLACEMENT_CHARACTER) {
                break;
            }
            let before = self.tokenizer.decode_known(&self.tokens[..self.tokens.len() - count], true)?;
            if !before.ends_with(char::REPLACEMENT_CHARACTER) {
                (self.read, self.known) = (self.tokens.len() - count, before);
                break;
            }
        }
        Ok(())
    }

    /// Appends what became certain to `shown`; `true` if a stop text appeared.
    fn push(&mut self, token: u32, shown: &mut String) -> Result<bool> {
        if self.stop_tokens.contains(&token) {
            self.flush(shown)?;
            return Ok(true);
        }
        self.tokens.push(token);
        let text = self.tokenizer.decode_known(&self.tokens, true)?;
        // A tokenizer shows an unfinished character as U+FFFD.
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.read < MOST_WAITING {
            return Ok(false);
        }
        self.held.push_str(self.new_part(&text));
        // A token's text depends on the one before it (spaces at a beginning), so the last that has a text stays in view.
        let rest = self.tokenizer.decode_known(&self.tokens[self.read..], true)?;
        if rest.is_empty() {
            self.known = text;
        } else {
            self.tokens.drain(..self.read);
            self.known = rest;
        }
        self.read = self.tokens.len();

        if self.cut_at_stop() {
            shown.push_str(&std::mem::take(&mut self.held));
            return Ok(true);
        }
        let certain = self.held.len() - self.open_stop().max(open_cluster(&self.held));
        shown.extend(self.held.drain(..certain));
        Ok(false)
    }

    /// Shows what was held back; bytes of a character that never became whole are dropped.
    fn flush(&mut self, shown: &mut String) -> Result<()> {
        let text = self.tokenizer.decode_known(&self.tokens, true)?;
        self.held.push_str(self.new_part(&text).trim_end_matches(char::REPLACEMENT_CHARACTER));
        self.tokens.clear();
        (self.read, self.known) = (0, String::new());
        self.cut_at_stop();
        shown.push_str(&std::mem::take(&mut self.held));
        Ok(())
    }

    /// What of the window's text is not in `known`.
    fn new_part<'a>(&self, text: &'a str) -> &'a str {
        text.strip_prefix(self.known.as_str()).unwrap_or_else(|| &text[common_prefix(text, &self.known)..])
    }

    /// Ends the held text before a stop text, if there is one.
    fn cut_at_stop(&mut self) -> bool {
        let at = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        self.held.truncate(at.unwrap_or(self.held.len()));
        at.is_some()
    }

    /// Bytes at the end of the held text that may be the beginning of a stop text.
    fn open_stop(&self) -> usize {
        let begins = |stop: &String| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]));
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// Bytes of the last grapheme cluster, if what follows may still join it: emoji grow by joiners, skin tones
/// and flags, digits become keycaps.
fn open_cluster(text: &str) -> usize {
    let Some(cluster) = text.graphemes(true).next_back() else { return 0 };
    let grows = |c: char| matches!(c, '0'..='9' | '#' | '*' | '\u{200d}' | '\u{fe0f}' | '\u{20e3}' | '\u{2190}'..='\u{2bff}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}' | '\u{e0020}'..='\u{e007f}');
    if cluster.chars().any(grows) { cluster.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_that_may_grow_are_held() {
        assert_eq!(open_cluster("abc"), 0);
        assert_eq!(open_cluster("日本"), 0);
        assert_eq!(open_cluster("a 👩"), "👩".len());
        assert_eq!(open_cluster("👩\u{200d}"), "👩\u{200d}".len());
        assert_eq!(open_cluster("👩 "), 0);
        assert_eq!(open_cluster("🇩"), "🇩".len());
    }

    fn stream(stop: &[&str]) -> TextStream {
        let tokenizer = Tokenizer::load("models/tiny-coder").unwrap();
        TextStream::new(tokenizer, &stop.iter().map(ToString::to_string).collect::<Vec<_>>(), &[]).unwrap()
    }

    /// All pieces of a text, and whether a stop text ended it.
    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool) {
        let mut stream = stream(stop);
        let mut pieces = Vec::new();
        for token in stream.tokenizer.encode(text, false).unwrap() {
            let mut piece = String::new();
            let stopped = stream.push(token, &mut piece).unwrap();
            pieces.push(piece);
            if stopped {
                return (pieces, true);
            }
        }
        let mut rest = String::new();
        stream.flush(&mut rest).unwrap();
        pieces.push(rest);
        (pieces, false)
    }

    #[test]
    fn emoji_cjk_and_joined_sequences_are_never_split() {
        for text in ["👩‍👩‍👧‍👦", "a👍🏽b", "🇩🇪🇫🇷", "你好，世界", "naïve é ü", "👩‍🚀 x 👩‍🚀", "1️⃣2️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿!"]
        {
            let (pieces, _) = pieces(text, &[]);
            assert_eq!(pieces.concat(), text);
            let whole: Vec<&str> = text.graphemes(true).collect();
            let parts: Vec<String> =
                pieces.iter().flat_map(|p| p.graphemes(true).map(str::to_string).collect::<Vec<_>>()).collect();
            assert_eq!(parts, whole, "{text}");
        }
    }

    #[test]
    fn an_answer_in_pieces_is_the_answer_of_one_call() {
        let tokens = ["<s>", "▁the", "▁dog", "x", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁"];
        let vocab: Vec<String> = tokens.iter().enumerate().map(|(id, token)| format!("{token:?}: {id}")).collect();
        let text = format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": 0, "content": "<s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}}], "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}}, {{"type": "ByteFallback"}}, {{"type": "Fuse"}},
                {{"type": "Strip", "content": " ", "start": 1, "stop": 0}}]}},
                "model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}}}"#,
            vocab.join(", ")
        );
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), text).unwrap();
        let tokenizer = Tokenizer::load(directory.path()).unwrap();
        let answer = |held: &[u32], ids: &[u32]| {
            let (mut stream, mut shown) = (TextStream::new(tokenizer.clone(), &[], held).unwrap(), String::new());
            ids.iter().for_each(|id| assert!(!stream.push(*id, &mut shown).unwrap()));
            stream.flush(&mut shown).unwrap();
            shown
        };
        for (held, ids, expected) in [
            (vec![0], vec![1, 2, 3, 1, 2], "the dogx the dog"),
            (vec![0], vec![4, 5, 6], "€"),
            (vec![0, 3], vec![7, 8, 9, 10, 4, 5, 6, 3], "😀€x"),
            // Behind a word, and behind a token at which a text begins.
            (vec![0, 1], vec![2, 1], " dog the"),
            (vec![0, 1, 0], vec![2], "dog"),
            (vec![0, 1, 4, 5], vec![6, 3], "€x"),
            (vec![0], [[4, 5, 6]; 100].concat(), &"€".repeat(100)),
        ] {
            assert_eq!(answer(&held, &ids), expected);
            for size in [1, 2, 3] {
                let (mut held, mut pieces) = (held.clone(), String::new());
                for ids in ids.chunks(size) {
                    pieces.push_str(&answer(&held, ids));
                    held.extend_from_slice(ids);
                }
                assert_eq!(pieces, expected, "{size}");
            }
        }
    }

    #[test]
    fn a_stop_text_over_several_tokens_is_never_shown() {
        let (shown, stopped) = pieces("let x = 1; // END of it", &["// END"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "let x = 1; ");
        let (shown, stopped) = pieces("a // EN", &["// END"]);
        assert!(!stopped);
        assert_eq!(shown.concat(), "a // EN", "what did not become a stop text is shown at the end");
        let (shown, stopped) = pieces("aaab", &["aab"]);
        assert_eq!((shown.concat().as_str(), stopped), ("a", true));
    }

    #[test]
    fn a_special_token_can_be_a_stop_text() {
        let (shown, stopped) = pieces("yes<|im_start|>no", &["<|im_start|>"]);
        assert_eq!((shown.concat().as_str(), stopped), ("yes", true));
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_dropped() {
        let mut stream = stream(&[]);
        let tokens = stream.tokenizer.encode("ab 𝔘", false).unwrap();
        let mut shown = String::new();
        for &token in &tokens[..tokens.len() - 1] {
            stream.push(token, &mut shown).unwrap();
        }
        stream.flush(&mut shown).unwrap();
        assert!(shown.starts_with("ab") && !shown.contains(char::REPLACEMENT_CHARACTER), "{shown:?}");
    }

    #[test]
    fn a_skipped_special_token_does_not_eat_the_space_after_it() {
        let mut stream = stream(&[]);
        let mut shown = String::new();
        for token in stream.tokenizer.encode("one<|im_start|> two", false).unwrap() {
            stream.push(token, &mut shown).unwrap();
        }
        stream.flush(&mut shown).unwrap();
        assert_eq!(shown, "one two");
    }
}
