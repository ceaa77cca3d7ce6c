//! GGUF files that are damaged, or say other things than they hold: each is an error that names what is wrong, or another model that
//! computes. Nothing crashes, waits without end, or is a wrong model in silence.

mod common;

use std::cell::Cell;
use std::fs;
use std::path::Path;

use common::{Reference, edited, golden};
use metal_candle::{
    Capability, EmbedOptions, Error, ErrorKind, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Session, TrainOptions,
    estimate_memory,
};
use tempfile::tempdir;

/// A file in its parts.
#[derive(Clone)]
struct File {
    keys: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

/// A type and its bytes, as they stand behind the key.
#[derive(Clone, PartialEq)]
struct Value(u32, Vec<u8>);

#[derive(Clone)]
struct Tensor {
    name: String,
    /// Columns first.
    dims: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.skip(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Value {
    fn u32(x: u32) -> Self {
        Self(4, x.to_le_bytes().to_vec())
    }

    fn f32(x: f32) -> Self {
        Self(6, x.to_le_bytes().to_vec())
    }

    fn bool(x: bool) -> Self {
        Self(7, vec![x.into()])
    }

    fn text(x: &str) -> Self {
        Self(8, text(x))
    }

    fn list(kind: u32, items: &[Vec<u8>]) -> Self {
        Self(9, [&kind.to_le_bytes(), (items.len() as u64).to_le_bytes().as_slice(), &items.concat()].concat())
    }

    fn u32s(items: &[u32]) -> Self {
        Self::list(4, &items.iter().map(|x| x.to_le_bytes().to_vec()).collect::<Vec<_>>())
    }

    fn texts(items: &[&str]) -> Self {
        Self::list(8, &items.iter().map(|x| text(x)).collect::<Vec<_>>())
    }
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader(&bytes[8..]);
        let (tensors, keys) = (reader.u64(), reader.u64());
        let keys = (0..keys).map(|_| {
            let (key, kind, before) = (reader.text(), reader.u32(), reader.0);
            reader.skip(kind);
            (key, Value(kind, before[..before.len() - reader.0.len()].to_vec()))
        });
        let keys: Vec<(String, Value)> = keys.collect();
        let tensors: Vec<_> = (0..tensors)
            .map(|_| {
                let (name, dims) = (reader.text(), reader.u32());
                let dims: Vec<u64> = (0..dims).map(|_| reader.u64()).collect();
                (name, dims, reader.u32(), reader.u64())
            })
            .collect();
        let data = &bytes[(bytes.len() - reader.0.len()).next_multiple_of(32)..];
        let ends = tensors.iter().skip(1).map(|tensor| tensor.3 as usize).chain([data.len()]);
        let tensors = tensors.iter().zip(ends).map(|((name, dims, kind, start), end)| Tensor {
            name: name.clone(),
            dims: dims.clone(),
            kind: *kind,
            data: data[*start as usize..end].to_vec(),
        });
        Self { keys, tensors: tensors.collect() }
    }

    /// Everything in front of the tensors' values.
    fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, Value(kind, value)) in &self.keys {
            bytes.extend([&text(key), kind.to_le_bytes().as_slice(), value].concat());
        }
        let mut offset = 0usize;
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(32);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for tensor in &self.tensors {
            bytes.extend(&tensor.data);
            bytes.resize(bytes.len().next_multiple_of(32), 0);
        }
        bytes
    }

    fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(found, _)| found == key) {
            Some((_, found)) => *found = value,
            None => self.keys.push((key.to_string(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.keys.retain(|(found, _)| found != key);
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }
}

/// Loads a file of these bytes, and computes with it.
fn run(bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let options = LoadOptions::default().tokenizer_path(golden("encoders/bert_cls/tokenizer.json"));
    let model = match Model::load(&path, &LoadOptions::default(), None) {
        // These files have no vocabulary.
        Ok(model) if !model.supports(Capability::Generate) => Model::load(&path, &options, None)?,
        other => other?,
    };
    assert!(estimate_memory(&path, &LoadOptions::default()).unwrap() > 0);
    if !model.supports(Capability::Generate) {
        return model.embed(&["a", "and the same once more"], &EmbedOptions::default(), None);
    }
    let mut session = Session::new(&model, 0)?;
    session.append_tokens(&[1, 2, 3, 4, 5, 60, 7, 1, 9, 3, 33, 44, 2, 7, 70, 11, 23, 8, 19, 5, 6, 55], None)?;
    Ok(session.logits()?.to_vec())
}

/// The files of the families, with their names.
fn files() -> Vec<(String, File)> {
    let mut paths: Vec<_> = fs::read_dir(golden("gguf/families")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| (path.file_stem().unwrap().to_str().unwrap().to_string(), File::read(path))).collect()
}

fn family(name: &str) -> File {
    File::read(&golden("gguf/families").join(format!("{name}.gguf")))
}

/// What changes no result: how a file was made, what its tensors say as well, and how pictures are rotated.
const SAID_TWICE: [&str; 7] = [
    "file_type",
    "vocab_size",
    "classifier.pooling_type",
    "classifier.output_labels",
    "rope.dimension_sections",
    "rope.scaling.finetuned",
    "attention.causal",
];

#[test]
fn no_value_of_a_key_brings_loading_down() {
    let of_other_types = [Value::text("x"), Value::list(4, &[]), Value::texts(&["a"]), Value::bool(true), Value::f32(f32::NAN)];
    let mut refused = 0;
    for (name, file) in files() {
        let architecture = String::from_utf8(file.get("general.architecture").unwrap().1[8..].to_vec()).unwrap();
        let keys: Vec<&String> =
            file.keys.iter().map(|(key, _)| key).filter(|key| key.starts_with(&format!("{architecture}."))).collect();
        assert!(keys.len() >= 7, "{name}");
        for key in keys {
            let Value(kind, _) = *file.get(key).unwrap();
            let with = |value: Value| {
                let mut file = file.clone();
                file.set(key, value);
                run(&file.bytes())
            };
            for value in of_other_types.iter().filter(|value| value.0 != kind || kind == 6) {
                match with(value.clone()) {
                    Ok(_) => assert!(SAID_TWICE.iter().any(|name| key.ends_with(name)), "{name}: {key}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Format, "{name}: {error}");
                        assert!(error.message().starts_with(&format!("model.gguf: {key}: expected ")), "{name}: {error}");
                        refused += 1;
                    }
                }
            }
            // Values that a key may have, in some file or other: what comes is a model or an error, and none of these a crash.
            let numbers =
                [0, 1, 3, 1 << 20, u32::MAX].map(Value::u32).into_iter().chain([0.0, -1.0, 1e38, 1e-44].map(Value::f32));
            for value in numbers.filter(|value| value.0 == kind) {
                if let Err(error) = with(value) {
                    assert!(!error.message().contains('\n') && error.kind() != ErrorKind::Panic, "{name}: {error}");
                }
            }
            let mut without = file.clone();
            without.keys.retain(|(found, _)| found != key);
            let _ = run(&without.bytes());
        }
    }
    assert!(refused > 1500, "{refused}");
}

/// Without these, or with more of them, a file is that of another model, as llama.cpp has it too.
fn may_be_missing(file: &str, name: &str) -> bool {
    // The last layer of these predicts further tokens and is not read; layers that read the keys of others need none.
    let is_unread = file == "qwen3_5_nested" && name.starts_with("blk.4.")
        || file == "qwen3_5_moe_nested" && name.starts_with("blk.3.")
        || file == "gemma4_nested"
            && ["blk.2.", "blk.3.", "blk.4."].iter().any(|layer| name.starts_with(layer))
            && ["attn_k.", "attn_v.", "attn_k_norm."].iter().any(|key| name.contains(key));
    is_unread || ["output.weight", "rope_freqs.weight", "token_types.weight", "cls."].iter().any(|free| name.starts_with(free))
}

#[test]
fn every_tensor_is_needed_in_its_shape_and_under_its_name() {
    let refused = Cell::new(0);
    for (name, file) in files() {
        for (at, tensor) in file.tensors.iter().enumerate().filter(|(_, tensor)| !tensor.name.starts_with("blk.1.")) {
            let check = |what: &str, tensors: Vec<Tensor>| {
                let file = File { tensors, ..file.clone() };
                match run(&file.bytes()) {
                    Ok(_) => assert!(may_be_missing(&name, &tensor.name), "{name}: {} {what}", tensor.name),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Format, "{name}: {} {what}: {error}", tensor.name);
                        refused.set(refused.get() + 1);
                    }
                }
            };
            let check_with = |what: &str, change: &dyn Fn(&mut Tensor)| {
                let mut tensors = file.tensors.clone();
                change(&mut tensors[at]);
                check(what, tensors);
            };
            check_with("under another name", &|tensor| tensor.name.push('x'));
            check_with("of whole numbers", &|tensor| tensor.kind = if tensor.kind == 0 { 26 } else { 25 });
            check_with("with a row more", &|tensor| {
                let rows = tensor.dims.last_mut().unwrap();
                let row = tensor.data[..tensor.data.len() / *rows as usize].to_vec();
                *rows += 1;
                tensor.data.extend(row);
            });
            let mut tensors = file.tensors.clone();
            tensors.remove(at);
            check("missing", tensors);
        }
    }
    assert!(refused.get() > 1500, "{refused:?}");
}

