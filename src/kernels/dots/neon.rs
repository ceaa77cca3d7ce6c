//! Sums of products of bytes on AArch64: with the instruction for matrices of them (Apple's processors have it from A15 and M2 on),
//! with that for four of them (from A13 and M1 on), or without.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{Dots, DotsKernel, LANES};
use crate::kernels::simd::neon::Neon;
use crate::kernels::simd::{array, map};

/// Whether this processor has the instruction for sums of four products.
pub fn has_dotprod() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

/// Whether it has that for products of matrices, beside the other, by which one row is multiplied.
pub fn has_i8mm() -> bool {
    has_dotprod() && is_aarch64_feature_detected!("i8mm")
}

#[target_feature(enable = "i8mm,dotprod")]
pub fn run_i8mm<K: DotsKernel>(kernel: K) -> K::Output {
    // SAFETY: this function's caller has checked the instructions.
    unsafe { kernel.run::<I8mm>() }
}

#[target_feature(enable = "dotprod")]
pub fn run_dotprod<K: DotsKernel>(kernel: K) -> K::Output {
    // SAFETY: this function's caller has checked the instructions.
    unsafe { kernel.run::<DotProd>() }
}

#[inline(never)]
pub unsafe fn run_neon<K: DotsKernel>(kernel: K) -> K::Output {
    // SAFETY: every such processor has NEON.
    unsafe { kernel.run::<Neon>() }
}

/// NEON with an instruction for products of two rows by two outputs, eight columns of each.
#[derive(Clone, Copy)]
pub struct I8mm;

// SAFETY (all blocks of this implementation): the trait's contract: the processor has the extensions for matrices and dot products,
// pointers are good for what is read.
impl Dots for I8mm {
    type S = Neon;
    type Levels = uint8x16_t;
    const SIGNED: bool = true;
    const MATRICES: bool = true;

    #[inline(always)]
    unsafe fn dot(sum: [uint32x4_t; 4], weights: [uint32x4_t; 4], x: *const u8, wide: bool) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe { DotProd::dot(sum, weights, x, wide) }
    }
    #[inline(always)]
    unsafe fn add(a: [uint32x4_t; 4], b: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe { Neon::add(a, b) }
    }
    #[inline(always)]
    unsafe fn levels(levels: &[i8; LANES]) -> uint8x16_t {
        // SAFETY: see above.
        unsafe { <Neon as Dots>::levels(levels) }
    }
    #[inline(always)]
    unsafe fn lookup(levels: uint8x16_t, codes: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe { <Neon as Dots>::lookup(levels, codes) }
    }
    /// Of each four outputs, first the eight columns of two, then those of the others.
    #[inline(always)]
    unsafe fn join_steps([a, b]: [[uint32x4_t; 4]; 2]) -> [[uint32x4_t; 4]; 2] {
        // SAFETY: see above.
        unsafe { [array(|i| vzip1q_u32(a[i], b[i])), array(|i| vzip2q_u32(a[i], b[i]))] }
    }
    /// Of each four outputs, first two of both rows, then the others.
    #[inline(always)]
    unsafe fn join_rows([a, b]: [[uint32x4_t; 4]; 2]) -> [[uint32x4_t; 4]; 2] {
        // SAFETY: see above.
        unsafe {
            let [a, b] = map([a, b], |row| map(row, |sums| vreinterpretq_u64_u32(sums)));
            let joined = [array(|i| vzip1q_u64(a[i], b[i])), array(|i| vzip2q_u64(a[i], b[i]))];
            map(joined, |sums| map(sums, |sums| vreinterpretq_u32_u64(sums)))
        }
    }
    #[inline(always)]
    unsafe fn dot_rows<const STEP: usize>(
        mut sums: [[uint32x4_t; 4]; 2],
        weights: [uint32x4_t; 4],
        x: [*const u8; 2],
        _: bool,
    ) -> [[uint32x4_t; 4]; 2] {
        // SAFETY: see above.
        unsafe {
            let [a, b] = map(x, |x| vld1_u8(x));
            let x = vcombine_u8(a, b);
            sums[STEP] = array(|i| smmla(sums[STEP][i], x, weights[i]));
        }
        sums
    }
    #[inline(always)]
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run_i8mm(kernel) }
    }
}

/// For each of two rows of `x`, for each of two of `weights`, the sum of eight products. The intrinsic is not stable in Rust yet.
#[inline]
#[target_feature(enable = "i8mm")]
fn smmla(mut sum: uint32x4_t, x: uint8x16_t, weights: uint32x4_t) -> uint32x4_t {
    // SAFETY: it reads two registers and changes a third.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) x, in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// NEON with an instruction for sums of four products.
#[derive(Clone, Copy)]
pub struct DotProd;

// SAFETY (all blocks of this implementation): the trait's contract: the processor has the dot product extension, pointers are good
// for what is read.
impl Dots for DotProd {
    type S = Neon;
    type Levels = uint8x16_t;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn dot(sum: [uint32x4_t; 4], weights: [uint32x4_t; 4], x: *const u8, _: bool) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let x = x.cast::<f32>().read_unaligned();
            array(|i| sdot(sum[i], weights[i], x))
        }
    }
    #[inline(always)]
    unsafe fn add(a: [uint32x4_t; 4], b: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe { Neon::add(a, b) }
    }
    #[inline(always)]
    unsafe fn levels(levels: &[i8; LANES]) -> uint8x16_t {
        // SAFETY: see above.
        unsafe { <Neon as Dots>::levels(levels) }
    }
    #[inline(always)]
    unsafe fn lookup(levels: uint8x16_t, codes: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe { <Neon as Dots>::lookup(levels, codes) }
    }
    #[inline(always)]
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run_dotprod(kernel) }
    }
}

/// For each row the sum of four products with the bytes of `x`. The intrinsic is not stable in Rust yet.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot(mut sum: uint32x4_t, weights: uint32x4_t, x: f32) -> uint32x4_t {
    // SAFETY: it reads two registers and changes a third.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[0]", inout(vreg) sum, in(vreg) weights, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

// SAFETY (all blocks of this implementation): the trait's contract: the processor has NEON, pointers are good for what is read.
impl Dots for Neon {
    type S = Self;
    type Levels = uint8x16_t;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn dot(sum: [uint32x4_t; 4], weights: [uint32x4_t; 4], x: *const u8, _: bool) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        unsafe {
            let x = vreinterpretq_s8_u32(vdupq_n_u32(x.cast::<u32>().read_unaligned()));
            array(|i| {
                let weights = vreinterpretq_s8_u32(weights[i]);
                let (low, high) = (vmull_s8(vget_low_s8(weights), vget_low_s8(x)), vmull_high_s8(weights, x));
                // Sums of two products of -128 and 127 have sixteen bits.
                let pairs = vpaddq_s16(low, high);
                vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum[i]), pairs))
            })
        }
    }
    #[inline(always)]
    unsafe fn add(a: [uint32x4_t; 4], b: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        array(|i| unsafe { vaddq_u32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn levels(levels: &[i8; LANES]) -> uint8x16_t {
        // SAFETY: see above.
        unsafe { vld1q_u8(levels.as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn lookup(levels: uint8x16_t, codes: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        map(codes, |codes| unsafe { vreinterpretq_u32_u8(vqtbl1q_u8(levels, vreinterpretq_u8_u32(codes))) })
    }
    #[inline(always)]
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run_neon(kernel) }
    }
}
