//! VaultGemma: Gemma 2 without the norms after each part.

use super::base::LLAMA;
use super::{gemma, gemma2};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names};

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names { mlp_in: Some("pre_feedforward_layernorm"), ..LLAMA };
    let mut config = gemma::common(json, "hidden_activation", names)?;
    gemma2::caps_and_windows(json, &mut config)?;
    Ok(config)
}
