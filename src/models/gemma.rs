//! Gemma: norm weights stored minus one, embeddings scaled by √hidden_size.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names};
use crate::ops::Activation;

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = common(json, "hidden_act", LLAMA)?;
    // The first Gemma's "gelu" has always meant the tanh form.
    if config.activation == Activation::Gelu {
        config.activation = Activation::GeluTanh;
    }
    Ok(config)
}

/// What all Gemmas share.
pub fn common(json: &Json, activation_key: &'static str, names: Names) -> Result<Config> {
    let defaults =
        Defaults { names, activation_key, activation: "gelu_pytorch_tanh", head_dim: Some(256), tied: true, ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.norm_offset = 1.0;
    config.embed_scale = (config.hidden_size as f32).sqrt();
    Ok(config)
}

/// The scale of the scores from Gemma 2 on.
pub fn query_scale(json: &Json) -> Result<f32> {
    Ok(1.0 / json.positive("query_pre_attn_scalar", 256.0)?.sqrt() as f32)
}
