//! Seed-OSS: Llama with biases on q, k and v.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { head_dim: Some(128), kv_heads: Some(8), ..DEFAULTS })?;
    draft.biases = Biases {
        qkv: json.flag("attention_bias", true)?,
        o: json.flag("attention_out_bias", false)?,
        mlp: json.flag("mlp_bias", false)?,
        head: false,
    };
    Ok(draft)
}
