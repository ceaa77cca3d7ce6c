//! Nemotron and Minitron: layer norm with weights stored minus one, a plain MLP of squared ReLU.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft, Mlp};
use crate::error::Result;
use crate::load::Json;
use crate::nn::NormParts;
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let defaults = Defaults { eps_key: "norm_eps", eps: 1e-5, activation: "relu2", partial: Some(0.5), ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    draft.norm.kind = NormKind::Layer;
    draft.norm.parts = NormParts::WeightAndBias;
    draft.norm.offset = 1.0;
    draft.mlp = Mlp::Plain;
    Ok(draft)
}
