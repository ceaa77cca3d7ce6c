// What is between the products of attention over many rows: heads at their places, and the softmax of scores with all that masks them,
// forward and backward. The products themselves are the device's own. Source: Dao et al. 2022, appendix B.2,
// <https://arxiv.org/abs/2205.14135>.
//
// Sequences lie one behind another, `firsts` (sequences + 1) says where; in their places, (sequences, heads, longest, dim), the shorter
// ones end with zeros.

// Rows (rows, heads · dim) at their places. grid (blocks of values).
KERNEL(place_batch, 256, device const T* x, device const uint* firsts, device T* y, PARAMS(BatchPlaces)) {
    Place at = PLACE;
    after_previous();
    const uint i = of_grid(at);
    if (i >= p.count) return;
    const uint of_sequence = p.heads * p.longest * p.dim;
    const uint sequence = i / of_sequence, head = i % of_sequence / (p.longest * p.dim);
    const uint row = firsts[sequence] + i / p.dim % p.longest;
    const float v = row < firsts[sequence + 1] ? load(x, size_t(row) * p.stride + head * p.dim + i % p.dim) : 0;
    store(y, i, v);
}

// The rows of what is at places; `places` (rows) is sequence · longest + position. grid (blocks of values).
KERNEL(unplace_batch, 256, device const T* x, device const uint* places, device T* y, PARAMS(BatchPlaces)) {
    Place at = PLACE;
    after_previous();
    const uint i = of_grid(at);
    if (i >= p.count) return;
    const uint place = places[i / (p.heads * p.dim)], sequence = place / p.longest, position = place % p.longest;
    const uint head = i / p.dim % p.heads;
    store(y, i, load(x, ((size_t(sequence) * p.heads + head) * p.longest + position) * p.dim + i % p.dim));
}

// Which keys a row of scores sees, and its score of one: a simdgroup a row, rows are (sequences, heads, queries). A query is at
// `first` + its number, keys are at their numbers, of which the sequence has `len`.
struct Seen {
    uint begin, end, head, position;
};
INLINE void see(uint row, device const uint* firsts, constant BatchSoftmax& p, thread Seen& s) {
    const uint sequence = row / (p.heads * p.queries), len = firsts[sequence + 1] - firsts[sequence];
    const uint position = p.first + row % p.queries;
    s.begin = 0, s.end = len, s.head = row / p.queries % p.heads, s.position = position;
    if (p.flags & CAUSAL) s.end = min(len, position + 1);
    if (p.window > 0) {
        if (position + 1 > p.window) s.begin = position + 1 - p.window;
        if (p.window < len) s.end = min(s.end, position + p.window);
    }
}
INLINE float score_of(device const T* scores, size_t row, uint key, device const float* bias, thread const Seen& s, constant BatchSoftmax& p) {
    float v = capped(load(scores, row * p.keys + key) * p.scale, p.softcap);
    if (p.flags & BY_DISTANCE) v += bias[s.head * (2 * p.queries - 1) + p.queries - 1 + key - s.position];
    return v;
}

// What the weights of a row are made of: exp(score - top) / sum.
struct Shares { float top, sum; };
INLINE void share(device const T* scores, size_t row, device const float* sinks, device const float* bias, thread const Seen& s,
                  constant BatchSoftmax& p, uint lane, thread Shares& all) {
    all.top = LOWEST, all.sum = 0;
    for (uint key = s.begin + lane; key < s.end; key += 32) all.top = max(all.top, score_of(scores, row, key, bias, s, p));
    all.top = simd_max(all.top);
    if (p.flags & SINKS) all.top = max(all.top, sinks[s.head]);
    for (uint key = s.begin + lane; key < s.end; key += 32) all.sum += exp(score_of(scores, row, key, bias, s, p) - all.top);
    all.sum = simd_sum(all.sum);
    if (p.flags & SINKS) all.sum += exp(sinks[s.head] - all.top);
}

// `bias` (heads, 2 · queries - 1) by the key's position minus the query's. grid (blocks of as many rows as a threadgroup has simdgroups).
KERNEL(softmax_batch, 256, device const T* scores, device const uint* firsts, device const float* sinks, device const float* bias,
       device T* weights, PARAMS(BatchSoftmax)) {
    Place at = PLACE;
    after_previous();
    const uint row = at.group.x * at.simds + at.simd;
    if (row >= p.rows) return;
    Seen s;
    Shares all;
    see(row, firsts, p, s);
    share(scores, row, sinks, bias, s, p, at.lane, all);
    for (uint key = at.lane; key < p.keys; key += 32) {
        const bool sees = key >= s.begin && key < s.end;
        store(weights, size_t(row) * p.keys + key, sees ? exp(score_of(scores, row, key, bias, s, p) - all.top) / all.sum : 0);
    }
}

// From the gradients of weights to those of the products of queries with keys; without a bias.
KERNEL(softmax_batch_backward, 256, device const T* scores, device const T* of_weights, device const uint* firsts, device const float* sinks,
       device T* of_scores, PARAMS(BatchSoftmax)) {
    Place at = PLACE;
    after_previous();
    const uint row = at.group.x * at.simds + at.simd;
    if (row >= p.rows) return;
    Seen s;
    Shares all;
    see(row, firsts, p, s);
    share(scores, row, sinks, sinks, s, p, at.lane, all);
    float mean = 0;
    for (uint key = s.begin + at.lane; key < s.end; key += 32) {
        const float weight = exp(score_of(scores, row, key, sinks, s, p) - all.top) / all.sum;
        mean = mul_add(weight, load(of_weights, size_t(row) * p.keys + key), mean);
    }
    mean = simd_sum(mean);
    for (uint key = at.lane; key < p.keys; key += 32) {
        float d = 0;
        if (key >= s.begin && key < s.end) {
            const float score = score_of(scores, row, key, sinks, s, p), weight = exp(score - all.top) / all.sum;
            d = weight * (load(of_weights, size_t(row) * p.keys + key) - mean) * p.scale;
            if (p.softcap > 0) d *= 1 - score / p.softcap * (score / p.softcap);
        }
        store(of_scores, size_t(row) * p.keys + key, d);
    }
}
