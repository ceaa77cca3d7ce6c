//! What a network is made of, in neutral terms. A model family is a function from config.json to this.

use super::Rope;
use crate::ops::{Activation, NormKind};

/// One layer's place in a pattern of windows and position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Keys nearer than this are seen, the query's own being at 0; `None` = all.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None` = no position embedding.
    pub rope: Option<usize>,
    /// Whether the norm before attention is there, where the family has one (ModernBERT's first layer lacks it).
    pub attn_in: bool,
}

impl Layer {
    /// A layer that sees all, with the first rope.
    pub const PLAIN: Self = Self { window: None, rope: Some(0), attn_in: true };
}

/// A table of learned positions, added to the embedding of each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    pub rows: usize,
    /// RoBERTa's way: positions count from behind the padding's id, and a padding token in the text has that id as its position.
    pub padding: Option<u32>,
}

/// Where a projection is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A tensor of its own.
    Own(&'static str),
    /// Part `n` of a tensor that holds q, k and v, or gate and up, one after another.
    Part(&'static str, usize),
}

/// The names of the stored tensors, without `.weight`; `None` = the family has no such tensor. `{}` is the layer's number.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What stands before all names but the head's, in a checkpoint of a network with a task's head; the first is usual.
    pub prefixes: &'static [&'static str],
    pub embed: &'static str,
    /// Read where there is a table of positions.
    pub positions: &'static str,
    /// Read where there are token types.
    pub types: &'static str,
    pub embed_norm: Option<&'static str>,
    /// Read where attention has a bias by distance.
    pub relative_bias: &'static str,
    pub layer: &'static str,
    pub final_norm: Option<&'static str>,
    pub head: Option<&'static str>,
    /// How names of tensors begin that have no part in this network: heads of tasks that it was trained for.
    pub unused: &'static [&'static str],
    pub q: Source,
    pub k: Source,
    pub v: Source,
    pub o: Source,
    /// Read where the MLP is gated.
    pub gate: Source,
    pub up: Source,
    pub down: Source,
    /// Read where there is a q/k norm.
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// Before attention.
    pub attn_in: Option<&'static str>,
    /// After attention, before the residual sum.
    pub attn_out: Option<&'static str>,
    /// After the residual sum of attention.
    pub attn_sum: Option<&'static str>,
    /// Before the MLP.
    pub mlp_in: Option<&'static str>,
    /// After the MLP, before the residual sum.
    pub mlp_out: Option<&'static str>,
    /// After the residual sum of the MLP.
    pub mlp_sum: Option<&'static str>,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head, all with the same weights.
    Head,
    /// The whole projection at once.
    Width,
    /// Each head with its own weights, stored as one tensor `(heads, head_dim)`.
    EachHead,
    /// The same, stored as one tensor a head: `….norms.N.weight`.
    EachHeadApart,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bias {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
    pub head: bool,
}

/// A decoder or an encoder, every choice made.
#[derive(Debug, Clone)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Tokens.
    pub context_length: usize,
    /// A token sees those before it, else all.
    pub causal: bool,
    pub positions: Option<Positions>,
    /// Rows of the table of token types, of which the first is added to every token.
    pub token_types: Option<usize>,
    /// Rows of the table of T5's buckets of distances: each has a value a head that is added to the scores.
    pub relative_buckets: Option<usize>,
    pub layers: Vec<Layer>,
    pub ropes: Vec<Rope>,
    pub names: Names,
    pub norm: NormKind,
    pub eps: f32,
    /// Added to stored norm weights (Gemma stores `w - 1`).
    pub norm_offset: f32,
    pub norm_weight: bool,
    pub norm_bias: bool,
    pub bias: Bias,
    pub qk_norm: Option<QkNorm>,
    pub qk_norm_after_rope: bool,
    /// Factor of the scores.
    pub attn_scale: f32,
    pub attn_softcap: Option<f32>,
    /// Bound of the values of q, k and v.
    pub qkv_clip: Option<f32>,
    /// `down(act(gate) · up)`, else `down(act(up))`.
    pub gated: bool,
    pub activation: Activation,
    /// Attention and MLP read the same input.
    pub parallel: bool,
    pub embed_scale: f32,
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    /// The embedding is the output matrix as well.
    pub tied: bool,
}
