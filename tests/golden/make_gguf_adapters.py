"""Makes GGUF files of adapters with llama.cpp's own converter.

    python make_gguf_adapters.py LLAMA_CPP [--out DIR]        (default: the folder `gguf/adapters` beside this file)

LLAMA_CPP is a tree of llama.cpp with convert_lora_to_gguf.py. A file NAME.gguf is of the adapter NAME of `lora/` or `adapters/`, whose
golden.json and golden.safetensors hold for it too; NAME-TYPE.gguf is of another type than F32. `qwen3_moe_apart` is an adapter of each
expert's matrices, as transformers 4 had them, beside the file that was made of it. It needs torch, transformers, safetensors, gguf."""
import argparse, json, os, subprocess, sys, tempfile
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
# Whose rows the converter moves, whose matrices are one tensor, tables and output matrices, tied ones, ranks of their own, experts.
NAMES = ["lora/llama_all7", "lora/qwen2_qv_bf16", "lora/qwen2_embed_lm_head", "lora/granitemoehybrid_mamba", "lora/qwen3_moe_attention",
         "adapters/llama_excluded", "adapters/phi3_fused", "adapters/glm4_all_linear", "adapters/starcoder2", "adapters/qwen2_embed",
         "adapters/qwen2_tied_embed", "adapters/qwen2_tied_lm_head", "adapters/gemma4_all_linear", "adapters/gemma4_unified",
         "adapters/bert_pooler"]
OTHER_TYPES = [("lora/llama_all7", "f16")]


def experts(directory, base):
    config = json.load(open(os.path.join(base, "config.json")))
    hidden, width, count = config["hidden_size"], config["moe_intermediate_size"], config["num_local_experts"]
    torch.manual_seed(1)
    tensors = {}
    for expert in range(count):
        for name, (outputs, inputs) in {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}.items():
            path = f"base_model.model.model.layers.0.mlp.experts.{expert}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(2, inputs) * 0.3
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, 2) * 0.3
    os.makedirs(directory, exist_ok=True)
    save_file(tensors, os.path.join(directory, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
              "target_modules": r"model\.layers\.0\.mlp\.experts\.\d+\.(gate|up|down)_proj"}
    with open(os.path.join(directory, "adapter_config.json"), "w") as file:
        file.write(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llama_cpp")
    parser.add_argument("--out", default=os.path.join(HERE, "gguf", "adapters"))
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)

    def convert(adapter, base, name, kind="f32"):
        with tempfile.TemporaryDirectory() as edited:
            config = json.load(open(os.path.join(base, "config.json")))
            # It reads the names of layers that published files have, and transformers 5 renames them where it knows the family.
            if config["model_type"] == "granitemoehybrid":
                config["model_type"] = "published"
                config["layer_types"] = [{"linear_attention": "mamba"}.get(kind, "attention") for kind in config["layer_types"]]
            json.dump(config, open(os.path.join(edited, "config.json"), "w"))
            run(adapter, edited, name, kind)

    def run(adapter, base, name, kind):
        command = [sys.executable, os.path.join(args.llama_cpp, "convert_lora_to_gguf.py"), "--base", base, "--outtype", kind,
                   "--outfile", os.path.join(args.out, f"{name}.gguf"), adapter]
        subprocess.run(command, check=True, capture_output=True)

    for name, kind in [(name, "f32") for name in NAMES] + OTHER_TYPES:
        adapter = os.path.join(HERE, name)
        base = os.path.join(HERE, json.load(open(os.path.join(adapter, "golden.json")))["base"])
        convert(adapter, base, os.path.basename(name) + ("" if kind == "f32" else f"-{kind.upper()}"), kind)
    adapter, base = os.path.join(args.out, "qwen3_moe_apart"), os.path.join(HERE, "decoders", "qwen3_moe")
    experts(adapter, base)
    convert(adapter, base, "qwen3_moe_apart")


if __name__ == "__main__":
    main()
