//! What most families share: Llama's tensor names and keys, and the ways in which families say where windows are.

use super::draft::{Biases, BranchScales, Draft, Mlp, Order, Pattern, Source, TensorNames};
use super::rope;
use crate::error::{Error, Result};
use crate::load::Json;
use crate::nn::{Names, NormConfig, NormParts, Pairs, Prefix, QkNormPlace, Tying, Visible};
use crate::ops::{Activation, NormKind};

/// Bounds of what a configuration may ask for: far above any model, far below an overflow.
pub const MAX_WIDTH: usize = 1 << 20;
pub const MAX_LAYERS: usize = 1 << 12;
pub const MAX_VOCAB: usize = 1 << 26;
pub const MAX_CONTEXT: usize = 1 << 30;

/// Of a network that MLX's converter has put below one that also sees, its head as well.
pub const MLX_PREFIX: Prefix = Prefix { network: "language_model.model.", head: "language_model.", is_of_mlx: true };

/// Llama's names: those of most families.
pub const LLAMA: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("model.")],
        embed: "embed_tokens",
        positions: "",
        types: "",
        embed_norm: None,
        layer: "layers.{}",
        final_norm: Some("norm"),
        head: Some("lm_head"),
        unused: &[],
    },
    relative_bias: "",
    q: Source::Own("self_attn.q_proj"),
    k: Source::Own("self_attn.k_proj"),
    v: Source::Own("self_attn.v_proj"),
    o: Source::Own("self_attn.o_proj"),
    gate: Source::Own("mlp.gate_proj"),
    up: Source::Own("mlp.up_proj"),
    down: Source::Own("mlp.down_proj"),
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    attn_in: Some("input_layernorm"),
    attn_out: None,
    attn_sum: None,
    mlp_in: Some("post_attention_layernorm"),
    mlp_out: None,
    mlp_sum: None,
};

/// No norm before, one after each part (OLMo 2, EXAONE 4).
pub const POST_NORMS: TensorNames = TensorNames {
    attn_in: None,
    attn_out: Some("post_attention_layernorm"),
    mlp_in: None,
    mlp_out: Some("post_feedforward_layernorm"),
    ..LLAMA
};

/// Norms before and after each part (Gemma 2 and 3).
pub const SANDWICH_NORMS: TensorNames = TensorNames {
    attn_out: Some("post_attention_layernorm"),
    mlp_in: Some("pre_feedforward_layernorm"),
    mlp_out: Some("post_feedforward_layernorm"),
    ..LLAMA
};

/// Gate and up in one tensor (Phi-3, GLM).
pub const FUSED_MLP: TensorNames =
    TensorNames { gate: Source::Part("mlp.gate_up_proj", 0), up: Source::Part("mlp.gate_up_proj", 1), ..LLAMA };

/// What a family means by a key that is absent, and which keys it reads.
pub struct Defaults {
    pub names: TensorNames,
    pub eps_key: &'static str,
    pub eps: f64,
    pub activation_key: &'static str,
    pub activation: &'static str,
    pub theta: f64,
    /// `None` = hidden_size / num_attention_heads.
    pub head_dim: Option<usize>,
    /// `None` = as many as heads.
    pub kv_heads: Option<usize>,
    pub tied: bool,
    /// The default of `partial_rotary_factor`; `None` = the family does not read it.
    pub partial: Option<f64>,
    /// Of rotary positions.
    pub pairs: Pairs,
}

pub const DEFAULTS: Defaults = Defaults {
    names: LLAMA,
    eps_key: "rms_norm_eps",
    eps: 1e-6,
    activation_key: "hidden_act",
    activation: "silu",
    theta: 10_000.0,
    head_dim: None,
    kv_heads: None,
    tied: false,
    partial: None,
    pairs: Pairs::Halves,
};

/// A decoder of Llama's shape with the sizes of this configuration.
pub fn parse(json: &Json, defaults: &Defaults) -> Result<Draft> {
    refuse_what_changes_the_result(json)?;
    let hidden_size = json.size("hidden_size", MAX_WIDTH)?;
    let num_heads = json.size("num_attention_heads", MAX_WIDTH)?;
    let num_kv_heads = match json.count("num_key_value_heads", MAX_WIDTH)? {
        None if json.has("num_key_value_heads") => num_heads,
        None => defaults.kv_heads.unwrap_or(num_heads),
        Some(n) => n,
    };
    if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
        return Err(json.invalid(
            "num_key_value_heads",
            &format!("expected a divisor of num_attention_heads {num_heads}, found {num_kv_heads}"),
        ));
    }
    let head_dim = match json.count("head_dim", MAX_WIDTH)? {
        Some(0) => return Err(json.invalid("head_dim", "expected at least 1, found 0")),
        Some(n) => n,
        None if defaults.head_dim.is_some() && !json.has("head_dim") => defaults.head_dim.unwrap_or(1),
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            return Err(json.invalid(
                "hidden_size",
                &format!("expected a multiple of num_attention_heads {num_heads}, found {hidden_size}"),
            ));
        }
    };
    let num_layers = json.size("num_hidden_layers", MAX_LAYERS)?;
    let rope = rope::flat(json, head_dim, defaults)?;
    let trained = json.count("max_position_embeddings", MAX_CONTEXT)?.filter(|&n| n > 0).unwrap_or(2048);
    Ok(Draft {
        vocab_size: json.size("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size: json.size("intermediate_size", MAX_WIDTH)?,
        num_heads,
        num_kv_heads,
        head_dim,
        context_length: rope::context_length(&rope, trained),
        visible: Visible::Before,
        positions: None,
        token_types: None,
        relative_buckets: None,
        layers: vec![Pattern::PLAIN; num_layers],
        ropes: vec![rope],
        names: defaults.names,
        norm: NormConfig {
            kind: NormKind::Rms,
            eps: json.positive(defaults.eps_key, defaults.eps)? as f32,
            offset: 0.0,
            parts: NormParts::Weight,
        },
        biases: Biases::default(),
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
        mlp: Mlp::Gated,
        mlx_mlp: None,
        experts: None,
        expert_branch: None,
        activation: activation(json, defaults.activation_key, defaults.activation)?,
        order: Order::Sequential,
        layer_inputs: None,
        layer_scalar: None,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        tying: if json.flag("tie_word_embeddings", defaults.tied)? { Tying::Tied } else { Tying::Separate },
        projection: None,
    })
}

