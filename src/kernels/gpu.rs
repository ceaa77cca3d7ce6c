//! The GPU's own kernels: one text for Metal and CUDA.
//!
//! The kernels are `gpu/*.h`, written in what the two languages have in common; `metal.h` and `cuda.h` give them the same names on each.
//! Here stands what the host has to know of them: how weights are kept (`gpu/format.rs`, `gpu/matrix.rs`), which text a compiler is given
//! (`gpu/library.rs`), where they run (`gpu/device.rs`), with what they are launched (`gpu/launch.rs`, `gpu/argmax.rs`), which lists of
//! launches come again (`gpu/replay.rs`), and the comparison with the CPU's kernels (`gpu/compare.rs`).
//!
//! A decoder evaluates single tokens by them, and quantised weights are theirs (`ops/gpu/`); what lies between the products of a batch is
//! `gpu/batch.rs`. CUDA has run them, no GPU of Apple has. `make
//! check-gpu` proves them without a GPU: see CONTRIBUTING.

mod format;
mod matrix;
// A build has one GPU's dialect, or none.
#[cfg_attr(not(test), allow(dead_code))]
mod library;
mod device;
mod replay;
mod launch;
mod argmax;
mod batch;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(target_os = "macos", target_os = "ios"))]
mod metal;
#[cfg(any(test, feature = "selftest"))]
mod compare;
#[cfg(test)]
mod tests;

pub use argmax::BestToken;
pub use batch::{BatchBlock, BatchNorm, BatchOps, BatchPlaces, BatchRotation, BatchScores};
#[cfg(feature = "selftest")]
pub use compare::{Comparison, compare, compile};
pub use device::{Gpu, GpuSlice, GpuView, Launch, LaunchList, ListKey};
pub use format::GpuFormat;
pub use launch::{
    AttentionKernels, AttentionRow, ConvolutionRow, DecodedRows, DeltaNetRow, GatePart, Gated, GpuAngles, GpuCache, GpuDeltaNet,
    GpuNorm, GpuWeight, HeadCounts, KeysPart, MOST_ROWS, MOST_SPLITS, MOST_TAPS, NormWith, ProductWith, QkNorms, QkvLayout, RING,
    RopePairs, RowKernels, WIDEST_SCAN, attention_splits,
};
pub use library::{Element, Library};
pub use matrix::GpuMatrix;
pub use replay::Replays;
#[cfg(test)]
#[cfg_attr(not(reference_data), allow(unused_imports, reason = "some of who uses them needs the repository's references"))]
pub use tests::{last_recorded, recorded_and_replayed, with_executor, with_most_threads, without_compiler};
