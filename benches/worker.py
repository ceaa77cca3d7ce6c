"""A library that is compared, in a process of its own that imports only what it needs.

    with Worker(peers.Transformers, directory, threads, context) as worker:
        seconds, logits = worker("prefill", ids)

A measurement is a method that returns (seconds, result); the result is read back before the clock stops.
"""

import importlib
import multiprocessing.connection
import subprocess
import sys
import traceback


class Peer:
    """What it adds: `version`, `bytes_before` (held before the model was loaded) and the measurements."""

    def settings(self, method):
        """What may be faster on one machine and slower on another; the warm-up decides."""
        return ("",)

    def use(self, setting):
        pass

    def warm_up(self, method, *arguments):
        """Runs each setting twice; keeps the one that is faster the second time, and names it."""
        seconds = {}
        for setting in self.settings(method):
            self.use(setting)
            getattr(self, method)(*arguments)
            seconds[setting], _ = getattr(self, method)(*arguments)
        best = min(seconds, key=seconds.get)
        self.use(best)
        return best

    def peak_bytes(self):
        return peak_bytes()

    def close(self):
        pass


def peak_bytes(process="self"):
    """The most memory that a process has held, mapped files that it has read included."""
    if sys.platform == "linux":
        # Not getrusage: its number starts at that of the parent process.
        with open(f"/proc/{process}/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Missing(Exception):
    """A peer that this machine lacks."""


class Worker:
    """`peer`: the class; `worker("prefill", ids)` is `peer.prefill(ids)` in the other process."""

    def __init__(self, peer, *arguments):
        self.name = peer.__name__
        # Not multiprocessing.Process: that imports the whole script again, and what it imports.
        self.pipe, end = multiprocessing.connection.Pipe()
        command = [sys.executable, __file__, str(end.fileno()), peer.__module__, peer.__name__]
        self.process = subprocess.Popen(command, pass_fds=[end.fileno()])
        end.close()
        self.pipe.send(arguments)
        self.version, self.bytes_before = self._receive()

    def __call__(self, method, *arguments):
        self.pipe.send((method, arguments))
        return self._receive()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self("close")
        self.pipe.close()
        self.process.wait()

    def _receive(self):
        try:
            outcome = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: the process ended with {self.process.wait()}") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def serve(pipe, module, name):
    try:
        peer = getattr(importlib.import_module(module), name)(*pipe.recv())
        pipe.send((peer.version, peer.bytes_before))
    except (ImportError, FileNotFoundError) as error:
        return pipe.send(Missing(str(error)))
    except Exception:
        return pipe.send(RuntimeError(f"{name}: {traceback.format_exc()}"))
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(peer, method)(*arguments))
        except Exception:
            pipe.send(RuntimeError(f"{name}: {traceback.format_exc()}"))


if __name__ == "__main__":
    import worker  # by its name: what this copy pickles would be of `__main__`, which is another file in the parent

    worker.serve(multiprocessing.connection.Connection(int(sys.argv[1])), *sys.argv[2:])
