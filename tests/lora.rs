//! Adapters against PEFT: logits with each of its variants, attached and merged; and the equalities that need no reference: removed =
//! never attached, per call = per session, changed = fresh, both orders, many sessions at once.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{QUANTIZATIONS, Reference, dequantised, golden, json, load, max_abs, quantised, shipped, write_tensors};
use metal_candle::{
    Capability, Dtype, EmbedOptions, ErrorKind, FinishReason, GenerateOptions, Generation, LoadOptions, Lora, LoraConfig,
    LoraTrainer, Model, Pooling, Session, TrainOptions,
};

/// The tolerance of the reference results.
const TOLERANCE: f32 = 5e-4;

/// Every adapter of the reference results.
fn adapters() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["lora", "adapters"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(golden(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("adapter_config.json").exists())
        .collect();
    found.sort();
    assert!(found.len() >= 52, "the reference results are there");
    found
}

fn base(adapter: &Path) -> Model {
    load(golden(json(&adapter.join("golden.json"))["base"].as_str().unwrap()))
}

fn open(model: &Model, adapter: impl AsRef<Path>) -> Lora {
    let adapter = adapter.as_ref();
    Lora::load(model, adapter).unwrap_or_else(|e| panic!("{}: {}", adapter.display(), e.details()))
}

/// A model and one of its adapters.
fn pair(name: &str) -> (Model, Lora) {
    let model = base(&golden(name));
    let lora = open(&model, golden(name));
    (model, lora)
}

fn session(model: &Model, adapters: &[(Lora, f32)], ids: &[u32]) -> Session {
    let mut session = Session::new(model, 0).unwrap();
    session.set_adapters(adapters).unwrap();
    session.append_tokens(ids, None).unwrap();
    session
}

/// The logits after a whole prompt.
fn logits(model: &Model, adapters: &[(Lora, f32)], ids: &[u32]) -> Vec<f32> {
    session(model, adapters, ids).logits().unwrap().to_vec()
}

/// The logits after each token, evaluated one by one.
fn stepwise(model: &Model, adapters: &[(Lora, f32)], ids: &[u32]) -> Vec<f32> {
    let mut session = session(model, adapters, &[]);
    let mut step = |id: &u32| {
        session.append_tokens(&[*id], None).unwrap();
        session.logits().unwrap().to_vec()
    };
    ids.iter().flat_map(&mut step).collect()
}

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(tokens).ignore_eos(true).temperature(0.0)
}

