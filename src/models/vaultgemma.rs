//! VaultGemma: Gemma 2 without the norms after each part.

use super::base::LLAMA;
use super::draft::{Draft, TensorNames};
use super::{gemma, gemma2};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames { mlp_in: Some("pre_feedforward_layernorm"), ..LLAMA };
    let mut draft = gemma::common(json, "hidden_activation", names, 4)?;
    gemma2::caps_and_windows(json, &mut draft)?;
    Ok(draft)
}
