// Products of a few rows with a matrix of any format, and rows of such a matrix. Needs activation.h, format.h and STAGE:
// columns of activations that a threadgroup holds.
//
// y (rows, outputs) = x (rows, inputs) · Wᵀ. A simdgroup makes N rows of W at once, which share x; `split` simdgroups share the columns.
// STAGED: the threadgroup first brings x into its memory, where NORM multiplies it by the norm's weight; the norm's statistic multiplies
// the result, so a norm costs no launch. Otherwise x is read where it is, in `lane_order`: no limit on the width, R rows a pass.
// GATED: W is gate over up (2 · outputs rows), y = act(gate) · up, in `lane_order`.
//
// The order of a sum depends on the shape of W and on `split` alone: a row gives the same bits whatever rows are beside it, however
// many rows of W a simdgroup makes at once, and however many threadgroups there are.

// Of eight columns of x: their sum, and their sum weighted with the powers that codes bring along.
template <typename F> INLINE float2 totals_of(float4 a, float4 b) {
    const float even = (a.x + a.z) + (b.x + b.z), odd = (a.y + a.w) + (b.y + b.w);
    return make_float2(even + odd, mul_add(F::magic(0), even, F::magic(1) * odd));
}

// Where the matrix is. Chunks are counted through the whole of it and fit 32 bits; behind its end the last one is read, and what
// becomes of it is not stored.
struct Extent { uint chunks, last, outputs, group_shift; };

// The chunk at `from` of N rows; of a gated matrix, a row of gate and its row of up in turn.
template <typename F, uint N, bool GATED>
INLINE void fetch(device const uint* codes, device const uint* extra, device const ushort* scales, uint from,
                  thread const Extent& e, thread uint (&w)[N][F::WORDS], thread uint (&scale)[N]) {
    UNROLL for (uint n = 0; n < N; n++) {
        const uint row = GATED ? n / 2 + n % 2 * e.outputs : n, i = min(from + row * e.chunks, e.last);
        F::load(codes, extra, i, w[n]);
        scale[n] = F::scale_bits(scales, i >> e.group_shift);
    }
}

// Brings columns `start`.. of R rows of x into threadgroup memory, with the sums of squares that a norm needs. Unit j of chunk c lies
// at j · (chunks here) + c: neighbouring lanes read neighbouring values. Column by column the same thread whatever the tile is, for the
// order of the squares.
template <typename F, uint R>
INLINE void stage_columns(device const float* x, device const float* weight, uint start, uint cols, bool first, constant Product& p,
                          thread const Place& at, threadgroup float4* stage, threadgroup float2* totals, thread float (&squares)[R]) {
    const uint units = cols / 8, here = cols / F::VALUES, threads = 32 * at.simds, row0 = at.group.y * R;
    UNROLL for (uint r = 0; r < R; r++) {
        const size_t from = size_t(min(row0 + r, p.rows - 1)) * p.inputs + start;
        for (uint u = (at.index + threads - start / 8 % threads) % threads; u < units; u += threads) {
            device const float4* v = (device const float4*)(x + from) + 2 * u;
            float4 a = v[0], b = v[1];
            if (p.flags & NORM) {
                device const float4* m = (device const float4*)(weight + start) + 2 * u;
                if (first) squares[r] = square8(a, b, squares[r]);
                a = times(a, m[0]), b = times(b, m[1]);
            }
            const uint to = r * units + u % (F::VALUES / 8) * here + u / (F::VALUES / 8);
            stage[to] = a, stage[R * units + to] = b;
            if (F::TOTALS) totals[to] = totals_of<F>(a, b);
        }
    }
}

