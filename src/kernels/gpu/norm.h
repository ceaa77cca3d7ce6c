// Norms of rows, with the residual sum before or behind them: y = norm(x + added) · weight + bias with sum = x + added, or
// y = added + norm(x) · weight + bias. The root-mean-square norm, or LayerNorm. A threadgroup a row; statistics are F32. Needs T.

template <typename X, typename Y>
INLINE void normalise(device const X* x, device const X* added, device const float* weight, device const float* bias, device X* sum,
                      device Y* y, constant Norm& p, thread const Place& at, threadgroup float* partial) {
    const size_t row = size_t(at.group.x) * p.cols;
    const uint threads = 32 * at.simds;
    float total = 0, squares = 0;
    after_previous();
    for (uint i = at.index; i < p.cols; i += threads) {
        float v = load(x, row + i);
        if (p.flags & ADD_BEFORE) {
            store(sum, row + i, v + load(added, row + i));
            v = load(sum, row + i);  // as it is rounded: the sum is what the next layer adds to
        }
        total += v;
        squares = mul_add(v, v, squares);
    }
    // Where a value is read again, its own thread has written it, so `sum` may be `x`.
    const bool summed = (p.flags & ADD_BEFORE) != 0;
    float mean = 0;
    if (p.flags & LAYER) {
        // A second pass, because a difference of two large sums would lose the variance.
        mean = group_sum(total, partial, at) / float(p.cols);
        squares = 0;
        for (uint i = at.index; i < p.cols; i += threads) {
            const float v = (summed ? load(sum, row + i) : load(x, row + i)) - mean;
            squares = mul_add(v, v, squares);
        }
    }
    const float scale = rsqrt(group_sum(squares, partial, at) / float(p.cols) + p.eps);
    for (uint i = at.index; i < p.cols; i += threads) {
        float v = ((summed ? load(sum, row + i) : load(x, row + i)) - mean) * scale * weight[i];
        if (p.flags & SHIFT) v += bias[i];
        if (p.flags & ADD_AFTER) v += load(added, row + i);
        store(y, row + (p.flags & LANE_ORDER ? lane_order(i, p.cols) : i), v);
    }
}

#define NORM_KERNEL(NAME, X, Y)                                                                                       \
    KERNEL(NAME, 256, device const X* x, device const X* added, device const float* weight, device const float* bias, \
           device X* sum, device Y* y, PARAMS(Norm)) {                                                                \
        SHARED(float, partial, 8);                                                                                    \
        Place at = PLACE;                                                                                             \
        normalise(x, added, weight, bias, sum, y, p, at, partial);                                                    \
    }
NORM_KERNEL(norm_t, T, T)
NORM_KERNEL(norm_f32, float, float)
NORM_KERNEL(norm_f32_t, float, T)
