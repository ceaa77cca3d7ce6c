// A token of a scan. A head's state is the matrix before the chunk of tokens that `start` begins, (keys, values), and of the chunk's tokens
// keys, updates and g, (HELD, …) each; a token reads the matrix and leaves it as it is, but for the first of a chunk, which adds the
// chunk before to it. src/kernels/scan.rs has the mathematics. Needs convolution.h.
// Source: Yang et al. 2025, "Gated Delta Networks", <https://arxiv.org/abs/2412.06464>.

enum { WIDEST = 256, BLOCK = 128 };  // keys and values of a head at most; columns of the matrix that simdgroups read at once

INLINE float4 plus_scaled(float4 a, float s, float4 b) {
    return make_float4(mul_add(s, b.x, a.x), mul_add(s, b.y, a.y), mul_add(s, b.z, a.z), mul_add(s, b.w, a.w));
}

INLINE float sigmoid(float v) { return 1 / (1 + exp(-v)); }

// Of values in threadgroup memory that all threads see.
INLINE float sum_of_squares(threadgroup const float* v, uint count, threadgroup float* partial, thread const Place& at) {
    float sum = 0;
    for (uint i = at.index; i < count; i += 32 * at.simds) sum = mul_add(v[i], v[i], sum);
    return group_sum(sum, partial, at);
}

// By the delta rule, of a head by a threadgroup. What the token reads becomes `found`, a value for the thread that asks for it again; the
// state takes the token up. `sums`: (simdgroups, 2, BLOCK); `found`: 2 · WIDEST; `left`: HELD + 1; `dots`: 2 · (HELD + 1).
INLINE void scan_token(device float* state, uint position, uint start, float g, float beta, constant Scan& p, threadgroup const float* q,
                       threadgroup const float* k, threadgroup const float* v, threadgroup float* sums, threadgroup float* found,
                       threadgroup float* left, threadgroup float* dots, thread const Place& at) {
    device float* keys = state + p.keys * p.values;
    device float* updates = keys + HELD * p.keys;
    device float* gs = updates + HELD * p.values;
    const bool begins = position - start == HELD;
    const uint before = position - start, held = begins ? 0 : before, threads = 32 * at.simds;
    // What is left of each token of the chunk, and of the matrix: at this token, or at the chunk's end.
    if (at.index <= HELD) {
        float sum = begins ? 0 : g;
        for (uint i = at.index == HELD ? 0 : at.index + 1; i < before; i++) sum += gs[i];
        left[at.index] = exp(sum);
    }
    group_barrier();
    for (uint base = 0; base < p.values; base += BLOCK) {
        const uint column = base + 4 * at.lane;
        float4 of_key = make_float4(0, 0, 0, 0), of_query = of_key;
        if (column < p.values) for (uint row = at.simd; row < p.keys; row += at.simds) {
            device float4* cell = (device float4*)(state + row * p.values + column);
            float4 s = *cell;
            if (begins) {
                s = scaled(s, left[HELD]);
                for (uint i = 0; i < HELD; i++)
                    s = plus_scaled(s, left[i] * keys[i * p.keys + row], *(device float4*)(updates + i * p.values + column));
                *cell = s;
            }
            of_key = plus_scaled(of_key, k[row], s), of_query = plus_scaled(of_query, q[row], s);
        }
        group_barrier();  // sums of the block before may still be read
        threadgroup float* own = sums + 2 * BLOCK * at.simd + 4 * at.lane;
        own[0] = of_key.x, own[1] = of_key.y, own[2] = of_key.z, own[3] = of_key.w;
        own[BLOCK] = of_query.x, own[BLOCK + 1] = of_query.y, own[BLOCK + 2] = of_query.z, own[BLOCK + 3] = of_query.w;
        group_barrier();
        for (uint i = at.index; i < 2 * BLOCK; i += threads) {
            float sum = 0;
            for (uint simd = 0; simd < at.simds; simd++) sum += sums[2 * BLOCK * simd + i];
            if (base + i % BLOCK < p.values) found[i / BLOCK * WIDEST + base + i % BLOCK] = sum;
        }
    }
    // What the key and the query have of the keys before, and of the token's own.
    for (uint i = at.simd; i <= held; i += at.simds) {
        float of_key = 0, of_query = 0;
        for (uint n = at.lane; n < p.keys; n += 32) {
            const float other = i < held ? keys[i * p.keys + n] : k[n];
            of_key = mul_add(other, k[n], of_key), of_query = mul_add(other, q[n], of_query);
        }
        of_key = simd_sum(of_key), of_query = simd_sum(of_query);
        if (at.lane == 0) dots[2 * i] = of_key, dots[2 * i + 1] = of_query;
    }
    group_barrier();
    const float fades = begins ? exp(g) : left[HELD];
    for (uint i = at.index; i < p.values; i += threads) {
        float known = fades * found[i], read = fades * found[WIDEST + i];
        for (uint t = 0; t < held; t++) {
            const float u = left[t] * updates[t * p.values + i];
            known = mul_add(dots[2 * t], u, known), read = mul_add(dots[2 * t + 1], u, read);
        }
        const float u = beta * (v[i] - known);
        updates[held * p.values + i] = u;
        found[i] = mul_add(dots[2 * held + 1], u, read);
    }
    for (uint n = at.index; n < p.keys; n += threads) keys[held * p.keys + n] = k[n];
    if (at.index == 0) gs[held] = g;
}