/// Keys of any family that ask for another network than the one built here.
pub fn refuse_what_changes_the_result(json: &Json) -> Result<()> {
    match json.get("per_layer_config") {
        Some(_) => Err(json.unsupported("per_layer_config", "expected none: such checkpoints are not supported")),
        None => Ok(()),
    }
}

/// An activation by transformers' name for it.
pub fn activation(json: &Json, key: &str, default: &str) -> Result<Activation> {
    let name = json.text(key)?.unwrap_or_else(|| default.to_string());
    Ok(match name.as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "tanh" => Activation::Tanh,
        "sigmoid" => Activation::Sigmoid,
        other => {
            return Err(Error::unsupported(format!(
                "config.json: {key}: {other:?} is not supported (silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2, tanh, sigmoid)"
            )));
        }
    })
}

/// Refuses another activation than SiLU, which is what convolutions of mixers and their gates have here.
pub fn needs_silu(json: &Json, key: &str) -> Result<()> {
    match activation(json, key, "silu")? {
        Activation::Silu => Ok(()),
        _ => Err(json.unsupported(key, "expected \"silu\": layers without attention have no other activation")),
    }
}

/// The window of a family where every layer has it: `sliding_window`, or `absent` where the key is absent.
pub fn window_everywhere(json: &Json, draft: &mut Draft, absent: Option<usize>) -> Result<()> {
    let window = if json.has("sliding_window") { window(json)? } else { absent };
    draft.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(())
}

/// `sliding_window`: at least 1, or `None` for null.
pub fn window(json: &Json) -> Result<Option<usize>> {
    match json.count("sliding_window", MAX_CONTEXT)? {
        Some(0) => Err(json.invalid("sliding_window", "expected at least 1 or null, found 0")),
        window => Ok(window),
    }
}

/// Which layers slide: `layer_types` where it is given, else `legacy` of each layer's number.
pub fn sliding_layers(json: &Json, layers: usize, legacy: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let kinds = layer_types(json, layers, &["full_attention", "sliding_attention"], |i| usize::from(legacy(i)))?;
    Ok(kinds.into_iter().map(|kind| kind == 1).collect())
}

/// Of each layer which of these kinds it is: by `layer_types` where it is given, else `legacy` of the layer's number.
pub fn layer_types(json: &Json, layers: usize, kinds: &[&str], legacy: impl Fn(usize) -> usize) -> Result<Vec<usize>> {
    let Some(types) = json.texts("layer_types")? else { return Ok((0..layers).map(legacy).collect()) };
    if types.len() != layers {
        return Err(json.invalid("layer_types", &format!("expected {layers} entries, found {}", types.len())));
    }
    let number = |kind: &String| {
        let found = kinds.iter().position(|known| known == kind);
        found.ok_or_else(|| {
            Error::unsupported(format!("config.json: layer_types: {kind:?} is not supported ({})", kinds.join(", ")))
        })
    };
    types.iter().map(number).collect()
}

/// Gives the layers that slide their window; `absent` is the family's default.
pub fn window_some(json: &Json, draft: &mut Draft, sliding: &[bool], absent: usize) -> Result<()> {
    let window = if json.has("sliding_window") { window(json)? } else { Some(absent) };
    if window.is_none() && sliding.contains(&true) {
        return Err(json.invalid("sliding_window", "expected a number for the layers that slide, found null"));
    }
    for (layer, &slides) in draft.layers.iter_mut().zip(sliding) {
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// A pattern length of old configurations: every `n`-th layer sees all, the others slide.
pub fn pattern(json: &Json, key: &str, default: usize) -> Result<usize> {
    match json.count(key, MAX_LAYERS)? {
        Some(0) => Err(json.invalid(key, "expected at least 1, found 0")),
        n => Ok(n.unwrap_or(default)),
    }
}

/// A number as F32, `default` where it is absent or null.
pub fn factor(json: &Json, key: &str, default: f64) -> Result<f32> {
    Ok(json.number(key)?.unwrap_or(default) as f32)
}

/// A cap: `absent` where the key is absent, none where it is null.
pub fn softcap(json: &Json, key: &str, absent: Option<f64>) -> Result<Option<f32>> {
    if !json.has(key) {
        return Ok(absent.map(|cap| cap as f32));
    }
    match json.number(key)? {
        Some(cap) if cap <= 0.0 => Err(json.invalid(key, &format!("expected a number above 0 or null, found {cap}"))),
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}
