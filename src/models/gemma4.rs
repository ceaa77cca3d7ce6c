//! Gemma 4 (text): heads of other sizes in layers that see all, values that are normalised and may be the keys, layers at the end that
//! read the keys and values of earlier ones, per-layer embeddings, and a stored factor of each layer's output.

use super::base::{self, DEFAULTS, Defaults, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, MLX_PREFIX, SANDWICH_NORMS};
use super::draft::{Biases, Draft, ExpertBranch, KeySource, LayerInputs, Sizes, TensorNames};
use super::experts::{self, ExpertDefaults};
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{ExpertNames, Names, PerLayerConfig, Prefix, QkNorm, Rope, Scaling};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 9] = [
    ("vocab_size", 262_144),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 30),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 512),
];

const NAMES: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("model."), Prefix::of("model.language_model."), MLX_PREFIX],
        unused: &[
            "model.vision_tower.",
            "model.embed_vision.",
            "model.audio_tower.",
            "model.embed_audio.",
            "model.vision_embedder.",
        ],
        ..SANDWICH_NORMS.network
    },
    ..SANDWICH_NORMS
};

/// Kinds of layers, which are also those of their ropes.
const FULL: usize = 0;
const SLIDING: usize = 1;
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// What Gemma 4 and EmbeddingGemma 2 mean by keys that are absent.
pub struct Kinds {
    /// Heads of keys in layers that see all; `None` = those of the others, and the key counts only where values are the keys.
    pub full_kv_heads: Option<usize>,
    /// Whether the first quarter of a head turns in layers that see all, or all of it.
    pub turns_a_quarter: bool,
    /// Whether `sliding_window_pattern` says where layers see all, if no list does; else it is every sixth.
    pub reads_pattern: bool,
}

const GEMMA: Kinds = Kinds { full_kv_heads: None, turns_a_quarter: true, reads_pattern: false };

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&SIZES);
    let mut draft = common(json, NAMES, &GEMMA)?;
    if json.flag("enable_moe_block", false)? {
        draft.expert_branch = Some(expert_branch(json, &draft)?);
    }
    let dim = match json.count("hidden_size_per_layer_input", MAX_WIDTH)? {
        None if json.has("hidden_size_per_layer_input") => 0,
        dim => dim.unwrap_or(256),
    };
    if dim > 0 {
        let rows = json.count("vocab_size_per_layer_input", MAX_VOCAB)?.unwrap_or(262_144);
        if rows < draft.vocab_size {
            let message = format!("expected at least vocab_size {}, found {rows}", draft.vocab_size);
            return Err(json.unsupported("vocab_size_per_layer_input", &message));
        }
        draft.layer_inputs = Some(LayerInputs {
            embedding: PerLayerConfig {
                dim,
                projection: "per_layer_model_projection",
                norm: "per_layer_projection_norm",
                table: Some(("embed_tokens_per_layer", rows)),
            },
            gate: "per_layer_input_gate",
            down: "per_layer_projection",
            norm_out: "post_per_layer_input_norm",
        });
    }
    Ok(draft)
}

/// The experts are one tensor for each projection; the router reads the stream.
const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "router.proj",
    apart: None,
    stacks: Some(("experts.gate_up_proj", "experts.down_proj")),
    younger: None,
    mlx: ExpertNames {
        gate: "experts.switch_glu.gate_proj",
        up: "experts.switch_glu.up_proj",
        down: "experts.switch_glu.down_proj",
    },
    parameters: &[[("experts", "gate_up_proj"), ("experts", "down_proj")]],
    count: 0,
    top_k: 0,
};

