// Every kernel against plain loops in F64, on any device: odd sizes, offsets, all types; then equalities between bits.
#pragma once
#include "values.h"
#include "params.h"

// ---- norms ----
static void check_norms(Gpu& gpu, const std::string& library) {
    const uint all_flags[] = {0, ADD_AFTER | SHIFT, LANE_ORDER, LAYER | SHIFT, LAYER | ADD_AFTER};
    for (uint cols : {1u, 31u, 100u, 416u, 1001u}) for (uint flags : all_flags) {
        if ((flags & LANE_ORDER && cols % 32) || (few && cols != 416)) continue;
        const uint rows = 3;
        Buffer x(gpu, F32, rows * cols), added(gpu, F32, rows * cols), weight(gpu, F32, cols), bias(gpu, F32, cols);
        Buffer y(gpu, F32, rows * cols, 0);
        Norm p = {cols, flags, 0.1f, flags & ADD_AFTER ? 0.7f : 1};
        run(gpu, library, "norm_f32", {rows, 1, 1}, cols > 400 && !few ? 256 : 64, x.at(), added.at(), weight.at(), bias.at(), y.at(), p);
        y.down();
        Error error;
        for (uint r = 0; r < rows; r++) {
            double mean = 0, squares = 0;
            if (flags & LAYER) for (uint i = 0; i < cols; i++) mean += x[r * cols + i] / cols;
            for (uint i = 0; i < cols; i++) squares += (x[r * cols + i] - mean) * (x[r * cols + i] - mean);
            for (uint i = 0; i < cols; i++) {
                double want = (x[r * cols + i] - mean) / std::sqrt(squares / cols + p.eps) * weight[i];
                if (flags & SHIFT) want += bias[i];
                if (flags & ADD_AFTER) want += added[r * cols + i];
                error.add(y[r * cols + (flags & LANE_ORDER ? lane_order(i, cols) : i)], p.scale * want);
            }
        }
        error.expect(rounding(F32), "norm_f32 cols " + std::to_string(cols) + " flags " + std::to_string(flags));
    }
}

// ---- products ----
static double activated(double v, uint flags) {
    switch (flags / ACTIVATION % 8) {
        case GELU: return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
        case GELU_TANH: return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
        case QUICK_GELU: return v / (1 + std::exp(-1.702 * v));
        case RELU: return std::max(v, 0.0);
        case RELU2: return std::max(v, 0.0) * std::max(v, 0.0);
        case TANH: return std::tanh(v);
        case SIGMOID: return 1 / (1 + std::exp(-v));
        default: return v / (1 + std::exp(-v));
    }
}

struct Shape {
    uint rows_at_once, n;
    bool gated, staged;
    const char* kernel;
};
static const Shape SHAPES[] = {{1, 2, false, true, "product_r1n2"},         {1, 4, false, true, "product_r1n4"},
                               {1, 2, false, false, "product_direct_r1n2"}, {1, 4, false, false, "product_direct_r1n4"},
                               {4, 2, false, false, "product_direct_r4n2"},
                               {1, 4, true, true, "product_gated_r1n4"},    {4, 2, true, false, "product_gated_direct_r4n2"}};
struct Size { uint outputs, inputs, shift, split, groups, threads; };
static const Size SIZES[] = {{1, 32, 0, 1, 1, 32},    {7, 64, 0, 1, 2, 64},    {64, 96, 0, 2, 3, 128},
                             {33, 512, 1, 8, 5, 256}, {19, 576, 1, 4, 2, 256}, {32, 1152, 1, 2, 1, 128}};

