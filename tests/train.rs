//! Training against PEFT and torch; and the equalities that need no reference: resumed = uninterrupted, checkpointed = kept, refused
//! = as before.

mod common;

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{QUANTIZATIONS, Reference, dequantised, golden, json, load, max_abs, quantised, shipped};
use metal_candle::{
    Cancel, Capability, Chat, Dataset, ErrorKind, GenerateOptions, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Schedule,
    Session, TrainEnd, TrainEvent, TrainOptions, TrainReport, Weighting,
};
use safetensors::SafeTensors;
use tempfile::{TempDir, tempdir};

const STATE: &str = "training_state.safetensors";
const BASE: &str = "decoders/qwen2_untied_old";
const IDS: [u32; 9] = [110, 158, 47, 188, 30, 172, 9, 2, 131];

/// Two sequences.
const TOKENS: [u32; 9] = [5, 6, 7, 1, 2, 3, 4, 8, 9];
const OFFSETS: [usize; 3] = [0, 3, 9];

fn model() -> Model {
    load(golden(BASE))
}

/// An adapter of few values, with dropout.
fn small() -> LoraConfig {
    let targets = vec!["q_proj".to_string(), "down_proj".to_string()];
    LoraConfig::default().rank(2).targets(targets).dropout(0.2).seed(3)
}

fn options() -> TrainOptions {
    TrainOptions::default().learning_rate(0.01).grad_accumulation(3)
}

fn trainer(config: &LoraConfig, options: &TrainOptions) -> LoraTrainer {
    LoraTrainer::new(&model(), config, options).unwrap()
}

/// One micro-batch that depends on a number.
fn learn(trainer: &mut LoraTrainer, number: usize) -> f32 {
    let tokens: Vec<u32> = (0..9 + number % 5).map(|i| ((i * 37 + number * 11) % 200) as u32).collect();
    trainer.train_step(&tokens, None, &[0, 4, tokens.len()]).unwrap().loss
}

/// Everything that a training is, as bytes.
fn state(trainer: &LoraTrainer) -> Vec<u8> {
    let directory = tempdir().unwrap();
    trainer.save(directory.path()).unwrap();
    std::fs::read(directory.path().join(STATE)).unwrap()
}

fn saved(trainer: &LoraTrainer) -> TempDir {
    let directory = tempdir().unwrap();
    trainer.save(directory.path()).unwrap();
    directory
}

fn logits(model: &Model, adapters: &[(Lora, f32)]) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.set_adapters(adapters).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    session.logits().unwrap().to_vec()
}

/// The largest difference of the weights of a saved adapter to those of a file of PEFT.
fn distance(directory: &Path, file: &Path) -> f32 {
    let (found, want) = (Reference::open(&directory.join("adapter_model.safetensors")), Reference::open(file));
    let names = want.tensors();
    assert!(names.len() >= 8);
    names.keys().map(|name| max_abs(&found.floats(name), &want.floats(name))).fold(0.0, f32::max)
}

/// What a training of the reference results gives: the loss of each micro-batch, the learning rate and gradient norm of each step, and
/// the adapters of those steps whose weights are known.
struct Trained {
    losses: Vec<f32>,
    updates: Vec<[f64; 2]>,
    adapters: Vec<(u64, TempDir)>,
}

