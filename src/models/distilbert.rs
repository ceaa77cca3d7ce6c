//! DistilBERT: BERT without token types, under names and keys of its own.

use super::draft::{Draft, Source, TensorNames};
use super::encoder::{self, BERT, KEYS, Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, Prefix};

pub fn parse(json: &Json) -> Result<Draft> {
    let names = TensorNames {
        network: Names { prefixes: const { &[Prefix::of("distilbert.")] }, layer: "transformer.layer.{}", ..BERT.network },
        q: Source::Own("attention.q_lin"),
        k: Source::Own("attention.k_lin"),
        v: Source::Own("attention.v_lin"),
        o: Source::Own("attention.out_lin"),
        attn_sum: Some("sa_layer_norm"),
        up: Source::Own("ffn.lin1"),
        down: Source::Own("ffn.lin2"),
        mlp_sum: Some("output_layer_norm"),
        ..BERT
    };
    let keys = Keys {
        names,
        hidden_size: "dim",
        num_heads: "n_heads",
        num_layers: "n_layers",
        intermediate_size: "hidden_dim",
        activation: "activation",
        ..KEYS
    };
    let mut draft = encoder::parse(json, &keys)?;
    // A constant in the reference.
    draft.norm.eps = 1e-12;
    Ok(draft)
}
