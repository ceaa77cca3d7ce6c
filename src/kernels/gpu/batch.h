// What is between the products of a batch, forward and backward, for prompts, texts and training: norms, rotation, activations, the
// loss. Each is one launch, where tensor operations are a dozen. Rows are T, what is between loading and storing them is F32. Needs
// activation.h.
//
// Where rows are a part of wider ones, a row begins every `stride` values; what is written is contiguous. What is written may be what is
// read: a value is read for the last time by the thread that writes it.

// The number of a thread in a grid of one dimension.
INLINE uint of_grid(thread const Place& at) { return at.group.x * 32 * at.simds + at.index; }

// A row is groups of `cols` values, each normed by itself. A threadgroup a group. grid (rows · groups).
// Sets its mean, 0 for the root-mean-square norm, and one over its deviation.
INLINE void statistics(device const T* x, constant BatchNorm& p, thread const Place& at, threadgroup float* partial, thread float& mean,
                       thread float& scale) {
    const uint threads = 32 * at.simds;
    float total = 0, squares = 0;
    for (uint i = at.index; i < p.cols; i += threads) {
        const float v = load(x, i);
        total += v;
        squares = mul_add(v, v, squares);
    }
    mean = 0;
    if (p.flags & LAYER) {
        // A second pass, because a difference of two large sums would lose the variance.
        mean = group_sum(total, partial, at) / float(p.cols);
        squares = 0;
        for (uint i = at.index; i < p.cols; i += threads) {
            const float v = load(x, i) - mean;
            squares = mul_add(v, v, squares);
        }
    }
    scale = rsqrt(group_sum(squares, partial, at) / float(p.cols) + p.eps);
}

// Where a group begins in x, what it is in y, and where its weights begin.
INLINE size_t group_begin(constant BatchNorm& p, thread const Place& at) {
    return size_t(at.group.x / p.groups) * p.stride + size_t(at.group.x % p.groups) * p.cols;
}
INLINE size_t weights_begin(constant BatchNorm& p, thread const Place& at) {
    return p.flags & WEIGHT_EACH ? size_t(at.group.x % p.groups) * p.cols : 0;
}

KERNEL(norm_batch, 256, device const T* x, device const float* weight, device const float* bias, device T* y, PARAMS(BatchNorm)) {
    SHARED(float, partial, 8);
    Place at = PLACE;
    after_previous();
    device const T* own = x + group_begin(p, at);
    device const float* w = weight + weights_begin(p, at);
    float mean, scale;
    statistics(own, p, at, partial, mean, scale);
    const size_t to = size_t(at.group.x) * p.cols;
    for (uint i = at.index; i < p.cols; i += 32 * at.simds) {
        float v = (load(own, i) - mean) * scale;
        if (p.flags & WEIGHTED) v *= w[i];
        if (p.flags & SHIFT) v += bias[i];
        store(y, to + i, v);
    }
}

// The gradient of x: what a gradient does to the mean and to the length, the norm takes away. dy is contiguous.
KERNEL(norm_batch_backward, 256, device const T* x, device const T* dy, device const float* weight, device T* dx, PARAMS(BatchNorm)) {
    SHARED(float, partial, 8);
    Place at = PLACE;
    after_previous();
    device const T* own = x + group_begin(p, at);
    device const float* w = weight + weights_begin(p, at);
    float mean, scale;
    statistics(own, p, at, partial, mean, scale);
    const size_t to = size_t(at.group.x) * p.cols;
    float along = 0, total = 0;
    for (uint i = at.index; i < p.cols; i += 32 * at.simds) {
        const float g = load(dy, to + i) * (p.flags & WEIGHTED ? w[i] : 1);
        along = mul_add(g, (load(own, i) - mean) * scale, along);
        total += g;
    }
    along = group_sum(along, partial, at) / float(p.cols);
    const float shift = p.flags & LAYER ? group_sum(total, partial, at) / float(p.cols) : 0;
    for (uint i = at.index; i < p.cols; i += 32 * at.simds) {
        const float g = load(dy, to + i) * (p.flags & WEIGHTED ? w[i] : 1);
        store(dx, to + i, (g - (load(own, i) - mean) * scale * along - shift) * scale);
    }
}

