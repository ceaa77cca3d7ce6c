"""Makes formats.json: what llama.cpp makes of random blocks of each quantised format (written with gguf 0.19, numpy 2.4).

    python make_formats.py                 (needs gguf, numpy)

The blocks are not stored: bytes come from xorshift64, here as in the test (src/kernels/format.rs), and the byte that holds the top of
the exponent of each scale (`scales`) loses its second highest bit, so that scales are below 2. Of the values, which are those of
gguf-py's `quants.py`, and of two formulas below for what it lacks: the first eight, and the sha256 of all, F32, little endian.
There are enough blocks that every point of every grid is looked up. ggml's own `dequantize_row_*` (commit 0c1e570, compiled with
-ffp-contract=off) gives the same bits for all of them."""
import hashlib, json, os
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Where the upper byte of each F16 stands; of IQ1_M, that of the u16 with its highest bits; of MXFP4 the exponent. NVFP4 has no
# bytes that would be infinite.
SCALES = {
    "Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q8_0": [1],
    "Q2_K": [81, 83], "Q3_K": [109], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209],
    "IQ4_NL": [1], "IQ4_XS": [1], "IQ3_XXS": [1], "IQ3_S": [1], "IQ2_XXS": [1], "IQ2_XS": [1], "IQ2_S": [1], "IQ1_S": [1], "IQ1_M": [55],
    "TQ1_0": [53], "TQ2_0": [65], "Q1_0": [1], "Q2_0": [1], "MXFP4": [0], "NVFP4": [],
}
LACKING = {"Q1_0": (128, 18), "Q2_0": (64, 18)}
BLOCKS = 1024


def random_bytes(count):
    state, out = 0x9E3779B97F4A7C15, bytearray()
    for _ in range(count):
        state ^= (state << 13) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= (state << 17) & 0xFFFFFFFFFFFFFFFF
        out.append(state >> 32 & 0xFF)
    return out


def by_formula(name, rows):
    d = np.ascontiguousarray(rows[:, :2]).view(np.float16).astype(np.float32)
    bits = np.unpackbits(rows[:, 2:], axis=1, bitorder="little").astype(np.float32)
    return np.where(bits == 1, d, -d) if name == "Q1_0" else (bits[:, ::2] + 2 * bits[:, 1::2] - 1) * d


golden = {}
for name, scales in SCALES.items():
    _, size = LACKING.get(name) or GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    data = random_bytes(BLOCKS * size)
    for block in range(BLOCKS):
        for at in scales:
            data[block * size + at] &= 0xBF
    rows = np.frombuffer(bytes(data), dtype=np.uint8).reshape(BLOCKS, size)
    values = by_formula(name, rows) if name in LACKING else quants.dequantize(rows, GGMLQuantizationType[name])
    values = np.ascontiguousarray(values, dtype="<f4")
    assert np.isfinite(values).all(), name
    golden[name.lower()] = {
        "scales": scales, "blocks": BLOCKS, "first": [float(x) for x in values.reshape(-1)[:8]],
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }
text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in golden.items())
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "formats.json"), "w") as f:
    f.write("{\n" + text + "\n}\n")
