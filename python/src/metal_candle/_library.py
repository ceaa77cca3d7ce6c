"""The library itself: version, features, memory, log; and devices."""

from __future__ import annotations

import atexit
import ctypes
from typing import Any, Callable, NamedTuple, Optional

from . import _abi
from ._abi import DeviceKind, LogLevel
from ._native import Handle, Reference, check, get, made, string, text


def version() -> str:
    """The version of the library, such as "0.1.0"."""
    return string(get("mc_version_string"))


def has_feature(name: str) -> bool:
    """Whether the library was built with "metal", "cuda", "hub" or "fault-injection"; False for another name."""
    return bool(get("mc_has_feature", name))


def live_objects() -> int:
    """How many objects of the library exist in the process; 0 when everything was closed or collected. For leak tests."""
    return int(get("mc_live_objects"))


def set_threads(count: int) -> None:
    """Computes with so many threads of the processor from now on, with the same results: 1 to 1024, or 0 for as many as there are
    processors. Raises `InvalidArgumentError`, and `OutOfMemoryError` if the system gives no so many: those there were stay in use."""
    check("mc_set_threads", count)


def threads() -> int:
    """How many threads of the processor compute; 0 if the system gives none."""
    return int(get("mc_threads"))


def trim_memory(keep_bytes: int = 0) -> None:
    """Gives memory that the library keeps for reuse back to the system, but for `keep_bytes`.

    Raises `DeviceError`.
    """
    check("mc_trim_memory", keep_bytes)


_log: list[Any] = []  # the callback of C, as long as the library has it


def set_log(callback: Optional[Callable[[LogLevel, str, str], object]], max_level: LogLevel = LogLevel.INFO) -> None:
    """Sets, replaces or removes (None) the process's log callback; without one nothing is logged.

    It gets the level, the part of the library ("metal_candle::load") and the message, on whatever thread logs, on several at a time.
    An exception in it goes to `sys.unraisablehook`. Into Python's logging:

        set_log(lambda level, target, message: logging.getLogger(target).log(LEVELS[level], message))

    Raises `BusyError` in a log callback.
    """
    pointer = None
    if callback is not None:
        function = callback

        def trampoline(_: object, level: int, target: int, message: int, length: int) -> None:
            function(LogLevel(level), string(target), ctypes.string_at(message, length).decode("utf-8"))

        pointer = _abi.LogFn(trampoline)
    check("mc_log_set", pointer or _abi.LogFn(), None, _abi.DestroyFn(), max_level)
    _log[:] = [pointer]  # the old one is not in use any more: mc_log_set has waited for it


@atexit.register
def _silence() -> None:
    """No thread may log into an interpreter that is gone."""
    if _log:
        set_log(None)


class DeviceMemory(NamedTuple):
    """How much of a device's memory is in use."""

    used_bytes: int
    """By this process; on CUDA by all."""
    total_bytes: int
    """What there is; on Metal what the system recommends to use at most."""


class Device(Handle):
    """Where the arithmetic runs: the CPU, an Apple GPU through Metal, or an NVIDIA GPU through CUDA.

    A model loads onto the best device by itself. Make a device to choose one (`Model.load(path, device=Device(DeviceKind.CPU))`), or to
    stop work while an app is in the background.
    """

    _kind = "mc_device"

    def __init__(self, kind: DeviceKind = DeviceKind.AUTO, index: int = 0) -> None:
        """Opens the device `index`, from 0 to `count(kind) - 1`. Raises `NotFoundError` if this build or machine has no such device."""
        self._reference: Optional[Reference] = made("mc_device", "mc_device_new", kind, index)

    @staticmethod
    def count(kind: DeviceKind) -> int:
        """How many devices of a kind this process can open; AUTO and CPU count one."""
        return int(get("mc_device_count", kind))

    @property
    def kind(self) -> DeviceKind:
        """The kind that was opened; never AUTO."""
        return DeviceKind(get("mc_device_kind_of", self))

    @property
    def name(self) -> str:
        """What the system calls the device."""
        return text("mc_device_name", self)

    def memory(self) -> DeviceMemory:
        """How much of the device's memory is in use. Raises `DeviceError`; `UnsupportedError` where the system does not tell."""
        used, total = ctypes.c_uint64(), ctypes.c_uint64()
        check("mc_device_memory", self, ctypes.byref(used), ctypes.byref(total))
        return DeviceMemory(used.value, total.value)

    def synchronize(self) -> None:
        """Waits until the device has finished what it was given. Raises `DeviceError` if some of it failed."""
        check("mc_device_synchronize", self)

    def suspend(self, timeout_ms: int = 0) -> None:
        """Closes the device for new work, and waits up to `timeout_ms` milliseconds for the work that it was given.

        Calls that run or begin raise `SuspendedError`; after `resume()` a stream goes on where it was, and other calls can be made again.
        Raises `BusyError` if the device is not idle after the timeout (it is suspended all the same), `DeviceError`.
        """
        check("mc_device_suspend", self, timeout_ms)

    def resume(self) -> None:
        """Opens the device again after `suspend()`."""
        get("mc_device_resume", self)
