//! The GPU's own kernels: one text for Metal and CUDA.
//!
//! The kernels are `gpu/*.h`, written in what the two languages have in common; `metal.h` and `cuda.h` give them the same names on each.
//! Here stands what the host has to know of them: how weights are kept (`gpu/format.rs`, `gpu/matrix.rs`), which text a compiler is given
//! (`gpu/library.rs`), where they run (`gpu/device.rs`), with what they are launched (`gpu/launch.rs`), and the comparison with the CPU's
//! kernels (`gpu/compare.rs`).
//!
//! No GPU of Apple has run them; on CUDA a decoder evaluates single tokens by them, and quantised weights are theirs (`ops/gpu/`). `make
//! check-gpu` proves them without a GPU: see CONTRIBUTING.

mod format;
mod matrix;
// No build compiles for Metal yet.
#[cfg_attr(not(test), allow(dead_code))]
mod library;
mod device;
mod launch;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod compare;
#[cfg(test)]
mod tests;

pub use device::{Gpu, GpuSlice};
pub use format::GpuFormat;
pub use launch::{
    AttentionKernels, DecodedRows, Gated, GpuAngles, GpuCache, GpuNorm, GpuWeight, HeadCounts, MOST_ROWS, MOST_SPLITS,
    ProductWith, QkNorms, RowKernels,
};
pub use library::{Element, Library};
pub use matrix::GpuMatrix;
#[cfg(test)]
pub use tests::with_executor;
