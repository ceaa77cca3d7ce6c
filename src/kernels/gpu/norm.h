// Norms of rows: y = scale · (norm(x) · weight + bias), or y = scale · (added + norm(x) · weight + bias). The root-mean-square norm, or
// LayerNorm. A threadgroup a row.

// `y` may be `x` or `added`, but for another order of columns.
KERNEL(norm_f32, 256, device const float* x, device const float* added, device const float* weight, device const float* bias,
       device float* y, PARAMS(Norm)) {
    SHARED(float, partial, 8);
    Place at = PLACE;
    const size_t row = size_t(at.group.x) * p.cols;
    const uint threads = 32 * at.simds;
    float total = 0, squares = 0;
    after_previous();
    for (uint i = at.index; i < p.cols; i += threads) {
        const float v = x[row + i];
        total += v;
        squares = mul_add(v, v, squares);
    }
    float mean = 0;
    if (p.flags & LAYER) {
        // A second pass, because a difference of two large sums would lose the variance.
        mean = group_sum(total, partial, at) / float(p.cols);
        squares = 0;
        for (uint i = at.index; i < p.cols; i += threads) {
            const float v = x[row + i] - mean;
            squares = mul_add(v, v, squares);
        }
    }
    const float scale = rsqrt(group_sum(squares, partial, at) / float(p.cols) + p.eps);
    for (uint i = at.index; i < p.cols; i += threads) {
        float v = (x[row + i] - mean) * scale * weight[i];
        if (p.flags & SHIFT) v += bias[i];
        if (p.flags & ADD_AFTER) v += added[row + i];
        y[row + (p.flags & LANE_ORDER ? lane_order(i, p.cols) : i)] = p.scale * v;
    }
}
