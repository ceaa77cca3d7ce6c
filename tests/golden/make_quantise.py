"""Makes quantise.json: the errors of ggml's own quantisers, and of MLX's formula, on random values (numpy 2.4, gcc 12).

    python make_quantise.py GGML           (needs numpy, gcc, and a directory with the sources of ggml, commit d99724f)

Values are not stored: they come from xorshift64, here as in the test (src/kernels/format/quantise.rs), 65536 of a distribution that is
nearly normal and as many of Laplace's. They are quantised by `ggml_quantize_chunk` without an importance matrix and widened again.
Of each format there is the sum of squared errors, and the same weighted by the root mean square of 32 values plus |x|."""
import json, os, subprocess, sys, tempfile
import numpy as np

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "ggml.h"
// What ggml.c calls and no quantiser does.
void ggml_critical_section_start(void) {}
void ggml_critical_section_end(void) {}
void ggml_backend_tensor_memset(void) {}
void ggml_backend_tensor_set(void) {}
int ggml_backend_buffer_get_usage(void) { return 0; }
int main(int argc, char **argv) {
    enum ggml_type type = atoi(argv[1]);
    static float x[65536];
    static char blocks[4 * 65536];
    if (fread(x, 4, 65536, stdin) != 65536) return 1;
    ggml_quantize_init(type);
    ggml_quantize_chunk(type, x, blocks, 0, 64, 1024, NULL);
    ggml_get_type_traits(type)->to_float(blocks, x, 65536);
    return fwrite(x, 4, 65536, stdout) != 65536;
}
"""
TYPES = {"q8_0": 8, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q4_k": 12, "q5_k": 13, "q6_k": 14, "iq4_nl": 20}


def uniforms():
    state = 0x9E3779B97F4A7C15
    while True:
        state ^= (state << 13) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= (state << 17) & 0xFFFFFFFFFFFFFFFF
        yield ((state >> 32) + 0.5) / 4294967296.0


def random(distribution):
    u = uniforms()
    if distribution == "normal":
        values = [sum(next(u) for _ in range(12)) - 6.0 for _ in range(65536)]
    else:
        values = [(-1.0 if next(u) < 0.5 else 1.0) * np.log(next(u)) for _ in range(65536)]
    return (np.array(values) * 0.02).astype("<f4")


def mlx4(values):
    """As `affine_quantize` of mlx/backend/metal/kernels/quantized.h, with the scale and bias in F16."""
    x = values.reshape(-1, 64)
    low, high = x.min(1), x.max(1)
    scale = np.maximum((high - low) / np.float32(15), np.float32(1e-7))
    scale = np.where(np.abs(low) > np.abs(high), scale, -scale)
    edge = np.where(np.abs(low) > np.abs(high), low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps == 0, scale, edge / np.where(steps == 0, 1, steps)).astype(np.float32)
    bias = np.where(steps == 0, 0, edge).astype(np.float32)
    codes = np.clip(np.rint((x - bias[:, None]) / scale[:, None]), 0, 15)
    f16 = lambda x: x.astype(np.float16).astype(np.float32)[:, None]
    return (codes * f16(scale) + f16(bias)).reshape(-1)


def errors(x, y):
    x, y = (a.astype(np.float64).reshape(-1, 32) for a in (x, y))
    weights = np.sqrt((x * x).mean(1, keepdims=True)) + np.abs(x)
    return [float(((x - y) ** 2).sum()), float((weights * (x - y) ** 2).sum())]


ggml, golden = sys.argv[1], {}
with tempfile.TemporaryDirectory() as directory:
    source, program = os.path.join(directory, "reference.c"), os.path.join(directory, "reference")
    with open(source, "w") as f:
        f.write(PROGRAM)
    include = [f"-I{ggml}/{path}" for path in ("include", "src", "src/ggml-cpu")]
    defines = ["-D_GNU_SOURCE", '-DGGML_VERSION="0"', '-DGGML_COMMIT="0"']
    files = [source, f"{ggml}/src/ggml.c", f"{ggml}/src/ggml-quants.c"]
    subprocess.run(["gcc", "-O2", "-w", "-ffp-contract=off", *defines, *include, *files, "-lm", "-o", program], check=True)
    for distribution in ("normal", "laplace"):
        values, of = random(distribution), {}
        for name, number in TYPES.items():
            out = subprocess.run([program, str(number)], input=values.tobytes(), stdout=subprocess.PIPE, check=True).stdout
            of[name] = errors(values, np.frombuffer(out, dtype="<f4"))
        of["affine4_64"] = errors(values, mlx4(values))
        golden[distribution] = of
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "quantise.json"), "w") as f:
    json.dump(golden, f, indent=1)
    f.write("\n")
