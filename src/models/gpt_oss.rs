//! gpt-oss: sinks, a window on every second layer, biases, and experts whose gated activation is clamped.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Alone, Biases, Draft};
use super::experts::{self, ExpertDefaults};
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, ExpertNames};
use crate::ops::GateClamp;

/// As they are called once they are taken apart.
const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "mlp.router",
    apart: Some(ExpertNames { gate: "mlp.experts.{}.gate_proj", up: "mlp.experts.{}.up_proj", down: "mlp.experts.{}.down_proj" }),
    stacks: None,
    mlx: ExpertNames { gate: "mlp.experts.gate_proj", up: "mlp.experts.up_proj", down: "mlp.experts.down_proj" },
    parameters: &[[("mlp.experts", "gate_up_proj"), ("mlp.experts", "down_proj")]],
    count: 128,
    top_k: 4,
};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 8] = [
    ("vocab_size", 201_088),
    ("hidden_size", 2880),
    ("intermediate_size", 2880),
    ("num_hidden_layers", 36),
    ("num_attention_heads", 64),
    ("num_key_value_heads", 8),
    ("head_dim", 64),
    ("max_position_embeddings", 131_072),
];

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &rope::with_default(&json.with_defaults(&SIZES), || {
        serde_json::json!({
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": false,
        })
    })?;
    let mut draft = base::parse(json, &Defaults { eps: 1e-5, theta: 150_000.0, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", true)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.sinks = Some("self_attn.sinks");
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| i.is_multiple_of(2))?;
    base::window_some(json, &mut draft, &sliding, 128)?;
    let mut experts = experts::parse(json, &draft, &EXPERTS, draft.intermediate_size, true)?;
    experts.biases = Bias::Stored;
    experts.clamp = Some(GateClamp {
        limit: json.positive("swiglu_limit", 7.0)? as f32,
        slope: json.positive("swiglu_alpha", 1.702)? as f32,
    });
    experts.is_stack_of_inputs = true;
    draft.experts = Some(experts);
    draft.layers.iter_mut().for_each(|layer| layer.alone = Alone::Experts);
    Ok(draft)
}
