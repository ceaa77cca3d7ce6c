//! Hunyuan dense (0.5B to 7B): q and k are normalised after the rotation.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names, QkNorm};

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names { q_norm: "self_attn.query_layernorm", k_norm: "self_attn.key_layernorm", ..LLAMA };
    if json.flag("use_cla", false)? {
        return Err(json.unsupported("use_cla", "expected false"));
    }
    let mut config = base::parse(json, &Defaults { names, eps: 1e-5, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.qk_norm = Some(QkNorm::Head);
    config.qk_norm_after_rope = true;
    Ok(config)
}
