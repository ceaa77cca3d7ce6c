//! Sixteen lanes of AArch64: four registers of NEON, which every such processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd, array, map, run_neon};

const QUARTER: usize = LANES / 4;

#[derive(Clone, Copy)]
pub struct Neon;

// SAFETY (all blocks of this implementation): the trait's contract: the processor has NEON, pointers are good for sixteen values.
impl Simd for Neon {
    type V = [float32x4_t; 4];
    type I = [uint32x4_t; 4];
    /// Of sixteen F32 whose lower halves are zero the third bytes, and the highest ones.
    type Table = [uint8x16_t; 2];
    const FUSED: bool = true;
    const WIDE: bool = false;
    const PAIRS: bool = true;
    const LOOKS_UP: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: see above.
        array(|i| unsafe { vld1q_f32(p.add(i * QUARTER)) })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let [a, b] = map([p, p.add(2 * QUARTER)], |p| vld1q_u16(p.cast()));
            [widen_f16(a), widen_f16_high(a), widen_f16(b), widen_f16_high(b)]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let [a, b] = map([p, p.add(2 * QUARTER)], |p| vld1q_u16(p.cast()));
            let low = |a| vshll_n_u16::<16>(vget_low_u16(a));
            map([low(a), vshll_high_n_u16::<16>(a), low(b), vshll_high_n_u16::<16>(b)], |a| vreinterpretq_f32_u32(a))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_s8(p);
            let [a, b] = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
            let low = |a| vmovl_s16(vget_low_s16(a));
            map([low(a), vmovl_high_s16(a), low(b), vmovl_high_s16(b)], |a| vcvtq_f32_s32(a))
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(p.add(i * QUARTER), v) };
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        array(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        array(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        // SAFETY: see above.
        unsafe { [vdupq_n_u32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load_u32(p: *const u8) -> Self::I {
        // SAFETY: see above.
        array(|i| unsafe { vreinterpretq_u32_u8(vld1q_u8(p.add(4 * i * QUARTER))) })
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(p);
            let [a, b] = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
            let low = |a| vmovl_u16(vget_low_u16(a));
            [low(a), vmovl_high_u16(a), low(b), vmovl_high_u16(b)]
        }
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        array(|i| unsafe { vandq_u32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        array(|i| unsafe { vorrq_u32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        array(|i| unsafe { veorq_u32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn shl(a: Self::I, bits: u32) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vshlq_u32(a, vdupq_n_s32(bits.cast_signed()))) }
    }
    #[inline(always)]
    unsafe fn shr(a: Self::I, bits: u32) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vshlq_u32(a, vdupq_n_s32(-bits.cast_signed()))) }
    }
    #[inline(always)]
    unsafe fn sar(a: Self::I, bits: u32) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(a), vdupq_n_s32(-bits.cast_signed())))) }
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::V {
        // SAFETY: see above.
        unsafe { map(a, |a| vcvtq_f32_s32(vreinterpretq_s32_u32(a))) }
    }
    #[inline(always)]
    unsafe fn from_bits(a: Self::I) -> Self::V {
        // SAFETY: see above.
        unsafe { map(a, |a| vreinterpretq_f32_u32(a)) }
    }
    #[inline(always)]
    unsafe fn table(values: &[f32; LANES]) -> Self::Table {
        debug_assert!(values.iter().all(|x| x.to_bits() & 0xffff == 0), "levels of eight digits");
        // SAFETY: see above.
        map([2, 3], |byte| unsafe { vld1q_u8(values.map(|x| x.to_le_bytes()[byte]).as_ptr()) })
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Table, codes: Self::I, byte: u32) -> Self::V {
        // Of each row nothing, nothing, its byte of one table and of the other. All bytes of the codes are looked up there: once
        // for all columns, as the compiler sees.
        let own = in_rows([ZERO, ZERO, byte, LANES as u32 + byte]);
        // SAFETY: see above.
        unsafe {
            map(codes, |codes| {
                let [third, highest] = map(table, |table| vqtbl1q_u8(table, vreinterpretq_u8_u32(codes)));
                vreinterpretq_f32_u8(vqtbl2q_u8(uint8x16x2_t(third, highest), own))
            })
        }
    }
    #[inline(always)]
    unsafe fn unsigned(codes: Self::I, byte: u32) -> Self::V {
        let own = in_rows([byte, ZERO, ZERO, ZERO]);
        // SAFETY: see above.
        unsafe { map(codes, |codes| vcvtq_f32_u32(vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(codes), own)))) }
    }
    #[inline(always)]
    unsafe fn signed(codes: Self::I, byte: u32, bits: u32) -> Self::V {
        // In the highest bits of a number: the conversion takes it for one with a point behind them.
        let own = in_rows([ZERO, ZERO, ZERO, byte]);
        // SAFETY: see above.
        unsafe {
            map(codes, |codes| {
                let highest = vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(codes), own));
                match bits {
                    8 => vcvtq_n_f32_s32::<24>(highest),
                    6 => vcvtq_n_f32_s32::<26>(vshlq_n_s32::<2>(highest)),
                    5 => vcvtq_n_f32_s32::<27>(vshlq_n_s32::<3>(highest)),
                    _ => unreachable!("fewer bits are looked up"),
                }
            })
        }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run_neon(kernel) }
    }
    #[inline(always)]
    unsafe fn then(v: Self::V, w: Self::V, p: *const f32) -> (Self::V, Self::V, *const f32) {
        // SAFETY: see above.
        let (v, p) = unsafe { then(v, p) };
        (v, w, p)
    }
}

/// No instruction, but the compiler takes it for one whose results need both arguments.
#[inline]
#[target_feature(enable = "neon")]
#[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it here")]
fn then([mut a, mut b, mut c, mut d]: [float32x4_t; 4], mut p: *const f32) -> ([float32x4_t; 4], *const f32) {
    // SAFETY: it changes nothing.
    unsafe {
        asm!("/* {0:q} {1:q} {2:q} {3:q} {4} */", inout(vreg) a, inout(vreg) b, inout(vreg) c, inout(vreg) d, inout(reg) p,
            options(pure, nomem, nostack, preserves_flags));
    }
    ([a, b, c, d], p)
}

/// The lower four of eight F16: the intrinsic wants a type that Rust has not made stable yet.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(a: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: it reads one register and writes another.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) wide, in(vreg) a, options(pure, nomem, nostack)) };
    wide
}

/// The upper four.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16_high(a: uint16x8_t) -> float32x4_t {
    let wide;
    // SAFETY: as above.
    unsafe { asm!("fcvtl2 {0:v}.4s, {1:v}.8h", lateout(vreg) wide, in(vreg) a, options(pure, nomem, nostack)) };
    wide
}

/// Where a lookup finds nothing, which is zero.
const ZERO: u32 = 0xff;

/// Where a lookup finds the four bytes of each row, given those of the first.
#[inline(always)]
fn in_rows(first: [u32; 4]) -> uint8x16_t {
    let bytes: [u8; 16] = array(|i| (first[i % 4] as u8).saturating_add(i as u8 / 4 * 4));
    // SAFETY: an array of sixteen bytes; every AArch64 processor has NEON.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
