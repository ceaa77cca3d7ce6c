//! A decoder as [`DecodeStep`](super::DecodeStep) is made of it.

use crate::ops::{Activation, KvFormat, Mask, Matrix, Norm, Vector};

/// Why a network does not run by the GPU's kernels, for people; its tokens are then evaluated by tensor operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported(pub String);

impl Unsupported {
    pub fn new<T>(what: &str) -> Result<T, Self> {
        Err(Self(what.to_string()))
    }
}

/// A matrix and its bias.
#[derive(Clone, Copy)]
pub struct LinearPart<'a> {
    /// By which the changes of adapters are known.
    pub id: usize,
    pub weight: &'a Matrix,
    pub bias: Option<&'a Vector>,
}

/// A whole decoder.
pub struct DecoderParts<'a> {
    pub embed: &'a Matrix,
    pub embed_scale: f32,
    pub embed_norm: Option<&'a Norm>,
    /// Of all layers, in the order of computation.
    pub steps: Vec<ResidualPart<'a>>,
    pub final_norm: Option<&'a Norm>,
    pub head: LinearPart<'a>,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    /// Pairs that each rope of the network rotates.
    pub ropes: Vec<usize>,
    pub kv_format: KvFormat,
}

impl DecoderParts<'_> {
    /// All of them, but the embedding.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let of_layers = self.steps.iter().flat_map(|step| &step.branches).flat_map(|branch| match &branch.operation {
            OperationPart::Attention(attention) => [attention.qkv.weight, attention.o.weight],
            OperationPart::Mlp(mlp) => [mlp.up.weight, mlp.down.weight],
        });
        of_layers.chain([self.head.weight])
    }
}

/// `x <- norm_sum(x + scale · norm_out(Σ branches))`
pub struct ResidualPart<'a> {
    pub branches: Vec<BranchPart<'a>>,
    pub norm_out: Option<&'a Norm>,
    pub norm_sum: Option<&'a Norm>,
    pub scale: f32,
}

pub struct BranchPart<'a> {
    /// `None` = it reads what the branch before reads.
    pub input: Option<Option<&'a Norm>>,
    pub operation: OperationPart<'a>,
    pub norm_out: Option<&'a Norm>,
}

pub enum OperationPart<'a> {
    Attention(AttentionPart<'a>),
    Mlp(MlpPart<'a>),
}

pub struct AttentionPart<'a> {
    pub qkv: LinearPart<'a>,
    pub o: LinearPart<'a>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q_norm: Option<&'a Norm>,
    pub k_norm: Option<&'a Norm>,
    /// Whether they stand behind the rotation.
    pub norm_after: bool,
    pub rope: Option<RopePart>,
    pub mask: Mask,
    pub sinks: Option<&'a Vector>,
    /// The number of its state.
    pub state: usize,
}

#[derive(Clone, Copy)]
pub struct RopePart {
    /// Among the network's.
    pub number: usize,
    pub adjacent: bool,
}

pub struct MlpPart<'a> {
    pub is_gated: bool,
    pub activation: Activation,
    pub up: LinearPart<'a>,
    pub down: LinearPart<'a>,
}
