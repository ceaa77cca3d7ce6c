//! EuroBERT: Llama in which every token sees every other.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, TensorNames};
use super::encoder::HEADS;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, Visible};

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames { network: Names { head: None, unused: HEADS, ..LLAMA.network }, ..LLAMA };
    let mut draft = base::parse(json, &Defaults { names, eps: 1e-5, ..DEFAULTS })?;
    let attention = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: attention, o: attention, mlp: json.flag("mlp_bias", false)?, head: false };
    draft.visible = Visible::All;
    Ok(draft)
}
