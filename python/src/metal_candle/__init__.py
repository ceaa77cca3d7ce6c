"""Language models inside a Python program: load one, hold a conversation, stream the answer, embed, fine-tune.

    import metal_candle as mc

    conversation = mc.Conversation(mc.Model.load("models/tiny-coder"))
    for token in conversation.ask("What does `Vec::push` do?"):
        print(token, end="", flush=True)

Everything runs in this process; nothing is printed, no environment variable is read. These rules hold everywhere:

- Objects are freed by `close()`, at the end of a `with` statement or when they are collected, in any order.
- Failures are subclasses of `Error`, one for each status; `Cancelled` says that a call was stopped.
- Long calls take `cancel=`, a `Cancel` that any thread may trigger. Ctrl-C stops them too, within a token, a piece of a prompt or file,
  a group of texts or a layer of a training pass; KeyboardInterrupt is raised when the call has returned.
- Methods whose name ends with `_async`, and `async for` over a `Stream`, do the same on another thread; the cancellation of the task
  stops them.
- Callbacks run on the thread of the call that they were given to, or in its event loop. An exception in one stops the call, which then
  raises it; False stops the call.
- Calls that compute release the GIL. A process that has used the library does not fork: use "spawn" of multiprocessing.
"""

from ._abi import (
    Capability,
    ControlTokens,
    DeviceKind,
    Dtype,
    FinishReason,
    LogLevel,
    PartKind,
    Pooling,
    ProgressEvent,
    Schedule,
    ScoreActivation,
    Similarity,
    Stage,
    Status,
    TrainEvent,
    Weighting,
)
from ._calls import Cancel
from ._library import Device, DeviceMemory, has_feature, live_objects, set_log, set_threads, threads, trim_memory, version
from ._lora import Lora
from ._model import EmbedOptions, LoadOptions, Model, Nearest, RerankOptions, architectures, nearest
from ._session import Conversation, GenerateOptions, Generation, Part, Session, Stream, Token, TopLogprobs, next_tokens
from ._text import Chat, TextStream, Tokenizer
from ._train import Dataset, LoraConfig, Trainer, TrainOptions, Update
from .errors import (
    BusyError,
    Cancelled,
    ContextFullError,
    DeviceError,
    Error,
    FormatError,
    InvalidArgumentError,
    InvalidUtf8Error,
    IoError,
    MismatchError,
    NetworkError,
    NotFoundError,
    OutOfMemoryError,
    PanicError,
    PoisonedError,
    SuspendedError,
    TemplateError,
    UnsupportedError,
)

__version__ = version()

__all__ = [
    "BusyError",
    "Cancel",
    "Cancelled",
    "Capability",
    "Chat",
    "ContextFullError",
    "ControlTokens",
    "Conversation",
    "Dataset",
    "Device",
    "DeviceError",
    "DeviceKind",
    "DeviceMemory",
    "Dtype",
    "EmbedOptions",
    "Error",
    "FinishReason",
    "FormatError",
    "GenerateOptions",
    "Generation",
    "InvalidArgumentError",
    "InvalidUtf8Error",
    "IoError",
    "LoadOptions",
    "LogLevel",
    "Lora",
    "LoraConfig",
    "MismatchError",
    "Model",
    "Nearest",
    "NetworkError",
    "NotFoundError",
    "OutOfMemoryError",
    "PanicError",
    "PoisonedError",
    "Part",
    "PartKind",
    "Pooling",
    "ProgressEvent",
    "RerankOptions",
    "Schedule",
    "ScoreActivation",
    "Session",
    "Similarity",
    "Stage",
    "Status",
    "Stream",
    "SuspendedError",
    "TemplateError",
    "TextStream",
    "Token",
    "Tokenizer",
    "TopLogprobs",
    "TrainEvent",
    "TrainOptions",
    "Trainer",
    "UnsupportedError",
    "Update",
    "Weighting",
    "architectures",
    "has_feature",
    "live_objects",
    "nearest",
    "next_tokens",
    "set_log",
    "set_threads",
    "threads",
    "trim_memory",
    "version",
]
