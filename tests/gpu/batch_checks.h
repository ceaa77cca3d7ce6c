// The kernels between the products of a batch against plain loops in F64; gradients also against differences of the loops' results.
#pragma once
#include "checks.h"

// The gradient of Σ dy · f(x) for x[i], by a difference.
template <typename F> static double difference(std::vector<double> x, size_t i, F weighted_sum) {
    const double step = 1e-5, at = x[i];
    x[i] = at + step;
    const double more = weighted_sum(x);
    x[i] = at - step;
    return (more - weighted_sum(x)) / (2 * step);
}

static void check_batch_norms(Gpu& gpu, const std::string& library, Type t) {
    const uint all_flags[] = {0, WEIGHTED, WEIGHTED | WEIGHT_EACH, LAYER | WEIGHTED | SHIFT, LAYER};
    for (uint cols : {1u, 31u, 100u, 416u}) for (uint flags : all_flags) {
        if (few && (cols != 100 || flags == LAYER)) continue;
        const uint rows = 3, groups = 2, stride = groups * cols + 8, whole = groups * cols;
        Buffer x(gpu, t, rows * stride), dy(gpu, t, rows * whole), weight(gpu, F32, whole), bias(gpu, F32, cols);
        Buffer y(gpu, t, rows * whole, 0), dx(gpu, t, rows * whole, 0);
        BatchNorm p = {cols, groups, stride, flags, 0.1f};
        const uint threads = cols > 200 && !few ? 256 : 64;
        run(gpu, library, "norm_batch", {rows * groups, 1, 1}, threads, x.at(), weight.at(), bias.at(), y.at(), p);
        run(gpu, library, "norm_batch_backward", {rows * groups, 1, 1}, threads, x.at(), dy.at(), weight.at(), dx.at(), p);
        y.down(), dx.down();
        Error error, gradient;
        for (uint r = 0; r < rows; r++) for (uint g = 0; g < groups; g++) {
            auto normed = [&](const std::vector<double>& v) {
                double mean = 0, squares = 0;
                for (double u : v) mean += flags & LAYER ? u / cols : 0;
                for (double u : v) squares += (u - mean) * (u - mean);
                std::vector<double> out(cols);
                for (uint i = 0; i < cols; i++) {
                    out[i] = (v[i] - mean) / std::sqrt(squares / cols + p.eps);
                    if (flags & WEIGHTED) out[i] *= weight[(flags & WEIGHT_EACH ? g * cols : 0) + i];
                    if (flags & SHIFT) out[i] += bias[i];
                }
                return out;
            };
            const size_t to = r * whole + g * cols;
            std::vector<double> v(cols);
            for (uint i = 0; i < cols; i++) v[i] = x[r * stride + g * cols + i];
            const auto want = normed(v);
            for (uint i = 0; i < cols; i++) {
                error.add(y[to + i], want[i]);
                if (i % 7 == 0) gradient.add(dx[to + i], difference(v, i, [&](const std::vector<double>& v) {
                    const auto out = normed(v);
                    double sum = 0;
                    for (uint k = 0; k < cols; k++) sum += dy[to + k] * out[k];
                    return sum;
                }));
            }
        }
        const std::string what = " cols " + std::to_string(cols) + " flags " + std::to_string(flags);
        error.expect(rounding(t), "norm_batch" + what);
        // Of one value nothing is left of a LayerNorm's gradient.
        if (cols > 1 || !(flags & LAYER)) gradient.expect(rounding(t), "norm_batch_backward" + what);
    }
}

