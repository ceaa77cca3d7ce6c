// The greedy choice among the scores of a row, and what its probability is made of: of each part of a row the greatest score, the sum of
// exp(score - greatest) and the id of the greatest, as words, with one more that keeps them aligned. Who reads them puts the parts
// together. Of equal scores the first wins. A NaN never wins, and makes the sum one, as infinity does. grid (parts, rows).

INLINE bool better(float v, uint id, float than, uint than_id) { return v > than || (v == than && id < than_id); }

KERNEL(argmax, 256, device const float* scores, device uint* best, PARAMS(Argmax)) {
    SHARED(float, highest, 8);
    SHARED(uint, where, 8);
    SHARED(float, partial, 8);
    Place at = PLACE;
    const uint begin = at.group.x * p.part, end = min(begin + p.part, p.count), threads = 32 * at.simds;
    device const float* row = scores + size_t(at.group.y) * p.count;
    float v = LOWEST;
    uint id = 0xffffffffu;
    after_previous();
    for (uint i = begin + at.index; i < end; i += threads) {
        const float score = capped(row[i], p.softcap);
        if (better(score, i, v, id)) v = score, id = i;
    }
    UNROLL for (uint mask = 16; mask > 0; mask /= 2) {
        const float u = simd_shuffle_xor(v, mask);
        const uint other = simd_shuffle_xor(id, mask);
        if (better(u, other, v, id)) v = u, id = other;
    }
    if (at.lane == 0) highest[at.simd] = v, where[at.simd] = id;
    group_barrier();
    for (uint i = 0; i < at.simds; i++)
        if (better(highest[i], where[i], v, id)) v = highest[i], id = where[i];
    float sum = 0;
    for (uint i = begin + at.index; i < end; i += threads) sum += exp(capped(row[i], p.softcap) - v);
    sum = group_sum(sum, partial, at);
    if (at.index > 0) return;
    device uint* out = best + 4 * (size_t(at.group.y) * at.groups.x + at.group.x);
    out[0] = to_bits(v), out[1] = to_bits(sum), out[2] = id, out[3] = 0;
}
