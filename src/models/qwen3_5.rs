//! Qwen3.5 (dense): gated delta nets, and every few layers an attention with gates; norms of `1 + w`, rope of a part of each head.
//!
//! `mrope_section` and its like say how positions of pictures are rotated: for text it is the usual rope.

use super::base::{self, DEFAULTS, Defaults, LLAMA, MAX_WIDTH, MLX_PREFIX};
use super::draft::{Biases, Draft, Mixer, OutputGate, Pattern, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{DeltaNetConfig, Names, Prefix, QkNorm, Slot};
use crate::ops::{ScanRule, ScanShape};

/// The most taps that a convolution may ask for.
const MAX_TAPS: usize = 64;

/// Layers that predict further tokens, and what reads pictures.
const UNUSED: &[&str] = &["mtp.", "visual.", "model.visual."];

const NAMES: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("model."), Prefix::of("model.language_model."), MLX_PREFIX],
        unused: UNUSED,
        ..LLAMA.network
    },
    ..LLAMA
};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 12] = [
    ("vocab_size", 248_320),
    ("hidden_size", 4096),
    ("intermediate_size", 12_288),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 16),
    ("num_key_value_heads", 4),
    ("max_position_embeddings", 32_768),
    ("linear_conv_kernel_dim", 4),
    ("linear_key_head_dim", 128),
    ("linear_value_head_dim", 128),
    ("linear_num_key_heads", 16),
    ("linear_num_value_heads", 32),
];

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&SIZES);
    let defaults = Defaults { names: NAMES, partial: Some(0.25), head_dim: Some(256), ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    draft.norm.offset = 1.0;
    draft.qk_norm = Some(QkNorm::Head);
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    if !json.flag("attn_output_gate", true)? {
        return Err(json.unsupported("attn_output_gate", "expected true"));
    }
    draft.output_gate = Some(OutputGate::BesideQueries);
    let every = base::pattern(json, "full_attention_interval", 4)?;
    let is_linear = |i: usize| usize::from(!(i + 1).is_multiple_of(every));
    let types = base::layer_types(json, draft.layers.len(), &["full_attention", "linear_attention"], is_linear)?;
    for (layer, kind) in draft.layers.iter_mut().zip(types) {
        *layer = Pattern { mixer: if kind == 0 { Mixer::Attention } else { Mixer::DeltaNet }, ..*layer };
    }
    if draft.layers.iter().any(|layer| layer.mixer == Mixer::DeltaNet) {
        base::needs_silu(json, "hidden_act")?;
    }
    draft.delta_net = Some(delta_net(json, draft.hidden_size)?);
    Ok(draft)
}

fn delta_net(json: &Json, hidden_size: usize) -> Result<DeltaNetConfig> {
    let size = |field: &str| json.size(field, MAX_WIDTH);
    let (groups, heads) = (size("linear_num_key_heads")?, size("linear_num_value_heads")?);
    if !heads.is_multiple_of(groups) {
        return Err(json
            .invalid("linear_num_value_heads", &format!("expected a multiple of linear_num_key_heads {groups}, found {heads}")));
    }
    let (key_dim, value_dim) = (size("linear_key_head_dim")?, size("linear_value_head_dim")?);
    let shape = ScanShape { heads, groups, key_dim, value_dim, rule: ScanRule::Delta };
    let (keys, values) = (groups * shape.key_dim, heads * shape.value_dim);
    let slot = |name: &str, rows| Slot::whole(format!("linear_attn.{name}"), rows);
    Ok(DeltaNetConfig {
        shape,
        taps: json.size("linear_conv_kernel_dim", MAX_TAPS)?,
        qkv: slot("in_proj_qkv", 2 * keys + values),
        gate: slot("in_proj_z", values),
        beta: slot("in_proj_b", heads),
        decay: slot("in_proj_a", heads),
        o: slot("out_proj", hidden_size),
        conv: "linear_attn.conv1d",
        a_log: "linear_attn.A_log",
        dt_bias: "linear_attn.dt_bias",
        norm: "linear_attn.norm",
    })
}
