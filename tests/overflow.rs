//! Activations that leave the range of numbers: what comes of them is an error, one and the same, of the sequence that they are in alone.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::{QUANTIZATIONS, Reference, golden, write_tensors};
use metal_candle::{
    EmbedOptions, Error, ErrorKind, GenerateOptions, LoadOptions, LoraConfig, LoraTrainer, Model, Pooling, SamplingOptions,
    Session, TrainOptions,
};
use safetensors::Dtype;
use tempfile::TempDir;

const WIDTH: usize = 512;
const VOCABULARY: usize = 64;
/// The token that overflows.
const BAD: u32 = 7;
const GOOD: [u32; 11] = [1, 60, 13, 22, 5, 41, 33, 2, 19, 50, 11];

/// A model of two layers, wide enough for activations of eight bits with every format. The first value of the embedding is that of [`BAD`]
/// alone, nothing writes it before the first MLP, and the norm there multiplies it by 1e22: the product of gate and up overflows.
fn directory() -> TempDir {
    let mut state = 1u32;
    let mut random = move |scale: f32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 * 2.0 - 1.0) * scale
    };
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: Vec<usize>, values: Vec<f32>| {
        tensors.insert(name, (Dtype::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()));
    };
    let mut matrix = |rows: usize, scale: f32| (0..rows * WIDTH).map(|_| random(scale)).collect::<Vec<f32>>();
    let mut embedding = matrix(VOCABULARY, 1.0);
    embedding.chunks_mut(WIDTH).enumerate().for_each(|(token, row)| row[0] = f32::from(u8::from(token == BAD as usize)));
    add("model.embed_tokens.weight".to_string(), vec![VOCABULARY, WIDTH], embedding);
    add("lm_head.weight".to_string(), vec![VOCABULARY, WIDTH], matrix(VOCABULARY, 0.1));
    add("model.norm.weight".to_string(), vec![WIDTH], vec![1.0; WIDTH]);
    for layer in 0..2 {
        for (name, rows) in [
            ("self_attn.q_proj", WIDTH),
            ("self_attn.k_proj", WIDTH / 2),
            ("self_attn.v_proj", WIDTH / 2),
            ("self_attn.o_proj", WIDTH),
            ("mlp.gate_proj", WIDTH),
            ("mlp.up_proj", WIDTH),
            ("mlp.down_proj", WIDTH),
        ] {
            let mut values = matrix(rows, 0.07);
            if name == "self_attn.o_proj" {
                values[..WIDTH].fill(0.0);
            }
            add(format!("model.layers.{layer}.{name}.weight"), vec![rows, WIDTH], values);
        }
        let mut norm = vec![1.0; WIDTH];
        add(format!("model.layers.{layer}.input_layernorm.weight"), vec![WIDTH], norm.clone());
        norm[0] = if layer == 0 { 1e22 } else { 1.0 };
        add(format!("model.layers.{layer}.post_attention_layernorm.weight"), vec![WIDTH], norm);
    }
    let folder = tempfile::tempdir().unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// Never with [`BAD`] in the answer.
fn greedy() -> GenerateOptions {
    let logit_bias = vec![(BAD, f32::NEG_INFINITY)];
    GenerateOptions::default().max_tokens(5).ignore_eos(true).temperature(0.0).logit_bias(logit_bias)
}

fn session(model: &Model, ids: &[u32]) -> Session {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(ids, None).unwrap();
    session
}

fn begun(model: &Model, ids: &[u32]) -> Session {
    let mut session = session(model, ids);
    session.begin(&greedy()).unwrap();
    session
}

fn is_told(error: &Error) {
    assert!(error.kind() == ErrorKind::Device && error.message().contains("expected a number, found NaN"), "{error}");
}

