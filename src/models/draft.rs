//! The usual network: every layer a mixer and an MLP, with six places for norms. A family fills in what it is of it; then its layers are
//! spelled out as steps and branches.

use std::sync::Arc;

use crate::nn::{
    AttentionConfig, BranchConfig, BranchInput, Config, DeltaNetConfig, DenseConfig, ExpertsConfig, KeysAndValues, LayerConfig,
    LayerInputConfig, Mamba2Config, Name, Names, NormConfig, OperationConfig, PerLayerConfig, Positions, QkNorm, QkNormConfig,
    QkNormPlace, RelativeBiasConfig, Rope, ShortConvConfig, Slot, StepConfig, Tying, Visible,
};
use crate::ops::Activation;

/// What mixes the tokens of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixer {
    Attention,
    /// As [`Draft::delta_net`] describes it.
    DeltaNet,
    /// As [`Draft::short_conv`] describes it.
    ShortConv,
    /// As [`Draft::mamba2`] describes it.
    Mamba2,
    /// Both, of one input.
    Mamba2AndAttention,
    None,
}

/// What sees each token of a layer alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    Mlp,
    /// As [`Draft::experts`] describes them.
    Experts,
    None,
}

/// One layer's place in a pattern of mixers, windows and position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub mixer: Mixer,
    /// KeySource nearer than this are seen, the query's own being at 0; `None` = all.
    pub window: Option<usize>,
    /// Index into [`Draft::ropes`]; `None` = no position embedding.
    pub rope: Option<usize>,
    /// Whether the norm before attention is there, where the family has one (ModernBERT's first layer lacks it).
    pub attn_in: bool,
    /// `None` = the network's.
    pub sizes: Option<Sizes>,
    pub keys: KeySource,
    pub alone: Alone,
}

/// Sizes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
}

/// Where a layer's keys and values are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    Own,
    /// Values are the keys as they are projected.
    AreValues,
    /// This layer, which has own ones, of heads of the same sizes.
    Of(usize),
}

impl Pattern {
    /// A layer that sees all, with the first rope.
    pub const PLAIN: Self = Self {
        mixer: Mixer::Attention,
        window: None,
        rope: Some(0),
        attn_in: true,
        sizes: None,
        keys: KeySource::Own,
        alone: Alone::Mlp,
    };
}

/// Where a projection is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A tensor of its own.
    Own(Name),
    /// Part `n` of a tensor that holds q, k and v, or gate and up, one after another.
    Part(Name, usize),
}

impl Source {
    /// `sizes` are the parts of a fused tensor; a projection of its own has the size of its part.
    fn slot(self, part: usize, sizes: &[usize]) -> Slot {
        match self {
            Self::Own(name) => Slot::whole(name, sizes[part]),
            Self::Part(name, part) => Slot::part(name, sizes, part),
        }
    }
}

/// The names of the stored tensors.
#[derive(Debug, Clone, Copy)]
pub struct TensorNames {
    pub network: Names,
    /// Read where attention has a bias by distance.
    pub relative_bias: Name,
    pub q: Source,
    pub k: Source,
    pub v: Source,
    pub o: Source,
    /// Read where the MLP is gated.
    pub gate: Source,
    pub up: Source,
    pub down: Source,
    /// Read where there is a q/k norm.
    pub q_norm: Name,
    pub k_norm: Name,
    /// Before attention.
    pub attn_in: Option<Name>,
    /// After attention, before the residual sum.
    pub attn_out: Option<Name>,
    /// After the residual sum of attention.
    pub attn_sum: Option<Name>,
    /// Before the MLP.
    pub mlp_in: Option<Name>,
    /// After the MLP, before the residual sum.
    pub mlp_out: Option<Name>,
    /// After the residual sum of the MLP.
    pub mlp_sum: Option<Name>,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
    pub head: bool,
}

