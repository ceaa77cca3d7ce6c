//! LFM3: gated short convolutions, layers that slide and layers that see all, the latter with a rope of the first pairs of each head;
//! gates of heads, and norms on both sides of each part.

use super::base::{self, Defaults};
use super::draft::{Draft, Mixer, OutputGate, Pattern, Source, TensorNames};
use super::{lfm2, rope};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{QkNorm, Rope, Scaling};

const NAMES: TensorNames =
    TensorNames { o: Source::Own("self_attn.o_proj"), q_norm: "self_attn.q_norm", k_norm: "self_attn.k_norm", ..lfm2::NAMES };

const DEFAULTS: Defaults = Defaults { names: NAMES, head_dim: Some(128), kv_heads: Some(4), ..lfm2::COMMON };

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("vocab_size", 128_000)]);
    let mut draft = base::parse(json, &DEFAULTS)?;
    draft.qk_norm = Some(QkNorm::Head);
    if json.flag("attention_bias", false)? {
        return Err(json.unsupported("attention_bias", "expected false"));
    }
    if json.flag("use_sandwich_norm", true)? {
        draft.names.attn_out = Some("post_operator_norm");
        draft.names.mlp_out = Some("post_ffn_norm");
    }
    draft.output_gate = json.flag("use_attention_gate", true)?.then_some(OutputGate::OfHeads("self_attn.gate_proj"));
    let kind = |i: usize| {
        if i % 4 == 2 {
            FULL
        } else if i.is_multiple_of(4) && i > 0 {
            SLIDING
        } else {
            CONV
        }
    };
    let types = base::layer_types(json, draft.layers.len(), &["full_attention", "sliding_attention", "conv"], kind)?;
    let window = if json.has("sliding_window") { base::window(json)? } else { Some(256) };
    draft.ropes = ropes(json, draft.head_dim)?;
    for (layer, kind) in draft.layers.iter_mut().zip(types) {
        *layer = match kind {
            CONV => Pattern { mixer: Mixer::ShortConv, ..*layer },
            kind => Pattern { window: window.filter(|_| kind == SLIDING), rope: Some(kind), ..*layer },
        };
    }
    draft.short_conv = Some(lfm2::short_conv(json, draft.hidden_size, 7)?);
    Ok(draft)
}

/// Kinds of layers; of those with attention also their ropes.
const FULL: usize = 0;
const SLIDING: usize = 1;
const CONV: usize = 2;

fn ropes(json: &Json, head_dim: usize) -> Result<Vec<Rope>> {
    let thetas = (1e6, 1e4);
    if let Some((full, sliding)) = rope::nested(json, (head_dim, head_dim), thetas, &DEFAULTS)? {
        return Ok(vec![full, sliding]);
    }
    if json.object("rope_parameters")?.is_some() || json.object("rope_scaling")?.is_some() {
        return Err(json.unsupported("rope_parameters", "expected settings for full_attention and sliding_attention"));
    }
    let sliding = rope::one(json, None, head_dim, thetas.1, &DEFAULTS)?;
    let scaling = Scaling::Proportional { turned: head_dim / 4, factor: 1.0 };
    Ok(vec![Rope { theta: thetas.0, scaling, ..sliding.clone() }, sliding])
}