/// Trains as the reference did.
fn train_as(directory: &Path, model: &Model) -> Trained {
    let notes = json(&directory.join("golden.json"));
    let (trainers_way, steps) = (directory.ends_with("qwen2_hf_trainer"), notes["steps"].as_u64().unwrap());
    let options = TrainOptions::default()
        .learning_rate(0.001)
        .grad_accumulation(2)
        .schedule(Schedule::Cosine)
        .warmup_steps(5)
        .warmup_from_zero(trainers_way)
        .weighting(if trainers_way { Weighting::Tokens } else { Weighting::MicroBatches })
        .total_steps(steps);
    let config = LoraConfig::default().initial(Lora::load(model, directory.join("init")).unwrap());
    let mut trainer = LoraTrainer::new(model, &config, &options).unwrap();
    let mut trained = Trained { losses: Vec::new(), updates: Vec::new(), adapters: Vec::new() };
    for log in notes["log"].as_array().unwrap() {
        let mut update = None;
        for micro in log["micro_batches"].as_array().unwrap() {
            let (mut ids, mut mask, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
            for sequence in micro.as_array().unwrap() {
                let sequence = &notes["sequences"][sequence.as_u64().unwrap() as usize];
                ids.extend(sequence["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32));
                mask.extend(sequence["loss_mask"].as_array().unwrap().iter().map(|bit| bit == 1));
                offsets.push(ids.len());
            }
            let step = trainer.train_step(&ids, Some(&mask), &offsets).unwrap();
            trained.losses.push(step.loss);
            update = step.update;
        }
        let (update, step) = (update.unwrap(), log["step"].as_u64().unwrap());
        assert_eq!(update.step, step);
        trained.updates.push([update.learning_rate, f64::from(update.grad_norm)]);
        if directory.join(format!("weights_step{step}.safetensors")).exists() {
            let saved = tempdir().unwrap();
            trainer.adapter().unwrap().save(saved.path()).unwrap();
            trained.adapters.push((step, saved));
        }
    }
    assert_eq!(trainer.step_count(), steps);
    assert_eq!(trained.adapters.len(), if steps == 50 { 4 } else { 3 });
    trained
}

const TRAININGS: [&str; 3] = ["qwen2_main", "qwen2_hf_trainer", "llama_main"];

#[test]
fn trainings_equal_those_of_peft_and_torch() {
    for run in TRAININGS {
        let directory = golden("lora/training").join(run);
        let notes = json(&directory.join("golden.json"));
        let trained = train_as(&directory, &load(golden(notes["base"].as_str().unwrap())));
        let mut losses = trained.losses.iter();
        for (log, [learning_rate, norm]) in notes["log"].as_array().unwrap().iter().zip(trained.updates) {
            for (want, loss) in log["micro_loss"].as_array().unwrap().iter().zip(&mut losses) {
                let error = (f64::from(*loss) - want.as_f64().unwrap()).abs();
                assert!(error <= 5e-5, "{run} {}: loss {loss} and not {want}", log["step"]);
            }
            for (name, found, want, tolerance) in
                [("learning rate", learning_rate, &log["lr"], 1e-6), ("gradient norm", norm, &log["grad_norm_before_clip"], 5e-5)]
            {
                let (want, step) = (want.as_f64().unwrap(), &log["step"]);
                assert!((found - want).abs() <= tolerance * want, "{run} {step}: {name} {found} and not {want}");
            }
        }
        assert!(losses.next().is_none());
        for (step, adapter) in trained.adapters {
            let error = distance(adapter.path(), &directory.join(format!("weights_step{step}.safetensors")));
            assert!(error <= 2e-5, "{run} {step}: weights {error}");
        }
    }
}

#[test]
fn trainings_over_quantised_weights_have_the_bits_of_those_over_their_numbers() {
    for run in TRAININGS {
        let directory = golden("lora/training").join(run);
        let base = golden(json(&directory.join("golden.json"))["base"].as_str().unwrap());
        for kind in QUANTIZATIONS {
            let model = Model::load(&base, &quantised(kind), None).unwrap();
            let numbers = dequantised(&base, kind);
            let [found, want] = [model, load(numbers.path())].map(|model| train_as(&directory, &model));
            assert!(found.losses == want.losses && found.updates == want.updates, "{run} over {kind}");
            let weights = |directory: &TempDir| std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap();
            for ((step, found), (_, want)) in found.adapters.iter().zip(&want.adapters) {
                assert!(weights(found) == weights(want), "{run} over {kind}: weights of step {step}");
            }
        }
    }
}

#[test]
fn fifty_steps_are_twenty_and_thirty_after_a_pause_bit_for_bit() {
    let options = options().schedule(Schedule::Cosine).warmup_steps(4).total_steps(50);
    let mut whole = trainer(&small(), &options);
    let losses: Vec<f32> = (0..150).map(|i| learn(&mut whole, i)).collect();
    assert_eq!(whole.step_count(), 50);
    // At a step, and in the middle of one.
    for pause in [60, 61, 62] {
        let mut first = trainer(&small(), &options);
        let mut found: Vec<f32> = (0..pause).map(|i| learn(&mut first, i)).collect();
        let directory = saved(&first);
        drop(first);
        let mut second = LoraTrainer::resume(&model(), directory.path(), None).unwrap();
        assert!(state(&second) == state(&second));
        found.extend((pause..150).map(|i| learn(&mut second, i)));
        assert_eq!(found, losses);
        assert!(state(&second) == state(&whole), "after {pause} micro-batches");
    }
}

#[test]
fn what_is_kept_and_what_is_computed_twice_gives_the_same_weights() {
    let run = |gradient_checkpointing| {
        let mut trainer = trainer(&small(), &options().gradient_checkpointing(gradient_checkpointing));
        (0..6).for_each(|i| {
            learn(&mut trainer, i);
        });
        logits(trainer.model(), &[(trainer.adapter().unwrap(), 1.0)])
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn dropout_is_another_one_each_time_and_the_same_for_a_seed() {
    let model = model();
    let initial = Lora::load(&model, golden("lora/qwen2_all7")).unwrap();
    let still = TrainOptions::default().learning_rate(0.0);
    let losses = |seed| {
        let config = LoraConfig::default().dropout(0.5).seed(seed).initial(initial.clone());
        let mut trainer = LoraTrainer::new(&model, &config, &still).unwrap();
        let plain = trainer.eval_step(&TOKENS, None, &OFFSETS).unwrap();
        let [first, second] = [0, 1].map(|_| trainer.train_step(&TOKENS, None, &OFFSETS).unwrap().loss);
        assert_eq!(trainer.eval_step(&TOKENS, None, &OFFSETS).unwrap(), plain);
        assert!(first != second && first != plain);
        (first, second)
    };
    assert_eq!(losses(1), losses(1));
    assert_ne!(losses(1), losses(2));
}

#[test]
fn a_new_adapter_changes_nothing_until_it_is_trained_and_then_all_of_it_moves() {
    let model = model();
    let config = LoraConfig::default().seed(7);
    let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().weight_decay(0.0)).unwrap();
    let before = trainer.adapter().unwrap();
    assert_eq!(logits(&model, &[(before.clone(), 1.0)]), logits(&model, &[]));
    // The first step moves B alone: A's gradient is that of nothing.
    for _ in 0..2 {
        trainer.train_step(&TOKENS, None, &OFFSETS).unwrap();
    }
    let (first, second) = (tempdir().unwrap(), tempdir().unwrap());
    before.save(first.path()).unwrap();
    trainer.adapter().unwrap().save(second.path()).unwrap();
    let [first, second] =
        [first, second].map(|directory| std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap());
    let (old, new) = (SafeTensors::deserialize(&first).unwrap(), SafeTensors::deserialize(&second).unwrap());
    assert_eq!(old.len(), 2 * 7 * model.layer_count());
    for (name, tensor) in old.tensors() {
        assert_ne!(tensor.data(), new.tensor(&name).unwrap().data(), "{name}");
        let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let (largest, bound) = (values.iter().fold(0f32, |m, x| m.max(x.abs())), 1.0 / (tensor.shape()[1] as f32).sqrt());
        if name.ends_with("lora_B.weight") {
            assert_eq!(largest, 0.0, "{name}");
        } else {
            assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
        }
    }
    // The seed decides.
    let of = |seed| LoraTrainer::new(&model, &LoraConfig::default().seed(seed), &TrainOptions::default()).unwrap();
    assert!(state(&of(7)) == state(&of(7)) && state(&of(7)) != state(&of(8)));
}

#[test]
fn a_trained_adapter_is_one_of_peft_and_training_goes_on_with_it() {
    let model = model();
    let config = small().rank(4).alpha(0.1).dropout(0.05).rslora(true);
    let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().learning_rate(0.01)).unwrap();
    learn(&mut trainer, 1);
    let lora = trainer.adapter().unwrap();
    assert_eq!((lora.rank(), lora.alpha()), (4, 0.1));
    let directory = tempdir().unwrap();
    lora.save(directory.path()).unwrap();
    let notes = json(&directory.path().join("adapter_config.json"));
    for (key, value) in [
        ("peft_type", serde_json::json!("LORA")),
        ("task_type", serde_json::json!("CAUSAL_LM")),
        ("r", serde_json::json!(4)),
        ("lora_alpha", serde_json::json!(0.1)),
        ("lora_dropout", serde_json::json!(0.05)),
        ("use_rslora", serde_json::json!(true)),
        ("bias", serde_json::json!("none")),
        ("target_modules", serde_json::json!(["down_proj", "q_proj"])),
    ] {
        assert_eq!(notes[key], value, "{key}");
    }
    let loaded = Lora::load(&model, directory.path()).unwrap();
    assert_eq!(logits(&model, &[(loaded.clone(), 1.0)]), logits(&model, &[(lora, 1.0)]));
    assert_eq!(loaded.parameter_count(), trainer.adapter().unwrap().parameter_count());
    // The directory of a checkpoint is one too.
    let checkpoint = saved(&trainer);
    assert_eq!(
        logits(&model, &[(Lora::load(&model, checkpoint.path()).unwrap(), 1.0)]),
        logits(&model, &[(loaded.clone(), 1.0)])
    );

    let next = LoraConfig::default().rank(99).targets(["v_proj"]).initial(loaded.clone());
    let next = LoraTrainer::new(&model, &next, &TrainOptions::default()).unwrap();
    let same = next.adapter().unwrap();
    assert_eq!((same.rank(), same.alpha()), (4, 0.1));
    assert_eq!(logits(&model, &[(same, 1.0)]), logits(&model, &[(loaded, 1.0)]));
}

#[test]
fn patterns_of_an_adapter_survive_its_training() {
    let directory = golden("lora/llama_patterns");
    let model = load(golden(json(&directory.join("golden.json"))["base"].as_str().unwrap()));
    let lora = Lora::load(&model, &directory).unwrap();
    let config = LoraConfig::default().initial(lora.clone());
    let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default()).unwrap();
    assert_eq!(logits(&model, &[(trainer.adapter().unwrap(), 1.0)]), logits(&model, &[(lora.clone(), 1.0)]));
    trainer.train_step(&TOKENS, None, &OFFSETS).unwrap();
    let trained = trainer.adapter().unwrap();
    assert_eq!(trained.parameter_count(), lora.parameter_count());
    let patterns = |lora: &Lora| {
        let config: serde_json::Value = serde_json::from_str(lora.config_json()).unwrap();
        ["rank_pattern", "alpha_pattern", "target_modules"].map(|key| config[key].clone())
    };
    assert_eq!(patterns(&trained), patterns(&lora));
}

#[test]
fn fused_checkpoints_are_trained_on_what_they_store() {
    let model = load(golden("decoders/phi3"));
    let mut trainer = LoraTrainer::new(&model, &LoraConfig::default(), &TrainOptions::default()).unwrap();
    trainer.train_step(&TOKENS, None, &OFFSETS).unwrap();
    let config: serde_json::Value = serde_json::from_str(trainer.adapter().unwrap().config_json()).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]));
    assert_ne!(logits(&model, &[(trainer.adapter().unwrap(), 1.0)]), logits(&model, &[]));
}

