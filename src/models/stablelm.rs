//! StableLM 2: layer norm, a quarter of each head rotated.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names, QkNorm};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let mut defaults = Defaults { eps_key: "layer_norm_eps", eps: 1e-5, kv_heads: Some(32), partial: Some(0.25), ..DEFAULTS };
    let parallel = json.flag("use_parallel_residual", false)?;
    if parallel {
        defaults.names.mlp_in = None;
    }
    if json.flag("qk_layernorm", false)? {
        defaults.names = Names { q_norm: "self_attn.q_layernorm", k_norm: "self_attn.k_layernorm", ..defaults.names };
    }
    let mut config = base::parse(json, &defaults)?;
    if config.head_dim * config.num_heads != config.hidden_size {
        return Err(json.unsupported("head_dim", "expected hidden_size / num_attention_heads"));
    }
    config.qk_norm = json.flag("qk_layernorm", false)?.then_some(QkNorm::EachHeadApart);
    config.bias.qkv = json.flag("use_qkv_bias", false)?;
    config.norm = NormKind::Layer;
    config.norm_bias = true;
    config.parallel = parallel;
    Ok(config)
}
