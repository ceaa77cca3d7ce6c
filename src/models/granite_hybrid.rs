//! Granite 4 H: Mamba 2, and attention in a few layers; experts beside an MLP that every token goes through, or that MLP alone.

use super::base::{self, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Draft, Mixer, Pattern, Source, TensorNames};
use super::{granite, granite_moe, mamba2};
use crate::error::Result;
use crate::load::Json;

/// Where there are no experts the MLP is the one that stands beside them.
const DENSE: TensorNames = TensorNames {
    gate: Source::Part("shared_mlp.input_linear", 0),
    up: Source::Part("shared_mlp.input_linear", 1),
    down: Source::Own("shared_mlp.output_linear"),
    ..base::LLAMA
};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 3] = [("num_local_experts", 8), ("num_experts_per_tok", 2), ("shared_intermediate_size", 1024)];

pub fn parse(json: &Json) -> Result<Draft> {
    let json = json.with_defaults(&SIZES).with_defaults(&mamba2::PREFIXED_SIZES);
    // Another name of the key, which wins.
    let json = &match json.get("layers_block_type") {
        Some(kinds) => json.with("layer_types", kinds.value().clone()),
        None => json,
    };
    let mut draft = granite::parse(json)?;
    if json.count("num_local_experts", MAX_WIDTH)? == Some(0) {
        draft.names = DENSE;
        draft.mlx_mlp = Some(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        draft.intermediate_size = json.size("shared_intermediate_size", MAX_WIDTH)?;
    } else {
        draft = granite_moe::with_experts(json, draft, &granite_moe::WITHOUT_WINDOWS)?;
    }
    let inner = draft.hidden_size * json.size("mamba_expand", MAX_LAYERS)?;
    let mut mamba =
        mamba2::parse(json, (&mamba2::PREFIXED, &mamba2::MAMBA), (draft.hidden_size, mamba2::head_dim(json, inner)?))?;
    mamba.step_limits = mamba2::step_limits(json)?;
    draft.mamba2 = Some(mamba);
    let is_rotated = json.text("position_embedding_type")?.is_some_and(|kind| kind == "rope");
    // As transformers 5 calls them, and as they are published.
    let kinds = ["linear_attention", "full_attention", "mamba", "attention"];
    let types = base::layer_types(json, draft.layers.len(), &kinds, |_| 0)?;
    for (layer, kind) in draft.layers.iter_mut().zip(types) {
        let mixer = if kind % 2 == 0 { Mixer::Mamba2 } else { Mixer::Attention };
        *layer = Pattern { mixer, rope: layer.rope.filter(|_| is_rotated), ..*layer };
    }
    if draft.layers.iter().any(|layer| layer.mixer == Mixer::Mamba2) {
        base::needs_silu(json, "hidden_act")?;
    }
    Ok(draft)
}
