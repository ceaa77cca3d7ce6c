//! Granite 3: Llama with a multiplier at every scale.

use super::base::{self, DEFAULTS};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    draft.attn_scale = base::factor(json, "attention_multiplier", 1.0)?;
    draft.embed_scale = base::factor(json, "embedding_multiplier", 1.0)?;
    draft.residual_scale = base::factor(json, "residual_multiplier", 1.0)?;
    draft.logit_scale = 1.0 / json.positive("logits_scaling", 1.0)? as f32;
    Ok(draft)
}
