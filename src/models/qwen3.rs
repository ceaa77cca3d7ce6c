//! Qwen3: a norm on each head of q and k, no biases.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;
use crate::nn::QkNorm;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = with_heads(json, Some(128))?;
    super::qwen2::windows(json, &mut draft)?;
    Ok(draft)
}

/// All but the windows; heads have this width where the configuration says nothing, `None` = what is left for each.
pub fn with_heads(json: &Json, head_dim: Option<usize>) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { kv_heads: Some(32), head_dim, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.qk_norm = Some(QkNorm::Head);
    Ok(draft)
}
