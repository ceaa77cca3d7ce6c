//! Seed-OSS: Llama with biases on q, k and v.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { head_dim: Some(128), kv_heads: Some(8), ..DEFAULTS })?;
    config.bias = Bias {
        qkv: json.flag("attention_bias", true)?,
        o: json.flag("attention_out_bias", false)?,
        mlp: json.flag("mlp_bias", false)?,
        head: false,
    };
    Ok(config)
}
