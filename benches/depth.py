"""What a token costs behind 512 and behind 16,384 others: a layer with a state against one of attention.

    cargo build --release
    python3 benches/depth.py                   # --shapes qwen3.5,lfm2  --depths 512,16384

Of each family two models of random weights that differ in four layers with a state, each with one layer of attention: their difference
is what those four cost, and the rest of the smaller one is mostly its attention. F32 on the CPU. Fails if four such layers take more than
a quarter longer behind the most tokens than behind the fewest; `--shapes tiny` takes seconds, tests the benchmark, and fails of nothing.
"""

import argparse
import random
import statistics
import time

import c_abi
from make_model import HYBRIDS, ROOT, SEED, make_model

MOST_GROWTH = 1.25
STEPS, CHUNK = 32, 2048


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", default=ROOT / "target/release/libmetal_candle.so", help="%(default)s")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["qwen3.5", "lfm2"], help="qwen3.5,lfm2,tiny")
    parser.add_argument("--depths", type=lambda text: sorted(map(int, text.split(","))), default=[512, 16384], help="512,16384")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    args = parser.parse_args()
    library, failed = c_abi.Library(args.lib), []
    for shape in args.shapes:
        few, many = (seconds(library, f"{shape}-{layers}-states", args) for layers in (4, 8))
        print(f"{shape}, milliseconds a token        4 layers with a state     the rest of that model")
        costs = {depth: statistics.median(b - a for a, b in zip(few[depth], many[depth])) for depth in args.depths}
        for depth, cost in costs.items():
            print(f"  behind {depth:6} tokens {1e3 * cost:24.3f} {1e3 * (statistics.median(few[depth]) - cost):26.3f}")
        growth = costs[args.depths[-1]] / costs[args.depths[0]]
        print(f"  layers with a state: {growth:.3f} times as long behind the most as behind the fewest\n")
        if shape != "tiny" and not growth <= MOST_GROWTH:
            failed.append(shape)
    if failed:
        raise SystemExit(f"FAILED: expected at most {MOST_GROWTH} times: {', '.join(failed)}")


def seconds(library, name, args):
    """Of a token, by the tokens before it, of each round. The first round warms up."""
    draw = random.Random(SEED)
    ids = draw.choices(range(HYBRIDS[name].vocab_size), k=args.depths[-1])
    model = c_abi.Model(library, make_model(name) / "model.gguf")
    session, found = c_abi.Session(model, args.depths[-1] + (args.rounds + 1) * STEPS + 1), {}
    held = 0
    for depth in args.depths:
        for first in range(held, depth, CHUNK):
            session.append(ids[first : min(first + CHUNK, depth)])
        session.logits()
        found[depth], held = [], depth
        for _ in range(args.rounds + 1):
            start = time.perf_counter()
            session.generate(STEPS, "silent", None)
            found[depth].append((time.perf_counter() - start) / STEPS)
            held += STEPS
    session.free()
    model.free()
    return {depth: rounds[1:] for depth, rounds in found.items()}


if __name__ == "__main__":
    main()
