// How weights are kept on a GPU, and how a lane decodes them. Needs T, and FORMAT: one of the names at the end.
//
// A matrix is row-major, its columns a multiple of 32. A chunk is what a lane takes at once, VALUES columns in WORDS registers;
// neighbouring lanes read neighbouring chunks of a row. `codes` holds the low four bits of a code (or eight, or the floats of a dense
// matrix); `extra` what else the format has: a plane of the upper bits, or the table of levels. A quantised weight is
// scale · code + offset; `scales` has an F16 of each for a group of 2^group_shift chunks, interleaved, or the scale alone where the
// code of zero is the middle one (SYMMETRIC). Rust's side is matrix.rs.
//
// A code put below the exponent of a power of two is that power plus the code, without a conversion of integers. The powers (magic)
// come off again by the sums of the activations, which the offset needs anyway (TOTALS).

// Chunk i of 16 or 8 bytes.
template <uint BYTES> INLINE void load_chunk(device const uint* codes, uint i, thread uint* w) {
    if (BYTES == 16) {
        split_words(((device const uint4*)codes)[i], w);
    } else {
        const uint2 v = ((device const uint2*)codes)[i];
        w[0] = v.x, w[1] = v.y;
    }
}

template <bool SYMMETRIC> INLINE uint load_scale(device const ushort* scales, size_t group) {
    return SYMMETRIC ? scales[group] : ((device const uint*)scales)[group];
}
// Scale and offset; `zero` is the code of zero.
template <bool SYMMETRIC> INLINE float2 scale_and_offset(uint bits, float zero) {
    const float2 s = two_halves(bits);
    return SYMMETRIC ? make_float2(s.x, -zero * s.x) : s;
}

// T as it is stored: a matrix product of candle reads the same buffer.
struct dense {
    enum { VALUES = 8, WORDS = EIGHT, SCALED = 0, TOTALS = 0, LEVELS = 0 };
    INLINE void load(device const uint* codes, device const uint*, uint i, thread uint* w) { load_eight(codes, i, w); }
    INLINE void decode(thread const uint* w, uint, uint, threadgroup const float*, thread float (&q)[8]) { unpack(w, q, T()); }
    INLINE float magic(uint) { return 0; }
    INLINE uint scale_bits(device const ushort*, size_t) { return 0; }
    INLINE float2 scale(uint) { return make_float2(1, 0); }
};

// Codes of 4, 5 or 6 bits; 16 or 32 COLUMNS a chunk: where 16 columns share a scale, no more. Column 8j + i has its low bits in nibble
// i of word j. The fifth bit of column c is bit c of a word of the upper plane, fifth and sixth are bits 2c and 2c + 1.
template <uint BITS, bool SYMMETRIC, uint COLUMNS> struct Coded {
    enum {
        VALUES = COLUMNS,
        LOW = COLUMNS / 8,
        UPPER = BITS > 4 ? (BITS - 4) * COLUMNS / 32 : 0,
        WORDS = LOW + UPPER,
        SCALED = 1,
        TOTALS = 1,
        LEVELS = 0
    };
    INLINE void load(device const uint* codes, device const uint* extra, uint i, thread uint* w) {
        load_chunk<COLUMNS / 2>(codes, i, w);
        UNROLL for (uint k = 0; k < UPPER; k++) w[LOW + k] = extra[size_t(i) * UPPER + k];
    }
    INLINE void decode(thread const uint* w, uint unit, uint zero, threadgroup const float*, thread float (&q)[8]) {
        const uint v = w[unit];
        if (BITS == 4) {
            // Odd columns come to bits 15 to 18, even ones to 19 to 22: four shifts and no more for eight codes. Masks made with
            // `zero`, which the compiler does not know, stay in registers.
            const uint a = (v << 19) | (v >> 13), b = v << 11, c = v << 3, d = v >> 5;
            const uint high = 0x780000u | zero, low = 0x78000u | zero;
            q[0] = from_bits((a & high) | 0x41800000u), q[7] = from_bits((a & low) | 0x43800000u);
            q[2] = from_bits((b & high) | 0x41800000u), q[1] = from_bits((b & low) | 0x43800000u);
            q[4] = from_bits((c & high) | 0x41800000u), q[3] = from_bits((c & low) | 0x43800000u);
            q[6] = from_bits((d & high) | 0x41800000u), q[5] = from_bits((d & low) | 0x43800000u);
        } else {
            const uint low = 0x78000u | zero, upper = (BITS == 5 ? 0x80000u : 0x180000u) | zero;
            UNROLL for (uint i = 0; i < 8; i++) {
                const uint bit = (8 * unit + i) * (BITS - 4), u = w[LOW + bit / 32];
                const uint code = ((i < 4 ? v << (15 - 4 * i) : v >> (4 * i - 15)) & low) | (shifted(u, bit % 32) & upper);
                q[i] = from_bits(code | 0x43800000u);
            }
        }
    }
    // Bit `from` at bit 19.
    INLINE uint shifted(uint u, uint from) { return from <= 19 ? u << (19 - from) : u >> (from - 19); }
    INLINE float magic(uint i) { return BITS > 4 || i % 2 ? 256.0f : 16.0f; }
    INLINE uint scale_bits(device const ushort* scales, size_t group) { return load_scale<SYMMETRIC>(scales, group); }
    INLINE float2 scale(uint bits) { return scale_and_offset<SYMMETRIC>(bits, float(1 << (BITS - 1))); }
};