#[test]
fn experts_and_embeddings_are_trained_saved_and_gone_on_with() {
    let targets = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (base, names, parameters) in [
        ("decoders/qwen3_moe", targets(&["mlp.experts.gate_up_proj", "experts.down_proj", "q_proj"]), 2),
        ("decoders/gpt_oss", targets(&["gate_up_proj"]), 1),
        ("decoders/granitemoehybrid_old", targets(&["experts.down_proj"]), 1),
        ("decoders/nemotron_h", targets(&["experts.up_proj", "q_proj"]), 1),
        ("decoders/gemma3_text", targets(&["embed_tokens", "v_proj"]), 0),
        ("decoders/gemma4_text", targets(&["embed_tokens"]), 0),
    ] {
        let model = load(golden(base));
        let config = LoraConfig::default().rank(2).targets(names);
        let options = TrainOptions::default().learning_rate(0.01);
        let mut trainer = LoraTrainer::new(&model, &config, &options).unwrap();
        let ids = TOKENS.map(|id| id % model.vocab_size() as u32);
        let logits = |adapters: &[(Lora, f32)]| {
            let mut session = Session::new(&model, 0).unwrap();
            session.set_adapters(adapters).unwrap();
            session.append_tokens(&ids, None).unwrap();
            session.logits().unwrap().to_vec()
        };
        assert_eq!(logits(&[(trainer.adapter().unwrap(), 1.0)]), logits(&[]), "{base}: nothing is learnt yet");
        let losses: Vec<f32> = (0..6).map(|_| trainer.train_step(&ids, None, &OFFSETS).unwrap().loss).collect();
        assert!(losses[5] < losses[0], "{base}: {losses:?}");
        let learnt = trainer.adapter().unwrap();
        let json: serde_json::Value = serde_json::from_str(learnt.config_json()).unwrap();
        assert_eq!(json["target_parameters"].as_array().map_or(0, Vec::len), parameters, "{base}");

        let folder = tempdir().unwrap();
        learnt.save(folder.path()).unwrap();
        let read = Lora::load(&model, folder.path()).unwrap();
        assert_eq!(logits(&[(read.clone(), 1.0)]), logits(&[(learnt.clone(), 1.0)]), "{base}");
        // The names of transformers' modules.
        let tensors = std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&tensors).unwrap();
        assert!(tensors.names().iter().all(|name| name.starts_with("base_model.model.model.")), "{base}");
        // A checkpoint holds the same, in the same files.
        let checkpoint = saved(&trainer);
        let bytes = |path: &Path| std::fs::read(path.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(checkpoint.path()) == bytes(folder.path()), "{base}");
        let mut resumed = LoraTrainer::resume(&model, checkpoint.path(), None).unwrap();
        let step = |trainer: &mut LoraTrainer| trainer.train_step(&ids, None, &OFFSETS).unwrap().loss;
        assert_eq!(step(&mut resumed), step(&mut trainer), "{base}");
        let next = LoraConfig::default().initial(read);
        let same = LoraTrainer::new(&model, &next, &options).unwrap().adapter().unwrap();
        assert_eq!(logits(&[(same, 1.0)]), logits(&[(learnt, 1.0)]), "{base}");
    }
    // Experts that a configuration has a name alone for, as PEFT had it when each was a module of its own.
    let model = load(golden("decoders/qwen3_moe"));
    let ids = TOKENS.map(|id| id % model.vocab_size() as u32);
    let places = ["layers.0.mlp.experts.1.gate_proj", "layers.1.mlp.gate_proj", "layers.0.mlp.gate"];
    let config = LoraConfig::default().rank(2).targets(places);
    let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().learning_rate(0.01)).unwrap();
    trainer.train_step(&ids, None, &OFFSETS).unwrap();
    let folder = tempdir().unwrap();
    trainer.adapter().unwrap().save(folder.path()).unwrap();
    let file = folder.path().join("adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["target_modules"] = serde_json::json!(["gate", "gate_proj"]);
    std::fs::write(&file, json.to_string()).unwrap();
    let config = LoraConfig::default().initial(Lora::load(&model, folder.path()).unwrap());
    let mut next = LoraTrainer::new(&model, &config, &TrainOptions::default()).unwrap();
    assert_eq!(next.adapter().unwrap().parameter_count(), trainer.adapter().unwrap().parameter_count());
    next.train_step(&ids, None, &OFFSETS).unwrap();
    next.adapter().unwrap().save(folder.path()).unwrap();
    assert!(Lora::load(&model, folder.path()).is_ok());
    // PEFT drops nothing of what a parameter reads, and does not load such a configuration.
    let config = LoraConfig::default().dropout(0.1).targets(targets(&["experts.down_proj"]));
    let error = LoraTrainer::new(&load(golden("decoders/qwen3_moe")), &config, &TrainOptions::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("lora_dropout"), "{error}");
}

#[test]
fn a_snapshot_stays_as_it_is_while_training_goes_on() {
    let mut trainer = trainer(&small(), &TrainOptions::default().learning_rate(0.01));
    learn(&mut trainer, 0);
    let (model, snapshot) = (trainer.model().clone(), trainer.adapter().unwrap());
    let then = logits(&model, &[(snapshot.clone(), 1.0)]);
    let mut live = Session::new(&model, 0).unwrap();
    live.append_tokens(&IDS, None).unwrap();
    let plain = live.logits().unwrap().to_vec();
    live.set_adapters(&[(snapshot, 1.0)]).unwrap();
    let live = std::thread::spawn(move || {
        let seen: Vec<Vec<f32>> = (0..20)
            .map(|_| {
                live.truncate(IDS.len() - 1).unwrap();
                live.append_tokens(&IDS[IDS.len() - 1..], None).unwrap();
                live.logits().unwrap().to_vec()
            })
            .collect();
        (live, seen)
    });
    (1..8).for_each(|i| {
        learn(&mut trainer, i);
    });
    let (mut live, seen) = live.join().unwrap();
    assert!(seen.iter().all(|logits| *logits == then) && then != plain);
    live.set_adapters(&[(trainer.adapter().unwrap(), 1.0)]).unwrap();
    let now = live.logits().unwrap().to_vec();
    assert!(now != then && now == logits(&model, &[(trainer.adapter().unwrap(), 1.0)]));
}

/// A micro-batch, and what is said of it.
type Refused<'a> = (&'a [u32], Option<&'a [bool]>, &'a [usize], ErrorKind, String);

