"""What calls raise: one class a status, all of them `Error`; and `Cancelled`, which is no failure."""

from __future__ import annotations

from ._abi import Status

__all__ = [
    "BusyError",
    "Cancelled",
    "ContextFullError",
    "DeviceError",
    "Error",
    "FormatError",
    "InvalidArgumentError",
    "InvalidUtf8Error",
    "IoError",
    "MismatchError",
    "NetworkError",
    "NotFoundError",
    "OutOfMemoryError",
    "PanicError",
    "PoisonedError",
    "SuspendedError",
    "TemplateError",
    "UnsupportedError",
]


class Cancelled(Exception):
    """A call was stopped by its `Cancel`, or by a progress callback that returned False. What it worked on stays usable."""


class Error(Exception):
    """A failure: `str(error)` is one line with the subject, what was expected and what was found."""

    status: Status
    """What kind of failure it is."""
    details: str
    """The message and every cause below it, one a line, for a log."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details or message


class InvalidArgumentError(Error, ValueError):
    """An argument or option is outside its range."""

    status = Status.ERROR_INVALID_ARGUMENT


class InvalidUtf8Error(Error, ValueError):
    """Text is not UTF-8; the message has the offset of the first bad byte."""

    status = Status.ERROR_INVALID_UTF8


class NotFoundError(Error, LookupError):
    """A file, directory, token, device or chat template does not exist."""

    status = Status.ERROR_NOT_FOUND


class IoError(Error):
    """Reading or writing a file failed."""

    status = Status.ERROR_IO


class NetworkError(Error):
    """A download failed."""

    status = Status.ERROR_NETWORK


class FormatError(Error, ValueError):
    """A file's or text's content contradicts its format."""

    status = Status.ERROR_FORMAT


class UnsupportedError(Error):
    """The input is well formed, and this build of the library does not implement it."""

    status = Status.ERROR_UNSUPPORTED


class ContextFullError(Error):
    """More tokens than the context holds."""

    status = Status.ERROR_CONTEXT_FULL


class OutOfMemoryError(Error, MemoryError):
    """Memory ran out, or a size is beyond what can be allocated."""

    status = Status.ERROR_OUT_OF_MEMORY


class DeviceError(Error):
    """The compute device failed."""

    status = Status.ERROR_DEVICE


class SuspendedError(Error):
    """The device is suspended; call `Device.resume()` first."""

    status = Status.ERROR_SUSPENDED


class BusyError(Error):
    """The object is in use by another call; nothing was changed. Calls never wait for it."""

    status = Status.ERROR_BUSY


class MismatchError(Error):
    """Two things that must belong together do not, such as a session's file and the model."""

    status = Status.ERROR_MISMATCH


class PoisonedError(Error):
    """An earlier `PanicError` left the object in an unknown state; it can only be closed."""

    status = Status.ERROR_POISONED


class TemplateError(Error):
    """A chat template failed, or refused the conversation."""

    status = Status.ERROR_TEMPLATE


class PanicError(Error):
    """A defect of the library; the message says where. Please report it."""

    status = Status.ERROR_PANIC


_classes: dict[int, type[Error]] = {kind.status: kind for kind in Error.__subclasses__()}


def error_of(status: int, message: str, details: str) -> Error:
    """The exception of a status; of one that is unknown, `Error` itself, with the status as a number in the message."""
    if status in _classes:
        return _classes[status](message, details)
    return Error(f"status {status}: {message}", details)
