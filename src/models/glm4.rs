//! GLM-4-0414: GLM with norms after each part as well.

use super::base::FUSED_MLP;
use super::draft::{Draft, TensorNames};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames { attn_out: Some("post_self_attn_layernorm"), mlp_out: Some("post_mlp_layernorm"), ..FUSED_MLP };
    super::glm::common(json, names)
}
