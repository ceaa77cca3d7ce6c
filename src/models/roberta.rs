//! RoBERTa, CamemBERT and XLM-RoBERTa (multilingual E5, BGE-M3): BERT with positions that count from behind the padding's id.

use super::encoder::{self, BERT, KEYS, Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names};

pub fn parse(json: &Json) -> Result<Config> {
    encoder::refuse_relative_positions(json)?;
    let names = Names { prefixes: &["roberta."], ..BERT };
    let mut config = encoder::parse(json, &Keys { names, ..KEYS })?;
    config.token_types = encoder::token_types(json)?;
    encoder::positions_behind(encoder::padding(json)?, json, &mut config)?;
    Ok(config)
}
