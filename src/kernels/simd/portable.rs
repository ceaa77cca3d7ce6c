//! Sixteen lanes of any processor.

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

// Functions of their own: kernels spell out sixteen columns of each format, and with these in each of them an eighth of the library's code
// would be for processors that hardly anyone has.

#[inline(never)]
fn widen_f16(values: [f16; LANES]) -> [f32; LANES] {
    values.map(f16::to_f32)
}

#[inline(never)]
fn unsigned(codes: [u32; LANES], byte: u32) -> [f32; LANES] {
    codes.map(|codes| (codes >> (8 * byte) & 0xff) as f32)
}

#[inline(never)]
fn signed(codes: [u32; LANES], byte: u32, bits: u32) -> [f32; LANES] {
    codes.map(|codes| ((codes << (32 - 8 * byte - bits)).cast_signed() >> (32 - bits)) as f32)
}

#[inline(never)]
fn lookup(table: [f32; LANES], codes: [u32; LANES], byte: u32) -> [f32; LANES] {
    codes.map(|codes| table[(codes >> (8 * byte)) as usize % LANES])
}

/// Plain arrays; the instructions come from the compiler's vectoriser.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [u32; LANES];
    type Table = [f32; LANES];
    // Without the instruction `mul_add` is a call into the C library.
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    const WIDE: bool = false;
    const PAIRS: bool = false;
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
        widen_f16(unsafe { p.cast::<[f16; LANES]>().read_unaligned() })
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
    unsafe fn lookup(table: Self::Table, codes: Self::I, byte: u32) -> Self::V {
        lookup(table, codes, byte)
    }
    #[inline(always)]
    unsafe fn unsigned(codes: Self::I, byte: u32) -> Self::V {
        unsigned(codes, byte)
    }
    #[inline(always)]
    unsafe fn signed(codes: Self::I, byte: u32, bits: u32) -> Self::V {
        signed(codes, byte, bits)
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
