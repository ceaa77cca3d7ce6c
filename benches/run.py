"""Speed and memory of metal-candle beside transformers and llama.cpp, in one run: `python3 benches/run.py --help`."""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys

import numpy as np

from make_model import CACHE, ROOT, SHAPES, make_model
from peers import PEERS, Missing, Worker

PREFILL, PROMPT, STEPS, CONTEXT = 512, 32, 64, 640  # tokens
CODER_TOKENS, CODER_ROUNDS = 64, 300  # short and many: neighbours in time are compared
LOGITS_BOUND = 1e-4  # logits have a standard deviation near 1; other orders of summation move them by about 1e-5
MEMORY_BOUND = 1.3  # times the weights, plus the KV cache
PARTS = ("prefill", "decode", "callback", "memory")


def main():
    args = arguments()
    if hasattr(os, "sched_setaffinity"):  # who asks for the number of processors gets --threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    bench = Bench(args)
    if {"prefill", "decode"} & set(args.only):
        before = bench.machine()
        with Workers(bench, bench.directory) as workers:
            bench.result["versions"] = {peer: worker.version for peer, worker in workers.items()}
            print(f"{'versions':13} {bench.result['versions']}", flush=True)
            for part in PARTS[:2]:
                if part in args.only:
                    getattr(bench, part)(workers)
        bench.limits(before, bench.machine())
        bench.print_speed()
    for part in PARTS[2:]:
        if part in args.only:
            getattr(bench, part)()
    path = CACHE / "result.json"
    path.write_text(json.dumps(bench.result, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
    for failure in bench.result["failures"]:
        print(f"FAILED {failure}")
    sys.exit(bool(bench.result["failures"]))


def arguments():
    suffix = "dylib" if sys.platform == "darwin" else "so"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lib", default=ROOT / f"target/release/libmetal_candle.{suffix}", help="%(default)s")
    parser.add_argument("--only", type=lambda text: text.split(","), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=",".join(PEERS))
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="%(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each peer (%(default)s)")
    args = parser.parse_args()
    for choice, choices in [(args.only, PARTS), (args.peers, PEERS)]:
        if not set(choice) <= set(choices):
            parser.error(f"expected some of {','.join(choices)}, found {','.join(choice)}")
    return args


class Bench:
    """One run: the peers that are there, the measurements so far, and what was wrong."""

    def __init__(self, args):
        self.args, self.shape, self.skipped = args, SHAPES[args.shape], set()
        self.directory = make_model(args.shape)
        self.result = {
            "model": f"{args.shape}: {self.shape}",
            "dtype": "F32",
            "weight_bytes": self.shape.weight_bytes(),
            "tokens": f"prefill {PREFILL}; decode {STEPS} after {PROMPT}; context {CONTEXT}",
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

    def worker(self, peer, directory, *options):
        """The peer in a new process; None if it is missing, said once."""
        if peer in self.skipped or peer not in self.args.peers:
            return None
        try:
            if peer == "metal-candle":
                if not os.path.exists(self.args.lib):
                    raise Missing(f"no {self.args.lib}: build it with cargo build --release")
                options = (self.args.lib, host(), *options)
            return Worker(peer, directory, self.args.threads, CONTEXT, *options)
        except Missing as missing:
            self.skipped.add(peer)
            print(f"skipped {peer}: {missing}")
            return None

    def fail(self, text):
        self.result["failures"].append(text)

    def ids(self, count):
        return random.Random(count).choices(range(self.shape.vocab_size), k=count)

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

    def prefill(self, workers):
        ids = self.ids(PREFILL)
        runs = {peer: (worker, "prefill", ids) for peer, worker in workers.items()}
        times, logits = alternate(runs, self.args.rounds)
        self.result["prefill"] = {label: t.rate(PREFILL) for label, t in times.items()}
        reference, expected = first(logits)
        for label, rounds in logits.items():
            difference = max(float(np.abs(found - expected).max()) for found in rounds)
            self.result["prefill"][label]["logits_max_difference"] = difference
            if not difference <= LOGITS_BOUND:
                self.fail(f"prefill: logits of {label} differ from {reference}'s by {difference:.2g}")

    def decode(self, workers):
        prompt = self.ids(PROMPT)
        runs = {
            peer + method.removeprefix("decode").replace("_", " "): (worker, method, prompt, STEPS)
            for peer, worker in workers.items()
            for method in PEERS[peer].decoders
        }
        times, ids = alternate(runs, self.args.rounds)
        self.result["decode"] = {label: t.rate(STEPS) for label, t in times.items()}
        self.check_ids("decode", ids)

    def check_ids(self, part, ids):
        reference, expected = first(ids)
        for label, rounds in ids.items():
            wrong = next((found for found in rounds if found != expected), None)
            if wrong is not None:
                at = next((i for i, (a, b) in enumerate(zip(wrong, expected)) if a != b), min(len(wrong), len(expected)))
                self.fail(f"{part}: the ids of {label} differ from {reference}'s from token {at} on")

    def print_speed(self):
        for part, unit, limit, name, scale in [
            ("prefill", "GFLOP/s", self.fma_gflops, "FMA peak", self.shape.prefill_flops(PREFILL) / PREFILL / 1e9),
            ("decode", "GB/s", self.read_gbs, "read bandwidth", self.shape.weight_bytes() / 1e9),
        ]:
            rows = self.result.get(part)
            if not rows:
                continue
            print(f"\n{part:36}  tok/s (min to max){unit:>16}  of {name}")
            for label, row in rows.items():
                row[unit] = row["median"] * scale
                row["share"] = row[unit] / limit
                spread = f"{row['median']:8.2f} ({row['min']:.2f} to {row['max']:.2f})"
                difference = row.get("logits_max_difference")
                note = "" if difference is None else f"   logits within {difference:.1e}"
                print(f"  {label + ' ' + row['setting']:34}{spread:32}{row[unit]:8.1f}{row['share']:9.0%}{note}")
            print_ratios(part, {label: row["median"] for label, row in rows.items()})

    def callback(self):
        """The same generation with a callback in C, without one, and pulled; the differences are a callback's cost."""
        directory, prompt = ROOT / "models" / "tiny-coder", random.Random(PROMPT).choices(range(4000), k=PROMPT)
        with Workers(self, directory, "stored", peers=["metal-candle"]) as workers:
            runs = {
                way: (worker, "generate", prompt, CODER_TOKENS, way)
                for worker in workers.values()
                for way in ("push", "silent", "pull")
            }
            if not runs:
                return
            times, ids = alternate(runs, CODER_ROUNDS)
        self.check_ids("callback", ids)
        micros = {way: 1e6 * np.array(t.all) / CODER_TOKENS for way, t in times.items()}
        print(f"\ncallback: tiny-coder, {CODER_TOKENS} tokens, {CODER_ROUNDS} rounds, µs a token")
        for way in micros:
            print(f"  {way:34}{Times(micros[way].tolist())}")
        self.result["callback_us"] = {}
        for other in ("silent", "pull"):
            differences = micros["push"] - micros[other]
            median = float(np.median(differences))
            error = 1.86 * float(np.median(np.abs(differences - median))) / CODER_ROUNDS**0.5  # of a median
            self.result["callback_us"][f"push - {other}"] = {"median": median, "standard_error": error}
            print(f"  {'push - ' + other:34}{median:+8.2f} ± {error:.2f}")

    def memory(self):
        """Each peer alone in a new process: load, a prefill, decode after it."""
        ids = self.ids(PREFILL)
        weights, kv = self.shape.weight_bytes(), self.shape.kv_bytes(PREFILL + STEPS)
        self.result["memory"] = {}
        print(f"\npeak memory{'':25}  bytes   / (weights + KV)   of it before loading")
        for peer in PEERS:
            if not (worker := self.worker(peer, self.directory)):
                continue
            with worker:
                worker("prefill", ids)
                worker(PEERS[peer].decoders[0], ids, STEPS)
                peak = worker("peak_bytes")
            row = {"peak_bytes": peak, "ratio": peak / (weights + kv), "bytes_before_load": worker.bytes_before}
            self.result["memory"][peer] = row
            print(f"  {peer:26}{peak:15,}{row['ratio']:15.3f}{row['bytes_before_load']:24,}")
            bound = MEMORY_BOUND * weights + kv
            # The tiny shapes are smaller than the interpreter; they test the benchmarks only.
            if peer == "metal-candle" and self.args.shape != "tiny" and peak >= bound:
                self.fail(f"memory: {peer} takes {peak} bytes, expected less than {bound:.0f}")
        print_ratios("memory", {peer: row["peak_bytes"] for peer, row in self.result["memory"].items()})


class Workers(dict):
    """The peers that are there, loaded; closed at the end."""

    def __init__(self, bench, directory, *options, peers=tuple(PEERS)):
        workers = {peer: bench.worker(peer, directory, *options) for peer in peers}
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

    def rate(self, tokens):
        """As tokens per second."""
        return Times([tokens / seconds for seconds in self.all], self.setting).__dict__


def alternate(runs, rounds):
    """Runs label: (worker, method, arguments) round by round, after a warm-up of each. Returns the times and the results,
    both by label."""
    settings = {label: worker("warm_up", *call) for label, (worker, *call) in runs.items()}
    seconds, results, labels = {label: [] for label in runs}, {label: [] for label in runs}, list(runs)
    for _ in range(rounds):
        for label in labels:
            worker, *call = runs[label]
            time, result = worker(*call)
            seconds[label].append(time)
            results[label].append(result)
        labels = labels[1:] + labels[:1]  # nobody always follows the same one
    return {label: Times(seconds[label], settings[label]) for label in runs}, results


def first(results):
    """What the others are held against: transformers' first result, else the first there is."""
    label = next((label for label in results if label.startswith("transformers")), next(iter(results), None))
    return label, results[label][0] if results else None


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


if __name__ == "__main__":
    main()
