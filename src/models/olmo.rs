//! OLMo 1: layer norm without weights, optionally clipped q, k and v.

use super::base::{self, DEFAULTS};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;
use crate::nn::NormParts;
use crate::ops::NormKind;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.norm.kind = NormKind::Layer;
    draft.norm.parts = NormParts::Nothing;
    draft.norm.eps = 1e-5; // fixed: no key changes it
    draft.qkv_clip = clip(json)?;
    Ok(draft)
}

/// The bound of q, k and v.
pub fn clip(json: &Json) -> Result<Option<f32>> {
    match json.number("clip_qkv")?.map(|bound| bound as f32) {
        Some(bound) if bound < 0.0 => Err(json.invalid("clip_qkv", "expected a number from 0 on or null")),
        bound => Ok(bound),
    }
}