fn expert_branch(json: &Json, draft: &Draft) -> Result<ExpertBranch> {
    json.size("num_experts", MAX_WIDTH)?;
    let top_k = json.size("top_k_experts", MAX_WIDTH)?;
    let json = &json.with("num_experts_per_tok", top_k.into());
    let mut experts = experts::parse(json, draft, &EXPERTS, json.size("moe_intermediate_size", MAX_WIDTH)?, true)?;
    experts.router_norm = Some("router.scale");
    experts.factors = Some("router.per_expert_scale");
    Ok(ExpertBranch {
        experts,
        norm_in: "pre_feedforward_layernorm_2",
        norm_out: "post_feedforward_layernorm_2",
        mlp_out: "post_feedforward_layernorm_1",
    })
}

/// The same without per-layer embeddings.
pub fn parse_unified(json: &Json) -> Result<Draft> {
    common(&json.with_defaults(&[("max_position_embeddings", 262_144)]).with_defaults(&SIZES), NAMES, &GEMMA)
}

/// All but per-layer embeddings.
pub fn common(json: &Json, names: TensorNames, of_kinds: &Kinds) -> Result<Draft> {
    let defaults =
        Defaults { names, activation_key: "hidden_activation", activation: "gelu_pytorch_tanh", tied: true, ..DEFAULTS };
    // Read here.
    let mut draft = base::parse(&json.with("per_layer_config", serde_json::Value::Null), &defaults)?;
    // Pictures that see all of themselves change nothing for text.
    if json.text("use_bidirectional_attention")?.is_some_and(|what| what != "vision") {
        return Err(json.unsupported("use_bidirectional_attention", "expected null or \"vision\""));
    }
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.embed_scale = (draft.hidden_size as f32).sqrt();
    draft.attn_scale = 1.0;
    draft.qk_norm = Some(QkNorm::Head);
    draft.v_norm = true;
    draft.logit_softcap = base::softcap(json, "final_logit_softcapping", None)?;
    draft.layer_scalar = Some("layer_scalar");
    layers(json, &mut draft, of_kinds)?;
    Ok(draft)
}

fn layers(json: &Json, draft: &mut Draft, of_kinds: &Kinds) -> Result<()> {
    let every = if of_kinds.reads_pattern { base::pattern(json, "sliding_window_pattern", 6)? } else { 6 };
    let count = draft.layers.len();
    let mut kinds = base::layer_types(json, count, &KINDS, |i| if (i + 1).is_multiple_of(every) { FULL } else { SLIDING })?;
    // As the reference has it whatever the list says.
    kinds[count - 1] = FULL;
    let sliding: Vec<bool> = kinds.iter().map(|kind| *kind == SLIDING).collect();
    base::window_some(json, draft, &sliding, 512)?;
    let shared = json.count("num_kv_shared_layers", MAX_LAYERS)?.unwrap_or(0);
    if shared >= count {
        return Err(json.invalid("num_kv_shared_layers", &format!("expected less than {count} layers, found {shared}")));
    }
    let (first, are_values) = (count - shared, json.flag("attention_k_eq_v", false)?);
    let wide = if json.flag("use_double_wide_mlp", false)? { 2 } else { 1 };
    let own = own_sizes(json, draft, &kinds, of_kinds.full_kv_heads, are_values)?;
    for (i, kind) in kinds.iter().enumerate() {
        let source = (0..first).rev().find(|&j| kinds[j] == *kind);
        let (keys, intermediate_size) = match source {
            _ if i < first => {
                (if are_values && *kind == FULL { KeySource::AreValues } else { KeySource::Own }, own[i].intermediate_size)
            }
            Some(source) if own[source] == own[i] => (KeySource::Of(source), own[i].intermediate_size * wide),
            _ => {
                let message =
                    format!("expected a layer before {first} of the kind and the sizes of layer {i}, whose keys it reads");
                return Err(json.invalid("num_kv_shared_layers", &message));
            }
        };
        let pattern = &mut draft.layers[i];
        (pattern.sizes, pattern.keys, pattern.rope) = (Some(Sizes { intermediate_size, ..own[i] }), keys, Some(*kind));
    }
    let head_dim = |kind: usize| {
        let dims: Vec<usize> = (0..count).filter(|&i| kinds[i] == kind).map(|i| own[i].head_dim).collect();
        match dims[..] {
            // A kind that there is no layer of.
            [] => Ok(draft.head_dim),
            [dim, ..] if dims.iter().all(|other| *other == dim) => Ok(dim),
            _ => Err(json.unsupported("per_layer_config", &format!("expected one head_dim of all layers of {}", KINDS[kind]))),
        }
    };
    draft.ropes = ropes(json, (head_dim(FULL)?, head_dim(SLIDING)?), of_kinds.turns_a_quarter)?;
    Ok(())
}

