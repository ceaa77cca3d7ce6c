//! Sums of products of bytes: sixteen lanes, each of which multiplies four weights by four activations and adds them up.
//!
//! The sums are whole numbers, so that every set of instructions gives the same; only the way there differs.

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::simd::Level;
use super::simd::{LANES, Portable, Simd, array};

/// Sixteen lanes of four bytes.
///
/// # Safety
/// Every function of an implementation may be called only on a processor that has its instructions; [`dispatch`] sees to it.
pub trait Dots: Copy + 'static {
    /// The lanes of the same instructions.
    type S: Simd;
    /// Levels of bytes, to be looked up.
    type Levels: Copy;
    /// Whether weights of eight bits are bytes with a sign; else they are 128 more, and have none.
    const SIGNED: bool;
    /// Whether there is an instruction that multiplies matrices of bytes: then [`dot_rows`](Self::dot_rows) is faster than a
    /// [`dot`](Self::dot) for each row and step.
    const MATRICES: bool = false;

    /// `sum + Σ weight · x`, the same four `x` for every lane. Weights are 0 to 63, or, if `wide`, as [`SIGNED`](Self::SIGNED)
    /// says; `x` are -127 to 127.
    ///
    /// # Safety
    /// `x` is good for four bytes, of any alignment.
    unsafe fn dot(sum: <Self::S as Simd>::I, weights: <Self::S as Simd>::I, x: *const u8, wide: bool) -> <Self::S as Simd>::I;
    unsafe fn add(a: <Self::S as Simd>::I, b: <Self::S as Simd>::I) -> <Self::S as Simd>::I;
    /// Of sixteen levels with a sign.
    unsafe fn levels(levels: &[i8; LANES]) -> Self::Levels;
    /// The level of each byte, of which only the lowest four bits are not zero, as [`SIGNED`](Self::SIGNED) says.
    unsafe fn lookup(levels: Self::Levels, codes: <Self::S as Simd>::I) -> <Self::S as Simd>::I;
    /// The weights of two neighbouring steps, four columns each, as `dot_rows` reads them.
    #[inline(always)]
    unsafe fn join_steps(steps: [<Self::S as Simd>::I; 2]) -> [<Self::S as Simd>::I; 2] {
        steps
    }
    /// The sums of two rows as `dot_rows` adds to them; the same once more gives them back.
    #[inline(always)]
    unsafe fn join_rows(rows: [<Self::S as Simd>::I; 2]) -> [<Self::S as Simd>::I; 2] {
        rows
    }
    /// [`dot`](Self::dot) of two rows at once: joined sums, the first or the second of joined weights, and the eight `x` of each row
    /// that both of those are for.
    ///
    /// # Safety
    /// Each `x` is good for eight bytes, of any alignment.
    #[inline(always)]
    unsafe fn dot_rows<const STEP: usize>(
        sums: [<Self::S as Simd>::I; 2],
        weights: <Self::S as Simd>::I,
        x: [*const u8; 2],
        wide: bool,
    ) -> [<Self::S as Simd>::I; 2] {
        // SAFETY: passed on from the caller.
        array(|row| unsafe { Self::dot(sums[row], weights, x[row].add(4 * STEP), wide) })
    }
    /// Runs a kernel as a function of its own, which its callers share.
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output;
}

/// Work that wants the fastest sums of bytes that there are.
pub trait DotsKernel {
    type Output;
    /// Must be `#[inline(always)]`, so that it is compiled with the instructions of its caller.
    ///
    /// # Safety
    /// The processor has the instructions of `D`.
    unsafe fn run<D: Dots>(self) -> Self::Output;
}

