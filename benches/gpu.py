"""Tokens a second on a GPU: a model of Qwen2.5-0.5B's shape with random weights in BF16, in eight and in four bits, beside PyTorch.

    cargo build --release --features cuda
    python3 benches/gpu.py                     # all; --only decode,together,prefill
    python3 benches/gpu.py --shape lfm2-1.2b   # of a hybrid, or qwen3.5-0.8b: without a peer
    python3 benches/gpu.py --shape tiny --rounds 2 --device cpu   # seconds: tests the benchmark, says nothing about speed

It needs numpy, and torch for the peer; without torch, or a GPU that it knows, the peer is skipped with a line. The model is written to
build/bench/gpu-SHAPE (1 GB of BF16) when it is first asked for.
"""

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np

import c_abi
from make_model import CACHE, HYBRIDS, ROOT, SEED, Shape, make_model

SHAPES = {
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 151936),
    "qwen2.5-7b": Shape(28, 3584, 18944, 28, 4, 152064, head_dim=128),
    "tiny": Shape(2, 128, 352, 2, 1, 1024),
    **HYBRIDS,
}
# Name: (type, quantisation on loading), and what the kernels of a GPU make of it.
WAYS = {
    "bf16": ("BF16", None),
    "eight": ("BF16", "q8_0"),  # eight_sym
    "four": ("BF16", "mlx4"),  # four, groups of 64
    "four_sym": ("BF16", "q4_0"),  # with six bits in the output matrix
}
PARTS = ("decode", "together", "prefill")
PROMPT, STEPS, PREFILL, SESSIONS = 32, 128, 512, 4
# Least cosines of the logits, with PyTorch's or, without it, those of the first. Random weights lose the most when they are quantised.
COSINES = {"bf16": 0.99, "eight": 0.97, "four": 0.5, "four_sym": 0.5}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", default=ROOT / "target/release/libmetal_candle.so", help="%(default)s")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--device", choices=c_abi.DEVICES, default="cuda")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help=",".join(WAYS))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    args = parser.parse_args()
    shape, directory = SHAPES[args.shape], written(args.shape)
    library = c_abi.Library(args.lib)
    print(f"{args.shape}: {shape}\nmetal-candle {library.version_string().decode()} on {args.device}, {args.rounds} rounds")
    draw = np.random.default_rng(SEED)
    prompt = draw.integers(0, shape.vocab_size, PROMPT).tolist()
    long = draw.integers(0, shape.vocab_size, PREFILL).tolist()
    rows, reference = [], None
    peer = torch_peer(directory, shape, args.device) if isinstance(shape, Shape) else None
    if peer:
        rows += peer.measure(args, prompt, long)
        reference = peer.logits(long)
        peer.free()
    for name in args.ways:
        found, logits = ours(library, directory, name, args, prompt, long)
        rows += found
        if reference is None:
            reference = logits
        cosine = float(logits @ reference / np.sqrt((logits @ logits) * (reference @ reference)))
        print(f"  logits of {name}: cosine {cosine:.5f} with {'the first of these' if peer is None else 'PyTorch'}")
        if not cosine >= COSINES[name]:
            sys.exit(f"FAILED {name}: expected a cosine of at least {COSINES[name]}")
    best = {part: max((row["median"] for row in rows if row["part"] == part and row["who"].startswith("PyTorch")), default=None) for part in PARTS}
    print(f"\n{'':28}{'part':12}{'tok/s':>10}   least to greatest      of PyTorch's best")
    for row in rows:
        ratio = f"{row['median'] / best[row['part']]:8.2f} x" if best[row["part"]] else ""
        print(f"  {row['who']:26}{row['part']:12}{row['median']:10.1f}   {row['least']:.1f} to {row['greatest']:.1f}{'':6}{ratio}")
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "gpu.json").write_text(json.dumps({"shape": args.shape, "device": args.device, "rows": rows}, indent=1) + "\n")


