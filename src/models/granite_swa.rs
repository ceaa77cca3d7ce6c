//! Granite with windows: sinks, a window on three of four layers, and a rope for each layer, or none.

use super::base::{self, MAX_LAYERS};
use super::draft::Draft;
use super::granite;
use crate::error::{Error, Result};
use crate::load::Json;
use crate::nn::Rope;

/// More bases than any model has: each has angles of its own.
const MAX_BASES: usize = 256;

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&[("num_key_value_heads", 4), ("sliding_window", 128)]);
    let tied = json.flag("tie_word_embeddings", true)?;
    let eps = json.positive("rms_norm_eps", 1e-5)?;
    let json = &json.with("tie_word_embeddings", tied.into()).with("rms_norm_eps", eps.into());
    let mut draft = granite::parse(json)?;
    draft.sinks = Some("self_attn.sinks");
    let sliding = base::sliding_layers(json, draft.layers.len(), |i| i % 4 != 0)?;
    base::window_some(json, &mut draft, &sliding, 128)?;
    // One base for each layer, 0 = no rope.
    let Some(thetas) = json.numbers("layer_rope_theta")? else { return Ok(draft) };
    if thetas.len() != draft.layers.len() || thetas.len() > MAX_LAYERS {
        let message = format!("expected {} numbers, found {}", draft.layers.len(), thetas.len());
        return Err(json.invalid("layer_rope_theta", &message));
    }
    if let Some(theta) = thetas.iter().find(|theta| **theta < 0.0) {
        return Err(json.invalid("layer_rope_theta", &format!("expected numbers of at least 0, found {theta}")));
    }
    let usual = draft.ropes.remove(0);
    for (layer, theta) in draft.layers.iter_mut().zip(thetas) {
        layer.rope = (theta > 0.0).then(|| {
            let known = draft.ropes.iter().position(|rope| rope.theta == theta);
            known.unwrap_or_else(|| {
                draft.ropes.push(Rope { theta, ..usual.clone() });
                draft.ropes.len() - 1
            })
        });
    }
    if draft.ropes.len() > MAX_BASES {
        let message = format!("expected at most {MAX_BASES} bases that differ, found {}", draft.ropes.len());
        return Err(Error::unsupported(format!("config.json: layer_rope_theta: {message}")));
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::nn::Scaling;

    fn parsed(thetas: impl Iterator<Item = f64>) -> Result<Draft> {
        let thetas: Vec<f64> = thetas.collect();
        let factors: Vec<f64> = (0..32).map(|i| 1.0 + f64::from(i)).collect();
        let rope: Value =
            json!({ "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4, "factor": 4.0 });
        let config = json!({
            "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 8, "vocab_size": 8,
            "num_hidden_layers": thetas.len(), "layer_rope_theta": thetas, "rope_parameters": rope, "max_position_embeddings": 8192,
        });
        parse(&Json::parse("config.json", &config.to_string())?)
    }

    #[test]
    fn what_norms_add_is_that_of_the_family_where_nothing_is_said() {
        let config = json!({
            "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8,
            "num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1,
        });
        let of = |parse: fn(&Json) -> Result<Draft>, config: &Value| {
            parse(&Json::parse("config.json", &config.to_string()).unwrap()).unwrap().norm.eps
        };
        let with_experts = super::super::granite_moe::parse_with_windows;
        assert_eq!((of(parse, &config), of(with_experts, &config)), (1e-5, 1e-6));
        let mut given = config;
        given["rms_norm_eps"] = json!(1e-3);
        assert_eq!((of(parse, &given), of(with_experts, &given)), (1e-3, 1e-3));
    }

    #[test]
    fn ropes_of_several_bases_share_their_factors() {
        let draft = parsed([1e4, 0.0, 1e5, 1e4].into_iter()).unwrap();
        let factors = |at: usize| match &draft.ropes[at].scaling {
            Scaling::LongRope { short, long, .. } => [short, long],
            other => panic!("{other:?}"),
        };
        assert_eq!(draft.layers.iter().map(|layer| layer.rope).collect::<Vec<_>>(), [Some(0), None, Some(1), Some(0)]);
        assert!(factors(0).iter().zip(factors(1)).all(|(one, other)| Arc::ptr_eq(one, other)));
        let message = parsed((0..300).map(|i| 1e4 + f64::from(i))).err().unwrap();
        assert!(message.message().contains("at most 256 bases that differ, found 300"), "{message}");
    }
}
