//! RoBERTa, CamemBERT and XLM-RoBERTa (multilingual E5, BGE-M3): BERT with positions that count from behind the padding's id.

use super::draft::{Draft, TensorNames};
use super::encoder::{self, BERT, KEYS, Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, Prefix};

pub fn parse(json: &Json) -> Result<Draft> {
    encoder::refuse_relative_positions(json)?;
    let names = TensorNames { network: Names { prefixes: const { &[Prefix::of("roberta.")] }, ..BERT.network }, ..BERT };
    let mut draft = encoder::parse(json, &Keys { names, ..KEYS })?;
    draft.token_types = encoder::token_types(json)?;
    encoder::positions_behind(encoder::padding(json)?, json, &mut draft)?;
    Ok(draft)
}
