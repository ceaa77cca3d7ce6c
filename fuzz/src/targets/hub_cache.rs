//! A cache of downloads: a repository's name, what a reference says, config.json and the index of weights, with a zero between.

use crate::{micro, model_folder, parts, put, scratch, told};
use metal_candle::{LoadOptions, Model};

const COMMIT: &str = "0123456789012345678901234567890123456789";

pub fn run(input: &[u8]) {
    let cache = scratch().join("hub");
    let repository = cache.join("models--o--n");
    let snapshot = repository.join("snapshots").join(COMMIT);
    if !snapshot.exists() {
        std::fs::create_dir_all(&snapshot).expect("a folder for the snapshot");
        std::fs::create_dir_all(repository.join("refs")).expect("a folder for references");
        let model = model_folder("base", micro::decoder);
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(model.join(file), snapshot.join(file)).expect("a file of the model");
        }
    }
    let mut parts = parts(input);
    let name = String::from_utf8_lossy(parts.next().unwrap_or(&[]));
    put(&repository.join("refs/main"), parts.next().unwrap_or(&[]));
    for name in ["config.json", "model.safetensors.index.json"] {
        match parts.next() {
            None | Some([]) => drop(std::fs::remove_file(snapshot.join(name))),
            Some(part) => put(&snapshot.join(name), part),
        }
    }
    let options = LoadOptions::default().hub_cache_dir(cache).offline(true);
    told(Model::load_hub(&name, &options, None));
}
