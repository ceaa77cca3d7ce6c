//! SmolLM3: Llama with some layers without a position embedding.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft, Pattern};
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { theta: 2e6, kv_heads: Some(4), tied: true, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    let rotated = rotated_layers(json, draft.layers.len())?;
    let window = if json.has("sliding_window") { base::window(json)? } else { None };
    let slides = json.flag("use_sliding_window", false)? && window.is_some();
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| slides && !rotated[i])?;
    if window.is_none() && sliding.contains(&true) {
        return Err(json.invalid("sliding_window", "expected a number for the layers that slide, found null"));
    }
    for (i, layer) in draft.layers.iter_mut().enumerate() {
        *layer = Pattern { window: window.filter(|_| sliding[i]), rope: rotated[i].then_some(0), ..Pattern::PLAIN };
    }
    Ok(draft)
}

/// `no_rope_layers` holds 1 for a layer *with* rope; where it is absent every `no_rope_layer_interval`-th has none.
fn rotated_layers(json: &Json, layers: usize) -> Result<Vec<bool>> {
    let Some(list) = json.numbers("no_rope_layers")? else {
        let every = base::pattern(json, "no_rope_layer_interval", 4)?;
        return Ok((0..layers).map(|i| (i + 1) % every != 0).collect());
    };
    if list.len() != layers {
        return Err(json.invalid("no_rope_layers", &format!("expected {layers} entries, found {}", list.len())));
    }
    Ok(list.iter().map(|&x| x != 0.0).collect())
}