/// Where the projection stands whose sigmoid what attention finds is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputGate {
    /// In q's tensor, of each head behind its query: a row a value.
    BesideQueries,
    /// A tensor of its own: a row a head.
    OfHeads(Name),
}

/// A per-layer embedding, and what of each layer takes it in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerInputs {
    pub embedding: PerLayerConfig,
    pub gate: Name,
    pub down: Name,
    /// Behind it, before the residual sum.
    pub norm_out: Name,
}

/// Experts beside the MLP, each with norms of its own, and the sum normed once more.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertBranch {
    pub experts: ExpertsConfig,
    /// In front of the experts, and behind them.
    pub norm_in: Name,
    pub norm_out: Name,
    /// Behind the MLP.
    pub mlp_out: Name,
}

/// Factors of what the parts of a layer read and give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BranchScales {
    pub attention: (f32, f32),
    pub mamba2: (f32, f32),
    /// Of what the MLP activates, and of what it gives.
    pub gate: f32,
    pub mlp_out: f32,
}

impl BranchScales {
    pub const NONE: Self = Self { attention: (1.0, 1.0), mamba2: (1.0, 1.0), gate: 1.0, mlp_out: 1.0 };
}

/// How attention and MLP of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The MLP reads the sum that attention went into.
    Sequential,
    /// Both read the layer's input; without a norm of its own the MLP reads what attention reads.
    Parallel,
}

/// `down(act(gate) · up)` or `down(act(up))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    Gated,
    Plain,
}

/// What layers that read the keys and values of others have no use for, and some checkpoints hold.
const UNREAD_KEYS: &[Name] =
    &["self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.k_norm.weight", "self_attn.v_norm.weight"];

/// A usual network, every choice made.
#[derive(Debug, Clone)]
pub struct Draft {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Tokens.
    pub context_length: usize,
    pub visible: Visible,
    pub positions: Option<Positions>,
    /// Rows of the table of token types, of which the first is added to every token.
    pub token_types: Option<usize>,
    /// Rows of the table of biases by distance.
    pub relative_buckets: Option<usize>,
    pub layers: Vec<Pattern>,
    pub ropes: Vec<Rope>,
    pub names: TensorNames,
    pub norm: NormConfig,
    pub biases: Biases,
    pub qk_norm: Option<QkNorm>,
    pub qk_norm_place: QkNormPlace,
    /// Whether the values of each head are normalised.
    pub v_norm: bool,
    /// Scores that take their share of each head's softmax and bring no value.
    pub sinks: Option<Name>,
    pub output_gate: Option<OutputGate>,
    /// Of layers that have one.
    pub delta_net: Option<DeltaNetConfig>,
    pub short_conv: Option<ShortConvConfig>,
    pub mamba2: Option<Mamba2Config>,
    pub scales: BranchScales,
    /// Factor of the scores.
    pub attn_scale: f32,
    pub attn_softcap: Option<f32>,
    /// Bound of the values of q, k and v.
    pub qkv_clip: Option<f32>,
    pub mlp: Mlp,
    /// What MLX's converter calls gate, up and down, where that is something else.
    pub mlx_mlp: Option<[Name; 3]>,
    /// Of layers that have them.
    pub experts: Option<ExpertsConfig>,
    /// Of each layer.
    pub expert_branch: Option<ExpertBranch>,
    pub activation: Activation,
    pub order: Order,
    pub layer_inputs: Option<LayerInputs>,
    /// A stored factor of each layer's output.
    pub layer_scalar: Option<Name>,
    pub embed_scale: f32,
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    pub tying: Tying,
    /// Behind the final norm: its name, and the values that it gives.
    pub projection: Option<(Name, usize)>,
}

