//! Helium: Llama whose rotary pairs are neighbours.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Pairs;

pub fn parse(json: &Json) -> Result<Draft> {
    let defaults =
        Defaults { eps: 1e-8, head_dim: Some(128), kv_heads: Some(20), theta: 100_000.0, pairs: Pairs::Neighbours, ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    if draft.head_dim * draft.num_heads != draft.hidden_size {
        return Err(json.unsupported("head_dim", "expected hidden_size / num_attention_heads"));
    }
    draft.biases = Biases { qkv: json.flag("attention_bias", false)?, mlp: json.flag("mlp_bias", false)?, ..Biases::default() };
    Ok(draft)
}
