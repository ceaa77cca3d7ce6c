// Prelude for the CPU, to find errors of kernels without a GPU. cpu.cpp runs each GPU thread as a fiber until it waits for its
// simdgroup or threadgroup. A missing thread at a barrier, or two threads at different ones, is an error. With
// -fsanitize=address,undefined: memory outside a buffer, misaligned vectors. With -fsanitize=thread: races, also between threadgroups; a
// barrier orders memory, a shuffle does not (it does not on CUDA either). Threadgroup memory begins as NaN.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>  // uint, ushort

struct uint3 { uint x, y, z; };
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct half { ushort bits; };

struct CpuPlace {
    uint3 group, groups;
    uint index, simd, lane, simds;
};
CpuPlace cpu_place();
void* cpu_shared(size_t bytes);
void cpu_barrier(int line);
// The values of the simdgroup's 32 lanes.
void cpu_gather(uint value, uint* all, int line);
// The libraries that are linked in.
std::vector<std::string> cpu_libraries();
void cpu_register(const std::string& name, uint threads, std::function<void(void**)> call);
// `args` are addresses of pointers and of the struct, as cuLaunchKernel takes them; `seed` decides which thread runs first.
void cpu_launch(const std::string& name, uint3 grid, uint threads, void** args, uint seed);

template <typename A> struct Argument {
    static A& get(void* p) { return *(A*)p; }
};
template <typename A> struct Argument<const A&> {
    static const A& get(void* p) { return *(const A*)p; }
};
// Makes a kernel known by its name.
struct Registered {
    template <typename... A> Registered(const std::string& name, uint threads, void (*f)(A...)) {
        cpu_register(name, threads, [f](void** args) { call(f, args, std::index_sequence_for<A...>()); });
    }
    template <typename... A, size_t... I>
    static void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
        f(Argument<A>::get(args[I])...);
    }
};

#define device
#define threadgroup
#define thread
#define constant const

#define INLINE static inline
#define UNROLL
#define UNROLL_2
#define PARAMS(P) const P& p
#define KERNEL(NAME, THREADS, ...)                                                       \
    static void NAME(__VA_ARGS__);                                                       \
    static Registered NAME##_registered(std::string(LIBRARY) + "/" #NAME, THREADS, NAME); \
    static void NAME(__VA_ARGS__)
#define PLACE                                                                                          \
    {cpu_place().group, cpu_place().groups, cpu_place().index, cpu_place().simd, cpu_place().lane,      \
     cpu_place().simds}
// Apple's GPUs have 32 kB for all of a threadgroup; cpu_shared counts them together.
enum { MOST_SHARED = 32 * 1024 };
#define SHARED(T, NAME, COUNT)                                                                           \
    static_assert(sizeof(T) * (COUNT) <= MOST_SHARED, #NAME ": more memory than a threadgroup has on Metal"); \
    T* NAME = (T*)cpu_shared(sizeof(T) * (COUNT))

INLINE float from_bits(uint bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
INLINE uint to_bits(float v) {
    uint bits;
    memcpy(&bits, &v, 4);
    return bits;
}
INLINE float2 make_float2(float a, float b) { return {a, b}; }
INLINE float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
INLINE float mul_add(float a, float b, float c) { return a * b + c; }  // not fused: no processor need have it
INLINE float rsqrt(float v) { return 1 / std::sqrt(v); }
template <typename A> INLINE A min(A a, A b) { return a < b ? a : b; }
template <typename A> INLINE A max(A a, A b) { return a > b ? a : b; }
using std::exp;
using std::log;
using std::tanh;

// Halves, to the nearest with ties to even.
INLINE float from_half(half h) {
    uint e = h.bits >> 10 & 31, m = h.bits & 1023, sign = uint(h.bits & 0x8000) << 16;
    if (e == 31) return from_bits(sign | 0x7f800000u | m << 13);
    return from_bits(to_bits(e ? from_bits((e + 112) << 23 | m << 13) : float(m) * 0x1p-24f) | sign);
}
INLINE half to_half(float v) {
    uint bits = to_bits(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return {ushort(sign | 0x7e00)};
    if (rest >= 0x477ff000) return {ushort(sign | 0x7c00)};
    if (rest < 0x38800000) return {ushort(sign | uint(std::nearbyint(from_bits(rest) * 0x1p24f)))};
    return {ushort(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13)};
}
INLINE float2 two_halves(uint bits) { return {from_half({ushort(bits)}), from_half({ushort(bits >> 16)})}; }

INLINE void after_previous() {}
INLINE void group_barrier(int line = __builtin_LINE()) { cpu_barrier(line); }
INLINE uint simd_shuffle_xor(uint v, uint mask, int line = __builtin_LINE()) {
    uint all[32];
    cpu_gather(v, all, line);
    return all[(cpu_place().lane ^ mask) % 32];
}
INLINE float simd_shuffle_xor(float v, uint mask, int line = __builtin_LINE()) {
    return from_bits(simd_shuffle_xor(to_bits(v), mask, line));
}
// The butterfly of cuda.h.
template <typename Op> INLINE float reduced(float v, int line, Op op) {
    uint all[32];
    float a[32], b[32];
    cpu_gather(to_bits(v), all, line);
    memcpy(a, all, sizeof a);
    for (uint mask = 16; mask > 0; mask /= 2) {
        for (uint i = 0; i < 32; i++) b[i] = op(a[i], a[i ^ mask]);
        memcpy(a, b, sizeof a);
    }
    return a[cpu_place().lane];
}
INLINE float simd_sum(float v, int line = __builtin_LINE()) {
    return reduced(v, line, [](float a, float b) { return a + b; });
}
INLINE float simd_max(float v, int line = __builtin_LINE()) {
    return reduced(v, line, [](float a, float b) { return std::fmax(a, b); });
}
