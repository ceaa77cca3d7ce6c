"""Writes a model of a known shape with seeded random weights, for the benchmarks: a directory as the Hub has it, and the
same weights as a GGUF file.

    python3 benches/make_model.py [--shape tiny] [--cache build/bench]

The vocabulary is made up; it is there because GGUF readers and text streaming ask for one.
"""

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "bench"
F32_BYTES = 4
SEED = 20240919


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model: biases on q, k, v and a tied output."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    head_dim: int = 64
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_context: int = 2048

    def layer(self):
        """(name in safetensors, name in GGUF, shape) of one layer's tensors."""
        c, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return [
            ("input_layernorm.weight", "attn_norm.weight", (c,)),
            ("self_attn.q_proj.weight", "attn_q.weight", (q, c)),
            ("self_attn.q_proj.bias", "attn_q.bias", (q,)),
            ("self_attn.k_proj.weight", "attn_k.weight", (kv, c)),
            ("self_attn.k_proj.bias", "attn_k.bias", (kv,)),
            ("self_attn.v_proj.weight", "attn_v.weight", (kv, c)),
            ("self_attn.v_proj.bias", "attn_v.bias", (kv,)),
            ("self_attn.o_proj.weight", "attn_output.weight", (c, q)),
            ("post_attention_layernorm.weight", "ffn_norm.weight", (c,)),
            ("mlp.gate_proj.weight", "ffn_gate.weight", (f, c)),
            ("mlp.up_proj.weight", "ffn_up.weight", (f, c)),
            ("mlp.down_proj.weight", "ffn_down.weight", (c, f)),
        ]

    def tensors(self):
        yield "model.embed_tokens.weight", "token_embd.weight", (self.vocab_size, self.hidden_size)
        for i in range(self.num_layers):
            for name, gguf_name, shape in self.layer():
                yield f"model.layers.{i}.{name}", f"blk.{i}.{gguf_name}", shape
        yield "model.norm.weight", "output_norm.weight", (self.hidden_size,)

    def weight_bytes(self):
        """Also what one decoded token reads: the output matrix is the embedding."""
        return F32_BYTES * sum(_size(shape) for _, _, shape in self.tensors())

    def kv_bytes(self, tokens):
        return F32_BYTES * 2 * self.num_layers * self.num_kv_heads * self.head_dim * tokens

    def prefill_flops(self, tokens):
        """Matrix products, causal attention, and the output matrix for the last position alone."""
        matrices = self.num_layers * sum(_size(shape) for _, _, shape in self.layer() if len(shape) == 2)
        attention = self.num_layers * 2 * self.num_heads * self.head_dim * tokens * (tokens + 1)
        return 2 * matrices * tokens + attention + 2 * self.vocab_size * self.hidden_size

    def train_flops(self, tokens, rank):
        """One sequence through a step that trains an adapter on every matrix: forward, and back to the input of each product;
        the matrices themselves have no gradient, an adapter's have. What checkpointing computes again is not counted."""
        matrices = [shape for _, _, shape in self.layer() if len(shape) == 2]
        frozen = self.num_layers * sum(map(_size, matrices)) + self.vocab_size * self.hidden_size
        trained = self.num_layers * sum(rank * sum(shape) for shape in matrices)
        attention = self.num_layers * 2 * self.num_heads * self.head_dim * tokens * (tokens + 1)
        return 2 * (2 * frozen + 3 * trained) * tokens + 3 * attention

    def config(self):
        """config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "dtype": "float32",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_context,
            "tie_word_embeddings": True,
        }


SHAPES = {
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 151936),
    "tiny": Shape(2, 128, 352, 2, 1, 1024),
}


# What is no matrix of products.
CONVOLUTIONS = ("ssm_conv1d.weight", "shortconv.conv.weight")


@dataclass(frozen=True)
class Hybrid:
    """A model of which some layers are no attention: a GGUF file alone, as llama.cpp's converter writes it. Its output is tied."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    max_context: int = 32768

    def tensors(self):
        """(name in GGUF, shape)"""
        yield "token_embd.weight", (self.vocab_size, self.hidden_size)
        for i in range(self.num_layers):
            for name, shape in self.layer(i):
                yield f"blk.{i}.{name}", shape

    def mlp(self):
        c, f = self.hidden_size, self.intermediate_size
        return [("ffn_gate.weight", (f, c)), ("ffn_up.weight", (f, c)), ("ffn_down.weight", (c, f))]

    def attention(self, q_rows):
        """`q_rows`: of the queries, or of these and their gates."""
        c, kv, d = self.hidden_size, self.num_kv_heads * self.head_dim, self.head_dim
        projections = [("attn_q.weight", (q_rows, c)), ("attn_k.weight", (kv, c)), ("attn_v.weight", (kv, c))]
        norms = [("attn_q_norm.weight", (d,)), ("attn_k_norm.weight", (d,))]
        return [*projections, *norms, ("attn_output.weight", (c, self.num_heads * d))]

    def prefill_flops(self, tokens):
        """Matrix products, causal attention, and the output matrix for the last position alone; what states take is little beside it."""
        layers = [self.layer(i) for i in range(self.num_layers)]
        matrices = sum(_size(shape) for layer in layers for name, shape in layer if len(shape) == 2 and not name.endswith(CONVOLUTIONS))
        attention = self.attention_layers() * 2 * self.num_heads * self.head_dim * tokens * (tokens + 1)
        return 2 * matrices * tokens + attention + 2 * self.vocab_size * self.hidden_size

    def attention_layers(self):
        return sum(self.is_attention(i) for i in range(self.num_layers))

    def metadata(self, writer):
        writer.add_block_count(self.num_layers)
        writer.add_embedding_length(self.hidden_size)
        writer.add_feed_forward_length(self.intermediate_size)
        writer.add_head_count(self.num_heads)
        writer.add_context_length(self.max_context)
        writer.add_rope_freq_base(self.rope_theta)