def written(name):
    """The model's directory: config.json and one file of BF16, seeded; made if missing. Of a hybrid the GGUF file."""
    if name in HYBRIDS:
        return make_model(name) / "model.gguf"
    shape, directory = SHAPES[name], CACHE / f"gpu-{name}"
    if (directory / "model.safetensors").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**shape.config(), "dtype": "bfloat16"}, indent=1))
    header, end = {}, 0
    for tensor, _, dims in shape.tensors():
        size = 2 * int(np.prod(dims))
        header[tensor] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial, draw = directory / "model.partial", np.random.default_rng(SEED)
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, _, dims in shape.tensors():
            # Streams of length one keep their length: near that of trained networks.
            values = draw.standard_normal(dims, np.float32) * (dims[-1] ** -0.5 if len(dims) == 2 else 0.02)
            if tensor.endswith("norm.weight"):
                values += 1
            bits = values.view(np.uint32)
            file.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes())
    os.rename(partial, directory / "model.safetensors")
    return directory


def row(who, part, rates):
    return {"who": who, "part": part, "median": statistics.median(rates), "least": min(rates), "greatest": max(rates)}


def ours(library, directory, name, args, prompt, long):
    """Rates, and the logits after the long prompt."""
    dtype, quantization = WAYS[name]
    start = time.perf_counter()
    model = c_abi.Model(library, directory, dtype, args.device, quantization=quantization)
    print(f"\n{name}: loaded in {time.perf_counter() - start:.1f} s, {model.backend()}")
    session, rates = c_abi.Session(model, PREFILL + STEPS + 8), {part: [] for part in PARTS}
    for number in range(args.rounds + 1):
        if "decode" in args.only:
            session.truncate(0)
            session.append(prompt)
            session.generate(8, "silent", None)
            start = time.perf_counter()
            session.generate(STEPS, "silent", None)
            rates["decode"].append(STEPS / (time.perf_counter() - start))
        if "prefill" in args.only:
            session.truncate(0)
            start = time.perf_counter()
            session.append(long)
            session.logits()
            rates["prefill"].append(PREFILL / (time.perf_counter() - start))
        if "together" in args.only:
            rates["together"].append(together(model, prompt))
    session.truncate(0)
    session.append(long)
    logits = np.array(session.logits(), np.float64)
    session.free()
    model.free()
    # The first round warms up.
    return [row(f"metal-candle {name}", part, rates[part][1:]) for part in PARTS if rates[part]], logits


def together(model, prompt):
    """Tokens a second of several sessions that go on at once, in all."""
    sessions = [c_abi.Session(model, PROMPT + STEPS + 8) for _ in range(SESSIONS)]
    for number, session in enumerate(sessions):
        session.append(prompt[number:] + prompt[:number])
        session.begin(STEPS)
    c_abi.next_of(sessions)
    start = time.perf_counter()
    for _ in range(STEPS - 1):
        c_abi.next_of(sessions)
    rate = SESSIONS * (STEPS - 1) / (time.perf_counter() - start)
    for session in sessions:
        session.end()
        session.free()
    return rate


def torch_peer(directory, shape, device):
    try:
        import torch
    except ImportError:
        return print("skipped PyTorch: not installed")
    if device == "cuda" and not torch.cuda.is_available():
        return print("skipped PyTorch: it finds no GPU")
    return PyTorch(torch, directory, shape, "cuda" if device == "cuda" else "cpu")


