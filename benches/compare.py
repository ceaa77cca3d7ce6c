"""Two builds of this library in turn, so that a change shows what it costs: `python3 benches/compare.py --other OLD.so`.

Everything is done by both, in the same run. The same bits are expected, but of `lora`: a build from before adapters were added within
the product rounds otherwise. `sessions` and `lora` are measured beside the plain decoding of the same build as well.
"""

import json
import os
import random

import numpy as np
from safetensors.numpy import save_file

from bench import Bench, Times, alternate, arguments, host
from builds import SESSIONS, Build
from make_model import CACHE, ROOT, SHAPES, make_model
from worker import Worker

PARTS = ("prefill", "decode", "lora", "sessions", "embed", "train")
PREFILL, PROMPT = 512, 32  # tokens
TEXTS, WORDS = 256, (3, 100)
RANK, ALPHA, SEED = 8, 16, 20261128
TARGETS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def make_adapter(shape):
    """An adapter on all seven projections, of seeded noise."""
    directory, noise = CACHE / f"{shape}-compare-adapter", np.random.default_rng(SEED)
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i in range(SHAPES[shape].num_layers):
            for name, _, size in SHAPES[shape].layer():
                if (module := name.removesuffix(".weight")) in TARGETS:
                    path = f"base_model.model.model.layers.{i}.{module}"
                    tensors[f"{path}.lora_A.weight"] = noise.normal(0, 0.02, (RANK, size[1])).astype(np.float32)
                    tensors[f"{path}.lora_B.weight"] = noise.normal(0, 0.02, (size[0], RANK)).astype(np.float32)
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        names = [target.split(".")[1] for target in TARGETS]
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names, "bias": "none"}
        (partial / "adapter_config.json").write_text(json.dumps(config))
        os.rename(partial, directory)
    return directory


def main():
    more = {"other": ("", None), "shape": ("qwen2.5-0.5b", SHAPES), "embedder": ("models/tiny-embed", None)}
    args = arguments(__doc__, PARTS, {"this": Build, "other": Build}, **more)
    bench = Bench(args, {}, {"model": f"{args.shape}: {SHAPES[args.shape]}", "adapter": f"rank {RANK}, seven projections"})
    paths = {"this": args.lib} | ({"other": args.other} if args.other else {})
    workers = {}
    for label, path in paths.items():
        workers[label] = Worker(Build, path, host(), make_model(args.shape), make_adapter(args.shape), ROOT / args.embedder)
    draw = random.Random(SEED)
    ids = draw.choices(range(SHAPES[args.shape].vocab_size), k=PREFILL)
    words = [f"w{draw.randrange(9999)}" for _ in range(2000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(*WORDS))) for _ in range(TEXTS)]
    prompt = ids[:PROMPT]
    inputs = {"prefill": ids, "decode": prompt, "lora": prompt, "sessions": prompt, "embed": texts, "train": [ids[:256], ids[256:]]}
    rates, answers = {}, {}
    for part in args.only:
        # An older build has no way to take several sessions at once.
        runs = {label: (worker, part, inputs[part]) for label, worker in workers.items() if part != "sessions" or label == "this"}
        seconds, results = alternate(runs, args.rounds)
        rates[part], answers[part] = {label: times.median for label, times in seconds.items()}, results
        if part != "lora" and len(results) == 2 and results["this"][0] != results["other"][0]:
            bench.fail(f"{part}: the two builds give different results")
        line = "   ".join(f"{label} {Times(times.all)} s" for label, times in seconds.items())
        ratio = f"   this / other = {rates[part]['this'] / rates[part]['other']:.3f}" if len(rates[part]) == 2 else ""
        print(f"{part:9} {line}{ratio}", flush=True)
    for label in workers:
        if {"decode", "lora"} <= set(rates):
            print(f"lora / decode, {label}: {rates['lora'][label] / rates['decode'][label]:.3f}")
    if {"decode", "sessions"} <= set(rates):
        each = rates["sessions"]["this"] / rates["decode"]["this"]
        print(f"{SESSIONS} sessions at once / one: {each:.3f} of the time, {SESSIONS / each:.2f} times the tokens a second")
        if answers["sessions"]["this"][0] != answers["decode"]["this"][0]:
            bench.fail("sessions: the first answer is another one than alone")
    for worker in workers.values():
        worker.__exit__(None, None, None)
    bench.result["seconds"] = rates
    bench.finish("compare.json")


if __name__ == "__main__":
    main()
