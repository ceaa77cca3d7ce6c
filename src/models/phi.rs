//! Phi-1, 1.5 and 2: layer norm, attention and MLP in parallel, biases everywhere.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, Mlp, Order, Source, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, NormParts};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames {
        o: Source::Own("self_attn.dense"),
        up: Source::Own("mlp.fc1"),
        down: Source::Own("mlp.fc2"),
        network: Names { final_norm: Some("final_layernorm"), ..LLAMA.network },
        mlp_in: None,
        ..LLAMA
    };
    if json.flag("qk_layernorm", false)? {
        return Err(json.unsupported("qk_layernorm", "expected false"));
    }
    let defaults =
        Defaults { names, eps_key: "layer_norm_eps", eps: 1e-5, activation: "gelu_new", partial: Some(0.5), ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    draft.norm.kind = NormKind::Layer;
    draft.norm.parts = NormParts::WeightAndBias;
    draft.biases = Biases { qkv: true, o: true, mlp: true, head: true };
    draft.order = Order::Parallel;
    draft.mlp = Mlp::Plain;
    Ok(draft)
}
