// A token of short convolutions, whose last inputs lie in a ring (RING, channels): the token's own comes into it. Tokens before the first
// have none. Needs params.h.

// bias + Σ weight[i] x[position - taps + 1 + i] of a channel, `own` being x[position]. weight: (taps, channels).
INLINE float convolved(device const float* ring, device const float* weight, float bias, uint channel, uint channels, uint taps,
                       uint position, float own) {
    float sum = mul_add(weight[(taps - 1) * channels + channel], own, bias);
    for (uint back = 1; back < taps && back <= position; back++)
        sum = mul_add(weight[(taps - 1 - back) * channels + channel], ring[(position - back) % RING * channels + channel], sum);
    return sum;
}

// out = c · convolved(b · x), of b, c and x one after another; `out` is in `lane_order`. A thread a channel.
KERNEL(short_conv, 256, device const float* inputs, device const uint* positions, device const float* weight, device const float* bias,
       device float* ring, device float* out, PARAMS(Convolution)) {
    Place at = PLACE;
    const uint i = at.group.x * 256 + at.index;
    if (i >= p.channels) return;
    after_previous();
    const uint position = positions[0];
    const float own = inputs[i] * inputs[2 * p.channels + i];
    const float v = convolved(ring, weight, p.flags & BIAS ? bias[i] : 0, i, p.channels, p.taps, position, own);
    ring[position % RING * p.channels + i] = own;
    out[lane_order(i, p.channels)] = inputs[p.channels + i] * v;
}
