//! Command R: layer norm without bias, attention and MLP in parallel on one norm, scaled logits.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names, QkNorm};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = common(json, 500_000.0)?;
    if json.flag("use_qk_norm", false)? {
        config.qk_norm = Some(QkNorm::EachHead);
    }
    Ok(config)
}

/// What both generations share.
pub fn common(json: &Json, theta: f64) -> Result<Config> {
    let names = Names { mlp_in: None, ..LLAMA };
    let defaults = Defaults { names, eps_key: "layer_norm_eps", eps: 1e-5, theta, tied: true, adjacent: true, ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.norm = NormKind::Layer;
    config.parallel = true;
    config.logit_scale = base::factor(json, "logit_scale", 0.0625)?;
    Ok(config)
}
