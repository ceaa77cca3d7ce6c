//! Falcon-H1: Mamba 2 beside attention in every layer, and a multiplier at every scale.

use serde_json::json;

use super::base::{self, DEFAULTS, Defaults, LLAMA, MAX_LAYERS, MAX_WIDTH};
use super::draft::{Biases, BranchScales, Draft, Mixer, Source, TensorNames};
use super::mamba2;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, GatedNormPlace, Names};

const NAMES: TensorNames = TensorNames {
    network: Names { final_norm: Some("final_layernorm"), ..LLAMA.network },
    gate: Source::Own("feed_forward.gate_proj"),
    up: Source::Own("feed_forward.up_proj"),
    down: Source::Own("feed_forward.down_proj"),
    mlp_in: Some("pre_ff_layernorm"),
    ..LLAMA
};

/// The key of config.json, which nothing else reads, that says that multipliers are a part of the weights: what a GGUF file and MLX's
/// converter have made of a checkpoint stays that in a directory that is saved.
pub const MULTIPLIED: &str = "multipliers_in_weights";

pub fn parse(json: &Json) -> Result<Draft> {
    let json = &json.with_defaults(&mamba2::PREFIXED_SIZES).with_defaults(&[("mamba_d_ssm", 1024)]);
    let mut draft = base::parse(json, &Defaults { names: NAMES, eps: 1e-5, kv_heads: Some(8), ..DEFAULTS })?;
    base::needs_silu(json, "hidden_act")?;
    let bias = json.flag("attention_bias", false)?;
    draft.biases = Biases { qkv: bias, o: bias, mlp: json.flag("mlp_bias", false)?, head: false };
    let factor = |key: &str| base::factor(json, key, 1.0);
    draft.embed_scale = factor("embedding_multiplier")?;
    draft.logit_scale = factor("lm_head_multiplier")?;
    draft.attn_scale *= factor("key_multiplier")?;
    let [gate, mlp_out] = factors(json, "mlp_multipliers")?;
    draft.scales = BranchScales {
        attention: (factor("attention_in_multiplier")?, factor("attention_out_multiplier")?),
        mamba2: (factor("ssm_in_multiplier")?, factor("ssm_out_multiplier")?),
        gate,
        mlp_out,
    };
    let inner = match json.count("mamba_d_ssm", MAX_WIDTH)? {
        Some(inner) => inner,
        None => draft.hidden_size * json.size("mamba_expand", MAX_LAYERS)?,
    };
    let head_dim = mamba2::head_dim(json, inner)?;
    let mut mamba = mamba2::parse(json, (&mamba2::PREFIXED, &mamba2::MAMBA), (draft.hidden_size, head_dim))?;
    mamba.o_bias = Bias::from(json.flag("projectors_bias", false)?);
    mamba.step_limits = mamba2::step_limits(json)?;
    mamba.factors = factors(json, "ssm_multipliers")?;
    let place = if json.flag("mamba_norm_before_gate", true)? { GatedNormPlace::BeforeGate } else { GatedNormPlace::BehindGate };
    let has_norm = json.flag("mamba_rms_norm", false)?;
    mamba.norm.as_mut().into_iter().for_each(|norm| norm.place = place);
    mamba.norm = mamba.norm.filter(|_| has_norm);
    draft.mamba2 = Some(mamba);
    draft.layers.iter_mut().for_each(|layer| layer.mixer = Mixer::Mamba2AndAttention);
    Ok(draft)
}

/// The same network for the weights that MLX's converter writes, of which its multipliers are a part: without those. What the converter
/// leaves to be multiplied stays: the keys, and the values' share of the input, which is as well one of the output.
///
/// # Errors
/// `ErrorKind::Unsupported` for biases, which belong under the multipliers and which the converter leaves as they are.
pub fn folded(json: &Json) -> Result<Json> {
    for key in ["attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"] {
        if json.flag(key, false)? {
            let message = "expected false with weights of MLX, whose converter multiplies the weights and not their biases: \
                           load the checkpoint that they were made from";
            return Err(json.unsupported(key, message));
        }
    }
    let factor = |key: &str| json.number(key).map(|number| number.unwrap_or(1.0));
    let is_tied = json.flag("tie_word_embeddings", DEFAULTS.tied)?;
    // The output matrix then has the factor of the embeddings.
    let logits = if is_tied { factor("lm_head_multiplier")? / factor("embedding_multiplier")? } else { 1.0 };
    let new = [
        ("embedding_multiplier", json!(1.0)),
        ("lm_head_multiplier", json!(logits)),
        ("attention_in_multiplier", json!(1.0)),
        ("attention_out_multiplier", json!(factor("attention_in_multiplier")?)),
        ("mlp_multipliers", json!([1.0, 1.0])),
        ("ssm_in_multiplier", json!(1.0)),
        ("ssm_out_multiplier", json!(1.0)),
        ("ssm_multipliers", json!([1.0, 1.0, 1.0, 1.0, 1.0])),
        (MULTIPLIED, json!(true)),
    ];
    Ok(new.into_iter().fold(json.clone(), |json, (key, value)| json.with(key, value)))
}

/// A list of so many numbers; ones where it is absent or null.
fn factors<const N: usize>(json: &Json, key: &str) -> Result<[f32; N]> {
    let Some(numbers) = json.numbers(key)? else { return Ok([1.0; N]) };
    match <[f64; N]>::try_from(numbers) {
        Ok(numbers) => Ok(numbers.map(|x| x as f32)),
        Err(found) => Err(json.invalid(key, &format!("expected {N} numbers, found {}", found.len()))),
    }
}
