//! StarCoder 2: layer norm, a plain MLP, biases everywhere.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Names, Source};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names { up: Source::Own("mlp.c_fc"), down: Source::Own("mlp.c_proj"), ..LLAMA };
    let defaults = Defaults {
        names,
        eps_key: "norm_epsilon",
        eps: 1e-5,
        activation: "gelu_pytorch_tanh",
        kv_heads: Some(2),
        tied: true,
        ..DEFAULTS
    };
    for (key, only) in [("norm_type", "layer_norm"), ("mlp_type", "default")] {
        if json.text(key)?.is_some_and(|found| found != only) {
            return Err(json.unsupported(key, &format!("expected {only:?}")));
        }
    }
    let mut config = base::parse(json, &defaults)?;
    let bias = json.flag("use_bias", true)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: bias, head: false };
    config.norm = NormKind::Layer;
    config.norm_bias = true;
    config.gated = false;
    base::window_everywhere(json, &mut config, None)?;
    Ok(config)
}