// `inputs`: queries, keys and values in front of the convolution, then a gate for each value, and beta and decay of each head. q, k and v
// are activated, q and k have length 1, and q is divided by the root of its width; what is read is normed and gated, in `lane_order`.
// positions: the token's, and where the chunk begins. grid (heads).
KERNEL(delta_net, 256, device const float* inputs, device const uint* positions, device const float* weight, device const float* bias,
       device const float* rates, device const float* norm, device float* ring, device float* states, device float* out, PARAMS(Scan)) {
    SHARED(float, line, 3 * WIDEST);  // q, k and v
    SHARED(float, sums, 8 * 2 * BLOCK);
    SHARED(float, found, 2 * WIDEST);
    SHARED(float, left, HELD + 1);
    SHARED(float, dots, 2 * (HELD + 1));
    SHARED(float, partial, 8);
    Place at = PLACE;
    after_previous();
    const uint head = at.group.x, shared_by = p.heads / p.groups, group = head / shared_by, threads = 32 * at.simds;
    const uint keys = p.groups * p.keys, values = p.heads * p.values, channels = 2 * keys + values;
    const uint position = positions[0], start = positions[1];
    if (position - start > HELD) return;  // the host says where; a wrong start must not read elsewhere
    for (uint i = at.index; i < 2 * p.keys + p.values; i += threads) {
        const uint part = i / p.keys, within = i - min(part, 2u) * p.keys;
        const uint channel = part < 2 ? part * keys + group * p.keys + within : 2 * keys + head * p.values + within;
        const float own = inputs[channel], v = convolved(ring, weight, 0, channel, channels, p.taps, position, own);
        line[i] = v * sigmoid(v);
        // Heads of a group share queries and keys.
        if (part >= 2 || head % shared_by == 0) ring[position % RING * channels + channel] = own;
    }
    group_barrier();
    threadgroup float *q = line, *k = line + p.keys, *v = line + 2 * p.keys;
    const float q_scale = rsqrt(sum_of_squares(q, p.keys, partial, at) + p.length_eps) * rsqrt(float(p.keys));
    const float k_scale = rsqrt(sum_of_squares(k, p.keys, partial, at) + p.length_eps);
    for (uint i = at.index; i < p.keys; i += threads) q[i] *= q_scale, k[i] *= k_scale;
    device const float* gates = inputs + channels + head * p.values;
    device const float* numbers = inputs + channels + values + head;
    const float x = numbers[p.heads] + bias[head], g = rates[head] * (max(x, 0.0f) + log(1 + exp(-max(x, -x))));
    device float* state = states + size_t(head) * (p.keys * p.values + HELD * (p.keys + p.values + 1));
    scan_token(state, position, start, g, sigmoid(numbers[0]), p, q, k, v, sums, found, left, dots, at);
    // Each thread squares and norms the values that it has found.
    const float scale = rsqrt(sum_of_squares(found, p.values, partial, at) / float(p.values) + p.eps);
    for (uint i = at.index; i < p.values; i += threads)
        out[lane_order(head * p.values + i, values)] = found[i] * scale * norm[i] * gates[i] * sigmoid(gates[i]);
}
