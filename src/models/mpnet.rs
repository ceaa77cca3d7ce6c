//! MPNet: RoBERTa's positions, no token types, and a bias of the scores by distance that all layers share.

use super::encoder::{self, BERT, KEYS, Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Names, Source};

pub fn parse(json: &Json) -> Result<Config> {
    let names = Names {
        prefixes: &["mpnet."],
        relative_bias: "encoder.relative_attention_bias",
        q: Source::Own("attention.attn.q"),
        k: Source::Own("attention.attn.k"),
        v: Source::Own("attention.attn.v"),
        o: Source::Own("attention.attn.o"),
        attn_sum: Some("attention.LayerNorm"),
        ..BERT
    };
    let mut config = encoder::parse(json, &Keys { names, ..KEYS })?;
    encoder::positions_behind_padding(json, &mut config)?;
    let key = "relative_attention_num_buckets";
    let buckets = json.count(key, 1 << 10)?.unwrap_or(32);
    // Half are for each direction, and half of those are exact.
    if buckets < 4 || buckets / 4 >= 128 {
        return Err(json.invalid(key, &format!("expected 4 to 511, found {buckets}")));
    }
    config.relative_buckets = Some(buckets);
    Ok(config)
}
