//! Models as files again: what is written computes what the model computed, bit for bit.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{cosine, golden, load, quantised};
use metal_candle::{Capability, EmbedOptions, ErrorKind, Lora, Model, Progress, Session, Stage};

const IDS: [u32; 9] = [5, 17, 3, 80, 41, 9, 66, 23, 12];

fn logits(model: &Model) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    session.logits().unwrap().to_vec()
}

/// What a model computes: logits, or vectors where it has none.
fn results(model: &Model) -> Vec<f32> {
    if model.supports(Capability::Generate) { logits(model) } else { vectors(model) }
}

fn vectors(model: &Model) -> Vec<f32> {
    model.embed(&["a little text", "and another, longer one"], &EmbedOptions::default(), None).unwrap()
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|own| own == extension)).collect();
    files.sort();
    files
}

/// Adapters of PEFT with the directories of their models.
fn adapters() -> Vec<(PathBuf, PathBuf)> {
    let mut adapters = Vec::new();
    for folder in ["lora", "adapters"] {
        for adapter in std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            if adapter.join("adapter_config.json").exists() {
                let base = golden(common::json(&adapter.join("golden.json"))["base"].as_str().unwrap());
                adapters.push((adapter, base));
            }
        }
    }
    adapters.sort();
    adapters
}

#[test]
fn every_file_is_written_as_one_that_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut written = 0;
    for file in files("gguf", "gguf").into_iter().chain(files("gguf/families", "gguf")) {
        let model = load(&file);
        model.save_gguf(&path, None, None).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let again = load(&path);
        assert_eq!(again.config_json(), model.config_json(), "{}", file.display());
        if model.supports(Capability::Generate) || model.supports(Capability::Embed) {
            assert_eq!(results(&again), results(&model), "{}", file.display());
            written += 1;
        }
    }
    assert!(written >= 60, "{written}");
}

#[test]
fn every_file_becomes_a_directory_that_computes_the_same() {
    let mut written = 0;
    for file in files("gguf", "gguf").into_iter().chain(files("gguf/families", "gguf")) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("model");
        let model = load(&file);
        model.save(&directory, None, None).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let again = load(&directory);
        assert_eq!(again.architecture(), model.architecture());
        if model.supports(Capability::Embed) {
            assert_eq!(vectors(&again), vectors(&model), "{}", file.display());
        }
        if model.supports(Capability::Generate) {
            assert_eq!(logits(&again), logits(&model), "{}", file.display());
            written += 1;
        }
    }
    assert!(written >= 50, "{written}");
}

#[test]
fn a_directory_made_of_a_file_has_the_shapes_that_the_file_was_made_from() {
    let (mut compared, mut convolutions) = (0, 0);
    for file in files("gguf/families", "gguf") {
        let name = file.file_stem().unwrap();
        let origin = ["decoders", "families"].map(|folder| golden(folder).join(name).join("model.safetensors"));
        let Some(origin) = origin.into_iter().find(|path| path.exists()) else { continue };
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("model");
        load(&file).save(&directory, None, None).unwrap();
        let (saved, origin) = (shapes(&directory.join("model.safetensors")), shapes(&origin));
        for (tensor, shape) in &origin {
            let Some(found) = saved.get(tensor) else { continue };
            // Rows of a vocabulary that the converter cut off are no matter of shape.
            if found.iter().product::<usize>() == shape.iter().product::<usize>() {
                assert_eq!(found, shape, "{}: {tensor}", file.display());
                compared += 1;
                convolutions += usize::from(shape.len() == 3 && shape[1] == 1);
            }
        }
    }
    assert!(compared > 1000 && convolutions > 10, "{compared} {convolutions}");
}

/// The shapes of a file's tensors.
fn shapes(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.shape().to_vec())).collect()
}

#[test]
fn infinite_numbers_of_a_configuration_are_written_as_they_were_read() {
    for (name, written) in [("nemotron_h_old", "Infinity\n"), ("granitemoehybrid_dense", "\"__float__\": \"Infinity\"")] {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("saved");
        let model = load(golden("decoders").join(name));
        model.save(&directory, None, None).unwrap();
        let again = load(&directory);
        assert!(again.config_json().contains(written), "{name}: {}", again.config_json());
        assert_eq!(logits(&again), logits(&model), "{name}");
    }
}

