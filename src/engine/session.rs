//! A conversation: what it has evaluated, and the answer in the making.
//!
//! ```
//! use metal_candle::{LoadOptions, Model, Session};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//! let mut session = Session::new(&model, 0)?;
//! session.append("fn main() {", None)?;
//! assert_eq!(session.logits()?.len(), model.vocab_size());
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::path::Path;
use std::time::Instant;

use super::evaluated::{Evaluated, Needs, PassPart, pass};
use super::generate::{Answer, KnownLogits};
use super::lora::Attached;
use super::model::tell;
use super::sampling::{check_logits, top_logprobs};
use super::session_file::{self, SessionParts};
use super::{
    AnswerFormat, Cancel, Capability, Chat, FinishReason, GenerateOptions, Generation, Lora, Model, Progress, ProgressFn, Stage,
    TokenEvent, TokenFn, ToolChoice,
};
use crate::error::{Error, ErrorKind, Result};

/// The most tokens of one prefill step: more is no faster, and Metal's buffers stay small.
pub(super) const PREFILL_CHUNK: usize = 512;
/// The most sessions that go on in one pass: each has a row of logits of its own.
const SESSIONS_AT_ONCE: usize = 64;

/// What was evaluated, and the answer in the making. Not shared between threads; forks are.
pub struct Session {
    evaluated: Evaluated,
    max_context: usize,
    adapters: Attached,
    /// Those of the answer in the making, where it has its own.
    answer_adapters: Option<Attached>,
    /// Spent on prompts since the last answer began.
    prefill_seconds: f64,
    answer: Option<Pull>,
    /// Of the conversation that it was set to, while nothing else was appended.
    answer_format: Option<AnswerFormat>,
    /// How many tokens it was to hold, where a call that evaluates them was stopped before: there is no answer to half a prompt.
    interrupted: Option<usize>,
}

/// An answer that its caller pulls, or may go on to pull where a call that pushed it failed.
struct Pull {
    answer: Answer,
    options: GenerateOptions,
    /// Whether it must be ended before the session does anything else.
    begun: bool,
}

impl Session {
    /// `max_context`: tokens; 0 = the model's.
    ///
    /// # Errors
    /// `InvalidArgument` if `max_context` passes what the model was loaded for.
    pub fn new(model: &Model, max_context: usize) -> Result<Self> {
        if !model.supports(Capability::Generate) {
            let found = model.architecture();
            return Err(Error::unsupported(format!(
                "session: expected a model that generates text, found one of {found} that only embeds"
            )));
        }
        let most = model.context_length();
        if max_context > most {
            return Err(Error::argument(format!("max_context: expected at most {most}, found {max_context}")));
        }
        Ok(Self::of(Evaluated::new(model), if max_context == 0 { most } else { max_context }))
    }

    fn of(evaluated: Evaluated, max_context: usize) -> Self {
        let adapters = Attached::default();
        Self {
            evaluated,
            max_context,
            adapters,
            answer_adapters: None,
            prefill_seconds: 0.0,
            answer: None,
            answer_format: None,
            interrupted: None,
        }
    }

    /// The bytes that it takes now: the keys and values or other states of every layer, with those that it can go back to and room
    /// for more, its tokens and logits. What it shares with the model and its adapters, and an answer in the making, do not count.
    pub fn memory_bytes(&self) -> u64 {
        self.evaluated.held_bytes()
    }

    /// A second session that holds the same and goes its own way. An answer in the making stays with this one.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`, `Suspended`.
    pub fn fork(&self) -> Result<Self> {
        let fork = Self::of(self.evaluated.fork()?, self.max_context);
        let answer_format = self.answer_format.clone();
        Ok(Self { adapters: self.adapters.clone(), answer_format, interrupted: self.interrupted, ..fork })
    }

    /// Appends a text. At the beginning of a session with what the tokenizer puts around a text (BOS).
    ///
    /// # Errors
    /// `ContextFull` if it does not fit: then nothing was appended. `Cancelled` and `Suspended`: the session holds what was finished.
    /// `OutOfMemory` and `Device`: the session holds what it held before; what it had computed is not trusted and computed again.
    pub fn append(&mut self, text: &str, cancel: Option<&Cancel>) -> Result<()> {
        let tokens = self.model().tokenizer()?.encode_cancellable(text, self.tokens().is_empty(), cancel)?;
        self.append_tokens(&tokens, cancel)
    }

