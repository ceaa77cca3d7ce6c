"""The shared library beside this file: how its functions are called, who owns handles, and what becomes of errors.

Values are converted and checked by what the header says of each parameter (`FUNCTIONS` of `_abi`): numbers by their range, handles by
their type, texts and token ids with their lengths. No other module calls the library.
"""

from __future__ import annotations

import ctypes
import difflib
import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from . import _abi
from ._abi import Status
from .errors import InvalidArgumentError, error_of

NAME = {"darwin": "libmetal_candle.dylib", "win32": "metal_candle.dll"}.get(sys.platform, "libmetal_candle.so")
_library = ctypes.CDLL(str(Path(__file__).parent / NAME))

TokenIds = Union[Sequence[int], "NDArray[np.integer[Any]]"]
"""Token ids: any sequence of whole numbers from 0 to 2**32 - 1, or an array of them with one dimension."""

Self = TypeVar("Self", bound="Handle")


class Reference:
    """One reference to an object of the library, dropped when nobody holds this. A call holds it until it returns, so that a handle
    that is closed by another thread meanwhile stays valid for that call."""

    __slots__ = ("address", "_drop")

    def __init__(self, kind: str, address: int) -> None:
        self.address = address
        self._drop: Callable[[ctypes.c_void_p], None] = _functions[f"{kind}_free"].pointer

    def __del__(self) -> None:
        self._drop(ctypes.c_void_p(self.address))


class Handle:
    """An object of the library. It is freed by `close()`, at the end of a `with` statement, or when it is collected, in any order:
    what was made from it keeps what it needs."""

    _kind: str
    _reference: Optional[Reference] = None

    @classmethod
    def _of(cls: type[Self], reference: Reference) -> Self:
        handle = cls.__new__(cls)
        handle._reference = reference
        return handle

    def close(self) -> None:
        """Frees the object, once the calls that use it have returned; further use raises `InvalidArgumentError`. May be called again."""
        self._reference = None

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._reference is None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Converters: of the label of a parameter and a value, what ctypes is given for it: one argument, or two, a pointer and a length.
Converter = Callable[[str, Any], tuple[Any, ...]]


def _integer(low: int, high: int) -> Converter:
    def convert(label: str, value: Any) -> tuple[int]:
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{label}: expected a whole number, found {type(value).__name__}") from None
        if not low <= number <= high:  # ctypes would take it modulo 2**64
            raise InvalidArgumentError(f"{label}: expected {low} to {high}, found {number}")
        return (number,)

    return convert


def _enumerated(kind: str) -> Converter:
    """A value of an enumeration; a number that is none of them is the library's to refuse."""
    one = _integer(-(2**31), 2**31 - 1)

    def convert(label: str, value: Any) -> tuple[Any, ...]:
        if not hasattr(value, "__index__"):
            enum = getattr(_abi, _abi_name(kind))
            names = ", ".join(f"{enum.__name__}.{member.name}" for member in enum)
            raise TypeError(f"{label}: expected one of {names}, found {value!r}")
        return one(label, value)

    return convert


def _handle(kind: str) -> Converter:
    def convert(label: str, value: Any) -> tuple[Optional[int]]:
        if value is None:
            return (None,)
        if isinstance(value, Reference):
            return (value.address,)
        if not isinstance(value, Handle) or value._kind != kind:
            raise TypeError(f"{label}: expected {_abi_name(kind)}, found {type(value).__name__}")
        if value._reference is None:
            raise InvalidArgumentError(f"{label}: this {type(value).__name__} is closed")
        return (value._reference.address,)

    return convert


def address_of(kind: str, label: str, handle: Handle) -> Optional[int]:
    """What C gets of one handle among several, which the caller holds until the call has returned."""
    return _handle(kind)(label, handle)[0]  # type: ignore[no-any-return]


def _boolean(label: str, value: Any) -> tuple[bool]:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{label}: expected bool, found {type(value).__name__}")
    return (bool(value),)


def _number(label: str, value: Any) -> tuple[float]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        # float() would read texts, and says of others not what they were to be.
        raise TypeError(f"{label}: expected a number, found {type(value).__name__}")
    return (float(value),)


def _terminated(label: str, value: Any) -> tuple[Optional[bytes]]:
    """Text or a path, which ends with a NUL and so must not have another."""
    if value is None:
        return (None,)
    data = encoded(os.fspath(value))
    if b"\0" in data:
        raise InvalidArgumentError(f"{label}: expected text without NUL, found one at byte {data.index(0)}")
    return (data,)