// The rotary embedding of rows of heads: the first `rotated` values of each. cosine, sine (rows, rotated / 2), made on the host. INVERSE
// turns back, as gradients are turned. A thread a pair. grid (blocks of pairs).
KERNEL(rotate_batch, 256, device const T* x, device const float* cosine, device const float* sine, device T* y, PARAMS(BatchRotation)) {
    Place at = PLACE;
    after_previous();
    const uint i = of_grid(at), half_turn = p.rotated / 2, pairs = p.dim / 2;
    if (i >= p.count) return;
    const uint row = i / (p.heads * pairs), head = i / pairs % p.heads, pair = i % pairs;
    // Pair i of those that are rotated, then neighbours of the rest.
    const bool turns = pair < half_turn, adjacent = (p.flags & ADJACENT) != 0;
    const uint a = turns && !adjacent ? pair : 2 * pair, b = turns && !adjacent ? pair + half_turn : a + 1;
    const size_t from = size_t(row) * p.stride + head * p.dim, to = (size_t(row) * p.heads + head) * p.dim;
    float c = 1, s = 0;
    if (turns) c = cosine[size_t(row) * half_turn + pair], s = sine[size_t(row) * half_turn + pair];
    if (p.flags & INVERSE) s = -s;
    const float u = load(x, from + a), v = load(x, from + b);
    store(y, to + a, u * c - v * s);
    store(y, to + b, v * c + u * s);
}

// y = activation(x), or of rows of twice as many values activation(gate) · up. grid (blocks of values).
KERNEL(activate_batch, 256, device const T* x, device T* y, PARAMS(BatchActivation)) {
    Place at = PLACE;
    after_previous();
    const uint i = of_grid(at);
    if (i >= p.count) return;
    const size_t from = size_t(i / p.cols) * p.stride + i % p.cols;
    float v = activate(load(x, from), p.flags);
    if (p.flags & GATED) v *= load(x, from + p.cols);
    store(y, i, v);
}

// dy is contiguous.
KERNEL(activate_batch_backward, 256, device const T* x, device const T* dy, device T* dx, PARAMS(BatchActivation)) {
    Place at = PLACE;
    after_previous();
    const uint i = of_grid(at);
    if (i >= p.count) return;
    const uint row = i / p.cols, col = i % p.cols;
    const size_t from = size_t(row) * p.stride + col;
    const float v = load(x, from), d = load(dy, i);
    if (p.flags & GATED) {
        const size_t to = size_t(row) * 2 * p.cols + col;
        store(dx, to, slope(v, p.flags) * load(x, from + p.cols) * d);
        store(dx, to + p.cols, activate(v, p.flags) * d);
    } else {
        store(dx, i, slope(v, p.flags) * d);
    }
}

// The cross entropy of each row of scores against one id, in nats, and the gradient of the scores as they are before they are scaled and
// capped. A threadgroup a row. grid (rows).
KERNEL(cross_entropy, 256, device const T* scores, device const uint* targets, device float* losses, device T* gradient, PARAMS(BatchLoss)) {
    SHARED(float, partial, 8);
    Place at = PLACE;
    after_previous();
    const size_t begin = size_t(at.group.x) * p.cols;
    const uint target = targets[at.group.x], threads = 32 * at.simds;
    float highest = LOWEST, own = 0, sum = 0;
    for (uint i = at.index; i < p.cols; i += threads) {
        const float v = capped(load(scores, begin + i) * p.scale, p.softcap);
        highest = max(highest, v);
        if (i == target) own = v;
    }
    highest = group_max(highest, partial, at);
    for (uint i = at.index; i < p.cols; i += threads) sum += exp(capped(load(scores, begin + i) * p.scale, p.softcap) - highest);
    sum = group_sum(sum, partial, at);
    if (target % threads == at.index) losses[at.group.x] = log(sum) + (highest - own);
    if (p.with_gradient) for (uint i = at.index; i < p.cols; i += threads) {
        const float v = capped(load(scores, begin + i) * p.scale, p.softcap);
        float d = (exp(v - highest) / sum - (i == target ? 1 : 0)) * p.scale;
        if (p.softcap > 0) d *= 1 - v / p.softcap * (v / p.softcap);
        store(gradient, begin + i, d);
    }
}

// A block of a matrix times a number, to a block of another: parameters to what products read, and their gradients back. grid (blocks of
// values).
#define BLOCK_KERNEL(NAME, X, Y)                                             \
    KERNEL(NAME, 256, device const X* x, device Y* y, PARAMS(BatchBlock)) {  \
        Place at = PLACE;                                                    \
        after_previous();                                                    \
        const uint i = of_grid(at), row = i / p.cols, col = i % p.cols;      \
        if (i >= p.count) return;                                            \
        const float v = load(x, p.from + size_t(row) * p.from_stride + col); \
        store(y, p.to + size_t(row) * p.to_stride + col, v * p.factor);      \
    }
BLOCK_KERNEL(block_from_f32, float, T)
BLOCK_KERNEL(block_to_f32, T, float)
