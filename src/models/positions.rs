//! How many positions a model has whose configuration does not say: as many as the family's class in transformers.

/// By `model_type`: `max_position_embeddings`. Families with a table of all their sizes have it there.
static POSITIONS: &[(&str, usize)] = &[
    ("arcee", 4096),
    ("cohere", 8192),
    ("cohere2", 8192),
    ("ernie4_5", 131_072),
    ("eurobert", 8192),
    ("exaone4", 2048),
    ("falcon_h1", 8192),
    ("gemma", 8192),
    ("gemma2", 8192),
    ("glm", 131_072),
    ("glm4", 131_072),
    ("granite", 2048),
    ("granite_swa", 8192),
    ("granitemoe", 2048),
    ("granitemoe_swa", 2048),
    ("granitemoehybrid", 2048),
    ("granitemoeshared", 2048),
    ("helium", 4096),
    ("hunyuan_v1_dense", 2048),
    ("lfm2", 128_000),
    ("lfm2_moe", 128_000),
    ("lfm3", 128_000),
    ("llama", 2048),
    ("ministral3", 262_144),
    ("mistral", 131_072),
    ("mixtral", 131_072),
    ("nemotron", 4096),
    ("olmo", 2048),
    ("olmo2", 2048),
    ("olmo3", 2048),
    ("olmoe", 4096),
    ("phi", 2048),
    ("phi3", 4096),
    ("qwen2", 32_768),
    ("qwen3", 32_768),
    ("qwen3_moe", 32_768),
    ("seed_oss", 524_288),
    ("smollm3", 32_768),
    ("stablelm", 4096),
    ("starcoder2", 4096),
    ("vaultgemma", 8192),
];

/// The positions of this family.
pub fn of(model_type: &str) -> Option<usize> {
    POSITIONS.iter().find(|(family, _)| *family == model_type).map(|(_, positions)| *positions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::load::Json;
    use crate::models::{FAMILIES, parse};

    #[test]
    fn every_row_is_of_a_family_and_none_comes_twice() {
        assert!(POSITIONS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(POSITIONS.iter().all(|(name, _)| FAMILIES.iter().any(|family| family.model_type == *name)));
    }

    #[test]
    fn a_rope_is_stretched_from_the_positions_of_the_class() {
        let rope = |fields: Value| {
            let mut config = json!({
                "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 8,
                "vocab_size": 8, "num_hidden_layers": 1, "rope_scaling": { "type": "dynamic", "factor": 2.0 },
            });
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let (_, config) = parse(&Json::parse("config.json", &config.to_string()).unwrap()).unwrap();
            (config.context_length, config.ropes()[0].clone())
        };
        assert_eq!(rope(json!({})), rope(json!({ "max_position_embeddings": 32_768 })));
        assert_eq!(rope(json!({})).0, 65_536);
        assert_eq!(rope(json!({ "model_type": "llama" })), rope(json!({ "max_position_embeddings": 2048 })));
    }
}
