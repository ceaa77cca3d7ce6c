//! EXAONE 4: norms after each part and on each head of q and k; full layers without rope where others slide.

use super::base::{self, DEFAULTS, Defaults, POST_NORMS};
use super::draft::{Draft, Pattern};
use crate::error::Result;
use crate::load::Json;
use crate::nn::QkNorm;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { names: POST_NORMS, eps: 1e-5, kv_heads: Some(32), ..DEFAULTS })?;
    draft.qk_norm = Some(QkNorm::Head);
    let window = if json.has("sliding_window") { base::window(json)? } else { Some(4096) };
    // The pattern is a number, or text that goes with `layer_types` and is then not read.
    let every = if json.has("layer_types") { 4 } else { base::pattern(json, "sliding_window_pattern", 4)? };
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| window.is_some() && (i + 1) % every != 0)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(json.invalid("sliding_window", "expected a number for the layers that slide, found null"));
    }
    for (layer, slides) in draft.layers.iter_mut().zip(sliding) {
        *layer = Pattern { window: window.filter(|_| slides), rope: (slides || window.is_none()).then_some(0), ..Pattern::PLAIN };
    }
    Ok(draft)
}
