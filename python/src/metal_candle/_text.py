"""Text to token ids and back, and conversations to prompts."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from ._abi import ControlTokens
from ._native import Handle, Reference, TokenIds, check, get, ids_of, made, new, string_of

if TYPE_CHECKING:
    from ._model import Model

Path = Union[str, "os.PathLike[str]"]
Message = Mapping[str, Any]
"""`role` ("system", "user", "assistant", …), `content`, and whatever else the chat template reads."""


class Tokenizer(Handle):
    """Text to token ids and back. Immutable; for any threads."""

    _kind = "mc_tokenizer"

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Loads a tokenizer alone: a tokenizer.json, a directory with one, or a .gguf file.

        Raises `NotFoundError`, `IoError` or `FormatError` for the file, and `UnsupportedError`.
        """
        return cls._of(made("mc_tokenizer", "mc_tokenizer_load", path))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of a text, where special tokens that are written in it ("<|im_end|>") become theirs; `add_special` adds what the
        tokenizer puts around a text, such as a beginning-of-sequence token."""
        return ids_of(made("mc_tokens", "mc_tokenizer_encode", self, text, add_special))

    def decode(self, tokens: TokenIds, *, skip_special: bool = True) -> str:
        """The text of ids, with U+FFFD for bytes that are not UTF-8. Raises `InvalidArgumentError` for an id outside the vocabulary."""
        return string_of(made("mc_string", "mc_tokenizer_decode", self, tokens, skip_special))

    def token_id(self, token: str) -> int:
        """The id of one token, as the vocabulary spells it. Raises `NotFoundError` if the vocabulary lacks it."""
        token_id = ctypes.c_uint32()
        check("mc_tokenizer_token_id", self, token, ctypes.byref(token_id))
        return token_id.value

    def is_special(self, token: int) -> bool:
        """Whether a token is markup such as "<|im_end|>", which is not part of a text; False for an id outside the vocabulary."""
        return bool(get("mc_tokenizer_is_special", self, token))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text in its middle: UTF-8, or a part of a character. A special token adds none.

        Raises `InvalidArgumentError` for an id outside the vocabulary, `UnsupportedError` where they depend on the token's neighbours.
        """
        length = ctypes.c_size_t(16)
        while True:  # once more where a token is longer
            data = (ctypes.c_uint8 * length.value)()
            check("mc_tokenizer_token_bytes", self, token, data, len(data), ctypes.byref(length))
            if length.value <= len(data):
                return bytes(data[: length.value])

    @property
    def vocab_size(self) -> int:
        """How many tokens the vocabulary has, added ones counted."""
        return int(get("mc_tokenizer_vocab_size", self))


class TextStream(Handle):
    """Token ids to text as they come, as the tokens of a `Stream` show it: whole characters, and without special tokens."""

    _kind = "mc_text_stream"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A stream at its beginning."""
        self._reference: Optional[Reference] = made("mc_text_stream", "mc_text_stream_new", tokenizer)

    def push(self, token: int) -> str:
        """Adds a token, and gives the text that became certain, which may be empty."""
        return string_of(made("mc_string", "mc_text_stream_push", self, token))

    def finish(self) -> str:
        """What was held back, without bytes that are no whole character. The stream is then at its beginning, for another text."""
        return string_of(made("mc_string", "mc_text_stream_finish", self))


class Chat(Handle):
    """Messages, tools and variables of a chat template: what a `Session` and a `Dataset` take. `Conversation` makes them by itself."""

    _kind = "mc_chat"

    def __init__(self, messages: Sequence[Message] = (), *, tools: Optional[Sequence[Mapping[str, Any]]] = None) -> None:
        """A conversation of messages, and tools that the model may call, as chat APIs exchange them. Raises `FormatError`."""
        self._reference: Optional[Reference]
        if messages:
            self._reference = made("mc_chat", "mc_chat_from_json", json.dumps(list(messages)))
        else:
            self._reference = new("mc_chat")
        if tools is not None:
            self.set_tools(tools)

    def add(self, role: str, content: str) -> None:
        """Adds a message at the end."""
        check("mc_chat_add", self, role, content)

    def __len__(self) -> int:
        return int(get("mc_chat_len", self))

    def remove_last(self) -> None:
        """Removes the last message. Raises `InvalidArgumentError` if there is none."""
        check("mc_chat_remove_last", self)

    def to_json(self) -> str:
        """An object with `messages`, and with `tools` if there are any."""
        return string_of(made("mc_string", "mc_chat_json", self))

    def set_tools(self, tools: Optional[Sequence[Mapping[str, Any]]]) -> None:
        """The tools that the model may call, for templates that know tools; None removes them. Raises `FormatError`."""
        check("mc_chat_set_tools_json", self, None if tools is None else json.dumps(list(tools)))

    def set_template(self, jinja: Optional[str]) -> None:
        """A chat template instead of the model's (None). Raises `TemplateError` if it does not parse."""
        check("mc_chat_set_template", self, jinja)

    def set_variable(self, name: str, value: Any) -> None:
        """A variable of the template, such as `set_variable("enable_thinking", False)`: what JSON can say."""
        check("mc_chat_set_variable_json", self, name, json.dumps(value))

    def remove_variable(self, name: str) -> None:
        """Lets the model's files say again what a variable is."""
        check("mc_chat_set_variable_json", self, name, None)

    def set_time(self, unix_seconds: int) -> None:
        """The clock that a template's `strftime_now` reads, in seconds since 1970-01-01 00:00 UTC, for renders that must repeat."""
        get("mc_chat_set_time", self, unix_seconds)

    def set_continue_final_message(self, continues: bool) -> None:
        """Whether the last message is left open, so that the model goes on with it; `render` and `encode` then take
        `add_generation_prompt=False`."""
        get("mc_chat_set_continue_final_message", self, continues)

    def set_control_tokens(self, control_tokens: ControlTokens) -> None:
        """What control tokens are that messages, tools and variables hold: tokens, or with `ControlTokens.TEXT` text of whoever wrote
        them, who then cannot end a turn. `render` refuses the latter: no text means the same."""
        check("mc_chat_set_control_tokens", self, control_tokens)

    def encode(self, model: Model, *, add_generation_prompt: bool = True) -> list[int]:
        """The token ids of the prompt that `render` gives: what a session evaluates.

        Raises as `render`, and `UnsupportedError` for a tokenizer that makes control tokens of plain text.
        """
        return ids_of(made("mc_tokens", "mc_model_encode_chat", model, self, add_generation_prompt))

    def render(self, model: Model, *, add_generation_prompt: bool = True) -> str:
        """The prompt that the conversation becomes with a model's chat template; `add_generation_prompt` opens the assistant's turn.

        Raises `NotFoundError` if neither model nor conversation has a template, `TemplateError` if it fails or refuses the conversation.
        """
        return string_of(made("mc_string", "mc_model_render_chat", model, self, add_generation_prompt))
