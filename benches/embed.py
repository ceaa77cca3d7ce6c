"""Embeddings by all-MiniLM-L6-v2 beside ONNX Runtime, sentence-transformers and OpenVINO: `python3 benches/embed.py --help`."""

import json
import os
import random
import subprocess
import sys

import numpy as np
from tokenizers import Tokenizer

from bench import Bench, Times, Workers, alternate, arguments, compiled, first, print_rates, print_ratios
from embedders import EMBEDDERS, max_tokens
from make_model import CACHE, ROOT
from make_onnx import graphs
from worker import peak_bytes

SPREADS = {"even": "each number as likely", "middle": "60 on average", "log": "each doubling as likely"}
DIM, MODEL = 384, "all-MiniLM-L6-v2"
SEED, WORDS = 20251122, (3, 200)
QUERY, QUERY_REPEAT, QUERY_ROUNDS = "how do I keep bread from going stale", 20, 40
VECTOR_BOUND = 1e-5  # of vectors of length 1; other orders of summation move them by about 2e-7
MEMORY_BOUND = 0.5  # times ONNX Runtime's
PARTS = ("embed", "query", "memory")
GRAPH_PEERS = {"onnxruntime", "onnxruntime-32", "onnxruntime int8", "openvino", "openvino bf16"}


def main():
    bench = Embeddings(arguments(__doc__, PARTS, EMBEDDERS, texts=(512, None), words=("even", tuple(SPREADS))))
    if {"embed", "query"} & set(bench.args.only):
        before = bench.machine()
        with Workers(bench, EMBEDDERS) as workers:
            bench.versions(workers)
            if "embed" in bench.args.only:
                bench.embed(workers)
            if "query" in bench.args.only:
                bench.query(workers)
        bench.limits(before, bench.machine())
        bench.print_speed()
    if "memory" in bench.args.only:
        bench.memory()
    bench.finish("embed.json")