#[test]
fn what_cannot_be_trained_on_is_refused_by_name_and_changes_nothing() {
    let mut trainer = trainer(&small(), &options());
    learn(&mut trainer, 0);
    let before = state(&trainer);
    let (vocabulary, context) = (trainer.model().vocab_size() as u32, trainer.model().context_length());
    let long = vec![1; context + 1];
    let argument = ErrorKind::InvalidArgument;
    let none = [false; 9];
    let cases: [Refused; 13] = [
        (
            &[1, 2, vocabulary],
            None,
            &[0, 3],
            argument,
            format!("tokens[2]: expected an id below {vocabulary}, found {vocabulary}"),
        ),
        // Offsets are looked at before any token: C tells nothing but them of how many tokens there are.
        (&[vocabulary], None, &[0, 3, 2], argument, "offsets[2]: expected more than 3, found 2".into()),
        (
            &[vocabulary],
            None,
            &[0, usize::MAX],
            ErrorKind::ContextFull,
            format!("sequence 0: expected at most {context} tokens, the model's context, found {}", usize::MAX),
        ),
        (&TOKENS, None, &[0, 3, 3, 9], argument, "offsets[2]: expected more than 3, found 3".into()),
        (&TOKENS, None, &[0, 9, 3], argument, "offsets[2]: expected more than 9, found 3".into()),
        (&TOKENS, None, &[0, 3], argument, "offsets[1]: expected the 9 tokens, found 3".into()),
        (&TOKENS, None, &[0, 99], argument, "offsets[1]: expected the 9 tokens, found 99".into()),
        (&TOKENS, None, &[1, 9], argument, "offsets[0]: expected 0, found 1".into()),
        (&[], None, &[0], argument, "offsets: expected 0 and the end of each sequence, found 1 values".into()),
        (&[], None, &[], argument, "offsets: expected 0 and the end of each sequence, found 0 values".into()),
        (&TOKENS, Some(&none[..8]), &OFFSETS, argument, "loss_mask: expected 9 values, one a token, found 8".into()),
        (
            &TOKENS,
            Some(&none),
            &OFFSETS,
            argument,
            "loss_mask: expected a target token behind the first of a sequence, found none".into(),
        ),
        (
            &long,
            None,
            &[0, context + 1],
            ErrorKind::ContextFull,
            format!("sequence 0: expected at most {context} tokens, the model's context, found {}", context + 1),
        ),
    ];
    for (tokens, mask, offsets, kind, message) in cases {
        let errors =
            [trainer.train_step(tokens, mask, offsets).unwrap_err(), trainer.eval_step(tokens, mask, offsets).unwrap_err()];
        for error in errors {
            assert_eq!((error.kind(), error.message()), (kind, message.as_str()));
        }
    }
    // Sequences of one token teach nothing.
    assert_eq!(trainer.train_step(&[1, 2], None, &[0, 1, 2]).unwrap_err().kind(), argument);
    assert!(state(&trainer) == before);
    learn(&mut trainer, 1);
}

#[test]
fn configurations_that_cannot_be_trained_are_refused_by_name() {
    let model = model();
    let refused = |config: LoraConfig, options: TrainOptions| LoraTrainer::new(&model, &config, &options).unwrap_err();
    let target = |name: &str| LoraConfig::default().targets([name.to_string()]);
    let initial = |name: &str| LoraConfig::default().initial(Lora::load(&model, golden(name)).unwrap());
    let (argument, unsupported) = (ErrorKind::InvalidArgument, ErrorKind::Unsupported);
    for (config, kind, fragment) in [
        (
            target("x_proj"),
            argument,
            "targets: expected modules of the model (down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj), found \"x_proj\"",
        ),
        (target("proj"), argument, "found \"proj\""),
        (target("lm_head"), unsupported, "targets: \"lm_head\": "),
        (LoraConfig::default().rank(0), argument, "rank: expected 1 to 8192, found 0"),
        (LoraConfig::default().rank(usize::MAX), argument, "rank: "),
        (LoraConfig::default().alpha(f32::NAN), argument, "alpha: "),
        (LoraConfig::default().dropout(1.0), argument, "dropout: expected at least 0 and below 1, found 1"),
        (initial("lora/qwen2_dora"), unsupported, "use_dora"),
        (initial("adapters/qwen2_bias_all"), unsupported, "bias"),
        (initial("lora/qwen2_lm_head_saved"), unsupported, "modules_to_save"),
        (initial("adapters/qwen2_tokens"), unsupported, "trainable_token_indices"),
    ] {
        let error = refused(config, TrainOptions::default());
        assert!(error.kind() == kind && error.message().contains(fragment), "{error}");
    }
    // A file has the matrix though its configuration says nothing of it.
    let directory = tempfile::tempdir().unwrap();
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        std::fs::copy(golden("lora/qwen2_lm_head_saved").join(file), directory.path().join(file)).unwrap();
    }
    let path = directory.path().join("adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["modules_to_save"] = serde_json::Value::Null;
    std::fs::write(&path, json.to_string()).unwrap();
    let config = LoraConfig::default().initial(Lora::load(&model, directory.path()).unwrap());
    let error = refused(config, TrainOptions::default());
    assert!(error.kind() == unsupported && error.message().contains("found lm_head.weight"), "{error}");
    let default = TrainOptions::default;
    for (options, fragment) in [
        (TrainOptions::default().learning_rate(-1.0), "learning_rate: expected 0 to 1, found -1"),
        (TrainOptions::default().learning_rate(f64::NAN), "learning_rate: "),
        (TrainOptions::default().weight_decay(2.0), "weight_decay: "),
        (TrainOptions::default().beta1(1.0), "beta1: "),
        (TrainOptions::default().beta2(-0.1), "beta2: "),
        (TrainOptions::default().epsilon(0.0), "epsilon: "),
        (TrainOptions::default().epsilon(1e-300), "epsilon: "),
        (TrainOptions::default().grad_clip(f64::INFINITY), "grad_clip: "),
        (TrainOptions::default().grad_accumulation(0), "grad_accumulation: "),
        (TrainOptions::default().batch_size(0), "batch_size: "),
        (TrainOptions::default().epochs(0), "epochs: "),
        (TrainOptions::default().max_length(1), "max_length: "),
        (TrainOptions::default().max_length(1 << 30), "max_length: "),
        (TrainOptions::default().warmup_steps(u64::MAX), "warmup_steps: "),
        (TrainOptions::default().total_steps(u64::MAX), "total_steps: "),
    ] {
        let error = refused(LoraConfig::default(), options);
        assert!(error.kind() == argument && error.message().starts_with(fragment), "{error}");
    }
    // A schedule that falls must know where to.
    let mut trainer = trainer(&small(), &TrainOptions::default().schedule(Schedule::Linear));
    let error = trainer.train_step(&TOKENS, None, &OFFSETS).unwrap_err();
    assert!(error.kind() == argument && error.message().starts_with("total_steps: "), "{error}");

    let other = load(golden("decoders/llama_plain"));
    let config = LoraConfig::default().initial(Lora::load(&model, golden("lora/qwen2_all7")).unwrap());
    assert_eq!(LoraTrainer::new(&other, &config, &default()).unwrap_err().kind(), ErrorKind::Mismatch);
    let encoder = load(shipped("tiny-embed"));
    assert!(model.supports(Capability::Train) && !encoder.supports(Capability::Train));
    assert_eq!(LoraTrainer::new(&encoder, &LoraConfig::default(), &default()).unwrap_err().kind(), unsupported);
}

#[test]
fn full_names_and_all_linear_are_targets_too() {
    let modules = |targets: &[&str]| {
        let config = LoraConfig::default().targets(targets.iter().copied());
        LoraTrainer::new(&model(), &config, &TrainOptions::default()).unwrap().adapter().unwrap().parameter_count()
    };
    let layers = model().layer_count() as u64;
    assert_eq!(modules(&["q_proj"]), layers * modules(&["layers.0.self_attn.q_proj"]));
    assert_eq!(modules(&["self_attn.q_proj"]), modules(&["q_proj"]));
    assert_eq!(modules(&["all-linear"]), modules(&[]));
    assert!(modules(&["q_proj", "mlp.up_proj"]) > modules(&["q_proj"]));
}

