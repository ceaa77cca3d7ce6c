//! BERT: MiniLM, E5, BGE, GTE and most sentence embedders.

use super::draft::Draft;
use super::encoder::{self, KEYS};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    encoder::refuse_relative_positions(json)?;
    let mut draft = encoder::parse(json, &KEYS)?;
    draft.token_types = encoder::token_types(json)?;
    Ok(draft)
}
