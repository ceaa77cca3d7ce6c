//! GGUF files against transformers: every family that llama.cpp's converter writes, and every format of weights. And directories
//! whose matrices others have quantised.
//!
//! `tests/golden/make_gguf.py` wrote those of the families from the reference models.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{Reference, cosine, devices, edited, exact, golden, load, load_onto, max_abs, q8_0};
use metal_candle::{
    Capability, Chat, Device, DeviceKind, Dtype, EmbedOptions, ErrorKind, GenerateOptions, LoadOptions, Lora, LoraConfig,
    LoraTrainer, Model, Session, TrainOptions, estimate_memory,
};

/// As for safetensors, whose weights these are.
const TOLERANCE: f32 = 5e-4;

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
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

/// What the converter does not write, and llama.cpp therefore does not know: without it the file is that of another model.
fn what_is_lost(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "gemma2" => &[("query_pre_attn_scalar", "32")],
        "gemma3_text" => &[("query_pre_attn_scalar", "32"), ("layer_types", ""), ("sliding_window_pattern", "6")],
        "gemma3_bidirectional_dense" => &[("layer_types", ""), ("sliding_window_pattern", "6")],
        "glm" => &[
            ("rms_norm_eps", "1e-5"),
            // Of heads of 64 / 4 values, whatever their size is.
            ("rope_parameters", r#"{"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}"#),
        ],
        "gpt_oss" => &[("swiglu_limit", "7.0")],
        "granitemoehybrid_dense" => &[("position_embedding_type", "\"nope\"")],
        "nemotron_h" | "nemotron_h_old" => &[("time_step_min", "0.001")],
        "granite_swa" => &[("layer_rope_theta", "")],
        "olmoe" => &[("clip_qkv", ""), ("rms_norm_eps", "1e-5")],
        "smollm3" => &[("no_rope_layers", ""), ("no_rope_layer_interval", "4")],
        _ => &[],
    }
}

/// The GGUF files of the reference models, each with the directory that it was made from.
fn families(folders: &[&str]) -> Vec<(PathBuf, PathBuf)> {
    let files = std::fs::read_dir(golden("gguf/families")).unwrap().map(|entry| entry.unwrap().path());
    let origin = |file: &Path| {
        let name = file.file_stem().unwrap();
        folders.iter().map(|folder| golden(folder).join(name)).find(|path| path.exists())
    };
    let mut found: Vec<_> = files.filter_map(|file| origin(&file).map(|origin| (file, origin))).collect();
    found.sort();
    found
}

#[test]
fn every_family_has_the_logits_of_the_directory_it_was_made_from() {
    let (mut worst, mut compared) = (0f32, 0);
    let options = exact().max_context(512);
    for (file, origin) in families(&["decoders", "families"]) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let model = Model::load(&file, &options, None).unwrap_or_else(|e| panic!("{name}: {}", e.details()));
        let reference = Reference::open(&origin.join("golden.safetensors"));
        let lost = what_is_lost(name);
        let directory = edited(&origin, lost);
        let own = Model::load(directory.path(), &options, None).unwrap();
        // A file holds the language model alone.
        let language_model = |architecture: &str| architecture.trim_end_matches("_text").trim_end_matches("_unified").to_string();
        assert_eq!(language_model(model.architecture()), language_model(own.architecture()), "{name}");
        for prompt in 0..4 {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let found = logits(&model, &ids);
            let error = if lost.is_empty() {
                let want = reference.floats(&format!("prompt{prompt}.logits"));
                max_abs(&found, &want[want.len() - found.len()..])
            } else {
                max_abs(&found, &logits(&own, &ids))
            };
            assert!(error <= TOLERANCE, "{name} prompt {prompt}: {error}");
            worst = worst.max(error);
        }
        if lost.is_empty() {
            let (ids, want) = (reference.ids("prompt1.ids"), reference.ids("prompt1.greedy"));
            assert_eq!(greedy(&model, &ids, want.len()), want, "{name}");
        }
        compared += 1;
    }
    assert!(worst > 0.0 && compared >= 32, "the comparison saw {compared} models");
}

