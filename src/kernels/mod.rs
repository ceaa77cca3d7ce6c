//! Compute kernels of our own, behind safe functions over slices; the only unsafe arithmetic of the crate.
//!
//! One rule holds for all of them: **an output element is computed by one thread, in an order that depends on nothing but
//! its own inputs.** The number of rows in a call, the chunk they came in and the number of threads therefore change no bit
//! of any result: a prompt evaluated token by token equals the prompt evaluated at once.

mod simd;
mod dots;
mod parallel;
mod math;
#[cfg(feature = "cuda")]
mod cuda;
mod memory;
pub mod reserve;
mod format;
mod int8;
mod planes;
mod packed;
mod matmul;
mod kv_cache;
mod attention;
mod attention_backward;
mod elementwise;
mod experts;
mod logits;
mod scan;
mod scan_backward;
mod convolution;
mod adamw;
pub mod gpu;

pub use adamw::{AdamW, Coefficients};
pub use attention::{Mask, Strided, attend, attend_within};
pub use attention_backward::attend_within_backward;
pub use convolution::{ConvMemory, Taps, convolve, convolve_within, convolve_within_backward};
#[cfg(feature = "cuda")]
pub use cuda::open_cuda;
pub use elementwise::{
    Activation, GateClamp, LEAST_LENGTH, NormKind, Normalise, activate, activate_backward, add_scaled, cross_entropy, dropout,
    gate, gate_backward, gated, gated_backward, gated_clamped, gated_clamped_backward, normalise, normalise_backward, rotate,
    scale_softcap, unit_length,
};
pub use experts::{RouteBy, Scoring, route, route_backward};
pub use format::Format;
pub use kv_cache::{KvFormat, KvHeads};
pub use logits::{exp_or_zero, exp_sum, first_at, highest};
pub use math::lane_dot;
pub use matmul::{Epilogue, LowRankTerm, matmul, matmul_new, matmul_transposed_add, outer_sum};
pub use memory::{check_room, copied, owned, peak_bytes, physical_bytes, resident_bytes, trim, zeros};
pub use packed::{Arithmetic, MatmulWeight, Packed, Panels, Use};
pub use parallel::{beside, install, is_forked, map as parallel_map, set_threads, start as start_threads, thread_count, threads};
pub use scan::{
    CHUNK, Decaying, ScanInputs, ScanMemory, ScanRule, ScanShape, chunk_start, decay, decay_backward, scan, scan_within,
};
pub use scan_backward::scan_within_backward;
#[cfg(feature = "selftest")]
pub use simd::{Level, limit::limit_instructions};

/// Blocks of a format, of any bytes but for scales that are not finite.
#[cfg(any(test, feature = "selftest"))]
fn random_blocks(format: Format, blocks: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; blocks * format.block_bytes()];
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        loop {
            for byte in &mut *block {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (seed >> 40) as u8;
            }
            if format.has_finite_scales(block) {
                break;
            }
        }
    }
    with_one_factor(format, &mut bytes);
    bytes
}

/// Gives blocks what all of a row have in common.
#[cfg(any(test, feature = "selftest"))]
fn with_one_factor(format: Format, blocks: &mut [u8]) {
    if format == Format::NVFP4_SCALED {
        let factor = std::f32::consts::FRAC_1_SQRT_2.to_le_bytes();
        blocks.chunks_exact_mut(format.block_bytes()).for_each(|block| block[..4].copy_from_slice(&factor));
    }
}

/// Values of a fixed generator, in -1..1.
#[cfg(any(test, feature = "selftest"))]
fn noise(len: usize, mut seed: u64) -> Vec<f32> {
    (0..len)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