// The bytes of y, and its error against F64.
static std::vector<char> product(Gpu& gpu, const std::string& library, Type t, const FormatInfo& format, const Shape& shape, uint rows,
                                 const Size& size, uint groups, uint flags) {
    const uint outputs = size.outputs, inputs = size.inputs;
    noise_state = outputs * 31 + inputs + size.shift;
    if (!shape.staged) flags &= ~uint(NORM);
    Matrix m(gpu, format, t, shape.gated ? 2 * outputs : outputs, inputs, format.bits == 16 ? 0 : size.shift);
    // Small sums, so that an activation is asked where it is curved.
    Buffer x(gpu, F32, rows * inputs + 4, flags & ACTIVATE ? 0.2 : 1), weight(gpu, F32, inputs), bias(gpu, F32, 2 * outputs), residual(gpu, F32, rows * outputs);
    Buffer y(gpu, F32, rows * outputs, 0);
    Product p = {outputs, inputs, rows, size.split, m.shift, flags, 0.1f, 0.5f};
    run(gpu, library, shape.kernel, {groups, (rows + shape.rows_at_once - 1) / shape.rows_at_once, 1}, size.threads, m.codes.at(),
        m.extra.at(), m.scales.at(), x.at(4), weight.at(), bias.at(), residual.at(), y.at(), p);
    y.down();
    Error error;
    for (uint r = 0; r < rows; r++) {
        double squares = 0;
        for (uint k = 0; k < inputs; k++) squares += x[4 + r * inputs + k] * x[4 + r * inputs + k];
        const double statistic = flags & NORM ? 1 / std::sqrt(squares / inputs + p.eps) : 1;
        auto row = [&](size_t o) {
            double sum = 0;
            for (uint k = 0; k < inputs; k++) {
                const double value = x[4 + r * inputs + (shape.staged ? k : lane_order(k, inputs))];
                sum += m.w[o * inputs + k] * value * (flags & NORM ? weight[k] : 1);
            }
            return sum * statistic + (flags & BIAS ? bias[o] : 0);
        };
        for (uint o = 0; o < outputs; o++) {
            const double v = shape.gated        ? activated(row(o), flags) * row(outputs + o)
                             : flags & ACTIVATE ? activated(row(o), flags)
                                                : row(o);
            const uint to = r * outputs + (shape.gated || flags & ACTIVATE ? lane_order(o, outputs) : o);
            const double factor = flags & FACTOR ? residual[r * outputs + o] : 1;
            error.add(y[to], 0.5 * v * factor + (flags & RESIDUAL ? residual[to] : 0));
        }
    }
    char what[200];
    snprintf(what, sizeof what, "%s %s rows %u, %u from %u, shift %u, split %u, flags %u", format.name, shape.kernel, rows, outputs,
             inputs, size.shift, size.split, flags);
    // Of a code below 256 the power takes 8 bits of F32's 24; dense weights and levels are multiplied as they are.
    error.expect(format.bits == 16 || format.table ? 2e-6 : 4e-5, what);
    return y.host;
}

static void check_products(Gpu& gpu, const std::string& library, Type t, const FormatInfo& format) {
    const uint gelu = ACTIVATION * GELU_TANH;
    const uint flags[] = {0, NORM, BIAS | RESIDUAL, NORM | BIAS | gelu, RESIDUAL | gelu, NORM | RESIDUAL};
    // Formats share all but how they are decoded: most need not show again what sums and bounds do.
    const bool all = format.bits == 16 || library == "product half 512 four";
    for (uint i = 0; i < 6; i++) {
        const Size& size = SIZES[i];
        if ((!all && (i == 3 || i == 5)) || (few && i != 2 && i != 4)) continue;
        for (const Shape& shape : SHAPES) {
            if ((shape.gated && size.outputs % 32 > 0) || (!all && shape.n == 4)) continue;
            const uint rows = shape.rows_at_once == 1 ? 1 + i % 2 : 1 + (i + 2) % (2 * shape.rows_at_once);
            product(gpu, library, t, format, shape, rows, size, size.groups, flags[(i + shape.n) % 6]);
        }
    }
    if (all && !few) for (uint kind = SILU; kind <= SIGMOID; kind++)
        product(gpu, library, t, format, SHAPES[kind % 2 ? 0 : 4], 2, SIZES[2], 3, ACTIVATE | BIAS | ACTIVATION * kind | (kind % 3 ? 0 : FACTOR));
    // Rows beside it, rows of W at once, and how many threadgroups there are: none changes a bit.
    if (all && !few) for (uint i : {3, 5}) for (uint first : {0, 2}) {
        const uint norm = first ? 0 : NORM, last = first ? 5 : 2;
        const auto one = product(gpu, library, t, format, SHAPES[first], 3, SIZES[i], 7, norm);
        for (uint k = first + 1; k < last; k++)
            if (one != product(gpu, library, t, format, SHAPES[k], 3, SIZES[i], 3, norm))
                wrong(std::string(format.name) + ": bits of " + SHAPES[first].kernel + " and " + SHAPES[k].kernel + " differ");
    }
    for (bool by_id : {true, false}) for (bool stored : {false, true}) {
        if (few && (by_id || stored)) continue;
        const uint cols = 2112;
        Matrix m(gpu, format, t, 9, cols, format.bits == 16 ? 0 : 1);
        Buffer ids(gpu, F32, 3, 0), y(gpu, stored ? t : F32, 3 * cols, 0);
        const uint wanted[] = {8, 0, 5};
        memcpy(ids.host.data(), wanted, 12), ids.up();
        Rows p = {cols, m.shift, by_id ? BY_ID : 2, 2.0f};
        run(gpu, library, stored ? "rows_t" : "rows", {2, 3, 1}, 256, m.codes.at(), m.extra.at(), m.scales.at(), ids.at(), y.at(), p);
        y.down();
        Error error;
        for (uint i = 0; i < 3 * cols; i++) error.add(y[i], 2 * m.w[(by_id ? wanted[i / cols] : 2 + i / cols) * cols + i % cols]);
        error.expect(stored ? rounding(t) : 1e-6, std::string(format.name) + " rows");
    }
}