#[test]
fn a_model_that_adapters_were_merged_into_is_kept() {
    let (mut saved, mut untied) = (0, 0);
    for (adapter, base) in adapters() {
        let folder = tempfile::tempdir().unwrap();
        let model = load(&base);
        // Of those that teach refusals.
        let Ok(lora) = Lora::load(&model, &adapter) else { continue };
        let merged = model.merge(&lora, 0.7).unwrap();
        let directory = folder.path().join("merged");
        merged.save(&directory, None, None).unwrap_or_else(|e| panic!("{}: {e}", adapter.display()));
        let again = load(&directory);
        assert_eq!(results(&again), results(&merged), "{}", adapter.display());
        assert_ne!(results(&again), results(&model), "{}", adapter.display());
        saved += 1;
        untied += usize::from(again.parameter_count() > model.parameter_count());
        // Rounded once more, it is nearly the same.
        let short = folder.path().join("short");
        merged.save(&short, Some("f16"), None).unwrap();
        assert!(cosine(&results(&load(&short)), &results(&merged)) > 0.9999, "{}", adapter.display());
        let size = |directory: &Path| std::fs::metadata(directory.join("model.safetensors")).unwrap().len();
        assert!(size(&short) < size(&directory));
    }
    assert!(saved >= 20 && untied >= 1, "{saved} {untied}");
}

