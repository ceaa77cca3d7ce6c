//! GLM-4 (9B, the first): gate and up in one tensor, half of each head rotated in neighbouring pairs.

use super::base::{self, DEFAULTS, Defaults, FUSED_MLP};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names};

pub fn parse(json: &Json) -> Result<Config> {
    common(json, FUSED_MLP)
}

/// What both generations share.
pub fn common(json: &Json, names: Names) -> Result<Config> {
    let defaults = Defaults {
        names,
        eps: 1.5625e-7,
        head_dim: Some(128),
        kv_heads: Some(2),
        partial: Some(0.5),
        adjacent: true,
        ..DEFAULTS
    };
    let mut config = base::parse(json, &defaults)?;
    config.bias.qkv = json.flag("attention_bias", true)?;
    Ok(config)
}
