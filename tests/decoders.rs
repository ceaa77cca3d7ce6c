//! Every decoder family against transformers: logits at every position, greedy continuations, and the equalities that need no
//! reference: incremental = full, any chunks = one chunk, later tokens move nothing.

mod common;

use std::path::PathBuf;

use common::{Reference, cosine, decoders, devices, edited, golden, load, looks_at_length, max_abs, q8_0};
use metal_candle::{Dtype, GenerateOptions, LoadOptions, Model, Session};
use std::ops::ControlFlow;

/// The tolerance of the reference results: four times their own noise.
const TOLERANCE: f32 = 5e-4;
const PROMPTS: usize = 4;

/// The context of a dynamic rope goes as far as its caller says.
fn open(path: &PathBuf) -> Model {
    let options = LoadOptions::default().max_context(512);
    Model::load(path, &options, None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

/// The same with quantised weights.
fn quantised(path: &PathBuf) -> Model {
    Model::load(path, &q8_0().max_context(512), None).unwrap()
}

/// The logits after each token, evaluated one by one.
fn stepwise(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    ids.iter()
        .flat_map(|&id| {
            session.append_tokens(&[id], None).unwrap();
            session.logits().unwrap().to_vec()
        })
        .collect()
}

/// The logits after a whole prompt.
fn at_once(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(ids, None).unwrap();
    session.logits().unwrap().to_vec()
}

fn greedy(model: &Model, ids: &[u32], tokens: usize) -> Vec<u32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(ids, None).unwrap();
    let options = GenerateOptions::default().max_tokens(tokens).ignore_eos(true).temperature(0.0);
    session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

#[test]
fn logits_at_every_position_equal_the_reference() {
    let mut worst = 0f32;
    for path in decoders() {
        let model = open(&path);
        let reference = Reference::open(&path.join("golden.safetensors"));
        for prompt in 0..PROMPTS {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let want = reference.floats(&format!("prompt{prompt}.logits"));
            let vocab = want.len() / ids.len();
            let last = &want[want.len() - vocab..];
            let error = max_abs(&at_once(&model, &ids), last);
            assert!(error <= TOLERANCE, "{} prompt {prompt}: {error} after the last token", path.display());
            worst = worst.max(error);
            if looks_at_length(&path) {
                continue;
            }
            let error = max_abs(&stepwise(&model, &ids), &want);
            assert!(error <= TOLERANCE, "{} prompt {prompt}: {error} at some position", path.display());
            worst = worst.max(error);
        }
    }
    assert!(worst > 0.0, "the comparison saw numbers");
}

#[test]
fn greedy_continuations_equal_the_reference() {
    for path in decoders() {
        let model = open(&path);
        let reference = Reference::open(&path.join("golden.safetensors"));
        let notes = common::json(&path.join("golden.json"));
        for prompt in 0..PROMPTS {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let want = reference.ids(&format!("prompt{prompt}.greedy"));
            // Behind a switch of frequencies the reference goes on with keys of the old ones.
            let comparable = notes["prompts"][prompt]["greedy_ids_before_switch"].as_u64().map_or(want.len(), |n| n as usize);
            let got = greedy(&model, &ids, want.len());
            assert_eq!(got[..comparable], want[..comparable], "{} prompt {prompt}", path.display());
        }
    }
}

#[test]
fn one_by_one_and_in_any_chunks_give_the_same_bits() {
    for path in decoders() {
        for model in [open(&path), quantised(&path)] {
            let ids = Reference::open(&path.join("golden.safetensors")).ids("prompt3.ids");
            let whole = at_once(&model, &ids);
            for chunk in [1, 3, 7, 16, 49, 64, 65] {
                let mut session = Session::new(&model, 0).unwrap();
                for part in ids.chunks(chunk) {
                    session.append_tokens(part, None).unwrap();
                }
                assert_eq!(session.logits().unwrap(), whole, "{} in chunks of {chunk}", path.display());
            }
        }
    }
}

#[test]
fn recurrent_mixers_by_tensor_operations_equal_the_reference_in_any_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session");
    for device in devices() {
        for name in ["qwen3_5_text", "qwen3_5_nested", "lfm2", "lfm3", "falcon_h1_norm", "nemotron_h", "granitemoehybrid_old"] {
            let path = golden("decoders").join(name);
            let options = LoadOptions::default().device(device.clone()).dtype(Dtype::F32);
            let model = Model::load(&path, &options, None).unwrap();
            let reference = Reference::open(&path.join("golden.safetensors"));
            let (ids, want) = (reference.ids("prompt3.ids"), reference.floats("prompt3.logits"));
            for chunk in [1, 7, 64, 65, 134] {
                let mut session = Session::new(&model, 0).unwrap();
                for (i, part) in ids.chunks(chunk).enumerate() {
                    session.append_tokens(part, None).unwrap();
                    let end = (i * chunk + part.len()) * model.vocab_size();
                    let error = max_abs(session.logits().unwrap(), &want[end - model.vocab_size()..end]);
                    assert!(error <= TOLERANCE, "{name} on {}, chunks of {chunk}: {error}", device.name());
                    // Saved and read back in the middle.
                    if i == 1 {
                        session.save(&file).unwrap();
                        session = Session::load(&model, &file).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn every_declared_value_of_hybrids_and_of_mixtures_counts() {
    let cases: [(&str, &[(&str, &str)]); 16] = [
        (
            "falcon_h1",
            &[
                ("embedding_multiplier", "1.0"),
                ("lm_head_multiplier", "1.0"),
                ("key_multiplier", "1.0"),
                ("attention_in_multiplier", "1.0"),
                ("attention_out_multiplier", "1.0"),
                ("ssm_in_multiplier", "1.0"),
                ("ssm_out_multiplier", "1.0"),
                ("mlp_multipliers", "[1.0, 0.5]"),
                ("mlp_multipliers", "[0.9, 1.0]"),
                ("ssm_multipliers", "[1.0, 1.2, 0.9, 1.3, 0.6]"),
                ("ssm_multipliers", "[0.7, 1.0, 0.9, 1.3, 0.6]"),
                ("ssm_multipliers", "[0.7, 1.2, 1.0, 1.3, 0.6]"),
                ("ssm_multipliers", "[0.7, 1.2, 0.9, 1.0, 0.6]"),
                ("ssm_multipliers", "[0.7, 1.2, 0.9, 1.3, 1.0]"),
            ],
        ),
        (
            "falcon_h1_norm",
            &[
                ("mamba_norm_before_gate", "true"),
                ("time_step_limit", "[0.2, 0.5]"),
                ("time_step_limit", "[0.0, 2.0]"),
                ("time_step_limit", r#"[0.2, {"__float__": "Infinity"}]"#),
            ],
        ),
        (
            "granitemoehybrid_old",
            &[
                ("attention_multiplier", "0.3"),
                ("embedding_multiplier", "1.0"),
                ("residual_multiplier", "1.0"),
                ("logits_scaling", "1.0"),
                ("position_embedding_type", r#""rope""#),
                ("num_experts_per_tok", "1"),
                ("rms_norm_eps", "1e-6"),
            ],
        ),
        (
            "nemotron_h",
            &[
                ("time_step_min", "0.001"),
                ("topk_group", "4"),
                ("n_group", "2"),
                ("routed_scaling_factor", "1.0"),
                ("norm_topk_prob", "false"),
                ("mlp_hidden_act", r#""silu""#),
                ("layer_norm_epsilon", "1e-6"),
                ("num_experts_per_tok", "1"),
            ],
        ),
        (
            "qwen3_5_text",
            &[
                ("rope_parameters", r#"{"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "default"}"#),
                ("rope_parameters", r#"{"partial_rotary_factor": 0.25, "rope_theta": 500.0, "rope_type": "default"}"#),
                ("rms_norm_eps", "1e-6"),
            ],
        ),
        ("qwen3_5_moe_text", &[("num_experts_per_tok", "1"), ("rms_norm_eps", "1e-6")]),
        ("lfm2_old", &[("norm_eps", "1e-6"), ("rope_theta", "500.0")]),
        (
            "lfm2_moe",
            &[("num_experts_per_tok", "1"), ("norm_topk_prob", "false"), ("routed_scaling_factor", "2.0"), ("norm_eps", "1e-6")],
        ),
        (
            "lfm3",
            &[
                ("sliding_window", "8"),
                ("norm_eps", "1e-6"),
                ("layer_types", r#"["conv", "conv", "full_attention", "conv", "full_attention"]"#),
                ("layer_types", r#"["conv", "conv", "sliding_attention", "conv", "sliding_attention"]"#),
            ],
        ),
        (
            "gemma4_text",
            &[
                ("sliding_window", "8"),
                ("rms_norm_eps", "1e-6"),
                ("final_logit_softcapping", "2.0"),
                ("hidden_activation", r#""gelu""#),
                (
                    "rope_parameters",
                    r#"{"full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 100000.0, "rope_type": "proportional"},
                        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}"#,
                ),
                (
                    "rope_parameters",
                    r#"{"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 100000.0, "rope_type": "proportional"},
                        "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"}}"#,
                ),
            ],
        ),
        ("gemma4_moe", &[("top_k_experts", "1"), ("sliding_window", "8")]),
        (
            "gpt_oss",
            &[
                ("swiglu_limit", "7.0"),
                ("sliding_window", "8"),
                ("num_experts_per_tok", "1"),
                ("rms_norm_eps", "1e-6"),
                (
                    "rope_parameters",
                    r#"{"beta_fast": 4.0, "beta_slow": 0.5, "factor": 2.0, "original_max_position_embeddings": 32,
                        "rope_theta": 150000.0, "rope_type": "yarn", "truncate": false}"#,
                ),
                (
                    "rope_parameters",
                    r#"{"beta_fast": 4.0, "beta_slow": 0.5, "factor": 8.0, "original_max_position_embeddings": 32,
                        "rope_theta": 150000.0, "rope_type": "yarn", "truncate": true}"#,
                ),
            ],
        ),
        ("qwen3_moe", &[("num_experts_per_tok", "1"), ("norm_topk_prob", "false"), ("rms_norm_eps", "1e-6")]),
        ("olmoe", &[("clip_qkv", "1.0"), ("clip_qkv", "null"), ("num_experts_per_tok", "2"), ("norm_topk_prob", "true")]),
        ("mixtral", &[("num_experts_per_tok", "1"), ("rope_theta", "500.0"), ("sliding_window", "8")]),
        (
            "granite_swa",
            &[
                ("attention_multiplier", "0.3"),
                ("embedding_multiplier", "1.0"),
                ("residual_multiplier", "1.0"),
                ("logits_scaling", "1.0"),
                ("layer_rope_theta", "[100000.0, 1000.0, 10000.0, 10000.0]"),
                ("layer_rope_theta", "[500.0, 1000.0, 0, 10000.0]"),
                ("sliding_window", "8"),
            ],
        ),
    ];
    for (name, values) in cases {
        let directory = golden("decoders").join(name);
        let reference = Reference::open(&directory.join("golden.safetensors"));
        let (ids, want) = (reference.ids("prompt3.ids"), reference.floats("prompt3.logits"));
        for value in values {
            let model = open(&edited(&directory, std::slice::from_ref(value)).path().to_path_buf());
            let vocab = model.vocab_size();
            let error = max_abs(&stepwise(&model, &ids[..40]), &want[..40 * vocab]);
            assert!(error > 2.0 * TOLERANCE, "{name}: {value:?} changes logits by {error}");
        }
    }
}

#[test]
fn a_later_token_never_moves_an_earlier_position() {
    for path in decoders() {
        let model = open(&path);
        let mut ids = Reference::open(&path.join("golden.safetensors")).ids("prompt2.ids");
        let mut session = Session::new(&model, 0).unwrap();
        session.append_tokens(&ids, None).unwrap();
        session.truncate(10).unwrap();
        let before = session.logits().unwrap().to_vec();
        for id in &mut ids[10..] {
            *id = (*id + 7) % 80;
        }
        let mut other = Session::new(&model, 0).unwrap();
        other.append_tokens(&ids, None).unwrap();
        other.truncate(10).unwrap();
        assert_eq!(other.logits().unwrap(), before, "{}", path.display());
        assert_eq!(at_once(&model, &ids[..10]), before, "{}", path.display());
    }
}

#[test]
fn every_dtype_loads_and_stays_near_the_stored_one() {
    for name in ["decoders/qwen2_tied", "families/llama_f32", "families/qwen2_untied_f16"] {
        let stored = load(golden(name));
        let ids: Vec<u32> = (1..30).collect();
        let want = at_once(&stored, &ids);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let model = Model::load(golden(name), &LoadOptions::default().dtype(dtype), None).unwrap();
            assert_eq!(model.dtype(), dtype);
            let error = max_abs(&at_once(&model, &ids), &want);
            let exact = dtype == Dtype::F32 || dtype == stored.dtype();
            assert!(if exact { error == 0.0 } else { error < 0.5 }, "{name} as {dtype:?}: {error}");
        }
    }
}

#[test]
fn quantised_weights_give_nearly_the_same_logits() {
    for path in decoders() {
        let (dense, quantised) = (open(&path), quantised(&path));
        assert_eq!((quantised.dtype(), quantised.parameter_count()), (dense.dtype(), dense.parameter_count()));
        let reference = Reference::open(&path.join("golden.safetensors"));
        let prompts: Vec<_> = (0..PROMPTS).map(|prompt| reference.ids(&format!("prompt{prompt}.ids"))).collect();
        let all = |model: &Model| prompts.iter().flat_map(|ids| stepwise(model, ids)).collect::<Vec<_>>();
        let (want, got) = (all(&dense), all(&quantised));
        assert_ne!(got, want, "{}", path.display());
        let near = cosine(&want, &got);
        if common::has_experts(&path) {
            let vocab = dense.vocab_size();
            let tokens = want.chunks(vocab).zip(got.chunks(vocab)).map(|(want, got)| cosine(want, got)).collect();
            let near = common::median(tokens);
            assert!(near > 0.997, "{}: {near}", path.display());
        } else {
            assert!(near > 0.99, "{}: {near}", path.display());
        }
    }
}