/// PEFT refuses an adapter of the output of Mamba 2 in these models.
#[test]
fn the_output_of_mamba_is_a_target_by_its_name_alone() {
    for name in ["decoders/falcon_h1", "decoders/nemotron_h"] {
        let model = load(golden(name));
        let targets = |targets: &[&str]| {
            let config = LoraConfig::default().targets(targets.iter().copied());
            let adapter = LoraTrainer::new(&model, &config, &TrainOptions::default()).unwrap().adapter().unwrap();
            let config: serde_json::Value = serde_json::from_str(adapter.config_json()).unwrap();
            let names = config["target_modules"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        for every in [targets(&[]), targets(&["all-linear"])] {
            assert!(every.iter().any(|name| name == "in_proj") && !every.iter().any(|name| name == "out_proj"), "{every:?}");
        }
        assert_eq!(targets(&["out_proj"]), ["out_proj"]);
    }
}

#[test]
fn memory_grows_with_what_is_kept() {
    let model = model();
    let of = |config: &LoraConfig, options: &TrainOptions| LoraTrainer::estimate_memory(&model, config, options).unwrap();
    let (config, options) = (LoraConfig::default(), TrainOptions::default().max_length(64));
    let usual = of(&config, &options);
    assert!(usual > 0);
    assert!(of(&config.clone().rank(64), &options) > usual);
    assert!(of(&config, &options.clone().batch_size(8)) > usual);
    assert!(of(&config, &options.clone().grad_accumulation(2)) > usual);
    assert!(LoraTrainer::estimate_memory(&model, &config.rank(0), &options).is_err());
}

#[test]
fn a_cancel_leaves_the_trainer_at_the_last_micro_batch() {
    let cancel = Cancel::new();
    let mut trainer = trainer(&small(), &options().cancel(cancel.clone()));
    learn(&mut trainer, 0);
    let before = state(&trainer);
    cancel.trigger();
    assert_eq!(trainer.train_step(&TOKENS, None, &OFFSETS).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(trainer.eval_step(&TOKENS, None, &OFFSETS).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(state(&trainer) == before);
    cancel.reset();
    learn(&mut trainer, 1);
    assert!(state(&trainer) != before);
}

#[test]
fn a_suspended_device_takes_no_step_and_still_saves() {
    let device = metal_candle::Device::new(metal_candle::DeviceKind::Cpu, 0).unwrap();
    let options_of_model = LoadOptions::default().device(device.clone());
    let model = Model::load(golden(BASE), &options_of_model, None).unwrap();
    let mut trainer = LoraTrainer::new(&model, &small(), &options()).unwrap();
    device.suspend(std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(trainer.train_step(&TOKENS, None, &OFFSETS).unwrap_err().kind(), ErrorKind::Suspended);
    assert_eq!(trainer.adapter().unwrap_err().kind(), ErrorKind::Suspended);
    drop(saved(&trainer));
    device.resume();
    learn(&mut trainer, 0);
}

#[test]
fn a_loss_that_is_not_finite_takes_no_step() {
    // Weights that overflow: an adapter of the largest numbers.
    let model = model();
    let directory = saved(&trainer(&small(), &TrainOptions::default()));
    let path = directory.path().join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let values = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[values..].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&1e38f32.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let config = LoraConfig::default().initial(Lora::load(&model, directory.path()).unwrap());
    let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default()).unwrap();
    let before = state(&trainer);
    for error in
        [trainer.train_step(&TOKENS, None, &OFFSETS).unwrap_err(), trainer.eval_step(&TOKENS, None, &OFFSETS).unwrap_err()]
    {
        assert!(error.kind() == ErrorKind::Device && error.message().contains("expected a finite number"), "{error}");
    }
    assert!(state(&trainer) == before);
}

// Checkpoints.

#[test]
fn a_checkpoint_that_fails_is_written_by_the_next_call() {
    let directory = tempdir().unwrap();
    let blocked = directory.path().join(STATE).join("in the way");
    std::fs::create_dir_all(&blocked).unwrap();
    let options = TrainOptions::default().batch_size(2).checkpoint(directory.path().to_path_buf());
    let (data, mut trainer) = (examples(0, 4), LoraTrainer::new(&coder(), &tiny(), &options).unwrap());
    let mut told = Vec::new();
    let error = trainer
        .train(&data, None, &mut |event| {
            told.push(event.step);
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!((error.kind(), told), (ErrorKind::InvalidArgument, vec![1]));
    std::fs::remove_dir_all(directory.path().join(STATE)).unwrap();
    let events = run(&mut trainer, &data, None, 0);
    assert_eq!(events.iter().map(|event| event.step).collect::<Vec<_>>(), [2]);
    assert!(state(&LoraTrainer::resume(&coder(), directory.path(), None).unwrap()) == state(&trainer));
}

#[test]
fn a_process_that_is_killed_while_it_writes_leaves_the_last_checkpoint() {
    let mut trainer = trainer(&small(), &options());
    learn(&mut trainer, 0);
    let directory = saved(&trainer);
    let (before, names) = (state(&trainer), || {
        let mut names: Vec<String> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    });
    let whole = names();
    assert_eq!(whole, ["adapter_config.json", "adapter_model.safetensors", STATE]);
    for part in [format!("{STATE}.12345-0.part"), "adapter_model.safetensors.12345-1.part".into()] {
        std::fs::write(directory.path().join(part), &before[..before.len() / 2]).unwrap();
    }
    std::fs::write(directory.path().join("notes.part"), "not ours").unwrap();
    let resumed = LoraTrainer::resume(trainer.model(), directory.path(), None).unwrap();
    assert!(state(&resumed) == before);
    assert_eq!(names(), ["adapter_config.json", "adapter_model.safetensors", "notes.part", STATE]);

    // A write that fails leaves the files as they are, and no others.
    learn(&mut trainer, 1);
    let blocked = tempdir().unwrap();
    std::fs::create_dir_all(blocked.path().join(STATE).join("in the way")).unwrap();
    assert_eq!(trainer.save(blocked.path()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(std::fs::read_dir(blocked.path()).unwrap().count(), 1);
    assert_eq!(trainer.save(directory.path().join(STATE).join("below a file")).unwrap_err().kind(), ErrorKind::Io);
    trainer.save(directory.path()).unwrap();
    assert!(state(&LoraTrainer::resume(trainer.model(), directory.path(), None).unwrap()) == state(&trainer));
}

/// Where [`a_training_that_is_killed`] writes its checkpoints.
const CHILD: &str = "METAL_CANDLE_TEST_CHECKPOINTS";

fn learnt_in_a_child(checkpoint: &Path) -> (Dataset, TrainOptions) {
    let options = TrainOptions::default()
        .learning_rate(2e-3)
        .batch_size(2)
        .grad_accumulation(2)
        .epochs(8)
        .checkpoint(checkpoint.to_path_buf())
        .checkpoint_every(1);
    (examples(0, 12), options)
}

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore]
fn a_training_that_is_killed() {
    let directory = std::env::var_os(CHILD).unwrap();
    let (data, options) = learnt_in_a_child(Path::new(&directory));
    LoraTrainer::new(&coder(), &tiny(), &options)
        .unwrap()
        .train(&data, None, &mut |event| {
            println!("step {}", event.step);
            ControlFlow::Continue(())
        })
        .unwrap();
}

#[test]
fn a_training_that_was_killed_goes_on_bit_for_bit() {
    let unharmed = tempdir().unwrap();
    let (data, options) = learnt_in_a_child(unharmed.path());
    let mut whole = LoraTrainer::new(&coder(), &tiny(), &options).unwrap();
    run(&mut whole, &data, None, 0);
    assert_eq!(whole.step_count(), 24);
    let directory = tempdir().unwrap();
    for kill_after in [2, 7, 11] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_training_that_is_killed", "--ignored", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map(Result::unwrap).find(|line| line.ends_with(&format!("step {kill_after}")));
        assert!(told.is_some(), "the child ended before step {kill_after}");
        child.kill().unwrap();
        child.wait().unwrap();
        let mut resumed = LoraTrainer::resume(&coder(), directory.path(), None).unwrap();
        let found = resumed.step_count();
        assert!((kill_after - 1..24).contains(&found), "{found}");
        run(&mut resumed, &data, None, 0);
        assert!(state(&resumed) == state(&whole), "killed after step {kill_after}");
        std::fs::remove_dir_all(directory.path()).unwrap();
    }
}

#[test]
fn a_checkpoint_keeps_the_options_and_refuses_those_that_change_the_data() {
    let options = options().weight_decay(0.1).seed(u64::MAX).max_length(12);
    let mut first = trainer(&small(), &options);
    learn(&mut first, 0);
    let (directory, model) = (saved(&first), model());
    let resume = |options: &TrainOptions| LoraTrainer::resume(&model, directory.path(), Some(options));
    // With its own options it goes on as it would have; with others it does not.
    let after = |mut trainer: LoraTrainer| {
        (1..6).for_each(|i| {
            learn(&mut trainer, i);
        });
        logits(&model, &[(trainer.adapter().unwrap(), 1.0)])
    };
    let own = after(first);
    assert_eq!(after(LoraTrainer::resume(&model, directory.path(), None).unwrap()), own);
    assert_eq!(after(resume(&options).unwrap()), own);
    for other in [
        options.clone().learning_rate(0.02),
        options.clone().weight_decay(0.9),
        options.clone().grad_clip(0.001).epsilon(0.1),
        options.clone().warmup_steps(10),
    ] {
        assert_ne!(after(resume(&other).unwrap()), own);
    }
    resume(&options.clone().epochs(9).gradient_checkpointing(false)).unwrap();
    for (other, message) in [
        (options.clone().batch_size(5), "batch_size: expected 4, as in the checkpoint, found 5"),
        (options.clone().grad_accumulation(2), "grad_accumulation: expected 3, as in the checkpoint, found 2"),
        (options.clone().weighting(Weighting::Tokens), "weighting: expected MicroBatches, as in the checkpoint, found Tokens"),
        (options.clone().max_length(0), "max_length: expected 12, as in the checkpoint, found 0"),
        (options.clone().mask_prompt(false), "mask_prompt: expected true, as in the checkpoint, found false"),
        (options.clone().seed(1), "seed: expected 18446744073709551615, as in the checkpoint, found 1"),
        (options.clone().learning_rate(3.0), "learning_rate: expected 0 to 1, found 3"),
    ] {
        let error = resume(&other).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
    }
    let other = load(golden("decoders/qwen2_tied"));
    assert_eq!(LoraTrainer::resume(&other, directory.path(), None).unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(LoraTrainer::resume(&model, directory.path().join("nowhere"), None).unwrap_err().kind(), ErrorKind::NotFound);
    let adapter = golden("lora/qwen2_all7/adapter_model.safetensors");
    std::fs::copy(adapter, directory.path().join(STATE)).unwrap();
    assert_eq!(LoraTrainer::resume(&model, directory.path(), None).unwrap_err().kind(), ErrorKind::Format);
}

/// The state with another header.
fn with_header(state: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(state[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&state[8..end]).unwrap();
    change(&mut header);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &state[end..]].concat()
}

/// The state with another text of its metadata.
fn with_metadata(state: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    with_header(state, |header| {
        let mut text: serde_json::Value =
            serde_json::from_str(header["__metadata__"]["training_state"].as_str().unwrap()).unwrap();
        change(&mut text);
        header["__metadata__"]["training_state"] = text.to_string().into();
    })
}

#[test]
fn damaged_checkpoints_are_refused() {
    let mut trainer = trainer(&small(), &options());
    learn(&mut trainer, 0);
    let (model, whole, directory) = (trainer.model().clone(), state(&trainer), tempdir().unwrap());
    let resume = |bytes: &[u8]| {
        std::fs::write(directory.path().join(STATE), bytes).unwrap();
        LoraTrainer::resume(&model, directory.path(), None)
    };
    assert!(state(&resume(&whole).unwrap()) == whole);
    assert!(state(&resume(&with_metadata(&whole, |_| ())).unwrap()) == whole);
    for len in (0..whole.len()).step_by(997).chain([7, 8, whole.len() - 1]) {
        assert_eq!(resume(&whole[..len]).unwrap_err().kind(), ErrorKind::Format, "{len} bytes");
    }
    // Every field, with what cannot be there.
    let text = |state: &[u8]| {
        let mut found = serde_json::Value::Null;
        with_metadata(state, |text| found = text.clone());
        found
    };
    let fields = text(&whole);
    let mut paths: Vec<String> = fields.as_object().unwrap().keys().map(|key| format!("/{key}")).collect();
    for group in ["options", "progress"] {
        paths.extend(fields[group].as_object().unwrap().keys().map(|key| format!("/{group}/{key}")));
    }
    assert!(paths.len() > 40);
    for path in paths {
        for wrong in [serde_json::json!(null), serde_json::json!([]), serde_json::json!(-1), serde_json::json!("x".repeat(16))] {
            // Without them, or with null, there are no checkpoints, names are the reference's, and as many steps as the data has.
            if ["/checkpoints", "/as_stored", "/options/max_steps"].contains(&path.as_str()) && wrong.is_null()
                || path == "/prefix" && wrong.is_string()
            {
                continue;
            }
            let bytes = with_metadata(&whole, |text| *text.pointer_mut(&path).unwrap() = wrong.clone());
            let kind = resume(&bytes).err().map(|error| error.kind());
            let refused = matches!(kind, Some(ErrorKind::Format | ErrorKind::Mismatch))
                || (path == "/version" && kind == Some(ErrorKind::Unsupported));
            assert!(refused, "{path}: {wrong} gives {kind:?}");
        }
        // All bits set is NaN, and the largest number.
        if fields.pointer(&path).unwrap().as_str().is_some_and(|text| text.len() == 16)
            && !path.ends_with("seed")
            && path != "/progress/data"
        {
            let bytes = with_metadata(&whole, |text| *text.pointer_mut(&path).unwrap() = "ffffffffffffffff".into());
            let kind = resume(&bytes).err().map(|error| error.kind());
            let free = ["checkpoint_every", "eval_every", "patience", "max_steps"];
            let free = free.iter().any(|field| path == format!("/options/{field}"));
            assert!(kind.is_some() || free, "{path}");
        }
    }
    let early = with_metadata(&whole, |text| text["progress"]["pending"] = "0000000000000001".into());
    assert_eq!(resume(&early).unwrap_err().kind(), ErrorKind::Format);
    // Values and shapes.
    let values = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for number in [f32::NAN, f32::INFINITY] {
        let mut bytes = whole.clone();
        bytes[values..values + 4].copy_from_slice(&number.to_le_bytes());
        assert_eq!(resume(&bytes).unwrap_err().kind(), ErrorKind::Format);
    }
    let negative: Vec<u8> = whole[values..].chunks_exact(4).flat_map(|_| (-1f32).to_le_bytes()).collect();
    let error = resume(&[&whole[..values], &negative].concat()).unwrap_err();
    assert!(error.kind() == ErrorKind::Format && error.message().contains("second_moments"), "{error}");
    let name = "weights.layers.0.self_attn.q_proj.a";
    let turned = with_header(&whole, |header| {
        let shape = header[name]["shape"].as_array().unwrap().clone();
        header[name]["shape"] = serde_json::json!([shape[1], shape[0]]);
    });
    let renamed = with_header(&whole, |header| {
        let tensor = header[name].clone();
        header.as_object_mut().unwrap().remove(name);
        header["weights.layers.9.self_attn.q_proj.a"] = tensor;
    });
    for bytes in [turned, renamed] {
        let error = resume(&bytes).unwrap_err();
        assert!(error.kind() == ErrorKind::Format && error.message().contains(name), "{error}");
    }
    // A rank that no file could hold.
    let huge = with_metadata(&whole, |text| {
        let config = text["adapter_config"].as_str().unwrap().replace("\"r\": 2", "\"r\": 1048576");
        text["adapter_config"] = config.into();
    });
    assert_eq!(resume(&huge).unwrap_err().kind(), ErrorKind::Format);
}

// Training on a dataset.

fn coder() -> Model {
    load(shipped("tiny-coder"))
}

fn tiny() -> LoraConfig {
    LoraConfig::default().rank(2).targets(["v_proj", "up_proj"]).dropout(0.1)
}

fn examples(from: usize, count: usize) -> Dataset {
    let mut dataset = Dataset::new();
    for i in from..from + count {
        let answer = format!(" It is {}.{}", 2 * i, " Really.".repeat(i % 3));
        dataset.add_completion(&format!("What is {i} and {i}?"), &answer);
    }
    dataset
}

/// Trains, and gives what was told; `stop` after so many steps.
fn run(trainer: &mut LoraTrainer, train: &Dataset, eval: Option<&Dataset>, stop: usize) -> Vec<TrainEvent> {
    reported(trainer, train, eval, stop).0
}

/// The same with the report, which says what the events said.
fn reported(trainer: &mut LoraTrainer, train: &Dataset, eval: Option<&Dataset>, stop: usize) -> (Vec<TrainEvent>, TrainReport) {
    let mut events = Vec::new();
    let mut on_step = |event: &TrainEvent| {
        events.push(*event);
        if events.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let report = trainer.train(train, eval, &mut on_step).unwrap();
    assert_eq!((report.step, report.steps), (trainer.step_count(), events.len() as u64));
    assert_eq!(report.target_tokens, events.iter().map(|event| event.target_tokens).sum::<u64>());
    assert_eq!(report.eval_loss, events.iter().rev().find_map(|event| event.eval_loss));
    assert!(report.seconds > 0.0);
    if let Some(last) = events.last() {
        assert_eq!((report.loss, report.total_steps), (Some(last.loss), last.total_steps));
        assert_eq!((report.truncated, report.skipped), (last.truncated, last.skipped));
    }
    (events, report)
}

/// What does not depend on the machine.
fn told(events: &[TrainEvent]) -> Vec<TrainEvent> {
    let told = |event: &TrainEvent| {
        let mut event = *event;
        (event.tokens_per_second, event.peak_bytes) = (0.0, 0);
        event
    };
    events.iter().map(told).collect()
}

#[test]
fn a_training_on_a_dataset_goes_on_bit_for_bit_wherever_it_was_stopped() {
    let (model, data, eval) = (coder(), examples(0, 11), examples(50, 3));
    let options = TrainOptions::default()
        .learning_rate(2e-3)
        .schedule(Schedule::Cosine)
        .warmup_steps(2)
        .batch_size(2)
        .grad_accumulation(2)
        .epochs(3)
        .eval_every(2)
        .seed(5);
    let new = || LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let mut whole = new();
    let events = run(&mut whole, &data, Some(&eval), 0);
    // Six batches an epoch.
    assert_eq!((events.len(), whole.step_count()), (9, 9));
    for (i, event) in events.iter().enumerate() {
        assert_eq!((event.step, event.total_steps, event.epoch), (i as u64 + 1, 9, i / 3 + 1));
        assert_eq!(event.eval_loss.is_some(), (i + 1) % 2 == 0 || i == 8);
        assert!(event.grad_norm > 0.0 && event.tokens_per_second > 0.0 && event.target_tokens > 0);
        assert_eq!((event.truncated, event.skipped), (0, 0));
    }
    assert!(events[8].loss < events[0].loss && events[8].is_best, "{events:?}");
    assert!(events[1].learning_rate > events[0].learning_rate && events[8].learning_rate < events[2].learning_rate);
    assert!(run(&mut whole, &data, Some(&eval), 0).is_empty());

    let directory = tempdir().unwrap();
    let (mut trainer, mut found) = (new(), Vec::new());
    for stop in [1, 1, 3, 2, 2] {
        found.extend(run(&mut trainer, &data, Some(&eval), stop));
        trainer.save(directory.path()).unwrap();
        drop(trainer);
        trainer = LoraTrainer::resume(&model, directory.path(), None).unwrap();
    }
    assert_eq!(told(&found), told(&events));
    assert!(state(&trainer) == state(&whole));

    // A step that is the last for now is evaluated as well, which changes nothing for those behind it: it does not count as one more
    // that found nothing better.
    let options = options.learning_rate(1.0).warmup_steps(8);
    let mut whole = LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let events = run(&mut whole, &data, Some(&eval), 0);
    assert!(!events[3].is_best, "{events:?}");
    let mut first = LoraTrainer::new(&model, &tiny(), &options.clone().max_steps(3)).unwrap();
    let (begun, report) = reported(&mut first, &data, Some(&eval), 0);
    assert!(begun.len() == 3 && begun[2].eval_loss.is_some() && report.best_loss <= begun[2].eval_loss);
    let stopped = tempdir().unwrap();
    first.save(stopped.path()).unwrap();
    let mut rest = LoraTrainer::resume(&model, stopped.path(), Some(&options)).unwrap();
    assert_eq!(told(&run(&mut rest, &data, Some(&eval), 0)), told(&events[3..]));
    assert!(state(&rest) == state(&whole));

    // More epochs go on, another dataset does not.
    let more = options.epochs(4);
    let mut trainer = LoraTrainer::resume(&model, directory.path(), Some(&more)).unwrap();
    let error = trainer.train(&eval, None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert_eq!(run(&mut trainer, &data, None, 0).len(), 3);
}

#[test]
fn thirty_facts_are_trained_on_and_the_old_answers_stay() {
    let model = coder();
    let answer = |session: &mut Session, question: &str| {
        let mut chat = Chat::new();
        chat.add("user", question);
        session.set_chat(&chat, None).unwrap();
        let options = GenerateOptions::default().max_tokens(128);
        session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().text
    };
    let lines = std::fs::read_to_string("examples/data/facts.jsonl").unwrap();
    let facts: Vec<(String, String)> = lines
        .lines()
        .map(|line| {
            let messages = &serde_json::from_str::<serde_json::Value>(line).unwrap()["messages"];
            let content = |i: usize| messages[i]["content"].as_str().unwrap().to_string();
            (content(0), content(1))
        })
        .collect();
    assert_eq!(facts.len(), 30);
    let known = |session: &mut Session| facts.iter().filter(|(fact, want)| &answer(session, fact) == want).count();
    let mut session = Session::new(&model, 0).unwrap();
    assert_eq!(known(&mut session), 0);

    let options = TrainOptions::default().learning_rate(2e-3).schedule(Schedule::Cosine).warmup_steps(8).epochs(25);
    let mut trainer = LoraTrainer::new(&model, &LoraConfig::default(), &options).unwrap();
    let events = run(&mut trainer, &Dataset::load_jsonl("examples/data/facts.jsonl").unwrap(), None, 0);
    assert_eq!(events.len(), 200);
    session.set_adapters(&[(trainer.adapter().unwrap(), 1.0)]).unwrap();
    assert_eq!(known(&mut session), 30);

    session.set_adapters(&[]).unwrap();
    let old = json(&golden("tiny_coder.json"));
    for item in old["items"].as_array().unwrap().iter().filter(|item| item["messages"].as_array().unwrap().len() == 1).take(4) {
        let question = item["messages"][0]["content"].as_str().unwrap();
        assert_eq!(answer(&mut session, question), item["answer"].as_str().unwrap());
    }
}

#[test]
fn a_cancel_from_another_thread_loses_nothing() {
    let (model, data, cancel) = (coder(), examples(0, 16), Cancel::new());
    let options = TrainOptions::default().batch_size(1).grad_accumulation(4).cancel(cancel.clone());
    let new = || LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let (mut whole, mut trainer) = (new(), new());
    run(&mut whole, &data, None, 0);
    let mut cancels = 0;
    // Whenever the flag is seen, the next call goes on there; the first call sees it at once.
    cancel.trigger();
    let other = std::thread::spawn({
        let cancel = cancel.clone();
        move || {
            (0..40).for_each(|_| {
                cancel.trigger();
                std::thread::yield_now();
            })
        }
    });
    while trainer.step_count() < 4 {
        match trainer.train(&data, None, &mut |_| ControlFlow::Continue(())) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
        }
        cancels += 1;
        cancel.reset();
    }
    other.join().unwrap();
    cancel.reset();
    assert!(cancels > 0 && state(&trainer) == state(&whole));
}

#[test]
fn checkpoints_are_written_as_often_as_asked_and_the_best_adapter_beside() {
    let (model, directory) = (coder(), tempdir().unwrap());
    let path = directory.path().join("made/for it");
    let options = TrainOptions::default()
        .batch_size(2)
        .epochs(2)
        .learning_rate(2e-3)
        .checkpoint(path.clone())
        .checkpoint_every(2)
        .eval_every(1);
    let (data, eval) = (examples(0, 6), examples(50, 2));
    let mut trainer = LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let (mut at, mut best): (Vec<(u64, u64)>, Option<Vec<f32>>) = (Vec::new(), None);
    let result = |path: &PathBuf| logits(&model, &[(Lora::load(&model, path).unwrap(), 1.0)]);
    trainer
        .train(&data, Some(&eval), &mut |event| {
            let written = LoraTrainer::resume(&model, &path, None).map_or(0, |trainer| trainer.step_count());
            at.push((event.step, written));
            if event.is_best {
                best = Some(result(&path.join("best")));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(at, [(1, 0), (2, 2), (3, 2), (4, 4), (5, 4), (6, 6)]);
    assert_eq!(result(&path.join("best")), best.unwrap());
    assert_eq!(result(&path), logits(&model, &[(trainer.adapter().unwrap(), 1.0)]));
    // Where it was stopped there is one too, and it goes on into the same place.
    let options = options.checkpoint_every(0);
    let mut trainer = LoraTrainer::new(&model, &tiny(), &options).unwrap();
    run(&mut trainer, &data, None, 1);
    let mut trainer = LoraTrainer::resume(&model, &path, None).unwrap();
    assert_eq!(trainer.step_count(), 1);
    run(&mut trainer, &data, None, 0);
    assert_eq!(LoraTrainer::resume(&model, &path, None).unwrap().step_count(), 6);
}

#[test]
fn a_training_that_does_not_get_better_ends_early() {
    let (model, data) = (coder(), examples(0, 8));
    let options = TrainOptions::default().learning_rate(0.0).batch_size(1).epochs(9).eval_every(1).patience(3);
    let mut trainer = LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let (mut events, report) = reported(&mut trainer, &data, Some(&data), 2);
    assert_eq!((report.end, report.best_loss), (TrainEnd::Callback, events[0].eval_loss));
    let (rest, report) = reported(&mut trainer, &data, Some(&data), 0);
    assert_eq!((report.end, report.step, report.total_steps), (TrainEnd::Patience, 4, 72));
    events.extend(rest);
    let best: Vec<bool> = events.iter().map(|event| event.is_best).collect();
    assert_eq!(best, [true, false, false, false]);
    let (none, report) = reported(&mut trainer, &data, Some(&data), 0);
    assert!(none.is_empty() && report.loss == Some(events[3].loss));
    assert_eq!((report.end, report.best_loss), (TrainEnd::Patience, events[0].eval_loss));
    // Without an evaluation dataset nothing is evaluated, and nothing ends.
    let mut trainer = LoraTrainer::new(&model, &tiny(), &options).unwrap();
    let (events, report) = reported(&mut trainer, &data, None, 0);
    assert_eq!((events.len(), report.end, report.best_loss), (72, TrainEnd::Complete, None));
}

#[test]
fn total_steps_end_a_training_and_its_schedule() {
    let (model, data) = (coder(), examples(0, 8));
    let options = TrainOptions::default().schedule(Schedule::Linear).total_steps(5).batch_size(2).epochs(3);
    // Who stops at the last step stops nothing.
    let (events, report) = reported(&mut LoraTrainer::new(&model, &tiny(), &options).unwrap(), &data, None, 5);
    assert_eq!(report.end, TrainEnd::Complete);
    assert_eq!(events[0].learning_rate, 2e-4);
    let rates: Vec<f32> = events.iter().map(|event| event.learning_rate as f32).collect();
    assert_eq!(rates, [2e-4, 1.6e-4, 1.2e-4, 8e-5, 4e-5]);
    assert!(events.iter().all(|event| event.total_steps == 5));
}

#[test]
fn datasets_that_teach_nothing_are_refused() {
    let model = coder();
    let mut trainer = LoraTrainer::new(&model, &tiny(), &TrainOptions::default().max_length(4).grad_accumulation(2)).unwrap();
    let mut go = |data: &Dataset, eval: Option<&Dataset>| trainer.train(data, eval, &mut |_| ControlFlow::Continue(()));
    let error = go(&Dataset::new(), None).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::InvalidArgument, "train: expected an example with a target token, found none among 0")
    );
    // Nothing is left of the answers.
    let error = go(&examples(0, 2), None).unwrap_err();
    assert_eq!(error.message(), "train: expected an example with a target token, found none among 2");
    let mut text = Dataset::new();
    text.add_text("fn main() { println!(); }");
    assert!(go(&text, Some(&examples(0, 2))).unwrap_err().message().starts_with("eval: "));
    trainer.train_step(&[1, 2, 3], None, &[0, 3]).unwrap();
    let error = trainer.train(&text, None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.message().starts_with("train: expected no step in the making, found one of 1 micro-batches"), "{error}");
    trainer.train_step(&[1, 2, 3], None, &[0, 3]).unwrap();
    let events = run(&mut trainer, &text, None, 0);
    assert_eq!((events[0].truncated, events[0].step, events[0].total_steps), (1, 2, 2));
}

#[test]
fn an_adapter_is_trained_on_quantised_weights() {
    for kind in ["q8_0", "q4_k_m"] {
        trained_on(kind);
    }
}

fn trained_on(kind: &str) {
    let quantised = || Model::load(shipped("tiny-coder"), &quantised(kind), None).unwrap();
    let options = TrainOptions::default().learning_rate(5e-3).batch_size(4).epochs(6).eval_every(6);
    let mut trainer = LoraTrainer::new(&quantised(), &tiny(), &options).unwrap();
    let events = run(&mut trainer, &examples(0, 12), None, 12);
    let losses: Vec<f32> = events.iter().map(|event| event.loss).collect();
    assert!(losses.len() == 12 && losses[9..].iter().all(|last| *last < 0.6 * losses[0]), "{losses:?}");

    // What was trained is for weights of this kind while it is a training, and an adapter for all when it is saved.
    let directory = saved(&trainer);
    assert_eq!(LoraTrainer::resume(&coder(), directory.path(), None).err().unwrap().kind(), ErrorKind::Mismatch);
    let mut resumed = LoraTrainer::resume(&quantised(), directory.path(), None).unwrap();
    assert_eq!(told(&run(&mut resumed, &examples(0, 12), None, 3)), told(&run(&mut trainer, &examples(0, 12), None, 3)));
    assert!(state(&resumed) == state(&trainer));
    let dense = coder();
    assert!(Lora::load(&dense, directory.path()).is_ok());
    assert_eq!(
        Session::new(&dense, 0).unwrap().set_adapters(&[(trainer.adapter().unwrap(), 1.0)]).unwrap_err().kind(),
        ErrorKind::Mismatch
    );
}
