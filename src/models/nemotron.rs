//! Nemotron and Minitron: layer norm with weights stored minus one, a plain MLP of squared ReLU.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let defaults = Defaults { eps_key: "norm_eps", eps: 1e-5, activation: "relu2", partial: Some(0.5), ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    config.norm = NormKind::Layer;
    config.norm_bias = true;
    config.norm_offset = 1.0;
    config.gated = false;
    Ok(config)
}
