//! Gemma 2: norms around each part, soft caps, a window on every second layer.

use super::base::{self, SANDWICH_NORMS};
use super::gemma;
use crate::error::Result;
use crate::load::Json;
use crate::nn::Config;

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = gemma::common(json, "hidden_activation", SANDWICH_NORMS)?;
    caps_and_windows(json, &mut config)?;
    Ok(config)
}

/// Soft caps, score scale and the windows of even layers.
pub fn caps_and_windows(json: &Json, config: &mut Config) -> Result<()> {
    config.attn_scale = gemma::query_scale(json)?;
    config.attn_softcap = base::softcap(json, "attn_logit_softcapping", Some(50.0))?;
    config.logit_softcap = base::softcap(json, "final_logit_softcapping", Some(30.0))?;
    let sliding = base::sliding_layers(json, config.layers.len(), |i| i % 2 == 0)?;
    base::window_some(json, config, &sliding, 4096)
}
