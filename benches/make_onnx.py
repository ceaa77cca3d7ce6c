"""Exports a BERT of sentence-transformers for ONNX Runtime and OpenVINO, mean over the tokens and length 1 included.

    python3 benches/make_onnx.py target/minilm build/bench

Writes DIRECTORY-exported.onnx and -fused.onnx, and the second with weights of 8 bits as -int8.onnx. Of the exports tried (eager or SDPA attention, TorchScript or dynamo, plain or
through ONNX Runtime's optimiser for transformers), these are the fastest for many texts and for one.
"""

import os
import sys
from pathlib import Path

GRAPHS = {"exported": "sdpa", "fused": "eager"}  # name: attention; the optimiser knows only eager's pattern


def graphs(directory, cache):
    """name: file."""
    return {name: Path(cache) / f"{Path(directory).name}-{name}.onnx" for name in (*GRAPHS, "int8")}


def make_onnx(directory, cache):
    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.bert = AutoModel.from_pretrained(directory, attn_implementation=attention, add_pooling_layer=False).eval()

        def forward(self, input_ids, attention_mask):
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, C)
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))

    paths = graphs(directory, cache)
    for name in GRAPHS:
        path = paths[name]
        model, partial = Embedder(GRAPHS[name]), f"{path}.partial"
        inputs = {"input_ids": torch.ones(2, 16, dtype=torch.long), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            partial,
            input_names=list(inputs),
            output_names=["vectors"],
            dynamic_axes={input: {0: "batch", 1: "tokens"} for input in inputs} | {"vectors": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        if name == "fused":
            config = model.bert.config
            optimize_model(
                partial, "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
            ).save_model_to_file(partial)
        os.rename(partial, path)
    partial = f"{paths['int8']}.partial"
    # Operators of its own have no types that it can infer.
    quantize_dynamic(paths["fused"], partial, per_channel=True, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    os.rename(partial, paths["int8"])


if __name__ == "__main__":
    make_onnx(*sys.argv[1:])