#[test]
fn templates_that_have_names_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    std::fs::create_dir_all(from.join("additional_chat_templates")).unwrap();
    for entry in std::fs::read_dir(common::shipped("tiny-coder")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, from.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(from.join("chat_template.jinja"), "plain").unwrap();
    std::fs::write(from.join("additional_chat_templates/tool_use.jinja"), "with tools").unwrap();
    load(&from).save(&to, None, None).unwrap();
    let mut chat = metal_candle::Chat::new();
    chat.add("user", "a");
    for expected in ["plain", "with tools"] {
        assert_eq!(chat.render(load(&to).chat_template().ok(), true).unwrap(), expected);
        chat.set_tools_json(Some(r#"[{"type": "function", "function": {"name": "a", "parameters": {}}}]"#)).unwrap();
    }
}

#[test]
fn a_file_that_adapters_were_merged_into_is_kept() {
    let (mut merged_into, folder) = (Vec::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("merged.gguf");
    for (adapter, base) in adapters() {
        let name = base.file_name().unwrap().to_str().unwrap();
        let file = golden("gguf/families").join(format!("{name}.gguf"));
        if !file.exists() {
            continue;
        }
        let model = load(&file);
        if !model.supports(Capability::Generate) {
            // Without a tokenizer there are no vectors to compare.
            continue;
        }
        // The weights of Falcon-H1 in a file are multiplied: an adapter of the original does not fit them.
        let lora = match Lora::load(&model, &adapter) {
            Err(e) if name.starts_with("falcon_h1") => {
                assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
                // As a directory, and as another file, they still are.
                let directory = folder.path().join("multiplied");
                model.save(&directory, None, None).unwrap();
                model.save_gguf(&path, None, None).unwrap();
                for saved in [&directory, &path] {
                    let again = load(saved);
                    assert_eq!(results(&again), results(&model), "{}", saved.display());
                    assert_eq!(Lora::load(&again, &adapter).map(drop).unwrap_err().message(), e.message());
                }
                continue;
            }
            lora => lora.unwrap(),
        };
        let merged = model.merge(&lora, 0.7).unwrap();
        if adapter.ends_with("gemma2_tied_saved") {
            // llama.cpp would not load a file of Gemma 2 with an output matrix.
            let error = merged.save_gguf(folder.path().join("none.gguf"), None, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains("the output matrix is no longer the embedding"), "{error}");
            assert!(!folder.path().join("none.gguf").exists());
        } else {
            merged.save_gguf(&path, None, None).unwrap_or_else(|e| panic!("{}: {e}", adapter.display()));
            assert_eq!(results(&load(&path)), results(&merged), "{}", adapter.display());
        }
        // And as the directory that it comes from would be.
        let directory = folder.path().join(adapter.file_name().unwrap());
        merged.save(&directory, None, None).unwrap();
        assert_eq!(results(&load(&directory)), results(&merged), "{}", adapter.display());
        merged_into.push(name.to_string());
    }
    // Heads whose rows were moved, tensors that were joined, norms that were shifted.
    for name in ["llama_plain", "phi3", "gemma2", "qwen2_tied"] {
        assert!(merged_into.iter().any(|merged| merged == name), "{name}");
    }
}

#[test]
fn a_file_is_quantised_to_what_loading_quantises_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quantised.gguf");
    for name in ["gguf/qwen2-F32.gguf", "gguf/qwen2-BF16.gguf", "gguf/families/llama_plain.gguf", "gguf/families/phi3.gguf"] {
        let model = load(golden(name));
        for kind in ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl"] {
            model.save_gguf(&path, Some(kind), None).unwrap();
            assert_eq!(
                logits(&load(&path)),
                logits(&Model::load(golden(name), &quantised(kind), None).unwrap()),
                "{name} {kind}"
            );
        }
        model.save_gguf(&path, Some("f16"), None).unwrap();
        assert!(cosine(&logits(&load(&path)), &logits(&model)) > 0.9999, "{name}");
    }
    // What is quantised stays, to the last byte.
    let (file, again) = (golden("gguf/qwen2-Q8_0.gguf"), folder.path().join("again.gguf"));
    load(&file).save_gguf(&path, None, None).unwrap();
    load(&file).save_gguf(&again, Some("q4_0"), None).unwrap();
    assert_eq!(logits(&load(&path)), logits(&load(&again)));
    // And what was merged into a quantised model is quantised again, if asked.
    let model = load(golden("gguf/families/llama_plain.gguf"));
    let merged = model.merge(&Lora::load(&model, golden("lora/llama_all7")).unwrap(), 1.0).unwrap();
    merged.save_gguf(&path, Some("q8_0"), None).unwrap();
    let short = std::fs::metadata(&path).unwrap().len();
    assert!(cosine(&logits(&load(&path)), &logits(&merged)) > 0.99);
    merged.save_gguf(&path, None, None).unwrap();
    assert!(short < std::fs::metadata(&path).unwrap().len());
}

#[test]
fn checkpoints_that_others_quantised_become_plain() {
    let mut quantised = 0;
    for entry in std::fs::read_dir(golden("quantized")).unwrap() {
        let base = entry.unwrap().path();
        if !base.join("config.json").exists() {
            continue;
        }
        quantised += 1;
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("plain");
        let model = load(&base);
        model.save(&directory, None, None).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
        let again = load(&directory);
        assert!(!again.config_json().contains("quantization"), "{}", base.display());
        assert_eq!(results(&again), results(&model), "{}", base.display());
    }
    assert!(quantised >= 2);
}

#[test]
fn what_is_asked_wrongly_is_refused_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let base = golden("gguf/families/llama_plain.gguf");
    let copy = folder.path().join("copy.gguf");
    std::fs::copy(&base, &copy).unwrap();
    let model = load(&copy);
    let kind = |result: Result<(), metal_candle::Error>, part: &str| {
        let error = result.unwrap_err();
        assert!(error.message().contains(part), "{error}");
        error.kind()
    };
    let out = folder.path().join("out");
    assert_eq!(kind(model.save(&out, Some("q4_0"), None), "(f32, f16, bf16)"), ErrorKind::Unsupported);
    assert_eq!(kind(model.save_gguf(&out, Some("mlx4"), None), "q8_0, q6_k"), ErrorKind::Unsupported);
    assert_eq!(kind(load(golden("decoders/qwen2_tied")).save_gguf(&out, None, None), "safetensors"), ErrorKind::Unsupported);
    assert_eq!(kind(model.save(folder.path(), None, None), "files in"), ErrorKind::InvalidArgument);
    assert_eq!(kind(model.save_gguf(folder.path().join("none/x.gguf"), None, None), "none"), ErrorKind::NotFound);
    // A caller that stops; half of it is told.
    let mut told: Vec<Progress> = Vec::new();
    let mut stop = |progress: Progress| {
        told.push(progress);
        if progress.done * 2 < progress.total { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    assert_eq!(kind(model.save_gguf(&out, None, Some(&mut stop)), "cancel"), ErrorKind::Cancelled);
    assert_eq!(kind(model.save(&out, None, Some(&mut stop)), "cancel"), ErrorKind::Cancelled);
    assert!(told.len() > 4 && told.iter().all(|progress| progress.stage == Stage::Write));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["copy.gguf"]);

    // An empty directory is one that is there already; a file gives way.
    std::fs::create_dir(&out).unwrap();
    model.save(&out, None, None).unwrap();
    assert_eq!(logits(&load(&out)), logits(&model));
    // In place of the very file it came from; the model's files are then others.
    model.save_gguf(&copy, None, None).unwrap();
    assert_eq!(logits(&load(&copy)), logits(&model));
    assert_eq!(kind(model.save_gguf(&copy, None, None), "found others"), ErrorKind::Mismatch);
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(kind(model.save_gguf(&copy, None, None), "copy.gguf"), ErrorKind::NotFound);
}

#[test]
fn a_shipped_model_keeps_its_tokenizer_and_template() {
    let model = load(common::shipped("tiny-coder"));
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("model");
    model.save(&directory, Some("f32"), None).unwrap();
    let again = load(&directory);
    let text = "fn main() {}";
    assert_eq!(again.tokenizer().unwrap().encode(text, true).unwrap(), model.tokenizer().unwrap().encode(text, true).unwrap());
    assert!(again.supports(Capability::ChatTemplate) == model.supports(Capability::ChatTemplate));
    assert_eq!(logits(&again), logits(&model));
    let file = load(golden("gguf/tiny-coder-Q4_K_S.gguf"));
    let from_file = folder.path().join("from-file");
    file.save(&from_file, None, None).unwrap();
    let again = load(&from_file);
    for text in ["fn main() {}", " two  spaces", "<|im_start|>user", "snow \u{2603}\n\n"] {
        let encode = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap();
        assert_eq!(encode(&again), encode(&file), "{text:?}");
    }
    assert_eq!(again.supports(Capability::ChatTemplate), file.supports(Capability::ChatTemplate));
    assert_eq!(logits(&again), logits(&file));
}

/// One that keeps case, for a model whose own lowers it, or puts a space in front, and the other way round.
#[test]
fn a_tokenizer_that_was_given_is_not_changed_by_what_is_said_of_the_models_own() {
    let text = "The Brücke IS schön.";
    for (base, other) in [
        ("encoders/bert_mean_norm", "encoders/bert_cls"),
        ("encoders/bert_cls", "encoders/bert_mean_norm"),
        ("encoders/mpnet_mean_norm", "encoders/bert_cls"),
        ("embedders/roberta_mean", "encoders/modernbert_mean_new"),
        ("gguf/families/bert_cls.gguf", "encoders/bert_cls"),
        ("gguf/families/bert_mean_norm.gguf", "encoders/bert_cls"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("model");
        let options = common::exact().tokenizer_path(golden(other).join("tokenizer.json"));
        let model = Model::load(golden(base), &options, None).unwrap();
        model.save(&directory, None, None).unwrap();
        let again = load(&directory);
        let encode = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap();
        assert_eq!(encode(&again), encode(&model), "{base} with that of {other}");
        assert_eq!(vectors(&again), vectors(&model), "{base} with that of {other}");
    }
}

#[test]
fn a_tokenizer_that_was_given_is_saved_with_the_model() {
    let options = common::exact().tokenizer_path(common::shipped("tiny-coder").join("tokenizer.json"));
    let folder = tempfile::tempdir().unwrap();
    for base in ["decoders/qwen2_tied", "gguf/families/llama_plain.gguf"] {
        let model = Model::load(golden(base), &options, None).unwrap();
        let directory = folder.path().join(base.replace('/', "-"));
        model.save(&directory, None, None).unwrap();
        let encode = |model: &Model| model.tokenizer().unwrap().encode("fn main() { loop {} }", true).unwrap();
        assert_eq!(encode(&load(&directory)), encode(&model), "{base}");
    }
}

#[test]
fn an_error_names_the_place_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let place = folder.path().join("file/model");
    let model = load(golden("gguf/families/llama_plain.gguf"));
    let mut session = Session::new(&model, 0).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    let errors = [
        model.save(&place, None, None).unwrap_err(),
        model.save_gguf(&place, None, None).unwrap_err(),
        session.save(&place).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let message = error.message();
        assert!(message.starts_with(place.to_str().unwrap()) && !message.contains(".part"), "{message}");
    }
}