template <typename F, uint R, uint N, bool GATED, bool STAGED>
INLINE void product(device const uint* codes, device const uint* extra, device const ushort* scales, device const float* x,
                    device const float* weight, device const float* bias, device const float* residual, device float* y,
                    constant Product& p, thread const Place& at, threadgroup float4* stage, threadgroup float2* totals,
                    threadgroup float* partial, threadgroup float* levels) {
    const uint UNITS = F::VALUES / 8, MADE = GATED ? N / 2 : N;
    const uint tile = STAGED ? STAGE / R : p.inputs, chunks = p.inputs / F::VALUES, step = 32 * p.split;
    const uint slots = at.simds / p.split, slot = at.simd / p.split, part = at.simd % p.split, row0 = at.group.y * R;
    const Extent extent = {chunks, (GATED ? 2 : 1) * p.outputs * chunks - 1, p.outputs, p.group_shift};
    const uint jump = at.groups.x * slots * MADE * chunks, mine = part * 32 + at.lane;
    const uint zero = p.flags >> 31;  // which the compiler does not know
    uint base = (at.group.x * slots + slot) * MADE * chunks;
    uint w[N][F::WORDS], s[N];
    stage_levels<F>(extra, levels, at);
    fetch<F, N, GATED>(codes, extra, scales, base + mine, extent, w, s);
    after_previous();  // weights do not wait for it
    float squares[R], statistic[R];
    UNROLL for (uint r = 0; r < R; r++) squares[r] = 0, statistic[r] = 1;
    for (uint block = at.group.x; block * slots * MADE < p.outputs; block += at.groups.x, base += jump) {
        const bool first = block == at.group.x;
        float sums[N][R];
        UNROLL for (uint n = 0; n < N; n++) UNROLL for (uint r = 0; r < R; r++) sums[n][r] = 0;
        uint chunk = mine;
        for (uint start = 0; start < p.inputs; start += tile) {
            const uint cols = min(tile, p.inputs - start), units = cols / 8, here = cols / F::VALUES;
            if (STAGED && (first || tile < p.inputs)) {
                if (!first || start > 0) group_barrier();  // the tile before may still be read
                stage_columns<F, R>(x, weight, start, cols, first, p, at, stage, totals, squares);
                group_barrier();
            }
            UNROLL_2 for (uint end = (start + cols) / F::VALUES; chunk < end; chunk += step) {
                // The next chunk is fetched while this one is multiplied.
                uint now[N][F::WORDS], scale[N];
                UNROLL for (uint n = 0; n < N; n++) {
                    UNROLL for (uint k = 0; k < F::WORDS; k++) now[n][k] = w[n][k];
                    scale[n] = s[n];
                }
                const uint within = chunk - start / F::VALUES, next = chunk + step;
                fetch<F, N, GATED>(codes, extra, scales, next < chunks ? base + next : base + jump + mine, extent, w, s);
                float dots[N][R], total[R], magic[R];
                UNROLL for (uint r = 0; r < R; r++) {
                    total[r] = 0, magic[r] = 0;
                    UNROLL for (uint n = 0; n < N; n++) dots[n][r] = 0;
                }
                UNROLL for (uint j = 0; j < UNITS; j++) {
                    float q[N][8];
                    UNROLL for (uint n = 0; n < N; n++) F::decode(now[n], j, zero, levels, q[n]);
                    UNROLL for (uint r = 0; r < R; r++) {
                        float4 a, b;
                        if (STAGED) {
                            const uint from = r * units + j * here + within;
                            a = stage[from], b = stage[R * units + from];
                            if (F::TOTALS) total[r] += totals[from].x, magic[r] += totals[from].y;
                        } else {
                            const uint u = chunk * UNITS + j, row = min(row0 + r, p.rows - 1);
                            const uint from = row * (p.inputs / 4) + u % 4 * (p.inputs / 16) + u / 4;
                            a = ((device const float4*)x)[from], b = ((device const float4*)x)[from + p.inputs / 32];
                            if (F::TOTALS) {
                                const float2 t = totals_of<F>(a, b);
                                total[r] += t.x, magic[r] += t.y;
                            }
                        }
                        UNROLL for (uint n = 0; n < N; n++) dots[n][r] = dot8(q[n], a, b, dots[n][r]);
                    }
                }
                UNROLL for (uint n = 0; n < N; n++) UNROLL for (uint r = 0; r < R; r++) {
                    const float2 f = F::scale(scale[n]);
                    if (F::TOTALS) sums[n][r] = mul_add(f.x, dots[n][r] - magic[r], mul_add(f.y, total[r], sums[n][r]));
                    else sums[n][r] = F::SCALED ? mul_add(f.x, dots[n][r], sums[n][r]) : sums[n][r] + dots[n][r];
                }
            }
        }
        if (first && (p.flags & NORM)) UNROLL for (uint r = 0; r < R; r++)
            statistic[r] = rsqrt(group_sum(squares[r], partial, at) / float(p.inputs) + p.eps);
        UNROLL for (uint n = 0; n < N; n++) UNROLL for (uint r = 0; r < R; r++) sums[n][r] = simd_sum(sums[n][r]);
        if (p.split > 1) {
            group_barrier();  // sums of the block before, or of a statistic, may still be read
            if (at.lane == 0) UNROLL for (uint n = 0; n < N; n++) UNROLL for (uint r = 0; r < R; r++)
                partial[(at.simd * N + n) * R + r] = sums[n][r];
            group_barrier();
            UNROLL for (uint n = 0; n < N; n++) UNROLL for (uint r = 0; r < R; r++) {
                sums[n][r] = 0;
                for (uint i = 0; i < p.split; i++) sums[n][r] += partial[((slot * p.split + i) * N + n) * R + r];
            }
        }
        const uint out = (block * slots + slot) * MADE;
        UNROLL for (uint m = 0; m < MADE; m++) UNROLL for (uint r = 0; r < R; r++)
            if (part == 0 && at.lane == m * R + r && out + m < p.outputs && row0 + r < p.rows) {
                const bool ordered = GATED || (p.flags & ACTIVATE);
                const size_t to = size_t(row0 + r) * p.outputs + (ordered ? lane_order(out + m, p.outputs) : out + m);
                float v = mul_add(sums[GATED ? 2 * m : m][r], statistic[r], p.flags & BIAS ? bias[out + m] : 0);
                if (GATED) {
                    const float up = mul_add(sums[GATED ? 2 * m + 1 : m][r], statistic[r], p.flags & BIAS ? bias[p.outputs + out + m] : 0);
                    v = activate(v, p.flags) * up;
                } else if (p.flags & ACTIVATE) {
                    v = activate(v, p.flags);
                    if (p.flags & FACTOR) v *= residual[size_t(row0 + r) * p.outputs + out + m];
                }
                y[to] = p.flags & RESIDUAL ? mul_add(p.scale, v, residual[to]) : p.scale * v;
            }
    }
}

