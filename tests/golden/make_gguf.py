"""Writes the reference models of this folder as GGUF files, with the converter that comes with llama.cpp.

    python make_gguf.py LLAMA_CPP OUT [NAME ...]

LLAMA_CPP: a folder with `convert_hf_to_gguf.py` and `conversion/`. OUT: receives `NAME.gguf` for each model that the converter knows;
those that it does not know are named. Weights keep their type. The models are random and have no tokenizer, so the files have none
either: `tokenizer.ggml.model` is `no_vocab`. Needs torch, transformers, and the `gguf` package.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch


def set_no_vocab(model):
    model.gguf_writer.add_tokenizer_model("no_vocab")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


def with_tokenizer(path):
    """A copy with a tokenizer as large as the model's vocabulary."""
    copy = Path(tempfile.mkdtemp()) / path.name
    shutil.copytree(path, copy)
    size = json.loads((copy / "config.json").read_text())["vocab_size"]
    model = {"type": "BPE", "vocab": {f"t{id}": id for id in range(size)}, "merges": []}
    (copy / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return copy


def main():
    llama_cpp, out, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    logging.disable(logging.WARNING)
    here = Path(__file__).parent
    for path in sorted(path for folder in ("decoders", "families", "encoders") for path in (here / folder).iterdir()):
        if names and path.name not in names:
            continue
        try:
            # Gemma 3's vocabulary size is that of its tokenizer.
            if path.name.startswith("gemma3_text"):
                path = with_tokenizer(path)
            hparams = ModelBase.load_hparams(path, False)
            known = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

            known.set_vocab = set_no_vocab
            with torch.inference_mode():
                model = known(path, gguf.LlamaFileType.GUESSED, out / f"{path.name}.gguf")
                model.write()
            print(f"{path.name}: {model.gguf_writer.arch}")
        except Exception as error:
            (out / f"{path.name}.gguf").unlink(missing_ok=True)
            print(f"{path.name}: not converted: {type(error).__name__}: {error}")


main()