/// The bytes of a file, from some place on.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> &'a [u8] {
        let len = self.u64() as usize;
        self.take(len)
    }
}

/// A tensor of a file: name, dimensions, type and data.
type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// What stands in a file in front of its tensors, behind the two counts, and these.
fn parts(bytes: &[u8]) -> (Vec<u8>, Vec<Tensor>) {
    let mut cursor = Cursor { bytes, at: 8 };
    let (tensors, keys) = (cursor.u64(), cursor.u64());
    for _ in 0..keys {
        cursor.text();
        let kind = cursor.u32();
        let (kind, count) = if kind == 9 { (cursor.u32(), cursor.u64()) } else { (kind, 1) };
        for _ in 0..count {
            match kind {
                8 => cursor.text(),
                _ => cursor.take([1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize]),
            };
        }
    }
    let metadata = bytes[24..cursor.at].to_vec();
    let mut all: Vec<(Tensor, usize)> = Vec::new();
    for _ in 0..tensors {
        let name = String::from_utf8(cursor.text().to_vec()).unwrap();
        let dims = (0..cursor.u32()).map(|_| cursor.u64()).collect();
        all.push(((name, dims, cursor.u32(), Vec::new()), cursor.u64() as usize));
    }
    let data = cursor.at.next_multiple_of(32);
    let fill = |((name, dims, kind, _), start): (Tensor, usize)| {
        let size = if kind == 0 { 4 } else { 2 };
        assert!([0, 1, 30].contains(&kind), "{name}: F32, F16 and BF16 alone have a size of their values");
        let len = dims.iter().product::<u64>() as usize * size;
        (name, dims, kind, bytes[data + start..][..len].to_vec())
    };
    (metadata, all.into_iter().map(fill).collect())
}

/// A file in which the queries, keys and values of a layer that has all of them are one tensor, as llama.cpp's converter makes them
/// where it is asked to (`--fuse-qkv`); and how many there are.
fn with_fused_attention(bytes: &[u8]) -> (Vec<u8>, usize) {
    let (metadata, mut tensors) = parts(bytes);
    let keys = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let queries: Vec<String> = tensors.iter().map(|tensor| tensor.0.clone()).filter(|name| name.contains(".attn_q.")).collect();
    let mut fused = 0;
    for name in queries {
        let at = |part: &str| tensors.iter().position(|tensor| tensor.0 == name.replace(".attn_q.", part));
        let (Some(q), Some(k), Some(v)) = (at(".attn_q."), at(".attn_k."), at(".attn_v.")) else { continue };
        let rows = [q, k, v].iter().map(|i| tensors[*i].1.last().unwrap()).sum();
        let data = [q, k, v].iter().flat_map(|i| tensors[*i].3.clone()).collect();
        let (mut dims, kind) = (tensors[q].1.clone(), tensors[q].2);
        *dims.last_mut().unwrap() = rows;
        tensors[q] = (name.replace(".attn_q.", ".attn_qkv."), dims, kind, data);
        let gone = [".attn_k.", ".attn_v."].map(|part| name.replace(".attn_q.", part));
        tensors.retain(|tensor| !gone.contains(&tensor.0));
        fused += 1;
    }
    let mut file = [&bytes[..8], &(tensors.len() as u64).to_le_bytes(), &keys.to_le_bytes(), &metadata].concat();
    let mut offset = 0;
    for (name, dims, kind, data) in &tensors {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += data.len().next_multiple_of(32);
    }
    for (.., data) in &tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
    }
    (file, fused)
}