@dataclass(frozen=True)
class Qwen35(Hybrid):
    """Three gated delta nets, then an attention with gates. As many heads of keys as of values."""

    arch = "qwen35"
    heads: int = 16
    dim: int = 128
    taps: int = 4
    every: int = 4
    rotated: int = 64

    def is_attention(self, i):
        return (i + 1) % self.every == 0

    def layer(self, i):
        c, values = self.hidden_size, self.heads * self.dim
        norms = [("attn_norm.weight", (c,)), ("post_attention_norm.weight", (c,))]
        if self.is_attention(i):
            return [*norms, *self.attention(2 * self.num_heads * self.head_dim), *self.mlp()]
        net = [
            ("attn_qkv.weight", (3 * values, c)),
            ("attn_gate.weight", (values, c)),
            ("ssm_conv1d.weight", (3 * values, self.taps)),
            ("ssm_dt.bias", (self.heads,)),
            ("ssm_a", (self.heads,)),
            ("ssm_beta.weight", (self.heads, c)),
            ("ssm_alpha.weight", (self.heads, c)),
            ("ssm_norm.weight", (self.dim,)),
            ("ssm_out.weight", (c, values)),
        ]
        return [*norms, *net, *self.mlp()]

    def tensors(self):
        yield from super().tensors()
        yield "output_norm.weight", (self.hidden_size,)

    def metadata(self, writer):
        super().metadata(writer)
        writer.add_head_count_kv(self.num_kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(self.rotated)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        writer.add_ssm_conv_kernel(self.taps)
        writer.add_ssm_inner_size(self.heads * self.dim)
        writer.add_ssm_state_size(self.dim)
        writer.add_ssm_time_step_rank(self.heads)
        writer.add_ssm_group_count(self.heads)
        writer.add_full_attention_interval(self.every)


@dataclass(frozen=True)
class Lfm2(Hybrid):
    """Gated short convolutions, and attention in some layers."""

    arch = "lfm2"
    taps: int = 3
    full: tuple = ()

    def is_attention(self, i):
        return i in self.full

    def layer(self, i):
        c = self.hidden_size
        norms = [("attn_norm.weight", (c,)), ("ffn_norm.weight", (c,))]
        if self.is_attention(i):
            return [*norms, *self.attention(self.num_heads * self.head_dim), *self.mlp()]
        conv = [
            ("shortconv.in_proj.weight", (3 * c, c)),
            ("shortconv.conv.weight", (c, self.taps)),
            ("shortconv.out_proj.weight", (c, c)),
        ]
        return [*norms, *conv, *self.mlp()]

    def tensors(self):
        yield from super().tensors()
        yield "token_embd_norm.weight", (self.hidden_size,)

    def metadata(self, writer):
        super().metadata(writer)
        writer.add_head_count_kv([self.num_kv_heads if self.is_attention(i) else 0 for i in range(self.num_layers)])
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(self.vocab_size)
        writer.add_shortconv_l_cache(self.taps)


HYBRIDS = {
    "qwen3.5-0.8b": Qwen35(24, 1024, 3584, 8, 2, 256, 248320, 1e7),
    "lfm2-1.2b": Lfm2(16, 2048, 8192, 32, 8, 64, 65536, 1e6, full=(2, 5, 8, 10, 12, 14)),
    "tiny-qwen3.5": Qwen35(4, 128, 256, 2, 1, 64, 1024, 1e6, heads=2, dim=64, rotated=16),
    "tiny-lfm2": Lfm2(3, 128, 256, 2, 1, 64, 1024, 1e6, full=(1,)),
    # One layer of attention, and four or eight with a state: depth.py.
    **{f"qwen3.5-{n}-states": Qwen35(n + 1, 1024, 3584, 8, 2, 256, 1024, 1e7, every=n + 1) for n in (4, 8)},
    **{f"lfm2-{n}-states": Lfm2(n + 1, 2048, 8192, 32, 8, 64, 1024, 1e6, full=(n,)) for n in (4, 8)},
    **{f"tiny-{n}-states": Lfm2(n + 1, 128, 256, 2, 1, 64, 1024, 1e6, full=(n,)) for n in (4, 8)},
}


def make_model(name, cache=CACHE):
    """The directory of the shape's model, with `model.gguf` in it if the gguf package is there; made if missing. Of a hybrid there is
    that file alone."""
    cache, shape = Path(cache), {**SHAPES, **HYBRIDS}[name]
    directory, partial = cache / name, cache / f"{name}.partial"
    if not directory.exists():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (_save_hybrid if name in HYBRIDS else _save)(shape, partial)
        os.rename(partial, directory)
    return directory


def _save(shape, directory):
    from safetensors.numpy import save_file

    weights = _weights(shape)
    vocabulary = _vocabulary(shape.vocab_size)
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")
    (directory / "tokenizer.json").write_text(json.dumps(_tokenizer(vocabulary)))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    try:
        import gguf
    except ImportError:
        return
    _save_gguf(gguf, shape, weights, vocabulary, directory / "model.gguf")


def _save_gguf(gguf, shape, weights, vocabulary, path):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(shape.num_layers)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_context_length(shape.max_context)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    _save_vocabulary(gguf, writer, vocabulary)
    for name, gguf_name, _ in shape.tensors():
        writer.add_tensor(gguf_name, weights[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _save_vocabulary(gguf, writer, vocabulary):
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary))
    writer.add_token_merges(MERGES)


def _save_hybrid(shape, directory):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(directory / "model.gguf", shape.arch)
    shape.metadata(writer)
    _save_vocabulary(gguf, writer, _vocabulary(shape.vocab_size))
    random = np.random.default_rng(SEED)
    for name, size in shape.tensors():
        noise = _noise(random, name, size)
        # What each head of a delta net forgets: a rate below 0.
        writer.add_tensor(name, -np.abs(noise) if name.endswith("ssm_a") else noise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _noise(random, name, size):
    """Of a parameter; matrices scaled by their input, so that activations and logits stay near 1."""
    import numpy as np

    noise = random.standard_normal(size, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + np.float32(0.1) * noise
    return noise * np.float32(0.1 if len(size) == 1 else size[1] ** -0.5)


def _weights(shape):
    import numpy as np

    random = np.random.default_rng(SEED)
    return {name: _noise(random, name, size) for name, _, size in shape.tensors()}


MERGES = ["h e"]


def _vocabulary(vocab_size):
    """The byte-level alphabet of GPT-2, one merge, then words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    words = (f"w{i}" for i in range(vocab_size))
    tokens = [*map(chr, printable), *others, "he", *words]
    return tokens[:vocab_size]


def _tokenizer(vocabulary):
    """tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {"type": "BPE", "vocab": {token: id for id, token in enumerate(vocabulary)}, "merges": MERGES}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}


def _size(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices={**SHAPES, **HYBRIDS}, default="qwen2.5-0.5b")
    parser.add_argument("--cache", default=CACHE, help="folder (%(default)s)")
    args = parser.parse_args()
    print(make_model(args.shape, args.cache))
