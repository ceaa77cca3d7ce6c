//! What the tests share: reading the reference results.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use metal_candle::{Capability, Device, DeviceKind, LoadOptions, Lora, Model};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// The package: where cargo says that it is now, so that a test program may run on another machine than the one that built it.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A folder below tests/golden.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// Every decoder of the reference results.
pub fn decoders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["decoders", "families"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(golden(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    found.sort();
    assert!(found.len() >= 50, "the reference results are there");
    found
}

/// Rope frequencies of these depend on the length, so that a prefix alone is another computation than within the whole.
pub fn looks_at_length(path: &Path) -> bool {
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    (config.contains("\"dynamic\"") && !config.contains("\"alpha\"")) || config.contains("\"longrope\"")
}

/// A shipped model.
pub fn shipped(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// A JSON file, or one of Python with an infinite number on a line of its own.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text.replace(" Infinity\n", " 1e300\n")).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A copy of a directory with other fields in its config.json; no text removes one.
pub fn edited(directory: &Path, fields: &[(&str, &str)]) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let mut config = json(&directory.join("config.json"));
    for (key, value) in fields {
        match value {
            &"" => drop(config.as_object_mut().unwrap().remove(*key)),
            value => config[*key] = serde_json::from_str(value).unwrap(),
        }
    }
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    copy
}

/// How to load so that quantised weights compute as what they stand for.
pub fn exact() -> LoadOptions {
    LoadOptions::default().exact(true)
}

/// Loads a model with its own settings, exactly.
pub fn load(path: impl AsRef<Path>) -> Model {
    let path = path.as_ref();
    Model::load(path, &exact(), None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

/// The same on a device.
pub fn load_onto(device: &Device, path: impl AsRef<Path>) -> Model {
    let options = exact().device(device.clone());
    Model::load(path, &options, None).unwrap_or_else(|e| panic!("{}", e.details()))
}

/// The CPU, each time with a gate of its own; also by the tensor operations of GPUs, in a build for tests that has them.
pub fn devices() -> Vec<Device> {
    vec![
        Device::new(DeviceKind::Cpu, 0).unwrap(),
        #[cfg(feature = "selftest")]
        Device::cpu_by_tensors(),
    ]
}

/// Whether a model's MLPs are experts.
pub fn has_experts(path: &Path) -> bool {
    let config = json(&path.join("config.json"));
    let text = config.get("text_config").unwrap_or(&config);
    ["num_experts", "num_local_experts", "n_routed_experts"].iter().any(|key| text[*key].as_u64().is_some_and(|count| count > 0))
}

/// The median, for what a few tokens of a model with experts do not keep to: a rounding can make another expert the better one, which
/// changes all logits of that token.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What weights can be quantised to while loading.
pub const QUANTIZATIONS: [&str; 7] = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "mlx4"];

/// How to load with weights that are quantised so, exactly.
pub fn quantised(kind: &str) -> LoadOptions {
    exact().quantization(kind)
}

/// The same in eight bits.
pub fn q8_0() -> LoadOptions {
    quantised("q8_0")
}

/// The directory `base` with the numbers, in F32, that its matrices for products stand for once they are quantised to `kind`.
///
/// An adapter of zeros, merged into each of them, reads them out of the quantised model.
pub fn dequantised(base: &Path, kind: &str) -> TempDir {
    let model = Model::load(base, &quantised(kind), None).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
    let stored = Reference::open(&base.join("model.safetensors"));
    let mut modules: Vec<(String, Vec<usize>)> = Vec::new();
    let mut stacks: BTreeMap<String, Vec<(String, [usize; 3])>> = BTreeMap::new();
    let mut embedding = None;
    for (name, (_, shape, _)) in stored.tensors() {
        let module = name.trim_end_matches(".weight").to_string();
        // What reads pictures and sounds is no part of the network, and a table of layers is no module.
        let others = ["embed_vision", "embed_audio", "vision_", "audio_tower", "embed_tokens_per_layer"];
        if others.iter().any(|other| name.contains(other)) || name.ends_with("_bias") {
            continue;
        }
        // Experts, not the taps of convolutions.
        if let [count, first, second] = shape[..]
            && first > 1
        {
            let (inputs, outputs) = if model.architecture() == "gpt_oss" { (first, second) } else { (second, first) };
            let (module, parameter) = name.rsplit_once('.').unwrap();
            stacks.entry(module.to_string()).or_default().push((parameter.to_string(), [count, inputs, outputs]));
        }
        if name.contains("embed_tokens") {
            embedding = Some((name, shape));
        } else if shape.len() == 2 && !name.contains("embeddings") {
            modules.push((module, shape));
        }
    }
    let is_tied = model.supports(Capability::Generate) && !modules.iter().any(|(module, _)| module == "lm_head");
    if is_tied {
        modules.push(("lm_head".to_string(), embedding.clone().unwrap().1));
    }
    let adapter = tempfile::tempdir().unwrap();
    let zeros = |rows: usize, cols: usize| (Dtype::F32, vec![rows, cols], vec![0; rows * cols * 4]);
    let tensors = modules.iter().flat_map(|(module, shape)| {
        let name = |end: &str| format!("base_model.model.{module}.{end}.weight");
        [(name("lora_A"), zeros(1, shape[1])), (name("lora_B"), zeros(shape[0], 1))]
    });
    // The first of a module's parameters, gate and up, is wrapped in the other one.
    let stacked = stacks.iter_mut().flat_map(|(module, parameters)| {
        parameters.sort_by_key(|(parameter, _)| parameter == "down_proj");
        let count = parameters.len();
        parameters.iter().enumerate().flat_map(move |(i, (_, [experts, inputs, outputs]))| {
            let name = |end: &str| format!("base_model.model.{module}{}.{end}.weight", ".base_layer".repeat(count - 1 - i));
            [(name("lora_A"), zeros(*experts, *inputs)), (name("lora_B"), zeros(*outputs, *experts))]
        })
    });
    write_tensors(&adapter.path().join("adapter_model.safetensors"), tensors.chain(stacked).collect());
    let targets: Vec<_> = modules.iter().map(|(module, _)| module).collect();
    let parameters: Vec<_> =
        stacks.iter().flat_map(|(module, all)| all.iter().map(move |(name, _)| format!("{module}.{name}"))).collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": targets, "target_parameters": parameters,
    });
    std::fs::write(adapter.path().join("adapter_config.json"), config.to_string()).unwrap();

    let lora = Lora::load(&model, adapter.path()).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
    let folder = tempfile::tempdir().unwrap();
    model.merge(&lora, 1.0).unwrap().save(folder.path(), None, None).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = Reference::open(&path).tensors();
    for (module, _) in &modules {
        // BERT's pooler is not a part of the network.
        assert!(module.starts_with("pooler") || tensors[&format!("{module}.weight")].0 == Dtype::F32, "{module}");
    }
    if let (true, Some((embedding, _))) = (is_tied, embedding) {
        let numbers = tensors.remove("lm_head.weight").unwrap();
        tensors.insert(embedding, numbers);
        write_tensors(&path, tensors);
        std::fs::copy(base.join("config.json"), folder.path().join("config.json")).unwrap();
    }
    folder
}

/// Tensors as files have them: type, shape and bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Writes a file in the format of safetensors.
pub fn write_tensors(path: &Path, tensors: Tensors) {
    let views =
        tensors.iter().map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A file of reference tensors.
pub struct Reference(Vec<u8>);

impl Reference {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub fn tensors(&self) -> Tensors {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let owned =
            |(name, tensor): (String, TensorView<'_>)| (name, (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()));
        tensors.tensors().into_iter().map(owned).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32);
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::I64);
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }
}

/// The largest difference; NaN anywhere is infinite.
pub fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| if (x - y).is_nan() { f32::INFINITY } else { (x - y).abs() }).fold(0.0, f32::max)
}

/// The cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = dot(a, a).sqrt() * dot(b, b).sqrt();
    // A text may have the vector zero.
    if lengths == 0.0 { f64::from(u8::from(max_abs(a, b) == 0.0)) } else { dot(a, b) / lengths }
}
