//! SmolLM3: Llama with some layers without a position embedding.

use super::base::{self, DEFAULTS, Defaults};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, Layer};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { theta: 2e6, kv_heads: Some(4), tied: true, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    let rotated = rotated_layers(json, config.layers.len())?;
    let window = if json.has("sliding_window") { base::window(json)? } else { None };
    let slides = json.flag("use_sliding_window", false)? && window.is_some();
    let sliding = base::sliding_layers(json, config.layers.len(), |i| slides && !rotated[i])?;
    if window.is_none() && sliding.contains(&true) {
        return Err(json.invalid("sliding_window", "expected a number for the layers that slide, found null"));
    }
    for (i, layer) in config.layers.iter_mut().enumerate() {
        *layer = Layer { window: window.filter(|_| sliding[i]), rope: rotated[i].then_some(0), ..Layer::PLAIN };
    }
    Ok(config)
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