static void check_batch_rotation(Gpu& gpu, const std::string& library, Type t) {
    const uint rows = 5, heads = 3, dim = 24, stride = heads * dim + 16;
    for (uint rotated : {24u, 8u}) for (uint flags : {0u, uint(ADJACENT), uint(INVERSE), uint(ADJACENT | INVERSE)}) {
        Buffer x(gpu, t, rows * stride), cosine(gpu, F32, rows * rotated / 2), sine(gpu, F32, rows * rotated / 2);
        Buffer y(gpu, t, rows * heads * dim, 0);
        BatchRotation p = {rows * heads * dim / 2, heads, dim, rotated, stride, flags};
        run(gpu, library, "rotate_batch", {(p.count + 255) / 256, 1, 1}, 256, x.at(), cosine.at(), sine.at(), y.at(), p);
        y.down();
        Error error;
        for (uint r = 0; r < rows; r++) for (uint h = 0; h < heads; h++) {
            std::vector<double> v(dim), want(dim);
            for (uint i = 0; i < dim; i++) want[i] = v[i] = x[r * stride + h * dim + i];
            for (uint i = 0; i < rotated / 2; i++) {
                const double c = cosine[r * rotated / 2 + i], s = sine[r * rotated / 2 + i] * (flags & INVERSE ? -1 : 1);
                const uint a = flags & ADJACENT ? 2 * i : i, b = flags & ADJACENT ? 2 * i + 1 : i + rotated / 2;
                want[a] = v[a] * c - v[b] * s, want[b] = v[b] * c + v[a] * s;
            }
            for (uint i = 0; i < dim; i++) error.add(y[(r * heads + h) * dim + i], want[i]);
        }
        error.expect(rounding(t), "rotate_batch rotated " + std::to_string(rotated) + " flags " + std::to_string(flags));
    }
}

static void check_batch_activations(Gpu& gpu, const std::string& library, Type t) {
    const uint rows = 3, cols = 100;
    for (uint kind = SILU; kind <= SIGMOID; kind++) for (uint gated : {0u, uint(GATED)}) {
        if (few && kind != GELU) continue;
        const uint flags = ACTIVATION * kind | gated, width = gated ? 2 * cols : cols, stride = width + 4;
        Buffer x(gpu, t, rows * stride, 3), dy(gpu, t, rows * cols), y(gpu, t, rows * cols, 0), dx(gpu, t, rows * width, 0);
        BatchActivation p = {rows * cols, cols, stride, flags};
        run(gpu, library, "activate_batch", {2, 1, 1}, 256, x.at(), y.at(), p);
        run(gpu, library, "activate_batch_backward", {2, 1, 1}, 256, x.at(), dy.at(), dx.at(), p);
        y.down(), dx.down();
        Error error, gradient;
        for (uint r = 0; r < rows; r++) for (uint i = 0; i < cols; i++) {
            const double v = x[r * stride + i], up = gated ? x[r * stride + cols + i] : 1, d = dy[r * cols + i];
            error.add(y[r * cols + i], activated(v, flags) * up);
            const double slope = difference({v}, 0, [&](const std::vector<double>& v) { return activated(v[0], flags); });
            gradient.add(dx[r * width + i], slope * up * d);
            if (gated) gradient.add(dx[r * width + cols + i], activated(v, flags) * d);
        }
        const std::string what = " kind " + std::to_string(kind) + (gated ? " gated" : "");
        // The error function is a rational one.
        error.expect(rounding(t), "activate_batch" + what), gradient.expect(rounding(t), "activate_batch_backward" + what);
    }
}

static void check_batch_loss(Gpu& gpu, const std::string& library, Type t) {
    for (uint cols : {1u, 77u, 1000u}) for (float cap : {0.0f, 4.0f}) for (uint with_gradient : {0u, 1u}) {
        if (few && (cols != 1000 || cap > 0)) continue;
        const uint rows = 3;
        Buffer scores(gpu, t, rows * cols, 9), targets(gpu, F32, rows, 0), losses(gpu, F32, rows, 0), gradient(gpu, t, rows * cols, 0);
        for (uint r = 0; r < rows; r++) targets.as<uint>()[r] = (r * 611 + 76) % cols;
        targets.up();
        BatchLoss p = {cols, with_gradient, 0.7f, cap};
        run(gpu, library, "cross_entropy", {rows, 1, 1}, 256, scores.at(), targets.at(), losses.at(), gradient.at(), p);
        losses.down(), gradient.down();
        Error error, slopes;
        bool untouched = true;
        for (uint r = 0; r < rows; r++) {
            std::vector<double> v(cols);
            double highest = -1e300, sum = 0;
            for (uint i = 0; i < cols; i++) {
                v[i] = scores[r * cols + i] * p.scale;
                if (cap > 0) v[i] = cap * std::tanh(v[i] / cap);
                highest = std::max(highest, v[i]);
            }
            for (double u : v) sum += std::exp(u - highest);
            const uint target = targets.as<uint>()[r];
            error.add(losses[r], std::log(sum) + highest - v[target]);
            for (uint i = 0; i < cols; i++) {
                const double rise = cap > 0 ? 1 - v[i] / cap * (v[i] / cap) : 1, found = gradient[r * cols + i];
                untouched = untouched && found != found;
                slopes.add(found, (std::exp(v[i] - highest) / sum - (i == target)) * p.scale * rise);
            }
        }
        const std::string what = "cross_entropy cols " + std::to_string(cols) + " cap " + std::to_string(cap);
        error.expect(1e-5, what);
        if (with_gradient && cols > 1) slopes.expect(rounding(t), what + " gradient");
        if (!with_gradient && !untouched) wrong(what + ": a gradient that was not asked for");
    }
}