/// The sizes of each layer: as `per_layer_config` says, or as published files do, by the kind of layer.
fn own_sizes(json: &Json, draft: &Draft, kinds: &[usize], full_kv_heads: Option<usize>, are_values: bool) -> Result<Vec<Sizes>> {
    let usual = draft.sizes(&draft.layers[0]);
    let mut sizes = vec![usual; kinds.len()];
    if let Some(configs) = json.object("per_layer_config")? {
        for (number, config) in configs.value().as_object().into_iter().flatten() {
            let Some(config_of) = number.parse().ok().and_then(|i: usize| sizes.get_mut(i)) else {
                return Err(configs.invalid(number, &format!("expected the number of one of {} layers", kinds.len())));
            };
            let other =
                config.as_object().into_iter().flatten().map(|(key, _)| key).find(|key| !SIZE_KEYS.contains(&key.as_str()));
            let Some(config) = configs.object(number)? else { continue };
            if let Some(other) = other {
                return Err(config.unsupported(other, "expected none for one layer"));
            }
            if config.get("head_dim").is_some() {
                config_of.head_dim = config.size("head_dim", MAX_WIDTH)?;
            }
            if config.get("num_key_value_heads").is_some() {
                config_of.num_kv_heads = config.size("num_key_value_heads", MAX_WIDTH)?;
            }
        }
    } else {
        let head_dim = if json.has("global_head_dim") { json.size("global_head_dim", MAX_WIDTH)? } else { 512 };
        let given = json.count("num_global_key_value_heads", MAX_WIDTH)?;
        let kv_heads = if full_kv_heads.is_some() { given.or(full_kv_heads) } else { given.filter(|_| are_values) };
        for (sizes, _) in sizes.iter_mut().zip(kinds).filter(|(_, kind)| **kind == FULL) {
            *sizes = Sizes { head_dim, num_kv_heads: kv_heads.unwrap_or(usual.num_kv_heads), ..usual };
        }
    }
    match sizes.iter().find(|sizes| sizes.num_kv_heads == 0 || !draft.num_heads.is_multiple_of(sizes.num_kv_heads)) {
        Some(Sizes { num_kv_heads, .. }) => Err(json.invalid(
            "num_key_value_heads",
            &format!("expected a divisor of num_attention_heads {} in each layer, found {num_kv_heads}", draft.num_heads),
        )),
        None => Ok(sizes),
    }
}

const SIZE_KEYS: [&str; 2] = ["head_dim", "num_key_value_heads"];

/// One for full layers, one for those that slide.
fn ropes(json: &Json, head_dims: (usize, usize), turns_a_quarter: bool) -> Result<Vec<Rope>> {
    let thetas = (1e6, 1e4);
    if let Some((full, sliding)) = rope::nested(json, head_dims, thetas, &DEFAULTS)? {
        return Ok(vec![full, sliding]);
    }
    if json.object("rope_parameters")?.is_some() || json.object("rope_scaling")?.is_some() {
        return Err(json.unsupported("rope_parameters", "expected settings for full_attention and sliding_attention"));
    }
    let one = |head_dim: usize, theta: f64| rope::one(json, None, head_dim, theta, &DEFAULTS);
    let mut full = one(head_dims.0, thetas.0)?;
    if turns_a_quarter {
        full.scaling = Scaling::Proportional { turned: head_dims.0 / 8, factor: 1.0 };
    }
    Ok(vec![full, one(head_dims.1, thetas.1)?])
}
