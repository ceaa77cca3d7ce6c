//! Qwen3: a norm on each head of q and k, no biases.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, QkNorm};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { kv_heads: Some(32), head_dim: Some(128), ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.qk_norm = Some(QkNorm::Head);
    super::qwen2::windows(json, &mut config)?;
    Ok(config)
}