    /// Appends token ids, as they are.
    ///
    /// # Errors
    /// As [`append`](Self::append), and `InvalidArgument` naming an id outside the vocabulary.
    pub fn append_tokens(&mut self, tokens: &[u32], cancel: Option<&Cancel>) -> Result<()> {
        self.refuse_while_answering()?;
        self.check(tokens, self.position())?;
        let (held, answer, adapters) = (self.position(), self.answer.take(), self.answer_adapters.take());
        let format = self.answer_format.take();
        let result = self.extend(tokens, cancel);
        if result.is_err() && self.position() == held {
            // As if it had not been called.
            (self.answer, self.answer_adapters, self.answer_format) = (answer, adapters, format);
        }
        result
    }

    /// Makes the session hold exactly this text: the longest common prefix of what it holds is kept, the rest evaluated.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn set_prompt(&mut self, text: &str, cancel: Option<&Cancel>) -> Result<()> {
        let tokens = self.model().tokenizer()?.encode_cancellable(text, true, cancel)?;
        self.set_tokens(&tokens, cancel)
    }

    /// The same for a conversation, rendered by the chat template with its generation prompt, or with its last message left open. Where
    /// a user spoke last, a turn begins: states that cannot be [cut back](Self::truncate) are kept there until the turn after the next,
    /// so that a template which drops the thoughts of a turn has nothing in front of it evaluated again, whatever tools it called.
    ///
    /// # Errors
    /// As [`append`](Self::append), [`Chat::encode`], and `NotFound` without a template. Stopped on its way, the session holds the
    /// beginning of the prompt, and knows it: to ask for an answer is then `InvalidArgument`, until the prompt is set again, the rest
    /// appended, or [`truncate`](Self::truncate) says that what is held is meant.
    pub fn set_chat(&mut self, chat: &Chat, cancel: Option<&Cancel>) -> Result<()> {
        let tokens = chat.encode(self.model(), !chat.continues(), cancel)?;
        let format = AnswerFormat::of_chat(chat, Some(self.model().template_files()), self.model().tokenizer()?)?;
        self.set_tokens(&tokens, cancel)?;
        if chat.begins_turn() {
            self.evaluated.begin_turn();
        }
        self.answer_format = Some(format);
        Ok(())
    }

    fn set_tokens(&mut self, tokens: &[u32], cancel: Option<&Cancel>) -> Result<()> {
        self.check(tokens, 0)?;
        self.leave_answer()?;
        self.answer_format = None;
        let common = self.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.evaluated.keep(common);
        self.interrupted = Some(tokens.len());
        self.extend(&tokens[common..], cancel)
    }

    /// Holds tokens without evaluating them yet.
    pub(super) fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.check(tokens, self.position())?;
        self.evaluated.push(tokens);
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32], cancel: Option<&Cancel>) -> Result<()> {
        let mut watch =
            PrefillWatch { cancel, progress: &mut None, seconds: &mut self.prefill_seconds, started: None, is_chosen: false };
        let held = self.evaluated.tokens().len();
        let result = self.evaluated.extend(tokens, &self.adapters, PREFILL_CHUNK, &mut |done, total| watch.piece(done, total));
        let position = self.position();
        if result.is_err() && position > held {
            self.interrupted = self.interrupted.max(Some(held + tokens.len()));
        }
        // A part of what is missing does not make it whole.
        self.interrupted = self.interrupted.filter(|&whole| position < whole);
        result
    }

    /// Ids that the model knows, and room for them behind `held` tokens.
    fn check(&self, tokens: &[u32], held: usize) -> Result<()> {
        let vocab = self.model().vocab_size();
        if let Some((at, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(Error::argument(format!("tokens[{at}]: expected an id below {vocab}, found {id}")));
        }
        if tokens.len() > self.max_context - held {
            return Err(Error::new(
                ErrorKind::ContextFull,
                format!("context: {held} tokens are held and {} more do not fit into {}", tokens.len(), self.max_context),
            ));
        }
        Ok(())
    }

    /// Evaluates with these adapters from now on, each times its scale; their changes add up. None = the model alone, bit for bit as
    /// if there had never been any. An adapter times 0 is none.
    ///
    /// The session keeps its tokens. What it computed with other adapters is computed again when it is next needed; setting the same
    /// adapters again costs nothing.
    ///
    /// # Errors
    /// `Mismatch` for an adapter of another model; `InvalidArgument` for a scale that is no number, for two adapters that replace
    /// the same matrix, and while an answer is in the making. Nothing is changed then.
    pub fn set_adapters(&mut self, adapters: &[(Lora, f32)]) -> Result<()> {
        let adapters = Attached::new(self.model(), adapters)?;
        self.leave_answer()?;
        self.adapters = adapters;
        Ok(())
    }

    /// Evaluates what is held, until what is needed behind the last token is known.
    fn evaluate(
        &mut self,
        needs: Needs,
        chunk: usize,
        cancel: Option<&Cancel>,
        progress: &mut Option<&mut ProgressFn<'_>>,
    ) -> Result<()> {
        let adapters = self.answer_adapters.as_ref().unwrap_or(&self.adapters);
        let is_chosen = self.evaluated.is_chosen();
        let mut watch = PrefillWatch { cancel, progress, seconds: &mut self.prefill_seconds, started: None, is_chosen };
        self.evaluated.evaluate(adapters, needs, chunk, &mut |done, total| watch.piece(done, total))
    }

    /// Answers what the session holds. A cancel gives `Ok` with [`FinishReason::Cancelled`] and the partial text.
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range, an empty session, or half a prompt, whose evaluation was stopped; `OutOfMemory`,
    /// `Device`, `Suspended`. An answer that failed on its way is still there: [`next`](Self::next) goes on behind its last token,
    /// [`end`](Self::end) gives what there is, any other call that changes the session gives it up. The session holds its tokens all the
    /// same.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        mut prefill_progress: Option<&mut ProgressFn<'_>>,
        on_token: &mut TokenFn<'_>,
    ) -> Result<Generation> {
        self.leave_answer()?;
        let mut answer = self.begin_answer(options)?;
        loop {
            match self.advance(&mut answer, options, &mut prefill_progress) {
                Ok(Some(event)) => {
                    if on_token(&event).is_break() {
                        answer.finish(FinishReason::Callback);
                    }
                }
                Ok(None) => {
                    self.answer_adapters = None;
                    return Ok(answer.into_generation());
                }
                Err(error) => {
                    self.answer = Some(Pull { answer, options: options.clone(), begun: false });
                    return Err(error);
                }
            }
        }
    }

    /// Begins an answer whose tokens the caller pulls by [`next`](Self::next).
    ///
    /// # Errors
    /// `InvalidArgument` for an option out of range, an empty session, or while another answer is in the making.
    pub fn begin(&mut self, options: &GenerateOptions) -> Result<()> {
        self.leave_answer()?;
        let answer = self.begin_answer(options)?;
        self.answer = Some(Pull { answer, options: options.clone(), begun: true });
        Ok(())
    }

    /// The next token; `None` when the answer is complete. After an error the answer is where it was: another call goes on with it, and
    /// [`end`](Self::end) gives what there is.
    ///
    /// # Errors
    /// `Cancelled` when the flag is triggered; `InvalidArgument` without an answer that was begun; `OutOfMemory`, `Device`, `Suspended`.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<TokenEvent>> {
        let Some(mut pull) = self.answer.take() else {
            return Err(Error::argument("next: no answer was begun"));
        };
        let result = self.advance(&mut pull.answer, &pull.options, &mut None);
        let reason = pull.answer.finish_reason();
        self.answer = Some(pull);
        if reason.is_some() {
            self.answer_adapters = None;
        }
        match (result, reason) {
            (Ok(None), Some(FinishReason::Cancelled)) => Err(Error::cancelled()),
            (result, _) => result,
        }
    }

    /// Answers what the session holds, as an iterator of its tokens; nothing is computed before the first is asked for.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn stream(&mut self, options: &GenerateOptions) -> Result<AnswerStream<'_>> {
        self.begin(options)?;
        Ok(AnswerStream { session: self, has_failed: false })
    }

    /// The next token of several answers, of different sessions of one model: as [`next`](Self::next) of each, but the weights are read
    /// once for all that wait for one token alone. On the CPU each answer has the bits that it has alone, whatever the options and
    /// adapters of the others.
    ///
    /// # Errors
    /// `Mismatch` for sessions of different models; `OutOfMemory`, `Device`, `Suspended`: every answer is then where it was. What is
    /// wrong with one answer stands in its place.
    pub fn next_of(sessions: &mut [&mut Self]) -> Result<Vec<Result<Option<TokenEvent>>>> {
        if let [first, rest @ ..] = &*sessions
            && let Some(other) = rest.iter().position(|other| !other.model().is_same(first.model()))
        {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("sessions[{}]: expected a session of the same model as sessions[0], found one of another", other + 1),
            ));
        }
        let waiting: Vec<bool> = sessions.iter_mut().map(|session| session.waits_for_one_token()).collect();
        let mut waiting: Vec<&mut &mut Self> =
            sessions.iter_mut().zip(waiting).filter_map(|(session, waits)| waits.then_some(session)).collect();
        for sessions in waiting.chunks_mut(SESSIONS_AT_ONCE) {
            pass(&mut sessions.iter_mut().map(|session| session.next_part()).collect::<Vec<_>>())?;
        }
        Ok(sessions.iter_mut().map(|session| session.next()).collect())
    }

    /// Whether an answer goes on with evaluating the token that it chose last, and nothing else.
    fn waits_for_one_token(&mut self) -> bool {
        let goes_on = |pull: &Pull| {
            let is_cancelled = pull.options.cancel.as_ref().is_some_and(Cancel::is_triggered);
            pull.answer.finish_reason().is_none() && !is_cancelled
        };
        let Some(pull) = self.answer.as_ref().filter(|pull| goes_on(pull)) else { return false };
        self.evaluated.prepare(self.answer_adapters.as_ref().unwrap_or(&self.adapters), pull.answer.needs()) == 1
    }

    fn next_part(&mut self) -> PassPart<'_> {
        let adapters = self.answer_adapters.as_ref().unwrap_or(&self.adapters);
        let needs = self.answer.as_ref().map_or(Needs::Logits, |pull| pull.answer.needs());
        PassPart { evaluated: &mut self.evaluated, adapters, needs, piece: 1 }
    }

    /// The natural logarithm of the probability that the model itself gives each of `tokens`: the first behind what the session holds,
    /// each other one behind those in front of it. All are evaluated in one pass; the session holds afterwards what it held.
    ///
    /// # Errors
    /// `InvalidArgument` on an empty session, while an answer is begun, and naming an id outside the vocabulary; `ContextFull`;
    /// `Cancelled`; `OutOfMemory`; `Device`; `Suspended`.
    pub fn score_tokens(&mut self, tokens: &[u32], cancel: Option<&Cancel>) -> Result<Vec<f32>> {
        self.refuse_while_answering()?;
        if self.tokens().is_empty() {
            return Err(Error::argument("session: expected at least one token to score behind, found none"));
        }
        self.check(tokens, self.position())?;
        self.evaluated.score(tokens, &self.adapters, PREFILL_CHUNK, &mut |done, total| {
            if done < total { cancel.map_or(Ok(()), Cancel::check) } else { Ok(()) }
        })
    }

    /// The answer so far; one that was not complete has [`FinishReason::Callback`].
    ///
    /// # Errors
    /// `InvalidArgument` without a [`begin`](Self::begin).
    pub fn end(&mut self) -> Result<Generation> {
        let pull = self.answer.take().ok_or_else(|| Error::argument("end: no answer was begun"))?;
        self.answer_adapters = None;
        Ok(pull.answer.into_generation())
    }

    fn begin_answer(&mut self, options: &GenerateOptions) -> Result<Answer> {
        if let Some(whole) = self.interrupted {
            let held = self.position();
            return Err(Error::argument(format!(
                "session: expected a whole prompt, found {held} of its {whole} tokens, since reading it was stopped: set it again, \
                 append the rest, or truncate"
            )));
        }
        if self.tokens().is_empty() {
            return Err(Error::argument("session: expected at least one token to answer to, found none"));
        }
        let adapters = options.adapters.as_ref().map(|adapters| Attached::new(self.model(), adapters)).transpose()?;
        let answer = match Answer::new(self.model(), options, self.tokens(), self.answer_format.as_ref()) {
            // While a schema became a grammar.
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                let options = GenerateOptions { json_schema: None, tool_choice: ToolChoice::Auto, ..options.clone() };
                let mut answer = Answer::new(self.model(), &options, self.tokens(), self.answer_format.as_ref())?;
                answer.finish(FinishReason::Cancelled);
                answer
            }
            answer => answer?,
        };
        self.answer_adapters = adapters;
        Ok(answer)
    }

    /// An answer that is complete needs no `end`; one that is not must not lose its ground.
    fn leave_answer(&mut self) -> Result<()> {
        self.refuse_while_answering()?;
        self.answer = None;
        self.answer_adapters = None;
        Ok(())
    }

    fn refuse_while_answering(&self) -> Result<()> {
        if self.is_answering() {
            return Err(Error::argument("session: an answer was begun, end it first"));
        }
        Ok(())
    }

    /// Whether an answer was begun and is not complete.
    fn is_answering(&self) -> bool {
        self.answer.as_ref().is_some_and(|pull| pull.begun && pull.answer.finish_reason().is_none())
    }

    /// One turn of the loop that all ways of generating share.
    fn advance(
        &mut self,
        answer: &mut Answer,
        options: &GenerateOptions,
        progress: &mut Option<&mut ProgressFn<'_>>,
    ) -> Result<Option<TokenEvent>> {
        if answer.finish_reason().is_some() {
            return Ok(None);
        }
        let chunk = if options.prefill_chunk == 0 { PREFILL_CHUNK } else { options.prefill_chunk.min(PREFILL_CHUNK) };
        let mut stopped = false;
        let mut watched = progress.as_mut().map(|progress| {
            |event: Progress| {
                let flow = progress(event);
                stopped |= flow.is_break();
                flow
            }
        });
        let mut watched: Option<&mut ProgressFn<'_>> = watched.as_mut().map(|f| f as _);
        let cancelled = options.cancel.as_ref().map_or(Ok(()), Cancel::check);
        match cancelled.and_then(|()| self.evaluate(answer.needs(), chunk, options.cancel.as_ref(), &mut watched)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                answer.finish(if stopped { FinishReason::Callback } else { FinishReason::Cancelled });
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        self.choose(answer)
    }

    /// The next token by what is known.
    fn choose(&mut self, answer: &mut Answer) -> Result<Option<TokenEvent>> {
        if !answer.is_started() {
            answer.start(std::mem::take(&mut self.prefill_seconds));
        }
        let room = self.max_context - self.position();
        if room == 0 {
            answer.finish(FinishReason::ContextFull);
            return Ok(None);
        }
        let known = match self.evaluated.best() {
            Some(best) => KnownLogits::Best(best),
            None => KnownLogits::All(self.evaluated.logits().unwrap_or_default()),
        };
        let (event, goes_on) = match answer.choose(self.model(), known, self.tokens(), room) {
            // While a grammar said which tokens may come.
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                answer.finish(FinishReason::Cancelled);
                return Ok(None);
            }
            chosen => chosen?,
        };
        if goes_on {
            self.evaluated.choose(event.token);
        }
        Ok(Some(event))
    }

    /// How many tokens the session holds.
    pub fn position(&self) -> usize {
        self.tokens().len()
    }

    /// The tokens that the session holds.
    pub fn tokens(&self) -> &[u32] {
        self.evaluated.tokens()
    }

    /// The model it belongs to.
    pub fn model(&self) -> &Model {
        self.evaluated.model()
    }

    /// The scores after the last token: `vocab_size` values.
    ///
    /// # Errors
    /// `InvalidArgument` on an empty session; `Device` if they are no distribution, as those of weights that are not finite.
    pub fn logits(&mut self) -> Result<&[f32]> {
        if self.tokens().is_empty() {
            return Err(Error::argument("session: expected at least one token, found none"));
        }
        // An answer that failed on its way may have adapters of its own, and may go on with them afterwards.
        let failed = self.answer.as_ref().is_some_and(|pull| !pull.begun);
        let answer_adapters = if failed { self.answer_adapters.take() } else { None };
        let evaluated = self.evaluate(Needs::Logits, PREFILL_CHUNK, None, &mut None);
        if failed {
            self.answer_adapters = answer_adapters;
        }
        evaluated?;
        let logits = self.evaluated.logits().unwrap_or_default();
        check_logits(logits)?;
        Ok(logits)
    }

    /// The `count` most probable next tokens with the natural logarithms of their probabilities, the most probable first: of the
    /// model's own distribution, whatever the sampling. Of equals, the lower id comes first. Fewer if the vocabulary is smaller.
    ///
    /// # Errors
    /// As [`logits`](Self::logits), and `OutOfMemory`.
    pub fn top_logprobs(&mut self, count: usize) -> Result<Vec<(u32, f32)>> {
        top_logprobs(self.logits()?, count)
    }

    /// Keeps the first `position` tokens. With attention alone that costs nothing. Layers with a state of fixed size (Mamba 2, delta nets,
    /// short convolutions) forget 16 tokens at most: they go back to a state that was kept, of the beginnings of three answers at most,
    /// and the tokens behind it that stay are evaluated again when something is next asked for.
    ///
    /// # Errors
    /// `InvalidArgument` if the session holds fewer.
    pub fn truncate(&mut self, position: usize) -> Result<()> {
        if position > self.position() {
            return Err(Error::argument(format!("position: expected at most {}, found {position}", self.position())));
        }
        self.leave_answer()?;
        self.interrupted = None;
        self.evaluated.keep(position);
        self.answer_format = None;
        Ok(())
    }

    /// Writes tokens and states to a file; beside it first, so that a failure leaves no half of one. Adapters are not written, only
    /// which ones the states were computed with. Half a prompt is still half a prompt when it is loaded. How answers are told apart is not
    /// written: [`set_chat`](Self::set_chat) with the same conversation says it, and evaluates nothing again.
    ///
    /// # Errors
    /// `Io`, naming the path; `Device`, `Suspended`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let parts = SessionParts { max_context: self.max_context, evaluated: &self.evaluated, interrupted: self.interrupted };
        self.model().device().work(|| session_file::save(path.as_ref(), &parts))
    }

    /// Reads what [`save`](Self::save) wrote. The session has no adapters: attach them again. With those that it had the states are
    /// used as they are; with others, or none, they are computed again when they are next needed.
    ///
    /// # Errors
    /// `Mismatch` if another model wrote it, or one with another [`kv_cache`](super::LoadOptions::kv_cache); `Format` if it is damaged or
    /// of another version, `ContextFull` if it holds more tokens than the model was loaded for; `OutOfMemory`, `Device`, `Suspended`.
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Self> {
        let most = Self::new(model, 0)?.max_context;
        let parts = model.device().work(|| session_file::load(path.as_ref(), model))?;
        let session = Self { interrupted: parts.interrupted, ..Self::of(parts.evaluated, parts.max_context.min(most)) };
        session.check(session.tokens(), 0).map_err(|error| match error.kind() {
            // Of a file, not of an argument.
            ErrorKind::InvalidArgument => Error::format(format!("{}: {error}", path.as_ref().display())),
            _ => error.within(path.as_ref().display()),
        })?;
        Ok(session)
    }
}

