//! StarCoder 2: layer norm, a plain MLP, biases everywhere.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, Mlp, Source, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::NormParts;
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames { up: Source::Own("mlp.c_fc"), down: Source::Own("mlp.c_proj"), ..LLAMA };
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
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("use_bias", true)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: bias, head: false };
    draft.norm.kind = NormKind::Layer;
    draft.norm.parts = NormParts::WeightAndBias;
    draft.mlp = Mlp::Plain;
    base::window_everywhere(json, &mut draft, None)?;
    Ok(draft)
}
