//! OLMo 1: layer norm without weights, optionally clipped q, k and v.

use super::base::{self, DEFAULTS};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.norm = NormKind::Layer;
    config.norm_weight = false;
    config.eps = 1e-5; // fixed: no key changes it
    config.qkv_clip = json.number("clip_qkv")?.map(|bound| bound as f32);
    if config.qkv_clip.is_some_and(|bound| bound < 0.0) {
        return Err(json.invalid("clip_qkv", "expected a number from 0 on or null"));
    }
    Ok(config)
}
