//! Helium: Llama whose rotary pairs are neighbours.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let defaults = Defaults { eps: 1e-8, head_dim: Some(128), kv_heads: Some(20), theta: 100_000.0, adjacent: true, ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    if config.head_dim * config.num_heads != config.hidden_size {
        return Err(json.unsupported("head_dim", "expected hidden_size / num_attention_heads"));
    }
    config.bias = Bias { qkv: json.flag("attention_bias", false)?, mlp: json.flag("mlp_bias", false)?, ..Bias::default() };
    Ok(config)
}
