//! StableLM 2: layer norm, a quarter of each head rotated.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Draft, Order, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{NormParts, QkNorm};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut defaults = Defaults { eps_key: "layer_norm_eps", eps: 1e-5, kv_heads: Some(32), partial: Some(0.25), ..DEFAULTS };
    let is_parallel = json.flag("use_parallel_residual", false)?;
    if is_parallel {
        defaults.names.mlp_in = None;
    }
    if json.flag("qk_layernorm", false)? {
        defaults.names = TensorNames { q_norm: "self_attn.q_layernorm", k_norm: "self_attn.k_layernorm", ..defaults.names };
    }
    let mut draft = base::parse(json, &defaults)?;
    if draft.head_dim * draft.num_heads != draft.hidden_size {
        return Err(json.unsupported("head_dim", "expected hidden_size / num_attention_heads"));
    }
    draft.qk_norm = json.flag("qk_layernorm", false)?.then_some(QkNorm::EachHeadApart);
    draft.biases.qkv = json.flag("use_qkv_bias", false)?;
    draft.norm.kind = NormKind::Layer;
    draft.norm.parts = NormParts::WeightAndBias;
    draft.order = if is_parallel { Order::Parallel } else { Order::Sequential };
    Ok(draft)
}
