"""Texts a second on a GPU by all-MiniLM-L6-v2, beside sentence-transformers: in F16 and in F32, from texts to vectors in host memory.

    cargo build --release --features cuda
    python3 benches/embed_gpu.py
    python3 benches/embed_gpu.py --device cpu --texts 24 --rounds 1   # tests the benchmark, says nothing about speed

It needs numpy, tokenizers and the weights (tests/fetch-minilm.sh), and torch with sentence-transformers for the peer, which takes the
fastest of four sizes of batches.
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np

import c_abi
from embed import make_texts
from make_model import ROOT

# Least cosine with the vectors of the peer in the same type, of each text.
TYPES = {"F16": ("float16", 0.9999), "F32": ("float32", 0.99999)}
BATCHES = (32, 128, 512, 2048)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", default=ROOT / "target/release/libmetal_candle.so", help="%(default)s")
    parser.add_argument("--model", default=ROOT / "target/minilm", help="%(default)s")
    parser.add_argument("--device", choices=c_abi.DEVICES, default="cuda")
    parser.add_argument("--texts", type=int, default=4096, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    args = parser.parse_args()
    texts, library = make_texts(args.texts, "even"), c_abi.Library(args.lib)
    print(f"{len(texts)} texts of 3 to 200 words, {args.rounds} rounds, on {args.device}")
    for name, (torch_name, least) in TYPES.items():
        model = c_abi.Model(library, args.model, name, args.device)
        ways = {"metal-candle": lambda: np.array(model.embed_batch(texts)).reshape(len(texts), -1)}
        if peer := sentence_transformers(args, torch_name):
            ways |= {f"sentence-transformers, batches of {size}": lambda size=size: peer(texts, size) for size in BATCHES}
        seconds, vectors = {way: [] for way in ways}, {way: run() for way, run in ways.items()}  # warms up
        for _ in range(args.rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - start)
        rates = {way: len(texts) / statistics.median(times) for way, times in seconds.items()}
        best = max((rate for way, rate in rates.items() if way != "metal-candle"), default=None)
        for way, rate in rates.items():
            ratio = f"{rate / best:8.2f} x its best" if best else ""
            print(f"  {name}  {way:44}{rate:12.1f} texts/s{ratio}")
        own = vectors.pop("metal-candle")
        for way, found in vectors.items():
            cosine = float(np.min(np.sum(own * found, 1) / np.linalg.norm(own, axis=1) / np.linalg.norm(found, axis=1)))
            if not cosine >= least:
                sys.exit(f"FAILED {name}: least cosine with {way} {cosine:.6f}, expected {least}")
        model.free()


def sentence_transformers(args, dtype):
    """A function of texts and a batch size, or None."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as missing:
        return print(f"skipped sentence-transformers: {missing}")
    device = {"metal": "mps"}.get(args.device, args.device)
    model = SentenceTransformer(os.fspath(args.model), device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts, size: model.encode(texts, batch_size=size, convert_to_numpy=True).astype(np.float32)


if __name__ == "__main__":
    main()
