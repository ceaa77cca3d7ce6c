//! Mistral 7B and its successors: Llama with a window on every layer.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Config;

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { kv_heads: Some(8), ..DEFAULTS })?;
    base::window_everywhere(json, &mut config, Some(4096))?;
    Ok(config)
}
