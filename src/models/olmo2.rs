//! OLMo 2: norms after each part, and over the whole of q and k.

use super::base::{self, DEFAULTS, Defaults, POST_NORMS};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;
use crate::nn::QkNorm;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { names: POST_NORMS, eps: 1e-5, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.qk_norm = Some(QkNorm::Width);
    Ok(draft)
}
