//! Qwen2, Qwen2.5 and Qwen2.5-Coder: Llama with biases on q, k and v.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::Draft;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { kv_heads: Some(32), ..DEFAULTS })?;
    draft.biases.qkv = true;
    windows(json, &mut draft)?;
    Ok(draft)
}

/// The last layers slide where `use_sliding_window` says so: all from `max_window_layers` on, unless `layer_types` names them.
pub fn windows(json: &Json, draft: &mut Draft) -> Result<()> {
    let window = match (json.flag("use_sliding_window", false)?, json.has("sliding_window")) {
        (false, _) => None,
        (true, true) => base::window(json)?,
        (true, false) => Some(4096),
    };
    let from = json.count("max_window_layers", base::MAX_LAYERS)?.unwrap_or(28);
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| window.is_some() && i >= from)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(json.invalid("sliding_window", "expected a window in use for the layers that slide"));
    }
    for (layer, slides) in draft.layers.iter_mut().zip(sliding) {
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}
