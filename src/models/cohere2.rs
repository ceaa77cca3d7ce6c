//! Command R7B and A: windows with rope on three of four layers, full layers without position embedding.

use super::base;
use super::draft::Draft;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = super::cohere::common(json, 10_000.0)?;
    let every = base::pattern(json, "sliding_window_pattern", 4)?;
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| (i + 1) % every != 0)?;
    base::window_some(json, &mut draft, &sliding, 4096)?;
    for (layer, slides) in draft.layers.iter_mut().zip(sliding) {
        layer.rope = slides.then_some(0);
    }
    Ok(draft)
}
