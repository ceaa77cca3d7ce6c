//! What the tests share: reading the reference results.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use metal_candle::{Device, DeviceKind, LoadOptions, Model};

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

/// A JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// How to load so that quantised weights compute as what they stand for.
pub fn exact() -> LoadOptions {
    LoadOptions { exact: true, ..LoadOptions::default() }
}

/// Loads a model with its own settings, exactly.
pub fn load(path: impl AsRef<Path>) -> Model {
    let path = path.as_ref();
    Model::load(path, &exact(), None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

/// The same on a device.
pub fn load_onto(device: &Device, path: impl AsRef<Path>) -> Model {
    let options = LoadOptions { device: Some(device.clone()), ..exact() };
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

/// What weights can be quantised to while loading, and how far the logits of tiny random models, which hang on every weight far more
/// than those of real ones, may turn from the dense ones': the cosine of the angle.
pub const QUANTIZATIONS: [(&str, f64); 7] =
    [("q8_0", 0.99), ("q6_k", 0.98), ("q5_k_m", 0.97), ("q4_k_m", 0.5), ("q4_0", 0.5), ("iq4_nl", 0.5), ("mlx4", 0.5)];

/// How to load with weights that are quantised so, exactly.
pub fn quantised(kind: &str) -> LoadOptions {
    LoadOptions { quantization: Some(kind.to_string()), ..exact() }
}

/// The same in eight bits.
pub fn q8_0() -> LoadOptions {
    quantised("q8_0")
}

/// A file of reference tensors.
pub struct Reference(Vec<u8>);

impl Reference {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), safetensors::Dtype::I64);
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
