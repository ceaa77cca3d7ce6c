// Activation functions, by the number that flags have in `ACTIVATION`, and their slopes.

// The error function as a rational function, as XLA computes it; absolute error below 5e-7.
INLINE float error_function(float v) {
    const float x = min(max(v, -4.0f), 4.0f), x2 = x * x;
    float a = mul_add(-2.726142e-10f, x2, 2.7706814e-8f);
    a = mul_add(mul_add(a, x2, -2.101024e-6f), x2, -5.6925064e-5f);
    a = mul_add(mul_add(mul_add(a, x2, -7.349906e-4f), x2, -2.9546e-3f), x2, -1.6096033e-2f);
    float b = mul_add(-1.4566072e-5f, x2, -2.1337405e-4f);
    b = mul_add(mul_add(mul_add(b, x2, -1.682827e-3f), x2, -7.3733292e-3f), x2, -1.4264739e-2f);
    return x * a / b;
}

INLINE float activate(float v, uint flags) {
    switch (flags / ACTIVATION % 8) {
        case GELU: return 0.5f * v * (1 + error_function(v * 0.70710678f));
        case GELU_TANH: return 0.5f * v * (1 + tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
        case QUICK_GELU: return v / (1 + exp(-1.702f * v));
        case RELU: return max(v, 0.0f);
        case RELU2: return max(v, 0.0f) * max(v, 0.0f);
        case TANH: return tanh(v);
        case SIGMOID: return 1 / (1 + exp(-v));
        default: return v / (1 + exp(-v));
    }
}

// The slope of SiLU at v.
INLINE float silu_slope(float v) {
    const float s = 1 / (1 + exp(-v));
    return s * (1 + v * (1 - s));
}

INLINE float slope(float v, uint flags) {
    const float square = v * v;
    switch (flags / ACTIVATION % 8) {
        case GELU: return 0.5f * (1 + error_function(v * 0.70710678f)) + v * 0.39894228f * exp(-0.5f * square);
        case GELU_TANH: {
            const float t = tanh(0.7978845608f * v * (1 + 0.044715f * square));
            return 0.5f * (1 + t) + 0.5f * v * (1 - t * t) * 0.7978845608f * (1 + 0.134145f * square);
        }
        case QUICK_GELU: return silu_slope(1.702f * v);
        case RELU: return v > 0 ? 1.0f : 0.0f;
        case RELU2: return 2 * max(v, 0.0f);
        case TANH: {
            const float t = tanh(v);
            return 1 - t * t;
        }
        case SIGMOID: {
            const float s = 1 / (1 + exp(-v));
            return s * (1 - s);
        }
        default: return silu_slope(v);
    }
}
