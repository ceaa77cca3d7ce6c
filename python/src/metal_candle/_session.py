"""Generation: what an answer is, how it is streamed, and sessions, whose turns evaluate only what is new."""

from __future__ import annotations

import asyncio
import ctypes
import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    NamedTuple,
    Optional,
    TypedDict,
    Union,
)

import numpy as np
from numpy.typing import NDArray

from . import _abi
from ._abi import FinishReason, PartKind, Status
from ._calls import Cancel, finished, linked, run, run_async
from ._lora import Lora, lora_arrays
from ._native import Handle, Options, Reference, TokenIds, check, floats, get, ids_of, known, made, make, texts_of
from ._text import Chat, Message, Path
from .errors import Cancelled, Error, InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._model import Model


class GenerateOptions(TypedDict, total=False):
    """How to generate. What is not there, or None, is as the model's generation_config.json says."""

    max_tokens: Optional[int]
    """The most tokens to generate; 0 (the default) = until the model stops or the context is full."""
    temperature: Optional[float]
    """What logits are divided by: 0 or more; 0 = always the most probable token."""
    top_k: Optional[int]
    """How many of the most probable tokens are kept; 0 = all."""
    top_p: Optional[float]
    """Keeps the fewest most probable tokens whose probabilities sum to this: above 0, up to 1."""
    min_p: Optional[float]
    """Keeps the tokens with at least this times the probability of the most probable one: 0 to 1."""
    repetition_penalty: Optional[float]
    """What logits of tokens that occurred are divided by, if positive, else multiplied: above 0; 1 = off."""
    repetition_last_n: int
    """How many of the last tokens count for it, prompt and answer; 0 (the default) = all."""
    frequency_penalty: Optional[float]
    """What is subtracted from a token's logit for each time it occurs in the answer. Default: 0."""
    presence_penalty: Optional[float]
    """What is subtracted from the logit of each token that occurs in the answer. Default: 0."""
    logit_bias: Mapping[int, float]
    """What is added to the logit of a token id; minus infinity = never this token."""
    seed: Optional[int]
    """Makes sampling repeat: any number from 0 to 2**64 - 1. Default: a new one for each generation."""
    ignore_eos: Optional[bool]
    """Whether to go on after the model ended its answer. Default: False."""
    prefill_chunk: Optional[int]
    """How many tokens of a prompt are evaluated at once: 1 to 512. Default: 512."""
    lora: Optional[Lora]
    """An adapter for this generation, in place of the session's own."""
    lora_scale: float
    """A factor for its changes. Default: 1."""
    loras: Optional[Sequence[Lora]]
    """Several adapters at once, in place of `lora`: their changes add up."""
    lora_scales: Optional[Sequence[float]]
    """A factor for each of them. Default: 1."""
    stop: Union[str, Sequence[str]]
    """Texts that end the answer where they appear; the answer's text ends before them."""
    answer_format: Optional[str]
    """How the answer is told apart into text, thoughts and calls of tools, such as "hermes", or "none". Default: as the chat template of
    the session's conversation says."""
    tool_choice: Optional[str]
    """Whether the answer calls tools of the session's conversation: "auto", "none", "required", or a tool's name. A call that has to be
    conforms to the tool's schema, whatever the sampling. Default: the model chooses."""
    reasoning_budget: Optional[int]
    """How many tokens a thought may have: then the model's own mark closes it. Default: as many as it likes."""
    json_schema: Union[Mapping[str, Any], bool, str, None]
    """A JSON Schema, as values or as JSON text, that the answer conforms to, whatever the sampling. The model does not see it: ask for
    it in the prompt."""
    json: Optional[str]
    """Options as JSON, by the names that mc_generate_options_set_json() tells; they count more than those beside it."""


