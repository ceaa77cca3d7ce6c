// Attention of a new token over the cache, which takes up its key and value: norms of q and k, the rotary embedding, online softmax, keys
// split over threadgroups. Needs heads.h, T, DIM (of a head), HEADS (query heads a threadgroup serves), PARTS (simdgroups a head there) and
// KEYS (keys a lane has in flight).
//
// A simdgroup has one query head: KEY_LANES lanes hold a key's DIM values, UNITS times 8 each, SLOTS keys lie beside each other and KEYS
// behind one another. A threadgroup has HEADS heads of one key head, which share keys by the core's cache, and PARTS simdgroups for each head: one
// head and many simdgroups while keys are few and time is latency, all heads of a key head when keys are many.
// Source: Dao et al. 2022, <https://arxiv.org/abs/2205.14135>; the split over keys is Flash-Decoding's.
enum {
    UNITS = DIM <= 256 ? 1 : 2,
    KEY_LANES = DIM <= 64 ? 8 : DIM <= 128 ? 16 : 32,
    SLOTS = 32 / KEY_LANES,
    EIGHTS = DIM / 8,  // of a key
    PARTIAL = DIM + 2
};

INLINE float4 four(threadgroup const float* v) { return make_float4(v[0], v[1], v[2], v[3]); }

// What a value that a head has found is multiplied by.
INLINE float gate(device const float* qkv, constant Attention& p, uint head, uint d) {
    if (!(p.flags & (GATE_VALUES | GATE_HEADS))) return 1;
    const uint heads = p.flags & SHARED_KEYS ? p.heads : p.heads + (p.flags & SAME ? 1 : 2) * p.kv_heads;
    const float v = qkv[heads * DIM + (p.flags & GATE_HEADS ? head : head * DIM + d)];
    return 1 / (1 + exp(-v));
}