// r: rows of x a pass, n: rows of W a simdgroup makes at once.
#define PRODUCT_KERNEL(NAME, R, N, GATED, STAGED)                                                                             \
    KERNEL(NAME, 256, device const uint* codes, device const uint* extra, device const ushort* scales, device const float* x, \
           device const float* weight, device const float* bias, device const float* residual, device float* y,               \
           PARAMS(Product)) {                                                                                                 \
        SHARED(float4, stage, STAGED ? STAGE / 4 : 1);                                                                        \
        SHARED(float2, totals, STAGED && FORMAT::TOTALS ? STAGE / 8 : 1);                                                     \
        SHARED(float, partial, 8 * N * R);                                                                                    \
        SHARED(float, levels, 16);                                                                                            \
        Place at = PLACE;                                                                                                     \
        product<FORMAT, R, N, GATED, STAGED>(codes, extra, scales, x, weight, bias, residual, y, p, at, stage, totals,        \
                                             partial, levels);                                                                \
    }
PRODUCT_KERNEL(product_r1n2, 1, 2, false, true)
PRODUCT_KERNEL(product_r1n4, 1, 4, false, true)
PRODUCT_KERNEL(product_gated_r1n4, 1, 4, true, true)
PRODUCT_KERNEL(product_direct_r1n2, 1, 2, false, false)
PRODUCT_KERNEL(product_direct_r1n4, 1, 4, false, false)
PRODUCT_KERNEL(product_direct_r4n2, 4, 2, false, false)
PRODUCT_KERNEL(product_gated_direct_r4n2, 4, 2, true, false)

// Rows of a matrix, decoded: the embedding (F32), or a whole matrix for a matrix product of candle (T). A thread makes 8 columns.
template <typename F, typename Y>
INLINE void decode_rows(device const uint* codes, device const uint* extra, device const ushort* scales, device const uint* ids,
                        device Y* y, constant Rows& p, thread const Place& at, threadgroup float* levels) {
    stage_levels<F>(extra, levels, at);
    const uint UNITS = F::VALUES / 8, unit = at.group.x * 256 + at.index, chunk = unit / UNITS, chunks = p.cols / F::VALUES;
    if (unit >= p.cols / 8) return;
    after_previous();
    const uint row = p.first == BY_ID ? ids[at.group.y] : p.first + at.group.y, i = row * chunks + chunk;
    const float2 s = F::scale(F::scale_bits(scales, i >> p.group_shift));
    uint w[F::WORDS];
    float q[8];
    F::load(codes, extra, i, w);
    F::decode(w, unit % UNITS, 0, levels, q);
    UNROLL for (uint k = 0; k < 8; k++)
        store(y, size_t(at.group.y) * p.cols + 8 * unit + k, p.scale * (s.x * (q[k] - F::magic(k)) + s.y));
}

#define ROWS_KERNEL(NAME, Y)                                                                                  \
    KERNEL(NAME, 256, device const uint* codes, device const uint* extra, device const ushort* scales,        \
           device const uint* ids, device Y* y, PARAMS(Rows)) {                                               \
        SHARED(float, levels, 16);                                                                            \
        Place at = PLACE;                                                                                     \
        decode_rows<FORMAT>(codes, extra, scales, ids, y, p, at, levels);                                     \
    }
ROWS_KERNEL(rows, float)
ROWS_KERNEL(rows_t, T)