// ---- attention ----
struct Case { uint heads, kv, rows, position, splits, window, sinks; float cap; };

// One query over the keys up to a position, the last of which may lie elsewhere.
static std::vector<double> attended(const std::vector<double>& q, const Buffer& keys, const Buffer& values, size_t head0, uint dim, uint position,
                                    const Case& c, const double* sink, const double* last_key, const double* last_value) {
    const uint first = c.window && position + 1 > c.window ? position + 1 - c.window : 0;
    std::vector<double> scores, out(dim);
    double highest = sink ? *sink : -1e300, total = 0;
    auto of = [&](const Buffer& all, const double* last, uint k, uint i) { return last && k == position ? last[i] : all[head0 + size_t(k) * dim + i]; };
    for (uint k = first; k <= position; k++) {
        double score = 0;
        for (uint i = 0; i < dim; i++) score += q[i] * of(keys, last_key, k, i);
        score /= std::sqrt(double(dim));
        scores.push_back(c.cap > 0 ? c.cap * std::tanh(score / c.cap) : score);
        highest = std::max(highest, scores.back());
    }
    if (sink) total = std::exp(*sink - highest);
    for (double& score : scores) total += score = std::exp(score - highest);
    for (uint k = first; k <= position; k++)
        for (uint i = 0; i < dim; i++) out[i] += scores[k - first] / total * of(values, last_value, k, i);
    return out;
}

// A head of q or k, normed and turned.
static std::vector<double> turned(const std::vector<double>& x, const std::vector<double>& weight, const Buffer& angles, uint rotated, uint flags,
                                  double eps) {
    const uint dim = x.size(), half_turn = rotated / 2;
    const bool norm = flags & QK_NORM, after = flags & NORM_AFTER;
    double squares = 0;
    for (double v : x) squares += v * v;
    std::vector<double> v(dim), want(dim);
    for (uint i = 0; i < dim; i++) want[i] = v[i] = norm ? x[i] / std::sqrt(squares / dim + eps) * (after ? 1 : weight[i]) : x[i];
    for (uint i = 0; i < half_turn; i++) {
        const double c = angles[2 * i], s = angles[2 * i + 1];
        const uint a = flags & ADJACENT ? 2 * i : i, b = flags & ADJACENT ? 2 * i + 1 : i + half_turn;
        want[a] = v[a] * c - v[b] * s, want[b] = v[b] * c + v[a] * s;
    }
    if (norm && after) for (uint i = 0; i < dim; i++) want[i] *= weight[i];
    return want;
}

