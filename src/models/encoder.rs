//! What encoders share: BERT's tensor names and keys, and a network in which every token sees every other.

use super::base::{self, MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::draft::{Biases, BranchScales, Draft, Mlp, Order, Pattern, Source, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, NormConfig, NormParts, Positions, Prefix, QkNormPlace, Tying, Visible};
use crate::ops::NormKind;

/// Heads of the tasks that an encoder was trained for, and numbers that old checkpoints carry along: none of it makes a vector.
pub const HEADS: &[&str] = &[
    "pooler.",
    "cls.",
    "lm_head.",
    "head.",
    "decoder.",
    "dense.",
    "classifier.",
    "pre_classifier.",
    "qa_outputs.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "embeddings.position_ids",
];

/// BERT's names: those of most encoders.
pub const BERT: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("bert.")],
        embed: "embeddings.word_embeddings",
        positions: "embeddings.position_embeddings",
        types: "embeddings.token_type_embeddings",
        embed_norm: Some("embeddings.LayerNorm"),
        layer: "encoder.layer.{}",
        final_norm: None,
        head: None,
        unused: HEADS,
    },
    relative_bias: "",
    q: Source::Own("attention.self.query"),
    k: Source::Own("attention.self.key"),
    v: Source::Own("attention.self.value"),
    o: Source::Own("attention.output.dense"),
    gate: Source::Own(""),
    up: Source::Own("intermediate.dense"),
    down: Source::Own("output.dense"),
    q_norm: "",
    k_norm: "",
    attn_in: None,
    attn_out: None,
    attn_sum: Some("attention.output.LayerNorm"),
    mlp_in: None,
    mlp_out: None,
    mlp_sum: Some("output.LayerNorm"),
};

/// What a family calls its sizes, and what it means by keys that are absent.
pub struct Keys {
    pub names: TensorNames,
    pub hidden_size: &'static str,
    pub num_heads: &'static str,
    pub num_layers: &'static str,
    pub intermediate_size: &'static str,
    pub context: &'static str,
    pub activation: &'static str,
    pub eps: &'static str,
}

pub const KEYS: Keys = Keys {
    names: BERT,
    hidden_size: "hidden_size",
    num_heads: "num_attention_heads",
    num_layers: "num_hidden_layers",
    intermediate_size: "intermediate_size",
    context: "max_position_embeddings",
    activation: "hidden_act",
    eps: "layer_norm_eps",
};

/// An encoder of BERT's shape: norms after the sums, biases everywhere, a table of positions.
pub fn parse(json: &Json, keys: &Keys) -> Result<Draft> {
    base::refuse_what_changes_the_result(json)?;
    for key in ["is_decoder", "add_cross_attention"] {
        if json.flag(key, false)? {
            return Err(json.unsupported(key, "expected false: this network reads whole texts"));
        }
    }
    let hidden_size = json.size(keys.hidden_size, MAX_WIDTH)?;
    let num_heads = json.size(keys.num_heads, MAX_WIDTH)?;
    if !hidden_size.is_multiple_of(num_heads) {
        let message = format!("expected a multiple of {} {num_heads}, found {hidden_size}", keys.num_heads);
        return Err(json.invalid(keys.hidden_size, &message));
    }
    let head_dim = hidden_size / num_heads;
    if json.count("head_dim", MAX_WIDTH)?.is_some_and(|found| found != head_dim) {
        return Err(json.unsupported("head_dim", &format!("expected {head_dim}")));
    }
    let rows = match json.count(keys.context, MAX_CONTEXT)? {
        Some(0) => return Err(json.invalid(keys.context, "expected at least 1, found 0")),
        rows => rows.unwrap_or(512),
    };
    Ok(Draft {
        vocab_size: json.size("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size: json.size(keys.intermediate_size, MAX_WIDTH)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        context_length: rows,
        visible: Visible::All,
        positions: Some(Positions { rows, padding: None }),
        token_types: None,
        relative_buckets: None,
        layers: vec![Pattern { rope: None, ..Pattern::PLAIN }; json.size(keys.num_layers, MAX_LAYERS)?],
        ropes: Vec::new(),
        names: keys.names,
        norm: NormConfig {
            kind: NormKind::Layer,
            eps: json.positive(keys.eps, 1e-12)? as f32,
            offset: 0.0,
            parts: NormParts::WeightAndBias,
        },
        biases: Biases { qkv: true, o: true, mlp: true, head: false },
        qk_norm: None,
        qk_norm_place: QkNormPlace::BeforeRope,
        v_norm: false,
        sinks: None,
        output_gate: None,
        delta_net: None,
        short_conv: None,
        mamba2: None,
        scales: BranchScales::NONE,
        attn_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_softcap: None,
        qkv_clip: None,
        mlp: Mlp::Plain,
        mlx_mlp: None,
        experts: None,
        expert_branch: None,
        activation: base::activation(json, keys.activation, "gelu")?,
        order: Order::Sequential,
        layer_inputs: None,
        layer_scalar: None,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        tying: Tying::Separate,
        projection: None,
    })
}

/// The rows of the table of token types, 0 = none.
pub fn token_types(json: &Json) -> Result<Option<usize>> {
    Ok(Some(json.count("type_vocab_size", MAX_VOCAB)?.unwrap_or(2)).filter(|&rows| rows > 0))
}

/// Only positions of their own: the other kinds of early versions are gone from the reference too.
pub fn refuse_relative_positions(json: &Json) -> Result<()> {
    match json.text("position_embedding_type")? {
        Some(kind) if kind != "absolute" => Err(json.unsupported("position_embedding_type", "expected \"absolute\"")),
        _ => Ok(()),
    }
}

/// The padding's id, from behind which RoBERTa's positions count; 0 is one.
pub fn padding(json: &Json) -> Result<usize> {
    match json.count("pad_token_id", MAX_VOCAB)? {
        Some(id) => Ok(id),
        None if json.has("pad_token_id") => Err(json.invalid("pad_token_id", "expected a whole number, found null")),
        None => Ok(1),
    }
}

/// Positions that count from behind the id `padding`.
pub fn positions_behind(padding: usize, json: &Json, draft: &mut Draft) -> Result<()> {
    let rows = draft.context_length;
    if rows <= padding + 1 {
        let message = format!("expected more than the padding's id {padding} and one, found {rows}");
        return Err(json.invalid("max_position_embeddings", &message));
    }
    draft.positions = Some(Positions { rows, padding: Some(padding as u32) });
    draft.context_length = rows - padding - 1;
    Ok(())
}
