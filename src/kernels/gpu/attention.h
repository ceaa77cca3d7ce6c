// Attention of a few new rows over the cache: online softmax, keys split over threadgroups. Needs T, DIM (of a head), HEADS (query heads
// a threadgroup serves), PARTS (simdgroups a head there) and KEYS (keys a lane has in flight).
//
// A simdgroup has one query head: KEY_LANES lanes hold a key's DIM values, 8 each, SLOTS keys lie beside each other and KEYS behind one
// another. A threadgroup has HEADS heads of one key head, which share keys by the core's cache, and PARTS simdgroups for each head: one
// head and many simdgroups while keys are few and time is latency, all heads of a key head when keys are many.
// Source: Dao et al. 2022, <https://arxiv.org/abs/2205.14135>; the split over keys is Flash-Decoding's.
enum { KEY_LANES = DIM <= 64 ? 8 : DIM <= 128 ? 16 : 32, SLOTS = 32 / KEY_LANES, PARTIAL = DIM + 2 };


// `out` is in `lane_order`. With one split it is final, else `parts` goes to `combine`: of a head and split the weighted values, the
// largest score, the sum of weights. grid (kv_heads · blocks of HEADS query heads, splits, rows).
KERNEL(attention, 32 * HEADS * PARTS, device const float* q, device const T* keys, device const T* values,
       device const uint* positions, device const float* sinks, device float* out, device float* parts, PARAMS(Attention)) {
    SHARED(float, merged, HEADS * PARTS * PARTIAL);
    Place at = PLACE;
    after_previous();
    const uint shared_by = p.heads / p.kv_heads, blocks = (shared_by + HEADS - 1) / HEADS, kv = at.group.x / blocks;
    const uint head0 = kv * shared_by + at.group.x % blocks * HEADS, served = min(uint(HEADS), (kv + 1) * shared_by - head0);
    const uint row = at.group.z, length = min(positions[row] + 1, p.capacity);
    const uint oldest = p.window > 0 && length > p.window ? length - p.window : 0;
    const uint share = (length - oldest + p.splits - 1) / p.splits;
    const uint begin = oldest + at.group.y * share, end = min(begin + share, length);
    // Where DIM / 8 is no power of two, lanes are left over: they read what the last one does, and count nothing.
    const uint slot = at.lane / KEY_LANES, sub = min(at.lane % KEY_LANES, uint(DIM / 8 - 1));
    const float used = at.lane % KEY_LANES < DIM / 8 ? p.scale : 0;
    const size_t query = size_t(row) * p.heads + head0 + min(at.simd % HEADS, served - 1);
    device const float4* q4 = (device const float4*)q + query * (DIM / 4) + 2 * sub;
    const float4 qa = scaled(q4[0], used), qb = scaled(q4[1], used);
    const size_t first = size_t(kv) * p.capacity * (DIM / 8) + sub;
    float top = LOWEST, weight = 0, sum[8];
    UNROLL for (uint i = 0; i < 8; i++) sum[i] = 0;
    for (uint base = begin + at.simd / HEADS * SLOTS * KEYS; base < end; base += PARTS * SLOTS * KEYS) {
        uint k[KEYS][EIGHT], v[KEYS][EIGHT];
        float score[KEYS], highest = top;
        UNROLL for (uint u = 0; u < KEYS; u++) {
            const uint key = min(base + u * SLOTS + slot, end - 1) * (DIM / 8);
            load_eight((device const uint*)keys, first + key, k[u]);
            load_eight((device const uint*)values, first + key, v[u]);
        }
        UNROLL for (uint u = 0; u < KEYS; u++) {
            float widened[8];
            unpack(k[u], widened, T());
            score[u] = dot8(widened, qa, qb, 0);
        }
        UNROLL for (uint mask = KEY_LANES / 2; mask > 0; mask /= 2)
            UNROLL for (uint u = 0; u < KEYS; u++) score[u] += simd_shuffle_xor(score[u], mask);
        UNROLL for (uint u = 0; u < KEYS; u++) {
            score[u] = base + u * SLOTS + slot < end ? capped(score[u], p.softcap) : LOWEST;
            highest = max(highest, score[u]);
        }
        const float shrink = exp(top - highest);
        top = highest, weight *= shrink;
        UNROLL for (uint i = 0; i < 8; i++) sum[i] *= shrink;
        UNROLL for (uint u = 0; u < KEYS; u++) {
            const float w = base + u * SLOTS + slot < end ? exp(score[u] - highest) : 0;
            float widened[8];
            unpack(v[u], widened, T());
            weight += w;
            UNROLL for (uint i = 0; i < 8; i++) sum[i] = mul_add(w, widened[i], sum[i]);
        }
    }
    // The slots of a simdgroup, then the simdgroups of a head.
    UNROLL for (uint mask = KEY_LANES; mask < 32; mask *= 2) {
        const float other = simd_shuffle_xor(top, mask), highest = max(top, other);
        const float mine = exp(top - highest), theirs = exp(other - highest);
        top = highest, weight = weight * mine + simd_shuffle_xor(weight, mask) * theirs;
        UNROLL for (uint i = 0; i < 8; i++) sum[i] = sum[i] * mine + simd_shuffle_xor(sum[i], mask) * theirs;
    }
    threadgroup float* own = merged + at.simd * PARTIAL;
    if (at.lane < DIM / 8) UNROLL for (uint i = 0; i < 8; i++) own[8 * at.lane + i] = sum[i];
    if (at.lane == 0) own[DIM] = top, own[DIM + 1] = weight;
    group_barrier();
    for (uint i = at.index; i < served * PARTIAL; i += 32 * HEADS * PARTS) {
        const uint h = i / PARTIAL, d = i % PARTIAL;
        threadgroup const float* part = merged + h * PARTIAL;
        float highest = LOWEST, total = 0, v = 0;
        UNROLL for (uint k = 0; k < PARTS; k++) highest = max(highest, part[k * HEADS * PARTIAL + DIM]);
        UNROLL for (uint k = 0; k < PARTS; k++) {
            const float w = exp(part[k * HEADS * PARTIAL + DIM] - highest);
            total += w * part[k * HEADS * PARTIAL + DIM + 1];
            v += w * part[k * HEADS * PARTIAL + d];
        }
        const size_t head = size_t(row) * p.heads + head0 + h;
        if (p.splits > 1) {
            parts[(head * p.splits + at.group.y) * PARTIAL + d] = d == DIM ? highest : d == DIM + 1 ? total : v;
        } else if (d < DIM) {
            const float sink = p.sinks ? sinks[head0 + h] : LOWEST, edge = max(highest, sink), w = exp(highest - edge);
            const size_t to = size_t(row) * p.heads * DIM + lane_order((head0 + h) * DIM + d, p.heads * DIM);
            out[to] = v * w / (total * w + (p.sinks ? exp(sink - edge) : 0));
        }
    }
}

// Brings the splits of a head together. grid (heads, rows), a thread a value.
KERNEL(combine, 256, device const float* parts, device const float* sinks, device float* out, PARAMS(Attention)) {
    Place at = PLACE;
    after_previous();
    const uint head = at.group.x, row = at.group.y;
    device const float* part = parts + (size_t(row) * p.heads + head) * p.splits * PARTIAL;
    float highest = p.sinks ? sinks[head] : LOWEST, total = 0, sum = 0;
    for (uint i = 0; i < p.splits; i++) highest = max(highest, part[i * PARTIAL + DIM]);
    if (p.sinks) total = exp(sinks[head] - highest);
    for (uint i = 0; i < p.splits; i++) {
        const float share = exp(part[i * PARTIAL + DIM] - highest);
        total += share * part[i * PARTIAL + DIM + 1];
        if (at.index < DIM) sum += share * part[i * PARTIAL + at.index];
    }
    if (at.index < DIM) out[size_t(row) * p.heads * DIM + lane_order(head * DIM + at.index, p.heads * DIM)] = sum / total;
}
