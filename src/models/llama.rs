//! Llama 2 and 3 (Touvron et al. 2023), and the many models that store themselves as such.

use super::base::{self, DEFAULTS};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    Ok(config)
}