static void check_token(Gpu& gpu, const std::string& library, Type t, uint dim, uint heads_at_once, uint simds_a_head, const Case& c, uint rotated,
                        uint flags) {
    const bool brings = !(flags & SHARED_KEYS);
    const uint capacity = c.position + 4, width = c.heads * dim, shared_by = c.heads / c.kv;
    const uint all = c.heads + (!brings ? 0 : flags & SAME ? 1 : 2) * c.kv, gates = flags & GATE_VALUES ? width : flags & GATE_HEADS ? c.heads : 0;
    Buffer qkv(gpu, F32, all * dim + gates, 3), q_angles(gpu, F32, rotated + 2), k_angles(gpu, F32, rotated + 2), q_weight(gpu, F32, width);
    Buffer k_weight(gpu, F32, c.kv * dim), keys(gpu, t, c.kv * capacity * dim), values(gpu, t, c.kv * capacity * dim);
    Buffer positions(gpu, F32, 1, 0), sinks(gpu, F32, c.heads), out(gpu, F32, width, 0), parts(gpu, F32, c.heads * c.splits * (dim + 2), 0);
    for (uint i = 0; i < c.kv * capacity; i++)  // nobody may read what is at the position or behind
        if (i % capacity >= c.position + !brings) for (uint d = 0; d < dim; d++)
            encode(t, keys.host.data(), size_t(i) * dim + d, NAN), encode(t, values.host.data(), size_t(i) * dim + d, NAN);
    positions.as<uint>()[0] = c.position;
    keys.up(), values.up(), positions.up();
    Attention p = {c.heads, c.kv, capacity, c.splits, c.window, c.sinks, rotated, flags, 0.1f, 1 / std::sqrt(float(dim)), c.cap};
    const uint blocks = (shared_by + heads_at_once - 1) / heads_at_once;
    const Grid grid = {c.kv * blocks, c.splits, 1};
    auto start = [&] {
        run(gpu, library, "attention", grid, 32 * heads_at_once * simds_a_head, qkv.at(), positions.at(), q_angles.at(), k_angles.at(), q_weight.at(),
            k_weight.at(), sinks.at(), keys.at(), values.at(), out.at(), parts.at(), p);
    };
    start();
    if (c.splits > 1) run(gpu, library, "combine", {c.heads, 1, 1}, std::min((dim + 31) / 32 * 32, 256u), parts.at(), sinks.at(), qkv.at(), out.at(), p);
    // A position behind the cache's end writes nothing.
    positions.as<uint>()[0] = capacity, positions.up();
    start();
    out.down(), keys.down(), values.down();
    auto head = [&](uint h) {
        std::vector<double> x(dim);
        for (uint i = 0; i < dim; i++) x[i] = qkv[h * dim + i];
        return x;
    };
    auto weight = [&](const Buffer& of, uint h) {
        std::vector<double> w(dim);
        for (uint i = 0; i < dim; i++) w[i] = of[(flags & NORM_EACH ? h * dim : 0) + i];
        return w;
    };
    Error error, cached;
    uint written = 0;
    for (uint i = 0; i < c.kv * capacity; i++) if (i % capacity >= c.position + !brings) for (uint d = 0; d < dim; d++)
        written += (keys[size_t(i) * dim + d] == keys[size_t(i) * dim + d]) + (values[size_t(i) * dim + d] == values[size_t(i) * dim + d]);
    for (uint k = 0; k < c.kv; k++) {
        const size_t at = (size_t(k) * capacity + c.position) * dim;
        std::vector<double> stored_key(dim), stored_value(dim);
        for (uint i = 0; i < dim; i++) stored_key[i] = keys[at + i], stored_value[i] = values[at + i];
        if (brings) {
            const auto key = turned(head(c.heads + k), weight(k_weight, k), k_angles, rotated, flags, p.eps);
            auto value = head(c.heads + (flags & SAME ? 0 : c.kv) + k);
            double squares = 0;
            for (double v : value) squares += v * v;
            if (flags & V_NORM) for (double& v : value) v /= std::sqrt(squares / dim + p.eps);
            for (uint i = 0; i < dim; i++) cached.add(stored_key[i], key[i]), cached.add(stored_value[i], value[i]);
        }
        // Attention sees them as they are stored.
        for (uint h = k * shared_by; h < (k + 1) * shared_by; h++) {
            const double sink = sinks[h];
            const auto q = turned(head(h), weight(q_weight, h), q_angles, rotated, flags, p.eps);
            const auto want = attended(q, keys, values, size_t(k) * capacity * dim, dim, c.position, c, c.sinks ? &sink : nullptr, stored_key.data(),
                                       stored_value.data());
            for (uint i = 0; i < dim; i++) {
                const double gate = gates ? qkv[all * dim + (flags & GATE_HEADS ? h : h * dim + i)] : 0;
                error.add(out[lane_order(h * dim + i, width)], gates ? want[i] / (1 + std::exp(-gate)) : want[i]);
            }
        }
    }
    char what[160];
    snprintf(what, sizeof what, "dim %u heads %u/%u position %u rotated %u flags %u", dim, c.heads, c.kv, c.position, rotated, flags);
    error.expect(2e-6, std::string("attention ") + what), cached.expect(rounding(t), std::string("attention's cache ") + what);
    if (written != (brings ? 2 * c.kv * dim : 0)) wrong(std::string("attention ") + what + ": " + std::to_string(written) + " values written");
}