/// What is looked at between two pieces of what is evaluated.
struct PrefillWatch<'a, 'b, 'c> {
    cancel: Option<&'a Cancel>,
    progress: &'a mut Option<&'b mut ProgressFn<'c>>,
    seconds: &'a mut f64,
    started: Option<Instant>,
    /// Whether the last token was chosen by an answer: alone it is no prompt, and nothing is told of it.
    is_chosen: bool,
}

impl PrefillWatch<'_, '_, '_> {
    fn piece(&mut self, done: usize, total: usize) -> Result<()> {
        if done < total {
            self.cancel.map_or(Ok(()), Cancel::check)?;
        }
        let started = *self.started.get_or_insert_with(Instant::now);
        if done == 0 || (self.is_chosen && total == 1) {
            return Ok(());
        }
        if done == total {
            *self.seconds += started.elapsed().as_secs_f64();
        }
        tell(self.progress, Progress { stage: Stage::Prefill, done: done as u64, total: total as u64 })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} of {} tokens)", self.position(), self.max_context)
    }
}

/// The tokens of an answer, as [`Session::stream`] begins it. After an error there are none; the session then goes on with
/// [`Session::generate`] from what it holds. What is dropped early stops there, and its tokens stay in the session.
///
/// ```
/// use metal_candle::{Chat, GenerateOptions, LoadOptions, Model, Session};
/// # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
/// let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
/// let mut chat = Chat::new();
/// chat.add("user", "What does `Vec::push` do?");
/// let mut session = Session::new(&model, 0)?;
/// session.set_chat(&chat, None)?;
/// let mut answer = session.stream(&GenerateOptions::default())?;
/// let text = answer.by_ref().map(|event| Ok(event?.text)).collect::<metal_candle::Result<String>>()?;
/// assert_eq!(text, "Appends an element to the back of a collection.");
/// assert_eq!(answer.finish()?.text, text);
/// # Ok::<(), metal_candle::Error>(())
/// ```
#[derive(Debug)]
pub struct AnswerStream<'s> {
    session: &'s mut Session,
    has_failed: bool,
}