fn run(session: &mut Session, options: &GenerateOptions) -> Generation {
    session.generate(options, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

const IDS: [u32; 9] = [110, 158, 47, 188, 30, 172, 9, 2, 131];

#[test]
fn logits_equal_those_of_peft_attached_and_merged() {
    let mut seen = 0;
    for path in adapters() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let model = base(&path);
        let lora = open(&model, &path);
        let reference = Reference::open(&path.join("golden.safetensors"));
        let notes = json(&path.join("golden.json"));
        let merged = model.merge(&lora, 1.0).unwrap();
        if !model.supports(Capability::Generate) {
            let texts = json(&golden(notes["base"].as_str().unwrap()).join("golden.json"));
            let texts: Vec<&str> = texts["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
            let want = reference.floats("embeddings");
            let plain = EmbedOptions::default().normalize(true);
            let merged_error = max_abs(&merged.embed(&texts, &plain, None).unwrap(), &want);
            let error = max_abs(&model.embed(&texts, &plain.adapters([(lora, 1.0)]), None).unwrap(), &want);
            assert!(error <= 2e-5 && merged_error <= 2e-5, "{name}: {error}, merged {merged_error}");
            seen += 1;
            continue;
        }
        let adapters = [(lora, 1.0)];
        for prompt in 0..if path.starts_with(golden("lora")) { 2 } else { 1 } {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let want = reference.floats(&format!("prompt{prompt}.logits"));
            let last = &want[want.len() - model.vocab_size()..];
            let at_once = max_abs(&logits(&model, &adapters, &ids), last);
            let steps = max_abs(&stepwise(&model, &adapters, &ids), &want);
            assert!(at_once <= TOLERANCE && steps <= TOLERANCE, "{name} prompt {prompt}: {at_once}, in steps {steps}");
            // PEFT changes both sides of a tied matrix when it merges, twice if the adapter is for both, and this library what the adapter
            // is for.
            let tied = [
                "qwen2_tied_lm_head",
                "qwen2_tied_embed",
                "qwen2_tied_ensured_embed",
                "qwen2_tied_ensured_pattern",
                "qwen2_tied_tokens_apart",
                "qwen2_tied_tokens_lm_head",
                "gemma3_embed",
                "gemma4_embed",
            ];
            let want = if tied.contains(&name) { want } else { reference.floats(&format!("prompt{prompt}.merged_logits")) };
            let error = max_abs(&stepwise(&merged, &[], &ids), &want);
            assert!(error <= TOLERANCE, "{name} prompt {prompt}: {error} merged");
        }
        seen += 1;
    }
    assert!(seen >= 52);
}

/// A GGUF file of an adapter of the reference results.
fn gguf_adapter(name: &str) -> PathBuf {
    golden("gguf/adapters").join(format!("{name}.gguf"))
}

#[test]
fn gguf_files_of_adapters_give_the_logits_of_peft() {
    let found = std::fs::read_dir(golden("gguf/adapters")).unwrap().map(|entry| entry.unwrap().path());
    let names = found.filter(|path| path.extension().is_some_and(|end| end == "gguf"));
    let mut names: Vec<String> = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    names.retain(|name| name != "qwen3_moe_apart");
    names.sort();
    assert!(names.len() >= 16, "the reference results are there");
    for name in &names {
        let adapter = name.strip_suffix("-F16").unwrap_or(name);
        let folder =
            ["lora", "adapters"].map(|folder| golden(folder).join(adapter)).into_iter().find(|path| path.exists()).unwrap();
        let of_base = json(&folder.join("golden.json"))["base"].as_str().unwrap().to_string();
        let reference = Reference::open(&folder.join("golden.safetensors"));
        // Those that the converter has made a file of, too; in that of Granite 4 it makes of positions none.
        let of_gguf = golden("gguf/families").join(format!("{}.gguf", of_base.rsplit('/').next().unwrap()));
        for base in
            [golden(&of_base), of_gguf].into_iter().filter(|path| path.exists() && !path.ends_with("granitemoehybrid_dense.gguf"))
        {
            let model = load(&base);
            let lora = open(&model, gguf_adapter(name));
            let adapters = [(lora.clone(), 1.0)];
            if !model.supports(Capability::Generate) {
                if base.is_dir() {
                    let texts = json(&base.join("golden.json"));
                    let texts: Vec<&str> = texts["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
                    let options = EmbedOptions::default().normalize(true).adapters(adapters);
                    let error = max_abs(&model.embed(&texts, &options, None).unwrap(), &reference.floats("embeddings"));
                    assert!(error <= 2e-5, "{name}: {error}");
                }
                continue;
            }
            let (ids, want) = (reference.ids("prompt0.ids"), reference.floats("prompt0.logits"));
            // Half the values' digits: of a change that is as large as the logits.
            let tolerance = if name.ends_with("-F16") { 0.05 } else { TOLERANCE };
            let error = max_abs(&stepwise(&model, &adapters, &ids), &want);
            assert!(error <= tolerance, "{name} on {}: {error}", base.display());
            // What is saved of it is PEFT's.
            let folder = tempfile::tempdir().unwrap();
            lora.save(folder.path()).unwrap();
            let again = [(open(&model, folder.path()), 1.0)];
            assert_eq!(logits(&model, &again, &ids), logits(&model, &adapters, &ids), "{name}");
        }
    }
}

#[test]
fn gguf_files_of_experts_give_what_peft_has_of_each() {
    let model = load(golden("decoders/qwen3_moe"));
    let (of_peft, of_gguf) = (golden("gguf/adapters/qwen3_moe_apart"), gguf_adapter("qwen3_moe_apart"));
    let ids = IDS.map(|id| id % 83);
    let of = |path: &Path| logits(&model, &[(open(&model, path), 1.0)], &ids);
    assert_eq!(of(&of_gguf), of(&of_peft));
    assert!(max_abs(&of(&of_gguf), &logits(&model, &[], &ids)) > 0.1);
}

#[test]
fn gguf_files_of_other_models_and_of_none_are_refused_by_name() {
    let qwen = load(golden("decoders/qwen2_untied_old"));
    for (path, kind, parts) in [
        (gguf_adapter("llama_all7"), ErrorKind::Mismatch, ["general.architecture", "\"llama\"", "\"qwen2\""]),
        (golden("gguf/qwen2-F32.gguf"), ErrorKind::Unsupported, ["general.type", "\"adapter\"", "qwen2-F32.gguf"]),
    ] {
        let error = Lora::load(&qwen, &path).unwrap_err();
        assert!(error.kind() == kind && parts.iter().all(|part| error.message().contains(part)), "{error}");
    }
    let error = Model::load(gguf_adapter("llama_all7"), &LoadOptions::default(), None).err().unwrap();
    assert!(error.message().contains("general.type") && error.message().contains("an adapter is loaded for a model"), "{error}");
    let lfm3 = load(golden("decoders/lfm3"));
    let error = Lora::load(&lfm3, gguf_adapter("llama_all7")).unwrap_err();
    assert!(error.message().contains("llama.cpp has none for models of lfm3"), "{error}");
}

#[test]
fn a_removed_adapter_leaves_no_bit_behind() {
    for name in ["lora/qwen2_all7", "lora/qwen2_dora", "lora/qwen2_lm_head_saved", "adapters/qwen2_bias_all"] {
        let (model, lora) = pair(name);
        let plain = logits(&model, &[], &IDS);
        let mut changed = session(&model, &[(lora.clone(), 1.0)], &IDS);
        assert!(max_abs(changed.logits().unwrap(), &plain) > 0.1, "{name}");
        changed.set_adapters(&[]).unwrap();
        assert_eq!(changed.logits().unwrap(), plain, "{name}");
        // Times zero is removed.
        changed.set_adapters(&[(lora, 0.0)]).unwrap();
        assert_eq!(changed.logits().unwrap(), plain, "{name}");
    }
}

#[test]
fn a_scale_scales_and_two_adapters_add_up_in_any_order() {
    let (model, one) = pair("lora/qwen2_all7");
    let other = open(&model, golden("lora/qwen2_regex_layer1"));
    let half = logits(&model, &[(one.clone(), 0.5)], &IDS);
    // The same change in two halves of a half.
    let quarters = logits(&model, &[(one.clone(), 0.25), (one.clone(), 0.25)], &IDS);
    assert!(max_abs(&half, &quarters) < 1e-4);
    assert!(max_abs(&half, &logits(&model, &[(one.clone(), 1.0)], &IDS)) > 0.1);
    let back = logits(&model, &[(one.clone(), 0.7), (one.clone(), -0.7)], &IDS);
    assert!(max_abs(&back, &logits(&model, &[], &IDS)) < 1e-4);

    let both = logits(&model, &[(one.clone(), 0.5), (other.clone(), 0.75)], &IDS);
    let swapped = logits(&model, &[(other.clone(), 0.75), (one.clone(), 0.5)], &IDS);
    assert!(max_abs(&both, &swapped) < 1e-4 && max_abs(&both, &half) > 0.1);
    // Merged one after the other: the second is loaded for the model that the first made.
    let merged = model.merge(&one, 0.5).unwrap();
    let merged = merged.merge(&open(&merged, golden("lora/qwen2_regex_layer1")), 0.75).unwrap();
    assert!(max_abs(&both, &logits(&merged, &[], &IDS)) < TOLERANCE);

    // Magnitudes count from the model, not from one another.
    let dora = open(&model, golden("lora/qwen2_dora"));
    let both = logits(&model, &[(dora.clone(), 0.5), (one.clone(), 0.5)], &IDS);
    let swapped = logits(&model, &[(one, 0.5), (dora, 0.5)], &IDS);
    assert!(max_abs(&both, &swapped) < 1e-4);
}

#[test]
fn a_changed_adapter_evaluates_the_session_again() {
    let (model, one) = pair("lora/qwen2_all7");
    let other = open(&model, golden("lora/qwen2_rslora"));
    let mut session = session(&model, &[(one.clone(), 1.0)], &IDS);
    let first = run(&mut session, &greedy(5)).tokens;
    let held = session.tokens().to_vec();
    for adapters in [vec![(other.clone(), 1.0)], vec![], vec![(one.clone(), 0.5), (other.clone(), 0.5)], vec![(one.clone(), 1.0)]]
    {
        session.set_adapters(&adapters).unwrap();
        assert_eq!(session.tokens(), held, "the tokens stay");
        assert_eq!(session.fork().unwrap().logits().unwrap(), logits(&model, &adapters, &held), "a fork has the same adapters");
        assert_eq!(session.logits().unwrap(), logits(&model, &adapters, &held));
    }
    session.truncate(IDS.len()).unwrap();
    assert_eq!(run(&mut session, &greedy(5)).tokens, first);

    // The same adapters again cost nothing: the next answer has no prompt to evaluate.
    session.logits().unwrap();
    run(&mut session, &greedy(1));
    session.set_adapters(&[(one.clone(), 1.0)]).unwrap();
    assert_eq!(run(&mut session, &greedy(1)).prefill_seconds, 0.0);
    session.set_adapters(&[(other, 1.0)]).unwrap();
    assert!(run(&mut session, &greedy(1)).prefill_seconds > 0.0);
}

#[test]
fn adapters_of_one_answer_replace_those_of_the_session_and_then_go() {
    let (model, one) = pair("lora/qwen2_all7");
    let other = open(&model, golden("lora/qwen2_rslora"));
    let with = |adapters: &[(Lora, f32)]| run(&mut session(&model, adapters, &IDS), &greedy(6)).tokens;
    let (plain, first, second) = (with(&[]), with(&[(one.clone(), 1.0)]), with(&[(other.clone(), 0.5)]));
    assert!(plain != first && first != second);

    let mut session = session(&model, &[(one.clone(), 1.0)], &IDS);
    let answer = |adapters: Option<Vec<(Lora, f32)>>| {
        let mut options = greedy(6);
        options.adapters = adapters;
        options
    };
    for (adapters, want) in [
        (None, &first),
        (Some(vec![(other.clone(), 0.5)]), &second),
        (Some(vec![]), &plain),
        (Some(vec![(one.clone(), 0.0)]), &plain),
    ] {
        assert_eq!(run(&mut session, &answer(adapters.clone())).tokens, *want);
        let held = session.tokens().to_vec();
        assert_eq!(session.logits().unwrap(), logits(&model, &[(one.clone(), 1.0)], &held), "behind the answer");
        session.truncate(IDS.len()).unwrap();

        session.begin(&answer(adapters)).unwrap();
        let mut pulled = Vec::new();
        while let Some(event) = session.next().unwrap() {
            pulled.push(event.token);
        }
        assert_eq!(pulled, *want);
        let held = session.tokens().to_vec();
        assert_eq!(session.logits().unwrap(), logits(&model, &[(one.clone(), 1.0)], &held), "behind a complete answer");
        if want == &first {
            session.end().unwrap();
        }
        session.truncate(IDS.len()).unwrap();
    }

    // An answer that its caller leaves early.
    session.begin(&answer(Some(vec![(other.clone(), 0.5)]))).unwrap();
    session.next().unwrap();
    let error = session.set_adapters(&[]).unwrap_err();
    assert!(error.message().contains("an answer was begun"), "{error}");
    assert_eq!(session.end().unwrap().finish_reason, FinishReason::Callback);
    let held = session.tokens().to_vec();
    assert_eq!(session.logits().unwrap(), logits(&model, &[(one, 1.0)], &held));
}

#[test]
fn sessions_with_different_adapters_run_side_by_side() {
    let (model, one) = pair("lora/qwen2_all7");
    let sets = [
        vec![],
        vec![(one.clone(), 1.0)],
        vec![(open(&model, golden("lora/qwen2_dora")), 1.0)],
        vec![(open(&model, golden("lora/qwen2_lm_head_saved")), 1.0), (one, 0.5)],
    ];
    let answer = |adapters: &[(Lora, f32)]| run(&mut session(&model, adapters, &IDS), &greedy(8)).tokens;
    let want: Vec<_> = sets.iter().map(|adapters| answer(adapters)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for (adapters, want) in sets.iter().zip(&want) {
                let answer = &answer;
                scope.spawn(move || (0..4).for_each(|_| assert_eq!(&answer(adapters), want)));
            }
        }
    });
}

#[test]
fn a_saved_session_is_used_again_with_the_adapters_it_had() {
    let (model, one) = pair("lora/qwen2_all7");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let adapters = [(one.clone(), 1.0)];
    let mut saved = session(&model, &adapters, &IDS);
    let want = saved.logits().unwrap().to_vec();
    saved.save(&path).unwrap();

    // Without them it is a session without adapters.
    assert_eq!(Session::load(&model, &path).unwrap().logits().unwrap(), logits(&model, &[], &IDS));
    let mut resumed = Session::load(&model, &path).unwrap();
    // Loaded anew: it is what the adapter is that counts.
    resumed.set_adapters(&[(open(&model, golden("lora/qwen2_all7")), 1.0)]).unwrap();
    let evaluated = |session: &mut Session| {
        let mut total = 0;
        let mut progress = |progress: metal_candle::Progress| {
            total = progress.total;
            ControlFlow::Continue(())
        };
        session.generate(&greedy(1), Some(&mut progress), &mut |_| ControlFlow::Break(())).unwrap();
        total
    };
    assert_eq!(evaluated(&mut resumed.fork().unwrap()), 1, "the scores are not in the file");
    assert_eq!(resumed.logits().unwrap(), want);
    assert_eq!(evaluated(&mut Session::load(&model, &path).unwrap()), IDS.len() as u64);
}

#[test]
fn an_adapter_belongs_to_its_model() {
    let (model, lora) = pair("lora/qwen2_all7");
    let same = base(&golden("lora/qwen2_all7"));
    assert!(Session::new(&same, 0).unwrap().set_adapters(&[(lora.clone(), 1.0)]).is_ok(), "the same files loaded twice");
    let other = load(golden("decoders/qwen2_window_old"));
    let halved = LoadOptions::default().dtype(Dtype::F16);
    let halved = Model::load(golden("decoders/qwen2_untied_old"), &halved, None).unwrap();
    let quantised = Model::load(golden("decoders/qwen2_untied_old"), &quantised("q8_0"), None).unwrap();
    for other in [other, halved, quantised, model.merge(&lora, 1.0).unwrap()] {
        let mut session = Session::new(&other, 0).unwrap();
        session.append_tokens(&IDS, None).unwrap();
        let before = session.logits().unwrap().to_vec();
        assert_eq!(session.set_adapters(&[(lora.clone(), 1.0)]).unwrap_err().kind(), ErrorKind::Mismatch);
        let options = greedy(1).adapters([(lora.clone(), 1.0)]);
        assert_eq!(session.begin(&options).unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!(session.logits().unwrap(), before);
        assert_eq!(other.merge(&lora, 1.0).err().unwrap().kind(), ErrorKind::Mismatch);
    }
    let mut session = Session::new(&model, 0).unwrap();
    for scale in [f32::NAN, f32::INFINITY, f32::MAX] {
        let error = session.set_adapters(&[(lora.clone(), scale)]).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("scale"), "{error}");
    }
    let saved = open(&model, golden("lora/qwen2_lm_head_saved"));
    let error = session.set_adapters(&[(saved.clone(), 1.0), (saved, 0.5)]).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("lm_head"), "{error}");
    let biased = open(&model, golden("adapters/qwen2_bias_all"));
    let error = session.set_adapters(&[(biased.clone(), 1.0), (biased, 0.5)]).unwrap_err();
    assert!(error.message().contains("q_proj.bias"), "{error}");
}