impl Draft {
    /// The network with its layers spelled out.
    pub fn build(self) -> Config {
        // Layers share them: one may be a list as long as its configuration says.
        let ropes: Vec<Arc<Rope>> = self.ropes.iter().cloned().map(Arc::new).collect();
        let relative_bias = |buckets| RelativeBiasConfig { name: self.names.relative_bias, buckets, heads: self.num_heads };
        Config {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            context_length: self.context_length,
            positions: self.positions,
            token_types: self.token_types,
            relative_bias: self.relative_buckets.map(relative_bias),
            per_layer: self.layer_inputs.map(|inputs| inputs.embedding),
            layers: self.layers.iter().map(|pattern| self.layer(*pattern, &ropes)).collect(),
            names: self.names.network,
            norm: self.norm,
            embed_scale: self.embed_scale,
            residual_scale: self.residual_scale,
            logit_scale: self.logit_scale,
            logit_softcap: self.logit_softcap,
            tying: self.tying,
            head_bias: self.biases.head.into(),
            projection: self.projection,
        }
    }

    /// The sizes of a layer.
    pub fn sizes(&self, pattern: &Pattern) -> Sizes {
        let Self { num_kv_heads, head_dim, intermediate_size, .. } = *self;
        pattern.sizes.unwrap_or(Sizes { num_kv_heads, head_dim, intermediate_size })
    }

    fn layer(&self, pattern: Pattern, ropes: &[Arc<Rope>]) -> LayerConfig {
        let TensorNames { attn_in, attn_out, attn_sum, mlp_in, mlp_out, mlp_sum, .. } = self.names;
        let attn_in = BranchInput::Stream(attn_in.filter(|_| pattern.attn_in));
        let branch = BranchConfig::new;
        let scaled = |input, operation, (input_scale, output_scale)| BranchConfig {
            input_scale,
            output_scale,
            ..branch(input, operation, None)
        };
        let described = "a family with such layers describes them";
        let mamba2 = || OperationConfig::Mamba2(Box::new(self.mamba2.clone().expect(described)));
        let attention = |input| scaled(input, self.attention(pattern, ropes), self.scales.attention);
        let mixers = match pattern.mixer {
            Mixer::Attention => vec![attention(attn_in)],
            Mixer::DeltaNet => {
                let net = self.delta_net.clone().expect(described);
                vec![branch(attn_in, OperationConfig::DeltaNet(Box::new(net)), None)]
            }
            Mixer::ShortConv => {
                let conv = self.short_conv.clone().expect(described);
                vec![branch(attn_in, OperationConfig::ShortConv(Box::new(conv)), None)]
            }
            Mixer::Mamba2 => vec![scaled(attn_in, mamba2(), self.scales.mamba2)],
            Mixer::Mamba2AndAttention => {
                vec![scaled(attn_in, mamba2(), self.scales.mamba2), attention(BranchInput::Shared)]
            }
            Mixer::None => Vec::new(),
        };
        let alone = match (pattern.alone, &self.experts) {
            (Alone::None, _) => None,
            (Alone::Experts, Some(experts)) => Some(OperationConfig::Experts(Box::new(experts.clone()))),
            (Alone::Mlp | Alone::Experts, _) => Some(self.dense(self.sizes(&pattern).intermediate_size)),
        };
        let alone = |input| alone.map(|operation| scaled(input, operation, (1.0, self.scales.mlp_out)));
        let mut steps = match self.order {
            Order::Sequential => {
                let mut of_mlp: Vec<BranchConfig> = alone(BranchInput::Stream(mlp_in)).into_iter().collect();
                if let Some(beside) = &self.expert_branch {
                    let experts = OperationConfig::Experts(Box::new(beside.experts.clone()));
                    of_mlp.iter_mut().for_each(|mlp| mlp.norm_out = Some(beside.mlp_out));
                    of_mlp.push(branch(BranchInput::Stream(Some(beside.norm_in)), experts, Some(beside.norm_out)));
                }
                vec![
                    StepConfig { branches: mixers, norm_out: attn_out, norm_sum: attn_sum },
                    StepConfig { branches: of_mlp, norm_out: mlp_out, norm_sum: mlp_sum },
                ]
            }
            Order::Parallel => {
                let mlp_in = mlp_in.map_or(BranchInput::Shared, |norm| BranchInput::Stream(Some(norm)));
                let of_mlp = alone(mlp_in).into_iter().map(|mlp| BranchConfig { norm_out: mlp_out, ..mlp });
                let mixers = mixers.into_iter().map(|mixer| BranchConfig { norm_out: attn_out, ..mixer });
                vec![StepConfig { branches: mixers.chain(of_mlp).collect(), norm_out: None, norm_sum: None }]
            }
        };
        steps.retain(|step| !step.branches.is_empty());
        if let Some(LayerInputs { embedding, gate, down, norm_out }) = self.layer_inputs {
            let input = OperationConfig::LayerInput(Box::new(LayerInputConfig {
                dim: embedding.dim,
                gate: Slot::whole(gate, embedding.dim),
                down: Slot::whole(down, self.hidden_size),
                activation: self.activation,
            }));
            let branches = vec![branch(BranchInput::Stream(None), input, None)];
            steps.push(StepConfig { branches, norm_out: Some(norm_out), norm_sum: None });
        }
        let unused = if matches!(pattern.keys, KeySource::Of(_)) { UNREAD_KEYS } else { &[] };
        LayerConfig { steps, scalar: self.layer_scalar, unused }
    }