def generate_options(options: Mapping[str, Any], flag: Cancel) -> Options:
    values = {"cancel": flag, **known(options, GenerateOptions)}
    stop, bias = values.pop("stop", ()), values.pop("logit_bias", {})
    schema = values.pop("json_schema", None)
    together = {
        "lora": (values.pop("lora", None), values.pop("lora_scale", 1.0)),
        "loras": lora_arrays(values.pop("loras", None), values.pop("lora_scales", None)),
        "repetition_penalty": (values.pop("repetition_penalty", None), values.pop("repetition_last_n", 0)),
        "json_schema": (schema if schema is None or isinstance(schema, str) else json.dumps(schema),),
    }
    built = Options("mc_generate_options", values, together)
    for text in texts_of("stop", () if stop is None else stop):
        built.add("stop", text)
    for token, value in (bias or {}).items():
        built.add("logit_bias", token, value)
    return built.finished()


@dataclass(frozen=True)
class Part:
    """A part of an answer, or a piece of one."""

    kind: PartKind
    """What it is."""
    text: str
    """Text, a piece of a thought or of a call's arguments, the name of a call that begins, or the JSON of one that is whole."""
    index: int
    """Which call of the answer it belongs to, from 0; 0 for text and reasoning."""

    def __str__(self) -> str:
        return self.text


def parts_of(event: _abi._TokenEvent) -> Iterator[Part]:
    """A copy of what C has."""
    address = event.parts
    for _ in range(event.parts_len):
        part = _abi._Part.from_address(address)
        yield Part(PartKind(part.kind), ctypes.string_at(part.text, part.text_len).decode("utf-8"), part.index)
        address += part.struct_size  # a later library has larger ones


@dataclass(frozen=True)
class Token:
    """One generated token, and the text that became certain with it: `print(token, end="")`."""

    text: str
    """Whole characters; empty while a character or a possible stop text is incomplete."""
    id: int
    """The token's id."""
    index: int
    """Its place in the answer, from 0."""
    logprob: float
    """Natural logarithm of the probability that the model itself gave the token, before any sampling setting."""
    parts: tuple[Part, ...] = ()
    """The parts that became certain with it: text, thoughts and calls of tools; of an answer that is not told apart, its text."""

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, address: int) -> Token:
        """A copy of what C has."""
        event = _abi._TokenEvent.from_address(address)
        text = ctypes.string_at(event.text, event.text_len).decode("utf-8")
        return cls(text, event.token, event.index, event.logprob, tuple(parts_of(event)))


class Generation(NamedTuple):
    """A finished answer."""

    text: str
    """The answer."""
    tokens: list[int]
    """The answer's token ids, with the end-of-sequence token where that ended it."""
    prompt_tokens: int
    """How many tokens stood before the answer."""
    finish_reason: FinishReason
    """Why the answer ended."""
    prefill_seconds: float
    """How long the evaluation of the prompt took; in a session, of what it was given since the answer before."""
    decode_seconds: float
    """How long generating the tokens took."""
    content: str
    """The text without thoughts and calls of tools, where the answer was told apart."""
    reasoning: str
    """The model's thoughts."""
    tool_calls: list[dict[str, Any]]
    """The calls of tools, as chat APIs have them."""

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, reference: Reference) -> Generation:
        """A copy of what C has."""
        text, content, reasoning, calls = (
            ctypes.string_at(get(name, reference), get(length, reference)).decode("utf-8")
            for name, length in (
                ("mc_generation_text", "mc_generation_text_len"),
                ("mc_generation_content", "mc_generation_content_len"),
                ("mc_generation_reasoning", "mc_generation_reasoning_len"),
                ("mc_generation_tool_calls_json", "mc_generation_tool_calls_json_len"),
            )
        )
        tokens = (ctypes.c_uint32 * get("mc_generation_tokens_len", reference)).from_address(get("mc_generation_tokens", reference))
        return cls(
            text,
            list(tokens),
            get("mc_generation_prompt_tokens", reference),
            FinishReason(get("mc_generation_finish_reason", reference)),
            get("mc_generation_prefill_seconds", reference),
            get("mc_generation_decode_seconds", reference),
            content,
            reasoning,
            json.loads(calls),
        )


