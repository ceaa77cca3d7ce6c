//! Mistral 7B and its successors: Llama with a window on every layer.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::Draft;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { kv_heads: Some(8), ..DEFAULTS })?;
    base::window_everywhere(json, &mut draft, Some(4096))?;
    Ok(draft)
}
