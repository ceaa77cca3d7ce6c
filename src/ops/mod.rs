//! Operations on tensors. `x.rs` says what one means: its shapes, its checks, its backward pass on a [`Tape`].
//! `cpu/x.rs` is its body by our kernels, `tensors/x.rs` that by candle's operations, which keeps clear of what goes wrong
//! on Metal; [`Backend`] says which one computes.
//!
//! Activations are rows, `(T, …)`: all tokens of a call one after another. On the CPU they are F32 whatever the weights are
//! stored as; on a GPU they have the dtype of the weights. Nothing above this module calls a fused operation of candle
//! directly: several of them are silently wrong on Metal for strided or offset inputs, and all of them cut gradients.

mod backend;
mod fault;
mod tape;
mod cpu;
mod tensors;
mod gpu;
mod rows;
mod row_blocks;
mod matrix;
mod embedding;
mod linear;
mod low_rank;
mod parameters;
mod cross_entropy;
mod norm;
mod rope;
mod split;
mod attention;
mod convolution;
mod scan;
mod activation;
mod gate;
mod scale;
mod experts;
mod pooling;
mod torch_activation;

#[cfg(feature = "cuda")]
pub use crate::kernels::open_cuda;
pub use crate::kernels::{
    Activation, AdamW, Arithmetic, CHUNK, Format, GateClamp, KvFormat, Mask, NormKind, ScanRule, ScanShape, Scoring, Use, beside,
    copied, install, is_forked, parallel_map, peak_bytes, physical_bytes, resident_bytes, set_threads, start_threads,
    thread_count, trim, unit_length, zeros,
};
#[cfg(feature = "selftest")]
pub use crate::kernels::{Level, limit_instructions};
pub use activation::{activate, gated, gated_clamped};
pub use attention::{LayerCache, Masks, Sequences, attention, attention_within};
pub use backend::{Backend, On};
pub use convolution::{ConvState, Convolution, convolution, convolution_within};
pub use cross_entropy::{cross_entropy, scored_at_once};
pub use embedding::{adapted_embedding, embedding};
pub use experts::{ExpertRows, Routed, Routing, combine, route};
#[cfg(feature = "fault-injection")]
pub use fault::inject_device_failure;
pub use gate::gate;
pub use gpu::{
    AttentionPart, BestToken, BranchPart, DecodeStep, DecoderParts, DeltaNetPart, DeviceMatrix, GatePart, KeysPart,
    LayerInputPart, LinearPart, MlpPart, OperationPart, PerLayerPart, ResidualPart, RopePart, ShortConvPart, StepChange,
    StepChanges, StepLogits, StepOutput, StepSequence, StepState, Unsupported,
};
pub use linear::{AdaptedLinear, DotProducts, linear, logits};
pub use low_rank::{AddedRows, DeltaPart, Dropout, LowRankDelta, LowRankDeltas, merged, summed_bias};
pub use matrix::{Kept, Matrix, MatrixBuilder, Vector, dtype, tensor_bytes, to_f32};
pub use norm::{Norm, add_scaled, norm, optional_norm};
pub use parameters::{Optimized, ParameterValues};
pub use pooling::{Pooling, pool, unit_rows, zero_rows};
pub use rope::{Angles, rope};
pub use row_blocks::by_row_blocks;
pub use rows::{narrow_rows, row_count, select_rows, stack_rows};
pub use scale::{scale, scaled};
pub use scan::{Decay, ScanState, decay, scan, scan_within};
pub use split::{clip, split, split_evenly};
pub use tape::{Context, Gradient, Gradients, Tape};
pub use torch_activation::{TorchActivation, torch_activation};