class TopLogprobs(NamedTuple):
    """The most probable next tokens, the most probable first, and of equals the lower id."""

    tokens: NDArray[np.uint32]
    """Their ids, of shape (count,)."""
    logprobs: NDArray[np.float32]
    """Natural logarithms of their probabilities, of shape (count,)."""


class Stream(Iterator[Token]):
    """An answer in the making: an iterator of tokens, for `for` and for `async for`.

    Nothing is computed before the first token is asked for. Leaving the loop leaves the answer open: `close()`, the end of a `with`
    statement or the collection of the stream ends it, and a session takes up nothing else before. `cancel()`, from any thread, ends the
    loop without an exception; Ctrl-C and the cancellation of the task end the answer and are raised. An error leaves the answer where
    it was: the next token goes on with it. One thread or task at a time.
    """

    generation: Optional[Generation] = None
    """The answer as a whole, once it has ended, for whatever reason."""

    def __init__(
        self,
        open_session: Callable[[Cancel], Session],
        options: Mapping[str, Any],
        cancel: Optional[Cancel],
        on_end: Callable[[Optional[Generation]], None] = lambda generation: None,
        owns_session: bool = False,
    ) -> None:
        self._flag = Cancel()
        self._cancel = cancel
        self._options = generate_options(options, self._flag)
        self._open_session = open_session
        self._on_end = on_end
        self._owns_session = owns_session
        self._session: Optional[Session] = None
        self._closed = False

    def cancel(self) -> None:
        """Ends the answer within a token or a piece of the prompt, from any thread; it stays as far as it came."""
        self._flag.trigger()

    @property
    def closed(self) -> bool:
        """Whether the answer has ended."""
        return self._closed

    def _start(self, flag: Cancel) -> bool:
        """Evaluates the prompt and begins the answer; False if it was cancelled before."""
        if self._session is None:
            try:
                session = self._open_session(flag)
                check("mc_session_begin", session, self._options)
            except Cancelled:
                self.generation = Generation("", [], 0, FinishReason.CANCELLED, 0.0, 0.0, "", "", [])
                self._shut()
                self._on_end(self.generation)
                return False
            except BaseException:
                self._on_end(None)
                raise
            self._session = session
            session._stream = weakref.ref(self)
        return True

    def _step(self, flag: Cancel) -> Optional[Token]:
        if not self._start(flag):
            return None
        event = ctypes.c_void_p()
        status = check("mc_session_next", self._session, ctypes.byref(event))
        if status == Status.OK and event.value is not None:
            return Token.of(event.value)
        self.close()
        return None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Token:
        if self._closed:
            raise StopIteration
        if self._session is None:
            try:
                token = run(self._step, self._cancel, self._flag)
            except KeyboardInterrupt:
                self.close()
                raise
        else:  # of one token, Python hears Ctrl-C soon enough
            with linked(self._flag, self._cancel):
                token = self._step(self._flag)
        if token is None:
            raise StopIteration
        return token

    def parts(self) -> Iterator[Part]:
        """The answer in its parts, as they come: text, thoughts and calls of tools."""
        for token in self:
            yield from token.parts

    async def parts_async(self) -> AsyncIterator[Part]:
        """As `parts()`."""
        async for token in self:
            for part in token.parts:
                yield part

    def read(self) -> Generation:
        """Reads all tokens that are left, and gives the whole answer."""
        for _ in self:
            pass
        assert self.generation is not None
        return self.generation

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Token:
        if self._closed:
            raise StopAsyncIteration
        try:
            token = await run_async(self._step, self._cancel, self._flag)
        except asyncio.CancelledError:
            self.close()
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    async def read_async(self) -> Generation:
        """As `read()`."""
        async for _ in self:
            pass
        assert self.generation is not None
        return self.generation

    def close(self) -> None:
        """Ends the answer, complete or not; `generation` is then what there is. May be called again."""
        if self._closed:
            return
        session = self._session
        if session is not None and not session.closed:
            reference = make("mc_generation", "mc_session_end", session)[1]
            if reference is not None:
                self.generation = Generation.of(reference)
        self._shut()
        self._on_end(self.generation)

    def _shut(self) -> None:
        self._closed = True
        self._options.close()
        if self._session is not None:
            self._session._stream = None
            if self._owns_session:
                self._session.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