#[test]
fn a_token_whose_activations_overflow_ends_its_own_answer_with_an_error() {
    let folder = directory();
    let kinds = QUANTIZATIONS.into_iter().map(Some).chain([None]);
    for (kind, exact) in kinds.flat_map(|kind| [(kind, false), (kind, true)]) {
        let what = format!("{kind:?}, exact {exact}");
        let mut options = LoadOptions::default().exact(exact);
        options.quantization = kind.map(str::to_string);
        let model = Model::load(folder.path(), &options, None).unwrap();
        let want = session(&model, &GOOD).logits().unwrap().to_vec();
        assert!(want.iter().all(|x| x.is_finite()), "{what}");

        // Last, first and between, in one pass and in several.
        let mut behind = session(&model, &GOOD);
        behind.append_tokens(&[BAD], None).unwrap();
        is_told(&behind.logits().unwrap_err());
        for prompt in [[&GOOD[..], &[BAD]].concat(), [&[BAD], &GOOD[..]].concat(), [&GOOD[..4], &[BAD], &GOOD[4..]].concat()] {
            let mut lost = session(&model, &prompt);
            is_told(&lost.logits().unwrap_err());
            for sampling in [greedy().sampling, SamplingOptions::default().temperature(1.0)] {
                let options = greedy().sampling(sampling);
                is_told(&lost.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap_err());
            }
        }
        is_told(&session(&model, &GOOD).score_tokens(&[3, BAD, 2], None).unwrap_err());
        // What was before it is as it was.
        behind.truncate(GOOD.len()).unwrap();
        assert!(behind.logits().unwrap() == want, "{what}");

        // Others in the same passes notice nothing.
        let alone = [&GOOD[..], &GOOD[3..]].map(|ids| {
            let mut session = begun(&model, ids);
            std::iter::from_fn(|| session.next().unwrap()).map(|event| event.token).collect::<Vec<_>>()
        });
        let [mut one, mut lost, mut other] = [begun(&model, &GOOD), begun(&model, &[GOOD[0], BAD]), begun(&model, &GOOD[3..])];
        let mut tokens = [vec![], vec![]];
        for step in 0..5 {
            let mut sessions = vec![&mut one, &mut other];
            if step == 0 {
                sessions.insert(1, &mut lost);
            }
            let mut events = Session::next_of(&mut sessions).unwrap();
            if step == 0 {
                is_told(&events.remove(1).unwrap_err());
            }
            for (tokens, event) in tokens.iter_mut().zip(events) {
                tokens.extend(event.unwrap().map(|event| event.token));
            }
        }
        assert_eq!(tokens, alone, "{what}");
    }
}

#[test]
fn a_batch_whose_activations_overflow_is_not_learnt() {
    let folder = directory();
    let with_bad: Vec<u32> = [&GOOD[..], &[BAD], &GOOD[..]].concat();
    for kind in [None, Some("q8_0"), Some("q4_k_m")] {
        let mut options = LoadOptions::default();
        options.quantization = kind.map(str::to_string);
        let model = Model::load(folder.path(), &options, None).unwrap();
        let fresh = || LoraTrainer::new(&model, &LoraConfig::default().rank(2), &TrainOptions::default()).unwrap();
        let mut trainer = fresh();
        for offsets in [vec![0, with_bad.len()], vec![0, GOOD.len(), with_bad.len()]] {
            let evaluated = trainer.eval_step(&with_bad, None, &offsets).map(drop);
            for result in [evaluated, trainer.train_step(&with_bad, None, &offsets).map(drop)] {
                let error = result.unwrap_err();
                let message = "loss: expected a finite number, found NaN";
                assert!(error.kind() == ErrorKind::Device && error.message().contains(message), "{kind:?}: {error}");
            }
        }
        let step = |trainer: &mut LoraTrainer| trainer.train_step(&GOOD, None, &[0, GOOD.len()]).unwrap();
        assert_eq!(step(&mut trainer), step(&mut fresh()), "{kind:?}");
    }
}

#[test]
fn a_text_whose_activations_overflow_has_no_vector() {
    let base = golden("encoders/bert_mean_norm");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(base.join(file), folder.path().join(file)).unwrap();
    }
    let mut tensors = Reference::open(&base.join("model.safetensors")).tensors();
    let norm = &mut tensors.get_mut("encoder.layer.0.attention.output.LayerNorm.weight").unwrap().2;
    norm.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&3e38f32.to_le_bytes()));
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    for (kind, exact) in [(None, false), (Some("q8_0"), false), (Some("q8_0"), true), (Some("q4_0"), false)] {
        let mut options = LoadOptions::default().exact(exact);
        options.quantization = kind.map(str::to_string);
        let model = Model::load(folder.path(), &options, None).unwrap();
        for pooling in [Pooling::Cls, Pooling::Max, Pooling::Mean, Pooling::MeanSqrtLen, Pooling::WeightedMean, Pooling::Last] {
            let options = EmbedOptions::default().pooling(pooling);
            let error = model.embed(&["a little text", "and another, longer one"], &options, None).unwrap_err();
            let message = "texts[0]: expected a vector of finite values, found";
            assert!(
                error.kind() == ErrorKind::Device && error.message().contains(message),
                "{kind:?}, {exact}, {pooling:?}: {error}"
            );
        }
    }
}