class Embeddings(Bench):
    def __init__(self, args):
        fetched = subprocess.run([ROOT / "tests" / "fetch-minilm.sh"], check=True, stdout=subprocess.PIPE, text=True)
        self.directory, self.texts, self.best = fetched.stdout.strip(), make_texts(args.texts, args.words), {}
        self.trial = ("embed", self.texts[::4])  # up to twelve settings are tried
        self.graphs = graphs(self.directory, CACHE)
        if GRAPH_PEERS & set(args.peers) and not all(path.exists() for path in self.graphs.values()):
            CACHE.mkdir(parents=True, exist_ok=True)
            # In a process of its own: torch's threads and memory end with it.
            subprocess.run([sys.executable, ROOT / "benches" / "make_onnx.py", self.directory, CACHE], stderr=subprocess.DEVNULL)
        tokenizer = Tokenizer.from_file(os.path.join(self.directory, "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens(self.directory))
        self.tokens = [len(encoding.ids) for encoding in tokenizer.encode_batch(self.texts)]
        facts = {
            "model": MODEL,
            "dtype": "F32, but for peers that are named otherwise",
            "texts": f"{args.texts} of {WORDS[0]} to {WORDS[1]} words, {SPREADS[args.words]}; {min(self.tokens)} to {max(self.tokens)} tokens, "
            f"{sum(self.tokens)} in all",
            "query text": f"{len(QUERY.split())} words, {len(tokenizer.encode(QUERY).ids)} tokens",
        }
        super().__init__(args, EMBEDDERS, facts)

    def worker(self, peer):
        arguments = [self.directory, self.args.threads]
        if peer in GRAPH_PEERS:
            arguments.append(self.graphs)
        return super().worker(peer, *arguments)

    def embed(self, workers):
        runs = {peer: (worker, "embed", self.texts) for peer, worker in workers.items()}
        times, vectors = alternate(runs, self.args.rounds, self.trial)
        self.best = {peer: t.setting for peer, t in times.items()}
        self.result["embed"] = {peer: t.rate(len(self.texts)) for peer, t in times.items()}
        self.check("embed", vectors)

    def query(self, workers):
        runs = {peer: (worker, "query", QUERY, QUERY_REPEAT) for peer, worker in workers.items()}
        times, vectors = alternate(runs, QUERY_ROUNDS)
        self.result["query"] = {peer: Times([1e3 * s for s in t.all], t.setting).__dict__ for peer, t in times.items()}
        self.check("query", vectors)

    def check(self, part, vectors):
        reference, expected = first(vectors, "sentence-transformers")
        for peer, rounds in vectors.items():
            difference = max(float(np.abs(rows(found) - rows(expected)).max()) for found in rounds)
            cosine = min(float((rows(found) * rows(expected)).sum(1).min()) for found in rounds)
            row = self.result[part][peer]
            row |= {"max_difference": difference, "min_cosine": cosine, "note": f"within {difference:.1e}, cosine {cosine:.7f}"}
            least = EMBEDDERS[peer].least_cosine
            if least is None and not difference <= VECTOR_BOUND:
                self.fail(f"{part}: vectors of {peer} differ from {reference}'s by {difference:.2g}")
            if least is not None and not cosine >= least:
                self.fail(f"{part}: vectors of {peer} turn from {reference}'s by a cosine of {cosine:.7f}")

    def print_speed(self):
        for part in ("embed", "query"):
            for row in self.result.get(part, {}).values():
                row["setting"] = setting(row["setting"])
        if embed := self.result.get("embed"):
            scale = self.flops() / len(self.texts) / 1e9
            print_rates("embed", embed, "texts/s", "GFLOP/s", scale, self.fma_gflops, "FMA peak")
        if query := self.result.get("query"):
            print(f"\nquery{'':33}ms (min to max)")
            for peer, row in query.items():
                spread = f"{row['median']:8.3f} ({row['min']:.3f} to {row['max']:.3f})"
                print(f"  {peer + ' ' + row['setting']:34}{spread:32}   {row['note']}")
            print_ratios("query", {peer: row["median"] for peer, row in query.items()})

    def flops(self):
        """Matrix products and attention over each text's own tokens: padding is no work."""
        with open(os.path.join(self.directory, "config.json")) as file:
            config = json.load(file)
        c, f = config["hidden_size"], config["intermediate_size"]
        return config["num_hidden_layers"] * sum(2 * (4 * c * c + 2 * c * f) * t + 4 * t * t * c for t in self.tokens)

    def memory(self):
        """Each peer alone in a new process: load, the texts once, in its fastest setting."""
        self.result["memory"] = {}
        print(f"\npeak memory{'':25}  bytes   of it before loading")
        for peer in EMBEDDERS:
            if peer not in self.best and (worker := self.worker(peer)):
                with worker:
                    self.best[peer] = worker("warm_up", *self.trial)
            if not (worker := self.worker(peer)):
                continue
            with worker:
                worker("use", self.best[peer])
                worker("embed", self.texts)
                self.keep_peak(peer, worker("peak_bytes"), worker.bytes_before)
        if "metal-candle" in self.result["memory"] and sys.platform == "linux":
            self.keep_peak("metal-candle from C", self.peak_from_c(), 0)
        peaks = {peer: row["peak_bytes"] for peer, row in self.result["memory"].items()}
        print_ratios("memory", peaks)
        if {"metal-candle", "onnxruntime"} <= set(peaks) and peaks["metal-candle"] > MEMORY_BOUND * peaks["onnxruntime"]:
            self.fail(f"memory: metal-candle takes more than {MEMORY_BOUND} times what onnxruntime takes")

    def keep_peak(self, peer, peak, before):
        self.result["memory"][peer] = {"peak_bytes": peak, "bytes_before_load": before, "setting": setting(self.best.get(peer))}
        print(f"  {peer:26}{peak:15,}{before:23,}", flush=True)

    def peak_from_c(self):
        """The same in a C program, with no interpreter in it."""
        (CACHE / "texts").write_bytes(b"".join(text.encode() + b"\0" for text in self.texts))
        program = compiled("embed.c", "embed", f"-I{ROOT / 'include'}", "-ldl")
        command = [program, os.path.abspath(self.args.lib), self.directory, CACHE / "texts"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            if not process.stdout.readline():
                raise SystemExit(f"embed.c ended with {process.wait()}")
            return peak_bytes(process.pid)


def make_texts(count, spread):
    """Deterministic: everyday words and rarer ones, which are several tokens each."""
    generator = random.Random(SEED)
    words, (least, most) = ENGLISH.split(), WORDS
    lengths = {
        "even": lambda: generator.randint(least, most),
        "middle": lambda: round(least + (most - least) * generator.random() ** 2.3),
        # As sentences and paragraphs are: many short ones and a few long ones.
        "log": lambda: round(least * (most / least) ** generator.random()),
    }
    return [" ".join(generator.choices(words, k=lengths[spread]())) for _ in range(count)]


def rows(vectors):
    vectors = np.asarray(vectors)
    return vectors.reshape(-1, DIM)


def setting(value):
    """For the reader: ("fused", 8) is "fused 8"."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value or "")


ENGLISH = """
the of and to a in is it that was for on are as with his they at be this from have or by one had not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into has more
her two like him see time could no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know get through back much before go good new write our used me man too any
day same right look think also around another came come work three word must because does part even place well such here take
why things help put years different away again off went old number great tell men say small every found still between name
should home big give air line set own under read last never us left end along while might next sound below saw something
thought both few those always looked show large often together asked house world going want school important until form food
keep children feet land side without boy once animals life enough took sometimes four head above kind began almost live page
got earth need far hand high year mother light parts country father let night following picture being study second eyes soon
times story boys since white days ever paper hard near sentence better best across during today others however sure means knew
harbour lighthouse photosynthesis parliament upholstery thermostat manuscript cathedral marmalade spectrometer orchard
quarantine bookkeeping locomotive glacier embroidery turbine hedgehog saxophone vaccination blackboard monsoon carpentry
unsalted rethinking electrolysis subcommittee misaligned photovoltaic tablespoonful nearsighted crystallography waterlogged
overgrown unopened counterclockwise beekeeper typesetting hydroelectric disassemble cobblestones greenhouses rainproof
"""


if __name__ == "__main__":
    main()
