// What all kernels share. They are written in what Metal's language and CUDA C++ have in common: every pointer names its address
// space, structs are read member by member, a barrier is reached by all threads of its group, threadgroups of one launch share nothing.
// Activations between kernels are F32; dense weights, the KV cache and the rows of a batch are T: half, bf16 or float.

// Where a thread is. A simdgroup is 32 lanes: a warp, in CUDA's words.
struct Place {
    uint3 group, groups;
    uint index, simd, lane, simds;
};

// As it is stored. Widened by a shift and rounded by integers, so that every device gives the same bits; M1 has no arithmetic for it.
struct bf16 { ushort bits; };

// Stands for minus infinity, which fast math may assume away.
#define LOWEST -1e30f

INLINE float load(device const float* p, size_t i) { return p[i]; }
INLINE float load(device const half* p, size_t i) { return from_half(p[i]); }
INLINE float load(device const bf16* p, size_t i) { return from_bits(uint(p[i].bits) << 16); }
INLINE void store(device float* p, size_t i, float v) { p[i] = v; }
INLINE void store(device half* p, size_t i, float v) { p[i] = to_half(v); }
INLINE ushort bf16_bits(float v) {
    uint bits = to_bits(v);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return ushort((nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
INLINE void store(device bf16* p, size_t i, float v) { p[i].bits = bf16_bits(v); }

// As it would be read again.
INLINE float rounded(float v, float) { return v; }
INLINE float rounded(float v, half) { return from_half(to_half(v)); }
INLINE float rounded(float v, bf16) { return from_bits(uint(bf16_bits(v)) << 16); }

// Two neighbours in a word; the second argument only selects the type.
INLINE float2 pair(uint bits, half) { return two_halves(bits); }
INLINE float2 pair(uint bits, bf16) { return make_float2(from_bits(bits << 16), from_bits(bits & 0xffff0000u)); }

// Words that eight neighbours take.
enum { EIGHT = sizeof(T) * 2 };

INLINE void split_words(uint4 v, thread uint* w) { w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w; }

// Eight neighbours, the i-th eight of an array of T.
INLINE void load_eight(device const uint* p, size_t i, thread uint* w) {
    UNROLL for (uint k = 0; k < EIGHT / 4; k++) split_words(((device const uint4*)p)[EIGHT / 4 * i + k], w + 4 * k);
}
template <typename S> INLINE void unpack(thread const uint* w, thread float (&v)[8], S) {
    UNROLL for (uint i = 0; i < 4; i++) {
        const float2 both = pair(w[i], S());
        v[2 * i] = both.x, v[2 * i + 1] = both.y;
    }
}
INLINE void unpack(thread const uint* w, thread float (&v)[8], float) {
    UNROLL for (uint i = 0; i < 8; i++) v[i] = from_bits(w[i]);
}

INLINE float dot8(thread const float (&q)[8], float4 a, float4 b, float sum) {
    sum = mul_add(q[3], a.w, mul_add(q[2], a.z, mul_add(q[1], a.y, mul_add(q[0], a.x, sum))));
    return mul_add(q[7], b.w, mul_add(q[6], b.z, mul_add(q[5], b.y, mul_add(q[4], b.x, sum))));
}

INLINE float square8(float4 a, float4 b, float sum) {
    sum = mul_add(a.w, a.w, mul_add(a.z, a.z, mul_add(a.y, a.y, mul_add(a.x, a.x, sum))));
    return mul_add(b.w, b.w, mul_add(b.z, b.z, mul_add(b.y, b.y, mul_add(b.x, b.x, sum))));
}

INLINE float4 times(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
INLINE float4 scaled(float4 a, float s) { return make_float4(a.x * s, a.y * s, a.z * s, a.w * s); }

// Where column k of a vector of n lies so that neighbouring lanes, which have 32 columns each, read neighbouring values: 8 runs of
// n / 32 quads. A product whose input is in this order reads it where it is; who writes that input makes the order.
INLINE uint lane_order(uint k, uint n) { return (k / 4 % 8 * (n / 32) + k / 32) * 4 + k % 4; }

INLINE float capped(float score, float cap) { return cap > 0 ? cap * tanh(score / cap) : score; }

// The sum over a threadgroup, for every thread; `partial` has room for a value of each simdgroup.
INLINE float group_sum(float v, threadgroup float* partial, thread const Place& at) {
    v = simd_sum(v);
    group_barrier();  // an earlier sum may still be read
    if (at.lane == 0) partial[at.simd] = v;
    group_barrier();
    float sum = 0;
    for (uint i = 0; i < at.simds; i++) sum += partial[i];
    return sum;
}

// The same of the greatest value.
INLINE float group_max(float v, threadgroup float* partial, thread const Place& at) {
    v = simd_max(v);
    group_barrier();
    if (at.lane == 0) partial[at.simd] = v;
    group_barrier();
    float highest = partial[0];
    for (uint i = 1; i < at.simds; i++) highest = max(highest, partial[i]);
    return highest;
}
