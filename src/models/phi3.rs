//! Phi-3, Phi-3.5 and Phi-4: q, k and v in one tensor, gate and up in another, longrope.

use super::base::{self, DEFAULTS, Defaults, FUSED_MLP};
use super::draft::{Draft, Source, TensorNames};
use super::rope;
use crate::error::Result;
use crate::load::Json;
use crate::nn::Scaling;

pub fn parse(json: &Json) -> Result<Draft> {
    let qkv = |part| Source::Part("self_attn.qkv_proj", part);
    let names = TensorNames { q: qkv(0), k: qkv(1), v: qkv(2), ..FUSED_MLP };
    // The original context stands at the top of the configuration.
    let json = &json.with_defaults(&[("original_max_position_embeddings", 4096)]);
    // The first files called it otherwise.
    let json = &match rope::parameters(json)? {
        Some(p) if rope::kind(&p)?.as_deref() == Some("yarn") => {
            json.with("rope_scaling", p.with("rope_type", "longrope".into()).value().clone())
        }
        _ => json.clone(),
    };
    let mut draft = base::parse(json, &Defaults { names, eps: 1e-5, partial: Some(1.0), ..DEFAULTS })?;
    base::window_everywhere(json, &mut draft, None)?;
    match draft.ropes[0].scaling {
        Scaling::Default | Scaling::LongRope { .. } => Ok(draft),
        _ => Err(json.unsupported("rope_scaling", "expected longrope")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn two_other_names_of_longrope_are_read() {
        let of = |kind: &str| {
            let config = json!({ "model_type": "phi3", "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 8,
                "vocab_size": 8, "num_hidden_layers": 1, "original_max_position_embeddings": 20, "max_position_embeddings": 80,
                "rope_scaling": { "type": kind, "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0] } });
            parse(&Json::parse("config.json", &config.to_string()).unwrap()).map(|draft| draft.ropes[0].scaling.clone())
        };
        let longrope = of("longrope").unwrap();
        assert!(matches!(longrope, Scaling::LongRope { original: 20, .. }));
        assert_eq!((of("su").unwrap(), of("yarn").unwrap()), (longrope.clone(), longrope));
        assert!(of("linear").is_err());
    }
}
