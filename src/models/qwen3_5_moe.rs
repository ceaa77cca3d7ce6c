//! Qwen3.5 with experts, and beside them an MLP for every token, times a gate.

use super::base::MAX_WIDTH;
use super::draft::{Alone, Draft};
use super::experts::{self, ExpertDefaults};
use super::qwen3_5;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, DenseConfig, SharedExpertConfig, Slot};

const EXPERTS: ExpertDefaults = ExpertDefaults { count: 256, ..experts::QWEN };

/// What a configuration leaves out, as far as it is not what the dense one means by that.
const SIZES: [(&str, usize); 7] = [
    ("hidden_size", 2048),
    ("num_hidden_layers", 40),
    ("num_key_value_heads", 2),
    ("moe_intermediate_size", 512),
    ("shared_expert_intermediate_size", 512),
    // No layer has an MLP alone.
    ("intermediate_size", 512),
    ("max_position_embeddings", 32_768),
];

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&SIZES);
    let mut draft = qwen3_5::parse(json)?;
    let mut experts = experts::parse(json, &draft, &EXPERTS, json.size("moe_intermediate_size", MAX_WIDTH)?, true)?;
    let size = json.size("shared_expert_intermediate_size", MAX_WIDTH)?;
    experts.shared = Some(SharedExpertConfig {
        dense: DenseConfig {
            intermediate_size: size,
            gate: Some(Slot::whole("mlp.shared_expert.gate_proj", size)),
            up: Slot::whole("mlp.shared_expert.up_proj", size),
            down: Slot::whole("mlp.shared_expert.down_proj", draft.hidden_size),
            mlx: None,
            bias: Bias::None,
            activation: draft.activation,
            clamp: None,
            gate_scale: 1.0,
        },
        gate: Some(Slot::whole("mlp.shared_expert_gate", 1)),
    });
    draft.experts = Some(experts);
    draft.layers.iter_mut().for_each(|layer| layer.alone = Alone::Experts);
    Ok(draft)
}
