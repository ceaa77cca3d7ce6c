//! OLMo 3: OLMo 2 with windows on three of four layers and a rope for each kind of layer.

use super::base::{self, DEFAULTS};
use super::draft::Draft;
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Rope, Scaling};

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = super::olmo2::parse(json)?;
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| (i + 1) % 4 != 0)?;
    base::window_some(json, &mut draft, &sliding, 4096)?;
    draft.ropes = ropes(json, draft.head_dim)?;
    draft.context_length = draft.context_length.max(rope::context_length(&draft.ropes[0], draft.context_length));
    for (layer, slides) in draft.layers.iter_mut().zip(sliding) {
        layer.rope = Some(usize::from(slides));
    }
    Ok(draft)
}

/// One for full layers, one for those that slide. Old keys speak of full layers alone, as transformers reads them.
fn ropes(json: &Json, head_dim: usize) -> Result<Vec<Rope>> {
    const THETA: f64 = 500_000.0;
    if let Some((full, sliding)) = rope::nested(json, (head_dim, head_dim), (THETA, THETA), &DEFAULTS)? {
        return Ok(vec![full, sliding]);
    }
    if json.object("rope_parameters")?.is_some() {
        return Err(json.unsupported("rope_parameters", "expected settings for full_attention and sliding_attention"));
    }
    let full = rope::one(json, json.object("rope_scaling")?.as_ref(), head_dim, THETA, &DEFAULTS)?;
    Ok(vec![full.clone(), Rope { theta: THETA, scaling: Scaling::Default, ..full }])
}
