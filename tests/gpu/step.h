// A decode step made of the kernels: how the host composes them. 5 launches a layer, 6 with split keys, over one workspace. Then all
// checks.
#pragma once
#include <functional>
#include <memory>
#include <sstream>
#include "batch_checks.h"

struct Config {
    uint hidden, ffn, heads, kv_heads, dim, layers, vocab, capacity, splits;
    uint group_shift;
};

// How a product is cut over the GPU: N rows of W a simdgroup, `split` simdgroups for them, threads of a group, at most `groups` groups.
// N and groups change no bits, so a GPU's best ones may be timed when a model is loaded; this is a default for a GPU of `units` cores.
struct Cut { uint n, split, threads, groups; };
static Cut cut_of(uint outputs, uint chunks, bool gated, bool staged, uint units) {
    Cut cut = {gated || outputs >= 4096 ? 4u : 2u, 1, 256, 1u << 30};
    if (staged) cut.groups = (cut.n == 4 ? 3 : 4) * units;  // as many as the GPU holds at once: each stages x once
    // Columns are shared while there are too few simdgroups for the GPU and each lane still gets a chunk.
    while (cut.split < 8 && outputs / (gated ? 2 : cut.n) * cut.split < 16 * units && chunks >= 64 * cut.split) cut.split *= 2;
    return cut;
}
static uint groups_of(Cut cut, uint outputs, bool gated) {
    const uint at_once = cut.threads / 32 / cut.split * (gated ? cut.n / 2 : cut.n), blocks = (outputs + at_once - 1) / at_once;
    const uint rounds = (blocks + cut.groups - 1) / cut.groups;
    return (blocks + rounds - 1) / rounds;  // each group the same number of blocks
}

struct Weight {
    void *codes, *extra, *scales;
    uint outputs, inputs;
};
struct Layer {
    Weight qkv, o, gate_up, down;
    void *attn_norm, *mlp_norm, *qkv_bias, *keys, *values;
};

struct Step {
    Gpu& gpu;
    std::string products, attention, rows;  // the libraries
    Config c;
    uint units, heads_at_once, simds_a_head, columns;  // columns of a chunk
    std::vector<Layer> layers;
    Weight embed, head;
    void *final_norm, *angles;
    // The workspace. The angles of a position lie where the host says.
    void *id, *positions, *x, *qkv, *attended, *parts, *hidden, *logits, *best;
    uint launches = 0, position = 0;

    void launch(const std::string& library, const std::string& kernel, Grid grid, uint threads, std::vector<void*> args) {
        launches++;
        gpu.launch(library, kernel, grid, threads, args.data());
    }
    void product(Weight& w, void*& in, void*& norm, void*& bias, void*& residual, void*& out, uint flags, bool gated, bool staged) {
        const Cut cut = cut_of(w.outputs, w.inputs / columns, gated, staged, units);
        Product p = {w.outputs, w.inputs, 1, cut.split, c.group_shift, flags, 1e-6f, 1};
        const std::string kernel = std::string(gated ? "product_gated" : "product") + (staged ? "" : "_direct") + "_r1n" + std::to_string(cut.n);
        launch(products, kernel, {groups_of(cut, w.outputs, gated), 1, 1}, cut.threads,
               {&w.codes, &w.extra, &w.scales, &in, &norm, &bias, &residual, &out, &p});
    }
    void run() {
        void* row = (char*)angles + size_t(position++) * c.dim * sizeof(float);
        Rows r = {c.hidden, c.group_shift, BY_ID, 1};
        launch(products, "rows", {(c.hidden / 8 + 255) / 256, 1, 1}, 256, {&embed.codes, &embed.extra, &embed.scales, &id, &x, &r});
        Attention a = {c.heads, c.kv_heads, c.capacity, c.splits, 0, 0, c.dim, 0, 1e-6f, 1 / std::sqrt(float(c.dim)), 0};
        const uint blocks = (c.heads / c.kv_heads + heads_at_once - 1) / heads_at_once;
        for (Layer& l : layers) {
            product(l.qkv, x, l.attn_norm, l.qkv_bias, x, qkv, NORM | BIAS, false, true);
            launch(attention, "attention", {c.kv_heads * blocks, c.splits, 1}, 32 * heads_at_once * simds_a_head,
                   {&qkv, &positions, &row, &row, &x, &x, &x, &l.keys, &l.values, &attended, &parts, &a});
            if (c.splits > 1) launch(attention, "combine", {c.heads, 1, 1}, (c.dim + 31) / 32 * 32, {&parts, &x, &qkv, &attended, &a});
            product(l.o, attended, x, x, x, x, RESIDUAL, false, false);
            product(l.gate_up, x, l.mlp_norm, x, x, hidden, NORM, true, true);
            product(l.down, hidden, x, x, x, x, RESIDUAL, false, false);
        }
        product(head, x, final_norm, x, x, logits, NORM, false, true);
        Argmax part = {c.vocab, (c.vocab + 63) / 64, 0};
        launch(rows, "argmax", {64, 1, 1}, 256, {&logits, &best, &part});
    }
};

