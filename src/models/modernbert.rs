//! ModernBERT: norms before each part but the first, rotary positions, and layers that see the neighbourhood only.

use super::base::{self, DEFAULTS};
use super::draft::{Biases, Draft, Mlp, Pattern, Source, TensorNames};
use super::encoder::{self, BERT, KEYS, Keys};
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, NormParts, Prefix, Rope};

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames {
        network: Names {
            prefixes: const { &[Prefix::of("model.")] },
            embed: "embeddings.tok_embeddings",
            embed_norm: Some("embeddings.norm"),
            layer: "layers.{}",
            final_norm: Some("final_norm"),
            ..BERT.network
        },
        q: Source::Part("attn.Wqkv", 0),
        k: Source::Part("attn.Wqkv", 1),
        v: Source::Part("attn.Wqkv", 2),
        o: Source::Own("attn.Wo"),
        gate: Source::Part("mlp.Wi", 0),
        up: Source::Part("mlp.Wi", 1),
        down: Source::Own("mlp.Wo"),
        attn_in: Some("attn_norm"),
        attn_sum: None,
        mlp_in: Some("mlp_norm"),
        mlp_sum: None,
        ..BERT
    };
    let mut draft = encoder::parse(json, &Keys { names, activation: "hidden_activation", ..KEYS })?;
    if !json.has("max_position_embeddings") {
        draft.context_length = 8192;
    }
    draft.norm.eps = json.positive("norm_eps", 1e-5)? as f32;
    draft.norm.parts = if json.flag("norm_bias", false)? { NormParts::WeightAndBias } else { NormParts::Weight };
    let attention = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: attention, o: attention, mlp: json.flag("mlp_bias", false)?, head: false };
    draft.positions = None;
    draft.mlp = Mlp::Gated;
    let every = base::pattern(json, "global_attn_every_n_layers", 3)?;
    let local = base::sliding_layers(json, draft.layers.len(), |i| i % every != 0)?;
    // Half of it on each side, and the token itself.
    let window = json.count("local_attention", base::MAX_CONTEXT)?.unwrap_or(128) / 2 + 1;
    for (i, (layer, local)) in draft.layers.iter_mut().zip(local).enumerate() {
        *layer = Pattern { window: local.then_some(window), rope: Some(usize::from(local)), attn_in: i > 0, ..Pattern::PLAIN };
    }
    draft.ropes = ropes(json, draft.head_dim)?;
    Ok(draft)
}

/// One for layers that see all, one for the others.
fn ropes(json: &Json, head_dim: usize) -> Result<Vec<Rope>> {
    let thetas = (json.positive("global_rope_theta", 160_000.0)?, json.positive("local_rope_theta", 10_000.0)?);
    if let Some((full, local)) = rope::nested(json, (head_dim, head_dim), thetas, &DEFAULTS)? {
        return Ok(vec![full, local]);
    }
    let scaling = json.object("rope_scaling")?;
    let of = |theta| rope::one(json, scaling.as_ref(), head_dim, theta, &DEFAULTS);
    Ok(vec![of(thetas.0)?, of(thetas.1)?])
}
