//! GLM-4-0414: GLM with norms after each part as well.

use super::base::FUSED_MLP;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names};

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names { attn_out: Some("post_self_attn_layernorm"), mlp_out: Some("post_mlp_layernorm"), ..FUSED_MLP };
    super::glm::common(json, names)
}
