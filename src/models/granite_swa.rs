//! Granite with windows: sinks, a window on three of four layers, and a rope for each layer, or none.

use super::base::{self, MAX_LAYERS};
use super::draft::Draft;
use super::granite;
use crate::error::Result;
use crate::load::Json;
use crate::nn::Rope;

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("num_key_value_heads", 4), ("sliding_window", 128), ("max_position_embeddings", 8192)]);
    let tied = json.flag("tie_word_embeddings", true)?;
    let json = &json.with("tie_word_embeddings", tied.into());
    let mut draft = granite::parse(json)?;
    draft.sinks = Some("self_attn.sinks");
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| i % 4 != 0)?;
    base::window_some(json, &mut draft, &sliding, 128)?;
    // One base for each layer, 0 = no rope.
    let Some(thetas) = json.numbers("layer_rope_theta")? else { return Ok(draft) };
    if thetas.len() != draft.layers.len() || thetas.len() > MAX_LAYERS {
        let message = format!("expected {} numbers, found {}", draft.layers.len(), thetas.len());
        return Err(json.invalid("layer_rope_theta", &message));
    }
    if let Some(theta) = thetas.iter().find(|theta| **theta < 0.0) {
        return Err(json.invalid("layer_rope_theta", &format!("expected numbers of at least 0, found {theta}")));
    }
    let usual = draft.ropes.remove(0);
    for (layer, theta) in draft.layers.iter_mut().zip(thetas) {
        layer.rope = (theta > 0.0).then(|| {
            let known = draft.ropes.iter().position(|rope| rope.theta == theta);
            known.unwrap_or_else(|| {
                draft.ropes.push(Rope { theta, ..usual.clone() });
                draft.ropes.len() - 1
            })
        });
    }
    Ok(draft)
}