#[test]
fn no_byte_of_a_header_brings_loading_down() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let coder = File::read(&golden("gguf/tiny-coder-Q4_K_S.gguf"));
    let small = ["bert_cls", "gemma3_text", "granite", "llama3_scaled", "modernbert_mean_new", "phi3_longrope_old", "qwen2_tied"];
    let files = small.map(|name| (family(name), 350)).into_iter().chain([(coder, 40)]);
    let (mut refused, mut run_on) = (0, 0);
    for (file, times) in files {
        let (bytes, header) = (file.bytes(), file.header().len());
        for _ in 0..times {
            let mut bytes = bytes.clone();
            for _ in 0..=next(3) {
                let at = next(header);
                bytes[at] = match next(4) {
                    0 => bytes[at] ^ (1 << next(8)),
                    1 => 0,
                    2 => 255,
                    _ => next(256) as u8,
                };
            }
            match run(&bytes) {
                Ok(_) => run_on += 1,
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::Panic, "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000 && run_on > 100, "{refused} {run_on}");
}

type Change = fn(&mut File);

#[test]
fn what_a_file_gets_wrong_is_named() {
    use ErrorKind::{Format, Unsupported};
    let cases: Vec<(&str, Change, ErrorKind, &str)> = vec![
        (
            "llama_f32",
            |f| f.set("general.architecture", Value::text("mamba")),
            Unsupported,
            "model.gguf: general.architecture: expected one of arcee, bert,",
        ),
        ("llama_f32", |f| f.remove("general.architecture"), Unsupported, "found nothing"),
        // Sizes.
        (
            "llama_f32",
            |f| f.set("llama.context_length", Value::u32(0)),
            Format,
            "model.gguf: llama.context_length: expected a whole number above 0, found u32 0",
        ),
        (
            "llama_f32",
            |f| f.remove("llama.block_count"),
            Format,
            "llama.block_count: expected a whole number above 0, found nothing",
        ),
        (
            "llama_f32",
            |f| f.set("llama.block_count", Value::u32(u32::MAX)),
            Format,
            "model.gguf: config.json: num_hidden_layers: expected a whole number from 0 to 4096, found 4294967295",
        ),
        (
            "llama_f32",
            |f| f.set("llama.attention.head_count_kv", Value::u32(3)),
            Format,
            "num_key_value_heads: expected a divisor of num_attention_heads 4, found 3",
        ),
        ("llama_f32", |f| f.set("llama.attention.head_count_kv", Value::u32(4)), Format, "k_proj.weight: expected shape"),
        (
            "llama_f32",
            |f| f.set("llama.feed_forward_length", Value::u32(3)),
            Format,
            "mlp.gate_proj.weight: expected shape [3, 64]",
        ),
        (
            "olmo2",
            |f| f.set("olmo2.attention.head_count", Value::u32(3)),
            Format,
            "olmo2.attention.head_count: expected heads that divide the rows of queries, 64, found u32 3",
        ),
        (
            "phi3",
            |f| f.set("phi3.attention.head_count", Value::u32(7)),
            Format,
            "phi3.attention.head_count: expected heads that divide the columns of the output, 64, found u32 7",
        ),
        (
            "qwen2_tied",
            |f| f.set("qwen2.attention.head_count", Value::u32s(&[4, 4, 2])),
            Unsupported,
            "qwen2.attention.head_count: expected the same number for each layer, found a list of 3 u32",
        ),
        ("olmo2", |f| f.set("olmo2.expert_count", Value::u32(8)), Unsupported, "olmo2.expert_count: expected 0, found u32 8"),
        (
            "llama_f32",
            |f| f.set("llama.expert_count", Value::u32(8)),
            Format,
            "llama.expert_used_count: expected a whole number above 0, found nothing",
        ),
        (
            "gemma4_text",
            |f| f.set("gemma4.feed_forward_length", Value::u32s(&[28, 28, 28, 56, 56, 57])),
            Unsupported,
            "gemma4.feed_forward_length: expected one number of all layers, or twice that from layer 3 on",
        ),
        (
            "bert_cls",
            |f| f.set("bert.context_length", Value::u32(9)),
            Format,
            "position_embeddings.weight: expected shape [9, 64]",
        ),
        (
            "bert_cls",
            |f| f.set("tokenizer.ggml.token_type_count", Value::u32(3)),
            Format,
            "tokenizer.ggml.token_type_count: expected 2, as many as token_types.weight has rows, found u32 3",
        ),
        // Vocabularies.
        (
            "llama_f32",
            |f| f.set("llama.vocab_size", Value::u32(7)),
            Format,
            "llama.vocab_size: expected 211, as many as token_embd.weight has rows, found u32 7",
        ),
        (
            "llama_f32",
            |f| f.set("tokenizer.ggml.tokens", Value::texts(&["a", "b"])),
            Format,
            "tokenizer.ggml.tokens: expected 211, as many as token_embd.weight has rows, found a list of 2 text",
        ),
        // Numbers.
        (
            "llama_f32",
            |f| f.remove("llama.attention.layer_norm_rms_epsilon"),
            Format,
            "llama.attention.layer_norm_rms_epsilon: expected a number, found nothing",
        ),
        (
            "llama_f32",
            |f| f.set("llama.attention.layer_norm_rms_epsilon", Value::f32(-1.0)),
            Format,
            "rms_norm_eps: expected a number above 0, found -1",
        ),
        ("llama_f32", |f| f.set("llama.rope.freq_base", Value::f32(0.0)), Format, "rope_theta: expected a number above 0"),
        ("llama_f32", |f| f.set("llama.rope.freq_base", Value::f32(1e-44)), Format, "rope: expected finite angles"),
        ("gemma3_text", |f| f.set("gemma3.rope.freq_base_swa", Value::f32(1e-44)), Format, "rope: expected finite angles"),
        ("granite", |f| f.remove("granite.logit_scale"), Format, "granite.logit_scale: expected a number, found nothing"),
        (
            "glm4",
            |f| f.set("glm4.rope.dimension_count", Value::u32(0)),
            Format,
            "glm4.rope.dimension_count: expected 1 to 24, the width of a head, found u32 0",
        ),
        // Settings of other architectures.
        (
            "llama_f32",
            |f| f.set("llama.attn_logit_softcapping", Value::f32(50.0)),
            Unsupported,
            "llama.attn_logit_softcapping: expected none in this architecture, found f32 50",
        ),
        (
            "qwen2_tied",
            |f| f.set("qwen2.attention.sliding_window", Value::u32(4)),
            Unsupported,
            "qwen2.attention.sliding_window: expected none in this architecture, found u32 4",
        ),
        (
            "qwen2_tied",
            |f| f.set("qwen2.rope.freq_base_swa", Value::f32(7.0)),
            Unsupported,
            "qwen2.rope.freq_base_swa: expected that of rope.freq_base in this architecture, found f32 7",
        ),
        (
            "gemma3_text",
            |f| {
                f.remove("gemma3.attention.sliding_window");
                f.set("gemma3.attention.sliding_window_pattern", Value::u32(2));
            },
            Format,
            "gemma3.attention.sliding_window: expected a number above 0, for there are layers with a window, found nothing",
        ),
        // Frequencies in a tensor.
        (
            "llama3_scaled",
            |f| f.tensor("rope_freqs.weight").data[..4].fill(0),
            Format,
            "rope_freqs.weight: expected finite numbers above 0, found 0",
        ),
        (
            "llama3_scaled",
            |f| f.tensor("rope_freqs.weight").data[..4].fill(255),
            Format,
            "rope_freqs.weight: expected finite numbers above 0, found NaN",
        ),
        (
            "llama3_scaled",
            |f| {
                f.tensor("rope_freqs.weight").dims = vec![3];
                f.tensor("rope_freqs.weight").data.truncate(12);
            },
            Format,
            "short_factor: expected 16 numbers, found 3",
        ),
        (
            "llama3_scaled",
            |f| f.set("llama.rope.scaling.factor", Value::f32(4.0)),
            Unsupported,
            "llama.rope.scaling.factor: expected none beside factors in a tensor, found f32 4",
        ),
        (
            "phi3_longrope_old",
            |f| f.tensors.retain(|tensor| tensor.name != "rope_factors_long.weight"),
            Format,
            "rope_factors_long.weight: expected this tensor, found none",
        ),
        // Tensors.
        (
            "llama_f32",
            |f| f.tensors.retain(|tensor| tensor.name != "blk.1.attn_q.weight"),
            Format,
            "the model needs the tensor \"blk.1.attn_q.weight\", and the file does not hold it",
        ),
        (
            "llama_f32",
            |f| f.tensors.retain(|tensor| tensor.name != "blk.0.ffn_gate.weight"),
            Format,
            "the model needs the tensor \"blk.0.ffn_gate.weight\", and the file does not hold it",
        ),
        ("llama_f32", |f| f.tensor("blk.0.attn_q.weight").name = "blk.0.attn_x.weight".into(), Format, "\"blk.0.attn_q.weight\""),
        (
            "qwen2_tied",
            |f| f.tensors.push(Tensor { name: "blk.0.ffn_gate_inp.weight".into(), dims: vec![2], kind: 0, data: vec![0; 8] }),
            Format,
            "blk.0.ffn_gate_inp.weight: a tensor that the configuration has no place for",
        ),
        ("llama_f32", |f| f.tensors.clear(), Format, "model.gguf: expected tensors, found a vocabulary alone"),
    ];
    let mut others = Vec::new();
    for (name, change, kind, message) in cases {
        let mut file = family(name);
        change(&mut file);
        match run(&file.bytes()) {
            Err(error) if error.kind() == kind && error.message().contains(message) => {}
            other => others.push((name, message, other.map(|_| "a model"))),
        }
    }
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn lists_of_a_vocabulary_have_an_item_for_each_token() {
    let coder = File::read(&golden("gguf/tiny-coder-Q4_K_S.gguf"));
    let cases: [(Change, &str); 5] = [
        (|f| f.set("tokenizer.ggml.tokens", Value::texts(&["a"; 4095])), "tokenizer.ggml.tokens: expected 4096, as many as"),
        (|f| f.set("tokenizer.ggml.tokens", Value::texts(&["a"; 4096])), "tokenizer.ggml"),
        (
            |f| f.set("tokenizer.ggml.token_type", Value::u32s(&[1; 4095])),
            "tokenizer.ggml.token_type: expected 4096 whole numbers",
        ),
        (|f| f.set("tokenizer.ggml.merges", Value::texts(&["nothing known"])), "tokenizer.ggml.merges"),
        (
            |f| f.remove("tokenizer.ggml.model"),
            "tokenizer.ggml.model: expected one of gpt2, llama, gemma4, bert, t5, found nothing",
        ),
    ];
    for (change, message) in cases {
        let mut file = coder.clone();
        change(&mut file);
        let error = run(&file.bytes()).map(|_| ()).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        assert!(error.message().starts_with("model.gguf: ") && error.message().contains(message), "{message}: {error}");
    }
}

#[test]
fn what_older_files_leave_out_is_what_llama_cpp_takes_for_it() {
    let same = |name: &str, change: Change, other: Change| {
        let (mut one, mut two) = (family(name), family(name));
        change(&mut one);
        other(&mut two);
        assert_eq!(run(&one.bytes()).unwrap(), run(&two.bytes()).unwrap(), "{name}");
    };
    let unlike = |name: &str, change: Change| {
        let mut one = family(name);
        change(&mut one);
        assert_ne!(run(&one.bytes()).unwrap(), run(&family(name).bytes()).unwrap(), "{name}");
    };
    // A factor without a kind is linear.
    same("llama_yarn", |f| f.remove("llama.rope.scaling.type"), |f| f.set("llama.rope.scaling.type", Value::text("linear")));
    unlike("llama_yarn", |f| f.remove("llama.rope.scaling.type"));
    // Heads are rotated whole.
    same("glm4", |f| f.remove("glm4.rope.dimension_count"), |f| f.set("glm4.rope.dimension_count", Value::u32(24)));
    // Gemma 2 was written without its caps and its window at first.
    same(
        "gemma2",
        |f| {
            f.remove("gemma2.attn_logit_softcapping");
            f.remove("gemma2.final_logit_softcapping");
            f.remove("gemma2.attention.sliding_window");
        },
        |f| {
            f.set("gemma2.attn_logit_softcapping", Value::f32(50.0));
            f.set("gemma2.final_logit_softcapping", Value::f32(30.0));
            f.set("gemma2.attention.sliding_window", Value::u32(4096));
        },
    );
    // A factor of 0 is none.
    same("granite", |f| f.set("granite.embedding_scale", Value::f32(0.0)), |f| f.remove("granite.embedding_scale"));
    same("olmo_clip", |f| f.set("olmo.attention.clamp_kqv", Value::f32(0.0)), |f| f.remove("olmo.attention.clamp_kqv"));
    // A number n as a pattern is every n-th layer in full, whatever else the family's rule is.
    let flags = |flags: &[u8]| Value::list(7, &flags.iter().map(|flag| vec![*flag]).collect::<Vec<_>>());
    for (every, slides) in [(0, [1, 1, 1, 1]), (1, [0; 4]), (2, [1, 0, 1, 0]), (3, [1, 1, 0, 1])] {
        let (mut one, mut two) = (family("olmo3"), family("olmo3"));
        one.set("olmo2.attention.sliding_window_pattern", Value::u32(every));
        two.set("olmo2.attention.sliding_window_pattern", flags(&slides));
        assert_eq!(run(&one.bytes()).unwrap(), run(&two.bytes()).unwrap(), "{every}");
    }
}

#[test]
fn a_mistral_3_without_yarn_is_a_mistral_without_a_window() {
    let mut file = family("ministral3");
    file.keys.retain(|(key, _)| !key.contains(".rope.scaling.") && !key.ends_with(".temperature_scale"));
    let mut llama = file.clone();
    llama.keys.iter_mut().for_each(|(key, _)| *key = key.replace("mistral3.", "llama."));
    llama.set("general.architecture", Value::text("llama"));
    assert_eq!(run(&file.bytes()).unwrap(), run(&llama.bytes()).unwrap());

    let folder = tempdir().unwrap();
    let (path, saved) = (folder.path().join("model.gguf"), folder.path().join("saved"));
    fs::write(&path, file.bytes()).unwrap();
    Model::load(&path, &LoadOptions::default(), None).unwrap().save(&saved, None, None).unwrap();
    let config = common::json(&saved.join("config.json"));
    assert!(config["model_type"] == "mistral" && config.get("sliding_window") == Some(&serde_json::Value::Null), "{config}");

    // Queries that grow need the yarn that says from where on.
    file.set("mistral3.attention.temperature_scale", Value::f32(0.1));
    let error = run(&file.bytes()).map(drop).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("llama_4_scaling_beta"), "{error}");
}

#[test]
fn projections_behind_a_pooling_are_those_of_the_directory() {
    let origin = golden("encoders/gemma3_bidirectional_dense");
    // What the converter does not write.
    let directory = edited(&origin, &[("layer_types", ""), ("sliding_window_pattern", "6")]);
    let mut file = family("gemma3_bidirectional_dense");
    for folder in ["1_Pooling", "2_Dense", "3_Dense"] {
        fs::create_dir(directory.path().join(folder)).unwrap();
        for entry in fs::read_dir(origin.join(folder)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), directory.path().join(folder).join(entry.file_name())).unwrap();
        }
        let weights = origin.join(folder).join("model.safetensors");
        if weights.exists() {
            let name = folder.replace("_Dense", "");
            let (dtype, shape, data) = Reference::open(&weights).tensors().remove("linear.weight").unwrap();
            let dims: Vec<u64> = shape.iter().rev().map(|dim| *dim as u64).collect();
            for (end, size) in ["in", "out"].iter().zip(&dims) {
                file.set(&format!("gemma-embedding.dense_{name}_feat_{end}"), Value::u32(*size as u32));
            }
            let kind = if dtype == safetensors::Dtype::F32 { 0 } else { 30 };
            file.tensors.push(Tensor { name: format!("dense_{name}.weight"), dims, kind, data });
        }
    }
    assert_eq!(file.tensors.iter().filter(|tensor| tensor.name.starts_with("dense_")).count(), 2);
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("model.gguf"), file.bytes()).unwrap();
    let load = |path: &Path| {
        let options = LoadOptions::default().tokenizer_path(origin.join("tokenizer.json")).exact(true);
        Model::load(path, &options, None).unwrap_or_else(|e| panic!("{}", e.details()))
    };
    let embed = |model: &Model| model.embed(&["hello", "The cat sleeps."], &EmbedOptions::default(), None).unwrap();
    let model = load(&path("model.gguf"));
    let (found, want) = (embed(&model), embed(&load(directory.path())));
    assert!(common::max_abs(&found, &want) <= 2e-5, "{}", common::max_abs(&found, &want));
    let mut without = file.clone();
    without.tensors.retain(|tensor| !tensor.name.starts_with("dense_"));
    fs::write(path("without.gguf"), without.bytes()).unwrap();
    assert!(common::max_abs(&found, &embed(&load(&path("without.gguf")))) > 1e-2);
    // They are kept in what is saved.
    model.save(path("saved"), None, None).unwrap();
    model.save_gguf(path("saved.gguf"), None, None).unwrap();
    assert!(embed(&load(&path("saved"))) == found && embed(&load(&path("saved.gguf"))) == found);

    let refused = |file: &File, kind: ErrorKind, message: &str| {
        let error = run(&file.bytes()).map(drop).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(message), "{error}");
    };
    let key = "gemma-embedding.dense_3_feat_in";
    let mut other = file.clone();
    other.set(key, Value::u32(7));
    refused(&other, ErrorKind::Format, "gemma-embedding.dense_3_feat_in: expected 128, as dense_3.weight has, found u32 7");
    let mut other = file.clone();
    other.remove("gemma-embedding.pooling_type");
    refused(&other, ErrorKind::Unsupported, "model.gguf: dense_2.weight: expected none: a projection of vectors is supported");
    let mut other = family("lfm2_old");
    other.tensors.push(file.tensor("dense_2.weight").clone());
    refused(&other, ErrorKind::Unsupported, "model.gguf: dense_2.weight: expected none: a projection of vectors is supported");
}

