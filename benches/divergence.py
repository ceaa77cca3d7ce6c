"""How far the next token's distribution moves by quantised weights, and how far by rounded activations on top of it.

    cargo build --release
    python3 benches/divergence.py                   # SmolLM2-135M-Instruct over this project's own texts
    python3 benches/divergence.py --model DIR --text FILE --tokens 4096 --formats q8_0,q4_k_m

For each format that loading quantises to: the mean of KL(model ‖ quantised), both computed in F32, and of KL(quantised ‖ quantised with
activations of eight bits), in nats a token, with the share of the second in the first. The exit status is 1 if a share is above 5 %. Texts are
cut into windows of 512 tokens, each read from its start; the tokens are the model's own. Of a GGUF file the model is what its weights stand
for. Logits of all tokens are kept: 200 kB a token for a vocabulary of 49152, twice.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from bench import ROOT, host
from c_abi import Library, Model, Session

FORMATS = "q8_0,q6_k,q5_k_m,q4_k_m,q4_0,iq4_nl,mlx4"
WINDOW = 512
MOST = 0.05


def all_logits(model, windows):
    """Of every token: (T, V)."""
    rows = []
    for ids in windows:
        session = Session(model, 0)
        for token in ids:
            session.append([token])
            rows.append(np.frombuffer(session.logits(), dtype=np.float32).copy())
        session.free()
    return np.stack(rows)


def divergence(p, q):
    """The mean of KL(p ‖ q) of rows of logits."""
    total = 0.0
    for one, other in zip(p, q):
        one, other = one.astype(np.float64), other.astype(np.float64)
        one -= one.max() + np.log(np.exp(one - one.max()).sum())
        other -= other.max() + np.log(np.exp(other - other.max()).sum())
        total += float((np.exp(one) * (one - other)).sum())
    return total / len(p)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libmetal_candle.so")
    parser.add_argument("--model", type=Path, default=ROOT / "target/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--text", type=Path, nargs="*", default=[ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/golden/README.md"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--formats", default=FORMATS)
    arguments = parser.parse_args()
    library = Library(arguments.library, host())

    def logits(quantization, exact):
        model = Model(library, arguments.model, dtype="stored", exact=exact, quantization=quantization)
        found = all_logits(model, windows)
        model.free()
        return found

    model = Model(library, arguments.model, dtype="stored")
    ids = [token for path in arguments.text for token in model.encode(path.read_text())][: arguments.tokens]
    model.free()
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    whole = logits(None, exact=True)
    print(f"{arguments.model.name}, {len(ids)} tokens")
    print(f"{'as stored':10} activations {divergence(whole, logits(None, exact=False)):.2e}", flush=True)
    failed = False
    for name in arguments.formats.split(","):
        quantised = logits(name, exact=True)
        weights, activations = divergence(whole, quantised), divergence(quantised, logits(name, exact=False))
        print(f"{name:10} weights {weights:.2e}   activations {activations:.2e}   {activations / weights:6.1%}", flush=True)
        failed |= activations > MOST * weights
    sys.exit(failed)


if __name__ == "__main__":
    main()
