"""What the benchmarks share: the command line, the workers, rounds, the machine's limits, and how results are written."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

import numpy as np

from make_model import CACHE, ROOT
from worker import Missing, Worker


def arguments(description, parts, peers, **more):
    """The command line: the options of every benchmark, and `more`: name: (default, choices or None)."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    several = {"only": parts, "peers": tuple(peers)}
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--lib", default=ROOT / f"target/release/libmetal_candle.{suffix}", help="%(default)s")
    for name, choices in several.items():
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=choices, help=",".join(choices))
    for name, (default, choices) in more.items():
        parser.add_argument(f"--{name}", type=type(default), choices=choices, default=default, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each peer (%(default)s)")
    args = parser.parse_args()
    for name, choices in several.items():
        if not set(found := getattr(args, name)) <= set(choices):
            parser.error(f"expected some of {','.join(choices)}, found {','.join(found)}")
    return args


class Bench:
    """One run: the peers that are there, the measurements so far, and what was wrong."""

    def __init__(self, args, peers, facts):
        """`peers`: name: class. `facts`: what is measured, for the reader."""
        self.args, self.peers, self.skipped = args, peers, set()
        if hasattr(os, "sched_setaffinity"):  # who asks for the number of processors gets --threads
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        os.environ["RAYON_NUM_THREADS"] = str(args.threads)
        self.result = {
            **facts,
            "threads": args.threads,
            "rounds": args.rounds,
            "device": device(),
            "load": f"{os.getloadavg()[0]:.2f} before the run: numbers count only near 0",
            "commit": output("git", "-C", ROOT, "describe", "--always", "--dirty") or "unknown",
            "python": f"{platform.python_version()}, numpy {np.__version__}",
            "failures": [],
        }
        for name, value in list(self.result.items())[:-1]:
            print(f"{name:13} {value}")

    def worker(self, peer, *arguments):
        """The peer in a new process; None if it is missing, said once."""
        if peer in self.skipped or peer not in self.args.peers:
            return None
        try:
            if "metal-candle" in peer:
                if not os.path.exists(self.args.lib):
                    raise Missing(f"no {self.args.lib}: build it with cargo build --release")
                arguments = (self.args.lib, host(), *arguments)
            return Worker(self.peers[peer], *arguments)
        except Missing as missing:
            self.skipped.add(peer)
            print(f"skipped {peer}: {missing}")
            return None

    def fail(self, text):
        self.result["failures"].append(text)

    def versions(self, workers):
        self.result["versions"] = {peer: worker.version for peer, worker in workers.items()}
        print(f"{'versions':13} {self.result['versions']}", flush=True)

    def machine(self):
        """What bandwidth.c measures."""
        program = compiled("bandwidth.c", "bandwidth", "-pthread")
        return json.loads(subprocess.check_output([program, str(self.args.threads)]))

    def limits(self, before, after):
        """Medians over the passes before and after the rest, so that a slow moment counts for both."""
        passes = {name: before[name] + after[name] for name in before if name != "simd"}
        self.result["limits"] = {name: Times(numbers).__dict__ for name, numbers in passes.items()}
        self.fma_gflops = statistics.median(passes["fma_gflops"])
        self.read_gbs = max(statistics.median(v) for name, v in passes.items() if name.startswith("read"))
        print(f"\nlimits of this machine, {self.args.threads} threads, {before['simd']}")
        for name, numbers in passes.items():
            print(f"  {name:16}{Times(numbers)}")

    def finish(self, name):
        """Writes the result and says what failed; the exit status is 1 if something did."""
        path = CACHE / name
        path.write_text(json.dumps(self.result, indent=1) + "\n")
        print(f"\nwritten to {path.relative_to(ROOT)}")
        for failure in self.result["failures"]:
            print(f"FAILED {failure}")
        sys.exit(bool(self.result["failures"]))


class Workers(dict):
    """The peers that are there, loaded; closed at the end."""

    def __init__(self, bench, peers, *arguments):
        workers = {peer: bench.worker(peer, *arguments) for peer in peers}
        super().__init__({peer: worker for peer, worker in workers.items() if worker})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self.values():
            worker.__exit__(*error)


class Times:
    """One number a round, and how far they spread."""

    def __init__(self, numbers, setting=""):
        self.all, self.setting = numbers, setting
        self.median, self.min, self.max = statistics.median(numbers), min(numbers), max(numbers)

    def __str__(self):
        return f"{self.median:8.2f} ({self.min:.2f} to {self.max:.2f})"

    def rate(self, count):
        """As things per second."""
        return Times([count / seconds for seconds in self.all], self.setting).__dict__


def alternate(runs, rounds, warm_up=None):
    """Runs label: (worker, method, arguments) round by round, after a warm-up of each, with the call `warm_up` if that is
    shorter. Returns the times and the results, both by label."""
    settings = {label: worker("warm_up", *(warm_up or call)) for label, (worker, *call) in runs.items()}
    seconds, results, labels = {label: [] for label in runs}, {label: [] for label in runs}, list(runs)
    for _ in range(rounds):
        for label in labels:
            worker, *call = runs[label]
            time, result = worker(*call)
            seconds[label].append(time)
            results[label].append(result)
        labels = labels[1:] + labels[:1]  # nobody always follows the same one
    return {label: Times(seconds[label], settings[label]) for label in runs}, results


def first(results, reference):
    """What the others are held against: the reference's first result, else the first there is."""
    label = next((label for label in results if label.startswith(reference)), next(iter(results), None))
    return label, results[label][0] if results else None


def print_rates(part, rows, rate, unit, scale, limit, name):
    """One line a row: the rate, what it is in `unit` (`scale` of them each), and its share of the limit `name`."""
    print(f"\n{part:36}  {rate + ' (min to max)':32}{unit:>7}  of {name}")
    for label, row in rows.items():
        row[unit] = row["median"] * scale
        row["share"] = row[unit] / limit
        spread = f"{row['median']:8.2f} ({row['min']:.2f} to {row['max']:.2f})"
        note = f"   {row['note']}" if "note" in row else ""
        print(f"  {label + ' ' + row['setting']:34}{spread:32}{row[unit]:8.1f}{row['share']:9.0%}{note}")
    print_ratios(part, {label: row["median"] for label, row in rows.items()})


def print_ratios(part, values):
    ours = {label: value for label, value in values.items() if label.startswith("metal-candle")}
    for label, value in ours.items():
        for other in (other for other in values if other not in ours):
            print(f"  {part}: {label} / {other} = {value / values[other]:.2f}")


def host():
    """host.c, compiled to a shared library."""
    return compiled("host.c", "host.so", "-shared", "-fPIC", f"-I{ROOT / 'include'}")


def compiled(source, name, *flags):
    """The compiled file; two spellings of "for this processor", since not every compiler knows both."""
    path, compiler = CACHE / name, os.environ.get("CC", "cc")
    path.parent.mkdir(parents=True, exist_ok=True)
    for native in ("-march=native", "-mcpu=native"):
        command = [compiler, "-O3", native, *flags, ROOT / "benches" / source, "-o", path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return path
    raise SystemExit(f"{source} does not compile:\n{done.stderr}")


def device():
    if sys.platform == "darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string")
    lines = open("/proc/cpuinfo").read().splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
