//! What a host, a file system or a model's numbers do around the library: it answers with an error and goes on.

#![cfg(unix)]

mod common;

use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{golden, load, shipped};
use metal_candle::{
    Chat, ChatTemplate, Device, DeviceKind, EmbedOptions, ErrorKind, GenerateOptions, LoadOptions, Lora, LoraConfig, LoraTrainer,
    Model, RerankOptions, Session, Tokenizer, TrainOptions,
};

/// A copy of a model with one weight that is no number, or an infinite one.
fn spoiled(model: &Path, value: f32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        } else {
            let below = directory.path().join(entry.file_name());
            std::fs::create_dir(&below).unwrap();
            for file in std::fs::read_dir(entry.path()).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), below.join(file.file_name())).unwrap();
            }
        }
    }
    let path = directory.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    // A norm: every token meets it.
    let (_, norm) = json.as_object().unwrap().iter().find(|(name, _)| name.to_lowercase().contains("norm")).unwrap();
    let (start, wide) = (norm["data_offsets"][0].as_u64().unwrap() as usize, norm["dtype"] == "F32");
    let at = 8 + header + start;
    // BF16 is the upper half of F32, in F16 the exponent is shorter.
    let half =
        if norm["dtype"] == "F16" { half::f16::from_f32(value).to_le_bytes() } else { half::bf16::from_f32(value).to_le_bytes() };
    if wide {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    } else {
        bytes[at..at + 2].copy_from_slice(&half);
    }
    std::fs::write(&path, bytes).unwrap();
    directory
}

fn cpu(path: &Path) -> Model {
    let options = LoadOptions::default().device(Device::new(DeviceKind::Cpu, 0).unwrap());
    Model::load(path, &options, None).unwrap()
}

#[test]
fn weights_that_are_no_numbers_are_one_status_everywhere() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let directory = spoiled(&shipped("tiny-coder"), value);
        let model = cpu(directory.path());
        let mut session = Session::new(&model, 0).unwrap();
        session.append_tokens(&[5, 6], None).unwrap();
        let logits = session.logits().map(<[f32]>::to_vec).unwrap_err();
        let top = session.top_logprobs(3).unwrap_err();
        let scored = session.score_tokens(&[7, 8], None).unwrap_err();
        let generated = model.generate("a", &GenerateOptions::default(), None, &mut |_| ControlFlow::Continue(())).unwrap_err();
        let mut trainer = LoraTrainer::new(&model, &LoraConfig::default(), &TrainOptions::default()).unwrap();
        let trained = trainer.train_step(&[1, 2, 3, 4], None, &[0, 4]).unwrap_err();
        let embedder = spoiled(&shipped("tiny-embed"), value);
        let embedded = cpu(embedder.path()).embed(&["a"], &EmbedOptions::default(), None).unwrap_err();
        let mut errors = vec![
            (logits, "logits"),
            (top, "top_logprobs"),
            (scored, "score"),
            (generated, "generate"),
            (trained, "train"),
            (embedded, "embed"),
        ];
        for reranker in ["bert", "qwen3_new"] {
            let reranker = spoiled(&golden("rerankers").join(reranker), value);
            let model = cpu(reranker.path());
            errors.push((model.rerank("a", &["b"], &RerankOptions::default()).unwrap_err(), "rerank"));
        }
        for (error, what) in errors {
            assert_eq!(error.kind(), ErrorKind::Device, "{value}, {what}: {error}");
        }
    }
}

