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

/// A shipped model.
pub fn shipped(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// A JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// Loads a model with its own settings.
pub fn load(path: impl AsRef<Path>) -> Model {
    let path = path.as_ref();
    Model::load(path, &LoadOptions::default(), None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

/// The same on a device.
pub fn load_onto(device: &Device, path: impl AsRef<Path>) -> Model {
    let options = LoadOptions { device: Some(device.clone()), ..LoadOptions::default() };
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

/// What weights can be quantised to while loading, and how far the logits of tiny random models may turn from the dense ones': the cosine
/// of the angle.
pub const QUANTIZATIONS: [(&str, f64); 7] =
    [("q8_0", 0.99), ("q6_k", 0.98), ("q5_k_m", 0.97), ("q4_k_m", 0.9), ("q4_0", 0.9), ("iq4_nl", 0.9), ("mlx4", 0.9)];

/// How to load with weights that are quantised so.
pub fn quantised(kind: &str) -> LoadOptions {
    LoadOptions { quantization: Some(kind.to_string()), ..LoadOptions::default() }
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