static void check_attention(Gpu& gpu, const std::string& library, Type t, uint dim, uint heads_at_once, uint simds_a_head) {
    const Case cases[] = {{4, 4, 1, 0, 1, 0, 0, 0},   {6, 2, 1, 1, 1, 0, 1, 0},   {14, 2, 1, 40, 1, 0, 0, 0},    {14, 2, 1, 131, 3, 0, 1, 0},
                          {8, 1, 1, 150, 8, 0, 0, 5}, {3, 3, 1, 201, 5, 64, 1, 0}, {2, 1, 1, 4, 8, 0, 1, 2},     {3, 3, 1, 257, 2, 256, 0, 0}};
    for (const Case& c : cases) {
        const size_t i = &c - cases;
        if ((dim != 64 && dim != 128 && i % 2) || (few && i != 7)) continue;
        check_token(gpu, library, t, dim, heads_at_once, simds_a_head, c, dim, 0);
    }
    for (uint rotated : {dim, dim / 2, 0u}) for (uint flags = 0; flags < 16; flags++) {
        if ((few && (rotated == 0 || flags % 5 > 0)) || (flags & NORM_EACH && !(flags & QK_NORM))) continue;
        check_token(gpu, library, t, dim, heads_at_once, simds_a_head, {4, 2, 1, 5, 1, 0, 0, 0}, rotated, flags);
    }
    const uint others[] = {V_NORM | QK_NORM, SAME | V_NORM, SAME | GATE_HEADS, SHARED_KEYS | QK_NORM, SHARED_KEYS | GATE_VALUES, GATE_VALUES, GATE_HEADS};
    for (uint flags : others) for (uint splits : {1u, 3u}) {
        if (few && flags % 3 > 0) continue;
        check_token(gpu, library, t, dim, heads_at_once, simds_a_head, {4, 2, 1, 35, splits, 0, 1, 0}, dim / 2, flags);
    }
}

// ---- short convolutions ----
static void check_convolution(Gpu& gpu, const std::string& library) {
    for (uint channels : {32u, 320u}) for (uint taps : {1u, 3u, 16u}) {
        if (few && (channels > 32 || taps != 3)) continue;
        const uint flags = taps == 3 ? BIAS : 0;
        Buffer weight(gpu, F32, taps * channels), bias(gpu, F32, channels), ring(gpu, F32, RING * channels, 0), out(gpu, F32, channels, 0);
        Buffer positions(gpu, F32, 4, 0);
        std::vector<std::vector<double>> seen;
        Error error;
        for (uint position = 0; position < 40; position++) {
            Buffer inputs(gpu, F32, 3 * channels);
            positions.as<uint>()[0] = position, positions.up();
            run(gpu, library, "short_conv", {(channels + 255) / 256, 1, 1}, 256, inputs.at(), positions.at(), weight.at(), bias.at(), ring.at(),
                out.at(), Convolution{channels, taps, flags});
            out.down();
            seen.emplace_back();
            for (uint i = 0; i < channels; i++) seen.back().push_back(inputs[i] * inputs[2 * channels + i]);
            for (uint i = 0; i < channels; i++) {
                double want = flags ? bias[i] : 0;
                for (uint tap = 0; tap < taps; tap++)
                    if (position + tap + 1 >= taps) want += weight[tap * channels + i] * seen[position + tap + 1 - taps][i];
                error.add(out[lane_order(i, channels)], want * inputs[channels + i]);
            }
        }
        error.expect(2e-6, "short_conv " + std::to_string(channels) + ", taps " + std::to_string(taps));
    }
}

