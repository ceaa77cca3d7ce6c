//! Ministral 3: Llama with yarn, and queries that grow with their position.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::Draft;
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{QueryGrowth, Scaling};

pub fn parse(json: &Json) -> Result<Draft> {
    let defaults = Defaults { eps: 1e-5, theta: 1e6, head_dim: Some(128), kv_heads: Some(8), ..DEFAULTS };
    let json = &json.with_defaults(&[("max_position_embeddings", 262_144), ("vocab_size", 131_072)]);
    let mut draft = base::parse(json, &defaults)?;
    base::window_everywhere(json, &mut draft, None)?;
    let rope = &mut draft.ropes[0];
    // The reference's default for all of it is a yarn of one model's sizes.
    let Some(parameters) = rope::parameters(json)? else {
        return Err(json.invalid("rope_parameters", "expected an object, found nothing"));
    };
    match (parameters.number("llama_4_scaling_beta")?.filter(|&beta| beta != 0.0), &rope.scaling) {
        (None, _) => {}
        (Some(beta), &Scaling::Yarn { original, .. }) => rope.query_growth = Some(QueryGrowth { beta, original }),
        (Some(_), _) => return Err(parameters.unsupported("llama_4_scaling_beta", "expected none but with yarn")),
    }
    Ok(draft)
}
