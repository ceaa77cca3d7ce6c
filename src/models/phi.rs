//! Phi-1, 1.5 and 2: layer norm, attention and MLP in parallel, biases everywhere.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names, Source};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names {
        o: Source::Own("self_attn.dense"),
        up: Source::Own("mlp.fc1"),
        down: Source::Own("mlp.fc2"),
        final_norm: Some("final_layernorm"),
        mlp_in: None,
        ..LLAMA
    };
    if json.flag("qk_layernorm", false)? {
        return Err(json.unsupported("qk_layernorm", "expected false"));
    }
    let defaults =
        Defaults { names, eps_key: "layer_norm_eps", eps: 1e-5, activation: "gelu_new", partial: Some(0.5), ..DEFAULTS };
    let mut config = base::parse(json, &defaults)?;
    config.norm = NormKind::Layer;
    config.norm_bias = true;
    config.bias = Bias { qkv: true, o: true, mlp: true, head: true };
    config.parallel = true;
    config.gated = false;
    Ok(config)
}
