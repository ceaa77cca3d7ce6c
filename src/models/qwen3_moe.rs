//! Qwen3 with experts, in all layers but some.

use super::base::{self, DEFAULTS, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Alone, Draft};
use super::experts;
use super::qwen3;
use crate::error::Result;
use crate::load::Json;

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("num_key_value_heads", 4), ("moe_intermediate_size", 768)]);
    // Unlike the dense one, which has heads of 128 where nothing is said.
    let mut draft = qwen3::with_heads(json, DEFAULTS.head_dim)?;
    // All layers slide, or none: no key tells them apart.
    if json.flag("use_sliding_window", false)? {
        base::window_everywhere(json, &mut draft, Some(4096))?;
    }
    let normalised = json.flag("norm_topk_prob", false)?;
    let intermediate_size = json.size("moe_intermediate_size", MAX_WIDTH)?;
    draft.experts = Some(experts::parse(json, &draft, &experts::QWEN, intermediate_size, normalised)?);
    let every = match json.count("decoder_sparse_step", MAX_LAYERS)? {
        Some(0) => return Err(json.invalid("decoder_sparse_step", "expected at least 1, found 0")),
        every => every.unwrap_or(1),
    };
    let dense = json.counts("mlp_only_layers", MAX_LAYERS)?.unwrap_or_default();
    for (i, layer) in draft.layers.iter_mut().enumerate() {
        let is_mixture = (i + 1).is_multiple_of(every) && !dense.contains(&i);
        layer.alone = if is_mixture { Alone::Experts } else { Alone::Mlp };
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(more: &Value) -> Draft {
        let mut config = json!({
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8,
            "num_hidden_layers": 3, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&Json::parse("config.json", &config.to_string()).unwrap()).unwrap()
    }

    #[test]
    fn heads_without_a_width_share_the_networks() {
        assert_eq!(parsed(&json!({})).head_dim, 8);
        assert_eq!(parsed(&json!({ "head_dim": 12 })).head_dim, 12);
    }

    #[test]
    fn more_experts_than_any_model_has_are_refused() {
        let error = |more: &str| {
            let config = format!(
                r#"{{"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8,
                    "num_hidden_layers": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 8, {more}}}"#
            );
            parse(&Json::parse("config.json", &config).unwrap()).map(drop).unwrap_err().message().to_owned()
        };
        for name in ["num_experts", "num_local_experts"] {
            let expected = format!("config.json: {name}: expected a whole number from 0 to 4096, found 1000000");
            assert_eq!(error(&format!(r#""{name}": 1000000"#)), expected);
        }
    }

    #[test]
    fn every_layer_slides_or_none() {
        let windows = |more| parsed(&more).layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
        let on = json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 2 });
        assert_eq!(windows(on), [Some(16); 3]);
        assert_eq!(windows(json!({ "use_sliding_window": true })), [Some(4096); 3]);
        assert_eq!(windows(json!({ "use_sliding_window": true, "sliding_window": null })), [None; 3]);
        assert_eq!(windows(json!({ "sliding_window": 16 })), [None; 3]);
    }
}
