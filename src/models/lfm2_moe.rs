//! LFM2 with experts, in all layers but the first ones: their scores are sigmoids, and a bias decides which are chosen.

use super::base::{self, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Alone, Draft};
use super::experts::{self, ExpertDefaults};
use super::lfm2;
use crate::error::Result;
use crate::load::Json;
use crate::nn::ExpertNames;
use crate::ops::Scoring;

const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "feed_forward.gate",
    apart: Some(ExpertNames {
        gate: "feed_forward.experts.{}.w1",
        up: "feed_forward.experts.{}.w3",
        down: "feed_forward.experts.{}.w2",
    }),
    stacks: Some(("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")),
    younger: None,
    mlx: ExpertNames {
        gate: "feed_forward.switch_mlp.gate_proj",
        up: "feed_forward.switch_mlp.up_proj",
        down: "feed_forward.switch_mlp.down_proj",
    },
    parameters: &[[("feed_forward.experts", "gate_up_proj"), ("feed_forward.experts", "down_proj")]],
    count: 32,
    top_k: 4,
};

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("moe_intermediate_size", 1792)]).with("block_auto_adjust_ff_dim", false.into());
    let mut draft = lfm2::parse(json)?;
    draft.mlx_mlp = Some(["feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"]);
    let normalised = json.flag("norm_topk_prob", true)?;
    let mut experts = experts::parse(json, &draft, &EXPERTS, json.size("moe_intermediate_size", MAX_WIDTH)?, normalised)?;
    experts.scoring = Scoring::Sigmoid;
    experts.normalise = normalised.then_some(1e-6);
    experts.scale = base::factor(json, "routed_scaling_factor", 1.0)?;
    experts.bias = json.flag("use_expert_bias", true)?.then_some("feed_forward.expert_bias");
    draft.experts = Some(experts);
    let dense = json.count("num_dense_layers", MAX_LAYERS)?.unwrap_or(2);
    draft.layers.iter_mut().enumerate().for_each(|(i, layer)| layer.alone = if i >= dense { Alone::Experts } else { Alone::Mlp });
    Ok(draft)
}
