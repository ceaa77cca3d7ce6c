//! The language model of one that also sees and hears: `text_config` describes it, and its tensors lie below those of the whole. What
//! reads pictures and sounds is skipped.

use super::base::{self, MLX_PREFIX};
use super::draft::Draft;
use crate::error::Result;
use crate::load::Json;
use crate::nn::Prefix;

/// As transformers 5 stores it, and 4.
const PREFIXES: [Prefix; 2] = [Prefix::of("model.language_model."), Prefix { is_of_mlx: false, ..MLX_PREFIX }];
/// Of those that are younger than 4.
const YOUNGER: [Prefix; 2] = [Prefix::of("model.language_model."), MLX_PREFIX];

const TOWERS: [&str; 15] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "visual.",
    "model.visual.",
    "vision_embedder.",
    "embed_vision.",
    "audio_tower.",
    "embed_audio.",
    "model.vision_embedder.",
    "model.embed_vision.",
    "model.audio_tower.",
    "model.embed_audio.",
    // Layers that predict further tokens.
    "mtp.",
];

pub fn parse(json: &Json) -> Result<Draft> {
    base::refuse_what_changes_the_result(json)?;
    let Some(mut text) = json.object("text_config")? else {
        return Err(json.invalid("text_config", "expected an object, found nothing"));
    };
    if text.has("text_config") {
        return Err(text.unsupported("text_config", "expected none within another"));
    }
    // Of the two the outer one decides, and where it is absent the default of the outer class.
    let model_type = json.text("model_type")?.unwrap_or_default();
    match json.get("tie_word_embeddings") {
        Some(tied) => text = text.with("tie_word_embeddings", tied.value().clone()),
        None if !model_type.starts_with("qwen3_5") => text = text.with("tie_word_embeddings", true.into()),
        None => {}
    }
    let (_, mut draft) = super::draft(&text)?;
    let is_younger = draft.names.network.prefixes.contains(&MLX_PREFIX);
    draft.names.network.prefixes = if is_younger { &YOUNGER } else { &PREFIXES };
    draft.names.network.unused = &TOWERS;
    Ok(draft)
}