// ---- scans ----
// Tokens one after another, by the rule as it is written for one matrix; some are taken back and come again, as far as a state can be cut.
static void check_delta_net(Gpu& gpu, const std::string& library) {
    struct Sizes { uint heads, groups, keys, values, taps, threads; };
    for (const Sizes& c : {Sizes{4, 2, 16, 8, 4, 64}, Sizes{1, 1, 12, 160, 2, 256}, Sizes{2, 1, 128, 128, 4, 256}}) {
        if (few && c.keys == 128) continue;
        const uint keys = c.groups * c.keys, values = c.heads * c.values, channels = 2 * keys + values;
        const size_t state = c.keys * c.values + HELD * (c.keys + c.values + 1);
        Buffer weight(gpu, F32, c.taps * channels), bias(gpu, F32, c.heads), rates(gpu, F32, c.heads), norm(gpu, F32, c.values);
        Buffer ring(gpu, F32, RING * channels, 0), states(gpu, F32, c.heads * state, 0), out(gpu, F32, values, 0), positions(gpu, F32, 4, 0);
        for (uint h = 0; h < c.heads; h++) rates.as<float>()[h] = -0.3f * float(h + 1);
        memset(states.host.data(), 0, states.host.size());
        rates.up(), states.up();
        const Scan p = {c.heads, c.groups, c.keys, c.values, c.taps, 1e-6f, 1e-3f};
        std::vector<std::vector<double>> seen;
        std::vector<std::vector<double>> matrices(1, std::vector<double>(c.heads * c.keys * c.values));  // behind each token
        Error error;
        uint start = 0;
        auto token = [&](uint position) {
            seen.resize(position), matrices.resize(position + 1);
            Buffer inputs(gpu, F32, channels + values + 2 * c.heads, 2);
            positions.as<uint>()[0] = position, positions.as<uint>()[1] = start, positions.up();
            run(gpu, library, "delta_net", {c.heads, 1, 1}, c.threads, inputs.at(), positions.at(), weight.at(), bias.at(), rates.at(), norm.at(),
                ring.at(), states.at(), out.at(), p);
            out.down();
            seen.emplace_back();
            for (uint i = 0; i < channels; i++) seen.back().push_back(inputs[i]);
            std::vector<double> line(channels);
            for (uint i = 0; i < channels; i++) {
                for (uint tap = 0; tap < c.taps; tap++)
                    if (position + tap + 1 >= c.taps) line[i] += weight[tap * channels + i] * seen[position + tap + 1 - c.taps][i];
                line[i] /= 1 + std::exp(-line[i]);
            }
            auto unit = [&](uint from) {
                std::vector<double> v(line.begin() + from, line.begin() + from + c.keys);
                double squares = 0;
                for (double x : v) squares += x * x;
                for (double& x : v) x /= std::sqrt(squares + p.length_eps);
                return v;
            };
            matrices.push_back(matrices.back());
            for (uint h = 0; h < c.heads; h++) {
                const auto q = unit(h / (c.heads / c.groups) * c.keys), k = unit(keys + h / (c.heads / c.groups) * c.keys);
                double* matrix = matrices.back().data() + h * c.keys * c.values;
                const double beta = 1 / (1 + std::exp(-inputs[channels + values + h]));
                const double left = std::exp(rates[h] * std::log1p(std::exp(inputs[channels + values + c.heads + h] + bias[h])));
                std::vector<double> read(c.values);
                double squares = 0;
                for (uint j = 0; j < c.values; j++) {
                    double known = 0;
                    for (uint i = 0; i < c.keys; i++) known += (matrix[i * c.values + j] *= left) * k[i];
                    for (uint i = 0; i < c.keys; i++) matrix[i * c.values + j] += k[i] * beta * (line[2 * keys + h * c.values + j] - known);
                    for (uint i = 0; i < c.keys; i++) read[j] += matrix[i * c.values + j] * q[i] / std::sqrt(double(c.keys));
                    squares += read[j] * read[j];
                }
                for (uint j = 0; j < c.values; j++) {
                    const double gate = inputs[channels + h * c.values + j];
                    error.add(out[lane_order(h * c.values + j, values)],
                              read[j] / std::sqrt(squares / c.values + p.eps) * norm[j] * gate / (1 + std::exp(-gate)));
                }
            }
            if (position - start == HELD) start = position;
        };
        for (uint position = 0; position < (few ? 19 : 37); position++) token(position);
        if (!few) for (uint position = 33; position < 50; position++) token(position);
        if (!few) for (uint position = start; position < 66; position++) token(position);
        error.expect(1e-5, "delta_net " + std::to_string(c.keys) + ", " + std::to_string(c.values));
        // A start that cannot be writes nothing.
        out.host.assign(out.host.size(), char(0xff)), out.up();
        positions.as<uint>()[0] = 90, positions.up();
        Buffer inputs(gpu, F32, channels + values + 2 * c.heads);
        run(gpu, library, "delta_net", {c.heads, 1, 1}, c.threads, inputs.at(), positions.at(), weight.at(), bias.at(), rates.at(), norm.at(),
            ring.at(), states.at(), out.at(), p);
        out.down();
        for (uint i = 0; i < values; i++) if (out[i] == out[i]) return wrong("delta_net: a wrong start was gone on from");
    }
}