def _text(label: str, value: Any) -> tuple[Optional[bytes], int]:
    if value is None:
        return (None, 0)
    if not isinstance(value, (str, bytes)):
        raise TypeError(f"{label}: expected str, found {type(value).__name__}")
    data = encoded(value)
    return (data, len(data))


def _ids(label: str, value: Any) -> tuple[Any, int]:
    ids = token_array(label, value)
    return (ids, len(ids))


def _floats(label: str, value: NDArray[np.float32]) -> tuple[Any, int]:
    return (floats(value), value.size)


def _as_it_is(label: str, value: Any) -> tuple[Any]:
    return (value,)


def encoded(text: Union[str, bytes]) -> bytes:
    """UTF-8, or the very bytes of a path that is none: the library says where."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def texts_of(label: str, texts: Any) -> list[Union[str, bytes]]:
    """One text, or several, as a list."""
    if isinstance(texts, (str, bytes)):
        return [texts]
    if not isinstance(texts, Iterable):
        raise TypeError(f"{label}: expected str or a sequence of them, found {type(texts).__name__}")
    found = list(texts)
    for i, text in enumerate(found):
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"{label}[{i}]: expected str, found {type(text).__name__}")
    return found


def token_array(label: str, ids: TokenIds) -> Any:
    """Token ids as an array of C."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidArgumentError(f"{label}: expected whole numbers of shape (tokens,), found {ids.dtype} of shape {ids.shape}")
        ids = ids.tolist()
    one = _integer(0, 2**32 - 1)
    return (ctypes.c_uint32 * len(ids))(*(one(f"{label}[{i}]", token)[0] for i, token in enumerate(ids)))


def floats(array: NDArray[np.float32]) -> Any:
    """A pointer to the values of an array that is contiguous and outlives the call."""
    return ctypes.c_void_p(array.ctypes.data)


def _abi_name(kind: str) -> str:
    return "".join(word.capitalize() for word in kind.split("_")[1:])


_UNSIGNED = {"uint8_t": 8, "uint32_t": 32, "uint64_t": 64, "size_t": 8 * ctypes.sizeof(ctypes.c_size_t)}


def _converter(c: str) -> tuple[Any, Converter]:
    """What a parameter of this type is for ctypes, and how a value becomes one."""
    handle = c.replace("const ", "").replace(" *", "")
    if c in _UNSIGNED:
        return getattr(ctypes, f"c_{c.replace('_t', '') if c != 'size_t' else c}"), _integer(0, 2 ** _UNSIGNED[c] - 1)
    if c == "int64_t":
        return ctypes.c_int64, _integer(-(2**63), 2**63 - 1)
    if c in _abi.ENUMS:
        return ctypes.c_int, _enumerated(c)
    if c == "bool":
        return ctypes.c_bool, _boolean
    if c in ("float", "double"):
        return getattr(ctypes, f"c_{c}"), _number
    if c == "const char *":
        return ctypes.c_char_p, _terminated
    if handle in _abi.HANDLES and not c.endswith(("**", "*const *")):
        return ctypes.c_void_p, _handle(handle)
    return (getattr(_abi, _abi_name(c)) if c.endswith("_fn") else ctypes.c_void_p), _as_it_is


_WITH_LENGTH = {"const char *": _text, "const uint32_t *": _ids, "float *": _floats}
_RESULTS = {"void": None, "bool": ctypes.c_bool, "float": ctypes.c_float, "double": ctypes.c_double}


class Function:
    """A function of the library, and how its arguments are converted: a pointer and its length are one argument of `converters`."""

    def __init__(self, name: str, result: str, parameters: Sequence[tuple[str, str]]) -> None:
        self.pointer: Any = getattr(_library, name)
        self.fails = bool(parameters) and parameters[-1][0] == "mc_error **"
        self.converters: list[tuple[str, Converter]] = []
        types: list[Any] = []
        before = ("", "")
        for c, parameter in parameters[: len(parameters) - self.fails]:
            kind, convert = _converter(c)
            if c == "size_t" and parameter == f"{before[1]}_len" and before[0] in _WITH_LENGTH:
                self.converters[-1] = (before[1], _WITH_LENGTH[before[0]])
            else:
                self.converters.append((name.partition("_set_")[2] if parameter == "value" else parameter, convert))
            types.append(kind)
            before = (c, parameter)
        self.pointer.argtypes = types + [ctypes.c_void_p] * self.fails
        if result.endswith("*"):
            self.pointer.restype = ctypes.c_void_p
        else:
            self.pointer.restype = _RESULTS[result] if result in _RESULTS else _converter(result)[0]

    def __call__(self, *arguments: Any) -> Any:
        held = [value._reference for value in arguments if isinstance(value, Handle)]  # until the call has returned
        values: list[Any] = []
        for (label, convert), value in zip(self.converters, arguments):
            values.extend(convert(label, value))
        values.extend(arguments[len(self.converters) :])
        result = self.pointer(*values)
        del held
        return result


