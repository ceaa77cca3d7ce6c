//! Llama 2 and 3 (Touvron et al. 2023), and the many models that store themselves as such.

use super::base::{self, DEFAULTS};
use super::draft::{Biases, Draft};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &DEFAULTS)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    Ok(draft)
}
