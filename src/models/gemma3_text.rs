//! Gemma 3 (text): q/k norms, and a rope of their own for the layers that slide.

use super::base::{self, DEFAULTS, SANDWICH_NORMS};
use super::draft::Draft;
use super::{gemma, rope};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{QkNorm, Rope, Scaling, Visible};

/// What published multimodal checkpoints leave out of `text_config`: sizes that are the class's own.
const SIZES: [(&str, usize); 8] = [
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
];

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&SIZES);
    let mut draft = gemma::common(json, "hidden_activation", SANDWICH_NORMS, 4)?;
    draft.attn_scale = gemma::query_scale(json)?;
    // transformers does not apply a cap of the scores here even when it is set.
    if json.get("attn_logit_softcapping").is_some() {
        return Err(json.unsupported("attn_logit_softcapping", "expected null"));
    }
    draft.logit_softcap = base::softcap(json, "final_logit_softcapping", None)?;
    draft.qk_norm = Some(QkNorm::Head);
    let every = base::pattern(json, "sliding_window_pattern", 6)?;
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| (i + 1) % every != 0)?;
    base::window_some(json, &mut draft, &sliding, 4096)?;
    draft.ropes = ropes(json, draft.head_dim)?;
    for (layer, slides) in draft.layers.iter_mut().zip(sliding) {
        layer.rope = Some(usize::from(slides));
    }
    if json.flag("use_bidirectional_attention", false)? {
        draft.visible = Visible::All;
        // Half of the window lies on each side.
        draft.layers.iter_mut().for_each(|layer| layer.window = layer.window.map(|window| window / 2 + 1));
    }
    Ok(draft)
}

/// One for full layers, one for those that slide.
fn ropes(json: &Json, head_dim: usize) -> Result<Vec<Rope>> {
    let thetas = (1e6, 1e4);
    if let Some((full, sliding)) = rope::nested(json, (head_dim, head_dim), thetas, &DEFAULTS)? {
        return Ok(vec![full, sliding]);
    }
    if json.object("rope_parameters")?.is_some() {
        return Err(json.unsupported("rope_parameters", "expected settings for full_attention and sliding_attention"));
    }
    let full = rope::one(json, json.object("rope_scaling")?.as_ref(), head_dim, thetas.0, &DEFAULTS)?;
    let theta = json.positive("rope_local_base_freq", thetas.1)?;
    Ok(vec![full.clone(), Rope { theta, scaling: Scaling::Default, ..full }])
}