/// What blocks of NVFP4 stand for, times a factor.
fn of_nvfp4(blocks: &[u8], factor: f32) -> Vec<u8> {
    const TWICE: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
    let value = |code: u8| if code < 8 { TWICE[code as usize] } else { -TWICE[code as usize - 8] };
    let mut values = Vec::new();
    for block in blocks.chunks_exact(36) {
        for run in 0..4 {
            let (byte, codes) = (block[run], &block[4 + 8 * run..][..8]);
            let scale = (1.0 + f32::from(byte & 7) / 8.0) * 2f32.powi(i32::from(byte >> 3) - 7);
            let all = codes.iter().map(|byte| byte & 15).chain(codes.iter().map(|byte| byte >> 4));
            values.extend(all.flat_map(|code| (factor * (scale / 2.0) * value(code)).to_le_bytes()));
        }
    }
    values
}

#[test]
fn a_scale_beside_a_matrix_multiplies_it() {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as u8
    };
    let ids = [1, 2, 3, 4, 5, 60, 7, 1, 9, 3, 33];
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let logits = |model: &Model| {
        let mut session = Session::new(model, 0).unwrap();
        session.append_tokens(&ids, None).unwrap();
        session.logits().unwrap().to_vec()
    };
    let load = |path: &Path| Model::load(path, &common::exact(), None).unwrap_or_else(|e| panic!("{}", e.details()));
    for (name, least) in [("llama_f32", 12), ("qwen3_moe_sparse", 6)] {
        let (mut scaled, mut plain) = (family(name), family(name));
        let (mut beside, mut count) = (Vec::new(), 0);
        for (tensor, plain) in scaled.tensors.iter_mut().zip(&mut plain.tensors) {
            let Some(module) = tensor.name.strip_suffix(".weight").filter(|name| name.starts_with("blk.")) else { continue };
            if tensor.dims.len() < 2 || !tensor.dims[0].is_multiple_of(64) {
                continue;
            }
            let matrices = tensor.dims.get(2).map_or(1, |count| *count as usize);
            let factors: Vec<f32> = (0..matrices).map(|_| 0.01 + f32::from(random()) / 8192.0).collect();
            let blocks = tensor.dims.iter().product::<u64>() as usize / 64;
            // Scales from 2⁻³ to below 2.
            let block = |_| -> Vec<u8> { (0..36).map(|i| if i < 4 { 0x20 + random() % 32 } else { random() }).collect() };
            let data: Vec<u8> = (0..blocks).flat_map(block).collect();
            let each = data.chunks_exact(data.len() / matrices).zip(&factors);
            plain.data = each.flat_map(|(blocks, factor)| of_nvfp4(blocks, *factor)).collect();
            plain.kind = 0;
            let vector = |end: &str, values: &[f32]| Tensor {
                name: format!("{module}.{end}"),
                dims: vec![values.len() as u64],
                kind: 0,
                data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            beside.extend([vector("scale", &factors), vector("input_scale", &vec![7.0; matrices])]);
            (tensor.kind, tensor.data) = (40, data);
            count += 1;
            // One that is not quantised has a scale too.
            if tensor.name == "blk.1.attn_v.weight" {
                (tensor.kind, tensor.data) = (0, of_nvfp4(&tensor.data, 1.0));
                let values = tensor.data.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x) * factors[0]);
                plain.data = values.flat_map(f32::to_le_bytes).collect();
            }
        }
        assert!(count >= least, "{name}: {count}");
        scaled.tensors.extend(beside);
        fs::write(path("scaled.gguf"), scaled.bytes()).unwrap();
        fs::write(path("plain.gguf"), plain.bytes()).unwrap();
        let (model, numbers) = (load(&path("scaled.gguf")), load(&path("plain.gguf")));
        assert!(model.backend_json().contains("nvfp4_scaled"), "{name}");
        let want = logits(&numbers);
        assert!(want.iter().all(|x| x.is_finite()) && logits(&model) == want, "{name}");

        // What is merged into such a matrix is written so that its scale makes it that again.
        let config = LoraConfig::default().rank(2).targets(["all-linear"]);
        let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().learning_rate(0.1)).unwrap();
        trainer.train_step(&ids, None, &[0, ids.len()]).unwrap();
        trainer.save(path("adapter")).unwrap();
        let merged = model.merge(&Lora::load(&model, path("adapter")).unwrap(), 1.0).unwrap();
        let (want, before) = (logits(&merged), want);
        merged.save(path("saved"), None, None).unwrap();
        assert!(logits(&load(&path("saved"))) == want, "{name}");
        merged.save_gguf(path("saved.gguf"), None, None).unwrap();
        let found = logits(&load(&path("saved.gguf")));
        let largest = want.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        assert!(common::max_abs(&found, &want) <= 1e-4 * largest, "{name}: {}", common::max_abs(&found, &want));
        assert!(common::max_abs(&before, &want) > 1e-2 * largest, "{name}");
        fs::remove_dir_all(path("saved")).unwrap();

        scaled.tensor("blk.0.attn_q.scale").dims = vec![1, 2];
        scaled.tensor("blk.0.attn_q.scale").data.extend([0; 4]);
        let error = run(&scaled.bytes()).map(drop).unwrap_err();
        let message = "model.gguf: blk.0.attn_q.scale: expected one value, or one for each of 1 matrices, found 2";
        assert!(error.kind() == ErrorKind::Format && error.message() == message, "{error}");
    }
}

