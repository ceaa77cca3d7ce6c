//! Loading: progress, cancel, memory, and files that lie.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{Reference, golden, load, q8_0, quantised, shipped};
use metal_candle::{Cancel, Dtype, Error, ErrorKind, GenerateOptions, LoadOptions, Model, Session, Stage, estimate_memory};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

fn try_load(path: &Path) -> Result<Model, Error> {
    Model::load(path, &LoadOptions::default(), None)
}

/// A copy of a small model that a test may spoil.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("golden") {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// A copy with one key of its configuration changed; `Null` removes it.
fn configured(name: &str, key: &str, value: Value) -> TempDir {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut config = common::json(&path);
    if value.is_null() {
        config.as_object_mut().unwrap().remove(key);
    } else {
        config[key] = value;
    }
    fs::write(&path, config.to_string()).unwrap();
    folder
}

fn refused(folder: &TempDir, kind: ErrorKind, says: &[&str]) {
    let error = try_load(folder.path()).err().unwrap_or_else(|| panic!("loaded, expected an error about {says:?}"));
    assert_eq!(error.kind(), kind, "{}", error.details());
    for word in says {
        assert!(error.message().contains(word), "{word:?} in {:?}", error.message());
    }
}

#[test]
fn progress_grows_to_the_whole_and_can_stop() {
    for (options, stage) in [(LoadOptions::default(), Stage::Read), (q8_0(), Stage::Quantize)] {
        let mut seen = Vec::new();
        let mut watch = |progress: metal_candle::Progress| {
            assert_eq!(progress.stage, stage);
            seen.push((progress.done, progress.total));
            ControlFlow::Continue(())
        };
        Model::load(shipped("tiny-coder"), &options, Some(&mut watch)).unwrap();
        assert!(seen.len() > 5 && seen.is_sorted_by_key(|&(done, _)| done));
        let &(done, total) = seen.last().unwrap();
        assert!(done == total && total > 14_000_000);
    }

    let mut stop = |progress: metal_candle::Progress| {
        if progress.done * 2 > progress.total { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = Model::load(shipped("tiny-coder"), &LoadOptions::default(), Some(&mut stop)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let cancel = Cancel::new();
    cancel.trigger();
    let options = LoadOptions::default().cancel(cancel);
    assert_eq!(Model::load(shipped("tiny-coder"), &options, None).err().unwrap().kind(), ErrorKind::Cancelled);
}

#[test]
fn what_a_model_says_of_itself() {
    let model = load(shipped("tiny-coder"));
    assert_eq!((model.architecture(), model.layer_count(), model.hidden_size()), ("qwen2", 8, 256));
    assert_eq!((model.vocab_size(), model.context_length()), (4096, 1024));
    // Embedding, and in each layer two norms, q, k, v with biases, o, gate, up, down; the final norm.
    let layer = 2 * 256 + (256 + 128 + 128) * 257 + 256 * 256 + 3 * 256 * 768;
    assert_eq!(model.parameter_count(), 4096 * 256 + 8 * layer + 256);
    let config: Value = serde_json::from_str(model.config_json()).unwrap();
    assert_eq!(config, common::json(&shipped("tiny-coder").join("config.json")));
}

#[test]
fn one_file_shards_and_both_tied_names_load() {
    load(golden("decoders/qwen3_sharded"));
    // A tied model whose file holds the shared matrix twice, or only as the head.
    let source = golden("decoders/qwen2_tied");
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embed = tensors.tensor("model.embed_tokens.weight").unwrap();
    let want = logits(&load(&source));
    for drop_embed in [false, true] {
        let folder = copy("decoders/qwen2_tied");
        let mut list: Vec<_> = tensors.iter().filter(|(name, _)| !(drop_embed && *name == "model.embed_tokens.weight")).collect();
        list.push(("lm_head.weight", embed.clone()));
        safetensors::serialize_to_file(list, None, &folder.path().join("model.safetensors")).unwrap();
        assert_eq!(logits(&load(folder.path())), want);
    }
    // A head of its own in a model that says it is tied is used, as the reference does.
    let folder = copy("decoders/qwen2_tied");
    let value = embed.dtype().bitsize() / 8;
    let other: Vec<u8> = embed.data().chunks(value).rev().flatten().copied().collect();
    let head = safetensors::tensor::TensorView::new(embed.dtype(), embed.shape().to_vec(), &other).unwrap();
    let mut list: Vec<_> = tensors.iter().collect();
    list.push(("lm_head.weight", head));
    safetensors::serialize_to_file(list, None, &folder.path().join("model.safetensors")).unwrap();
    assert_ne!(logits(&load(folder.path())), want);
}

#[test]
fn experts_go_by_the_names_of_their_publisher_or_by_those_of_transformers() {
    let written = |name: &str, tensors| {
        let folder = copy(name);
        common::write_tensors(&folder.path().join("model.safetensors"), tensors);
        let (published, own) = (load(golden(name)), load(folder.path()));
        assert_eq!(logits(&own), logits(&published), "{name}");
        // And so they are saved.
        own.save(folder.path().join("saved"), None, None).unwrap();
        assert_eq!(logits(&load(folder.path().join("saved"))), logits(&published), "{name}");
    };
    let stored = |name: &str| Reference::open(&golden(name).join("model.safetensors")).tensors();

    let renamed = stored("decoders/granitemoehybrid_old").into_iter().map(|(name, tensor)| {
        let name = name.replace("moe.input_linear.weight", "moe.experts.gate_up_proj");
        let name = name.replace("moe.output_linear.weight", "moe.experts.down_proj");
        (name.replace("router.layer.weight", "router.weight"), tensor)
    });
    written("decoders/granitemoehybrid_old", renamed.collect());

    let (mut all, mut stacks): (common::Tensors, common::Tensors) = Default::default();
    for (name, (dtype, shape, bytes)) in stored("decoders/mixtral") {
        let Some((place, rest)) = name.split_once("block_sparse_moe.experts.") else {
            all.insert(name.replace("block_sparse_moe.gate", "mlp.gate"), (dtype, shape, bytes));
            continue;
        };
        // In the order of the names: w1 and w2, then w3, which belongs behind w1.
        let (expert, part) = rest.split_once('.').unwrap();
        let stack = if part == "w2.weight" { "down_proj" } else { "gate_up_proj" };
        let number: usize = expert.parse().unwrap();
        let stack = stacks.entry(format!("{place}mlp.experts.{stack}")).or_insert((dtype, vec![0, 0, shape[1]], Vec::new()));
        stack.1[0] = stack.1[0].max(number + 1);
        stack.1[1] = if part == "w2.weight" { shape[0] } else { 2 * shape[0] };
        assert_eq!(stack.2.len() % bytes.len(), 0);
        stack.2.extend(bytes);
    }
    assert!(stacks.values().all(|(_, shape, _)| shape[0] < 10), "names in the order of numbers");
    all.extend(stacks);
    written("decoders/mixtral", all);
}

fn logits(model: &Model) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&[5, 9, 70], None).unwrap();
    session.logits().unwrap().to_vec()
}

/// A multimodal model around a language model, whose tensors have these beginnings, those of its head and of a tower.
fn within_a_multimodal_model(name: &str, outer: Value, prefix: &str, head: &str, tower: &str) -> TempDir {
    let folder = copy(name);
    let mut config = outer;
    config["text_config"] = common::json(&folder.path().join("config.json"));
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = |name: &str| match name.strip_prefix("model.") {
        Some(inner) => format!("{prefix}{inner}"),
        None => format!("{head}{name}"),
    };
    let mut all: Vec<_> = tensors.iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
    let of_the_tower = all[0].1.clone();
    all.push((format!("{tower}patch_embed.weight"), of_the_tower));
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
    folder
}

#[test]
fn the_language_model_within_a_multimodal_one_is_loaded() {
    let gemma3 = |fields: Value| {
        let mut config = json!({"model_type": "gemma3", "vision_config": {"hidden_size": 8}});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        config
    };
    let alone = load(golden("decoders/gemma3_text_old"));
    for (prefix, head, tower) in
        [("language_model.model.", "language_model.", "vision_tower."), ("model.language_model.", "", "model.vision_tower.")]
    {
        let folder = within_a_multimodal_model("decoders/gemma3_text_old", gemma3(json!({})), prefix, head, tower);
        let model = load(folder.path());
        assert_eq!(logits(&model), logits(&alone), "{prefix}");
        assert_eq!((model.architecture(), model.parameter_count()), ("gemma3", alone.parameter_count()));
    }
    // What a tower is not called is no tower; of the two words on tying the outer one counts.
    let of_all = ("language_model.model.", "language_model.");
    let stray = within_a_multimodal_model("decoders/gemma3_text_old", gemma3(json!({})), of_all.0, of_all.1, "tower.");
    refused(&stray, ErrorKind::Format, &["tower.patch_embed.weight"]);
    let untied = gemma3(json!({"tie_word_embeddings": false}));
    let untied = within_a_multimodal_model("decoders/gemma3_text_old", untied, of_all.0, of_all.1, "vision_tower.");
    refused(&untied, ErrorKind::Format, &["language_model.lm_head.weight"]);

    // Where the outer one says nothing, it is tied as its class says, whatever the inner one does.
    let untold = configured("decoders/ministral3_nested", "tie_word_embeddings", Value::Null);
    assert_eq!(logits(&load(untold.path())), logits(&load(golden("decoders/ministral3_nested"))));

    refused(&configured("decoders/ministral3_nested", "text_config", Value::Null), ErrorKind::Format, &["text_config"]);
    let text = |key: &str, value: Value| {
        let mut text = common::json(&golden("decoders/ministral3_nested/config.json"))["text_config"].clone();
        text[key] = value;
        configured("decoders/ministral3_nested", "text_config", text)
    };
    refused(&text("text_config", json!({})), ErrorKind::Unsupported, &["text_config", "within another"]);
    refused(&text("model_type", json!("mamba")), ErrorKind::Unsupported, &["text_config: model_type", "\"mamba\""]);
    refused(&text("hidden_size", json!(0)), ErrorKind::Format, &["text_config: hidden_size"]);
    let linear = json!({"rope_type": "linear", "factor": 2.0, "llama_4_scaling_beta": 0.1});
    refused(&text("rope_parameters", linear), ErrorKind::Unsupported, &["llama_4_scaling_beta"]);
}

#[test]
fn missing_files_are_named() {
    let error = try_load(Path::new("/no/such/model")).err().unwrap();
    assert!(error.kind() == ErrorKind::NotFound && error.message().contains("/no/such/model"), "{error}");
    for (path, is_named) in [("owner/name", true), ("a/b/c", false), ("./name", false), ("name", false), ("owner/", false)] {
        let error = Model::load(path, &LoadOptions::default(), None).err().unwrap();
        assert!(error.kind() == ErrorKind::NotFound && error.message().contains("load_hub") == is_named, "{error}");
    }
    for (file, says) in [("config.json", "config.json"), ("model.safetensors", "model.safetensors")] {
        let folder = copy("decoders/qwen2_tied");
        fs::remove_file(folder.path().join(file)).unwrap();
        refused(&folder, ErrorKind::NotFound, &[says]);
    }
    // What somebody gives by mistake, and how it is told what to give.
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    for folder in ["empty", "cache/snapshots", "others"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    for file in ["a", "b", "c", "d"] {
        fs::write(path("others").join(file), "").unwrap();
    }
    for (name, bytes) in [("model.safetensors", "{}"), ("sha256-1f", "GGUF\u{3}"), ("notes.txt", "?")] {
        fs::write(path(name), bytes).unwrap();
    }
    let of_path = |name: &str| path(name).to_str().unwrap().to_string();
    for (given, kind, says) in [
        (of_path("empty"), ErrorKind::NotFound, "empty: expected config.json or a GGUF file in it, found an empty directory"),
        (
            of_path("cache"),
            ErrorKind::NotFound,
            "found a repository in the cache of the Hub: its models lie in the directories of snapshots",
        ),
        (of_path("cache/.."), ErrorKind::NotFound, "found cache, empty, model.safetensors and others"),
        (of_path("others"), ErrorKind::NotFound, "found a, b, c and others"),
        (of_path("model.safetensors"), ErrorKind::Unsupported, "found a file of such a directory, which is what is loaded"),
        (of_path("sha256-1f"), ErrorKind::Unsupported, "found a GGUF file under another name, expected one that ends in .gguf"),
        (of_path("notes.txt"), ErrorKind::Unsupported, "or a GGUF file, found another file"),
        (
            "https://huggingface.co/owner/name".into(),
            ErrorKind::NotFound,
            "loaded by its name, owner/name, and mc_model_load_hub",
        ),
        ("~/models/name".into(), ErrorKind::NotFound, "`~` stands for a directory in shells alone"),
        (String::new(), ErrorKind::InvalidArgument, "path: expected a directory or a GGUF file, found an empty text"),
    ] {
        let error = Model::load(&given, &LoadOptions::default(), None).err().unwrap();
        assert!(error.kind() == kind && error.message().contains(says), "{given}: {error}");
    }
    let folder = copy("decoders/qwen3_sharded");
    fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    refused(&folder, ErrorKind::NotFound, &["model-00002-of-00003.safetensors"]);
    let empty = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    assert_eq!(try_load(empty.path()).err().unwrap().kind(), ErrorKind::Format);
}

#[test]
fn an_index_that_lies_is_refused() {
    for (shard, says) in
        [("../model.safetensors", "beside the index"), ("/etc/passwd", "beside the index"), ("", "beside the index")]
    {
        let folder = copy("decoders/qwen3_sharded");
        let path = folder.path().join("model.safetensors.index.json");
        let mut index = common::json(&path);
        index["weight_map"]["model.norm.weight"] = json!(shard);
        fs::write(&path, index.to_string()).unwrap();
        refused(&folder, ErrorKind::Format, &["model.norm.weight", says]);
    }
    let folder = copy("decoders/qwen3_sharded");
    let path = folder.path().join("model.safetensors.index.json");
    let mut index = common::json(&path);
    index["weight_map"]["model.phantom.weight"] = json!("model-00001-of-00003.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    refused(&folder, ErrorKind::Format, &["model.phantom.weight", "does not hold it"]);
}

/// Writes a safetensors file from a header and data as they are.
fn write_raw(path: &Path, length: u64, header: &[u8], data: &[u8]) {
    fs::write(path, [&length.to_le_bytes(), header, data].concat()).unwrap();
}

#[test]
fn headers_that_lie_are_refused() {
    let folder = copy("decoders/qwen2_tied");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let header: Value = serde_json::from_slice(&whole[8..8 + length as usize]).unwrap();
    let data = &whole[8 + length as usize..];
    for cut in [0, 5, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        refused(&folder, ErrorKind::Format, &["model.safetensors"]);
    }
    for length in [u64::MAX, 1 << 40, whole.len() as u64, 3] {
        write_raw(&path, length, b"{}", data);
        refused(&folder, ErrorKind::Format, &["model.safetensors"]);
    }
    fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
    refused(&folder, ErrorKind::Format, &["bytes of tensors"]);

    let name = "model.norm.weight";
    let offsets = header[name]["data_offsets"].clone();
    let spoiled = [
        ("dtype", json!("F64"), "F64"),
        ("dtype", json!("I16"), "dtype: expected F32, F16 or BF16, found \"I16\""),
        ("dtype", json!("F4"), "dtype"),
        ("dtype", json!(7), "dtype"),
        ("shape", json!([65]), "shape"),
        ("shape", json!([u64::MAX, u64::MAX]), "shape"),
        ("shape", json!([-1]), "whole number"),
        ("shape", json!("64"), "shape"),
        ("data_offsets", json!([0, 128]), "begin"),
        ("data_offsets", json!([offsets[1], offsets[0]]), "range"),
        ("data_offsets", json!([0, u64::MAX]), "range"),
        ("data_offsets", json!([1]), "data_offsets"),
    ];
    for (key, value, says) in spoiled {
        let mut header = header.clone();
        header[name][key] = value;
        let text = header.to_string();
        write_raw(&path, text.len() as u64, text.as_bytes(), data);
        refused(&folder, ErrorKind::Format, &[says]);
    }
    for text in ["[]", "null", "{", "{\"a\": 3}", "\u{1}"] {
        write_raw(&path, text.len() as u64, text.as_bytes(), b"");
        refused(&folder, ErrorKind::Format, &["model.safetensors"]);
    }
}

#[test]
fn headers_made_to_mislead_or_exhaust_are_refused() {
    let folder = copy("decoders/qwen2_tied");
    let path = folder.path().join("model.safetensors");
    let entry = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    let empty = r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
    let deep = "[".repeat(1 << 20);
    let cases = [
        (format!(r#"{{"a": {entry}, "a": {entry}}}"#), "a: a second tensor"),
        (format!(r#"{{"a": {entry}, "b": {empty}, "b": {empty}}}"#), "b: a second tensor"),
        (format!(r#"{{"LayerNorm.gamma": {entry}, "LayerNorm.weight": {empty}}}"#), "a second tensor"),
        (format!(r#"{{"a": {entry}, "__metadata__": {{}}, "__metadata__": {{}}}}"#), "__metadata__"),
        (format!(r#"{{"a": {entry}, "__metadata__": {{"format": 1}}}}"#), "__metadata__: expected texts"),
        (entry.replace("[1]", &format!("{:?}", [1u64 << 40; 2])), "shape"),
        (entry.replace("[1]", &format!("{:?}", [usize::MAX, 0, usize::MAX])), "shape"),
        (entry.replace('4', "18446744073709551616"), "data_offsets"),
        (entry.replace("[1]", &deep), "header"),
        (entry.replace("4]", &format!("4], \"more\": {deep}")), "header"),
        (deep, "header"),
    ];
    for (text, says) in cases {
        let text = if text.starts_with("{\"dtype") { format!("{{\"a\": {text}}}") } else { text };
        write_raw(&path, text.len() as u64, text.as_bytes(), &[0; 4]);
        refused(&folder, ErrorKind::Format, &["model.safetensors", says]);
    }
}

#[test]
fn tensors_that_are_missing_left_over_or_of_another_shape_are_named() {
    let bytes = fs::read(golden("decoders/qwen2_tied/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let write = |folder: &TempDir, list: Vec<(String, safetensors::tensor::TensorView<'_>)>| {
        safetensors::serialize_to_file(list, None, &folder.path().join("model.safetensors")).unwrap();
    };
    let list = || tensors.iter().map(|(name, view)| (name.to_string(), view)).collect::<Vec<_>>();
    let folder = copy("decoders/qwen2_tied");
    write(&folder, list().into_iter().filter(|(name, _)| name != "model.layers.1.mlp.up_proj.weight").collect());
    refused(&folder, ErrorKind::Format, &["model.layers.1.mlp.up_proj.weight"]);

    let spare = tensors.tensor("model.norm.weight").unwrap();
    let mut more = list();
    more.push(("model.layers.0.mlp.extra.weight".to_string(), spare.clone()));
    write(&folder, more);
    refused(&folder, ErrorKind::Format, &["model.layers.0.mlp.extra.weight", "no place"]);

    let mut stale = list();
    stale.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), spare.clone()));
    write(&folder, stale);
    assert!(try_load(folder.path()).is_ok(), "a buffer of old checkpoints is no weight");

    let renamed = list()
        .into_iter()
        .map(|(name, view)| if name == "model.layers.0.mlp.up_proj.weight" { (name, spare.clone()) } else { (name, view) });
    write(&folder, renamed.collect());
    refused(&folder, ErrorKind::Format, &["model.layers.0.mlp.up_proj.weight", "expected shape [64, 64]", "[64]"]);
}

#[test]
fn configurations_out_of_range_name_their_field() {
    let format = |key, value, says: &[&str]| refused(&configured("decoders/qwen2_tied", key, value), ErrorKind::Format, says);
    format("num_attention_heads", json!(0), &["num_attention_heads"]);
    format("num_hidden_layers", json!(1_000_000_000_000_u64), &["num_hidden_layers"]);
    format("num_hidden_layers", json!(-1), &["num_hidden_layers", "-1"]);
    format("hidden_size", json!("many"), &["hidden_size", "many"]);
    format("hidden_size", json!(u64::MAX), &["hidden_size"]);
    format("hidden_size", Value::Null, &["hidden_size", "nothing"]);
    format("hidden_size", json!(66), &["hidden_size", "multiple"]);
    format("num_key_value_heads", json!(3), &["num_key_value_heads"]);
    format("head_dim", json!(0), &["head_dim"]);
    format("head_dim", json!(15), &["head_dim", "even"]);
    format("rms_norm_eps", json!(0), &["rms_norm_eps"]);
    format("vocab_size", json!(1 << 20), &["embed_tokens", "expected shape"]);
    format("layer_types", json!(["full_attention"]), &["layer_types", "3"]);
    format("tie_word_embeddings", json!("yes"), &["tie_word_embeddings"]);
    format("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 1e4}), &["factor"]);
    format("rope_parameters", json!({"rope_type": "longrope", "short_factor": [1], "long_factor": []}), &["factor"]);

    let unsupported =
        |key, value, says: &[&str]| refused(&configured("decoders/qwen2_tied", key, value), ErrorKind::Unsupported, says);
    unsupported("model_type", json!("mamba"), &["mamba", "qwen2"]);
    unsupported("hidden_act", json!("xielu"), &["hidden_act", "xielu", "silu"]);
    unsupported("rope_parameters", json!({"rope_type": "abf"}), &["abf", "default, linear"]);
    unsupported("quantization_config", json!({"quant_method": "bitsandbytes"}), &["quantization_config", "bitsandbytes"]);
    unsupported("partial_rotary_factor", json!(0.5), &["partial_rotary_factor"]);
    unsupported("layer_types", json!(["full_attention", "chunked_attention", "full_attention"]), &["chunked_attention"]);

    for text in ["", "{", "[]", "\"text\"", "{\"model_type\": 3}", &"[".repeat(100_000)] {
        let folder = copy("decoders/qwen2_tied");
        fs::write(folder.path().join("config.json"), text).unwrap();
        refused(&folder, ErrorKind::Format, &["config.json"]);
    }
    let folder = copy("decoders/qwen2_tied");
    fs::write(folder.path().join("config.json"), b"{\"a\": \"\xff\"}").unwrap();
    refused(&folder, ErrorKind::Format, &["config.json", "UTF-8"]);
}

#[test]
fn options_out_of_range_name_themselves() {
    let with = |options: LoadOptions| Model::load(golden("decoders/qwen2_tied"), &options, None).err().unwrap();
    let error = with(LoadOptions::default().max_context(0));
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("max_context"), "{error}");
    for kind in ["q4_k", "Q8_0", ""] {
        let error = with(LoadOptions::default().quantization(kind));
        let named = [format!("{kind:?}"), "(q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_nl, mlx4)".to_string()]
            .iter()
            .all(|part| error.message().contains(part));
        assert!(error.kind() == ErrorKind::Unsupported && named, "{error}");
    }
    let error = with(LoadOptions::default().tokenizer_path("no/tokenizer.json"));
    assert!(error.kind() == ErrorKind::NotFound && error.message().contains("tokenizer.json"), "{error}");
    let damaged = tempfile::NamedTempFile::new().unwrap();
    fs::write(damaged.path(), "{\"model\": 1}").unwrap();
    let error = with(LoadOptions::default().tokenizer_path(damaged.path()));
    assert_eq!(error.kind(), ErrorKind::Format);
}

fn session_behind_57(directory: &Path) -> Session {
    let mut session = Session::new(&load(directory), 0).unwrap();
    session.append_tokens(&[57], None).unwrap();
    session
}

#[test]
fn the_recommended_sampling_and_every_end_token_are_read() {
    let folder = copy("decoders/qwen2_tied");
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [181, 5], "do_sample": false}"#).unwrap();
    let model = load(folder.path());
    let mut session = Session::new(&model, 0).unwrap();
    session.append_tokens(&[57], None).unwrap();
    let answer = session.generate(&GenerateOptions::default(), None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.tokens, [136, 181], "greedy, and 181 ends it");

    // Sampled from fifty tokens where nothing is said, from all where 0 is.
    let mut ranked: Vec<(usize, f32)> = session_behind_57(folder.path()).logits().unwrap().iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (top_k, most) in [("", 50), (r#", "top_k": null"#, 50), (r#", "top_k": 7"#, 7), (r#", "top_k": 0"#, ranked.len())] {
        let config = format!(r#"{{"do_sample": true, "temperature": 1000.0{top_k}}}"#);
        fs::write(folder.path().join("generation_config.json"), config).unwrap();
        let mut session = session_behind_57(folder.path());
        let mut worst = 0;
        for seed in 0..300 {
            let options = GenerateOptions::default().max_tokens(1).seed(seed).ignore_eos(true);
            let answer = session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap();
            worst = worst.max(1 + ranked.iter().position(|(id, _)| *id as u32 == answer.tokens[0]).unwrap());
            session.truncate(1).unwrap();
        }
        assert!(worst <= most && worst > most * 9 / 10, "{top_k}: {worst} of {most}");
    }

    // The likeliest tokens, each suppressed in another way; of ids that the model lacks, none is.
    let best: Vec<usize> = ranked.iter().map(|(id, _)| *id).collect();
    let drawn = |config: &str| {
        fs::write(folder.path().join("generation_config.json"), config).unwrap();
        let options = GenerateOptions::default().max_tokens(1).ignore_eos(true);
        let answer = session_behind_57(folder.path()).generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap();
        answer.tokens[0] as usize
    };
    assert_eq!(drawn("{}"), best[0]);
    assert_eq!(drawn(r#"{"do_sample": true, "top_p": 0.0}"#), best[0]);
    let config = format!(
        r#"{{"suppress_tokens": [{}, 4000000], "bad_words_ids": [[{}], [{}, 1]], "sequence_bias": [[[{}], -1e9]]}}"#,
        best[0], best[1], best[3], best[2]
    );
    assert_eq!(drawn(&config), best[3]);
    // What a caller adds does not bring them back.
    let mut session = session_behind_57(folder.path());
    let options = GenerateOptions::default().max_tokens(1).ignore_eos(true).logit_bias([(best[0] as u32, 100.0)]);
    let answer = session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.tokens[0] as usize, best[3]);
    for bad in [
        r#"{"suppress_tokens": "a"}"#,
        r#"{"bad_words_ids": [1, "a"]}"#,
        r#"{"sequence_bias": [[[1]]]}"#,
        r#"{"sequence_bias": [[[1], 1e39]]}"#,
    ] {
        fs::write(folder.path().join("generation_config.json"), bad).unwrap();
        let key = bad.split('"').nth(1).unwrap();
        refused(&folder, ErrorKind::Format, &[key]);
    }

    fs::write(folder.path().join("generation_config.json"), r#"{"do_sample": true, "top_p": 1.5}"#).unwrap();
    refused(&folder, ErrorKind::Format, &["generation_config.json", "top_p"]);
}

#[test]
fn the_estimate_is_what_a_model_takes() {
    // Weights and cache are counted to the byte; only the workspace is an estimate.
    let path = shipped("tiny-coder");
    let estimate = estimate_memory(&path, &LoadOptions::default()).unwrap();
    let short = estimate_memory(&path, &LoadOptions::default().max_context(256)).unwrap();
    let cache_of = |tokens: u64| 8 * 2 * 2 * 64 * tokens * 4;
    let workspace = |n: u64| n - cache_of(if n == short { 256 } else { 1024 });
    assert!(workspace(estimate) > workspace(short), "a longer context has longer rows of scores");
    let weights = 14_700_000;
    assert!(estimate - cache_of(1024) > weights && estimate - cache_of(1024) < 2 * weights, "{estimate}");
    let wide = estimate_memory(&path, &LoadOptions::default().dtype(metal_candle::Dtype::F32)).unwrap();
    assert!(wide - estimate > 14_600_000 && wide - estimate < 14_800_000, "twice the bytes a weight");
    // All matrices of this model are for products, and have whole panels and blocks.
    let matrices = 4096 * 256 + 8 * ((256 + 2 * 128 + 256) * 256 + 3 * 256 * 768);
    let of_bytes = estimate_memory(&path, &q8_0()).unwrap();
    assert_eq!(estimate - of_bytes, matrices * 2 - matrices * 34 / 32, "34 bytes for 32 weights");
    // Of eight layers 0, 3, 6 and 7 have more bits.
    let (v, down, head) = (128 * 256, 256 * 768, 4096 * 256);
    let more = head + 4 * (v + down);
    let mixed = estimate_memory(&path, &quantised("q4_k_m")).unwrap();
    assert_eq!(estimate - mixed, matrices * 2 - (more * 106 + (matrices - more) * 74) / 128, "6.625 bits and 4.625");
    assert_eq!(estimate_memory("no/model", &LoadOptions::default()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_weight_that_cannot_be_quantised_is_refused_by_the_name_of_its_tensor() {
    let path = golden("families/llama_f32");
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    for bad in [f32::NAN, f32::INFINITY, 1e7] {
        let folder = copy("families/llama_f32");
        let tensor = tensors.tensor(name).unwrap();
        let mut values = tensor.data().to_vec();
        values[400..404].copy_from_slice(&bad.to_le_bytes());
        let spoiled = safetensors::tensor::TensorView::new(tensor.dtype(), tensor.shape().to_vec(), &values).unwrap();
        let list = tensors.iter().map(|(other, view)| (other, if other == name { spoiled.clone() } else { view }));
        safetensors::serialize_to_file(list, None, &folder.path().join("model.safetensors")).unwrap();
        // Its columns are no whole blocks of 64, so that MLX's format leaves it in F16.
        for (kind, refused) in [("q8_0", true), ("q4_0", true), ("q4_k_m", true), ("iq4_nl", true), ("mlx4", bad == 1e7)] {
            let error = Model::load(folder.path(), &quantised(kind), None).err();
            assert_eq!(error.is_some(), refused, "{kind} {bad}");
            let Some(error) = error else { continue };
            assert!(error.kind() == ErrorKind::Format && error.message().contains(name), "{kind}: {error}");
        }
        assert!(try_load(folder.path()).is_ok(), "as stored it is no concern of loading");
    }
}

#[test]
fn a_saved_session_is_for_weights_of_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let (dense, quantised) = (load(golden("decoders/qwen2_tied")), golden("decoders/qwen2_tied"));
    let quantised = Model::load(quantised, &q8_0(), None).unwrap();
    let mut session = Session::new(&quantised, 0).unwrap();
    session.append_tokens(&[5, 9, 70], None).unwrap();
    session.save(&path).unwrap();
    assert_eq!(Session::load(&dense, &path).err().unwrap().kind(), ErrorKind::Mismatch);
    // Nor for the same weights in another type, or with another configuration.
    let mut session_of_dense = Session::new(&dense, 0).unwrap();
    session_of_dense.append_tokens(&[5, 9, 70], None).unwrap();
    let of_dense = folder.path().join("dense");
    session_of_dense.save(&of_dense).unwrap();
    let half = LoadOptions::default().dtype(Dtype::F16);
    let other = configured("decoders/qwen2_tied", "rope_theta", json!(5000.0));
    for model in [Model::load(golden("decoders/qwen2_tied"), &half, None).unwrap(), load(other.path())] {
        assert_eq!(Session::load(&model, &of_dense).err().unwrap().kind(), ErrorKind::Mismatch);
    }
    assert!(Session::load(&load(golden("decoders/qwen2_tied")), &of_dense).is_ok());
    assert_eq!(Session::load(&quantised, &path).unwrap().logits().unwrap(), session.logits().unwrap());
}