#[test]
fn a_module_that_is_saved_under_three_names_is_what_was_trained() {
    let (model, plain) = pair("lora/qwen2_lm_head_saved");
    let expected = logits(&model, &[(plain, 1.0)], &IDS);
    let trained = "lm_head.modules_to_save.weight";
    let renamed = Spoiled::new("lora/qwen2_lm_head_saved").rename(|name| name.replace("lm_head.weight", trained));
    let (rest, dtype, shape, data) = renamed.tensors.iter().find(|(name, ..)| name.ends_with(trained)).unwrap().clone();
    let mut all = Spoiled::new("lora/qwen2_lm_head_saved").add(&rest.replace("modules_to_save", "original_module"), &shape);
    all.tensors.push((rest, dtype, shape, data));
    for saved in [renamed, all] {
        assert_eq!(logits(&model, &[(open(&model, saved.write()), 1.0)], &IDS), expected);
    }
    // A name for another architecture, beside those of this one.
    let (model, plain) = pair("lora/qwen2_all7");
    let mut named = Spoiled::new("lora/qwen2_all7");
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn"];
    named.config["target_modules"] = serde_json::json!(names);
    assert_eq!(logits(&model, &[(open(&model, named.write()), 1.0)], &IDS), logits(&model, &[(plain, 1.0)], &IDS));
}

#[test]
fn merging_leaves_the_model_as_it_is() {
    for name in ["lora/qwen2_dora", "adapters/gemma2_tied_saved", "adapters/phi3_fused", "adapters/qwen2_lora_bias"] {
        let (model, lora) = pair(name);
        let (plain, parameters) = (logits(&model, &[], &IDS), model.parameter_count());
        let merged = model.merge(&lora, 0.75).unwrap();
        let attached = logits(&model, &[(lora.clone(), 0.75)], &IDS);
        assert!(max_abs(&logits(&merged, &[], &IDS), &attached) < TOLERANCE, "{name}");
        assert_eq!(logits(&model, &[], &IDS), plain, "{name}");
        assert_eq!(model.parameter_count(), parameters);
        let untied = if name.contains("tied") { (merged.vocab_size() * merged.hidden_size()) as u64 } else { 0 };
        assert_eq!(merged.parameter_count(), parameters + untied, "{name}");
        drop((model, lora));
        assert!(max_abs(&logits(&merged, &[], &IDS), &attached) < TOLERANCE, "it holds what it needs");
    }
    let (model, lora) = pair("lora/qwen2_all7");
    assert_eq!(logits(&model.merge(&lora, 0.0).unwrap(), &[], &IDS), logits(&model, &[], &IDS));
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    for path in adapters() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let model = base(&path);
        let lora = open(&model, &path);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("a/new/directory");
        lora.save(&copy).unwrap();
        lora.save(&copy).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);
        let again = open(&model, &copy);
        assert_eq!((again.rank(), again.alpha(), again.parameter_count()), (lora.rank(), lora.alpha(), lora.parameter_count()));
        assert_eq!(again.config_json(), lora.config_json());
        if model.supports(Capability::Generate) {
            let ids = IDS.map(|id| id % model.vocab_size() as u32);
            assert_eq!(logits(&model, &[(again, 1.0)], &ids), logits(&model, &[(lora, 1.0)], &ids), "{name}");
        }
        // The names that PEFT gave them, and their values in F32.
        let read = |path: &Path| {
            let bytes = std::fs::read(path.join("adapter_model.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> =
                tensors.iter().map(|(name, t)| (name.to_string(), t.shape().to_vec(), t.data().to_vec())).collect();
            // What PEFT writes along with LoRA on an embedding, or beside: the model's own.
            let is_own = |name: &str| name.contains("base_layer.weight") || name.contains("lm_head.base_layer.bias");
            all.retain(|(name, ..)| !name.contains("pooler") && !is_own(name));
            all.sort();
            all
        };
        let (mut want, found) = (read(&path), read(&copy));
        if name == "qwen2_qv_bf16" {
            for (_, _, data) in &mut want {
                *data = data.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
            }
        }
        assert!(want == found, "{name}");
    }
}

