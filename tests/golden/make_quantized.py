"""Makes tests/golden/quantized: a matrix in each way in which checkpoints of others are quantised, and its weights in F32.

    python make_quantized.py

`m.*` are the tensors as a checkpoint has them, `want` the weights. MLX's come from `mlx` itself and FP8's from torch; the others are
packed by the formulas of their projects, written down here once more. Needs mlx, torch and safetensors.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parent / "quantized"
ROWS, COLS = 48, 128


def save(name, want, **tensors):
    tensors = {f"m.{key}": tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors | {"want": want.float().contiguous()}, OUT / f"{name}.safetensors")


def weights(seed):
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed))


def integers(seed, high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def words(codes, bits):
    """Codes of the last dimension in numbers of 32 bits, the first in the lowest."""
    each = 32 // bits
    codes = codes.reshape(*codes.shape[:-1], -1, each).long()
    packed = (codes << (torch.arange(each) * bits)).sum(-1)
    return ((packed + 2**31) % 2**32 - 2**31).to(torch.int32)


def mlx(bits, group):
    codes, scales, biases = mx.quantize(mx.array(weights(bits).numpy()), group_size=group, bits=bits)
    # Scales have 16 bits in checkpoints; what they stand for is exact.
    scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    want = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
    tensor = lambda x: torch.from_numpy(np.array(x))
    save(f"mlx{bits}", tensor(want), weight=tensor(codes), scales=tensor(scales), biases=tensor(biases))


def fp8():
    f8 = weights(20).to(torch.float8_e4m3fn)
    scales = torch.rand(1, 4, generator=torch.Generator().manual_seed(21)) + 0.5
    save("fp8_blocks", f8.float() * scales.repeat_interleave(32, 1), weight=f8, weight_scale_inv=scales)
    scales = (torch.rand(ROWS, 1, generator=torch.Generator().manual_seed(22)) + 0.5).bfloat16()
    save("fp8_rows", f8.float() * scales.float(), weight=f8, weight_scale=scales)


def awq():
    group, order = 32, torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    codes, zeros = integers(30, 16, COLS, ROWS), integers(31, 16, COLS // group, ROWS)
    scales = (torch.rand(COLS // group, ROWS, generator=torch.Generator().manual_seed(32)) / 8).half()
    # Place i of a number holds output order[i] of its eight.
    pack = lambda x: words(x.reshape(x.shape[0], -1, 8)[:, :, order].reshape(x.shape), 4)
    want = scales.float().repeat_interleave(group, 0) * (codes - zeros.repeat_interleave(group, 0))
    save("awq", want.T, qweight=pack(codes), qzeros=pack(zeros), scales=scales)


def gptq(name, bits, group, less_one, shuffled=False):
    codes, zeros = integers(40, 2**bits, COLS, ROWS), integers(41, 2**bits, COLS // group, ROWS)
    scales = (torch.rand(COLS // group, ROWS, generator=torch.Generator().manual_seed(42)) / 8).half()
    stored = (zeros - less_one) % 2**bits
    want = scales.float().repeat_interleave(group, 0) * (codes - zeros.repeat_interleave(group, 0))
    order = torch.arange(COLS) // group
    order = order.flip(0) if shuffled else order
    save(name, want.T, qweight=words(codes.T, bits).T, qzeros=words(stored, bits), scales=scales, g_idx=order.to(torch.int32))


def packed():
    codes = integers(50, 16, ROWS, COLS)
    scales = (torch.rand(ROWS, COLS // 32, generator=torch.Generator().manual_seed(51)) / 8).bfloat16()
    want = scales.float().repeat_interleave(32, 1) * (codes - 8)
    save("packed4", want, weight_packed=words(codes, 4), weight_scale=scales, weight_shape=torch.tensor([ROWS, COLS]))


def directory():
    """A model as mlx-lm converts it, all matrices of it, and the same in F32."""
    source, out = OUT.parent / "decoders" / "qwen2_tied", OUT / "qwen2_mlx"
    own, dense = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() < 2:
            own[name] = dense[name] = tensor
            continue
        bits, module = (8 if "down_proj" in name else 4), name.removesuffix("weight")
        codes, scales, biases = mx.quantize(mx.array(tensor.float().numpy()), group_size=32, bits=bits)
        scales, biases = scales.astype(mx.bfloat16).astype(mx.float32), biases.astype(mx.bfloat16).astype(mx.float32)
        values = [torch.from_numpy(np.array(x)) for x in (codes, scales, biases)]
        own |= {f"{module}weight": values[0], f"{module}scales": values[1].bfloat16(), f"{module}biases": values[2].bfloat16()}
        dense[name] = torch.from_numpy(np.array(mx.dequantize(codes, scales, biases, group_size=32, bits=bits)))
    config = json.loads((source / "config.json").read_text())
    for folder, tensors in [(out, own), (OUT / "qwen2_mlx_dense", dense)]:
        folder.mkdir(exist_ok=True)
        if folder == out:
            layers = {f"model.layers.{i}.mlp.down_proj": {"group_size": 32, "bits": 8} for i in range(config["num_hidden_layers"])}
            config["quantization"] = config["quantization_config"] = {"group_size": 32, "bits": 4} | layers
        else:
            del config["quantization"], config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


OUT.mkdir(exist_ok=True)
directory()
for bits, group in [(2, 32), (3, 32), (4, 64), (5, 32), (6, 128), (8, 64)]:
    mlx(bits, group)
fp8()
awq()
gptq("gptq4", 4, 32, 1)
gptq("gptq4_act_order", 4, 32, 1, shuffled=True)
gptq("gptq8_v2", 8, COLS, 0)
packed()
