"""Speed and memory of generation beside transformers and llama.cpp, in one run: `python3 benches/run.py --help`."""

import random

import numpy as np

from bench import Bench, Times, Workers, alternate, arguments, first, print_rates, print_ratios
from make_model import ROOT, SHAPES, make_model
from peers import PEERS

PREFILL, PROMPT, STEPS, CONTEXT = 512, 32, 64, 640  # tokens
CODER_TOKENS, CODER_ROUNDS = 64, 300  # short and many: neighbours in time are compared
LOGITS_BOUND = 1e-4  # logits have a standard deviation near 1; other orders of summation move them by about 1e-5
MEMORY_BOUND = 1.3  # times the weights, plus the KV cache
PARTS = ("prefill", "decode", "callback", "memory")


def main():
    bench = Generation(arguments(__doc__, PARTS, PEERS, shape=("qwen2.5-0.5b", SHAPES)))
    if {"prefill", "decode"} & set(bench.args.only):
        before = bench.machine()
        with Workers(bench, PEERS, *bench.model) as workers:
            bench.versions(workers)
            for part in PARTS[:2]:
                if part in bench.args.only:
                    getattr(bench, part)(workers)
        bench.limits(before, bench.machine())
        bench.print_speed()
    for part in PARTS[2:]:
        if part in bench.args.only:
            getattr(bench, part)()
    bench.finish("result.json")


class Generation(Bench):
    def __init__(self, args):
        self.shape = SHAPES[args.shape]
        self.model = (make_model(args.shape), args.threads, CONTEXT)
        facts = {
            "model": f"{args.shape}: {self.shape}",
            "dtype": "F32",
            "weight_bytes": self.shape.weight_bytes(),
            "tokens": f"prefill {PREFILL}; decode {STEPS} after {PROMPT}; context {CONTEXT}",
        }
        super().__init__(args, PEERS, facts)

    def ids(self, count):
        return random.Random(count).choices(range(self.shape.vocab_size), k=count)

    def prefill(self, workers):
        ids = self.ids(PREFILL)
        runs = {peer: (worker, "prefill", ids) for peer, worker in workers.items()}
        times, logits = alternate(runs, self.args.rounds)
        self.result["prefill"] = {label: t.rate(PREFILL) for label, t in times.items()}
        reference, expected = first(logits, "transformers")
        for label, rounds in logits.items():
            difference = max(float(np.abs(np.asarray(found) - np.asarray(expected)).max()) for found in rounds)
            row = self.result["prefill"][label]
            row["logits_max_difference"], row["note"] = difference, f"logits within {difference:.1e}"
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
        reference, expected = first(ids, "transformers")
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
            if rows := self.result.get(part):
                print_rates(part, rows, "tok/s", unit, scale, limit, name)

    def callback(self):
        """The same generation with a callback in C, without one, and pulled; the differences are a callback's cost."""
        directory, prompt = ROOT / "models" / "tiny-coder", random.Random(PROMPT).choices(range(4000), k=PROMPT)
        with Workers(self, ["metal-candle"], directory, *self.model[1:], "stored") as workers:
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
            if not (worker := self.worker(peer, *self.model)):
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


if __name__ == "__main__":
    main()
