//! EuroBERT: Llama in which every token sees every other.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::encoder::HEADS;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names};

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names { head: None, unused: HEADS, ..LLAMA };
    let mut config = base::parse(json, &Defaults { names, eps: 1e-5, ..DEFAULTS })?;
    let attention = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: attention, o: attention, mlp: json.flag("mlp_bias", false)?, head: false };
    config.causal = false;
    Ok(config)
}
