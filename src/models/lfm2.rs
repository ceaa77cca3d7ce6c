//! LFM2 and LFM2.5: gated short convolutions, and in some layers attention with norms on its heads.

use super::base::{self, DEFAULTS, Defaults, LLAMA, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Draft, Mixer, Pattern, Source, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Names, QkNorm, ShortConvConfig, Slot};

/// The most taps that a convolution may ask for.
const MAX_TAPS: usize = 64;

/// LFM2's names: LFM3 has others of attention.
pub const NAMES: TensorNames = TensorNames {
    network: Names { final_norm: Some("embedding_norm"), ..LLAMA.network },
    o: Source::Own("self_attn.out_proj"),
    gate: Source::Own("feed_forward.w1"),
    up: Source::Own("feed_forward.w3"),
    down: Source::Own("feed_forward.w2"),
    q_norm: "self_attn.q_layernorm",
    k_norm: "self_attn.k_layernorm",
    attn_in: Some("operator_norm"),
    mlp_in: Some("ffn_norm"),
    ..LLAMA
};

pub const COMMON: Defaults =
    Defaults { names: NAMES, eps_key: "norm_eps", eps: 1e-5, theta: 1e6, kv_heads: Some(8), tied: true, ..DEFAULTS };

pub fn parse(json: &Json) -> Result<Draft> {
    // Of its own code, which config.json otherwise says nothing of.
    let is_bidirectional = |name: &String| name.starts_with("Lfm2Bidirectional");
    if json.texts("architectures")?.is_some_and(|names| names.iter().any(is_bidirectional)) {
        return Err(json.unsupported("architectures", "expected convolutions that see nothing behind a token"));
    }
    // Published files have names of their own, which win.
    let mut json = json.with_defaults(&[("vocab_size", 65_536)]);
    for (own, usual) in [("tie_embedding", "tie_word_embeddings"), ("block_ff_dim", "intermediate_size")] {
        if let Some(value) = json.get(own) {
            json = json.with(usual, value.value().clone());
        }
    }
    let mut draft = base::parse(&json, &COMMON)?;
    draft.intermediate_size = mlp_width(&json, draft.intermediate_size)?;
    draft.qk_norm = Some(QkNorm::Head);
    let full = json.counts("full_attn_idxs", MAX_LAYERS)?;
    let is_full = |i: usize| full.as_ref().is_none_or(|full| full.contains(&i));
    let types = base::layer_types(&json, draft.layers.len(), &["full_attention", "conv"], |i| usize::from(!is_full(i)))?;
    for (layer, kind) in draft.layers.iter_mut().zip(types) {
        *layer = Pattern { mixer: if kind == 0 { Mixer::Attention } else { Mixer::ShortConv }, ..*layer };
    }
    draft.short_conv = Some(short_conv(&json, draft.hidden_size, 3)?);
    Ok(draft)
}

/// The width of the MLP: as it is given, or two thirds of that, times a factor, up to a multiple.
fn mlp_width(json: &Json, given: usize) -> Result<usize> {
    if !json.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(given);
    }
    let width = 2 * given / 3;
    let factor = match json.number("block_ffn_dim_multiplier")? {
        Some(factor) => factor,
        None if json.has("block_ffn_dim_multiplier") => return Ok(width),
        None => 1.0,
    };
    let multiple = json.count("block_multiple_of", MAX_WIDTH)?.unwrap_or(256);
    let width = (factor * width as f64) as usize;
    if multiple == 0 || !(1..=MAX_WIDTH).contains(&width) {
        return Err(json.invalid("block_ffn_dim_multiplier", &format!("expected a width of at most {MAX_WIDTH}, found {width}")));
    }
    Ok(width.next_multiple_of(multiple))
}

/// The mixer of layers without attention; `taps` where the configuration says nothing.
pub fn short_conv(json: &Json, hidden_size: usize, taps: usize) -> Result<ShortConvConfig> {
    let taps = if json.has("conv_L_cache") { json.size("conv_L_cache", MAX_TAPS)? } else { taps };
    Ok(ShortConvConfig {
        channels: hidden_size,
        taps,
        inputs: Slot::whole("conv.in_proj", 3 * hidden_size),
        o: Slot::whole("conv.out_proj", hidden_size),
        conv: "conv.conv",
        bias: Bias::from(json.flag("conv_bias", false)?),
    })
}
