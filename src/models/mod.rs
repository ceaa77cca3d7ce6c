//! The model families: one small file each, and the table of them. A family is a function from config.json to the neutral
//! configuration of the one network; nothing here sees a tensor.
//!
//! Every default is that of transformers 5.23, whose key names are read in both their styles.

mod draft;
mod base;
mod classifier;
mod gguf;
mod encoder;
mod experts;
mod positions;
mod rope;

mod arcee;
mod bert;
mod cohere;
mod cohere2;
mod distilbert;
mod embedding_gemma2;
mod ernie4_5;
mod eurobert;
mod exaone4;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gemma4;
mod glm;
mod glm4;
mod gpt_oss;
mod granite;
mod granite_hybrid;
mod granite_moe;
mod granite_swa;
mod helium;
mod hunyuan_v1_dense;
mod lfm2;
mod lfm2_moe;
mod lfm3;
mod llama;
mod mamba2;
mod ministral3;
mod mistral;
mod mixtral;
mod modernbert;
mod mpnet;
mod multimodal;
mod nemotron;
mod nemotron_h;
mod nomic_bert;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod roberta;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod vaultgemma;

use draft::{Draft, Mixer};

use crate::error::Result;
use crate::load::Json;
use crate::nn::{Config, Visible};
pub use base::MAX_CONTEXT;
pub use classifier::{Classifier, ClassifierLayer, classifier, is_classifier};
pub use gguf::{GgufModel, GgufProjection, adapter_origins, is_unused, may_have_output, parse_gguf};

/// A family of models.
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    pub parse: fn(&Json) -> Result<Draft>,
}

/// Every family that this library runs.
pub static FAMILIES: &[Family] = &[
    Family { model_type: "arcee", parse: arcee::parse },
    Family { model_type: "bert", parse: bert::parse },
    Family { model_type: "camembert", parse: roberta::parse },
    Family { model_type: "cohere", parse: cohere::parse },
    Family { model_type: "cohere2", parse: cohere2::parse },
    Family { model_type: "distilbert", parse: distilbert::parse },
    Family { model_type: "embedding_gemma2", parse: embedding_gemma2::parse_nested },
    Family { model_type: "embedding_gemma2_text", parse: embedding_gemma2::parse },
    Family { model_type: "ernie4_5", parse: ernie4_5::parse },
    Family { model_type: "eurobert", parse: eurobert::parse },
    Family { model_type: "exaone4", parse: exaone4::parse },
    Family { model_type: "falcon_h1", parse: falcon_h1::parse },
    Family { model_type: "gemma", parse: gemma::parse },
    Family { model_type: "gemma2", parse: gemma2::parse },
    Family { model_type: "gemma3", parse: multimodal::parse },
    Family { model_type: "gemma3_text", parse: gemma3_text::parse },
    Family { model_type: "gemma4", parse: multimodal::parse },
    Family { model_type: "gemma4_text", parse: gemma4::parse },
    Family { model_type: "gemma4_unified", parse: multimodal::parse },
    Family { model_type: "gemma4_unified_text", parse: gemma4::parse_unified },
    Family { model_type: "glm", parse: glm::parse },
    Family { model_type: "glm4", parse: glm4::parse },
    Family { model_type: "gpt_oss", parse: gpt_oss::parse },
    Family { model_type: "granite", parse: granite::parse },
    Family { model_type: "granite_swa", parse: granite_swa::parse },
    Family { model_type: "granitemoe", parse: granite_moe::parse },
    Family { model_type: "granitemoe_swa", parse: granite_moe::parse_with_windows },
    Family { model_type: "granitemoehybrid", parse: granite_hybrid::parse },
    Family { model_type: "granitemoeshared", parse: granite_moe::parse },
    Family { model_type: "helium", parse: helium::parse },
    Family { model_type: "hunyuan_v1_dense", parse: hunyuan_v1_dense::parse },
    Family { model_type: "lfm2", parse: lfm2::parse },
    Family { model_type: "lfm2_moe", parse: lfm2_moe::parse },
    Family { model_type: "lfm3", parse: lfm3::parse },
    Family { model_type: "llama", parse: llama::parse },
    Family { model_type: "ministral3", parse: ministral3::parse },
    Family { model_type: "mistral", parse: mistral::parse },
    Family { model_type: "mistral3", parse: multimodal::parse },
    Family { model_type: "mixtral", parse: mixtral::parse },
    Family { model_type: "modernbert", parse: modernbert::parse },
    Family { model_type: "mpnet", parse: mpnet::parse },
    Family { model_type: "nemotron", parse: nemotron::parse },
    Family { model_type: "nemotron_h", parse: nemotron_h::parse },
    Family { model_type: "nomic_bert", parse: nomic_bert::parse },
    Family { model_type: "olmo", parse: olmo::parse },
    Family { model_type: "olmo2", parse: olmo2::parse },
    Family { model_type: "olmo3", parse: olmo3::parse },
    Family { model_type: "olmoe", parse: olmoe::parse },
    Family { model_type: "phi", parse: phi::parse },
    Family { model_type: "phi3", parse: phi3::parse },
    Family { model_type: "qwen2", parse: qwen2::parse },
    Family { model_type: "qwen3", parse: qwen3::parse },
    Family { model_type: "qwen3_5", parse: multimodal::parse },
    Family { model_type: "qwen3_5_moe", parse: multimodal::parse },
    Family { model_type: "qwen3_5_moe_text", parse: qwen3_5_moe::parse },
    Family { model_type: "qwen3_5_text", parse: qwen3_5::parse },
    Family { model_type: "qwen3_moe", parse: qwen3_moe::parse },
    Family { model_type: "roberta", parse: roberta::parse },
    Family { model_type: "seed_oss", parse: seed_oss::parse },
    Family { model_type: "smollm3", parse: smollm3::parse },
    Family { model_type: "stablelm", parse: stablelm::parse },
    Family { model_type: "starcoder2", parse: starcoder2::parse },
    Family { model_type: "vaultgemma", parse: vaultgemma::parse },
    Family { model_type: "xlm-roberta", parse: roberta::parse },
];