// q, k and v of the token lie side by side, and gates behind them. `out` is in `lane_order`. With one split it is final, else `parts` goes to `combine`: of a head
// and split the weighted values, the largest score, the sum of weights. keys, values: (kv_heads, capacity, DIM).
// grid (kv_heads · blocks of HEADS query heads, splits).
KERNEL(attention, 32 * HEADS * PARTS, device const float* qkv, device const uint* positions, device const float2* q_angles,
       device const float2* k_angles, device const float* q_weight, device const float* k_weight, device const float* sinks,
       device T* keys, device T* values, device float* out, device float* parts, PARAMS(Attention)) {
    SHARED(float, merged, HEADS * PARTS * PARTIAL);
    SHARED(float, turned, (HEADS + 2) * DIM);  // the queries, the key and the value
    Place at = PLACE;
    after_previous();
    const uint shared_by = p.heads / p.kv_heads, blocks = (shared_by + HEADS - 1) / HEADS, kv = at.group.x / blocks;
    const uint head0 = kv * shared_by + at.group.x % blocks * HEADS, served = min(uint(HEADS), (kv + 1) * shared_by - head0);
    const uint position = positions[0], length = position + 1;
    if (position >= p.capacity) return;  // the host grows the cache before; a wrong position must not write elsewhere
    const bool each = (p.flags & NORM_EACH) != 0, brings = !(p.flags & SHARED_KEYS);
    for (uint i = at.simd; i < HEADS + 2; i += HEADS * PARTS) {
        threadgroup float* to = turned + i * DIM;
        if (i < served) turn_head(qkv + (head0 + i) * DIM, q_weight + (each ? head0 + i : 0) * DIM, q_angles, p, at.lane, to);
        if (!brings) continue;
        if (i == HEADS) turn_head(qkv + (p.heads + kv) * DIM, k_weight + (each ? kv : 0) * DIM, k_angles, p, at.lane, to);
        if (i == HEADS + 1) norm_value(qkv + (p.heads + (p.flags & SAME ? 0 : p.kv_heads) + kv) * DIM, p, at.lane, to);
    }
    const uint oldest = p.window > 0 && length > p.window ? length - p.window : 0;
    const uint share = (length - oldest + p.splits - 1) / p.splits;
    const uint begin = oldest + at.group.y * share, stop = min(begin + share, length), end = brings ? min(stop, position) : stop;
    const bool newest = brings && begin < stop && stop == length;  // whether the token brings a key that is among these
    group_barrier();
    // Others of this launch do not read what is written here: they have it as this threadgroup has it.
    if (newest && at.group.x % blocks == 0) for (uint d = at.index; d < DIM; d += 32 * HEADS * PARTS) {
        const size_t to = (size_t(kv) * p.capacity + position) * DIM + d;
        store(keys, to, turned[HEADS * DIM + d]), store(values, to, turned[(HEADS + 1) * DIM + d]);
    }
    // Where lanes or units are left over, they read what the last one does, and count nothing.
    const uint slot = at.lane / KEY_LANES, lane = at.lane % KEY_LANES;
    threadgroup const float* query = turned + min(at.simd % HEADS, served - 1) * DIM;
    uint eight[UNITS];
    float4 qa[UNITS], qb[UNITS];
    float sum[UNITS][8], top = LOWEST, weight = 0, own_score = 0;
    UNROLL for (uint n = 0; n < UNITS; n++) {
        eight[n] = min(lane + n * KEY_LANES, uint(EIGHTS - 1));
        const float used = lane + n * KEY_LANES < EIGHTS ? p.scale : 0;
        qa[n] = scaled(four(query + 8 * eight[n]), used), qb[n] = scaled(four(query + 8 * eight[n] + 4), used);
        float fresh[8];
        UNROLL for (uint i = 0; i < 8; i++) fresh[i] = newest ? rounded(turned[HEADS * DIM + 8 * eight[n] + i], T()) : 0;
        own_score = dot8(fresh, qa[n], qb[n], own_score);
    }
    const size_t first = size_t(kv) * p.capacity * EIGHTS;
    UNROLL for (uint mask = KEY_LANES / 2; mask > 0; mask /= 2) own_score += simd_shuffle_xor(own_score, mask);
    // The token's own key is the first of one slot.
    const bool begins = newest && at.simd / HEADS == 0 && slot == 0;
    if (begins) top = capped(own_score, p.softcap), weight = 1;
    UNROLL for (uint n = 0; n < UNITS; n++) UNROLL for (uint i = 0; i < 8; i++)
        sum[n][i] = begins ? rounded(turned[(HEADS + 1) * DIM + 8 * eight[n] + i], T()) : 0;
    for (uint base = begin + at.simd / HEADS * SLOTS * KEYS; base < end; base += PARTS * SLOTS * KEYS) {
        uint k[KEYS][UNITS][EIGHT], v[KEYS][UNITS][EIGHT];
        float score[KEYS], highest = top;
        UNROLL for (uint u = 0; u < KEYS; u++) {
            const uint key = min(base + u * SLOTS + slot, end - 1) * EIGHTS;
            UNROLL for (uint n = 0; n < UNITS; n++) {
                load_eight((device const uint*)keys, first + key + eight[n], k[u][n]);
                load_eight((device const uint*)values, first + key + eight[n], v[u][n]);
            }
        }
        UNROLL for (uint u = 0; u < KEYS; u++) {
            score[u] = 0;
            UNROLL for (uint n = 0; n < UNITS; n++) {
                float widened[8];
                unpack(k[u][n], widened, T());
                score[u] = dot8(widened, qa[n], qb[n], score[u]);
            }
        }
        UNROLL for (uint mask = KEY_LANES / 2; mask > 0; mask /= 2)
            UNROLL for (uint u = 0; u < KEYS; u++) score[u] += simd_shuffle_xor(score[u], mask);
        UNROLL for (uint u = 0; u < KEYS; u++) {
            score[u] = base + u * SLOTS + slot < end ? capped(score[u], p.softcap) : LOWEST;
            highest = max(highest, score[u]);
        }
        const float shrink = exp(top - highest);
        top = highest, weight *= shrink;
        UNROLL for (uint n = 0; n < UNITS; n++) UNROLL for (uint i = 0; i < 8; i++) sum[n][i] *= shrink;
        UNROLL for (uint u = 0; u < KEYS; u++) {
            const float w = base + u * SLOTS + slot < end ? exp(score[u] - highest) : 0;
            weight += w;
            UNROLL for (uint n = 0; n < UNITS; n++) {
                float widened[8];
                unpack(v[u][n], widened, T());
                UNROLL for (uint i = 0; i < 8; i++) sum[n][i] = mul_add(w, widened[i], sum[n][i]);
            }
        }
    }
    // The slots of a simdgroup, then the simdgroups of a head.
    UNROLL for (uint mask = KEY_LANES; mask < 32; mask *= 2) {
        const float other = simd_shuffle_xor(top, mask), highest = max(top, other);
        const float mine = exp(top - highest), theirs = exp(other - highest);
        top = highest, weight = weight * mine + simd_shuffle_xor(weight, mask) * theirs;
        UNROLL for (uint n = 0; n < UNITS; n++) UNROLL for (uint i = 0; i < 8; i++)
            sum[n][i] = sum[n][i] * mine + simd_shuffle_xor(sum[n][i], mask) * theirs;
    }
    threadgroup float* own = merged + at.simd * PARTIAL;
    UNROLL for (uint n = 0; n < UNITS; n++)
        if (at.lane < KEY_LANES && lane + n * KEY_LANES < EIGHTS) UNROLL for (uint i = 0; i < 8; i++) own[8 * eight[n] + i] = sum[n][i];
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
        const size_t head = head0 + h;
        if (p.splits > 1) {
            parts[(head * p.splits + at.group.y) * PARTIAL + d] = d == DIM ? highest : d == DIM + 1 ? total : v;
        } else if (d < DIM) {
            const float sink = p.sinks ? sinks[head0 + h] : LOWEST, edge = max(highest, sink), w = exp(highest - edge);
            const uint to = lane_order((head0 + h) * DIM + d, p.heads * DIM);
            out[to] = v * w / (total * w + (p.sinks ? exp(sink - edge) : 0)) * gate(qkv, p, head0 + h, d);
        }
    }
}

// Brings the splits of a head together. grid (heads).
KERNEL(combine, 256, device const float* parts, device const float* sinks, device const float* qkv, device float* out, PARAMS(Attention)) {
    Place at = PLACE;
    after_previous();
    const uint head = at.group.x;
    device const float* part = parts + size_t(head) * p.splits * PARTIAL;
    float highest = p.sinks ? sinks[head] : LOWEST, total = 0;
    for (uint i = 0; i < p.splits; i++) highest = max(highest, part[i * PARTIAL + DIM]);
    if (p.sinks) total = exp(sinks[head] - highest);
    for (uint i = 0; i < p.splits; i++) total += exp(part[i * PARTIAL + DIM] - highest) * part[i * PARTIAL + DIM + 1];
    for (uint d = at.index; d < DIM; d += 32 * at.simds) {
        float sum = 0;
        for (uint i = 0; i < p.splits; i++) sum += exp(part[i * PARTIAL + DIM] - highest) * part[i * PARTIAL + d];
        out[lane_order(head * DIM + d, p.heads * DIM)] = sum / total * gate(qkv, p, head, d);
    }
}