fn refused(path: &Path, kind: ErrorKind, parts: &[&str]) {
    for error in [Model::load(path, &LoadOptions::default(), None).err(), estimate_memory(path, &LoadOptions::default()).err()] {
        let error = error.unwrap_or_else(|| panic!("{} is loaded", path.display()));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(parts.iter().all(|part| error.message().contains(part)), "{error}");
    }
}

#[test]
fn what_is_no_file_of_a_model_is_refused_by_its_name() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, bytes: &[u8]| fs::write(path(name), bytes).unwrap();
    refused(&path("absent.gguf"), ErrorKind::NotFound, &["absent.gguf"]);
    write("empty.gguf", b"");
    refused(&path("empty.gguf"), ErrorKind::Format, &["empty.gguf: magic number: expected 4 bytes, found 0"]);
    write("text.gguf", b"<html>");
    refused(&path("text.gguf"), ErrorKind::Format, &["text.gguf: magic number: expected \"GGUF\", found \"<htm\""]);
    let bytes = family("llama_f32").bytes();
    write("model.bin", &bytes);
    refused(&path("model.bin"), ErrorKind::Unsupported, &["model.bin: expected a directory with config.json, or a GGUF file"]);
    // Half of a download.
    write("half.gguf", &bytes[..bytes.len() / 2]);
    refused(&path("half.gguf"), ErrorKind::Format, &["half.gguf: ", "bytes, found ", "to the end of the file"]);

    let directory = |name: &str| {
        fs::create_dir(path(name)).unwrap();
        path(name)
    };
    refused(&directory("nothing"), ErrorKind::NotFound, &["config.json"]);
    refused(&directory("directory.gguf"), ErrorKind::NotFound, &["config.json"]);
    let two = directory("two");
    fs::write(two.join("a.gguf"), &bytes).unwrap();
    // Another directory of such a name is not looked at.
    fs::create_dir(two.join("c.gguf")).unwrap();
    assert!(Model::load(&two, &LoadOptions::default(), None).is_ok());
    fs::write(two.join("b.GGUF"), &bytes).unwrap();
    refused(&two, ErrorKind::Format, &["expected one model, found ", "a.gguf and ", "b.GGUF: name the file"]);
    assert!(Model::load(two.join("b.GGUF"), &LoadOptions::default(), None).is_ok());
    let later = directory("later");
    fs::write(later.join("m-00002-of-00002.gguf"), &bytes).unwrap();
    refused(&later, ErrorKind::NotFound, &["config.json"]);
}

