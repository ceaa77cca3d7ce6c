// Attention of a new token over the cache, which takes up its key and value: norms of q and k, the rotary embedding, online softmax, keys
// split over threadgroups. Needs heads.h, T, DIM (of a head), HEADS (query heads a threadgroup serves), PARTS (simdgroups a head there) and
// KEYS (keys a lane has in flight).
//
// A simdgroup has one query head: KEY_LANES lanes hold a key's DIM values, 8 each, SLOTS keys lie beside each other and KEYS behind one
// another. A threadgroup has HEADS heads of one key head, which share keys by the core's cache, and PARTS simdgroups for each head: one
// head and many simdgroups while keys are few and time is latency, all heads of a key head when keys are many.
// Source: Dao et al. 2022, <https://arxiv.org/abs/2205.14135>; the split over keys is Flash-Decoding's.
enum { KEY_LANES = DIM <= 64 ? 8 : DIM <= 128 ? 16 : 32, SLOTS = 32 / KEY_LANES, PARTIAL = DIM + 2 };

INLINE float4 four(threadgroup const float* v) { return make_float4(v[0], v[1], v[2], v[3]); }

// q, k and v of the token lie side by side. `out` is in `lane_order`. With one split it is final, else `parts` goes to `combine`: of a head
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
    const bool each = (p.flags & NORM_EACH) != 0;
    for (uint i = at.simd; i < HEADS + 2; i += HEADS * PARTS) {
        threadgroup float* to = turned + i * DIM;
        if (i < served) turn_head(qkv + (head0 + i) * DIM, q_weight + (each ? head0 + i : 0) * DIM, q_angles, p, at.lane, to);
        if (i == HEADS) turn_head(qkv + (p.heads + kv) * DIM, k_weight + (each ? kv : 0) * DIM, k_angles, p, at.lane, to);
        if (i == HEADS + 1) for (uint d = at.lane; d < DIM; d += 32) to[d] = qkv[(p.heads + p.kv_heads + kv) * DIM + d];
    }
    const uint oldest = p.window > 0 && length > p.window ? length - p.window : 0;
    const uint share = (length - oldest + p.splits - 1) / p.splits;
    const uint begin = oldest + at.group.y * share, stop = min(begin + share, length), end = min(stop, position);
    const bool newest = begin < stop && stop == length;  // whether the token itself is among the keys
    group_barrier();
    // Others of this launch do not read what is written here: they have it as this threadgroup has it.
    if (newest && at.group.x % blocks == 0) for (uint d = at.index; d < DIM; d += 32 * HEADS * PARTS) {
        const size_t to = (size_t(kv) * p.capacity + position) * DIM + d;
        store(keys, to, turned[HEADS * DIM + d]), store(values, to, turned[(HEADS + 1) * DIM + d]);
    }
    // Where DIM / 8 is no power of two, lanes are left over: they read what the last one does, and count nothing.
    const uint slot = at.lane / KEY_LANES, sub = min(at.lane % KEY_LANES, uint(DIM / 8 - 1));
    const float used = at.lane % KEY_LANES < DIM / 8 ? p.scale : 0;
    threadgroup const float* query = turned + min(at.simd % HEADS, served - 1) * DIM + 8 * sub;
    const float4 qa = scaled(four(query), used), qb = scaled(four(query + 4), used);
    const size_t first = size_t(kv) * p.capacity * (DIM / 8) + sub;
    float fresh[8], top = LOWEST, weight = 0, sum[8];
    UNROLL for (uint i = 0; i < 8; i++) fresh[i] = rounded(turned[HEADS * DIM + 8 * sub + i], T());
    float own_score = dot8(fresh, qa, qb, 0);
    UNROLL for (uint mask = KEY_LANES / 2; mask > 0; mask /= 2) own_score += simd_shuffle_xor(own_score, mask);
    // The token's own key is the first of one slot.
    const bool begins = newest && at.simd / HEADS == 0 && slot == 0;
    if (begins) top = capped(own_score, p.softcap), weight = 1;
    UNROLL for (uint i = 0; i < 8; i++) sum[i] = begins ? rounded(turned[(HEADS + 1) * DIM + 8 * sub + i], T()) : 0;
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
        const size_t head = head0 + h;
        if (p.splits > 1) {
            parts[(head * p.splits + at.group.y) * PARTIAL + d] = d == DIM ? highest : d == DIM + 1 ? total : v;
        } else if (d < DIM) {
            const float sink = p.sinks ? sinks[head0 + h] : LOWEST, edge = max(highest, sink), w = exp(highest - edge);
            const uint to = lane_order((head0 + h) * DIM + d, p.heads * DIM);
            out[to] = v * w / (total * w + (p.sinks ? exp(sink - edge) : 0));
        }
    }
}

// Brings the splits of a head together. grid (heads), a thread a value.
KERNEL(combine, 256, device const float* parts, device const float* sinks, device float* out, PARAMS(Attention)) {
    Place at = PLACE;
    after_previous();
    const uint head = at.group.x;
    device const float* part = parts + size_t(head) * p.splits * PARTIAL;
    float highest = p.sinks ? sinks[head] : LOWEST, total = 0, sum = 0;
    for (uint i = 0; i < p.splits; i++) highest = max(highest, part[i * PARTIAL + DIM]);
    if (p.sinks) total = exp(sinks[head] - highest);
    for (uint i = 0; i < p.splits; i++) {
        const float share = exp(part[i * PARTIAL + DIM] - highest);
        total += share * part[i * PARTIAL + DIM + 1];
        if (at.index < DIM) sum += share * part[i * PARTIAL + at.index];
    }
    if (at.index < DIM) out[lane_order(head * DIM + at.index, p.heads * DIM)] = sum / total;
}
