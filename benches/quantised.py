"""Speed and memory of quantised models beside llama.cpp, the same GGUF files in one run: `python3 benches/quantised.py --help`."""

import os
import random
import sys

import numpy as np

from bench import Bench, Times, Workers, alternate, arguments, print_rates, print_ratios
from make_model import HYBRIDS, SHAPES, make_model
from peers import LlamaCppQuantised, MetalCandle, MetalCandleExact
from run import CONTEXT, PREFILL, PROMPT, STEPS

ALL = {**SHAPES, **HYBRIDS}
PEERS = {"metal-candle": MetalCandle, "metal-candle exact": MetalCandleExact, "llama.cpp": LlamaCppQuantised}
# Of the logits after the prompt: of the same weights in F32, and of llama.cpp, which rounds activations and values to other types.
EXACT_COSINE, PEER_COSINE = 0.999, 0.99
PARTS = ("prefill", "decode", "load", "memory")
FORMATS = "q4_0,q4_k_m,q6_k,q8_0"


def quantised_file(shape, kind):
    """The model's GGUF file, quantised by llama.cpp's own quantiser, or as it is; made if missing."""
    import llama_cpp.llama_cpp as llama

    directory = make_model(shape)
    if kind == "f32":
        return directory / "model.gguf"
    path = directory / f"{kind}.gguf"
    if not path.exists():
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
        partial = path.with_suffix(".partial")
        if llama.llama_model_quantize(os.fsencode(directory / "model.gguf"), os.fsencode(partial), params):
            raise SystemExit(f"llama.cpp does not quantise {directory / 'model.gguf'} to {kind}")
        os.rename(partial, path)
    return path


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def main():
    args = arguments(__doc__, PARTS, PEERS, shape=("qwen2.5-0.5b", ALL), formats=(FORMATS, None))
    bench = Quantised(args, PEERS, {"model": f"{args.shape}: {ALL[args.shape]}", "formats": args.formats})
    for kind in args.formats.split(","):
        bench.measure(kind)
    bench.finish("quantised.json")


class Quantised(Bench):
    def measure(self, kind):
        path = quantised_file(self.args.shape, kind)
        draw = random.Random(PREFILL).choices(range(ALL[self.args.shape].vocab_size), k=PREFILL)
        before, rows = self.machine(), {}
        if {"prefill", "decode"} & set(self.args.only):
            with Workers(self, PEERS, path, self.args.threads, CONTEXT) as workers:
                runs = {
                    "prefill": {peer: (worker, "prefill", draw) for peer, worker in workers.items()},
                    "decode": {peer: (worker, PEERS[peer].decoders[0], draw[:PROMPT], STEPS) for peer, worker in workers.items()},
                }
                for part in runs.keys() & set(self.args.only):
                    times, results = alternate(runs[part], self.args.rounds)
                    rows[part] = {label: t.rate(PREFILL if part == "prefill" else STEPS) for label, t in times.items()}
                    if part == "prefill":
                        self.compare(kind, results, rows[part])
        self.limits(before, self.machine())
        size = os.path.getsize(path) / 1e9
        flops = ALL[self.args.shape].prefill_flops(PREFILL) / PREFILL / 1e9
        for part in (part for part in PARTS if part in rows):
            if part == "prefill":
                print_rates(f"{kind} prefill", rows[part], "tok/s", "GFLOP/s", flops, self.fma_gflops, "FMA peak")
            else:
                print_rates(f"{kind} decode", rows[part], "tok/s", "GB/s", size, self.read_gbs, "read bandwidth")
        if "load" in self.args.only:
            rows["load"] = self.load(kind, path)
        if "memory" in self.args.only:
            rows["memory"] = self.memory(kind, path, draw)
        self.result[kind] = rows

    def compare(self, kind, results, rows):
        for other, bound in (("metal-candle exact", EXACT_COSINE), ("llama.cpp", PEER_COSINE)):
            if {"metal-candle", other} <= results.keys():
                found = min(cosine(a, b) for a, b in zip(results["metal-candle"], results[other]))
                rows[other]["note"] = f"cosine {found:.6f}"
                if not found >= bound:
                    self.fail(f"{kind}: logits of metal-candle and {other} have the cosine {found:.6f}, expected {bound}")

    def load(self, kind, path):
        """Each peer in a new process each time, the file in the system's cache: what a call to load takes, with a tokenizer."""
        times = {}
        for round in range(self.args.rounds + 1):
            for peer in PEERS:
                if worker := self.worker(peer, path, self.args.threads, CONTEXT):
                    with worker:
                        seconds = worker("load_seconds")
                    if round:  # the first brings the file into the cache
                        times.setdefault(peer, []).append(seconds)
        rows = {peer: Times(seconds).__dict__ for peer, seconds in times.items()}
        print(f"\n{kind} load, seconds (min to max)")
        for peer, row in rows.items():
            print(f"  {peer:26}{row['median']:8.2f} ({row['min']:.2f} to {row['max']:.2f})")
        print_ratios(f"{kind} load", {peer: row["median"] for peer, row in rows.items()})
        return rows

    def memory(self, kind, path, ids):
        """Each peer alone in a new process: load, a prefill, decode after it."""
        rows = {}
        for peer in PEERS:
            if worker := self.worker(peer, path, self.args.threads, CONTEXT):
                with worker:
                    worker("prefill", ids)
                    worker(PEERS[peer].decoders[0], ids, STEPS)
                    rows[peer] = worker("peak_bytes")
        print(f"\n{kind} peak memory of a file of {os.path.getsize(path):,} bytes")
        for peer, peak in rows.items():
            print(f"  {peer:26}{peak:15,}")
        print_ratios(f"{kind} memory", rows)
        return rows


if __name__ == "__main__":
    sys.exit(main())
