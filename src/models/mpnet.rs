//! MPNet: RoBERTa's positions, no token types, and a bias of the scores by distance that all layers share.

use super::draft::{Draft, Source, TensorNames};
use super::encoder::{self, BERT, KEYS, Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, Prefix, RELATIVE_BUCKETS};

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames {
        network: Names { prefixes: const { &[Prefix::of("mpnet.")] }, ..BERT.network },
        relative_bias: "encoder.relative_attention_bias",
        q: Source::Own("attention.attn.q"),
        k: Source::Own("attention.attn.k"),
        v: Source::Own("attention.attn.v"),
        o: Source::Own("attention.attn.o"),
        attn_sum: Some("attention.LayerNorm"),
        ..BERT
    };
    let mut draft = encoder::parse(json, &Keys { names, ..KEYS })?;
    // A constant in the reference, whatever pad_token_id says.
    encoder::positions_behind(1, json, &mut draft)?;
    let key = "relative_attention_num_buckets";
    let buckets = json.count(key, 1 << 20)?.unwrap_or(RELATIVE_BUCKETS);
    // The reference's formula has 32 of them, however long the stored table is.
    if buckets < RELATIVE_BUCKETS {
        return Err(json.invalid(key, &format!("expected at least {RELATIVE_BUCKETS}, found {buckets}")));
    }
    draft.relative_buckets = Some(buckets);
    Ok(draft)
}
