//! What runs by the GPU's own kernels: one token of a decoder, as one list of launches.

mod parts;
mod step;

pub use parts::{
    AttentionPart, BranchPart, DecoderParts, LinearPart, MlpPart, OperationPart, ResidualPart, RopePart, Unsupported,
};
pub use step::DecodeStep;
