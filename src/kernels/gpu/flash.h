// Attention of a prefill: scores live in registers and are nowhere written. A simdgroup has ROWS query rows, a lane 2 of the 64 keys of a
// block. Needs attention.h. Source: Dao et al. 2022, <https://arxiv.org/abs/2205.14135>.
//
// q (rows, heads, DIM) at positions first.., out the same in T; keys up to each row's position. grid (blocks of rows, heads).
enum {
    FLASH_SIMDS = 4,
    ROWS = DIM <= 128 ? 8 : 4,
    CHUNK = 16 / sizeof(T),  // values of 16 bytes
    MOST = 16 * CHUNK,
    PART = DIM <= MOST ? DIM : DIM % MOST == 0 ? MOST : DIM % 32 == 0 ? 32 : 8,  // values of a key that lie in threadgroup memory at once
    WIDE = (DIM + 31) / 32,                                                      // values of a row that a lane sums
    PADDED = PART / CHUNK + 1  // chunks of a key and a gap, so that lanes read from different banks
};

KERNEL(flash, 32 * FLASH_SIMDS, device const float* q, device const T* keys, device const T* values, device const float* sinks,
       device T* out, PARAMS(Flash)) {
    SHARED(uint4, tile, 64 * PADDED);
    SHARED(float4, weights, FLASH_SIMDS * ROWS * 16);
    Place at = PLACE;
    after_previous();
    const uint head = at.group.y, kv = head / (p.heads / p.kv_heads);
    const uint group0 = at.group.x * FLASH_SIMDS * ROWS, row0 = group0 + at.simd * ROWS;
    const uint last = min(group0 + FLASH_SIMDS * ROWS, p.rows) - 1 + p.first;
    const uint begin = p.window > 0 && p.first + group0 + 1 > p.window ? p.first + group0 + 1 - p.window : 0;
    device const uint4* k4 = (device const uint4*)keys + size_t(kv) * p.capacity * (DIM / CHUNK);
    device const T* v0 = values + size_t(kv) * p.capacity * DIM;
    float top[ROWS], weight[ROWS], sum[ROWS][WIDE];
    UNROLL for (uint r = 0; r < ROWS; r++) {
        top[r] = LOWEST, weight[r] = 0;
        UNROLL for (uint i = 0; i < WIDE; i++) sum[r][i] = 0;
    }
    for (uint base = begin / 64 * 64; base <= last; base += 64) {
        float score[ROWS][2];
        UNROLL for (uint r = 0; r < ROWS; r++) score[r][0] = score[r][1] = 0;
        for (uint from = 0; from < DIM; from += PART) {
            group_barrier();  // the part before may still be read
            for (uint i = at.index; i < 64 * (PART / CHUNK); i += 32 * FLASH_SIMDS) {
                const uint key = i / (PART / CHUNK), chunk = i % (PART / CHUNK);
                tile[key * PADDED + chunk] = k4[size_t(min(base + key, last)) * (DIM / CHUNK) + from / CHUNK + chunk];
            }
            group_barrier();
            for (uint j = 0; j < PART / 8; j++) {
                float k[2][8];
                uint w[2][EIGHT];
                UNROLL for (uint i = 0; i < 2; i++) {
                    const uint from_tile = (at.lane + 32 * i) * PADDED + j * (EIGHT / 4);
                    UNROLL for (uint c = 0; c < EIGHT / 4; c++) split_words(tile[from_tile + c], w[i] + 4 * c);
                    unpack(w[i], k[i], T());
                }
                UNROLL for (uint r = 0; r < ROWS; r++) {
                    const size_t query = size_t(min(row0 + r, p.rows - 1)) * p.heads + head;
                    device const float4* a = (device const float4*)(q + query * DIM + from) + 2 * j;
                    const float4 a0 = a[0], a1 = a[1];
                    score[r][0] = dot8(k[0], a0, a1, score[r][0]);
                    score[r][1] = dot8(k[1], a0, a1, score[r][1]);
                }
            }
        }
        // Weights of the block before have been read: the keys of this one came behind a barrier of all.
        UNROLL for (uint r = 0; r < ROWS; r++) {
            const uint position = p.first + row0 + r;
            const uint oldest = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
            bool seen[2];
            UNROLL for (uint i = 0; i < 2; i++) {
                const uint key = base + at.lane + 32 * i;
                seen[i] = key <= position && key >= oldest && key <= last;
                score[r][i] = seen[i] ? capped(score[r][i] * p.scale, p.softcap) : LOWEST;
            }
            const float highest = max(top[r], simd_max(max(score[r][0], score[r][1]))), shrink = exp(top[r] - highest);
            top[r] = highest, weight[r] *= shrink;
            UNROLL for (uint i = 0; i < WIDE; i++) sum[r][i] *= shrink;
            UNROLL for (uint i = 0; i < 2; i++) {
                const float w = seen[i] ? exp(score[r][i] - highest) : 0;
                weight[r] += w;
                ((threadgroup float*)weights)[(at.simd * ROWS + r) * 64 + at.lane + 32 * i] = w;
            }
        }
        simd_barrier();
        for (uint quad = 0; quad < 16 && base + 4 * quad <= last; quad++) {
            float v[4][WIDE];
            UNROLL for (uint k = 0; k < 4; k++) UNROLL for (uint i = 0; i < WIDE; i++) {
                const uint d = 32 * i + at.lane, key = min(base + 4 * quad + k, last);
                v[k][i] = d < DIM ? load(v0, size_t(key) * DIM + d) : 0;
            }
            UNROLL for (uint r = 0; r < ROWS; r++) {
                const float4 w = weights[(at.simd * ROWS + r) * 16 + quad];
                UNROLL for (uint i = 0; i < WIDE; i++) {
                    sum[r][i] = mul_add(w.y, v[1][i], mul_add(w.x, v[0][i], sum[r][i]));
                    sum[r][i] = mul_add(w.w, v[3][i], mul_add(w.z, v[2][i], sum[r][i]));
                }
            }
        }
    }
    UNROLL for (uint r = 0; r < ROWS; r++) {
        const float sink = p.sinks ? sinks[head] : LOWEST, edge = max(top[r], sink), share = exp(top[r] - edge);
        const float whole = simd_sum(weight[r]) * share + (p.sinks ? exp(sink - edge) : 0);
        if (row0 + r < p.rows) UNROLL for (uint i = 0; i < WIDE; i++) {
            const uint d = 32 * i + at.lane;
            if (d < DIM) store(out, (size_t(row0 + r) * p.heads + head) * DIM + d, sum[r][i] * (share / whole));
        }
    }
}