static void check_batch_blocks(Gpu& gpu, const std::string& library, Type t) {
    const uint rows = 5, cols = 60, wide = 64, wider = 70, from = 3, to = 9;
    struct { const char* kernel; Type x, y; } kinds[] = {{"block_from_f32", F32, t}, {"block_to_f32", t, F32}};
    for (auto& kind : kinds) {
        Buffer x(gpu, kind.x, rows * wide), y(gpu, kind.y, rows * wider + to, 0);
        BatchBlock p = {rows * cols, cols, from, wide, to, wider, -0.7f};
        run(gpu, library, kind.kernel, {2, 1, 1}, 256, x.at(), y.at(), p);
        y.down();
        Error error;
        uint written = 0;
        for (uint i = 0; i < rows * wider + to; i++) written += y[i] == y[i];
        for (uint r = 0; r < rows; r++) for (uint i = 0; i < cols; i++) error.add(y[to + r * wider + i], p.factor * x[from + r * wide + i]);
        error.expect(rounding(kind.y), kind.kernel);
        if (written != rows * cols) wrong(std::string(kind.kernel) + ": " + std::to_string(written) + " values written");
    }
}

static void check_batch_places(Gpu& gpu, const std::string& library, Type t) {
    const uint lengths[] = {3, 7, 1}, firsts[] = {0, 3, 10, 11}, sequences = 3, longest = 7, rows = 11;
    const uint heads = 2, dim = 8, width = heads * dim, stride = width + 8;
    Buffer x(gpu, t, rows * stride), first(gpu, F32, sequences + 1, 0), places(gpu, F32, rows, 0);
    Buffer placed(gpu, t, sequences * longest * width, 0), back(gpu, t, rows * width, 0);
    memcpy(first.host.data(), firsts, sizeof firsts), first.up();
    for (uint s = 0; s < sequences; s++) for (uint i = 0; i < lengths[s]; i++) places.as<uint>()[firsts[s] + i] = s * longest + i;
    places.up();
    BatchPlaces p = {sequences * longest * width, heads, dim, longest, stride};
    run(gpu, library, "place_batch", {(p.count + 255) / 256, 1, 1}, 256, x.at(), first.at(), placed.at(), p);
    p.count = rows * width;
    run(gpu, library, "unplace_batch", {(p.count + 255) / 256, 1, 1}, 256, placed.at(), places.at(), back.at(), p);
    placed.down(), back.down();
    Error there, again;
    for (uint s = 0; s < sequences; s++) for (uint h = 0; h < heads; h++) for (uint i = 0; i < longest; i++) for (uint d = 0; d < dim; d++)
        there.add(placed[((s * heads + h) * longest + i) * dim + d], i < lengths[s] ? x[(firsts[s] + i) * stride + h * dim + d] : 0);
    for (uint r = 0; r < rows; r++) for (uint i = 0; i < width; i++) again.add(back[r * width + i], x[r * stride + i]);
    there.expect(0, "place_batch"), again.expect(0, "unplace_batch");
}