#[test]
fn spoiled_changes_of_experts_are_refused_by_name() {
    use serde_json::json;
    let model = base(&golden("lora/qwen3_moe_experts"));
    let experts = || Spoiled::new("lora/qwen3_moe_experts");
    for (i, (spoiled, fragment)) in [
        (
            experts().without("layers.2.mlp.experts.lora_A"),
            "layers.2.mlp.experts.lora_A.weight: target_parameters asks for this tensor",
        ),
        (
            experts().without("layers.0.mlp.experts.base_layer.lora_B"),
            "layers.0.mlp.experts.base_layer.lora_B.weight: target_parameters asks for this tensor",
        ),
        // Then the other one is wrapped once, and what was around it has no place.
        (
            experts().set("target_parameters", json!(["experts.gate_up_proj"])),
            "base_layer.lora_A.weight: a tensor that the model has no place",
        ),
        (experts().set("r", json!(3)), "lora_A.weight: expected shape"),
        (
            experts().set("rank_pattern", json!({"experts.down_proj": 5})),
            "experts.lora_A.weight: expected shape [30, 24], found [24, 24]",
        ),
        (experts().set("lora_bias", json!(true)), "lora_bias: expected false with target_parameters"),
    ]
    .iter()
    .enumerate()
    {
        let error = Lora::load(&model, spoiled.write()).unwrap_err();
        assert!(error.kind() == ErrorKind::Format && error.message().contains(fragment), "{i}, {fragment}: {error}");
    }
    assert!(Lora::load(&model, experts().write()).is_ok());
}

#[test]
fn rows_of_tokens_are_replaced_and_two_adapters_may_not_replace_the_same() {
    let (model, lora) = pair("adapters/qwen2_tokens");
    let other = open(&model, golden("adapters/qwen2_tokens_dict"));
    let ids = [9, 60, 61, 4, 7];
    let plain = logits(&model, &[], &ids);
    assert!(max_abs(&logits(&model, &[(lora.clone(), 1.0)], &ids), &plain) > 0.1);
    let mut session = Session::new(&model, 0).unwrap();
    let error = session.set_adapters(&[(lora.clone(), 1.0), (lora.clone(), 0.5)]).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("the row of token"), "{error}");
    let both = logits(&model, &[(lora.clone(), 1.0), (other.clone(), 1.0)], &ids);
    let swapped = logits(&model, &[(other, 1.0), (lora, 1.0)], &ids);
    assert!(max_abs(&both, &swapped) < 1e-4 && max_abs(&both, &plain) > 0.1);

    // One matrix stays one where both sides change alike.
    let (model, lora) = pair("adapters/qwen2_tied_tokens");
    let head = Spoiled::new("adapters/qwen2_tied_tokens_apart")
        .set("trainable_token_indices", serde_json::json!({"lm_head": [60, 7]}))
        .without("embed_tokens");
    let head = open(&model, head.write());
    let error = Session::new(&model, 0).unwrap().set_adapters(&[(lora.clone(), 1.0), (head, 1.0)]).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("the row of token 60 of lm_head"), "{error}");
    let merged = model.merge(&lora, 1.0).unwrap();
    assert_eq!(merged.parameter_count(), model.parameter_count());
}

#[test]
fn a_table_that_is_written_along_with_its_rows_is_the_models_own() {
    let (model, lora) = pair("adapters/qwen2_tokens");
    let want = logits(&model, &[(lora, 1.0)], &IDS);
    let bytes = std::fs::read(golden("decoders/qwen2_untied_old/model.safetensors")).unwrap();
    let table = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let table = table.tensor("model.embed_tokens.weight").unwrap();
    let mut spoiled = Spoiled::new("adapters/qwen2_tokens");
    let name = "base_model.model.model.embed_tokens.token_adapter.base_layer.weight".to_string();
    spoiled.tensors.push((name, table.dtype(), table.shape().to_vec(), table.data().to_vec()));
    assert_eq!(logits(&model, &[(open(&model, spoiled.write()), 1.0)], &IDS), want);
}

#[test]
fn a_table_is_known_by_how_its_name_ends() {
    let (model, lora) = pair("adapters/qwen2_tokens");
    let want = logits(&model, &[(lora, 1.0)], &IDS);
    for name in ["embed_tokens", "model.embed_tokens", "tokens", "del.embed_tokens"] {
        let named =
            Spoiled::new("adapters/qwen2_tokens").set("trainable_token_indices", serde_json::json!({ name: [9, 60, 61] }));
        assert_eq!(logits(&model, &[(open(&model, named.write()), 1.0)], &IDS), want, "{name}");
    }
}

#[test]
fn rows_of_a_matrix_on_both_sides_may_be_stored_twice() {
    let (model, lora) = pair("adapters/qwen2_tied_tokens");
    let want = logits(&model, &[(lora, 1.0)], &IDS);
    let mut twice = Spoiled::new("adapters/qwen2_tied_tokens");
    let (_, dtype, shape, data) =
        twice.tensors.iter().find(|(name, ..)| name.contains("trainable_tokens_delta")).unwrap().clone();
    let name = "base_model.model.lm_head.token_adapter.trainable_tokens_delta".to_string();
    twice.tensors.push((name, dtype, shape, data));
    assert_eq!(logits(&model, &[(open(&model, twice.write()), 1.0)], &IDS), want);
}

#[test]
fn what_replaces_one_side_of_a_matrix_that_stays_one_may_be_stored_once() {
    let (model, lora) = pair("adapters/qwen2_tied_ensured_saved");
    let want = logits(&model, &[(lora, 1.0)], &IDS);
    let once = Spoiled::new("adapters/qwen2_tied_ensured_saved").without("lm_head.weight");
    assert_eq!(logits(&model, &[(open(&model, once.write()), 1.0)], &IDS), want);
}

