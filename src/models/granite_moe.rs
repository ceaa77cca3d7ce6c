//! Granite with experts, and an MLP beside them that every token goes through; with windows and sinks, or without.

use super::base::{DEFAULTS, MAX_WIDTH};
use super::draft::{Alone, Draft};
use super::experts::{self, ExpertDefaults};
use super::{granite, granite_swa};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, DenseConfig, ExpertNames, Name, SharedExpertConfig, Slot};

/// What transformers calls them now, and before version 5.
const PARAMETERS: [[(Name, Name); 2]; 2] = [
    [("block_sparse_moe.experts", "gate_up_proj"), ("block_sparse_moe.experts", "down_proj")],
    [("block_sparse_moe.input_linear", "weight"), ("block_sparse_moe.output_linear", "weight")],
];

const STACKS: (Name, Name) = ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj");

/// The experts are one tensor for each projection, of two names.
const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "block_sparse_moe.router",
    apart: None,
    stacks: Some(STACKS),
    younger: None,
    mlx: ExpertNames {
        gate: "block_sparse_moe.switch_mlp.gate_proj",
        up: "block_sparse_moe.switch_mlp.up_proj",
        down: "block_sparse_moe.switch_mlp.down_proj",
    },
    parameters: &PARAMETERS,
    count: 8,
    top_k: 2,
};

/// Without windows they are stored in another way.
pub const WITHOUT_WINDOWS: ExpertDefaults = ExpertDefaults {
    router: "block_sparse_moe.router.layer",
    stacks: Some(("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")),
    younger: Some(("block_sparse_moe.router", STACKS)),
    ..EXPERTS
};

pub fn parse(json: &Json) -> Result<Draft> {
    with_experts(json, granite::parse(json)?, &WITHOUT_WINDOWS)
}

pub fn parse_with_windows(json: &Json) -> Result<Draft> {
    let (tied, eps) = (json.flag("tie_word_embeddings", false)?, json.positive("rms_norm_eps", DEFAULTS.eps)?);
    let json = &json.with("tie_word_embeddings", tied.into()).with("rms_norm_eps", eps.into());
    let heads = json.size("num_attention_heads", MAX_WIDTH)?;
    with_experts(json, granite_swa::parse(&json.with_defaults(&[("num_key_value_heads", heads)]))?, &EXPERTS)
}

/// A network whose MLPs are experts, and the MLP beside them that its configuration may have.
pub fn with_experts(json: &Json, mut draft: Draft, defaults: &ExpertDefaults) -> Result<Draft> {
    let mut experts = experts::parse(json, &draft, defaults, draft.intermediate_size, true)?;
    if let Some(size) = json.count("shared_intermediate_size", MAX_WIDTH)?.filter(|size| *size > 0) {
        experts.shared = Some(SharedExpertConfig {
            dense: DenseConfig {
                intermediate_size: size,
                gate: Some(Slot::part("shared_mlp.input_linear", &[size; 2], 0)),
                up: Slot::part("shared_mlp.input_linear", &[size; 2], 1),
                down: Slot::whole("shared_mlp.output_linear", draft.hidden_size),
                mlx: None,
                bias: Bias::None,
                activation: draft.activation,
                clamp: None,
                gate_scale: 1.0,
            },
            gate: None,
        });
    }
    draft.experts = Some(experts);
    draft.layers.iter_mut().for_each(|layer| layer.alone = Alone::Experts);
    Ok(draft)
}
