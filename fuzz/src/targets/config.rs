//! What stands beside weights: config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json,
//! chat_template.jinja, model.safetensors.index.json, in this order with a zero between; those that are empty are missing.

use crate::{micro, model_folder, parts, put, told, use_model};
use metal_candle::{Chat, LoadOptions, Model, estimate_memory};

const NAMES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

pub fn run(input: &[u8]) {
    let folder = model_folder("decoder", |folder| {
        if !folder.join("model.safetensors").exists() {
            micro::decoder(folder)
        }
    });
    for (name, part) in NAMES.iter().zip(parts(input).chain(std::iter::repeat(&[][..]))) {
        match part {
            [] => drop(std::fs::remove_file(folder.join(name))),
            part => put(&folder.join(name), part),
        }
    }
    told(estimate_memory(&folder, &LoadOptions::default()));
    if let Some(model) = told(Model::load(&folder, &LoadOptions::default(), None)) {
        use_model(&model);
        let mut chat = Chat::new();
        chat.add("user", "hi");
        told(model.chat_template().and_then(|template| chat.render(Some(template), true)));
    }
}
