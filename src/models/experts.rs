//! What families with experts say of them: numbers, names, and how they are chosen.

use super::draft::Draft;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, ExpertNames, ExpertsConfig, Name, Slot};
use crate::ops::Scoring;

/// The most experts of a layer: far above any model.
const MAX_EXPERTS: usize = 1 << 12;

/// Where a family has its experts, and how many it means where nothing is said.
pub struct ExpertDefaults {
    pub router: Name,
    pub apart: Option<ExpertNames>,
    pub stacks: Option<(Name, Name)>,
    pub younger: Option<(Name, (Name, Name))>,
    pub mlx: ExpertNames,
    pub parameters: &'static [[(Name, Name); 2]],
    pub count: usize,
    pub top_k: usize,
}

/// Qwen's names, and those of others: apart as transformers writes them, in stacks as some are published.
pub const QWEN: ExpertDefaults = ExpertDefaults {
    router: "mlp.gate",
    apart: Some(ExpertNames { gate: "mlp.experts.{}.gate_proj", up: "mlp.experts.{}.up_proj", down: "mlp.experts.{}.down_proj" }),
    stacks: Some(("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    younger: None,
    mlx: ExpertNames { gate: "mlp.switch_mlp.gate_proj", up: "mlp.switch_mlp.up_proj", down: "mlp.switch_mlp.down_proj" },
    parameters: &[[("mlp.experts", "gate_up_proj"), ("mlp.experts", "down_proj")]],
    count: 128,
    top_k: 8,
};

/// Experts of softmax scores; `normalised`: weights sum to 1.
pub fn parse(
    json: &Json,
    draft: &Draft,
    defaults: &ExpertDefaults,
    intermediate_size: usize,
    normalised: bool,
) -> Result<ExpertsConfig> {
    let number = |keys: &[&str], default: usize| {
        let given = keys.iter().find(|key| json.get(key).is_some());
        given.map_or(Ok(default), |key| json.size(key, MAX_EXPERTS))
    };
    let count = number(&["num_local_experts", "num_experts"], defaults.count)?;
    let top_k = number(&["num_experts_per_tok"], defaults.top_k)?;
    if top_k > count {
        return Err(json.invalid("num_experts_per_tok", &format!("expected at most {count} experts, found {top_k}")));
    }
    Ok(ExpertsConfig {
        count,
        top_k,
        router: Slot::whole(defaults.router, count),
        scoring: Scoring::Softmax,
        normalise: normalised.then_some(0.0),
        scale: 1.0,
        bias: None,
        apart: defaults.apart,
        stacks: defaults.stacks,
        younger: defaults.younger,
        mlx: Some(defaults.mlx),
        parameters: defaults.parameters,
        factors: None,
        router_norm: None,
        shared: None,
        biases: Bias::None,
        clamp: None,
        is_stack_of_inputs: false,
        groups: (1, 1),
        latent: None,
        is_gated: true,
        hidden_size: draft.hidden_size,
        intermediate_size,
        activation: draft.activation,
    })
}