#[test]
fn what_an_adapter_is_can_be_asked() {
    let (model, lora) = pair("lora/llama_patterns");
    assert_eq!((lora.rank(), lora.alpha()), (8, 16.0));
    assert!(lora.config_json().contains("rank_pattern"));
    let bytes = std::fs::read(golden("lora/llama_patterns/adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values: usize = tensors.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum();
    assert_eq!(lora.parameter_count(), values as u64);
    assert!(model.supports(Capability::Lora) && model.supports(Capability::Train));
}

/// An adapter whose files a test changes.
struct Spoiled {
    folder: tempfile::TempDir,
    config: serde_json::Value,
    tensors: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>,
}

impl Spoiled {
    fn new(adapter: &str) -> Self {
        let bytes = std::fs::read(golden(adapter).join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, t): (&str, safetensors::tensor::TensorView<'_>)| {
            (name.to_string(), t.dtype(), t.shape().to_vec(), t.data().to_vec())
        };
        Self {
            folder: tempfile::tempdir().unwrap(),
            config: json(&golden(adapter).join("adapter_config.json")),
            tensors: tensors.iter().map(owned).collect(),
        }
    }

    fn set(mut self, key: &str, value: serde_json::Value) -> Self {
        self.config[key] = value;
        self
    }

    fn rename(mut self, change: impl Fn(&str) -> String) -> Self {
        self.tensors.iter_mut().for_each(|(name, ..)| *name = change(name));
        self
    }

    fn without(mut self, part: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|(name, ..)| !name.contains(part));
        assert!(self.tensors.len() < before);
        self
    }

    fn tensor(mut self, part: &str, change: impl FnOnce(&mut Vec<usize>, &mut Vec<u8>)) -> Self {
        let (_, _, shape, data) = self.tensors.iter_mut().find(|(name, ..)| name.contains(part)).unwrap();
        change(shape, data);
        self
    }

    fn add(mut self, name: &str, shape: &[usize]) -> Self {
        let data = vec![0; shape.iter().product::<usize>() * 4];
        self.tensors.push((name.to_string(), safetensors::Dtype::F32, shape.to_vec(), data));
        self
    }

    fn write(&self) -> &Path {
        let view = |(name, dtype, shape, data): &(String, safetensors::Dtype, Vec<usize>, Vec<u8>)| {
            (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data.clone().leak()).unwrap())
        };
        let bytes = safetensors::serialize(self.tensors.iter().map(view).collect::<Vec<_>>(), None).unwrap();
        std::fs::write(self.folder.path().join("adapter_model.safetensors"), bytes).unwrap();
        std::fs::write(self.folder.path().join("adapter_config.json"), self.config.to_string()).unwrap();
        self.folder.path()
    }
}

