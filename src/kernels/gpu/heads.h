// What becomes of a head of q or k before attention: its norm and the rotary embedding. Needs DIM, the values of a head.
//
// Angles are cosine and sine of each pair at the head's position, made on the host in F64: a GPU's own sine is poor at large arguments.
// Those of q differ from those of k where queries grow with their position.

// By a simdgroup; `to` is read behind a barrier.
INLINE void turn_head(device const float* from, device const float* weight, device const float2* angles, constant Attention& p, uint lane,
                      threadgroup float* to) {
    const uint half_turn = p.rotated / 2;
    float squares = 0;
    for (uint i = lane; i < DIM; i += 32) squares = mul_add(from[i], from[i], squares);
    const float scale = p.flags & QK_NORM ? rsqrt(simd_sum(squares) / DIM + p.eps) : 1;
    for (uint i = lane; i < DIM / 2; i += 32) {
        // Pair i of those that are rotated, then neighbours of the rest.
        const bool turns = i < half_turn, adjacent = (p.flags & ADJACENT) != 0;
        const uint a = turns && !adjacent ? i : 2 * i, b = turns && !adjacent ? i + half_turn : a + 1;
        float c = 1, s = 0, x = from[a] * scale, y = from[b] * scale, weight_a = 1, weight_b = 1;
        if (turns) c = angles[i].x, s = angles[i].y;
        if (p.flags & QK_NORM) weight_a = weight[a], weight_b = weight[b];
        if (!(p.flags & NORM_AFTER)) x *= weight_a, y *= weight_b;
        float u = x * c - y * s, v = y * c + x * s;
        if (p.flags & NORM_AFTER) u *= weight_a, v *= weight_b;
        to[a] = u, to[b] = v;
    }
}

// A head of v, normed where it is; by a simdgroup.
INLINE void norm_value(device const float* from, constant Attention& p, uint lane, threadgroup float* to) {
    float squares = 0;
    for (uint i = lane; i < DIM; i += 32) squares = mul_add(from[i], from[i], squares);
    const float scale = p.flags & V_NORM ? rsqrt(simd_sum(squares) / DIM + p.eps) : 1;
    for (uint i = lane; i < DIM; i += 32) to[i] = from[i] * scale;
}
