//! The vocabulary of a directory that has no tokenizer.json. The first byte says which: vocab.txt, vocab.json with merges.txt, or
//! tokenizer.model. tokenizer_config.json, special_tokens_map.json and config.json follow with a zero after each; those that are empty are
//! missing. The rest is the vocabulary, of which merges.txt is what stands behind another zero.

use std::path::Path;

use crate::targets::tokenizer::use_tokenizer;
use crate::{put, scratch, told};
use metal_candle::Tokenizer;

/// Their names, and those of the settings.
pub const VOCABULARIES: [&[&str]; 3] = [&["vocab.txt"], &["vocab.json", "merges.txt"], &["tokenizer.model"]];
pub const SETTINGS: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "config.json"];

pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let names = VOCABULARIES[usize::from(kind) % VOCABULARIES.len()];
    let folder = scratch().join("vocabulary");
    std::fs::create_dir_all(&folder).expect("a folder for the vocabulary");
    let mut parts = rest.splitn(SETTINGS.len() + names.len(), |&byte| byte == 0);
    for name in SETTINGS.iter().chain(names) {
        match parts.next() {
            None | Some([]) => absent(&folder.join(name)),
            Some(part) => put(&folder.join(name), part),
        }
    }
    for name in VOCABULARIES.iter().flat_map(|names| *names).filter(|name| !names.contains(name)) {
        absent(&folder.join(name));
    }
    if let Some(tokenizer) = told(Tokenizer::load(&folder)) {
        use_tokenizer(&tokenizer);
    }
}

fn absent(path: &Path) {
    // It is there of an input before, or it is not.
    let _ = std::fs::remove_file(path);
}
