//! OLMo 2: norms after each part, and over the whole of q and k.

use super::base::{self, DEFAULTS, Defaults, POST_NORMS};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, Config, QkNorm};

pub fn parse(json: &Json) -> Result<Config> {
    let mut config = base::parse(json, &Defaults { names: POST_NORMS, eps: 1e-5, ..DEFAULTS })?;
    let bias = json.flag("attention_bias", false)?;
    config.bias = Bias { qkv: bias, o: bias, ..Bias::default() };
    config.qk_norm = Some(QkNorm::Width);
    Ok(config)
}
