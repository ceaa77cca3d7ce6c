// The greedy choice: run over parts of the logits, then once more over the parts' winners, whose ids `ids` holds. Of equal values the
// first wins, a NaN never. The last run advances the position, so that the next step can be encoded before this one's id is read.

INLINE bool better(float v, uint id, float than, uint than_id) { return v > than || (v == than && id < than_id); }

KERNEL(argmax, 256, device const float* values, device const uint* ids, device float* best, device uint* best_id,
       device uint* positions, PARAMS(Argmax)) {
    SHARED(float, highest, 8);
    SHARED(uint, where, 8);
    Place at = PLACE;
    const uint begin = at.group.x * p.part, end = min(begin + p.part, p.count);
    float v = LOWEST;
    uint id = 0xffffffffu;
    after_previous();
    for (uint i = begin + at.index; i < end; i += 32 * at.simds) {
        const uint other = p.last ? ids[i] : i;
        if (better(values[i], other, v, id)) v = values[i], id = other;
    }
    UNROLL for (uint mask = 16; mask > 0; mask /= 2) {
        const float u = simd_shuffle_xor(v, mask);
        const uint other = simd_shuffle_xor(id, mask);
        if (better(u, other, v, id)) v = u, id = other;
    }
    if (at.lane == 0) highest[at.simd] = v, where[at.simd] = id;
    group_barrier();
    if (at.index > 0) return;
    for (uint i = 1; i < at.simds; i++)
        if (better(highest[i], where[i], v, id)) v = highest[i], id = where[i];
    best[at.group.x] = v;
    best_id[at.group.x] = id == 0xffffffffu ? 0 : id;
    if (p.last) positions[0] += 1;
}