/// The architectures that the library knows, as `model_type` of config.json has them, in alphabetical order.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The network that a config.json describes.
///
/// # Errors
/// `ErrorKind::Unsupported` for an unknown `model_type`, listing those that are known, and for settings that change the result
/// and are not implemented; `ErrorKind::Format` naming a field that is missing or out of range.
pub fn parse(json: &Json) -> Result<(&'static Family, Config)> {
    let (family, draft) = draft(json)?;
    Ok((family, draft.build()))
}

/// What config.json becomes for weights that MLX's converter wrote, where it changes more of a family than how tensors are called and laid
/// out; `None` where it does not.
///
/// # Errors
/// As [`parse`].
pub fn folded_by_mlx(json: &Json) -> Result<Option<Json>> {
    match json.text("model_type")?.as_deref() {
        Some("falcon_h1") => falcon_h1::folded(json).map(Some),
        _ => Ok(None),
    }
}

/// Whether multipliers of the family are a part of the weights, so that what was trained beside them fits no more.
///
/// # Errors
/// `ErrorKind::Format` for a mark that is neither true nor false.
pub fn is_multiplied(json: &Json) -> Result<bool> {
    json.flag(falcon_h1::MULTIPLIED, false)
}

fn draft(json: &Json) -> Result<(&'static Family, Draft)> {
    let model_type = json.text("model_type")?.ok_or_else(|| json.invalid("model_type", "expected text, found nothing"))?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        let known = architectures().collect::<Vec<_>>().join(", ");
        return Err(json.unsupported("model_type", &format!("expected one of {known}")));
    };
    let positions = positions::of(family.model_type).map(|positions| ("max_position_embeddings", positions));
    let json = &json.with_defaults(positions.as_slice());
    let mut draft = (family.parse)(json)?;
    if is_classifier(json)? {
        // It has a head of another task in place of its output matrix.
        draft.names.network.head = None;
    }
    if let Some(rope) = draft.ropes.iter().find(|rope| !rope.is_finite()) {
        // Not all of its factors, which may be a million.
        let (theta, scaling) = (rope.theta, format!("{:?}", rope.scaling).chars().take(200).collect::<String>());
        return Err(json.invalid("rope", &format!("expected finite angles, found those of base {theta:e} and scaling {scaling}")));
    }
    if draft.visible == Visible::Before && !json.flag("is_causal", true)? {
        if draft.layers.iter().any(|layer| layer.mixer != Mixer::Attention) {
            let message = "expected true with layers that see nothing behind a token (Lfm2BidirectionalModel is not supported)";
            return Err(json.unsupported("is_causal", message));
        }
        // transformers turns the mask of any decoder into one that sees all; the window then lies on both sides.
        draft.visible = Visible::All;
        draft.layers.iter_mut().for_each(|layer| layer.window = layer.window.map(|window| window + 1));
    }
    Ok((family, draft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_doubles() {
        assert!(FAMILIES.windows(2).all(|pair| pair[0].model_type < pair[1].model_type));
    }

    #[test]
    fn an_unknown_family_is_named_with_the_known_ones() {
        let json = Json::parse("config.json", r#"{"model_type": "mamba"}"#).unwrap();
        let error = parse(&json).err().unwrap();
        assert!(error.message().contains("\"mamba\"") && error.message().contains("qwen2"), "{error}");
    }

    #[test]
    fn layers_without_attention_have_no_other_activation_than_silu() {
        let sizes = r#""hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 2, "mamba_n_heads": 2, "mamba_d_ssm": 8, "mamba_expand": 1, "linear_num_key_heads": 1,
            "linear_num_value_heads": 1, "num_local_experts": 0, "hybrid_override_pattern": "M*", "n_groups": 1, "mamba_n_groups": 1"#;
        let of = |family: &str, more: &str| {
            parse(&Json::parse("config.json", &format!(r#"{{"model_type": "{family}", {sizes}{more}}}"#)).unwrap()).map(|_| ())
        };
        for (family, key) in [
            ("qwen3_5_text", "hidden_act"),
            ("granitemoehybrid", "hidden_act"),
            ("falcon_h1", "hidden_act"),
            ("nemotron_h", "mamba_hidden_act"),
        ] {
            of(family, "").unwrap();
            of(family, &format!(r#", "{key}": "swish""#)).unwrap();
            let error = of(family, &format!(r#", "{key}": "gelu""#)).unwrap_err();
            assert!(error.message().contains(key) && error.message().contains("expected \"silu\""), "{error}");
        }
        // Where every layer has attention, it is that of the MLPs alone.
        of("granitemoehybrid", r#", "hidden_act": "gelu", "layer_types": ["attention", "attention"]"#).unwrap();
        of("qwen3_5_text", r#", "hidden_act": "gelu", "full_attention_interval": 1"#).unwrap();
    }

    #[test]
    fn convolutions_that_see_both_sides_are_refused_by_name() {
        let sizes = r#""model_type": "lfm2", "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 8, "intermediate_size": 8,
            "num_key_value_heads": 1, "num_hidden_layers": 2, "full_attn_idxs": [1]"#;
        let of = |more: &str| parse(&Json::parse("config.json", &format!("{{{sizes}{more}}}")).unwrap()).map(|_| ());
        of("").unwrap();
        of(r#", "architectures": ["Lfm2Model"]"#).unwrap();
        // As its own files say it, and as those of llama.cpp do.
        for (more, key) in
            [(r#", "architectures": ["Lfm2BidirectionalModel"]"#, "architectures"), (r#", "is_causal": false"#, "is_causal")]
        {
            let error = of(more).unwrap_err();
            assert!(error.kind() == crate::error::ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains(key) && error.message().contains("Lfm2BidirectionalModel"), "{error}");
        }
    }

    #[test]
    fn keys_go_by_the_names_that_the_reference_reads() {
        let sizes =
            r#""hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "intermediate_size": 8"#;
        let of = |family: &str, more: &str| {
            let text = format!(r#"{{"model_type": "{family}", {sizes}, {more}}}"#);
            draft(&Json::parse("config.json", &text).unwrap()).unwrap().1
        };
        let mixers = |draft: Draft| draft.layers.iter().map(|layer| layer.mixer).collect::<Vec<_>>();
        let kinds = r#""num_hidden_layers": 2, "mamba_n_heads": 2, "num_local_experts": 0,
            "layers_block_type": ["attention", "mamba"], "layer_types": ["mamba", "mamba"]"#;
        assert_eq!(mixers(of("granitemoehybrid", kinds)), [Mixer::Attention, Mixer::Mamba2]);
        assert_eq!(of("lfm3", r#""num_hidden_layers": 1, "rms_norm_eps": 1e-3"#).norm.eps, 1e-3);
        // Gemma 4 has its pattern from a list alone.
        let layers =
            r#""num_hidden_layers": 6, "sliding_window": 4, "sliding_window_pattern": 2, "vocab_size_per_layer_input": 8"#;
        let slides = |draft: Draft| draft.layers.iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>();
        assert_eq!(slides(of("gemma4_text", layers)), [true, true, true, true, true, false]);
        assert_eq!(slides(of("embedding_gemma2_text", layers)), [true, false, true, false, true, false]);
    }
}