// ---- the same step in F64 ----
typedef std::vector<double> Row;
static Row times(const Matrix& m, const Row& v) {
    Row y(m.w.size() / v.size());
    for (size_t o = 0; o < y.size(); o++) for (size_t k = 0; k < v.size(); k++) y[o] += m.w[o * v.size() + k] * v[k];
    return y;
}
static Row normed(Row v, const Buffer& weight) {
    double squares = 0;
    for (double e : v) squares += e * e;
    for (size_t i = 0; i < v.size(); i++) v[i] *= weight[i] / std::sqrt(squares / v.size() + 1e-6);
    return v;
}
static void add(Row& a, const Row& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] += b[i];
}
// Attention of one head over the keys and values so far.
static Row attended(const double* q, uint dim, const std::vector<Row>& keys, const std::vector<Row>& values) {
    Row weights, sum(dim);
    double total = 0;
    for (const Row& key : keys) {
        double score = 0;
        for (uint i = 0; i < dim; i++) score += q[i] * key[i];
        weights.push_back(std::exp(score / std::sqrt(double(dim))));
        total += weights.back();
    }
    for (size_t p = 0; p < weights.size(); p++) for (uint i = 0; i < dim; i++) sum[i] += weights[p] / total * values[p][i];
    return sum;
}

// Three tokens of a small random model, greedily, against the same in F64; the cache rounds to T in both.
static void check_step(Gpu& gpu, Type t, const std::string& products, const std::string& attention, const std::string& rows, uint dim,
                       uint heads_at_once, uint simds_a_head, const std::string& format, uint splits) {
    const FormatInfo& info = format_of(format);
    const Config c = {192, 320, 6, 2, dim, 2, 211, 8, splits, format == "eight" ? 1u : 0u};
    const uint width = (c.heads + 2 * c.kv_heads) * dim;
    noise_state = dim;
    Buffer angles(gpu, F32, c.capacity * dim), norm(gpu, F32, c.hidden), bias(gpu, F32, width), id(gpu, F32, 1, 0), positions(gpu, F32, 1, 0);
    Buffer x(gpu, F32, c.hidden, 0), qkv(gpu, F32, width, 0), attended_(gpu, F32, c.heads * dim, 0);
    Buffer parts(gpu, F32, c.heads * splits * (dim + 2), 0), hidden(gpu, F32, c.ffn, 0), logits(gpu, F32, c.vocab, 0);
    Buffer best(gpu, F32, 4 * 64, 0);
    std::vector<std::unique_ptr<Matrix>> matrices;
    std::vector<std::unique_ptr<Buffer>> caches;
    auto matrix = [&](uint outputs, uint inputs) -> Weight {
        matrices.emplace_back(new Matrix(gpu, info, t, outputs, inputs, c.group_shift));
        Matrix& m = *matrices.back();
        return {m.codes.at(), m.extra.at(), m.scales.at(), outputs, inputs};
    };
    Step s = {gpu, products, attention, rows, c, 4, heads_at_once, simds_a_head, info.columns, {}, matrix(c.vocab, c.hidden), {},
              norm.at(), angles.at(), id.at(), positions.at(), x.at(), qkv.at(), attended_.at(), parts.at(), hidden.at(),
              logits.at(), best.at()};
    s.head = s.embed;
    for (uint i = 0; i < c.layers; i++) {
        for (int k = 0; k < 2; k++) caches.emplace_back(new Buffer(gpu, t, c.kv_heads * c.capacity * dim, 0));
        Weight qkv_ = matrix(width, c.hidden), o = matrix(c.hidden, c.heads * dim), gate_up = matrix(2 * c.ffn, c.hidden);
        Weight down = matrix(c.hidden, c.ffn);
        gate_up.outputs = c.ffn;
        s.layers.push_back({qkv_, o, gate_up, down, norm.at(), norm.at(), bias.at(), caches[2 * i]->at(), caches[2 * i + 1]->at()});
    }
    std::vector<std::vector<Row>> keys(c.layers * c.kv_heads), values(c.layers * c.kv_heads);
    uint token = 5;
    for (uint position = 0; position < 3; position++) {
        id.as<uint>()[0] = token, positions.as<uint>()[0] = position, id.up(), positions.up();
        s.run();
        Row h(matrices[0]->w.begin() + token * c.hidden, matrices[0]->w.begin() + (token + 1) * c.hidden);
        for (uint l = 0; l < c.layers; l++) {
            Row v = times(*matrices[1 + 4 * l], normed(h, norm)), out;
            for (uint i = 0; i < width; i++) v[i] += bias[i];
            for (uint head = 0; head < c.heads + c.kv_heads; head++) for (uint i = 0; i < dim / 2; i++) {
                const double cs = angles[(position * dim / 2 + i) * 2], sn = angles[(position * dim / 2 + i) * 2 + 1];
                double &a = v[head * dim + i], &b = v[head * dim + i + dim / 2];
                const double a0 = a;
                a = a0 * cs - b * sn, b = b * cs + a0 * sn;
            }
            float stored;
            for (uint i = c.heads * dim; i < width; i++) encode(t, &stored, 0, v[i]), v[i] = decode(t, &stored, 0);
            for (uint k = 0; k < 2 * c.kv_heads; k++)
                (k < c.kv_heads ? keys : values)[l * c.kv_heads + k % c.kv_heads].emplace_back(v.begin() + (c.heads + k) * dim,
                                                                                               v.begin() + (c.heads + k + 1) * dim);
            for (uint head = 0; head < c.heads; head++) {
                const uint k = l * c.kv_heads + head / (c.heads / c.kv_heads);
                const Row sum = attended(&v[head * dim], dim, keys[k], values[k]);
                out.insert(out.end(), sum.begin(), sum.end());
            }
            add(h, times(*matrices[2 + 4 * l], out));
            Row both = times(*matrices[3 + 4 * l], normed(h, norm)), inner(c.ffn);
            for (uint i = 0; i < c.ffn; i++) inner[i] = activated(both[i], 0) * both[c.ffn + i];
            add(h, times(*matrices[4 + 4 * l], inner));
        }
        const Row want = times(*matrices[0], normed(h, norm));
        logits.down(), best.down();
        Error error;
        for (uint i = 0; i < c.vocab; i++) error.add(logits[i], want[i]);
        error.expect(1e-4, "step of " + format + " token " + std::to_string(position));
        token = std::max_element(want.begin(), want.end()) - want.begin();
        const uint found = best_of(best.as<uint>(), 64).id;
        if (found != token) wrong("step of " + format + ": token " + std::to_string(found));
    }
    if (s.launches / 3 - 3 != c.layers * (splits > 1 ? 6 : 5)) wrong(std::to_string(s.launches) + " launches");
}

