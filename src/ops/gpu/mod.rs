//! What runs by the GPU's own kernels: a few tokens of a decoder, as one list of launches.

mod parts;
mod step;
mod weight;

pub use crate::kernels::gpu::BestToken;
pub use parts::{
    AttentionPart, BranchPart, DecoderParts, LinearPart, MlpPart, OperationPart, ResidualPart, RopePart, Unsupported,
};
pub use step::{DecodeStep, StepChange, StepChanges, StepLogits, StepOutput, StepSequence};
pub use weight::DeviceMatrix;
pub(super) use weight::StepDelta;
pub(super) use weight::{CodedBuilder, can_code};
