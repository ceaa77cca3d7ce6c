//! Nemotron-H and Nemotron 3: one operation a layer, Mamba 2, attention without a position embedding, an MLP of squared ReLU or experts of
//! it, which may work on rows of another width.

use super::base::{self, DEFAULTS, Defaults, LLAMA, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Alone, Draft, Mixer, Mlp, Pattern, Source, TensorNames};
use super::experts::{self, ExpertDefaults};
use super::mamba2::{self, Mamba2Keys};
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, DenseConfig, ExpertNames, LatentConfig, Names, Prefix, SharedExpertConfig, Slot};
use crate::ops::Scoring;

const NAMES: TensorNames = TensorNames {
    network: Names {
        prefixes: &[Prefix::of("backbone."), Prefix::of("model.")],
        embed: "embeddings",
        final_norm: Some("norm_f"),
        // Layers that predict further tokens.
        unused: &["mtp."],
        ..LLAMA.network
    },
    q: Source::Own("mixer.q_proj"),
    k: Source::Own("mixer.k_proj"),
    v: Source::Own("mixer.v_proj"),
    o: Source::Own("mixer.o_proj"),
    up: Source::Own("mixer.up_proj"),
    down: Source::Own("mixer.down_proj"),
    attn_in: Some("norm"),
    mlp_in: Some("norm"),
    ..LLAMA
};

const EXPERTS: ExpertDefaults = ExpertDefaults {
    router: "mixer.gate",
    apart: Some(ExpertNames { gate: "", up: "mixer.experts.{}.up_proj", down: "mixer.experts.{}.down_proj" }),
    stacks: Some(("mixer.experts.up_proj", "mixer.experts.down_proj")),
    younger: None,
    mlx: ExpertNames { gate: "", up: "mixer.switch_mlp.fc1", down: "mixer.switch_mlp.fc2" },
    parameters: &[[("mixer.experts", "up_proj"), ("mixer.experts", "down_proj")]],
    count: 8,
    top_k: 2,
};

const KEYS: Mamba2Keys = Mamba2Keys {
    heads: "mamba_num_heads",
    groups: "n_groups",
    state: "ssm_state_size",
    taps: "conv_kernel",
    conv_bias: "use_conv_bias",
    bias: "use_bias",
};

/// What a configuration leaves out.
const SIZES: [(&str, usize); 15] = [
    ("vocab_size", 131_072),
    ("hidden_size", 4096),
    ("intermediate_size", 21_504),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 8),
    ("max_position_embeddings", 4096),
    ("mamba_num_heads", 128),
    ("mamba_head_dim", 64),
    ("ssm_state_size", 128),
    ("n_groups", 8),
    ("conv_kernel", 4),
    ("moe_intermediate_size", 7688),
    ("moe_shared_expert_intermediate_size", 7688),
    ("n_group", 1),
    ("topk_group", 1),
];

/// Other names of keys, which win.
const SPELLINGS: [(&str, &str); 5] = [
    ("mamba_n_groups", "n_groups"),
    ("mamba_d_conv", "conv_kernel"),
    ("mamba_dt_min", "time_step_min"),
    ("mamba_conv_bias", "use_conv_bias"),
    ("n_routed_experts", "num_local_experts"),
];

/// Layers as a configuration calls them: published ones by a letter, or by the names that transformers 5.0 had.
const KINDS: [(&str, char); 6] =
    [("linear_attention", 'M'), ("full_attention", '*'), ("mlp", '-'), ("moe", 'E'), ("mamba", 'M'), ("attention", '*')];

pub fn parse(json: &Json) -> Result<Draft> {
    let mut json = json.clone();
    for (own, usual) in SPELLINGS {
        if let Some(value) = json.get(own) {
            json = json.with(usual, value.value().clone());
        }
    }
    let json = json.with_defaults(&SIZES);
    let kinds = kinds(&json)?;
    let json = &json.with("num_hidden_layers", kinds.len().into());
    let defaults = Defaults {
        names: NAMES,
        eps_key: "layer_norm_epsilon",
        eps: 1e-5,
        activation_key: "mlp_hidden_act",
        activation: "relu2",
        head_dim: Some(128),
        ..DEFAULTS
    };
    let mut draft = base::parse(json, &defaults)?;
    draft.mlp = Mlp::Plain;
    draft.biases.mlp = json.flag("mlp_bias", false)?;
    for (layer, kind) in draft.layers.iter_mut().zip(&kinds) {
        let (mixer, alone) = match kind {
            'M' => (Mixer::Mamba2, Alone::None),
            '*' => (Mixer::Attention, Alone::None),
            'E' => (Mixer::None, Alone::Experts),
            _ => (Mixer::None, Alone::Mlp),
        };
        *layer = Pattern { mixer, alone, rope: None, ..*layer };
    }
    base::needs_silu(json, "mamba_hidden_act")?;
    let head_dim = json.size("mamba_head_dim", MAX_WIDTH)?;
    let mut mamba = mamba2::parse(json, (&KEYS, &mamba2::MIXER), (draft.hidden_size, head_dim))?;
    mamba.step_limits = (base::factor(json, "time_step_min", 0.001)?, f32::INFINITY);
    if mamba.step_limits.0 < 0.0 {
        return Err(json.invalid("time_step_min", &format!("expected at least 0, found {}", mamba.step_limits.0)));
    }
    draft.mamba2 = Some(mamba);
    if kinds.contains(&'E') {
        add_experts(json, &mut draft)?;
    }
    Ok(draft)
}

