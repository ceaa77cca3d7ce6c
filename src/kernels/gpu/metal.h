// Prelude for Metal: what `new_library_with_source` is given is this file, the `#define`s of a library, params.h, common.h and the
// library's own files. It gives the kernels, which are written in what Metal and CUDA have in common, the same names on each.
#include <metal_stdlib>
using namespace metal;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_2 _Pragma("clang loop unroll_count(2)")
#define PARAMS(P) constant P& p
#define KERNEL(NAME, THREADS, ...)                                                                             \
    [[max_total_threads_per_threadgroup(THREADS)]] kernel void NAME(__VA_ARGS__,                               \
        uint3 group_ [[threadgroup_position_in_grid]], uint3 groups_ [[threadgroups_per_grid]],                \
        uint thread_ [[thread_index_in_threadgroup]], uint simd_ [[simdgroup_index_in_threadgroup]],           \
        uint lane_ [[thread_index_in_simdgroup]], uint simds_ [[simdgroups_per_threadgroup]])
#define PLACE {group_, groups_, thread_, simd_, lane_, simds_}
#define SHARED(T, NAME, COUNT) threadgroup T NAME[COUNT]

INLINE void group_barrier() { threadgroup_barrier(mem_flags::mem_threadgroup); }
// Launches of an encoder are ordered by its barriers.
INLINE void after_previous() {}

INLINE float mul_add(float a, float b, float c) { return fma(a, b, c); }
INLINE float2 make_float2(float a, float b) { return float2(a, b); }
INLINE float4 make_float4(float a, float b, float c, float d) { return float4(a, b, c, d); }
INLINE float from_bits(uint bits) { return as_type<float>(bits); }
INLINE uint to_bits(float v) { return as_type<uint>(v); }
INLINE float from_half(half v) { return float(v); }
INLINE half to_half(float v) { return half(v); }
INLINE float2 two_halves(uint bits) { return float2(as_type<half2>(bits)); }
