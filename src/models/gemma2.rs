//! Gemma 2: norms around each part, soft caps, a window on every second layer.

use super::base::{self, SANDWICH_NORMS};
use super::draft::Draft;
use super::gemma;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = gemma::common(json, "hidden_activation", SANDWICH_NORMS, 4)?;
    gemma::refuse_both_sides(json)?;
    caps_and_windows(json, &mut draft)?;
    Ok(draft)
}

/// Soft caps, score scale and the windows of even layers.
pub fn caps_and_windows(json: &Json, draft: &mut Draft) -> Result<()> {
    draft.attn_scale = gemma::query_scale(json)?;
    draft.attn_softcap = base::softcap(json, "attn_logit_softcapping", Some(50.0))?;
    draft.logit_softcap = base::softcap(json, "final_logit_softcapping", Some(30.0))?;
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| i % 2 == 0)?;
    base::window_some(json, draft, &sliding, 4096)
}
