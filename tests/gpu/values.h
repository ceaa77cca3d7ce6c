// What the checks stand on: a GPU as they see it, numbers in its types, buffers, errors against F64, matrices in every format.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <sys/types.h>

struct Grid { uint x, y, z; };

// Whatever runs kernels: the CPU's executor, or a GPU.
struct Gpu {
    virtual ~Gpu() {}
    // Memory filled with 0xff, a NaN in every type.
    virtual void* make(size_t bytes) = 0;
    virtual void drop(void* buffer) = 0;
    virtual void copy(void* to, const void* from, size_t bytes, bool up) = 0;
    // `library`: "row T", "batch T", "product T STAGE FORMAT" or "attention T DIM HEADS PARTS KEYS"; `args`: as cuLaunchKernel takes them.
    virtual void launch(const std::string& library, const std::string& kernel, Grid grid, uint threads, void** args) = 0;
};
template <typename... A>
void run(Gpu& gpu, const std::string& library, const std::string& kernel, Grid grid, uint threads, A... args) {
    void* list[] = {&args...};
    gpu.launch(library, kernel, grid, threads, list);
}

// ---- numbers ----
static uint noise_state = 1;
static double noise() {  // uniform in -1..1
    noise_state = noise_state * 1664525u + 1013904223u;
    return double(noise_state >> 8) / (1 << 23) - 1;
}
static float float_of(uint bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
static uint bits_of(float v) {
    uint bits;
    memcpy(&bits, &v, 4);
    return bits;
}

enum Type { F32, F16, BF16 };
static size_t size_of(Type t) { return t == F32 ? 4 : 2; }
static double rounding(Type t) { return t == F32 ? 1e-5 : t == F16 ? 6e-4 : 5e-3; }  // of a result in that type
static double decode(Type t, const void* p, size_t i) {
    if (t == F32) return ((const float*)p)[i];
    const ushort bits = ((const ushort*)p)[i];
    if (t == BF16) return float_of(uint(bits) << 16);
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double v = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent > 0  ? std::ldexp(1024 + mantissa, exponent - 25)
                                     : std::ldexp(mantissa, -24);
    return bits & 0x8000 ? -v : v;
}
static ushort half_of(double v) {  // to nearest; no value here is above 65504
    if (v != v) return 0x7e00;
    int exponent;
    const double mantissa = std::frexp(std::fabs(v), &exponent);
    const long bits = exponent + 14 > 0 ? std::lrint(std::ldexp(mantissa, 11)) - 1024 + (long(exponent + 14) << 10)
                                        : std::lrint(std::ldexp(std::fabs(v), 24));
    return ushort(bits | (v < 0 ? 0x8000 : 0));
}
static void encode(Type t, void* p, size_t i, double v) {
    const uint bits = bits_of(float(v));
    if (t == F32) ((float*)p)[i] = float(v);
    else if (t == F16) ((ushort*)p)[i] = half_of(v);
    else ((ushort*)p)[i] = ushort((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A buffer on the device and its bytes here.
struct Buffer {
    Gpu& gpu;
    Type type;
    std::vector<char> host;
    char* base;
    // `size`: of random values; 0: all NaN.
    Buffer(Gpu& g, Type t, size_t count, double size = 1)
        : gpu(g), type(t), host(count * size_of(t), char(0xff)), base((char*)g.make(host.size())) {
        if (size == 0) return;
        for (size_t i = 0; i < count; i++) encode(t, host.data(), i, size * noise());
        up();
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { gpu.drop(base); }
    void up() { gpu.copy(base, host.data(), host.size(), true); }
    void down() { gpu.copy(host.data(), base, host.size(), false); }
    void* at(size_t i = 0) { return base + i * size_of(type); }
    double operator[](size_t i) const { return decode(type, host.data(), i); }
    template <typename V> V* as() { return (V*)host.data(); }
};

// Whether fewer cases will do: each thread is a fiber of ThreadSanitizer's, which takes its time to make.
static bool few = false;

// ---- errors ----
static int failures = 0;
static void wrong(const std::string& what) {
    failures++;
    printf("WRONG %s\n", what.c_str());
}
struct Error {  // ‖a − b‖ / ‖b‖, and whether all is finite
    double difference = 0, norm = 0;
    void add(double a, double b) { difference += (a - b) * (a - b), norm += b * b; }
    void expect(double limit, const std::string& what) {
        const double error = std::sqrt(difference / (norm > 0 ? norm : 1));
        char text[60];
        snprintf(text, sizeof text, ": error %.2e, limit %.0e", error, limit);
        if (!(error <= limit)) wrong(what + text);
    }
};

// ---- matrices in every format of format.h, of random codes ----
struct FormatInfo {
    const char* name;
    uint bits;     // of a code; 16: dense, of T
    uint columns;  // of a chunk
    bool symmetric, table;
};
static const FormatInfo FORMATS[] = {
    {"dense", 16, 8, false, false},  {"four", 4, 32, false, false},       {"four_16", 4, 16, false, false},
    {"four_sym", 4, 32, true, false}, {"four_sym_16", 4, 16, true, false}, {"five", 5, 32, false, false},
    {"five_sym", 5, 32, true, false}, {"six", 6, 32, false, false},        {"six_sym_16", 6, 16, true, false},
    {"eight", 8, 16, false, false},   {"eight_sym", 8, 16, true, false},   {"table", 4, 32, true, true},
    {"table_16", 4, 16, true, true}};
static const FormatInfo& format_of(const std::string& name) {
    for (const FormatInfo& f : FORMATS) if (f.name == name) return f;
    printf("no format %s\n", name.c_str()), exit(1);
}

struct Matrix {
    const FormatInfo& format;
    uint shift;  // a group of 2^shift chunks has a scale
    std::vector<double> w;
    Buffer codes, extra, scales;

    Matrix(Gpu& gpu, const FormatInfo& f, Type t, size_t outputs, size_t inputs, uint shift_)
        : format(f), shift(shift_), w(outputs * inputs), codes(gpu, F32, outputs * inputs * (f.bits == 16 ? 8 * size_of(t) : low_bits()) / 32, 0),
          extra(gpu, F32, f.table ? 16 : f.bits == 5 || f.bits == 6 ? outputs * inputs * (f.bits - 4) / 32 : 1, 0),
          scales(gpu, F16, f.bits == 16 ? 1 : groups() * (f.symmetric ? 1 : 2), 0) {
        memset(codes.host.data(), 0, codes.host.size());
        memset(extra.host.data(), 0, extra.host.size());
        if (f.table) for (uint i = 0; i < 16; i++) extra.as<float>()[i] = float(8 * noise());
        for (size_t g = 0; f.bits < 16 && g < groups(); g++) {
            encode(F16, scales.host.data(), f.symmetric ? g : 2 * g, 0.8 * (1.1 + noise()) / (1 << (f.bits - 1)));
            if (!f.symmetric) encode(F16, scales.host.data(), 2 * g + 1, 0.7 * noise());
        }
        for (size_t i = 0; i < w.size(); i++) w[i] = f.bits == 16 ? put_dense(t, i) : put_code(i);
        codes.up(), extra.up(), scales.up();
    }

  private:
    uint low_bits() const { return format.bits == 8 ? 8 : 4; }
    size_t group() const { return size_t(format.columns) << shift; }
    size_t groups() const { return w.size() / group(); }
    double put_dense(Type t, size_t i) {
        encode(t, codes.host.data(), i, noise());
        return decode(t, codes.host.data(), i);
    }
    double put_code(size_t i) {
        const uint code = uint((noise() + 1) / 2 * (1 << format.bits)), low = low_bits(), per_word = 32 / low;
        codes.as<uint>()[i / per_word] |= (code & ((1u << low) - 1)) << i % per_word * low;
        // Of 32 (or 16) columns the upper bits lie together: as one stream, because rows are whole chunks.
        const uint upper = format.bits - low;
        if (upper > 0) extra.as<uint>()[i * upper / 32] |= code >> 4 << i * upper % 32;
        const double scale = scales[format.symmetric ? i / group() : i / group() * 2];
        if (format.table) return scale * extra.as<float>()[code];
        return format.symmetric ? scale * (double(code) - (1 << (format.bits - 1))) : scale * code + scales[i / group() * 2 + 1];
    }
};

static uint lane_order(uint k, uint n) { return (k / 4 % 8 * (n / 32) + k / 32) * 4 + k % 4; }  // see common.h