#[test]
fn a_spoiled_adapter_is_refused_by_the_name_of_what_is_wrong() {
    use ErrorKind::{Format, Unsupported};
    use serde_json::json;
    let model = base(&golden("lora/qwen2_all7"));
    let all7 = || Spoiled::new("lora/qwen2_all7");
    let dora = || Spoiled::new("lora/qwen2_dora");
    let embed = || Spoiled::new("lora/qwen2_embed_lm_head");
    let tokens = || Spoiled::new("adapters/qwen2_tokens");
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let cases = [
        (all7().set("peft_type", json!("LOHA")), Unsupported, "peft_type: expected \"LORA\", found \"LOHA\""),
        (all7().set("peft_type", json!(null)), Unsupported, "peft_type"),
        (all7().set("r", json!(0)), Format, "r: expected a whole number from 1"),
        (all7().set("r", json!(-8)), Format, "r: expected"),
        (all7().set("r", json!("8")), Format, "r: expected"),
        (all7().set("r", json!(1u64 << 60)), Format, "r: expected"),
        (all7().set("r", json!(null)), Format, "r: expected"),
        (all7().set("lora_alpha", json!(null)), Format, "lora_alpha: expected a number"),
        (all7().set("lora_alpha", json!("16")), Format, "lora_alpha: expected a finite number"),
        (all7().set("lora_alpha", json!(1e300)), Format, "lora_alpha: expected a number of F32"),
        (all7().set("alpha_pattern", json!({"k_proj": null})), Format, "alpha_pattern: k_proj: expected a number, found null"),
        (all7().set("lora_dropout", json!(-0.5)), Format, "lora_dropout"),
        (all7().set("r", json!(4)), Format, "q_proj.lora_A.weight: expected shape [4, 64], found [8, 64]"),
        (all7().set("rank_pattern", json!({"k_proj": 3})), Format, "k_proj.lora_A.weight: expected shape [3, 64], found [8, 64]"),
        (all7().set("rank_pattern", json!({"k_proj": 0})), Format, "rank_pattern: k_proj: expected a whole number from 1"),
        (all7().set("rank_pattern", json!({"k_(proj": 8})), Format, "rank_pattern: expected a regular expression"),
        (all7().set("rank_pattern", json!([8])), Format, "rank_pattern: expected an object"),
        (all7().set("alpha_pattern", json!({"k_proj": "8"})), Format, "alpha_pattern: k_proj: expected a finite number"),
        (all7().set("rank_pattern", json!({"(x+x+)+y(?=z)|(([a-z_.0-9]*)*)*=": 8})), Unsupported, "takes too long"),
        (all7().set("rank_pattern", json!({"(a{1000}){1000}": 8})), Format, "rank_pattern: expected a regular expression"),
        (
            all7().set("rank_pattern", (0..5000).map(|i| (i.to_string(), json!(8))).collect()),
            Unsupported,
            "expected at most 4096",
        ),
        (all7().set("target_modules", json!(null)), Format, "target_modules: expected a list of names or a pattern"),
        (all7().set("target_modules", json!(7)), Format, "target_modules: expected a list of texts"),
        (all7().set("target_modules", json!("[")), Format, "target_modules: expected a regular expression"),
        (all7().set("target_modules", json!(["q_proj"])), Format, "lora_A.weight: a tensor that target_modules does not ask for"),
        (
            all7().set("target_modules", json!(".*mlp.*")),
            Format,
            "self_attn.q_proj.lora_A.weight: a tensor that target_modules does not",
        ),
        (all7().set("target_modules", json!(["c_attn"])), Format, "target_modules: \"c_attn\": the model has no such module"),
        (
            all7().set("target_modules", json!(["embed_tokens"])),
            Format,
            "embed_tokens.lora_embedding_A: target_modules asks for this tensor",
        ),
        (embed().set("use_dora", json!(true)), Unsupported, "use_dora: not supported on the embedding (model.embed_tokens)"),
        (
            embed().set("target_modules", json!(["lm_head"])),
            Format,
            "lora_embedding_A: a tensor that target_modules does not ask",
        ),
        (
            embed().tensor("lora_embedding_A", |shape, _| *shape = vec![4, 422]),
            Format,
            "lora_embedding_A.weight: expected shape [8, 211], found [4, 422]",
        ),
        (tokens().set("trainable_token_indices", json!([9, 9])), Format, "expected each token once, found 9 twice"),
        (tokens().set("trainable_token_indices", json!([9, 4, 211])), Format, "expected tokens below 211, found 211"),
        (tokens().set("trainable_token_indices", json!([9, 4])), Format, "expected 128 values, found shape [3, 64]"),
        (tokens().set("trainable_token_indices", json!([9, -4, 3])), Format, "trainable_token_indices: expected whole numbers"),
        (tokens().set("trainable_token_indices", json!(null)), Format, "trainable_tokens_delta: a tensor that"),
        (tokens().without("trainable_tokens_delta"), Format, "trainable_tokens_delta: trainable_token_indices asks for"),
        (all7().set("exclude_modules", json!(["up_proj"])), Format, "mlp.up_proj.lora_A.weight: a tensor that target_modules"),
        (all7().set("layers_to_transform", json!([0])), Format, "layers.1.self_attn.q_proj.lora_A.weight: a tensor that"),
        (all7().set("layers_to_transform", json!([0.5])), Format, "layers_to_transform: expected whole numbers"),
        (
            all7().set("target_modules", json!("all-linear")).set("layers_to_transform", json!(0)),
            Format,
            "layers_to_transform: expected none where target_modules is text",
        ),
        (
            all7().set("modules_to_save", json!(["norm"])).add("model.norm.weight", &[64]),
            Unsupported,
            "modules_to_save: model.norm is not supported",
        ),
        (
            all7().set("modules_to_save", json!(["norm"])).add("model.layers.0.input_layernorm.weight", &[64]),
            Unsupported,
            "modules_to_save: model.layers.0.input_layernorm is not supported",
        ),
        (all7().set("modules_to_save", json!(["lm_head"])), Format, "lm_head.weight: modules_to_save names this tensor"),
        (
            all7().set("modules_to_save", json!(["norm"])),
            Unsupported,
            "modules_to_save: \"norm\" is not supported (embed_tokens, lm_head)",
        ),
        (all7().set("use_dora", json!(true)), Format, "q_proj.lora_magnitude_vector: use_dora asks for this tensor"),
        (dora().set("use_dora", json!(false)), Format, "lora_magnitude_vector: a tensor that use_dora does not ask for"),
        (dora().set("lora_bias", json!(true)), Format, "lora_bias: expected false with use_dora"),
        (all7().set("lora_bias", json!(true)), Format, "lora_B.bias: lora_bias asks for this tensor"),
        (all7().set("bias", json!("all")), Format, "q_proj.bias: bias asks for this tensor"),
        (all7().set("bias", json!("some")), Unsupported, "bias: expected \"none\", \"all\" or \"lora_only\""),
        (Spoiled::new("adapters/qwen2_bias_all").set("bias", json!("none")), Format, "bias: a tensor that bias does not ask for"),
        (all7().set("fan_in_fan_out", json!("yes")), Format, "fan_in_fan_out: expected true or false"),
        (all7().set("ensure_weight_tying", json!(1)), Format, "ensure_weight_tying: expected true or false"),
        (
            Spoiled::new("adapters/qwen2_bias_all").add("base_model.model.model.norm.bias", &[64]),
            Unsupported,
            "bias: model.norm.bias is not supported: only biases of matrices can be replaced",
        ),
        (all7().set("use_qalora", json!(true)), Unsupported, "use_qalora: expected none"),
        (all7().set("layer_replication", json!([[0, 1]])), Unsupported, "layer_replication: expected none"),
        (all7().set("target_parameters", json!(["x"])), Format, "target_parameters: \"x\": the model has no such parameter"),
        (all7().set("target_parameters", json!("x")), Format, "target_parameters: expected a list of texts"),
        (dora().set("target_parameters", json!(["q_proj.weight"])), Format, "use_dora: expected false with target_parameters"),
        (all7().set("megatron_config", json!({"a": 1})), Unsupported, "megatron_config: expected none"),
        (all7().set("alora_invocation_tokens", json!([1])), Unsupported, "alora_invocation_tokens: expected none"),
        (all7().set("use_something_new", json!(true)), Unsupported, "use_something_new: expected none"),
        (all7().set("init_lora_weights", json!("pissa")), Unsupported, "init_lora_weights: expected true"),
        (
            all7().without("layers.1.mlp.up_proj.lora_A"),
            Format,
            "layers.1.mlp.up_proj.lora_A.weight: target_modules asks for this tensor",
        ),
        (all7().without("layers.0.self_attn.o_proj.lora_B"), Format, "o_proj.lora_B.weight: target_modules asks for this tensor"),
        (dora().without("layers.0.self_attn.o_proj.lora_mag"), Format, "o_proj.lora_magnitude_vector: use_dora asks"),
        (
            all7().add("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", &[8, 64]),
            Format,
            "layers.7.mlp.up_proj.lora_A.weight: a tensor that the model has no place for",
        ),
        (all7().add("something", &[1]), Format, "something: a tensor that the model has no place for"),
        (
            all7().set("base_model_name_or_path", json!("owner/other")).add("something", &[1]),
            Format,
            "has no place for; the adapter's base_model_name_or_path is \"owner/other\"",
        ),
        (all7().add(&format!("{q}.lora_C.weight"), &[1]), Format, "lora_C.weight: a tensor that the model has no place for"),
        (
            all7().add(&format!("{q}.weight"), &[64, 64]),
            Unsupported,
            "q_proj.weight: a tensor that modules_to_save does not ask for",
        ),
        (all7().add("model.layers.0.self_attn.q_proj.lora_A.weight", &[8, 64]), Format, "the same tensor as"),
        (
            all7().add("base_model.model.lm_head.weight", &[212, 64]),
            Format,
            "lm_head.weight: expected shape [211, 64], found [212, 64]",
        ),
        (
            all7().tensor("q_proj.lora_B", |shape, _| *shape = vec![32, 16]),
            Format,
            "lora_B.weight: expected shape [64, 8], found [32, 16]",
        ),
        (
            dora().tensor("q_proj.lora_mag", |shape, _| *shape = vec![8, 2, 4]),
            Format,
            "expected 64 values, found shape [8, 2, 4]",
        ),
        (
            all7().tensor("up_proj.lora_A", |_, data| data[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
            Format,
            "up_proj.lora_A.weight: expected finite values, found NaN",
        ),
        (all7().tensor("up_proj.lora_B", |_, data| data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes())), Format, "found inf"),
    ];
    for (i, (spoiled, kind, fragment)) in cases.iter().enumerate() {
        match Lora::load(&model, spoiled.write()) {
            Ok(_) => panic!("case {i}, {fragment}: accepted"),
            Err(error) => assert!(
                error.kind() == *kind && error.message().contains(fragment),
                "{i}, {fragment}: {:?} {error}",
                error.kind()
            ),
        }
    }
    assert!(Lora::load(&model, all7().write()).is_ok());
}

#[test]
fn missing_and_damaged_files_are_told_apart() {
    let model = base(&golden("lora/qwen2_all7"));
    let kind = |path: &Path| Lora::load(&model, path).unwrap_err().kind();
    assert_eq!(kind(Path::new("no/such/directory")), ErrorKind::NotFound);
    assert_eq!(kind(&golden("lora/qwen2_all7/adapter_config.json")), ErrorKind::NotFound);
    let error = Model::load(golden("adapters/bert_pooler"), &LoadOptions::default(), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let says = "bert_pooler: expected a model, found an adapter of \"../../encoders/bert_mean_norm\": load its model";
    assert!(error.message().contains(says), "{error}");
    let spoiled = Spoiled::new("lora/qwen2_all7");
    let (config, tensors) = ("adapter_config.json", "adapter_model.safetensors");
    spoiled.write();
    let in_folder = |file: &str| spoiled.folder.path().join(file);
    std::fs::rename(in_folder(tensors), in_folder("adapter_model.bin")).unwrap();
    let error = Lora::load(&model, spoiled.folder.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.message().contains("adapter_model.bin, a pickle"), "{error}");
    std::fs::remove_file(in_folder("adapter_model.bin")).unwrap();
    for (file, content, expected) in [
        (config, None, ErrorKind::NotFound),
        (tensors, None, ErrorKind::NotFound),
        (config, Some(&b"{"[..]), ErrorKind::Format),
        (config, Some(b"[]"), ErrorKind::Format),
        (config, Some(b"\xff"), ErrorKind::Format),
        (config, Some(br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 1e999, "target_modules": ["q_proj"]}"#), ErrorKind::Format),
        (tensors, Some(b""), ErrorKind::Format),
        (tensors, Some(&[0xff; 16]), ErrorKind::Format),
    ] {
        let folder = spoiled.write();
        match content {
            Some(content) => std::fs::write(folder.join(file), content).unwrap(),
            None => std::fs::remove_file(folder.join(file)).unwrap(),
        }
        let error = Lora::load(&model, folder).unwrap_err();
        assert!(error.kind() == expected && error.message().contains(file), "{file} {content:?}: {error}");
    }
    let whole = std::fs::read(golden("lora/qwen2_all7").join(tensors)).unwrap();
    spoiled.write();
    for len in [1, 8, 100, whole.len() - 1] {
        std::fs::write(spoiled.folder.path().join(tensors), &whole[..len]).unwrap();
        assert_eq!(kind(spoiled.folder.path()), ErrorKind::Format, "cut at {len}");
    }
}

#[test]
fn the_first_versions_names_and_other_spellings_are_read() {
    let (model, lora) = pair("lora/qwen2_all7");
    let want = logits(&model, &[(lora.clone(), 1.0)], &IDS);
    let old = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        let end = if name.contains("lora_A") { "lora_a" } else { "lora_b" };
        format!("layers.{}.{}.{end}", parts[4], parts[6])
    };
    let bare = |name: &str| name.replace("base_model.model.", "");
    let headless = |name: &str| name.replace("base_model.model.model.", "base_model.model.");
    let same = |name: &str| name.to_string();
    // As a model's own state has them.
    let named = |name: &str| name.replace(".weight", ".default.weight");
    let all7 = || Spoiled::new("lora/qwen2_all7");
    for spoiled in [
        all7().rename(old),
        all7().rename(bare),
        all7().rename(headless),
        all7().rename(named),
        // What was trained had no output matrix.
        all7().rename(headless).set("modules_to_save", serde_json::json!(["lm_head"])),
        all7().rename(headless).set("target_modules", serde_json::json!(".*proj|lm_head")),
        all7().set("fan_in_fan_out", serde_json::json!(true)).set("merge_weights", serde_json::json!(true)),
        all7().rename(same).set("target_modules", serde_json::json!("all-linear")),
        all7().set("target_modules", serde_json::json!("ALL-LINEAR")),
        all7().set("target_modules", serde_json::json!(r".*\.(q|k|v|o|gate|up|down)_proj")),
        all7().set("lora_dropout", serde_json::json!(0.0)),
        all7()
            .set("layers_to_transform", serde_json::json!([0, 1]))
            .set("layers_pattern", serde_json::json!(["blocks", "layers"])),
        all7().set("init_lora_weights", serde_json::json!("eva")).set("eva_config", serde_json::json!({"rho": 2.0})),
    ] {
        let found = logits(&model, &[(open(&model, spoiled.write()), 1.0)], &IDS);
        assert_eq!(found, want, "{:?}", spoiled.tensors[0].0);
    }
}

#[test]
fn an_adapter_of_a_language_model_fits_one_within_another_and_the_other_way_round() {
    let ids = [5, 17, 3, 80, 41, 9, 66, 23, 12];
    let places = ["model.layers.", "model.language_model.layers.", "language_model.model.layers."];
    for (base, own, targets) in [
        ("qwen3_5_text", places[0], &["all-linear"][..]),
        ("qwen3_5_nested", places[1], &["all-linear"]),
        ("qwen3_5_moe_nested", places[1], &["all-linear", "mlp.experts.down_proj"]),
        ("gemma4_unified", places[1], &["all-linear"]),
        ("ministral3_nested", places[1], &["all-linear"]),
    ] {
        let (model, folder) = (load(golden("decoders").join(base)), tempfile::tempdir().unwrap());
        let config = LoraConfig::default().rank(2).targets(targets.iter().copied());
        let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().learning_rate(0.1)).unwrap();
        trainer.train_step(&ids, None, &[0, ids.len()]).unwrap();
        trainer.save(folder.path()).unwrap();
        let found = places.map(|place| {
            let renamed = Spoiled::new(folder.path().to_str().unwrap()).rename(|name| name.replace(own, place));
            let lora = open(&model, renamed.write());
            // It goes on as what it was.
            lora.save(folder.path().join("again")).unwrap();
            let saved = Reference::open(&folder.path().join("again/adapter_model.safetensors")).tensors();
            assert!(saved.keys().all(|name| name.starts_with(&format!("base_model.model.{place}"))), "{base}: {place}");
            logits(&model, &[(lora, 1.0)], &ids)
        });
        assert!(found[1] == found[0] && found[2] == found[0] && found[0] != logits(&model, &[], &ids), "{base}");
    }
    // Of the embedding alone.
    let model = load(golden("decoders/gemma4_unified"));
    let tokens = serde_json::json!([3, 5]);
    for place in ["", "model.", "model.language_model."] {
        let name = format!("base_model.model.{place}embed_tokens.token_adapter.trainable_tokens_delta");
        let mut spoiled = Spoiled::new("adapters/gemma4_unified");
        spoiled.tensors.clear();
        let spoiled = spoiled.set("target_modules", serde_json::json!(null)).set("trainable_token_indices", tokens.clone());
        open(&model, spoiled.add(&name, &[2, model.hidden_size()]).write());
    }
}

#[test]
fn embeddings_take_adapters() {
    let model = load(shipped("tiny-embed"));
    let path = tempfile::tempdir().unwrap();
    let names: Vec<String> = {
        let bytes = std::fs::read(shipped("tiny-embed").join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().into_iter().map(|name| name.to_string()).filter(|name| name.contains("query.weight")).collect()
    };
    let width = model.hidden_size();
    let values: Vec<u8> = (0..width * 4).flat_map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5).to_le_bytes()).collect();
    let views: Vec<_> = names
        .iter()
        .flat_map(|name| {
            let module = name.strip_suffix(".weight").unwrap();
            let view = |shape: Vec<usize>| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &values).unwrap();
            [
                (format!("base_model.model.{module}.lora_A.weight"), view(vec![4, width])),
                (format!("base_model.model.{module}.lora_B.weight"), view(vec![width, 4])),
            ]
        })
        .collect();
    std::fs::write(path.path().join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}"#;
    std::fs::write(path.path().join("adapter_config.json"), config).unwrap();
    let lora = open(&model, path.path());

    let texts = ["Appends an element.", "Opens a file for reading, and what else there may be to say.", ""];
    let with = |adapters: Vec<(Lora, f32)>| EmbedOptions::default().adapters(adapters).pooling(Pooling::Mean);
    let plain = model.embed(&texts, &with(vec![]), None).unwrap();
    let changed = model.embed(&texts, &with(vec![(lora.clone(), 1.0)]), None).unwrap();
    assert!(max_abs(&plain, &changed) > 1e-3);
    assert_eq!(model.embed(&texts, &with(vec![(lora.clone(), 0.0)]), None).unwrap(), plain);
    let alone = model.embed(&texts[1..2], &with(vec![(lora.clone(), 1.0)]), None).unwrap();
    assert_eq!(alone, changed[alone.len()..2 * alone.len()], "a text has the same vector alone and in a batch");
    let merged = model.merge(&lora, 1.0).unwrap();
    assert!(max_abs(&merged.embed(&texts, &with(vec![]), None).unwrap(), &changed) < 2e-5);
    let other = load(golden("encoders/bert_mean_norm"));
    assert_eq!(other.embed(&texts, &with(vec![(lora, 1.0)]), None).unwrap_err().kind(), ErrorKind::Mismatch);
}

