//! Qwen3 with experts, in all layers but some.

use super::base::{MAX_LAYERS, MAX_WIDTH};
use super::draft::{Alone, Draft};
use super::experts;
use super::qwen3;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("num_key_value_heads", 4), ("moe_intermediate_size", 768)]);
    let mut draft = qwen3::parse(json)?;
    let normalised = json.flag("norm_topk_prob", false)?;
    let intermediate_size = json.size("moe_intermediate_size", MAX_WIDTH)?;
    draft.experts = Some(experts::parse(json, &draft, &experts::QWEN, intermediate_size, normalised)?);
    let every = match json.count("decoder_sparse_step", MAX_LAYERS)? {
        Some(0) => return Err(json.invalid("decoder_sparse_step", "expected at least 1, found 0")),
        every => every.unwrap_or(1),
    };
    let dense = json.counts("mlp_only_layers", MAX_LAYERS)?.unwrap_or_default();
    for (i, layer) in draft.layers.iter_mut().enumerate() {
        let is_mixture = (i + 1).is_multiple_of(every) && !dense.contains(&i);
        layer.alone = if is_mixture { Alone::Experts } else { Alone::Mlp };
    }
    Ok(draft)
}
