//! ERNIE 4.5: Llama whose rotary pairs are neighbours.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Pairs;

pub fn parse(json: &Json) -> Result<Draft> {
    let defaults = Defaults {
        eps: 1e-5,
        head_dim: Some(128),
        kv_heads: Some(2),
        theta: 500_000.0,
        tied: true,
        pairs: Pairs::Neighbours,
        ..DEFAULTS
    };
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("use_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: bias, head: false };
    Ok(draft)
}
