//! ERNIE 4.5: Llama whose rotary pairs are neighbours.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config};

pub fn parse(json: &Json) -> Result<Config> {
    let defaults =
        Defaults { eps: 1e-5, head_dim: Some(128), kv_heads: Some(2), theta: 500_000.0, tied: true, adjacent: true, ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    let bias = json.flag("use_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: bias, head: false };
    Ok(config)
}
