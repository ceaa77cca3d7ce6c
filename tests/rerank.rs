//! Every reranker against sentence-transformers' CrossEncoder, and the equalities that need no reference: batch = single, in any order,
//! whatever the options that change no score.

mod common;

use std::path::{Path, PathBuf};

use common::{Reference, golden, json, load, max_abs, shipped, write_tensors};
use metal_candle::{
    Cancel, Capability, ErrorKind, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Prompt, RerankOptions, ScoreActivation,
    TrainOptions, estimate_memory,
};
use serde_json::Value;

/// Above the noise of the references (4e-6), far below the smallest mistake.
const TOLERANCE: f32 = 5e-5;

fn models() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(golden("rerankers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= 20, "the reference results are there");
    found
}

fn texts<'a>(notes: &'a Value, key: &str) -> Vec<&'a str> {
    notes[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// What a directory's reference was made with.
fn options(notes: &Value) -> RerankOptions {
    let prompt = notes["instruction"].as_str().map_or(Prompt::Default, |text| Prompt::Text(text.to_string()));
    RerankOptions::default().prompt(prompt)
}

fn rerank(model: &Model, query: &str, documents: &[&str], options: &RerankOptions) -> Vec<f32> {
    model.rerank(query, documents, options).unwrap_or_else(|e| panic!("{}", e.details()))
}

#[test]
fn every_pair_of_every_model_has_the_score_of_the_reference() {
    for path in models() {
        let (model, notes) = (load(&path), json(&path.join("golden.json")));
        let documents = texts(&notes, "documents");
        for (key, activation) in [("scores", None), ("logits", Some(ScoreActivation::Identity))] {
            let mut options = options(&notes);
            options.activation = activation;
            let want = numbers(&notes[key]);
            for (query, want) in texts(&notes, "queries").into_iter().zip(want.chunks(documents.len())) {
                let got = rerank(&model, query, &documents, &options);
                for ((document, got), want) in documents.iter().zip(&got).zip(want) {
                    let name = path.file_name().unwrap().to_string_lossy();
                    let error = (got - want).abs();
                    assert!(error <= TOLERANCE, "{name}, {key}, {query:?}, {document:?}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn a_pair_has_the_same_bits_alone_and_in_any_company() {
    for path in models() {
        let (model, notes) = (load(&path), json(&path.join("golden.json")));
        let (documents, options) = (texts(&notes, "documents"), options(&notes));
        let query = texts(&notes, "queries")[0];
        let together = rerank(&model, query, &documents, &options);
        for (document, score) in documents.iter().zip(&together) {
            assert_eq!(rerank(&model, query, &[document], &options), [*score], "{}: {document:?}", path.display());
        }
        let backwards: Vec<&str> = documents.iter().rev().chain(&documents).copied().collect();
        let scores = rerank(&model, query, &backwards, &options.clone().batch_size(2));
        assert_eq!(scores[documents.len()..], together);
        assert!(scores[..documents.len()].iter().rev().eq(&together));
        assert!(rerank(&model, query, &[], &options).is_empty());
    }
}

/// The logits of all pairs of a reference.
fn logits_of_pairs(model: &Model, notes: &Value) -> Vec<f32> {
    let (documents, options) = (texts(notes, "documents"), options(notes).activation(ScoreActivation::Identity));
    texts(notes, "queries").into_iter().flat_map(|query| rerank(model, query, &documents, &options)).collect()
}

#[test]
fn an_adapter_of_a_head_counts_once_it_is_merged() {
    let mut seen = 0;
    for entry in std::fs::read_dir(golden("reranker_adapters")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().to_string();
        let base = golden(json(&path.join("golden.json"))["base"].as_str().unwrap());
        let (model, notes) = (load(&base), json(&base.join("golden.json")));
        let plain = logits_of_pairs(&model, &notes);
        let lora = Lora::load(&model, &path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let merged = model.merge(&lora, 1.0).unwrap();
        let (found, want) =
            (logits_of_pairs(&merged, &notes), Reference::open(&path.join("golden.safetensors")).floats("logits"));
        assert!(max_abs(&found, &want) <= TOLERANCE, "{name}: {}", max_abs(&found, &want));
        // The model stays as it is, and so it does without a scale.
        assert_eq!(logits_of_pairs(&model, &notes), plain, "{name}");
        assert_eq!(logits_of_pairs(&model.merge(&lora, 0.0).unwrap(), &notes), plain, "{name}");
        // What is saved is what was merged, and what was loaded; a head that was merged is merged into again.
        let folder = tempfile::tempdir().unwrap();
        let [directory, adapter, again] = ["merged", "adapter", "again"].map(|name| folder.path().join(name));
        merged.save(&directory, None, None).unwrap();
        assert_eq!(logits_of_pairs(&load(&directory), &notes), found, "{name}");
        lora.save(&adapter).unwrap();
        let saved = Lora::load(&model, &adapter).unwrap();
        assert_eq!(saved.parameter_count(), lora.parameter_count(), "{name}");
        assert_eq!(logits_of_pairs(&model.merge(&saved, 1.0).unwrap(), &notes), found, "{name}");
        let twice = merged.merge(&Lora::load(&merged, &path).unwrap(), 0.5).unwrap();
        twice.save(&again, None, None).unwrap();
        assert_eq!(logits_of_pairs(&load(&again), &notes), logits_of_pairs(&twice, &notes), "{name}");
        // It is not trained further.
        let error = LoraTrainer::new(&model, &LoraConfig::default().initial(lora), &TrainOptions::default()).map(drop);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported, "{name}");
        seen += 1;
    }
    assert!(seen >= 7, "{seen}");
}

#[test]
fn a_spoiled_adapter_of_a_head_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("reranker_adapters/bert");
    let refused = |base: &str, drop: &str, change: &dyn Fn(&mut Value)| {
        let reference = Reference::open(&path.join("adapter_model.safetensors"));
        let tensors = reference.tensors().into_iter().filter(|(name, _)| drop.is_empty() || !name.contains(drop)).collect();
        write_tensors(&folder.path().join("adapter_model.safetensors"), tensors);
        let mut config = json(&path.join("adapter_config.json"));
        change(&mut config);
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        match Lora::load(&load(golden(base)), folder.path()) {
            Ok(_) => panic!("{base} without {drop:?}: accepted"),
            Err(error) => error,
        }
    };
    let same = |_: &mut Value| {};
    for (drop, part) in [
        ("classifier.bias", "classifier.bias: modules_to_save asks for"),
        ("classifier.weight", "classifier.weight: modules_to_save asks for"),
        ("pooler.dense.lora_A", "bert.pooler.dense.lora_A.weight: target_modules asks for"),
        ("pooler.dense", "bert.pooler.dense.lora_A.weight: target_modules asks for"),
    ] {
        let error = refused("rerankers/bert", drop, &same);
        assert!(error.kind() == ErrorKind::Format && error.message().contains(part), "{drop}: {error}");
    }
    let unasked = refused("rerankers/bert", "", &|config| config["modules_to_save"] = Value::Null);
    assert!(unasked.message().contains("classifier.weight: a tensor that modules_to_save does not ask for"), "{unasked}");
    // Of a network without that head there is no score.
    let headless = refused("encoders/bert_mean_norm", "", &same);
    assert!(headless.kind() == ErrorKind::Unsupported && headless.message().contains("the head of a reranker"), "{headless}");
}

#[test]
fn a_shorter_limit_cuts_the_longer_text() {
    let model = load(golden("rerankers/bert"));
    let long = "word ".repeat(100);
    let at = |max_length, query: &str, document: &str| {
        let options = RerankOptions::default().max_length(max_length);
        rerank(&model, query, &[document], &options)
    };
    assert_eq!(at(30, "a list", &long), at(30, "a list", &format!("{long} other words at its end")));
    assert_ne!(at(30, "a list", &long), at(30, "a lift", &long));
    for found in [3, 81] {
        let options = RerankOptions::default().max_length(found);
        let error = model.rerank("a", &["b"], &options).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidArgument && error.message().contains(&format!("4 to 80 tokens, found {found}")),
            "{error}"
        );
    }
    let none = RerankOptions::default().batch_size(0);
    assert_eq!(model.rerank("a", &["b"], &none).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn what_is_no_reranker_is_refused_saying_why() {
    for (directory, why) in [
        (shipped("tiny-coder"), "yes and no"),
        (shipped("tiny-embed"), "architectures"),
        (golden("embedders/roberta_classifier"), "architectures"),
    ] {
        let model = load(&directory);
        let error = model.rerank("a", &["b"], &RerankOptions::default()).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains(why), "{error}");
        assert!(!model.supports(Capability::Rerank));
    }
    let model = load(golden("rerankers/qwen3_card"));
    assert!(!model.supports(Capability::Rerank));
    let error = model.rerank("a", &["b"], &RerankOptions::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("instruction"), "{error}");
    let error = load(golden("rerankers/qwen3_scored")).rerank("", &["b", ""], &RerankOptions::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("documents[1]"), "{error}");
}

/// A copy of a directory with other keys in a file.
fn changed(name: &str, file: &str, keys: &[(&str, Value)]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(&format!("rerankers/{name}"))).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = copy.path().join(file);
    let mut value = json(&path);
    for (key, to) in keys {
        value[*key] = to.clone();
    }
    std::fs::write(path, value.to_string()).unwrap();
    copy
}

#[test]
fn settings_that_make_another_score_are_refused_by_name() {
    let labels = serde_json::json!({"0": "no", "1": "yes", "2": "maybe"});
    let cases = [
        ("bert", "config.json", vec![("id2label", labels)], "id2label"),
        ("bert", "config.json", vec![("id2label", Value::Null)], "2 labels"),
        (
            "bert_identity",
            "config.json",
            vec![("sentence_transformers", serde_json::json!({"activation_fn": "my.Own"}))],
            "my.Own",
        ),
        (
            "bert_new",
            "config_sentence_transformers.json",
            vec![("activation_fn", "torch.nn.modules.activation.PReLU".into())],
            "PReLU",
        ),
        ("eurobert", "config.json", vec![("classifier_pooling", "max".into())], "max"),
        ("modernbert_cls", "config.json", vec![("classifier_pooling", "max".into())], "max"),
    ];
    for (name, file, keys, names) in cases {
        let copy = changed(name, file, &keys);
        let model = Model::load(copy.path(), &LoadOptions::default(), None).unwrap();
        let error = model.rerank("a", &["b"], &RerankOptions::default()).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains(names), "{names}: {error}");
        assert!(!model.supports(Capability::Rerank) && model.supports(Capability::Embed));
    }
    let copy = changed("bert", "config.json", &[("type_vocab_size", 1.into())]);
    assert!(Model::load(copy.path(), &LoadOptions::default(), None).is_err(), "the stored table has two rows");
    let copy = changed("bert_new", "config_sentence_transformers.json", &[("model_type", "SentenceTransformer".into())]);
    let error = Model::load(copy.path(), &LoadOptions::default(), None).err().unwrap();
    assert!(error.message().contains("CrossEncoder"), "{error}");
}

#[test]
fn a_template_has_the_arguments_that_the_files_name() {
    let (name, settings) = ("qwen3_scored_template", "sentence_bert_config.json");
    let notes = json(&golden(&format!("rerankers/{name}/golden.json")));
    let (documents, query) = (texts(&notes, "documents"), texts(&notes, "queries")[0]);
    let given = |arguments: Value| {
        let copy = changed(name, settings, &[("processing_kwargs", serde_json::json!({"chat_template": arguments}))]);
        let path = copy.path().join("chat_template.jinja");
        let template = std::fs::read_to_string(&path).unwrap();
        // The last newline of a template is none of its text.
        let (before, after) = template.strip_suffix('\n').unwrap().split_once("<|im_start|>assistant").unwrap();
        let answer = format!("{{% if add_generation_prompt and thinks == [false] %}}<|im_start|>assistant{after}{{% endif %}}");
        std::fs::write(path, format!("{before}{answer}")).unwrap();
        copy
    };
    let same = given(serde_json::json!({"add_generation_prompt": true, "thinks": [false]}));
    let scores = |path: &Path| rerank(&load(path), query, &documents, &RerankOptions::default());
    let want = scores(&golden(&format!("rerankers/{name}")));
    assert_eq!(scores(same.path()), want);
    for other in [serde_json::json!({"thinks": [false]}), serde_json::json!({"add_generation_prompt": true})] {
        assert_ne!(scores(given(other).path()), want);
    }
    // What the template puts behind a document is cut with it.
    let cut = serde_json::json!({"add_generation_prompt": true, "thinks": [false], "restore_suffix": false});
    let cut = scores(given(cut).path());
    assert!(cut.iter().zip(&want).any(|(a, b)| a == b) && cut != want, "{cut:?} {want:?}");
    for (arguments, names) in [
        (serde_json::json!({"max_length": 20}), "processing_kwargs: chat_template: max_length"),
        (serde_json::json!({"add_generation_prompt": 1}), "processing_kwargs: chat_template: add_generation_prompt"),
    ] {
        let error = Model::load(given(arguments).path(), &LoadOptions::default(), None).err().unwrap();
        assert!(error.message().contains(names), "{error}");
    }
}

#[test]
fn scores_are_any_function_of_torch_of_the_logits() {
    let logits = changed("bert_new", "config_sentence_transformers.json", &[]);
    let softplus = [("activation_fn", "torch.nn.modules.activation.Softplus".into())];
    let softplus = changed("bert_new", "config_sentence_transformers.json", &softplus);
    let scores = |path: &Path| rerank(&load(path), "warm", &["The cat sleeps.", "The sun is warm."], &RerankOptions::default());
    for (score, logit) in scores(softplus.path()).into_iter().zip(scores(logits.path())) {
        assert!((score - f64::from(logit).exp().ln_1p() as f32).abs() < 1e-6, "{score} of {logit}");
    }
}

#[test]
fn a_head_is_counted_saved_and_quantised_around() {
    for name in ["bert", "modernbert_mean", "qwen3_scored", "qwen3_new"] {
        let path = golden(&format!("rerankers/{name}"));
        let (model, notes) = (load(&path), json(&path.join("golden.json")));
        assert!(model.supports(Capability::Rerank));
        let (query, documents) = (texts(&notes, "queries")[0], texts(&notes, "documents"));
        let documents = &documents[2..];
        let want = rerank(&model, query, documents, &options(&notes));
        let saved = tempfile::tempdir().unwrap();
        let to = saved.path().join("saved");
        model.save(&to, None, None).unwrap_or_else(|e| panic!("{name}: {}", e.details()));
        assert_eq!(rerank(&load(&to), query, documents, &options(&notes)), want, "{name}");
        let q8 = LoadOptions::default().quantization("q8_0").exact(true);
        let close = rerank(&Model::load(&path, &q8, None).unwrap(), query, documents, &options(&notes));
        assert!(close.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.05), "{name}: {close:?} {want:?}");
        assert!(estimate_memory(&path, &LoadOptions::default()).unwrap() > 4 * model.parameter_count());
    }
}

#[test]
fn a_cancelled_call_stops() {
    let model = load(golden("rerankers/bert"));
    let cancel = Cancel::new();
    cancel.trigger();
    let options = RerankOptions::default().cancel(cancel);
    assert_eq!(model.rerank("a", &["b"], &options).unwrap_err().kind(), ErrorKind::Cancelled);
}