// ---- argmax ----
// The parts of a row together, as the host has them.
struct Best { float highest; double sum; uint id; };
static Best best_of(const uint* parts, uint count) {
    Best all = {-1e30f, 0, 0xffffffffu};
    auto value = [&](uint i) { float v; memcpy(&v, parts + i, 4); return v; };
    for (uint i = 0; i < count; i++) if (value(4 * i) > all.highest) all.highest = value(4 * i), all.id = parts[4 * i + 2];
    for (uint i = 0; i < count; i++) all.sum += value(4 * i + 1) * std::exp(double(value(4 * i)) - all.highest);
    return all;
}
static void check_argmax(Gpu& gpu, const std::string& library) {
    for (uint count : {1u, 5u, 1000u, 5003u}) for (int kind = 0; kind < 4; kind++) {
        if (few && (count != 1000 || kind > 0)) continue;
        const uint rows = 2, parts = 8;
        const float cap = kind == 3 ? 0.5f : 0;
        Buffer scores(gpu, F32, rows * count), best(gpu, F32, 4 * parts * rows, 0);
        float* v = scores.as<float>();
        if (kind == 1) for (uint i = 0; i < rows * count; i++) v[i] = float(i / 7 % 3);  // many equal ones
        if (kind == 2) for (uint i = 0; i < count; i += 2) v[i] = NAN;
        scores.up();
        const Argmax p = {count, (count + parts - 1) / parts, cap};
        run(gpu, library, "argmax", {parts, rows, 1}, 256, scores.at(), best.at(), p);
        best.down();
        for (uint r = 0; r < rows; r++) {
            const float* row = v + r * count;
            uint want = 0xffffffffu;
            for (uint i = 0; i < count; i++) if (row[i] == row[i] && (want > i || row[i] > row[want])) want = i;
            auto capped = [&](uint i) { return cap > 0 ? cap * std::tanh(double(row[i]) / cap) : double(row[i]); };
            double sum = 0;
            for (uint i = 0; i < count; i++) sum += std::exp(capped(i) - (want < count ? capped(want) : 0));
            const Best found = best_of(best.as<uint>() + 4 * parts * r, parts);
            const bool near = sum != sum ? found.sum != found.sum : std::fabs(found.sum - sum) <= 1e-5 * sum;
            if (found.id != want || !near)
                wrong("argmax of " + std::to_string(count) + " kind " + std::to_string(kind) + ": " + std::to_string(found.id) + ", sum " +
                      std::to_string(found.sum) + ", not " + std::to_string(want) + ", " + std::to_string(sum));
        }
    }
}
