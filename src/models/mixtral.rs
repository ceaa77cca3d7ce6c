//! Mixtral: Mistral with experts in place of the MLP.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Alone, Draft};
use super::experts::{self, ExpertDefaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::ExpertNames;

const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "block_sparse_moe.gate",
    apart: Some(ExpertNames {
        gate: "block_sparse_moe.experts.{}.w1",
        up: "block_sparse_moe.experts.{}.w3",
        down: "block_sparse_moe.experts.{}.w2",
    }),
    stacks: None,
    younger: Some(("mlp.gate", ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"))),
    mlx: ExpertNames {
        gate: "block_sparse_moe.switch_mlp.gate_proj",
        up: "block_sparse_moe.switch_mlp.up_proj",
        down: "block_sparse_moe.switch_mlp.down_proj",
    },
    parameters: &[[("mlp.experts", "gate_up_proj"), ("mlp.experts", "down_proj")]],
    count: 8,
    top_k: 2,
};

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { kv_heads: Some(8), eps: 1e-5, theta: 1e6, ..DEFAULTS })?;
    base::window_everywhere(json, &mut draft, None)?;
    draft.experts = Some(experts::parse(json, &draft, &EXPERTS, draft.intermediate_size, true)?);
    draft.layers.iter_mut().for_each(|layer| layer.alone = Alone::Experts);
    Ok(draft)
}
