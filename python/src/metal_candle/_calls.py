"""Long calls: how they are cancelled, where callbacks run, and how asyncio waits for them.

Every long call gets a flag of its own, which is triggered by the `Cancel` that it was given, by Ctrl-C, and by the cancellation of the
task that awaits it. What the caller has written, such as a progress callback, runs on the caller's thread, whatever thread computes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Callable, Generic, Optional, TypeVar

from . import _abi
from ._native import Handle, Reference, check, get, new
from .errors import Cancelled

T = TypeVar("T")
Run = Callable[[Callable[[], None]], None]

def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=256, thread_name_prefix="metal_candle")


_pool = _new_pool()
_local = threading.local()


def _after_fork() -> None:
    """The threads of the pool are the parent's: a child would wait for them for ever. With new ones the library says that it does not
    work there."""
    global _pool
    _pool = _new_pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Cancel(Handle):
    """A flag that stops the calls it was given to, from any thread and from a signal handler. They end within a token, a piece of a
    file, a piece of a prompt, a group of texts or a layer of a training pass, and what they worked on stays usable."""

    _kind = "mc_cancel"

    def __init__(self) -> None:
        self._reference: Optional[Reference] = new("mc_cancel")
        self._lock = threading.RLock()  # a signal handler may come into the thread that holds it
        self._flags: set[Cancel] = set()

    def trigger(self) -> None:
        """Stops every call that was given this flag, now and until `reset()`."""
        with self._lock:
            get("mc_cancel_trigger", self)
            for flag in list(self._flags):
                flag.trigger()

    def reset(self) -> None:
        """Lets new calls with this flag run again."""
        get("mc_cancel_reset", self)

    @property
    def is_triggered(self) -> bool:
        """Whether the flag is triggered."""
        return bool(get("mc_cancel_is_triggered", self))


class linked:
    """While a call runs: its own flag follows the caller's."""

    def __init__(self, flag: Cancel, cancel: Optional[Cancel]) -> None:
        self.flag, self.cancel = flag, cancel

    def __enter__(self) -> None:
        if self.cancel is not None:
            with self.cancel._lock:
                self.cancel._flags.add(self.flag)
                if self.cancel.is_triggered:
                    self.flag.trigger()

    def __exit__(self, *_: object) -> None:
        if self.cancel is not None:
            with self.cancel._lock:
                self.cancel._flags.discard(self.flag)


