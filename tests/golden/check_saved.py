"""Loads what mc_model_save() writes by transformers and sentence-transformers, and compares what they compute with the library.

    cargo build --release
    python3 tests/golden/check_saved.py [--library target/release/libmetal_candle.so] [NAME ...]

Every model of this folder is saved to an empty directory: decoders, encoders and embedders, each base with its adapters merged, GGUF files
as directories; or only those whose path below this folder, `lora/llama_dora` say, begins with a NAME. Logits and vectors are compared
within the tolerances of README.md, token ids must be equal. A line a model; the exit status is 1 if any differs, or if a peer cannot
load one, unless it cannot load the original either. By hand, as it takes torch, transformers and sentence-transformers, and a C compiler.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "benches"))
from bench import host
from c_abi import Library, Model, Session

disable_progress_bar()
torch.set_num_threads(1)
TEXTS = ["hello", "How do I sort a list of numbers?", "  leading, trailing and   inner   spaces  ", "Die Brücke ist schön und GROSS.",
         "今天天气很好 🦀", "line one\nline two\ttabbed", "fn main() { let x = 1; }", "a [SEP] b </s> c <|im_end|>"]
PROMPTS = [[1, 2, 3], [5, 17, 3, 80, 41, 9, 66, 23, 12, 7, 77, 30, 2, 54, 61, 19, 8, 44, 71, 26]]


def cases(names):
    """(name, path, adapter, tokenizer) of each model."""
    found = []
    for folder in ["decoders", "families", "encoders", "embedders"]:
        found += [(f"{folder}/{path.name}", path) for path in sorted((HERE / folder).iterdir()) if path.is_dir()]
    for folder in ["lora", "adapters"]:
        for path in sorted((HERE / folder).iterdir()):
            if (path / "adapter_config.json").exists():
                found.append((f"{folder}/{path.name}", HERE / json.loads((path / "golden.json").read_text())["base"], path))
    found += [(f"quantized/{path.name}", path) for path in sorted((HERE / "quantized").iterdir()) if path.is_dir()]
    for path in sorted((HERE / "gguf").glob("**/*.gguf")):
        # Those of encoders hold none.
        tokenizer = HERE / "encoders" / path.stem / "tokenizer.json"
        found.append((str(path.relative_to(HERE)), path, None, tokenizer if tokenizer.exists() else None))
    found += [(f"models/{path.name}", path) for path in sorted((HERE.parent.parent / "models").glob("tiny-*"))]
    found = [(*case, None, None)[:4] for case in found]
    return [case for case in found if not names or any(case[0].startswith(name) for name in names)]


def decoder(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def embedder(directory):
    return SentenceTransformer(str(directory), device="cpu", model_kwargs=dict(dtype=torch.float32, attn_implementation="eager")).float()


def logits(model, peer):
    """The largest difference of logits behind a prompt, and how large it may be."""
    worst = 0.0
    for ids in PROMPTS:
        session = Session(model, 0)
        session.append(ids)
        with torch.inference_mode():
            want = peer(torch.tensor([ids]), use_cache=False).logits[0, -1]
        found = torch.tensor(session.logits())
        session.free()
        worst = max(worst, float((found - want).abs().max()))
    return worst, 5e-4


def vectors(model, peer):
    """The largest difference of vectors, and how large it may be."""
    want = torch.stack([torch.tensor(peer.encode(text)) for text in TEXTS])
    found = torch.tensor(model.embed_batch(TEXTS)).reshape(len(TEXTS), -1)
    has_unit_length = any(type(module).__name__ == "Normalize" for module in peer)
    return float((found - want).abs().max()) if found.shape == want.shape else float("inf"), 2e-5 if has_unit_length else 2e-4


def ids(model, peer):
    """Raises if a text has other ids."""
    for text in TEXTS:
        found, want = model.encode(text), peer(text)["input_ids"]
        if found != want:
            raise ValueError(f"{text!r}: {found} and not {want}")
    return 0.0, 0.0


def check(model, directory, original):
    """What was compared, and what of it differs."""
    said, wrong = [], []

    def compare(what, load, run):
        try:
            error, tolerance = run(model, load(directory))
            said.append(f"{what} {error:.1e}")
            if not error <= tolerance:
                wrong.append(f"{what}: {error:.1e} and not {tolerance:.0e}")
        except Exception as exception:
            try:
                if original.is_dir():
                    load(original)
            except Exception:
                said.append(f"{what}: the peer does not load the original")
                return
            wrong.append(f"{what}: {type(exception).__name__}: {str(exception).strip().splitlines()[0][:200]}")

    if model.supports("generate"):
        compare("logits", decoder, logits)
    if model.supports("embed"):
        compare("ids", AutoTokenizer.from_pretrained, ids)
        if not model.supports("generate") or (directory / "modules.json").exists():
            compare("vectors", embedder, vectors)
    return said, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=HERE.parent.parent / "target/release/libmetal_candle.so")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    library, failed = Library(arguments.library, host()), []
    all_cases = cases(arguments.names)
    for name, path, adapter, tokenizer in all_cases:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            try:
                model = Model(library, path, dtype="stored", exact=True, tokenizer=tokenizer)
                if adapter:
                    model.merge(adapter)
                model.save(directory)
                said, wrong = check(model, directory, path)
                model.free()
            except RuntimeError as error:
                said, wrong = [], [str(error).splitlines()[0]]
            print(f"{'FAILED' if wrong else 'ok':6} {name}: {', '.join(wrong or said) or 'nothing to compare'}", flush=True)
            failed += [name] if wrong else []
    print(f"{len(all_cases) - len(failed)} models load and compute the same, {len(failed)} do not")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
