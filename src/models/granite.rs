//! Granite 3: Llama with a multiplier at every scale.

use super::base::{self, DEFAULTS};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    config.attn_scale = base::factor(json, "attention_multiplier", 1.0)?;
    config.embed_scale = base::factor(json, "embedding_multiplier", 1.0)?;
    config.residual_scale = base::factor(json, "residual_multiplier", 1.0)?;
    config.logit_scale = 1.0 / json.positive("logits_scaling", 1.0)? as f32;
    Ok(config)
}
