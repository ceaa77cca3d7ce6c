//! Gemma: norm weights stored minus one, embeddings scaled by √hidden_size.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::ops::Activation;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = common(json, "hidden_act", LLAMA)?;
    // The first Gemma's "gelu" has always meant the tanh form.
    if draft.activation == Activation::Gelu {
        draft.activation = Activation::GeluTanh;
    }
    Ok(draft)
}

/// What all Gemmas share.
pub fn common(json: &Json, activation_key: &'static str, names: TensorNames) -> Result<Draft> {
    let defaults =
        Defaults { names, activation_key, activation: "gelu_pytorch_tanh", head_dim: Some(256), tied: true, ..DEFAULTS };
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.norm.offset = 1.0;
    draft.embed_scale = (draft.hidden_size as f32).sqrt();
    Ok(draft)
}

/// The scale of the scores from Gemma 2 on.
pub fn query_scale(json: &Json) -> Result<f32> {
    Ok(1.0 / json.positive("query_pre_attn_scalar", 256.0)?.sqrt() as f32)
}
