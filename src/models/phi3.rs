//! Phi-3, Phi-3.5 and Phi-4: q, k and v in one tensor, gate and up in another, longrope.

use super::base::{self, DEFAULTS, Defaults, FUSED_MLP};
use super::draft::{Draft, Source, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::Scaling;

pub fn parse(json: &Json) -> Result<Draft> {
    let qkv = |part| Source::Part("self_attn.qkv_proj", part);
    let names = TensorNames { q: qkv(0), k: qkv(1), v: qkv(2), ..FUSED_MLP };
    // The original context stands at the top of the configuration.
    let json = &json.with_defaults(&[("original_max_position_embeddings", 4096)]);
    let mut draft = base::parse(json, &Defaults { names, eps: 1e-5, partial: Some(1.0), ..DEFAULTS })?;
    base::window_everywhere(json, &mut draft, None)?;
    match draft.ropes[0].scaling {
        Scaling::Default | Scaling::LongRope { .. } => Ok(draft),
        _ => Err(json.unsupported("rope_scaling", "expected longrope")),
    }
}