/// Of a model that is quantised on loading, and of the same numbers in F32.
struct Pair([Model; 2]);

impl Pair {
    fn open(base: &Path, kind: &str) -> Self {
        let quantised = Model::load(base, &quantised(kind), None).unwrap();
        let numbers = dequantised(base, kind);
        let whole = load(numbers.path());
        assert_eq!(quantised.parameter_count(), whole.parameter_count());
        if whole.supports(Capability::Generate) {
            let ids = IDS.map(|id| id % whole.vocab_size() as u32);
            // Formats of whole blocks leave rows alone that are none.
            let has_blocks = kind == "q8_0" || whole.hidden_size().is_multiple_of(32);
            let plain = load(base);
            assert!(
                !has_blocks || logits(&whole, &[], &ids) != logits(&plain, &[], &ids),
                "{}: {kind} changed nothing",
                base.display()
            );
        }
        Self([quantised, whole])
    }

    /// What both compute, which is the same to the last bit.
    fn same<T: PartialEq>(&self, what: &str, compute: impl Fn(&Model) -> T) -> T {
        let [found, want] = self.0.each_ref().map(compute);
        assert!(found == want, "{what}: not what the numbers give");
        found
    }
}

#[test]
fn adapters_of_quantised_weights_compute_the_bits_of_the_numbers_that_these_stand_for() {
    for kind in QUANTIZATIONS {
        let (mut pairs, mut seen) = (BTreeMap::new(), 0);
        for path in adapters() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let notes = json(&path.join("golden.json"));
            let base = golden(notes["base"].as_str().unwrap());
            let pair = pairs.entry(base.clone()).or_insert_with(|| Pair::open(&base, kind));
            let what = |what: &str| format!("{name} in {kind}: {what}");
            if !pair.0[0].supports(Capability::Generate) {
                let texts = json(&base.join("golden.json"));
                let texts: Vec<&str> = texts["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
                let embed = |model: &Model, adapters: Vec<(Lora, f32)>| {
                    model.embed(&texts, &EmbedOptions::default().adapters(adapters), None).unwrap()
                };
                let plain = pair.same(&what("plain"), |model| embed(model, vec![]));
                let attached = pair.same(&what("attached"), |model| embed(model, vec![(open(model, &path), 0.6)]));
                let merged = pair.same(&what("merged"), |model| embed(&model.merge(&open(model, &path), 0.6).unwrap(), vec![]));
                let error = max_abs(&attached, &merged);
                assert!(error <= 2e-5 && max_abs(&attached, &plain) > 1e-3, "{}: {error}", what("merged"));
                seen += 1;
                continue;
            }
            let reference = Reference::open(&path.join("golden.safetensors"));
            for prompt in 0..if path.starts_with(golden("lora")) { 2 } else { 1 } {
                let ids = reference.ids(&format!("prompt{prompt}.ids"));
                let plain = pair.same(&what("plain"), |model| stepwise(model, &[], &ids));
                let attached = pair.same(&what("attached"), |model| stepwise(model, &[(open(model, &path), 0.6)], &ids));
                pair.same(&what("at once"), |model| logits(model, &[(open(model, &path), 0.6)], &ids));
                let merged =
                    pair.same(&what("merged"), |model| stepwise(&model.merge(&open(model, &path), 0.6).unwrap(), &[], &ids));
                let error = max_abs(&attached, &merged);
                assert!(error <= TOLERANCE && max_abs(&attached, &plain) > 0.01, "{}: {error}", what("merged"));
                pair.same(&what("greedy"), |model| {
                    run(&mut session(model, &[(open(model, &path), 1.0)], &ids), &greedy(16)).tokens
                });
            }
            seen += 1;
        }
        assert!(seen >= 27, "{kind}: {seen}");
    }
}

