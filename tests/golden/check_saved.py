"""Loads what mc_model_save() writes by transformers and sentence-transformers, and compares what they compute with the library.

    cargo build --release
    python3 tests/golden/check_saved.py [--library target/release/libmetal_candle.so] [NAME ...]

Every model of this folder is saved to an empty directory: decoders, encoders and embedders, each base with its adapters merged, GGUF files
as directories; or only those whose path below this folder, `lora/llama_dora` say, begins with a NAME. Logits and vectors are compared
within the tolerances of README.md, token ids must be equal. A line a model; the exit status is 1 if any differs, or if a peer cannot
load one, unless it cannot load the original either. GGUF files are saved as such, too, in their own types and with the adapters of the
same base merged, and compared with what llama.cpp computes of them, where llama-cpp-python is there; a peer that computes otherwise of the
original says nothing of what was saved. By hand, as it takes torch, transformers and sentence-transformers, and a C compiler.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GGML_NO_BACKTRACE="1")
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

try:
    import llama_cpp
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
except ImportError:
    llama_cpp = None

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "benches"))
from bench import host
from c_abi import Library, Model, Session

disable_progress_bar()
FORK = multiprocessing.get_context("fork")
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
        tokenizers = [HERE / folder / path.stem / "tokenizer.json" for folder in ["encoders", "embedders"]]
        found.append((str(path.relative_to(HERE)), path, None, next(filter(Path.exists, tokenizers), None)))
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


def files(names):
    """(name, path, adapter) of each GGUF file, without and with adapters."""
    found = [(f"{path.relative_to(HERE)} as GGUF", path, None) for path in sorted((HERE / "gguf").glob("**/*.gguf"))]
    for folder in ["lora", "adapters"]:
        for adapter in sorted((HERE / folder).iterdir()):
            if (adapter / "adapter_config.json").exists():
                base = HERE / "gguf" / "families" / (Path(json.loads((adapter / "golden.json").read_text())["base"]).name + ".gguf")
                found += [(f"{folder}/{adapter.name} as GGUF", base, adapter)] if base.exists() else []
    return [case for case in found if not names or any(case[0].startswith(name) for name in names)]


def llama_cpp_logits(path, ids):
    """Behind the last of the tokens. In a process of its own: what llama.cpp does not expect ends one."""
    ours, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: its.send(evaluated_by_llama_cpp(path, ids)))
    process.start()
    its.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        raise ValueError(f"llama.cpp ends with {process.exitcode}") from None
    process.join()
    if isinstance(found, str):
        raise ValueError(found)
    return torch.tensor(found)


def evaluated_by_llama_cpp(path, ids):
    """A list of logits, with keys and values in F32; or what is wrong."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        return "llama.cpp does not load it"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    # Which the batch points to.
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    if not context or llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
        return "llama.cpp does not evaluate it"
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    return llama_cpp.llama_get_logits_ith(context, -1)[:vocabulary]


def check_file(model, saved, original):
    """What was compared of a saved GGUF file, and what of it differs; `original`: the model without adapters, and its file."""
    def cosine(model, path):
        worst = 1.0
        for ids in PROMPTS:
            session = Session(model, 0)
            session.append(ids)
            found = torch.tensor(session.logits())
            session.free()
            worst = min(worst, float(torch.cosine_similarity(found, llama_cpp_logits(path, ids), dim=0)))
        return worst

    # Activations are rounded to what the weights are stored in, which changes the most with BF16: README.md.
    least = 0.998
    try:
        found = cosine(model, saved)
        said = f"cosine to llama.cpp {found:.6f}"
    except ValueError as error:
        found, said = 0.0, str(error)
    if found >= least:
        return [said], []
    try:
        of_original = cosine(*original)
        is_known = of_original < least
        said = f"{said}, of the original {of_original:.6f}"
    except ValueError as error:
        is_known = True
        said = f"{said}, of the original: {error}"
    return ([said], []) if is_known else ([], [said])


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
    all_files = files(arguments.names)
    if not llama_cpp and all_files:
        print(f"skipped {len(all_files)} GGUF files: llama-cpp-python is not there")
        all_files = []
    for name, path, adapter in all_files:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "model.gguf"
            try:
                original, model = (Model(library, path, dtype="stored", exact=True) for _ in range(2))
                if model.supports("generate"):
                    if adapter:
                        model.merge(adapter)
                    model.save_gguf(saved)
                    said, wrong = check_file(model, saved, (original, path))
                else:
                    said, wrong = ["nothing to compare"], []
                model.free()
                original.free()
            except RuntimeError as error:
                said, wrong = [], [str(error).splitlines()[0]]
            print(f"{'FAILED' if wrong else 'ok':6} {name}: {', '.join(wrong or said)}", flush=True)
            failed += [name] if wrong else []
    all_cases += all_files
    print(f"{len(all_cases) - len(failed)} models load and compute the same, {len(failed)} do not")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