class _Errand(Generic[T]):
    """Something that another thread runs, while this one waits for what comes of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.answer: SimpleQueue[Any] = SimpleQueue()

    def run(self) -> None:
        # No frame keeps an error: it keeps the frames that it came through, and all of that would wait for the garbage collector.
        try:
            self.answer.put((self.function(), None))
        except BaseException as error:  # raised where it is waited for
            self.answer.put((None, error))

    def wait(self) -> T:
        value, error = self.answer.get()
        if error is not None:
            try:
                raise error
            finally:
                del error
        return value  # type: ignore[no-any-return]


def _elsewhere(job: list[Callable[[], T]], run: Run) -> list[Any]:
    """On a thread of the pool: a call, whose callbacks `run` takes to the thread that waits for it; returns the value and the error. The
    pool lets go of what it was given and what it got a moment after others have it: so it is given, and gets, lists that are emptied."""
    _local.run = run
    try:
        return [job.pop()(), None]
    except BaseException as error:  # raised where it is waited for
        return [None, error]
    finally:
        _local.run = None


def _outcome(found: list[Any], interruption: Optional[BaseException]) -> Any:
    """What `_elsewhere` found, or the interruption."""
    value, error = found
    found.clear()
    error = interruption or error
    if error is None:
        return value
    try:
        raise error
    finally:
        del value, error, interruption  # as in _Errand


def here(function: Callable[[], T]) -> T:
    """Runs what the caller of a long call has written, on its thread."""
    run: Optional[Run] = getattr(_local, "run", None)
    if run is None:
        return function()
    errand = _Errand(function)
    run(errand.run)
    return errand.wait()


def run(call: Callable[[Cancel], T], cancel: Optional[Cancel] = None, flag: Optional[Cancel] = None) -> T:
    """Runs a long call, with its own flag. On the main thread, where Python's signal handlers run, another thread computes: so Ctrl-C is
    heard at once; the call is stopped, and KeyboardInterrupt raised when it has returned."""
    flag = flag or Cancel()
    with linked(flag, cancel):
        if threading.current_thread() is not threading.main_thread():
            return call(flag)
        return _interruptible(lambda: call(flag), flag)


def _interruptible(call: Callable[[], T], flag: Cancel) -> T:
    errands: deque[Callable[[], None]] = deque()
    wake: SimpleQueue[None] = SimpleQueue()  # of C: an interruption cannot leave it half changed

    def send(errand: Callable[[], None]) -> None:
        errands.append(errand)
        wake.put(None)

    try:
        future = _pool.submit(_elsewhere, [call], send)
    except RuntimeError:  # no thread starts any more: the interpreter ends
        return call()
    del call
    future.add_done_callback(lambda _: wake.put(None))
    interruption: Optional[BaseException] = None
    while errands or not future.done():
        try:
            if errands:
                errands[0]()
                errands.popleft()
            else:
                wake.get()
        except BaseException as error:  # of a signal handler, KeyboardInterrupt as a rule
            interruption = interruption or error
            flag.trigger()
    try:
        return _outcome(future.result(), interruption)  # type: ignore[no-any-return]
    finally:
        del future, interruption


async def run_async(call: Callable[[Cancel], T], cancel: Optional[Cancel] = None, flag: Optional[Cancel] = None) -> T:
    """Runs a long call on a thread of the pool; its callbacks run in the event loop. The cancellation of the task stops the call, and is
    raised when it has returned."""
    flag = flag or Cancel()
    loop = asyncio.get_running_loop()

    def send(errand: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(errand)

    with linked(flag, cancel):
        future = loop.run_in_executor(_pool, _elsewhere, [lambda: call(flag)], send)
        interruption: Optional[BaseException] = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                interruption = error
                flag.trigger()
    try:
        return _outcome(future.result(), interruption)  # type: ignore[no-any-return]
    finally:
        del future, interruption


class Callback:
    """A function of Python as a callback of C: an exception in it, and the value False, stop the call; `finish()` raises the
    exception behind it. Of a call that knows no flag itself, the callback stops it by one."""

    def __init__(self, prototype: Any, event: Any, function: Optional[Callable[[Any], object]], flag: Optional[Cancel] = None) -> None:
        self._errors: list[BaseException] = []
        self._stopped: list[bool] = []
        errors, stopped = self._errors, self._stopped  # and not self, which would be a cycle

        def trampoline(_: object, address: Any) -> int:
            try:
                if function is not None:
                    copy = event.of(address.contents)
                    if here(lambda: function(copy)) is False:
                        return _abi.STOP
                if flag is None or not flag.is_triggered:
                    return _abi.CONTINUE
                stopped.append(True)
            except BaseException as error:
                errors.append(error)
            return _abi.STOP

        self.pointer = prototype(trampoline)

    def finish(self, status: _abi.Status, what: str) -> None:
        """Behind the call: raises what a callback raised, or that the call was cancelled."""
        if self._errors:
            try:
                raise self._errors[0]
            finally:
                self._errors.clear()
        if status == _abi.Status.CANCELLED or self._stopped:
            raise Cancelled(f"{what} was cancelled")


Progress = Callable[[_abi.ProgressEvent], object]
"""Hears how far a long call is. False stops the call, and an exception too, which is then raised by it."""


def progress_callback(function: Optional[Progress], flag: Optional[Cancel] = None) -> Callback:
    return Callback(_abi.ProgressFn, _abi.ProgressEvent, function, flag)


def finished(what: str, name: str, *arguments: Any) -> None:
    """Calls a function that ends with a status, and raises `Cancelled` if it was stopped."""
    if check(name, *arguments) == _abi.Status.CANCELLED:
        raise Cancelled(f"{what} was cancelled")