def next_tokens(streams: Sequence[Stream], *, cancel: Optional[Cancel] = None) -> list[Optional[Token]]:
    """The next token of several answers in one pass: the weights are read once for all, so that few answers take little longer than
    one. Each has its own session of one model, options and adapters, and on the CPU the tokens that it has alone, bit for bit.

    Gives None for an answer that has ended, and for one with an error, which the next call for it alone, or when no answer has a
    token, raises. Raises `MismatchError` for sessions of different models, `InvalidArgumentError` for more than 1024 of them.
    """
    return run(lambda flag: _next_tokens(streams, flag), cancel)


def _next_tokens(streams: Sequence[Stream], flag: Cancel) -> list[Optional[Token]]:
    tokens: dict[int, Token] = {}
    with ExitStack() as links:
        for stream in streams:
            for cancel in (stream._cancel, flag):
                links.enter_context(linked(stream._flag, cancel))
        going = [i for i, stream in enumerate(streams) if not stream.closed and stream._start(stream._flag)]
        if not going:
            return [None] * len(streams)
        held = [streams[i]._session._reference for i in going]  # type: ignore[union-attr]
        addresses = (ctypes.c_void_p * len(going))(*(reference.address if reference else None for reference in held))
        events = (ctypes.c_void_p * len(going))()
        statuses = (ctypes.c_int * len(going))(*([-1] * len(going)))
        failure: Optional[Error] = None
        try:
            check("mc_sessions_next", addresses, len(going), events, statuses)
        except Error as error:
            failure = error
        for i, event, status in zip(going, events, statuses):
            if status == Status.OK and event:
                tokens[i] = Token.of(event)
            elif status in (Status.DONE, Status.CANCELLED):
                streams[i].close()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None
    return [tokens.get(i) for i in range(len(streams))]


