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


# The converter's own guess would make 16 bits of 32.
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def stored(path):
    """The type of the first tensor of a model."""
    with open(sorted(path.glob("model*.safetensors"))[0], "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return next(entry["dtype"] for name, entry in header.items() if name != "__metadata__")


# What transformers calls the sizes that this model's configuration has by their first names.
NOMIC = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "layer_norm_eps": 1e-3,
    "head_dim": 16,
}


def edited(path, fields, then=lambda copy: None):
    """A copy with other fields in its config.json."""
    copy = Path(tempfile.mkdtemp()) / path.name
    shutil.copytree(path, copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps(config))
    then(copy)
    return copy


def with_tokenizer(path):
    """Adds a tokenizer as large as the model's vocabulary."""
    config = json.loads((path / "config.json").read_text())
    size = config.get("text_config", config)["vocab_size"]
    model = {"type": "BPE", "vocab": {f"t{id}": id for id in range(size)}, "merges": []}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def main():
    llama_cpp, out, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    logging.disable(logging.WARNING)
    here = Path(__file__).parent
    for path in sorted(path for folder in ("decoders", "families", "encoders", "embedders") for path in (here / folder).iterdir()):
        if names and path.name not in names:
            continue
        try:
            # From Gemma 3 on the vocabulary size is that of the tokenizer.
            if path.name.startswith(("gemma3_text", "gemma4")):
                # Which the converter asks of every Gemma 4.
                needs = "gemma4" in path.name and "moe_intermediate_size" not in (path / "config.json").read_text()
                path = edited(path, {"moe_intermediate_size": None} if needs else {}, with_tokenizer)
            # The converter knows published sizes alone; positions are rotary, so that no weight depends on it.
            if path.name == "nomic_mean_old":
                path = edited(path, {"n_positions": 8192, "max_trained_positions": 2048} | NOMIC)
            # Of this the converter knows published names alone, and takes heads of 64 values for granted where it is not told.
            if path.name == "granitemoehybrid_dense":
                path = edited(path, {"layer_types": ["mamba", "attention", "mamba", "attention"]})
            # Which transformers has as a constant.
            if path.name.startswith("cohere2"):
                path = edited(path, {"rotary_pct": 1.0})
            if path.name.startswith("nemotron_h"):
                path = edited(path, {"mamba_d_head": 12})
            # Which it does not ask of a model without a classifier.
            if path.name.startswith("eurobert"):
                path = edited(path, {"classifier_pooling": "mean"})
            hparams = ModelBase.load_hparams(path, False)
            # What makes the converter think that there are experts, where no layer has them: a default of the library.
            given = {}
            if path.name.startswith("nemotron_h") and "moe" not in hparams["layers_block_type"]:
                given = {"hparams": {name: value for name, value in hparams.items() if name != "num_experts_per_tok"}}
            known = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

            known.set_vocab = set_no_vocab
            with torch.inference_mode():
                # Of Falcon-H1 the multipliers become a part of the weights, which 16 bits would round.
                stays = "F32" if path.name.startswith("falcon_h1") else stored(path)
                model = known(path, getattr(gguf.LlamaFileType, FILE_TYPES[stays]), out / f"{path.name}.gguf", **given)
                model.write()
            print(f"{path.name}: {model.gguf_writer.arch}")
        except Exception as error:
            (out / f"{path.name}.gguf").unlink(missing_ok=True)
            print(f"{path.name}: not converted: {type(error).__name__}: {error}")


main()
