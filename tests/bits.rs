//! Results have the bits that they had: checksums of logits, vectors and trainings of every model of the reference results, with each
//! set of instructions. A change that means to change none is held to it; one that must write them anew (`cargo test --features
//! selftest --test bits -- --ignored`) says why.
//!
//! The sums of sines and logarithms are the system's, so the numbers are those of one system.
#![cfg(all(feature = "selftest", target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{golden, json, q8_0};
use metal_candle::selftest::{Level, limit_instructions};
use metal_candle::{EmbedOptions, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Session, TrainOptions};
use safetensors::SafeTensors;

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

/// FNV-1a of values' bits.
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    }

    fn floats(&mut self, values: &[f32]) {
        values.iter().for_each(|x| self.bytes(&x.to_le_bytes()));
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

fn folders(kinds: &[&str]) -> Vec<PathBuf> {
    let entries = kinds.iter().flat_map(|kind| std::fs::read_dir(golden(kind)).unwrap());
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("golden.json").exists());
    found.sort();
    assert!(found.len() >= 25, "the reference results are there");
    found
}

fn open(path: &Path, options: LoadOptions) -> Model {
    let options = options.max_context(512);
    Model::load(path, &options, None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

/// Ids that every vocabulary has.
fn ids(count: usize, first: usize) -> Vec<u32> {
    (0..count).map(|i| ((first + i * 7) % 79) as u32).collect()
}

/// A prompt in two pieces, then token by token.
fn logits(model: &Model, adapter: Option<Lora>) -> String {
    let mut session = Session::new(model, 0).unwrap();
    session.set_adapters(&adapter.map(|lora| (lora, 0.8)).into_iter().collect::<Vec<_>>()).unwrap();
    let (ids, mut checksum, mut done) = (ids(42, 3), Checksum::new(), 0);
    for piece in [21, 17, 1, 1, 1, 1] {
        session.append_tokens(&ids[done..done + piece], None).unwrap();
        checksum.floats(session.logits().unwrap());
        done += piece;
    }
    checksum.text()
}

/// Twenty steps on two sequences, and the adapter behind them.
fn training(model: &Model) -> String {
    let config = LoraConfig::default().rank(2).dropout(0.1).seed(5);
    let options = TrainOptions::default().learning_rate(0.01);
    let mut trainer = LoraTrainer::new(model, &config, &options).unwrap();
    let (ids, mut checksum) = (ids(23, 11), Checksum::new());
    for _ in 0..20 {
        let step = trainer.train_step(&ids, None, &[0, 9, 23]).unwrap();
        checksum.floats(&[step.loss, step.update.unwrap().grad_norm]);
    }
    let directory = tempfile::tempdir().unwrap();
    trainer.adapter().unwrap().save(directory.path()).unwrap();
    let bytes = std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    names.iter().for_each(|name| checksum.bytes(tensors.tensor(name).unwrap().data()));
    checksum.text()
}

/// The checksum of each result, by its name.
fn results() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let name = |path: &Path| path.strip_prefix(golden("")).unwrap().to_string_lossy().into_owned();
    for path in folders(&["decoders", "families"]) {
        let model = open(&path, LoadOptions::default());
        found.insert(format!("{}: logits", name(&path)), logits(&model, None));
        found.insert(format!("{}: q8_0", name(&path)), logits(&open(&path, q8_0()), None));
        found.insert(format!("{}: training", name(&path)), training(&model));
    }
    for path in folders(&["lora", "adapters"]) {
        let base = json(&path.join("golden.json"))["base"].as_str().unwrap().to_string();
        if base.starts_with("encoders") {
            continue;
        }
        let model = open(&golden(&base), LoadOptions::default());
        // One of them is refused.
        let Ok(lora) = Lora::load(&model, &path) else { continue };
        let merged = model.merge(&lora, 0.8).unwrap();
        found.insert(format!("{}: logits", name(&path)), logits(&model, Some(lora)));
        found.insert(format!("{}: merged", name(&path)), logits(&merged, None));
    }
    for path in folders(&["encoders", "embedders"]) {
        let (notes, model) = (json(&path.join("golden.json")), Model::load(&path, &LoadOptions::default(), None).unwrap());
        let texts: Vec<&str> = notes["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let mut checksum = Checksum::new();
        checksum.floats(&model.embed(&texts, &EmbedOptions::default(), None).unwrap());
        found.insert(format!("{}: vectors", name(&path)), checksum.text());
    }
    found
}

fn stored() -> PathBuf {
    golden("bits.json")
}

#[test]
fn results_have_the_bits_that_they_had() {
    let stored = json(&stored());
    for level in LEVELS {
        if !limit_instructions(level) {
            continue;
        }
        let found = results();
        let want = stored[format!("{level:?}")].as_object().unwrap();
        let differ = |(name, sum): &(&String, &String)| want.get(*name).and_then(|want| want.as_str()) != Some(sum.as_str());
        let different: Vec<&String> = found.iter().filter(differ).map(|(name, _)| name).collect();
        assert!(different.is_empty(), "{level:?}: {different:#?}");
        assert_eq!(found.len(), want.len(), "{level:?}");
    }
}

#[test]
#[ignore = "writes the checksums anew"]
fn write_them_anew() {
    let all: BTreeMap<String, BTreeMap<String, String>> =
        LEVELS.into_iter().filter(|&level| limit_instructions(level)).map(|level| (format!("{level:?}"), results())).collect();
    std::fs::write(stored(), serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
}