// ---- all ----
static void check_library(Gpu& gpu, const std::string& library) {
    std::istringstream fields(library);
    std::string kind, type, format;
    uint dim, heads, parts, stage;
    fields >> kind >> type;
    const Type t = type == "half" ? F16 : type == "bf16" ? BF16 : F32;
    if (kind == "row") check_norms(gpu, library), check_argmax(gpu, library), check_convolution(gpu, library), check_delta_net(gpu, library);
    if (kind == "batch") check_batch(gpu, library, t);
    if (kind == "product") fields >> stage >> format, check_products(gpu, library, t, format_of(format));
    if (kind == "attention") {
        fields >> dim >> heads >> parts;
        check_attention(gpu, library, t, dim, heads, parts);
    }
}
static void check_steps(Gpu& gpu) {
    check_step(gpu, F16, "product half 512 dense", "attention half 64 7 2 4", "row float", 64, 7, 2, "dense", 1);
    check_step(gpu, F16, "product half 512 four", "attention half 64 7 2 4", "row float", 64, 7, 2, "four", 1);
    check_step(gpu, F32, "product float 512 dense", "attention float 96 1 4 2", "row float", 96, 1, 4, "dense", 1);
    check_step(gpu, BF16, "product bf16 1024 dense", "attention bf16 128 4 2 2", "row float", 128, 4, 2, "dense", 3);
}
