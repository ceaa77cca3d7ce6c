//! Hunyuan dense (0.5B to 7B): q and k are normalised after the rotation.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{QkNorm, QkNormPlace};

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames { q_norm: "self_attn.query_layernorm", k_norm: "self_attn.key_layernorm", ..LLAMA };
    if json.flag("use_cla", false)? {
        return Err(json.unsupported("use_cla", "expected false"));
    }
    let mut draft = base::parse(json, &Defaults { names, eps: 1e-5, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.qk_norm = Some(QkNorm::Head);
    draft.qk_norm_place = QkNormPlace::AfterRope;
    Ok(draft)
}
