//! What runs by the GPU's own kernels: a few tokens of a decoder, as one list of launches.

mod check;
mod parts;
mod state;
mod step;
mod weight;

pub use crate::kernels::gpu::{BestToken, GatePart, KeysPart};
pub use parts::{
    AttentionPart, BranchPart, DecoderParts, DeltaNetPart, LayerInputPart, LinearPart, MlpPart, OperationPart, PerLayerPart,
    ResidualPart, RopePart, ShortConvPart, Unsupported,
};
pub use state::StepState;
pub use step::{DecodeStep, StepChange, StepChanges, StepLogits, StepOutput, StepSequence};
pub use weight::DeviceMatrix;
pub(super) use weight::StepDelta;
pub(super) use weight::{CodedBuilder, can_code};