/// The letter of each layer.
fn kinds(json: &Json) -> Result<Vec<char>> {
    let named = match json.texts("layers_block_type")? {
        Some(named) => Some(named),
        None => json.texts("layer_types")?,
    };
    let letters = match (named, json.text("hybrid_override_pattern")?) {
        (Some(named), _) => {
            let letter = |name: &String| KINDS.iter().find(|(known, _)| known == name).map(|(_, letter)| *letter);
            named.iter().map(letter).collect::<Option<Vec<char>>>().ok_or_else(|| {
                let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
                json.unsupported("layers_block_type", &format!("expected a list of {}", known.join(", ")))
            })?
        }
        (None, Some(letters)) => letters.chars().collect(),
        (None, None) => return Err(json.invalid("layers_block_type", "expected a list of kinds of layers, found nothing")),
    };
    if letters.iter().any(|letter| !KINDS.iter().any(|(_, known)| known == letter)) {
        return Err(json.unsupported("hybrid_override_pattern", "expected letters M, *, - and E"));
    }
    if !letters.iter().any(|letter| ['M', '*'].contains(letter)) {
        return Err(
            json.unsupported("layers_block_type", "expected a layer of Mamba 2 or attention: tokens would not see each other")
        );
    }
    if !(1..=MAX_LAYERS).contains(&letters.len()) {
        return Err(json.invalid("layers_block_type", &format!("expected 1 to {MAX_LAYERS} layers, found {}", letters.len())));
    }
    Ok(letters)
}

fn add_experts(json: &Json, draft: &mut Draft) -> Result<()> {
    let normalised = json.flag("norm_topk_prob", true)?;
    let mut experts = experts::parse(json, draft, &EXPERTS, json.size("moe_intermediate_size", MAX_WIDTH)?, normalised)?;
    experts.scoring = Scoring::Sigmoid;
    experts.normalise = normalised.then_some(1e-20);
    experts.scale = base::factor(json, "routed_scaling_factor", 1.0)?;
    experts.bias = Some("mixer.gate.e_score_correction_bias");
    experts.biases = Bias::None;
    experts.is_gated = false;
    let (groups, chosen) = (json.size("n_group", experts.count)?, json.size("topk_group", MAX_WIDTH)?);
    if !experts.count.is_multiple_of(groups) || chosen > groups || experts.count / groups * chosen < experts.top_k {
        let expected = format!("groups of {} experts, with {} in those that are chosen", experts.count, experts.top_k);
        return Err(json.invalid("n_group", &format!("expected {expected}, found {chosen} of {groups}")));
    }
    experts.groups = (groups, chosen);
    if let Some(size) = json.count("moe_latent_size", MAX_WIDTH)?.filter(|size| *size > 0) {
        let (input, output) =
            (Slot::whole("mixer.fc1_latent_proj", size), Slot::whole("mixer.fc2_latent_proj", draft.hidden_size));
        experts.latent = Some(LatentConfig { size, input, output, bias: draft.biases.mlp.into() });
    }
    let size = json.size("moe_shared_expert_intermediate_size", MAX_WIDTH)?;
    experts.shared = Some(SharedExpertConfig {
        dense: DenseConfig {
            intermediate_size: size,
            gate: None,
            up: Slot::whole("mixer.shared_experts.up_proj", size),
            down: Slot::whole("mixer.shared_experts.down_proj", draft.hidden_size),
            mlx: None,
            bias: draft.biases.mlp.into(),
            activation: draft.activation,
            clamp: None,
            gate_scale: 1.0,
        },
        gate: None,
    });
    draft.experts = Some(experts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(more: &Value) -> Result<Draft> {
        let mut config = json!({
            "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8,
            "vocab_size": 8, "mamba_num_heads": 2, "mamba_head_dim": 4, "n_groups": 1, "n_routed_experts": 4,
            "moe_intermediate_size": 8, "moe_shared_expert_intermediate_size": 8,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&Json::parse("config.json", &config.to_string())?)
    }

    #[test]
    fn layers_go_by_letters_or_by_names_old_and_new() {
        let mixers = |more: &Value| parsed(more).unwrap().layers.iter().map(|layer| layer.mixer).collect::<Vec<_>>();
        let want = [Mixer::Mamba2, Mixer::None, Mixer::Attention, Mixer::None];
        for kinds in [["linear_attention", "moe", "full_attention", "mlp"], ["mamba", "moe", "attention", "mlp"]] {
            assert_eq!(mixers(&json!({ "layers_block_type": kinds })), want);
            assert_eq!(mixers(&json!({ "layer_types": kinds })), want);
        }
        assert_eq!(mixers(&json!({ "hybrid_override_pattern": "ME*-" })), want);
    }

    #[test]
    fn layers_that_see_each_token_alone_are_no_model() {
        for pattern in ["-", "E", "--E"] {
            let error = parsed(&json!({ "hybrid_override_pattern": pattern })).unwrap_err();
            assert!(error.message().contains("tokens would not see each other"), "{error}");
        }
    }

    #[test]
    fn projections_around_latent_experts_have_biases_as_mlps_have() {
        for (has, bias) in [(true, Bias::Stored), (false, Bias::None)] {
            let draft = parsed(&json!({ "hybrid_override_pattern": "ME", "moe_latent_size": 4, "mlp_bias": has })).unwrap();
            assert_eq!(draft.experts.unwrap().latent.unwrap().bias, bias);
        }
    }
}