// Codes of 8 bits: column 4j + i is byte i of word j.
template <bool SYMMETRIC> struct Bytes {
    enum { VALUES = 16, WORDS = 4, SCALED = 1, TOTALS = 1, LEVELS = 0 };
    INLINE void load(device const uint* codes, device const uint*, uint i, thread uint* w) { load_chunk<16>(codes, i, w); }
    INLINE void decode(thread const uint* w, uint unit, uint zero, threadgroup const float*, thread float (&q)[8]) {
        UNROLL for (uint i = 0; i < 2; i++) {
            const uint v = w[2 * unit + i], mask = 0x7f8000u | zero;
            q[4 * i] = from_bits(((v << 15) & mask) | 0x43800000u);
            q[4 * i + 1] = from_bits(((v << 7) & mask) | 0x43800000u);
            q[4 * i + 2] = from_bits(((v >> 1) & mask) | 0x43800000u);
            q[4 * i + 3] = from_bits(((v >> 9) & mask) | 0x43800000u);
        }
    }
    INLINE float magic(uint) { return 256.0f; }
    INLINE uint scale_bits(device const ushort* scales, size_t group) { return load_scale<SYMMETRIC>(scales, group); }
    INLINE float2 scale(uint bits) { return scale_and_offset<SYMMETRIC>(bits, 128); }
};

// Codes of 4 bits that stand for levels, sixteen F32 in `extra`. They lie in threadgroup memory, each in a bank of its own, so that
// lanes never wait for one another.
template <uint COLUMNS> struct Table {
    enum { VALUES = COLUMNS, WORDS = COLUMNS / 8, SCALED = 1, TOTALS = 0, LEVELS = 1 };
    INLINE void load(device const uint* codes, device const uint*, uint i, thread uint* w) {
        load_chunk<COLUMNS / 2>(codes, i, w);
    }
    INLINE void decode(thread const uint* w, uint unit, uint, threadgroup const float* levels, thread float (&q)[8]) {
        UNROLL for (uint i = 0; i < 8; i++) q[i] = levels[(w[unit] >> (4 * i)) & 15];
    }
    INLINE float magic(uint) { return 0; }
    INLINE uint scale_bits(device const ushort* scales, size_t group) { return scales[group]; }
    INLINE float2 scale(uint bits) { return make_float2(two_halves(bits).x, 0); }
};

// The names that FORMAT has; `_sym` is symmetric, `_16` has sixteen columns a chunk.
typedef Coded<4, false, 32> four;
typedef Coded<4, false, 16> four_16;
typedef Coded<4, true, 32> four_sym;
typedef Coded<4, true, 16> four_sym_16;
typedef Coded<5, false, 32> five;
typedef Coded<5, true, 32> five_sym;
typedef Coded<6, false, 32> six;
typedef Coded<6, true, 16> six_sym_16;
typedef Bytes<false> eight;
typedef Bytes<true> eight_sym;
typedef Table<32> table;
typedef Table<16> table_16;

// Brings the levels of a table to where `decode` looks them up; all threads of a group call it.
template <typename F> INLINE void stage_levels(device const uint* extra, threadgroup float* levels, thread const Place& at) {
    if (F::LEVELS) {
        if (at.index < 16) levels[at.index] = from_bits(extra[at.index]);
        group_barrier();
    }
}
