//! Arcee (AFM 4.5B): Llama with a plain MLP of squared ReLU.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { eps: 1e-5, activation: "relu2", ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    config.gated = false;
    Ok(config)
}
