//! A tokenizer.json, with which texts are taken apart and put together.

use crate::{put, scratch, told};
use metal_candle::Tokenizer;

pub fn run(input: &[u8]) {
    let path = scratch().join("tokenizer.json");
    put(&path, input);
    if let Some(tokenizer) = told(Tokenizer::load(&path)) {
        use_tokenizer(&tokenizer);
    }
}

pub fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["", "ab aabb  the\n\u{e9}\u{1F600} <s>", "\u{0}\u{301}\u{FFFD}"] {
        let Some(ids) = told(tokenizer.encode(text, true)) else { continue };
        told(tokenizer.decode(&ids, false));
        told(tokenizer.decode(&ids, true));
    }
    for token in [0, 1, 7, u32::MAX] {
        told(tokenizer.bytes_of(token));
        told(tokenizer.decode(&[token], false));
    }
}