class Session(Handle):
    """The tokens evaluated so far and what the network keeps of them. One call at a time: a second one meanwhile raises `BusyError`."""

    _kind = "mc_session"
    _stream: Optional[weakref.ref[Stream]] = None

    def __init__(self, model: Model, max_context: int = 0) -> None:
        """An empty session of at most `max_context` tokens; 0 = the model's context. Memory grows with use.

        Raises `InvalidArgumentError` for more than the model's context, `UnsupportedError` if the model cannot generate.
        """
        self._reference: Optional[Reference] = made("mc_session", "mc_session_new", model, max_context)
        self._vocab_size = model.vocab_size

    @classmethod
    def load(cls, model: Model, path: Path) -> Session:
        """Reads a session that `save()` wrote, without its adapters.

        Raises `NotFoundError`, `IoError` or `FormatError` for the file, `MismatchError` if it belongs to another model.
        """
        session = cls._of(made("mc_session", "mc_session_load", model, path))
        session._vocab_size = model.vocab_size
        return session

    def save(self, path: Path) -> None:
        """Writes the session to a file, without its adapters; one that exists is replaced. Raises `IoError`, `NotFoundError`."""
        check("mc_session_save", self, path)

    def fork(self) -> Session:
        """A copy that goes its own way, as for several answers to one prompt."""
        session = Session._of(made("mc_session", "mc_session_fork", self))
        session._vocab_size = self._vocab_size
        return session

    def _append(self, content: Union[str, TokenIds]) -> Callable[[Cancel], None]:
        name = "mc_session_append" if isinstance(content, str) else "mc_session_append_tokens"
        return lambda flag: finished("appending", name, self, content, flag)

    def append(self, content: Union[str, TokenIds], *, cancel: Optional[Cancel] = None) -> None:
        """Evaluates text or token ids behind what the session holds. An empty session puts in front of a text what the tokenizer does,
        such as a beginning-of-sequence token.

        Raises `Cancelled` or `SuspendedError` (the session holds what was evaluated, see `position`), `ContextFullError` (nothing was
        changed), `NotFoundError` if the model has no tokenizer, `InvalidArgumentError` for an id outside the vocabulary.
        """
        run(self._append(content), cancel)

    async def append_async(self, content: Union[str, TokenIds], *, cancel: Optional[Cancel] = None) -> None:
        """As `append()`."""
        await run_async(self._append(content), cancel)

    def _set(self, content: Union[str, Chat]) -> Callable[[Cancel], None]:
        name = "mc_session_set_prompt" if isinstance(content, str) else "mc_session_set_chat"
        return lambda flag: finished("evaluating the prompt", name, self, content, flag)

    def set_prompt(self, content: Union[str, Chat], *, cancel: Optional[Cancel] = None) -> None:
        """Makes the session hold exactly this text, or this conversation with its generation prompt: what it holds is kept as far as it
        is the same, only the rest is evaluated.

        Raises as `append()`, and `TemplateError` or `NotFoundError` for the chat template.
        """
        run(self._set(content), cancel)

    async def set_prompt_async(self, content: Union[str, Chat], *, cancel: Optional[Cancel] = None) -> None:
        """As `set_prompt()`."""
        await run_async(self._set(content), cancel)

    def stream(self, *, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]) -> Stream:
        """An answer to what the session holds, token by token; the session then holds the answer too.

        Raises `InvalidArgumentError` for a bad option; at the first token also for an empty session, and while another answer is open.
        """
        return Stream(lambda flag: self, options, cancel)

    def _generate(self, options: Mapping[str, Any]) -> Callable[[Cancel], Generation]:
        def call(flag: Cancel) -> Generation:
            with generate_options(options, flag) as built:
                name = "mc_session_generate_stream"
                return Generation.of(made("mc_generation", name, self, built, _abi.TokenFn(), None))

        return call

    def generate(self, *, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]) -> Generation:
        """As `stream()`, all at once; a cancelled answer is given as far as it came."""
        return run(self._generate(options), cancel)

    async def generate_async(self, *, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]) -> Generation:
        """As `generate()`."""
        return await run_async(self._generate(options), cancel)

    def _score(self, tokens: TokenIds) -> Callable[[Cancel], NDArray[np.float32]]:
        logprobs = np.empty(len(tokens), np.float32)

        def call(flag: Cancel) -> NDArray[np.float32]:
            finished("scoring", "mc_session_score_tokens", self, tokens, floats(logprobs), flag)
            return logprobs

        return call

    def score(self, tokens: TokenIds, *, cancel: Optional[Cancel] = None) -> NDArray[np.float32]:
        """What the model says of given tokens behind what the session holds: the natural logarithm of the probability of each, of shape
        (tokens,), in one pass. The session holds afterwards what it held.

        Raises `Cancelled`, `ContextFullError`, `InvalidArgumentError` for an empty session and for an id outside the vocabulary.
        """
        return run(self._score(tokens), cancel)

    async def score_async(self, tokens: TokenIds, *, cancel: Optional[Cancel] = None) -> NDArray[np.float32]:
        """As `score()`."""
        return await run_async(self._score(tokens), cancel)

    def logits(self) -> NDArray[np.float32]:
        """What the network says of each possible next token, unscaled, of shape (vocab_size,). Raises `InvalidArgumentError` for an empty
        session."""
        logits = np.empty(self._vocab_size, np.float32)
        check("mc_session_logits", self, logits)
        return logits

    def top_logprobs(self, count: int) -> TopLogprobs:
        """The most probable next tokens, whatever the sampling, from 1 to all. Raises `InvalidArgumentError` for an empty session."""
        if not 1 <= count <= self._vocab_size:
            raise InvalidArgumentError(f"count: expected 1 to {self._vocab_size}, found {count}")
        tokens, logprobs = np.empty(count, np.uint32), np.empty(count, np.float32)
        place = ctypes.c_void_p(tokens.ctypes.data)
        check("mc_session_top_logprobs", self, count, place, floats(logprobs))
        return TopLogprobs(tokens, logprobs)

    def tokens(self) -> list[int]:
        """The ids of the tokens that the session holds."""
        return ids_of(made("mc_tokens", "mc_session_tokens", self))

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return int(get("mc_session_position", self))

    def truncate(self, position: int) -> None:
        """Forgets what comes after the first `position` tokens. Raises `InvalidArgumentError` for more than there are."""
        check("mc_session_truncate", self, position)

    def set_lora(self, lora: Optional[Lora], scale: float = 1.0) -> None:
        """Evaluates with this adapter from now on, or with none; what was evaluated with others is evaluated again when it is needed.

        Raises `MismatchError` for an adapter of another model, `InvalidArgumentError` while an answer is open.
        """
        check("mc_session_set_lora", self, lora, scale)

    def set_loras(self, loras: Sequence[Lora], scales: Optional[Sequence[float]] = None) -> None:
        """Evaluates with several adapters at once: their changes add up, each with its factor (1). Else as `set_lora()`."""
        check("mc_session_set_loras", self, *lora_arrays(loras, scales))

    @property
    def memory(self) -> int:
        """The bytes that the session takes now: it grows with the context. Raises `BusyError`."""
        size = ctypes.c_uint64()
        check("mc_session_memory", self, ctypes.byref(size))
        return size.value

    def close(self) -> None:
        """Frees the session, and ends its open answer."""
        self._end_answer()
        super().close()

    def _end_answer(self) -> None:
        stream = self._stream() if self._stream is not None else None
        if stream is not None:
            stream.close()