static void check_batch_softmax(Gpu& gpu, const std::string& library, Type t) {
    struct { uint flags, window, first; float cap; } cases[] = {{0, 0, 0, 0},     {CAUSAL, 0, 0, 0},  {CAUSAL | SINKS, 5, 0, 0}, {0, 4, 0, 2},
                                                                {BY_DISTANCE, 0, 0, 0}, {CAUSAL, 0, 40, 3}, {CAUSAL, 20, 40, 0}};
    for (auto& c : cases) {
        const uint longest = 37, keys = c.first + longest, sequences = c.first ? 1 : 2, heads = 3, rows = sequences * heads * longest;
        // A sequence is shorter than the longest.
        const uint firsts[] = {0, keys, keys + 20};
        Buffer scores(gpu, t, rows * keys, 4), of_weights(gpu, t, rows * keys), first(gpu, F32, 3, 0), sinks(gpu, F32, heads);
        Buffer bias(gpu, F32, heads * (2 * longest - 1)), weights(gpu, t, rows * keys, 0), of_scores(gpu, t, rows * keys, 0);
        memcpy(first.host.data(), firsts, sizeof firsts), first.up();
        BatchSoftmax p = {rows, keys, heads, longest, c.first, c.window, c.flags, 0.6f, c.cap};
        run(gpu, library, "softmax_batch", {(rows + 7) / 8, 1, 1}, 256, scores.at(), first.at(), sinks.at(), bias.at(), weights.at(), p);
        const bool with_gradient = !(c.flags & BY_DISTANCE);
        if (with_gradient)
            run(gpu, library, "softmax_batch_backward", {(rows + 7) / 8, 1, 1}, 256, scores.at(), of_weights.at(), first.at(), sinks.at(),
                of_scores.at(), p);
        weights.down(), of_scores.down();
        Error error, gradient;
        for (uint r = 0; r < rows; r++) {
            const uint sequence = r / (heads * longest), len = firsts[sequence + 1] - firsts[sequence], h = r / longest % heads;
            const uint position = c.first + r % longest;
            if (position >= len) continue;  // a place without a row: whatever finite
            auto sees = [&](uint k) {
                return k < len && (!(c.flags & CAUSAL) || k <= position) && (c.window == 0 || std::abs(int(k) - int(position)) < int(c.window));
            };
            auto softmax = [&](const std::vector<double>& products) {
                std::vector<double> v(keys);
                double sum = c.flags & SINKS ? std::exp(sinks[h]) : 0;
                for (uint k = 0; k < keys; k++) if (sees(k)) {
                    double score = products[k] * p.scale;
                    if (c.cap > 0) score = c.cap * std::tanh(score / c.cap);
                    if (c.flags & BY_DISTANCE) score += bias[h * (2 * longest - 1) + longest - 1 + k - position];
                    sum += v[k] = std::exp(score);
                }
                for (double& u : v) u /= sum;
                return v;
            };
            std::vector<double> products(keys);
            for (uint k = 0; k < keys; k++) products[k] = scores[r * keys + k];
            const auto want = softmax(products);
            for (uint k = 0; k < keys; k++) {
                error.add(weights[r * keys + k], want[k]);
                if (with_gradient && (k + r) % 5 == 0) gradient.add(of_scores[r * keys + k], difference(products, k, [&](const std::vector<double>& v) {
                    const auto out = softmax(v);
                    double sum = 0;
                    for (uint i = 0; i < keys; i++) sum += of_weights[r * keys + i] * out[i];
                    return sum;
                }));
            }
        }
        const std::string what = " flags " + std::to_string(c.flags) + " window " + std::to_string(c.window) + " first " + std::to_string(c.first);
        error.expect(rounding(t), "softmax_batch" + what);
        if (with_gradient) gradient.expect(rounding(t), "softmax_batch_backward" + what);
    }
}

static void check_batch(Gpu& gpu, const std::string& library, Type t) {
    check_batch_norms(gpu, library, t), check_batch_rotation(gpu, library, t), check_batch_activations(gpu, library, t);
    check_batch_loss(gpu, library, t), check_batch_blocks(gpu, library, t), check_batch_places(gpu, library, t), check_batch_softmax(gpu, library, t);
}