#[cfg(unix)]
#[test]
fn links_in_a_circle_and_pipes_are_errors_and_no_endless_wait() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink(path("b.gguf"), path("a.gguf")).unwrap();
    std::os::unix::fs::symlink(path("a.gguf"), path("b.gguf")).unwrap();
    refused(&path("a.gguf"), ErrorKind::Io, &["a.gguf"]);
    let pipe = |name: &str| assert!(std::process::Command::new("mkfifo").arg(path(name)).status().unwrap().success());
    pipe("pipe.gguf");
    let message = "expected a file, found a pipe, a socket or a device";
    refused(&path("pipe.gguf"), ErrorKind::Format, &["pipe.gguf", message]);
    assert!(metal_candle::Tokenizer::load(path("pipe.gguf")).err().unwrap().message().contains(message));
    // Nor in the files of a directory.
    fs::create_dir(path("directory")).unwrap();
    pipe("directory/config.json");
    refused(&path("directory"), ErrorKind::Format, &["config.json", message]);
    pipe("lines.jsonl");
    let error = metal_candle::Dataset::load_jsonl(path("lines.jsonl")).err().unwrap();
    assert!(error.kind() == ErrorKind::Format && error.message().contains(message), "{error}");
    // A link to a file is one.
    std::os::unix::fs::symlink(golden("gguf/families/llama_f32.gguf"), path("link.gguf")).unwrap();
    assert!(Model::load(path("link.gguf"), &LoadOptions::default(), None).is_ok());
}
