//! Sixteen F32 lanes on every processor: one AVX-512 register, two AVX2 registers, or an array that the compiler vectorises.
//!
//! A kernel is a value that implements [`Kernel`]; [`dispatch`] runs it with the widest lanes that this processor has.

use half::{bf16, f16};

/// How many lanes a vector has.
pub const LANES: usize = 16;

/// Sixteen lanes of F32.
///
/// # Safety
/// Every function of an implementation may be called only on a processor that has its instructions; [`dispatch`] sees to it.
pub trait Simd: Copy + 'static {
    /// Sixteen F32.
    type V: Copy;
    /// Sixteen whole numbers of 32 bits.
    type I: Copy;
    /// Sixteen F32 that are looked up.
    type Table: Copy;
    /// Whether `fma` rounds once.
    const FUSED: bool;
    /// Whether the registers hold twelve rows by two vectors of sums; else six rows by one.
    const WIDE: bool;
    /// Whether `lookup` costs less than the arithmetic of a code.
    const LOOKS_UP: bool;
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads sixteen values, of any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// Writes sixteen values, of any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn splat_u32(x: u32) -> Self::I;
    /// Reads sixteen numbers of 32 bits, of any alignment.
    unsafe fn load_u32(p: *const u8) -> Self::I;
    /// Reads sixteen bytes.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// To the left by fewer than 32 bits.
    unsafe fn shl(a: Self::I, bits: u32) -> Self::I;
    /// To the right, with zeros from the left.
    unsafe fn shr(a: Self::I, bits: u32) -> Self::I;
    /// To the right, with copies of the sign.
    unsafe fn sar(a: Self::I, bits: u32) -> Self::I;
    /// The nearest F32 of signed numbers.
    unsafe fn to_f32(a: Self::I) -> Self::V;
    /// The F32 of these bits.
    unsafe fn from_bits(a: Self::I) -> Self::V;
    unsafe fn table(values: &[f32; LANES]) -> Self::Table;
    /// The values of a table that the lowest four bits stand for; the others are not looked at.
    unsafe fn lookup(table: Self::Table, a: Self::I) -> Self::V;
    /// Runs a kernel as a function of its own, which its callers share.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    /// The same values; what is read through the pointer from here on comes after both in the program. Costs no instruction.
    #[inline(always)]
    unsafe fn then(v: Self::V, w: Self::V, p: *const f32) -> (Self::V, Self::V, *const f32) {
        (v, w, p)
    }

    /// `a * b + c` of one lane, rounded as `fma` rounds.
    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        if Self::FUSED { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Work that wants the widest lanes there are.
pub trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, so that it is compiled with the instructions of its caller.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A set of instructions, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "selftest"), allow(dead_code, reason = "only tests ask for less than there is"))]
pub enum Level {
    /// The target's baseline.
    Portable,
    Avx2,
    Avx512,
}

impl Level {
    /// Whether this processor has them, and they may be used.
    #[cfg_attr(
        not(any(target_arch = "x86_64", feature = "selftest")),
        allow(dead_code, reason = "other processors have one set")
    )]
    pub fn is_available(self) -> bool {
        let detected = match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        #[cfg(feature = "selftest")]
        return detected && self as u8 <= limit::WIDEST.load(std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(feature = "selftest"))]
        detected
    }
}

/// Narrower instructions than the processor has, so that tests see what they compute.
#[cfg(feature = "selftest")]
pub mod limit {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Level;

    pub(super) static WIDEST: AtomicU8 = AtomicU8::new(Level::Avx512 as u8);

    /// Every kernel of this process uses these instructions at most; `false` if the processor lacks them, and nothing is changed.
    pub fn limit_instructions(widest: Level) -> bool {
        let before = WIDEST.swap(u8::MAX, Ordering::Relaxed);
        let is_available = widest.is_available();
        WIDEST.store(if is_available { widest as u8 } else { before }, Ordering::Relaxed);
        is_available
    }
}