#[test]
fn every_call_fits_a_stack_of_512_kib() {
    let calls = || {
        let model = load(shipped("tiny-coder"));
        let schema = r#"{"type": "object", "properties": {"a": {"enum": [1, "x"]}, "b": {"type": "string"}}, "required": ["a"]}"#;
        let options = GenerateOptions::default().max_tokens(8).json_schema(schema);
        model.generate("What?", &options, None, &mut |_| ControlFlow::Continue(())).unwrap();
        let mut trainer = LoraTrainer::new(&model, &LoraConfig::default(), &TrainOptions::default()).unwrap();
        trainer.train_step(&[1, 2, 3, 4, 5, 6], None, &[0, 3, 6]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        trainer.adapter().unwrap().save(directory.path()).unwrap();
        Lora::load(&model, directory.path()).unwrap();
        let mut session = Session::new(&model, 0).unwrap();
        session.append("hello the world", None).unwrap();
        let path = directory.path().join("session");
        session.save(&path).unwrap();
        Session::load(&model, &path).unwrap();
        load(shipped("tiny-embed")).embed(&["hello", "the world", ""], &EmbedOptions::default(), None).unwrap();
        let mut chat = Chat::new();
        chat.add("user", "What?");
        chat.render(ChatTemplate::load(&shipped("tiny-coder")).unwrap().as_ref(), true).unwrap();
        Tokenizer::load(shipped("tiny-coder").join("tokenizer.json")).unwrap().encode("hello the world", true).unwrap();
        load(golden("rerankers").join("bert")).rerank("hello", &["the world"], &RerankOptions::default()).unwrap();
        load(golden("gguf").join("tiny-coder-Q4_K_S.gguf"));
        // As deep as they may be, and deeper.
        for depth in [20, 60, 100_000] {
            let schema = format!("{}true{}", r#"{"items":"#.repeat(depth), "}".repeat(depth));
            let options = GenerateOptions::default().max_tokens(2).json_schema(&schema);
            let _ = model.generate("What?", &options, None, &mut |_| ControlFlow::Continue(()));
            let deep = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
            let config = directory.path().join("config.json");
            std::fs::write(&config, format!(r#"{{"model_type": "llama", "x": {deep}}}"#)).unwrap();
            assert!(Model::load(directory.path(), &LoadOptions::default(), None).is_err());
            std::fs::write(directory.path().join("tokenizer.json"), format!(r#"{{"normalizer": {deep}}}"#)).unwrap();
            assert!(Tokenizer::load(directory.path().join("tokenizer.json")).is_err());
            let _ = Chat::from_json(&format!(r#"[{{"role": "user", "content": "", "x": {deep}}}]"#));
        }
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(calls).unwrap().join().unwrap();
}

#[test]
fn a_session_is_saved_behind_a_link_and_into_files_alone() {
    let model = load(shipped("tiny-coder"));
    let mut session = Session::new(&model, 0).unwrap();
    session.append_tokens(&[5], None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("target"), "old").unwrap();
    symlink("target", path("link")).unwrap();
    symlink("new", path("dangling")).unwrap();
    symlink("round", path("round")).unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    for (name, target) in [("link", "target"), ("dangling", "new")] {
        session.save(path(name)).unwrap();
        assert!(std::fs::symlink_metadata(path(name)).unwrap().is_symlink(), "{name}");
        assert!(std::fs::read(path(target)).unwrap().starts_with(b"MCSESS"), "{target}");
    }
    for name in ["fifo", "directory", "round"] {
        let error = session.save(path(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}: {error}");
    }
    let trainer = LoraTrainer::new(&model, &LoraConfig::default(), &TrainOptions::default()).unwrap();
    assert_eq!(trainer.adapter().unwrap().save("").unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn what_stands_in_place_of_weights_is_named() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders/llama_plain");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for (files, message) in [
        (vec![("model.safetensors", pointer)], "Git LFS pointer"),
        (vec![("model.safetensors", "<!doctype html><html>Not found</html>")], "HTML"),
        (vec![("model.safetensors", "Entry not found")], "the file is a text"),
        (vec![("pytorch_model.bin", "x")], "pytorch_model.bin"),
        (vec![("model-00001-of-00002.safetensors", "x")], "without model.safetensors.index.json"),
        (vec![], "no weights"),
        (vec![("model.safetensors", pointer), ("config.json", pointer)], "config.json: expected JSON, found a Git LFS pointer"),
        (vec![("model.safetensors", pointer), ("tokenizer.json", pointer)], "Git LFS pointer"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(golden.join("config.json"), directory.path().join("config.json")).unwrap();
        for (name, text) in &files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let error = Model::load(directory.path(), &LoadOptions::default(), None).err().unwrap();
        assert!(error.message().contains(message), "{files:?}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.gguf"), pointer).unwrap();
    let error = Model::load(directory.path().join("model.gguf"), &LoadOptions::default(), None).err().unwrap();
    assert!(error.message().contains("Git LFS pointer"), "{error}");
}
