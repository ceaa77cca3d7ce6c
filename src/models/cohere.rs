//! Command R: layer norm without bias, attention and MLP in parallel on one norm, scaled logits.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, Order, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Pairs, QkNorm};
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = common(json, 500_000.0)?;
    if json.flag("use_qk_norm", false)? {
        draft.qk_norm = Some(QkNorm::EachHead);
    }
    Ok(draft)
}

/// What both generations share.
pub fn common(json: &Json, theta: f64) -> Result<Draft> {
    let names = TensorNames { mlp_in: None, ..LLAMA };
    let defaults =
        Defaults { names, eps_key: "layer_norm_eps", eps: 1e-5, theta, tied: true, pairs: Pairs::Neighbours, ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.norm.kind = NormKind::Layer;
    draft.order = Order::Parallel;
    draft.logit_scale = base::factor(json, "logit_scale", 0.0625)?;
    Ok(draft)
}