class Conversation:
    """Messages and a session: each turn evaluates only what is new.

    `messages` is a plain list to look at and to change: `ask()` and `answer()` render it as it is then, and add the answer to it.
    """

    messages: list[Message]
    session: Session

    def __init__(
        self,
        model: Model,
        system: Optional[str] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        variables: Optional[Mapping[str, Any]] = None,
        lora: Optional[Lora] = None,
        lora_scale: float = 1.0,
        max_context: int = 0,
    ) -> None:
        """`system` is the first message, `tools` and `variables` are for chat templates that know them, `lora` is the session's adapter.

        Raises as `Session`.
        """
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.tools = tools
        self.variables: dict[str, Any] = dict(variables or {})
        self.session = Session(model, max_context)
        if lora is not None:
            self.session.set_lora(lora, lora_scale)

    def ask(self, content: str, *, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Adds a message of the user, and streams the answer; one that is still open is ended.

        If it is cancelled before the first token, or fails, the message is taken back; an answer that is stopped later stays as far as it
        came. Raises as `Session.set_prompt()` and `Session.stream()`.
        """
        question: Message = {"role": "user", "content": content}

        def begin(flag: Cancel) -> Session:
            self.session._end_answer()
            self.messages.append(question)
            return self._prepare(flag)

        def end(generation: Optional[Generation]) -> None:
            if generation is not None and generation.tokens:
                self._take(generation)
            elif self.messages and self.messages[-1] is question:
                self.messages.pop()

        return Stream(begin, options, cancel, end)

    def answer(self, *, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Streams an answer to the messages as they are, as behind the result of a tool or for another answer than the last one."""
        return Stream(self._prepare, options, cancel, self._take)

    def _prepare(self, flag: Cancel) -> Session:
        self.session._end_answer()
        with Chat(self.messages, tools=self.tools) as chat:
            for name, value in self.variables.items():
                chat.set_variable(name, value)
            self.session._set(chat)(flag)
        return self.session

    def _take(self, generation: Optional[Generation]) -> None:
        if generation is not None and generation.tokens:
            message: dict[str, Any] = {"role": "assistant", "content": generation.content}
            if generation.reasoning:
                message["reasoning_content"] = generation.reasoning
            if generation.tool_calls:
                message["tool_calls"] = generation.tool_calls
            self.messages.append(message)

    def close(self) -> None:
        """Frees the session."""
        self.session.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
