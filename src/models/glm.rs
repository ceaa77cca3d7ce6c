//! GLM-4 (9B, the first): gate and up in one tensor, half of each head rotated in neighbouring pairs.

use super::base::{self, DEFAULTS, Defaults, FUSED_MLP};
use super::draft::{Draft, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Pairs;

pub fn parse(json: &Json) -> Result<Draft> {
    common(json, FUSED_MLP)
}

/// What both generations share.
pub fn common(json: &Json, names: TensorNames) -> Result<Draft> {
    let defaults = Defaults {
        names,
        eps: 1.5625e-7,
        head_dim: Some(128),
        kv_heads: Some(2),
        partial: Some(0.5),
        pairs: Pairs::Neighbours,
        ..DEFAULTS
    };
    let mut draft = base::parse(json, &defaults)?;
    draft.biases.qkv = json.flag("attention_bias", true)?;
    Ok(draft)
}