_functions: dict[str, Function] = {name: Function(name, *declared) for name, declared in _abi.FUNCTIONS.items()}


def get(name: str, *arguments: Any) -> Any:
    """Calls a function that cannot fail."""
    return _functions[name](*arguments)


def check(name: str, *arguments: Any) -> Status:
    """Calls a function that returns a status, whose last parameter, the error, is not among the arguments. Gives OK, DONE or
    CANCELLED, and raises every other one."""
    address = ctypes.c_void_p()
    status = _functions[name](*arguments, ctypes.byref(address))
    if status < 16:
        return Status(status)
    if address.value is None:
        raise error_of(status, string(get("mc_status_name", status)), "")
    error = Reference("mc_error", address.value)
    raise error_of(status, string(get("mc_error_message", error)), string(get("mc_error_details", error)))


def make(kind: str, name: str, *arguments: Any) -> tuple[Status, Optional[Reference]]:
    """Calls a function whose last parameters are a handle of this kind that it makes, and the error."""
    address = ctypes.c_void_p()
    try:
        status = check(name, *arguments, ctypes.byref(address))
    finally:
        reference = Reference(kind, address.value) if address.value else None
    return status, reference


def made(kind: str, name: str, *arguments: Any) -> Reference:
    """As `make()` of a function that gives a handle whenever it does not fail."""
    reference = make(kind, name, *arguments)[1]
    assert reference is not None, name
    return reference


def new(kind: str) -> Reference:
    """An object that is made without arguments, which cannot fail."""
    return Reference(kind, get(f"{kind}_new"))


def string(address: int) -> str:
    """Text that ends with a NUL."""
    return ctypes.string_at(address).decode("utf-8")


def text(name: str, handle: Handle) -> str:
    """What a getter says, whose text lives as long as the handle."""
    held = handle._reference
    return string(get(name, held or handle))


def string_of(reference: Reference) -> str:
    """The text of an mc_string."""
    data = get("mc_string_data", reference)
    return ctypes.string_at(data, get("mc_string_len", reference)).decode("utf-8")


def ids_of(reference: Reference) -> list[int]:
    """The ids of an mc_tokens."""
    return list((ctypes.c_uint32 * get("mc_tokens_len", reference)).from_address(get("mc_tokens_data", reference)))


def known(options: Mapping[str, Any], of: Any) -> dict[str, Any]:
    """A copy of options that all are keys of this TypedDict."""
    for name in options:
        if name not in of.__optional_keys__:
            keys = sorted(of.__optional_keys__)
            near = difflib.get_close_matches(name, keys, 1) or [key for key in keys if key.startswith(name)]
            meant = f"; is {near[0]!r} meant?" if near else f"; it has {', '.join(keys)}"
            raise TypeError(f"unknown option {name!r} of {of.__name__}{meant}")
    return dict(options)


class Options(Handle):
    """A builder of the library, filled by the setter that each option names; None leaves one as it is."""

    def __init__(self, kind: str, options: Mapping[str, object], together: Mapping[str, Sequence[Any]] = {}) -> None:
        """`together` has the setters of several values, and what to call them with; a None in front is left out."""
        self._kind = kind
        self._reference = new(kind)
        self._json = options.get("json")
        for name, value in options.items():
            if value is not None and name != "json":
                get(f"{kind}_set_{name}", self, value)
        for name, values in together.items():
            if values[0] is not None:
                get(f"{kind}_set_{name}", self, *values)

    def add(self, name: str, *values: Any) -> None:
        get(f"{self._kind}_add_{name}", self, *values)

    def finished(self) -> Options:
        """These, with what is given as JSON: that comes last, and so counts most."""
        if self._json is not None:
            get(f"{self._kind}_set_json", self, self._json)
        return self


if get("mc_abi_version") != _abi.ABI_VERSION:
    raise ImportError(f"{NAME}: expected binary interface {_abi.ABI_VERSION}, found {get('mc_abi_version')}")
