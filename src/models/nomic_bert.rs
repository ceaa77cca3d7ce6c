//! Nomic BERT: rotary positions and a gated MLP in BERT's order of norms; read with the keys of transformers and with those of the
//! code that its first checkpoints came with.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::{Biases, Draft, Mlp, Pattern, Source, TensorNames};
use super::encoder::{self, BERT, KEYS, Keys};
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Names, Pairs, Prefix, Rope, Scaling};
use crate::ops::Activation;

const NAMES: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("nomic_bert."), Prefix::of("bert.")],
        embed_norm: Some("emb_ln"),
        layer: "encoder.layers.{}",
        ..BERT.network
    },
    q: Source::Part("attn.Wqkv", 0),
    k: Source::Part("attn.Wqkv", 1),
    v: Source::Part("attn.Wqkv", 2),
    o: Source::Own("attn.out_proj"),
    gate: Source::Own("mlp.fc12"),
    up: Source::Own("mlp.fc11"),
    down: Source::Own("mlp.fc2"),
    attn_sum: Some("norm1"),
    mlp_sum: Some("norm2"),
    ..BERT
};

pub fn parse(json: &Json) -> Result<Draft> {
    let native = !json.has("n_embd");
    let mut draft = if native { with_native_keys(json)? } else { with_first_keys(json)? };
    draft.token_types = encoder::token_types(json)?;
    draft.positions = None;
    draft.mlp = Mlp::Gated;
    draft.layers.iter_mut().for_each(|layer| *layer = Pattern::PLAIN);
    Ok(draft)
}

fn with_native_keys(json: &Json) -> Result<Draft> {
    let mut draft = encoder::parse(json, &Keys { names: NAMES, ..KEYS })?;
    if !json.has("max_position_embeddings") {
        draft.context_length = 2048;
    }
    draft.activation = base::activation(json, "hidden_act", "silu")?;
    draft.biases = Biases::default();
    draft.ropes = vec![rope::flat(json, draft.head_dim, &Defaults { theta: 1000.0, ..DEFAULTS })?];
    Ok(draft)
}

fn with_first_keys(json: &Json) -> Result<Draft> {
    for key in ["causal", "prenorm", "parallel_block", "use_rms_norm"] {
        if json.flag(key, false)? {
            return Err(json.unsupported(key, "expected false"));
        }
    }
    for key in ["rotary_emb_scale_base", "rotary_scaling_factor", "moe_every_n_layers", "num_experts"] {
        if json.number(key)?.is_some_and(|x| x != 0.0) {
            return Err(json.unsupported(key, "expected none"));
        }
    }
    let keys = Keys {
        names: NAMES,
        hidden_size: "n_embd",
        num_heads: "n_head",
        num_layers: "n_layer",
        intermediate_size: "n_inner",
        context: "n_positions",
        // Read below: the gate's function is part of its name.
        activation: "",
        eps: "layer_norm_epsilon",
    };
    let mut draft = encoder::parse(json, &keys)?;
    draft.activation = match json.text("activation_function")?.as_deref() {
        Some("swiglu") => Activation::Silu,
        Some("geglu") => Activation::Gelu,
        _ => return Err(json.unsupported("activation_function", "expected \"swiglu\" or \"geglu\"")),
    };
    let qkv = json.flag("qkv_proj_bias", true)?;
    let (up, down) = (json.flag("mlp_fc1_bias", true)?, json.flag("mlp_fc2_bias", true)?);
    if up != down {
        return Err(json.unsupported("mlp_fc2_bias", &format!("expected mlp_fc1_bias {up}")));
    }
    draft.biases = Biases { qkv, o: qkv, mlp: up, head: false };
    let dim = draft.head_dim as f64 * json.positive("rotary_emb_fraction", 1.0)?;
    if dim < 2.0 || dim > draft.head_dim as f64 || dim % 2.0 != 0.0 {
        return Err(json.invalid("rotary_emb_fraction", &format!("expected an even part of each head, found {dim} values")));
    }
    draft.ropes = vec![Rope {
        theta: json.positive("rotary_emb_base", 10_000.0)?,
        dim: dim as usize,
        pairs: if json.flag("rotary_emb_interleaved", false)? { Pairs::Neighbours } else { Pairs::Halves },
        scaling: Scaling::Default,
        query_growth: None,
    }];
    Ok(draft)
}