/// Runs a kernel with the fastest sums of this processor.
pub fn dispatch<K: DotsKernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if Level::Avx512.is_available() {
            if is_x86_feature_detected!("avx512vnni") {
                // SAFETY: the processor has just said that it has these instructions.
                return unsafe { x86::run_avx512_vnni(kernel) };
            }
            // SAFETY: as above.
            return unsafe { x86::run_avx512(kernel) };
        }
        if Level::Avx2.is_available() {
            if is_x86_feature_detected!("avxvnni") {
                // SAFETY: as above.
                return unsafe { x86::run_avx_vnni(kernel) };
            }
            // SAFETY: as above.
            return unsafe { x86::run_avx2(kernel) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if Level::Neon.is_available() {
        // SAFETY (each of these): the processor has just said that it has these instructions.
        return if neon::has_i8mm() {
            unsafe { neon::run_i8mm(kernel) }
        } else if neon::has_dotprod() {
            unsafe { neon::run_dotprod(kernel) }
        } else {
            unsafe { neon::run_neon(kernel) }
        };
    }
    // SAFETY: `Portable` uses no instruction beyond the target's baseline.
    unsafe { kernel.run::<Portable>() }
}

/// A name, and how to run a kernel with those instructions.
#[cfg(test)]
type Runner<K> = (&'static str, fn(K) -> <K as DotsKernel>::Output);

/// Every set of instructions that this processor has.
#[cfg(test)]
pub fn levels<K: DotsKernel>() -> Vec<Runner<K>> {
    // SAFETY: `Portable` uses no instruction beyond the target's baseline.
    let mut levels: Vec<Runner<K>> = vec![("portable", |kernel| unsafe { kernel.run::<Portable>() })];
    #[cfg(target_arch = "x86_64")]
    {
        if Level::Avx2.is_available() {
            // SAFETY: the processor has just said that it has these instructions.
            levels.push(("avx2", |kernel| unsafe { x86::run_avx2(kernel) }));
            if is_x86_feature_detected!("avxvnni") {
                // SAFETY: as above.
                levels.push(("avx-vnni", |kernel| unsafe { x86::run_avx_vnni(kernel) }));
            }
        }
        if Level::Avx512.is_available() {
            // SAFETY: as above.
            levels.push(("avx512bw", |kernel| unsafe { x86::run_avx512(kernel) }));
            if is_x86_feature_detected!("avx512vnni") {
                // SAFETY: as above.
                levels.push(("avx512-vnni", |kernel| unsafe { x86::run_avx512_vnni(kernel) }));
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY (each of these): the processor has just said that it has these instructions.
        levels.push(("neon", |kernel| unsafe { neon::run_neon(kernel) }));
        if neon::has_dotprod() {
            levels.push(("neon-dotprod", |kernel| unsafe { neon::run_dotprod(kernel) }));
        }
        if neon::has_i8mm() {
            levels.push(("neon-i8mm", |kernel| unsafe { neon::run_i8mm(kernel) }));
        }
    }
    levels
}

/// Of plain arrays. A function of its own: a register tile of these would be a hundred times sixty-four products in a row.
#[inline(never)]
fn dot(mut sum: [u32; LANES], weights: [u32; LANES], x: [i8; 4]) -> [u32; LANES] {
    for (sum, weights) in sum.iter_mut().zip(weights) {
        for (w, x) in weights.to_le_bytes().into_iter().zip(x) {
            *sum = sum.wrapping_add_signed(i32::from(w.cast_signed()) * i32::from(x));
        }
    }
    sum
}

impl Dots for Portable {
    type S = Self;
    type Levels = [i8; LANES];
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn dot(sum: [u32; LANES], weights: [u32; LANES], x: *const u8, _: bool) -> [u32; LANES] {
        // SAFETY: the caller has four bytes there.
        dot(sum, weights, unsafe { x.cast::<[i8; 4]>().read() })
    }
    #[inline(always)]
    unsafe fn add(a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }
    #[inline(always)]
    unsafe fn levels(levels: &[i8; LANES]) -> Self::Levels {
        *levels
    }
    #[inline(always)]
    unsafe fn lookup(levels: Self::Levels, codes: [u32; LANES]) -> [u32; LANES] {
        codes.map(|codes| u32::from_le_bytes(codes.to_le_bytes().map(|code| levels[usize::from(code) % LANES].cast_unsigned())))
    }
    #[inline(always)]
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
        #[inline(never)]
        unsafe fn run<K: DotsKernel>(kernel: K) -> K::Output {
            // SAFETY: `Portable` uses no instruction beyond the target's baseline.
            unsafe { kernel.run::<Portable>() }
        }
        // SAFETY: as above.
        unsafe { run(kernel) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Dots, DotsKernel, LANES};
    use crate::kernels::simd::x86::{Avx2, Avx512};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub fn run_avx512_vnni<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: this function's caller has checked the instructions.
        unsafe { kernel.run::<Avx512Vnni>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
    pub fn run_avx512<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: this function's caller has checked the instructions.
        unsafe { kernel.run::<Avx512>() }
    }

    #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
    pub fn run_avx_vnni<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: this function's caller has checked the instructions.
        unsafe { kernel.run::<AvxVnni>() }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn run_avx2<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: this function's caller has checked the instructions.
        unsafe { kernel.run::<Avx2>() }
    }

    /// AVX-512 with an instruction for sums of four products.
    #[derive(Clone, Copy)]
    pub struct Avx512Vnni;

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX-512 VNNI, pointers are good for
    // what is read.
    impl Dots for Avx512Vnni {
        type S = Avx512;
        type Levels = __m512i;
        const SIGNED: bool = false;

        #[inline(always)]
        unsafe fn dot(sum: __m512i, weights: __m512i, x: *const u8, _: bool) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn levels(levels: &[i8; LANES]) -> __m512i {
            let unsigned = levels.map(|level| level.cast_unsigned() ^ 0x80);
            // SAFETY: see above.
            unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(unsigned.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn lookup(levels: __m512i, codes: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_shuffle_epi8(levels, codes) }
        }
        #[inline(always)]
        unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { run_avx512_vnni(kernel) }
        }
    }

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX-512 BW, pointers are good for what
    // is read.
    impl Dots for Avx512 {
        type S = Self;
        type Levels = __m512i;
        const SIGNED: bool = true;

        #[inline(always)]
        unsafe fn dot(sum: __m512i, weights: __m512i, x: *const u8, wide: bool) -> __m512i {
            // SAFETY: see above.
            unsafe {
                let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                // Of a byte without a sign and one with it: the sign of the weight goes to the other one. Sums of two products
                // of 128 and 127 have sixteen bits.
                let pairs = if wide {
                    let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), x);
                    _mm512_maddubs_epi16(_mm512_abs_epi8(weights), x)
                } else {
                    _mm512_maddubs_epi16(weights, x)
                };
                _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn levels(levels: &[i8; LANES]) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn lookup(levels: __m512i, codes: __m512i) -> __m512i {
            // SAFETY: see above.
            unsafe { _mm512_shuffle_epi8(levels, codes) }
        }
        #[inline(always)]
        unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { run_avx512(kernel) }
        }
    }

    /// AVX2 with an instruction for sums of four products.
    #[derive(Clone, Copy)]
    pub struct AvxVnni;

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX2 and AVX-VNNI, pointers are good
    // for what is read.
    impl Dots for AvxVnni {
        type S = Avx2;
        type Levels = __m256i;
        const SIGNED: bool = false;

        #[inline(always)]
        unsafe fn dot(sum: [__m256i; 2], weights: [__m256i; 2], x: *const u8, _: bool) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                [_mm256_dpbusd_avx_epi32(sum[0], weights[0], x), _mm256_dpbusd_avx_epi32(sum[1], weights[1], x)]
            }
        }
        #[inline(always)]
        unsafe fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn levels(levels: &[i8; LANES]) -> __m256i {
            let unsigned = levels.map(|level| level.cast_unsigned() ^ 0x80);
            // SAFETY: see above.
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(unsigned.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn lookup(levels: __m256i, codes: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_shuffle_epi8(levels, codes[0]), _mm256_shuffle_epi8(levels, codes[1])] }
        }
        #[inline(always)]
        unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { run_avx_vnni(kernel) }
        }
    }

    // SAFETY (all blocks of this implementation): the trait's contract: the processor has AVX2, pointers are good for what is
    // read.
    impl Dots for Avx2 {
        type S = Self;
        type Levels = __m256i;
        const SIGNED: bool = true;

        #[inline(always)]
        unsafe fn dot(sum: [__m256i; 2], weights: [__m256i; 2], x: *const u8, wide: bool) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe {
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let ones = _mm256_set1_epi16(1);
                let half = |sum, weights| {
                    // As with AVX-512.
                    let pairs = if wide {
                        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
                    } else {
                        _mm256_maddubs_epi16(weights, x)
                    };
                    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
                };
                [half(sum[0], weights[0]), half(sum[1], weights[1])]
            }
        }
        #[inline(always)]
        unsafe fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn levels(levels: &[i8; LANES]) -> __m256i {
            // SAFETY: see above.
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.as_ptr().cast())) }
        }
        #[inline(always)]
        unsafe fn lookup(levels: __m256i, codes: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: see above.
            unsafe { [_mm256_shuffle_epi8(levels, codes[0]), _mm256_shuffle_epi8(levels, codes[1])] }
        }
        #[inline(always)]
        unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
            // SAFETY: see above.
            unsafe { run_avx2(kernel) }
        }
    }
}
