//! Gemma: norm weights stored minus one, embeddings scaled by √hidden_size.

use super::base::{self, DEFAULTS, Defaults, LLAMA};
use super::draft::{Biases, Draft, TensorNames};
use crate::error::Result;
use crate::load::Json;
use crate::ops::Activation;

pub fn parse(json: &Json) -> Result<Draft> {
    let mut draft = common(json, "hidden_act", LLAMA, 16)?;
    refuse_both_sides(json)?;
    // The first Gemma's "gelu" has always meant the tanh form.
    if draft.activation == Activation::Gelu {
        draft.activation = Activation::GeluTanh;
    }
    Ok(draft)
}

/// What all Gemmas share but for the default of `num_key_value_heads`.
pub fn common(json: &Json, activation_key: &'static str, names: TensorNames, kv_heads: usize) -> Result<Draft> {
    let defaults = Defaults {
        names,
        activation_key,
        activation: "gelu_pytorch_tanh",
        head_dim: Some(256),
        kv_heads: Some(kv_heads),
        tied: true,
        ..DEFAULTS
    };
    let mut draft = base::parse(json, &defaults)?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, ..Biases::default() };
    draft.norm.offset = 1.0;
    draft.embed_scale = (draft.hidden_size as f32).sqrt();
    Ok(draft)
}

/// The scale of the scores from Gemma 2 on.
pub fn query_scale(json: &Json) -> Result<f32> {
    Ok(1.0 / json.positive("query_pre_attn_scalar", 256.0)?.sqrt() as f32)
}

/// In Gemma 1 and 2 the reference's implementations of attention differ in what this key does.
pub fn refuse_both_sides(json: &Json) -> Result<()> {
    match json.flag("use_bidirectional_attention", false)? {
        true => Err(json.unsupported("use_bidirectional_attention", "expected false")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::models::parse;
    use crate::nn::Config;

    fn parsed(model_type: &str, field: (&str, Value)) -> Result<Config> {
        let mut config = json!({ "model_type": model_type, "hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 8,
            "vocab_size": 8, "num_hidden_layers": 1 });
        config[field.0] = field.1;
        parse(&Json::parse("config.json", &config.to_string())?).map(|(_, config)| config)
    }

    #[test]
    fn heads_of_keys_that_are_not_told_are_those_of_the_class() {
        for (model_type, heads) in [("gemma", 16), ("gemma2", 4), ("gemma3_text", 4), ("vaultgemma", 4)] {
            let config = parsed(model_type, ("rms_norm_eps", json!(1e-5))).unwrap();
            assert_eq!(config.attentions().next().unwrap().kv_heads, heads, "{model_type}");
        }
    }

    #[test]
    fn the_first_two_see_what_is_before_a_token_alone() {
        for model_type in ["gemma", "gemma2"] {
            let error = parsed(model_type, ("use_bidirectional_attention", json!(true))).err().unwrap();
            assert!(error.message().contains("use_bidirectional_attention: expected false, found true"), "{error}");
            assert!(parsed(model_type, ("use_bidirectional_attention", Value::Null)).is_ok());
        }
    }
}
