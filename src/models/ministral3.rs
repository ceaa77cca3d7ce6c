//! Ministral 3: Llama with yarn, and queries that grow with their position.

use super::base::{self, DEFAULTS, Defaults};
use super::draft::Draft;
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{QueryGrowth, Scaling};

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &rope::with_default(&json.with_defaults(&[("vocab_size", 131_072)]), || {
        serde_json::json!({
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16_384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        })
    })?;
    let mut draft = base::parse(json, &Defaults { eps: 1e-5, head_dim: Some(128), kv_heads: Some(8), ..DEFAULTS })?;
    base::window_everywhere(json, &mut draft, None)?;
    let rope = &mut draft.ropes[0];
    let Some(parameters) = rope::parameters(json)? else { return Ok(draft) };
    match (parameters.number("llama_4_scaling_beta")?.filter(|&beta| beta != 0.0), &rope.scaling) {
        (None, _) => {}
        (Some(beta), &Scaling::Yarn { original, .. }) => rope.query_growth = Some(QueryGrowth { beta, original }),
        (Some(_), _) => return Err(parameters.unsupported("llama_4_scaling_beta", "expected none but with yarn")),
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rope(fields: Value) -> crate::nn::Rope {
        let mut config = json!({ "model_type": "ministral3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
            "intermediate_size": 8, "num_hidden_layers": 1 });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (_, config) = crate::models::parse(&Json::parse("config.json", &config.to_string()).unwrap()).unwrap();
        config.ropes()[0].as_ref().clone()
    }

    #[test]
    fn a_rope_of_which_nothing_is_said_is_the_published_one() {
        let published = json!({ "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16_384, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, "rope_theta": 1e6, "beta_fast": 32.0, "beta_slow": 1.0 });
        let said = rope(json!({ "rope_parameters": published }));
        assert_eq!(said.query_growth, Some(QueryGrowth { beta: 0.1, original: 16_384 }));
        // A base at the top is for settings that have none.
        for nothing in [json!({}), json!({ "rope_parameters": null }), json!({ "rope_scaling": {}, "rope_theta": 500.0 })] {
            assert_eq!(rope(nothing), said);
        }
    }

    #[test]
    fn settings_without_a_base_have_the_usual_one() {
        let of = |theta: Value| rope(json!({ "rope_parameters": { "rope_type": "default", "rope_theta": theta } })).theta;
        assert_eq!((of(Value::Null), of(json!(5e5))), (1e4, 5e5));
    }
}
