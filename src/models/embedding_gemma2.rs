//! EmbeddingGemma 2: Gemma 4's layers, in which every token sees both sides, with per-layer embeddings that have no table, and a projection
//! of each token's vector; alone, or as the `text_config` of one that also sees and hears.

use super::base::{self, MAX_WIDTH, SANDWICH_NORMS};
use super::draft::{Draft, LayerInputs, TensorNames};
use super::gemma4::{self, Kinds};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, PerLayerConfig, Prefix, Visible};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 11] = [
    ("vocab_size", 262_144),
    ("hidden_size", 512),
    ("intermediate_size", 2048),
    ("num_hidden_layers", 24),
    ("num_attention_heads", 4),
    ("num_key_value_heads", 2),
    ("head_dim", 256),
    ("max_position_embeddings", 262_144),
    ("sliding_window", 512),
    ("hidden_size_per_layer_input", 512),
    ("embedding_dim", 768),
];

const NAMES: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of(""), Prefix::of("language_model."), Prefix::of("model.")],
        head: None,
        unused: &["vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."],
        ..SANDWICH_NORMS.network
    },
    ..SANDWICH_NORMS
};

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&SIZES);
    for key in ["attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp", "num_kv_shared_layers"] {
        if json.get(key).is_some() {
            return Err(json.unsupported(key, "expected none in this family"));
        }
    }
    let mut draft = gemma4::common(json, NAMES, &Kinds { full_kv_heads: Some(1), turns_a_quarter: false, reads_pattern: true })?;
    draft.visible = Visible::All;
    // Here it is a radius: a token that far away is seen.
    draft.layers.iter_mut().for_each(|layer| layer.window = layer.window.map(|window| window + 1));
    draft.layer_inputs = Some(LayerInputs {
        embedding: PerLayerConfig {
            dim: json.size("hidden_size_per_layer_input", MAX_WIDTH)?,
            projection: "ple.per_layer_model_projection",
            norm: "ple.per_layer_projection_norm",
            table: None,
        },
        gate: "ple_block.per_layer_input_gate",
        down: "ple_block.per_layer_projection",
        norm_out: "ple_block.post_per_layer_input_norm",
    });
    draft.projection = Some(("embedding_projection", json.size("embedding_dim", MAX_WIDTH)?));
    Ok(draft)
}

pub fn parse_nested(json: &Json) -> Result<Draft> {
    base::refuse_what_changes_the_result(json)?;
    let Some(text) = json.object("text_config")? else {
        return Err(json.invalid("text_config", "expected an object, found nothing"));
    };
    match text.text("model_type")?.as_deref() {
        Some("embedding_gemma2_text") => parse(&text),
        _ => Err(text.unsupported("model_type", "expected \"embedding_gemma2_text\"")),
    }
}
