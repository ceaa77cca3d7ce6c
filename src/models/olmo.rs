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
    draft.qkv_clip = json.number("clip_qkv")?.map(|bound| bound as f32);
    if draft.qkv_clip.is_some_and(|bound| bound < 0.0) {
        return Err(json.invalid("clip_qkv", "expected a number from 0 on or null"));
    }
    Ok(draft)
}
