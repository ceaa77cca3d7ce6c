// Prelude for CUDA: the same names as metal.h, for NVRTC. It includes nothing, because a machine with a driver has no toolkit's
// headers. Address spaces are empty words; no function is marked, because `__device__` expands to an attribute of the name `device`,
// which the empty word would eat: compile with `--device-as-default-execution-space`.
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
#define device
#define threadgroup
#define thread
#define constant const

#define INLINE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_2 _Pragma("unroll 2")
#define PARAMS(P) const __grid_constant__ P p
#define KERNEL(NAME, THREADS, ...) extern "C" __global__ void __launch_bounds__(THREADS) NAME(__VA_ARGS__)
#define PLACE                                                                                              \
    {uint3{blockIdx.x, blockIdx.y, blockIdx.z}, uint3{gridDim.x, gridDim.y, gridDim.z}, threadIdx.x,       \
     threadIdx.x / 32, threadIdx.x % 32, blockDim.x / 32}
#define SHARED(T, NAME, COUNT) __shared__ T NAME[COUNT]

struct half { ushort bits; };

INLINE void group_barrier() { __syncthreads(); }
// A launch may begin while the one before still runs (programmatic dependent launch): what that one writes is read behind this.
#if __CUDA_ARCH__ >= 900
INLINE void after_previous() { asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory"); }
#else
INLINE void after_previous() {}
#endif

INLINE float mul_add(float a, float b, float c) { return fmaf(a, b, c); }
INLINE float from_bits(uint bits) { return __uint_as_float(bits); }
INLINE uint to_bits(float v) { return __float_as_uint(v); }
INLINE float from_half(half v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
INLINE half to_half(float v) {
    half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
    return h;
}
INLINE float2 two_halves(uint bits) {
    half lower = {ushort(bits)}, upper = {ushort(bits >> 16)};
    return make_float2(from_half(lower), from_half(upper));
}
INLINE float simd_shuffle_xor(float v, uint mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INLINE uint simd_shuffle_xor(uint v, uint mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INLINE float simd_sum(float v) {
    UNROLL for (uint mask = 16; mask > 0; mask /= 2) v += simd_shuffle_xor(v, mask);
    return v;
}
INLINE float simd_max(float v) {
    UNROLL for (uint mask = 16; mask > 0; mask /= 2) v = fmaxf(v, simd_shuffle_xor(v, mask));
    return v;
}
