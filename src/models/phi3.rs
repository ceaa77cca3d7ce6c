//! Phi-3, Phi-3.5 and Phi-4: q, k and v in one tensor, gate and up in another, longrope.

use super::base::{self, DEFAULTS, Defaults, FUSED_MLP};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names, Scaling, Source};

pub fn parse(json: &Json) -> Result<Config> {
    let qkv = |part| Source::Part("self_attn.qkv_proj", part);
    let names = Names { q: qkv(0), k: qkv(1), v: qkv(2), ..FUSED_MLP };
    let json = &with_original_context(json)?;
    let mut config = base::parse(json, &Defaults { names, eps: 1e-5, partial: Some(1.0), ..DEFAULTS })?;
    base::window_everywhere(json, &mut config, None)?;
    match config.ropes[0].scaling {
        Scaling::Default | Scaling::LongRope { .. } => Ok(config),
        _ => Err(json.unsupported("rope_scaling", "expected longrope")),
    }
}

/// The original context stands at the top of the configuration, 4096 where it is absent.
fn with_original_context(json: &Json) -> Result<Json> {
    let mut value = json.value().clone();
    if let Some(fields) = value.as_object_mut() {
        fields.entry("original_max_position_embeddings").or_insert(4096.into());
    }
    Json::parse("config.json", &value.to_string())
}