impl AnswerStream<'_> {
    /// The whole answer as far as it came; one that was not complete was stopped by its caller.
    ///
    /// # Errors
    /// As [`Session::end`].
    pub fn finish(self) -> Result<Generation> {
        self.session.end()
    }
}

impl Iterator for AnswerStream<'_> {
    type Item = Result<TokenEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let event = self.session.next().transpose();
        self.has_failed = matches!(event, Some(Err(_)));
        event
    }
}

impl Drop for AnswerStream<'_> {
    fn drop(&mut self) {
        // Of an answer that was finished there is nothing to end.
        self.session.answer = None;
        self.session.answer_adapters = None;
    }
}

#[cfg(all(test, reference_data))]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::LoadOptions;

    #[test]
    fn calls_of_tools_leave_the_states_where_the_turn_of_their_user_begins() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(Path::new("tests/golden/decoders/lfm2").join(name), path(name)).unwrap();
        }
        // A word is the number of its token.
        let vocab: serde_json::Map<String, serde_json::Value> = (0..83).map(|id| (id.to_string(), json!(id))).collect();
        let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "0"});
        let tokenizer =
            json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model});
        std::fs::write(path("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}{{ ' 5 ' if m.role == 'assistant' else ' ' }}{{ m.content }}{% endfor %} 5";
        std::fs::write(path("chat_template.jinja"), template).unwrap();
        let model = Model::load(folder.path(), &LoadOptions::default(), None).unwrap();
        let mut session = Session::new(&model, 0).unwrap();
        let mut chat = Chat::new();
        let options = GenerateOptions::default().max_tokens(6).ignore_eos(true).temperature(0.0);
        let mut turns = Vec::new();
        for turn in 0..3 {
            chat.add("user", "7 8 9 10 11 12 13 14 15 16 17 18");
            for step in 0..5 {
                session.set_chat(&chat, None).unwrap();
                if step == 0 {
                    turns.push(session.position());
                }
                session.generate(&options, None, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
                chat.add("assistant", "20 21 22");
                chat.add("tool", "30 31 32 33");
            }
            let kept: Vec<usize> =
                session.evaluated.states().snapshots().filter(|(_, begins, _)| *begins).map(|(len, ..)| len).collect();
            assert_eq!(kept, turns[turns.len().saturating_sub(2)..], "turn {turn}");
        }
    }
}
