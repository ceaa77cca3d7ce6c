//! A decoder as [`DecodeStep`](super::DecodeStep) is made of it.

use crate::kernels::gpu::{GatePart, KeysPart};
use crate::ops::{Activation, Convolution, Decay, KvFormat, Mask, Matrix, Norm, ScanShape, Vector};

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
    pub per_layer: Option<PerLayerPart<'a>>,
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
        let of_layers = self.operations().flat_map(|operation| operation.linears().map(|linear| linear.weight));
        let of_tokens = self.per_layer.iter().flat_map(|part| [part.projection.weight].into_iter().chain(part.table));
        of_layers.chain(of_tokens).chain([self.head.weight])
    }

    pub fn operations(&self) -> impl Iterator<Item = &OperationPart<'_>> {
        self.steps.iter().flat_map(|step| &step.branches).map(|branch| &branch.operation)
    }
}

/// What layers take in besides the stream, of each `dim` values: `norm(projection(x))`, or `(scale · table[id] + norm(…)) / √2`.
pub struct PerLayerPart<'a> {
    pub projection: LinearPart<'a>,
    /// Of each layer's.
    pub norm: &'a Norm,
    pub table: Option<&'a Matrix>,
    pub scale: f32,
}

/// `x <- factor · norm_sum(x + scale · norm_out(Σ branches))`
pub struct ResidualPart<'a> {
    pub branches: Vec<BranchPart<'a>>,
    pub norm_out: Option<&'a Norm>,
    pub norm_sum: Option<&'a Norm>,
    pub scale: f32,
    pub factor: f32,
}

pub struct BranchPart<'a> {
    /// `None` = it reads what the branch before reads.
    pub input: Option<Option<&'a Norm>>,
    pub operation: OperationPart<'a>,
    pub norm_out: Option<&'a Norm>,
}

pub enum OperationPart<'a> {
    Attention(AttentionPart<'a>),
    ShortConv(ShortConvPart<'a>),
    DeltaNet(DeltaNetPart<'a>),
    Mlp(MlpPart<'a>),
    LayerInput(LayerInputPart<'a>),
}

impl<'a> OperationPart<'a> {
    /// Whether it remembers something of the tokens before.
    pub fn has_state(&self) -> bool {
        match self {
            Self::Attention(part) => part.keys != KeysPart::Shared,
            Self::ShortConv(_) | Self::DeltaNet(_) => true,
            Self::Mlp(_) | Self::LayerInput(_) => false,
        }
    }

    /// What reads the input, and what gives the output.
    pub fn linears(&self) -> [LinearPart<'a>; 2] {
        match self {
            Self::Attention(part) => [part.qkv, part.o],
            Self::ShortConv(part) => [part.inputs, part.o],
            Self::DeltaNet(part) => [part.inputs, part.o],
            Self::Mlp(part) => [part.up, part.down],
            Self::LayerInput(part) => [part.gate, part.down],
        }
    }
}

pub struct AttentionPart<'a> {
    /// With gates behind them.
    pub qkv: LinearPart<'a>,
    pub keys: KeysPart,
    pub gate: GatePart,
    pub o: LinearPart<'a>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q_norm: Option<&'a Norm>,
    pub k_norm: Option<&'a Norm>,
    /// Of each head's values, without a weight.
    pub v_norm: Option<&'a Norm>,
    /// Whether they stand behind the rotation.
    pub norm_after: bool,
    pub rope: Option<RopePart>,
    pub mask: Mask,
    pub sinks: Option<&'a Vector>,
    /// The number of its state, or of the one that it reads.
    pub state: usize,
}

/// `o(c · conv(b · x))`
pub struct ShortConvPart<'a> {
    /// b, c and x, one after another.
    pub inputs: LinearPart<'a>,
    pub o: LinearPart<'a>,
    pub conv: &'a Convolution,
    /// The number of its state.
    pub state: usize,
}

/// `o(norm(scan(q, k, v)) · silu(gate))`
pub struct DeltaNetPart<'a> {
    /// q, k and v before the convolution, gate, beta and decay.
    pub inputs: LinearPart<'a>,
    pub o: LinearPart<'a>,
    pub conv: &'a Convolution,
    pub decay: &'a Decay,
    pub shape: ScanShape,
    /// Added to the squared length of a query or a key.
    pub length_eps: f32,
    pub norm: &'a Norm,
    /// The number of its state.
    pub state: usize,
}

/// `down(act(gate(x)) · e)`, of the layer's part `e` of [`PerLayerPart`].
pub struct LayerInputPart<'a> {
    pub activation: Activation,
    pub gate: LinearPart<'a>,
    pub down: LinearPart<'a>,
    /// Of the layer.
    pub number: usize,
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
