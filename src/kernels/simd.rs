//! Sixteen F32 lanes on every processor: one AVX-512 register, two of AVX2, four of NEON, or an array that the compiler vectorises.
//!
//! A kernel is a value that implements [`Kernel`]; [`dispatch`] runs it with the widest lanes that this processor has.

mod portable;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use std::mem::MaybeUninit;

use half::{bf16, f16};

#[cfg(target_arch = "aarch64")]
use neon::Neon;
pub use portable::Portable;

/// What `make` gives for each place.
///
/// `std::array::from_fn` and `map` call functions that the compiler keeps in one of the parts into which it cuts a crate: without LTO each
/// step of each product would be such a call. Plain arrays of sixteen keep to those functions: made in
/// place their code is long, and few processors compute by it.
#[inline(always)]
pub fn array<T, const N: usize>(mut make: impl FnMut(usize) -> T) -> [T; N] {
    let mut all = [const { MaybeUninit::uninit() }; N];
    let mut i = 0;
    while i < N {
        all[i] = MaybeUninit::new(make(i));
        i += 1;
    }
    // SAFETY: each of them has been set, and is moved.
    unsafe { (&raw const all).cast::<[T; N]>().read() }
}

/// What `change` makes of each value, see [`array`].
#[inline(always)]
pub fn map<A: Copy, B, const N: usize>(values: [A; N], mut change: impl FnMut(A) -> B) -> [B; N] {
    array(|i| change(values[i]))
}

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
    /// Whether they hold, where not `WIDE`, one row by two vectors of sums and what those are made of.
    const PAIRS: bool;
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
    /// Of values that have at most eight binary digits.
    unsafe fn table(values: &[f32; LANES]) -> Self::Table;
    /// The values of a table that byte `byte` of codes stands for. All bytes are below sixteen.
    unsafe fn lookup(table: Self::Table, codes: Self::I, byte: u32) -> Self::V;
    /// Runs a kernel as a function of its own, which its callers share.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    /// Byte `byte`, a number without a sign.
    #[inline(always)]
    unsafe fn unsigned(codes: Self::I, byte: u32) -> Self::V {
        // SAFETY: passed on from the caller.
        unsafe { Self::to_f32(Self::and(Self::shr(codes, 8 * byte), Self::splat_u32(0xff))) }
    }

    /// The lowest `bits` bits of byte `byte`, a number with a sign.
    #[inline(always)]
    unsafe fn signed(codes: Self::I, byte: u32, bits: u32) -> Self::V {
        // SAFETY: passed on from the caller.
        unsafe { Self::to_f32(Self::sar(Self::shl(codes, 32 - 8 * byte - bits), 32 - bits)) }
    }

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
    Neon,
    Avx2,
    Avx512,
}

impl Level {
    /// Whether this processor has them, and they may be used.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64", feature = "selftest")),
        allow(dead_code, reason = "other processors have one set")
    )]
    pub fn is_available(self) -> bool {
        let detected = match self {
            Self::Portable => true,
            // Part of every such target's baseline.
            Self::Neon => cfg!(target_arch = "aarch64"),
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
    #[cfg(target_arch = "aarch64")]
    if Level::Neon.is_available() {
        // SAFETY: every such processor has NEON.
        return unsafe { kernel.run::<Neon>() };
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
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every such processor has NEON.
    levels.push(("neon", |kernel| unsafe { kernel.run::<Neon>() }));
    levels.push(("widest", dispatch));
    levels
}

#[cfg(target_arch = "aarch64")]
#[inline(never)]
unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: every such processor has NEON.
    unsafe { kernel.run::<Neon>() }
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
