//! OLMoE: norms over the whole of q and k, clipped q, k and v, and experts.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Alone, Biases, Draft};
use super::experts::{self, ExpertDefaults};
use super::olmo;
use crate::error::Result;
use crate::load::Json;
use crate::nn::QkNorm;

const EXPERTS: ExpertDefaults = ExpertDefaults { count: 64, ..experts::QWEN };

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = base::parse(json, &Defaults { eps: 1e-5, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.qk_norm = Some(QkNorm::Width);
    draft.qkv_clip = olmo::clip(json)?;
    let normalised = json.flag("norm_topk_prob", false)?;
    draft.experts = Some(experts::parse(json, &draft, &EXPERTS, draft.intermediate_size, normalised)?);
    draft.layers.iter_mut().for_each(|layer| layer.alone = Alone::Experts);
    Ok(draft)
}