/// The numbers that [`Pair`] compares with are read out of the quantised model itself: here they come out of a file, by what its
/// format says.
#[test]
fn the_numbers_of_quantised_weights_are_those_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for name in ["llama_plain", "qwen2_tied", "phi3", "olmo2"] {
        let file = load(golden(&format!("gguf/families/{name}.gguf")));
        let base =
            ["decoders", "families"].map(|folder| golden(folder).join(name)).into_iter().find(|path| path.exists()).unwrap();
        for kind in QUANTIZATIONS.into_iter().filter(|kind| *kind != "mlx4") {
            file.save_gguf(&path, Some(kind), None).unwrap();
            let widened = LoadOptions::default().dtype(Dtype::F32);
            let (widened, numbers) = (Model::load(&path, &widened, None).unwrap(), dequantised(&base, kind));
            let (found, want) = (logits(&load(numbers.path()), &[], &IDS), logits(&widened, &[], &IDS));
            assert!(found == want && want != logits(&file, &[], &IDS), "{name} in {kind}");
        }
    }
}

/// Matrices of 256 columns, which the formats of as long blocks are for.
#[test]
fn adapters_are_trained_and_used_over_blocks_of_256_as_over_their_numbers() {
    let tokens: Vec<u32> = (0..40).map(|i| (i * i * 31 + 7) % 4000).collect();
    for kind in ["q6_k", "q5_k_m", "q4_k_m"] {
        let pair = Pair::open(&shipped("tiny-coder"), kind);
        let train = |model: &Model| {
            let config = LoraConfig::default().rank(4).targets(["all-linear"]).rslora(true);
            let options = TrainOptions::default().learning_rate(0.02);
            let mut trainer = LoraTrainer::new(model, &config, &options).unwrap();
            let mut losses = Vec::new();
            for _ in 0..3 {
                let step = trainer.train_step(&tokens, None, &[0, 17, 40]).unwrap();
                losses.extend([step.loss, step.update.unwrap().grad_norm]);
            }
            let folder = tempfile::tempdir().unwrap();
            trainer.adapter().unwrap().save(folder.path()).unwrap();
            let adapter =
                ["adapter_config.json", "adapter_model.safetensors"].map(|file| std::fs::read(folder.path().join(file)).unwrap());
            (losses, adapter)
        };
        let (losses, [config, tensors]) = pair.same(&format!("{kind}: trained"), train);
        assert!(losses[4] < losses[0], "{losses:?}");
        let folder = tempfile::tempdir().unwrap();
        let (config_path, tensors_path) =
            (folder.path().join("adapter_config.json"), folder.path().join("adapter_model.safetensors"));
        std::fs::write(&config_path, &config).unwrap();
        std::fs::write(&tensors_path, &tensors).unwrap();
        let plain = pair.same(&format!("{kind}: plain"), |model| logits(model, &[], &IDS));
        for dora in [false, true] {
            if dora {
                // A length for each row.
                let mut tensors = Reference::open(&tensors_path).tensors();
                let rows = |(name, (_, shape, _)): (&String, &(_, Vec<usize>, _))| {
                    let name = name.strip_suffix("lora_B.weight")?;
                    let lengths: Vec<u8> = (0..shape[0]).flat_map(|row| (0.5 + (row % 7) as f32 / 5.0).to_le_bytes()).collect();
                    Some((format!("{name}lora_magnitude_vector"), (safetensors::Dtype::F32, vec![shape[0]], lengths)))
                };
                let lengths: Vec<_> = tensors.iter().filter_map(rows).collect();
                assert_eq!(lengths.len(), 7 * pair.0[0].layer_count());
                tensors.extend(lengths);
                write_tensors(&tensors_path, tensors);
                let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
                config["use_dora"] = true.into();
                std::fs::write(&config_path, config.to_string()).unwrap();
            }
            let attached =
                pair.same(&format!("{kind}: attached"), |model| logits(model, &[(open(model, folder.path()), 0.8)], &IDS));
            let merged = pair.same(&format!("{kind}: merged"), |model| {
                logits(&model.merge(&open(model, folder.path()), 0.8).unwrap(), &[], &IDS)
            });
            let error = max_abs(&attached, &merged);
            assert!(error <= TOLERANCE && max_abs(&attached, &plain) > 0.1, "{kind}: {error}");
        }
    }
}
