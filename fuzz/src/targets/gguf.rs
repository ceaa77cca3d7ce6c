//! A GGUF file, the whole of it: header, tokenizer, tensors.

use crate::{put, scratch, told, use_model};
use metal_candle::{Chat, LoadOptions, Model, Tokenizer, estimate_memory};

pub fn run(input: &[u8]) {
    let path = scratch().join("model.gguf");
    put(&path, input);
    told(estimate_memory(&path, &LoadOptions::default()));
    if let Some(tokenizer) = told(Tokenizer::load(&path)) {
        told(tokenizer.encode("hi the <s>", true).and_then(|ids| tokenizer.decode(&ids, false)));
    }
    if let Some(model) = told(Model::load(&path, &LoadOptions::default(), None)) {
        use_model(&model);
        if let Some(template) = told(model.chat_template()) {
            let mut chat = Chat::new();
            chat.add("user", "hi");
            told(chat.render(Some(template), true));
        }
    }
}
