//! BERT: MiniLM, E5, BGE, GTE and most sentence embedders.

use super::encoder::{self, KEYS};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Config;

pub fn parse(json: &Json) -> Result<Config> {
    encoder::refuse_relative_positions(json)?;
    let mut config = encoder::parse(json, &KEYS)?;
    config.token_types = encoder::token_types(json)?;
    Ok(config)
}