class PyTorch:
    """The same network in BF16 with a static cache: as it is, and compiled into a graph."""

    def __init__(self, torch, directory, shape, device):
        self.torch, self.shape, self.device = torch, shape, device
        data = np.memmap(directory / "model.safetensors", np.uint8, "r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())

        def tensor(name):
            first, last = header[name]["data_offsets"]
            bits = np.array(data[8 + length + first : 8 + length + last]).view(np.int16)
            return torch.from_numpy(bits).view(torch.bfloat16).reshape(header[name]["shape"]).to(device)

        self.embed, self.norm = tensor("model.embed_tokens.weight"), tensor("model.norm.weight")
        self.layers = []
        for i in range(shape.num_layers):
            own = {name.split(".weight")[0]: tensor(f"model.layers.{i}.{name}") for name, _, _ in shape.layer() if name.endswith("weight")}
            bias = [tensor(f"model.layers.{i}.self_attn.{x}_proj.bias") for x in "qkv"]
            # What reads the same input is one product.
            own["qkv"] = torch.cat([own.pop(f"self_attn.{x}_proj") for x in "qkv"]), torch.cat(bias)
            own["gate_up"] = torch.cat([own.pop(f"mlp.{x}_proj") for x in ("gate", "up")])
            self.layers.append(own)
        capacity = PREFILL + STEPS + 8
        size = (shape.num_layers, 2, 1, shape.num_kv_heads, capacity, shape.head_dim)
        self.cache = torch.zeros(size, dtype=torch.bfloat16, device=device)
        angles = torch.outer(torch.arange(capacity), shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim))
        self.cos, self.sin = (x.to(torch.bfloat16).to(device) for x in (angles.cos(), angles.sin()))
        # A graph reads them where they are: what it takes for inputs would be copied for every token.
        weights = [x for own in self.layers for value in own.values() for x in (value if isinstance(value, tuple) else (value,))]
        for own in (*weights, self.embed, self.norm, self.cache, self.cos, self.sin):
            torch._dynamo.mark_static_address(own)
        self.compiled = torch.compile(self.forward, mode="reduce-overhead", fullgraph=True) if device == "cuda" else None

    def rms(self, x, weight):
        wide = x.float()
        return (wide * self.torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.eps)).to(x.dtype) * weight

    def turned(self, x, positions):
        half = self.shape.head_dim // 2
        cos, sin = self.cos[positions], self.sin[positions]
        a, b = x[..., :half], x[..., half:]
        return self.torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, ids, positions):
        """Logits behind the last of `ids`, `(T)`, which are at `positions`."""
        torch, s, f = self.torch, self.shape, self.torch.nn.functional
        x, t = self.embed[ids], ids.shape[0]
        seen = torch.arange(self.cache.shape[4], device=ids.device)[None, :] <= positions[:, None]
        for i, own in enumerate(self.layers):
            qkv = f.linear(self.rms(x, own["input_layernorm"]), *own["qkv"])
            q, k, v = qkv.split([s.num_heads * s.head_dim, *[s.num_kv_heads * s.head_dim] * 2], -1)
            q, k, v = (y.view(t, -1, s.head_dim).transpose(0, 1)[None] for y in (q, k, v))
            keys, values = self.cache[i]
            keys.index_copy_(2, positions, self.turned(k, positions))
            values.index_copy_(2, positions, v)
            y = f.scaled_dot_product_attention(self.turned(q, positions), keys, values, seen[None, None], enable_gqa=True)
            x = x + f.linear(y[0].transpose(0, 1).reshape(t, -1), own["self_attn.o_proj"])
            gate, up = f.linear(self.rms(x, own["post_attention_layernorm"]), own["gate_up"]).chunk(2, -1)
            x = x + f.linear(f.silu(gate) * up, own["mlp.down_proj"])
        return f.linear(self.rms(x[-1:], self.norm), self.embed)[0]

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def run(self, forward, ids, first):
        torch = self.torch
        positions = torch.arange(first, first + len(ids), device=self.device)
        return forward(torch.tensor(ids, device=self.device), positions)

    def measure(self, args, prompt, long):
        ways = {"PyTorch": self.forward} | ({"PyTorch compiled": self.compiled} if self.compiled else {})
        rows = []
        with self.torch.inference_mode():
            for who, forward in ways.items():
                rates = {"decode": [], "prefill": []}
                for number in range(args.rounds + 2):
                    token = int(self.run(self.forward, prompt, 0).argmax())
                    id, position = self.torch.tensor([token], device=self.device), self.torch.tensor([PROMPT], device=self.device)
                    for warm in range(8):
                        id = forward(id, position).argmax(-1, keepdim=True).clone()
                        position = position + 1
                    self.wait()
                    start = time.perf_counter()
                    for _ in range(STEPS):
                        id = forward(id, position).argmax(-1, keepdim=True).clone()
                        position = position + 1
                        id.item()  # a program reads every token
                    rates["decode"].append(STEPS / (time.perf_counter() - start))
                    start = time.perf_counter()
                    self.run(self.forward, long, 0).float().cpu()
                    rates["prefill"].append(PREFILL / (time.perf_counter() - start))
                # Two rounds warm up and compile.
                rows += [row(who, part, rates[part][2:]) for part in rates if part in args.only and (part == "decode" or who == "PyTorch")]
        return rows

    def logits(self, ids):
        with self.torch.inference_mode():
            return self.run(self.forward, ids, 0).float().cpu().numpy().astype(np.float64)

    def free(self):
        self.layers, self.embed, self.cache, self.compiled = [], None, None, None
        if self.device == "cuda":
            self.torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
