//! Arcee (AFM 4.5B): Llama with a plain MLP of squared ReLU.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft, Mlp};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { eps: 1e-5, activation: "relu2", ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    draft.mlp = Mlp::Plain;
    Ok(draft)
}