    fn attention(&self, pattern: Pattern, ropes: &[Arc<Rope>]) -> OperationConfig {
        let names = &self.names;
        let Sizes { num_kv_heads: kv_heads, head_dim, .. } = self.sizes(&pattern);
        let heads = self.num_heads;
        let qkv = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim];
        // Head by head: a query, then its gate.
        let beside = |index| match names.q {
            Source::Own(name) | Source::Part(name, _) => Slot { repeats: heads, ..Slot::part(name, &[head_dim; 2], index) },
        };
        let (q, gate) = match self.output_gate {
            None => (names.q.slot(0, &qkv), None),
            Some(OutputGate::BesideQueries) => (beside(0), Some(beside(1))),
            Some(OutputGate::OfHeads(name)) => (names.q.slot(0, &qkv), Some(Slot::whole(name, heads))),
        };
        let kv = match pattern.keys {
            KeySource::Own => KeysAndValues::Own { k: names.k.slot(1, &qkv), v: names.v.slot(2, &qkv) },
            KeySource::AreValues => KeysAndValues::Same(names.k.slot(1, &qkv)),
            // Every layer before has a mixer with a state.
            KeySource::Of(layer) => KeysAndValues::Of(layer),
        };
        let qk_norm = |kind| QkNormConfig { kind, place: self.qk_norm_place, q: names.q_norm, k: names.k_norm };
        OperationConfig::Attention(Box::new(AttentionConfig {
            heads,
            kv_heads,
            head_dim,
            q,
            kv,
            o: names.o.slot(0, &[self.hidden_size]),
            gate,
            qkv_bias: self.biases.qkv.into(),
            o_bias: self.biases.o.into(),
            visible: self.visible,
            window: pattern.window,
            rope: pattern.rope.map(|rope| ropes[rope].clone()),
            qk_norm: self.qk_norm.map(qk_norm),
            v_norm: self.v_norm,
            sinks: self.sinks,
            scale: self.attn_scale,
            softcap: self.attn_softcap,
            clip: self.qkv_clip,
        }))
    }

    fn dense(&self, size: usize) -> OperationConfig {
        let names = &self.names;
        let (gate, up) = match self.mlp {
            Mlp::Gated => (Some(names.gate.slot(0, &[size, size])), names.up.slot(1, &[size, size])),
            Mlp::Plain => (None, names.up.slot(0, &[size])),
        };
        OperationConfig::Dense(Box::new(DenseConfig {
            intermediate_size: size,
            gate,
            up,
            down: names.down.slot(0, &[self.hidden_size]),
            mlx: self.mlx_mlp,
            bias: self.biases.mlp.into(),
            activation: self.activation,
            clamp: None,
            gate_scale: self.scales.gate,
        }))
    }
}
