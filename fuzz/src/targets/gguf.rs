//! A GGUF file, the whole of it: header, tokenizer, tensors.

use crate::{put, scratch, told, use_model};
use metal_candle::{Chat, LoadOptions, Model, Tokenizer, estimate_memory};

pub fn run(input: &[u8]) {
    let path = scratch().join("model.gguf");
    put(&path, input);
    told(estimate_memory(&path, &LoadOptions::default()));
    let model = told(Model::load(&path, &LoadOptions::default(), None));
    // Of a model there is the same one: making it takes longer than all else.
    let tokenizer = match &model {
        Some(model) => told(model.tokenizer().cloned()),
        None => told(Tokenizer::load(&path)),
    };
    if let Some(tokenizer) = tokenizer {
        told(tokenizer.encode("hi the <s>", true).and_then(|ids| tokenizer.decode(&ids, false)));
    }
    if let Some(model) = model {
        use_model(&model);
        if let Some(template) = told(model.chat_template()) {
            let mut chat = Chat::new();
            chat.add("user", "hi");
            told(chat.render(Some(template), true));
        }
    }
}
