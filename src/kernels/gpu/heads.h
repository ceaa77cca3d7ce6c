// Between the product that makes q, k and v, and attention: norms of q and k, the rotary embedding, appending to the cache. A simdgroup
// a head and row; q, k and v of a row are side by side. Needs T and DIM, the values of a head.
//
// Angles are those of the rows, (rows, rotated / 2) of cosine and sine, made on the host in F64: a GPU's own sine is poor at large
// arguments. Those of q differ from those of k where queries grow with their position.
// keys, values: (kv_heads, capacity, DIM). grid (heads + 2 · kv_heads, rows).
KERNEL(heads, 32, device const float* qkv, device const uint* positions, device const float2* q_angles,
       device const float2* k_angles, device const float* q_weight, device const float* k_weight, device float* q, device T* keys, device T* values,
       PARAMS(Heads)) {
    Place at = PLACE;
    after_previous();
    const uint head = at.group.x, row = at.group.y, position = positions[row];
    const uint k_head = head - p.heads, v_head = k_head - p.kv_heads;
    device const float* from = qkv + (size_t(row) * (p.heads + 2 * p.kv_heads) + head) * DIM;
    if (position >= p.capacity) return;  // the host grows the cache before; a wrong position must not write elsewhere
    if (head >= p.heads + p.kv_heads) {
        for (uint i = at.lane; i < DIM; i += 32) store(values, (size_t(v_head) * p.capacity + position) * DIM + i, from[i]);
        return;
    }
    device const float* weight = head < p.heads ? q_weight : k_weight;
    if (p.flags & NORM_EACH) weight += size_t(head < p.heads ? head : k_head) * DIM;
    device const float2* angles = head < p.heads ? q_angles : k_angles;
    const uint half_turn = p.rotated / 2;
    float squares = 0;
    for (uint i = at.lane; i < DIM; i += 32) squares = mul_add(from[i], from[i], squares);
    const float scale = p.flags & QK_NORM ? rsqrt(simd_sum(squares) / DIM + p.eps) : 1;
    for (uint i = at.lane; i < DIM / 2; i += 32) {
        // Pair i of those that are rotated, then neighbours of the rest.
        const bool turns = i < half_turn, adjacent = (p.flags & ADJACENT) != 0;
        const uint a = turns && !adjacent ? i : 2 * i, b = turns && !adjacent ? i + half_turn : a + 1;
        float c = 1, s = 0, x = from[a] * scale, y = from[b] * scale, weight_a = 1, weight_b = 1;
        if (turns) c = angles[size_t(row) * half_turn + i].x, s = angles[size_t(row) * half_turn + i].y;
        if (p.flags & QK_NORM) weight_a = weight[a], weight_b = weight[b];
        if (!(p.flags & NORM_AFTER)) x *= weight_a, y *= weight_b;
        float u = x * c - y * s, v = y * c + x * s;
        if (p.flags & NORM_AFTER) u *= weight_a, v *= weight_b;
        if (head < p.heads) {
            const size_t to = (size_t(row) * p.heads + head) * DIM;
            q[to + a] = u, q[to + b] = v;
        } else {
            const size_t to = (size_t(k_head) * p.capacity + position) * DIM;
            store(keys, to + a, u), store(keys, to + b, v);
        }
    }
}