/// Runs a kernel with the widest lanes of this processor.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if Level::Avx512.is_available() {
            // SAFETY: the processor has just said that it has these instructions.
            return unsafe { run_avx512(kernel) };
        }
        if Level::Avx2.is_available() {
            // SAFETY: as above.
            return unsafe { run_avx2(kernel) };
        }
    }
    // SAFETY: `Portable` uses no instruction beyond the target's baseline.
    unsafe { kernel.run::<Portable>() }
}

/// A name, and how to run a kernel with those lanes.
#[cfg(test)]
type Runner<K> = (&'static str, fn(K) -> <K as Kernel>::Output);

/// Every level that this processor can run, narrowest first.
#[cfg(test)]
pub fn levels<K: Kernel>() -> Vec<Runner<K>> {
    // SAFETY: `Portable` uses no instruction beyond the target's baseline.
    let mut levels: Vec<Runner<K>> = vec![("portable", |kernel| unsafe { kernel.run::<Portable>() })];
    #[cfg(target_arch = "x86_64")]
    if Level::Avx2.is_available() {
        // SAFETY: the processor has just said that it has these instructions.
        levels.push(("avx2", |kernel| unsafe { run_avx2(kernel) }));
    }
    levels.push(("widest", dispatch));
    levels
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's caller has checked the instructions.
    unsafe { kernel.run::<x86::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's caller has checked the instructions.
    unsafe { kernel.run::<x86::Avx2>() }
}

/// Plain arrays; NEON and SSE2 come from the compiler's vectoriser.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [u32; LANES];
    type Table = [f32; LANES];
    // Without the instruction `mul_add` is a call into the C library.
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    const WIDE: bool = false;
    const LOOKS_UP: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { p.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { p.cast::<[bf16; LANES]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen writable values.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| Self::fma1(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_u32(p: *const u8) -> Self::I {
        // SAFETY: the caller vouches for sixteen readable numbers.
        unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() }.map(u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: the caller vouches for sixteen readable bytes.
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(u32::from)
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    unsafe fn shl(a: Self::I, bits: u32) -> Self::I {
        a.map(|a| a << bits)
    }
    #[inline(always)]
    unsafe fn shr(a: Self::I, bits: u32) -> Self::I {
        a.map(|a| a >> bits)
    }
    #[inline(always)]
    unsafe fn sar(a: Self::I, bits: u32) -> Self::I {
        a.map(|a| (a.cast_signed() >> bits).cast_unsigned())
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::V {
        a.map(|a| a.cast_signed() as f32)
    }
    #[inline(always)]
    unsafe fn from_bits(a: Self::I) -> Self::V {
        a.map(f32::from_bits)
    }
    #[inline(always)]
    unsafe fn table(values: &[f32; LANES]) -> Self::Table {
        *values
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, a: Self::I) -> Self::V {
        a.map(|a| table[a as usize % LANES])
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        #[inline(never)]
        unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: `Portable` uses no instruction beyond the target's baseline.
            unsafe { kernel.run::<Portable>() }
        }
        // SAFETY: as above.
        unsafe { run(kernel) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{Kernel, LANES, Simd};
    use half::{bf16, f16};
    use std::arch::asm;
    use std::arch::x86_64::*;

    const HALF: usize = LANES / 2;

    #[derive(Clone, Copy)]
    pub struct Avx512;

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX-512, pointers are good for sixteen values.
    impl Simd for Avx512 {
        type V = __m512;
        type I = __m512i;
        type Table = __m512;
        const FUSED: bool = true;
        const WIDE: bool = true;
        const LOOKS_UP: bool = true;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())), 16)) }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn splat_u32(x: u32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_set1_epi32(x.cast_signed()) }
        }
        #[inline(always)]
        unsafe fn load_u32(p: *const u8) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_and_si512(a, b) }
        }
        #[inline(always)]
        unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_or_si512(a, b) }
        }
        #[inline(always)]
        unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_xor_si512(a, b) }
        }
        #[inline(always)]
        unsafe fn shl(a: __m512i, bits: u32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn shr(a: __m512i, bits: u32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn sar(a: __m512i, bits: u32) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
        }
        #[inline(always)]
        unsafe fn to_f32(a: __m512i) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtepi32_ps(a) }
        }
        #[inline(always)]
        unsafe fn from_bits(a: __m512i) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_castsi512_ps(a) }
        }
        #[inline(always)]
        unsafe fn table(values: &[f32; LANES]) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn lookup(table: __m512, a: __m512i) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_permutexvar_ps(a, table) }
        }
        #[inline(always)]
        unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { super::run_avx512(kernel) }
        }
        #[inline(always)]
        unsafe fn then(v: __m512, w: __m512, p: *const f32) -> (__m512, __m512, *const f32) {
            // SAFETY: see above.
            unsafe { then(v, w, p) }
        }
    }

    /// No instruction, but the compiler takes it for one whose results all need all arguments.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it here")]
    fn then(mut v: __m512, mut w: __m512, mut p: *const f32) -> (__m512, __m512, *const f32) {
        // SAFETY: it changes nothing.
        unsafe {
            asm!("/* {0} {1} {2} */", inout(zmm_reg) v, inout(zmm_reg) w, inout(reg) p, options(pure, nomem, nostack, preserves_flags));
        }
        (v, w, p)
    }

    #[derive(Clone, Copy)]
    pub struct Avx2;

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX2, FMA and F16C, pointers are good for sixteen values.
    impl Simd for Avx2 {
        type V = [__m256; 2];
        type I = [__m256i; 2];
        type Table = [__m256; 2];
        const FUSED: bool = true;
        const WIDE: bool = false;
        const LOOKS_UP: bool = false;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(HALF))] }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(HALF).cast()))] }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self::V {
            // SAFETY: see above.
            unsafe {
                [p, p.add(HALF)]
                    .map(|p| _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16)))
            }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> Self::V {
            // SAFETY: see above.
            unsafe { [p, p.add(HALF)].map(|p| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(HALF), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn splat_u32(x: u32) -> Self::I {
            // SAFETY: see above.
            unsafe { [_mm256_set1_epi32(x.cast_signed()); 2] }
        }
        #[inline(always)]
        unsafe fn load_u32(p: *const u8) -> Self::I {
            // SAFETY: see above.
            unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(4 * HALF).cast())] }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> Self::I {
            // SAFETY: see above.
            unsafe {
                [_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(HALF).cast()))]
            }
        }
        #[inline(always)]
        unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn xor(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn shl(a: Self::I, bits: u32) -> Self::I {
            // SAFETY: see above.
            unsafe {
                let bits = _mm_cvtsi32_si128(bits.cast_signed());
                [_mm256_sll_epi32(a[0], bits), _mm256_sll_epi32(a[1], bits)]
            }
        }
        #[inline(always)]
        unsafe fn shr(a: Self::I, bits: u32) -> Self::I {
            // SAFETY: see above.
            unsafe {
                let bits = _mm_cvtsi32_si128(bits.cast_signed());
                [_mm256_srl_epi32(a[0], bits), _mm256_srl_epi32(a[1], bits)]
            }
        }
        #[inline(always)]
        unsafe fn sar(a: Self::I, bits: u32) -> Self::I {
            // SAFETY: see above.
            unsafe {
                let bits = _mm_cvtsi32_si128(bits.cast_signed());
                [_mm256_sra_epi32(a[0], bits), _mm256_sra_epi32(a[1], bits)]
            }
        }
        #[inline(always)]
        unsafe fn to_f32(a: Self::I) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
        }
        #[inline(always)]
        unsafe fn from_bits(a: Self::I) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
        }
        #[inline(always)]
        unsafe fn table(values: &[f32; LANES]) -> Self::V {
            // SAFETY: see above.
            unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(HALF))] }
        }
        #[inline(always)]
        unsafe fn lookup(table: Self::V, a: Self::I) -> Self::V {
            // SAFETY: see above.
            unsafe { [lookup(table, a[0]), lookup(table, a[1])] }
        }
        #[inline(always)]
        unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { super::run_avx2(kernel) }
        }
    }

    /// A permutation looks at three bits of an index; the fourth chooses the half of the table.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn lookup(table: [__m256; 2], index: __m256i) -> __m256 {
        let [low, high] = table.map(|half| _mm256_permutevar8x32_ps(half, index));
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)))
    }
}