#[test]
fn queries_keys_and_values_in_one_tensor_are_those_in_three() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (mut compared, ids) = (0, [5, 17, 3, 80, 41, 9, 66, 23, 12]);
    for (file, _) in families(&["decoders", "families"]) {
        // Its experts are in MXFP4.
        if file.file_stem().unwrap() == "gpt_oss_mxfp4_old" {
            continue;
        }
        let (bytes, fused) = with_fused_attention(&std::fs::read(&file).unwrap());
        if fused == 0 {
            continue;
        }
        std::fs::write(&path, bytes).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let one = Model::load(&path, &exact(), None).unwrap_or_else(|e| panic!("{name}: {}", e.details()));
        let three = Model::load(&file, &exact(), None).unwrap();
        assert_eq!(one.config_json(), three.config_json(), "{name}");
        assert!(logits(&one, &ids) == logits(&three, &ids), "{name}");
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn every_format_has_the_logits_of_the_weights_that_it_stands_for() {
    let notes = common::json(&golden("gguf/golden.json"));
    let mut compared = 0;
    for name in notes["files"].as_object().unwrap().keys() {
        let model = load(golden("gguf").join(format!("{name}.gguf")));
        let reference = Reference::open(&golden("gguf").join(format!("{name}.golden.safetensors")));
        let own = &notes["files"][name];
        let prompts = own["chats"].as_array().or(notes["prompts"].as_array()).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
            let (found, want) = (logits(&model, &ids), reference.floats(&format!("prompt{i}.logits")));
            let error = max_abs(&found, &want[want.len() - found.len()..]);
            assert!(error <= TOLERANCE, "{name} prompt {i}: {error}");
            if let Ok(want) = serde_json::from_value::<Vec<u32>>(prompt["greedy"].clone()) {
                assert_eq!(greedy(&model, &ids, want.len()), want, "{name} prompt {i}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 26 * 3);
}

/// The files of the formats.
fn formats() -> Vec<(String, PathBuf)> {
    let notes = common::json(&golden("gguf/golden.json"));
    let files: Vec<_> = notes["files"].as_object().unwrap().keys().cloned().collect();
    assert!(files.len() >= 26);
    files.into_iter().map(|name| (name.clone(), golden("gguf").join(format!("{name}.gguf")))).collect()
}

/// With all matrices in F32, on the CPU.
fn widened() -> LoadOptions {
    exact().dtype(Dtype::F32).device(Device::new(DeviceKind::Cpu, 0).unwrap())
}

#[test]
fn quantised_matrices_compute_the_bits_of_the_same_in_f32() {
    let ids: Vec<u32> = (0..23).map(|i| 3 + i * 7 % 79).collect();
    for (name, path) in formats() {
        for (i, device) in devices().iter().enumerate() {
            let options = widened().device(device.clone());
            let (own, wide) = (load_onto(device, &path), Model::load(&path, &options, None).unwrap());
            let compute = |model: &Model| {
                let mut session = Session::new(model, 0).unwrap();
                // Several rows at once, and one alone.
                session.append_tokens(&ids[..22], None).unwrap();
                session.append_tokens(&ids[22..], None).unwrap();
                let mut found = session.logits().unwrap().to_vec();
                let config = LoraConfig::default().rank(2).seed(5);
                let options = TrainOptions::default().learning_rate(0.01);
                let mut trainer = LoraTrainer::new(model, &config, &options).unwrap();
                for _ in 0..2 {
                    let step = trainer.train_step(&ids, None, &[0, 9, 23]).unwrap();
                    found.extend([step.loss, step.update.unwrap().grad_norm]);
                }
                found.extend(logits(&model.merge(&trainer.adapter().unwrap(), 0.8).unwrap(), &ids));
                found
            };
            // Tensors are of the type that the file's embedding has.
            if i == 0 || name.contains("Q") {
                assert_eq!(compute(&own), compute(&wide), "{name}");
            }
        }
    }
}

/// The mean of `KL(p ‖ q)` of rows of logits.
fn divergence(p: &[f32], q: &[f32], vocabulary: usize) -> f64 {
    let log_softmax = |row: &[f32]| {
        let max = row.iter().fold(f32::MIN, |max, x| max.max(*x));
        let sum = row.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln();
        row.iter().map(|x| f64::from(x - max) - sum).collect::<Vec<_>>()
    };
    let rows = p.chunks_exact(vocabulary).zip(q.chunks_exact(vocabulary));
    let divergences = rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    divergences.sum::<f64>() / (p.len() / vocabulary) as f64
}

/// The logits of every position, by a model on the CPU.
fn all_logits(path: &Path, is_exact: bool, ids: &[u32]) -> (Vec<f32>, usize) {
    let options = LoadOptions::default().exact(is_exact).device(Device::new(DeviceKind::Cpu, 0).unwrap());
    let model = Model::load(path, &options, None).unwrap();
    let mut session = Session::new(&model, 0).unwrap();
    let mut found = Vec::new();
    for id in ids {
        session.append_tokens(&[*id], None).unwrap();
        found.extend_from_slice(session.logits().unwrap());
    }
    (found, model.vocab_size())
}

#[test]
fn rounded_activations_change_logits_less_than_rounded_weights() {
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 79).collect();
    let unquantised = all_logits(&golden("gguf/qwen2-F32.gguf"), true, &ids).0;
    for (name, path) in formats() {
        let ((exact, vocabulary), (rounded, _)) = (all_logits(&path, true, &ids), all_logits(&path, false, &ids));
        let is_quantised = name.contains("Q");
        // Matrices of few columns are left out but for those of many bits.
        assert!(is_quantised || rounded == exact, "{name}");
        assert!(rounded != exact || !(["Q8_0", "Q6_K", "Q4_K_S"].iter().any(|format| name.ends_with(format))), "{name}");
        for (i, (exact, rounded)) in exact.chunks(vocabulary).zip(rounded.chunks(vocabulary)).enumerate() {
            let found = cosine(exact, rounded);
            assert!(found >= 0.999, "{name} at {i}: cosine {found}");
        }
        // The same weights before they were quantised.
        if is_quantised && name.starts_with("qwen2-") {
            let of_weights = divergence(&unquantised, &exact, vocabulary);
            let of_activations = divergence(&exact, &rounded, vocabulary);
            assert!(of_activations < 0.05 * of_weights, "{name}: {of_activations} of {of_weights}");
        }
    }
}

#[test]
fn rounded_activations_have_the_same_bits_in_any_pieces_and_company() {
    let ids: Vec<u32> = (0..37).map(|i| 3 + i * 11 % 79).collect();
    for (name, path) in formats().into_iter().filter(|(name, _)| name.contains("Q")) {
        let options = LoadOptions::default().device(Device::new(DeviceKind::Cpu, 0).unwrap());
        let model = Model::load(&path, &options, None).unwrap();
        let in_pieces = |piece: usize| {
            let mut session = Session::new(&model, 0).unwrap();
            ids.chunks(piece).for_each(|ids| session.append_tokens(ids, None).unwrap());
            session.logits().unwrap().to_vec()
        };
        let whole = in_pieces(37);
        for piece in [1, 2, 5, 13] {
            assert!(in_pieces(piece) == whole, "{name} in pieces of {piece}");
        }
        let begun = |ids: &[u32]| {
            let mut session = Session::new(&model, 0).unwrap();
            session.append_tokens(ids, None).unwrap();
            session.begin(&GenerateOptions::default().max_tokens(6).ignore_eos(true).temperature(0.0)).unwrap();
            session
        };
        let mut alone = begun(&ids);
        while alone.next().unwrap().is_some() {}
        let mut company = [begun(&ids), begun(&ids[..9]), begun(&ids[..20])];
        for _ in 0..7 {
            let [a, b, c] = &mut company;
            Session::next_of(&mut [a, b, c]).unwrap().into_iter().for_each(|event| drop(event.unwrap()));
        }
        assert!(company[0].logits().unwrap() == alone.logits().unwrap(), "{name} in company");
    }
}

#[test]
fn quantised_matrices_take_about_as_much_memory_as_in_the_file() {
    for (name, path) in formats().into_iter().filter(|(name, _)| name.contains("Q")) {
        let mut own = widened();
        own.dtype = None;
        let estimate = |options| estimate_memory(&path, options).unwrap();
        let parameters = Model::load(&path, &own, None).unwrap().parameter_count();
        // Caches and activations are the same.
        let weights = (4 * parameters + estimate(&own) - estimate(&widened())) as f64;
        let file = std::fs::metadata(&path).unwrap().len() as f64;
        // The file has a vocabulary besides.
        assert!((0.8..1.1).contains(&(weights / file)), "{name}: a file of {file} bytes, weights of {weights}");
    }
}

/// Takes layers behind the pooling, which are not in a GGUF, out of a copy of a directory; whether there were any.
fn keep_pooling_alone(origin: &Path, copy: &Path) -> bool {
    let modules: Vec<serde_json::Value> =
        serde_json::from_str(&std::fs::read_to_string(origin.join("modules.json")).unwrap()).unwrap();
    let (kept, dense): (Vec<_>, Vec<_>) =
        modules.into_iter().partition(|module| !module["type"].as_str().unwrap().ends_with("Dense"));
    for module in &kept {
        let folder = module["path"].as_str().unwrap();
        if let (false, Ok(files)) = (folder.is_empty(), std::fs::read_dir(origin.join(folder))) {
            std::fs::create_dir_all(copy.join(folder)).unwrap();
            for path in files.map(|file| file.unwrap().path()) {
                std::fs::copy(&path, copy.join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    std::fs::write(copy.join("modules.json"), serde_json::Value::from(kept).to_string()).unwrap();
    !dense.is_empty()
}

#[test]
fn every_encoder_gives_the_vectors_of_the_directory_it_was_made_from() {
    let mut compared = 0;
    for (file, origin) in families(&["encoders", "embedders"]) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let options = exact().tokenizer_path(origin.join("tokenizer.json"));
        let model = Model::load(&file, &options, None).unwrap_or_else(|e| panic!("{name}: {}", e.details()));
        let notes = common::json(&origin.join("golden.json"));
        if notes["pooling"].as_str().is_none() {
            // Several kinds of pooling are not in a GGUF.
            continue;
        }
        let texts: Vec<&str> = notes["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let embed = |model: &Model| model.embed(&texts, &EmbedOptions::default(), None).unwrap();
        let lost = what_is_lost(name);
        let without_dense = edited(&origin, lost);
        let has_dense = keep_pooling_alone(&origin, without_dense.path());
        let want = if has_dense || !lost.is_empty() {
            embed(&load(without_dense.path()))
        } else {
            Reference::open(&origin.join("golden.safetensors")).floats("embeddings.none")
        };
        let found = embed(&model);
        let dim = found.len() / texts.len();
        let limit = notes["max_seq_length"].as_u64().map_or(64, |limit| limit as usize).min(model.context_length());
        let lengths = notes["token_ids"]["none"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len());
        for ((found, want), length) in found.chunks(dim).zip(want.chunks(dim)).zip(lengths) {
            // Where texts are cut is not in the file either.
            if length < limit {
                let length = want.iter().map(|x| x * x).sum::<f32>().sqrt();
                let want: Vec<f32> = want.iter().map(|x| x / length).collect();
                let error = max_abs(found, &want);
                assert!(error <= 2e-5, "{name}: {error}");
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "the comparison saw {compared} texts");
}

#[test]
fn a_directory_of_mlx_is_the_model_of_the_weights_that_it_stands_for() {
    let paths = ["qwen2_mlx", "qwen2_mlx_dense"].map(|name| golden("quantized").join(name));
    // Of F32; the context takes most of it.
    let [small, large] = paths.each_ref().map(|path| estimate_memory(path, &LoadOptions::default()).unwrap());
    let models = paths.map(load);
    let parameters = models[1].parameter_count();
    assert!(large - small > parameters * 5 / 2, "{parameters} parameters of {small} and {large} bytes");
    let ids = [5, 17, 101, 3, 44, 210, 9];
    assert_eq!(logits(&models[0], &ids), logits(&models[1], &ids));
    assert_eq!(models[0].parameter_count(), models[1].parameter_count());
}

/// A GGUF file and the directory that it was made from.
fn pair(name: &str) -> (PathBuf, PathBuf) {
    families(&["decoders", "families"]).into_iter().find(|(file, _)| file.file_stem().unwrap() == name).unwrap()
}

const IDS: [u32; 9] = [110, 158, 47, 188, 30, 172, 9, 2, 131];

fn same_logits(one: &Model, other: &Model, what: &str) {
    assert_eq!(logits(one, &IDS), logits(other, &IDS), "{what}");
}

#[test]
fn options_of_loading_do_what_they_do_with_a_directory() {
    // Of families whose rows the converter moved, cut and shifted: the weights are the same ones, bit for bit.
    for name in ["llama_plain", "qwen2_tied", "gemma_old", "olmo2"] {
        let (file, directory) = pair(name);
        for dtype in [None, Some(Dtype::F32), Some(Dtype::F16), Some(Dtype::BF16)] {
            let mut options = exact();
            options.dtype = dtype;
            let [one, other] = [&file, &directory].map(|path| Model::load(path, &options, None).unwrap());
            // Norms of Gemma, which the converter adds one to, are rounded by that.
            if name != "gemma_old" {
                same_logits(&one, &other, name);
            }
            assert_eq!((one.dtype(), one.parameter_count()), (other.dtype(), other.parameter_count()), "{name}");
            let [one, other] = [&file, &directory].map(|path| estimate_memory(path, &options).unwrap());
            assert_eq!(one, other, "{name}");
        }
        let [one, other] = [&file, &directory].map(|path| Model::load(path, &q8_0(), None).unwrap());
        if name != "gemma_old" {
            same_logits(&one, &other, name);
        }
        assert!(estimate_memory(&file, &q8_0()).unwrap() < estimate_memory(&file, &LoadOptions::default()).unwrap());
    }
}

#[test]
fn a_quantised_file_is_quantised_once_more_where_that_is_asked() {
    let file = golden("gguf/qwen2_k-Q4_K.gguf");
    let (stored, again) = (load(&file), Model::load(&file, &q8_0(), None).unwrap());
    let (stored, again) = (logits(&stored, &IDS), logits(&again, &IDS));
    let error = max_abs(&stored, &again);
    assert!(error > 0.0 && error < 0.1 * max_abs(&stored, &vec![0.0; stored.len()]), "{error}");
    // What is Q8_0 already stays as it is.
    let file = golden("gguf/qwen2-Q8_0.gguf");
    same_logits(&load(&file), &Model::load(&file, &q8_0(), None).unwrap(), "Q8_0");
    let options = LoadOptions::default().quantization("q4_k");
    let error = Model::load(&file, &options, None).err().unwrap();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::Unsupported, "quantization: \"q4_k\" is not supported (q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_nl, mlx4)")
    );
}

#[test]
fn a_context_is_limited() {
    let (file, _) = pair("llama_plain");
    let options = LoadOptions::default().max_context(5);
    let model = Model::load(&file, &options, None).unwrap();
    assert_eq!(model.context_length(), 5);
    let error = Session::new(&model, 0).unwrap().append_tokens(&IDS, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    let none = LoadOptions::default().max_context(0);
    assert_eq!(Model::load(&file, &none, None).err().unwrap().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn adapters_of_peft_fit_as_they_fit_the_directory() {
    let files = families(&["decoders", "families"]);
    // Of the smallest vocabulary.
    let ids = IDS.map(|id| id % 83);
    let mut compared = Vec::new();
    for folder in ["lora", "adapters"] {
        for adapter in std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            if !adapter.join("adapter_config.json").exists() {
                continue;
            }
            let base = golden(common::json(&adapter.join("golden.json"))["base"].as_str().unwrap());
            let Some((file, directory)) = files.iter().find(|(_, directory)| *directory == base) else { continue };
            let name = file.file_stem().unwrap().to_str().unwrap();
            if name == "falcon_h1" {
                // Whose multipliers, a part of the file's weights, would be missing in the adapter's.
                let error = Lora::load(&load(file), &adapter).map(drop).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.message().contains("base_model_name_or_path: expected null"), "{error}");
                continue;
            }
            let directory = edited(directory, what_is_lost(name));
            let mut models = [load(file), load(directory.path())].into_iter().map(|model| {
                let lora = Lora::load(&model, &adapter).unwrap();
                let merged = logits(&model.merge(&lora, 0.7).unwrap(), &ids);
                let mut session = Session::new(&model, 0).unwrap();
                session.set_adapters(&[(lora, 1.0)]).unwrap();
                session.append_tokens(&ids, None).unwrap();
                (session.logits().unwrap().to_vec(), merged, logits(&model, &ids))
            });
            let (found, want) = (models.next().unwrap(), models.next().unwrap());
            let error = max_abs(&found.0, &want.0).max(max_abs(&found.1, &want.1));
            assert!(error <= TOLERANCE, "{}: {error}", adapter.display());
            assert!(max_abs(&found.0, &found.2) > 0.05, "{}", adapter.display());
            compared.push(name.to_string());
        }
    }
    // Heads whose rows were moved, tensors that were joined, norms that were shifted.
    for name in ["llama_plain", "phi3", "gemma2", "qwen2_tied"] {
        assert!(compared.iter().any(|compared| compared == name), "{name}");
    }
    assert!(compared.len() >= 10, "{compared:?}");
}

#[test]
fn an_adapter_trained_on_a_file_fits_the_directory() {
    let (file, directory) = pair("llama_plain");
    let train = |path: &Path| {
        let config = LoraConfig::default().rank(2);
        let options = TrainOptions::default().learning_rate(0.01);
        let mut trainer = LoraTrainer::new(&load(path), &config, &options).unwrap();
        for _ in 0..3 {
            trainer.train_step(&IDS, None, &[0, IDS.len()]).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        trainer.adapter().unwrap().save(folder.path()).unwrap();
        std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap()
    };
    // The same weights give the same adapter.
    assert_eq!(train(&file), train(&directory));
}

#[test]
fn a_session_is_forked_saved_and_loaded_and_belongs_to_its_file() {
    let file = golden("gguf/llama_k-Q4_K.gguf");
    let model = load(&file);
    let mut session = Session::new(&model, 0).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    session.save(&path).unwrap();
    let mut fork = session.fork().unwrap();
    // Another load of the same file.
    let mut loaded = Session::load(&load(&file), &path).unwrap();
    for session in [&mut session, &mut fork, &mut loaded] {
        session.append_tokens(&[5, 6], None).unwrap();
    }
    let want = logits(&model, &[IDS.as_slice(), &[5, 6]].concat());
    for mut session in [session, fork, loaded] {
        assert_eq!(session.logits().unwrap(), want);
    }
    for other in ["gguf/llama-Q4_0.gguf", "gguf/llama-F16.gguf"] {
        assert_eq!(Session::load(&load(golden(other)), &path).err().unwrap().kind(), ErrorKind::Mismatch, "{other}");
    }
}

#[test]
fn a_file_holds_its_tokenizer_and_its_chat_template() {
    let (file, directory) = (golden("gguf/tiny-coder-Q4_K_S.gguf"), common::shipped("tiny-coder"));
    let (one, other) = (load(&file), load(&directory));
    assert!(one.supports(Capability::ChatTemplate) && one.supports(Capability::Embed));
    let chat = Chat::from_json(r#"[{"role": "user", "content": "What does `Vec::push` do?"}]"#).unwrap();
    let render = |model: &Model| chat.render(model.chat_template().ok(), true).unwrap();
    assert_eq!(render(&one), render(&other));
    let ids = |model: &Model| model.tokenizer().unwrap().encode(&render(model), true).unwrap();
    assert_eq!(ids(&one), ids(&other));
    let answer = |model: &Model| {
        let mut session = Session::new(model, 0).unwrap();
        session.set_chat(&chat, None).unwrap();
        session.generate(&GenerateOptions::default(), None, &mut |_| ControlFlow::Continue(())).unwrap().text
    };
    assert_eq!(answer(&one), answer(&other));
    // Another tokenizer, where one is named.
    let options = exact().tokenizer_path(directory.join("tokenizer.json"));
    assert_eq!(ids(&Model::load(&file, &options, None).unwrap()), ids(&other));
    // Without one, calls by ids work.
    let (bare, _) = pair("llama_plain");
    let error = load(&bare).tokenizer().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(load(&bare).chat_template().err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn a_directory_with_one_file_is_that_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("gguf/tiny-coder-Q4_K_S.gguf"), folder.path().join("model.gguf")).unwrap();
    let (one, other) = (load(folder.path()), load(golden("gguf/tiny-coder-Q4_K_S.gguf")));
    same_logits(&one, &other, "directory");
    assert_eq!(
        one.tokenizer().unwrap().encode("fn main() {", true).unwrap(),
        other.tokenizer().unwrap().encode("fn main() {", true).unwrap()
    );
}
