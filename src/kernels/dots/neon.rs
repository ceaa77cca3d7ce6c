//! Sums of products of bytes on AArch64: with the instruction for four of them, or without.

use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

use super::{Dots, DotsKernel, LANES};
use crate::kernels::simd::neon::Neon;

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
            from_fn(|i| sdot(sum[i], weights[i], x))
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
            from_fn(|i| {
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
        from_fn(|i| unsafe { vaddq_u32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn levels(levels: &[i8; LANES]) -> uint8x16_t {
        // SAFETY: see above.
        unsafe { vld1q_u8(levels.as_ptr().cast()) }
    }
    #[inline(always)]
    unsafe fn lookup(levels: uint8x16_t, codes: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
        // SAFETY: see above.
        codes.map(|codes| unsafe { vreinterpretq_u32_u8(vqtbl1q_u8(levels, vreinterpretq_u8_u32(codes))) })
    }
    #[inline(always)]
    unsafe fn call<K: DotsKernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run_neon(kernel) }
    }
}
