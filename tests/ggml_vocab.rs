//! llama.cpp's own tests of vocabularies: GGUF files without tensors, texts, and the ids that transformers made of them. They are
//! not in the repository; `tests/fetch-ggml-vocab.sh` brings them, so the feature `network` asks for these tests:
//!
//! ```text
//! cargo test --features network --test ggml_vocab
//! ```
#![cfg(feature = "network")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use metal_candle::Tokenizer;

/// What decoding gives of the texts.
enum Back {
    Text,
    /// Another text, in small letters or with `[UNK]`.
    Other,
}

/// Vocabularies and the count of their texts.
const VOCABULARIES: [(&str, usize, Back); 15] = [
    ("bert-bge", 46, Back::Other),
    ("command-r", 46, Back::Text),
    ("deepseek-coder", 46, Back::Text),
    ("deepseek-llm", 46, Back::Text),
    ("falcon", 46, Back::Text),
    ("gemma-4", 46, Back::Text),
    ("gpt-2", 46, Back::Text),
    ("llama-bpe", 46, Back::Text),
    ("llama-spm", 46, Back::Text),
    ("mpt", 46, Back::Text),
    ("phi-3", 46, Back::Text),
    ("qwen2", 46, Back::Text),
    ("qwen35", 50, Back::Text),
    ("refact", 46, Back::Text),
    ("starcoder", 46, Back::Text),
];

/// Without texts: they load, and what they encode comes back.
const OTHERS: [&str; 4] = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"];

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fetch-ggml-vocab.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(fetched.status.success(), "{script}: {}", fetched.status);
    String::from_utf8(fetched.stdout).unwrap().trim().into()
});

fn load(name: &str) -> Tokenizer {
    Tokenizer::load(FOLDER.join(format!("ggml-vocab-{name}.gguf"))).unwrap_or_else(|e| panic!("{}", e.details()))
}

/// Texts, and the ids of each without special tokens around it.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |kind: &str| fs::read_to_string(FOLDER.join(format!("ggml-vocab-{name}.gguf.{kind}"))).unwrap();
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let (texts, lines) = (read("inp"), read("out"));
    let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
    assert_eq!(texts.len(), lines.lines().count());
    texts.into_iter().map(String::from).zip(lines.lines().map(ids)).collect()
}

#[test]
fn ids_equal_the_reference() {
    for (name, count, back) in VOCABULARIES {
        let tokenizer = load(name);
        let cases = cases(name);
        assert_eq!(cases.len(), count, "{name}");
        for (text, want) in cases {
            let ids = tokenizer.encode(&text, false).unwrap();
            // Qwen 3.5 composes characters, which llama.cpp does not; this file is Qwen 2's vocabulary, its ids are llama.cpp's.
            let composed = if name == "qwen35" { text.replace("e\u{301}", "é").replace("a\u{300}", "à") } else { text.clone() };
            if composed == text {
                assert_eq!(ids, want, "{name}: {text:?}");
            } else {
                assert_eq!(ids, tokenizer.encode(&composed, false).unwrap(), "{name}: {text:?}");
            }
            if matches!(back, Back::Text) {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), composed, "{name}");
            }
        }
    }
}

#[test]
fn vocabularies_without_a_reference_give_texts_back() {
    for name in OTHERS {
        let tokenizer = load(name);
        for (text, _) in cases("gpt-2").iter().filter(|(text, _)| name != "nomic-bert-moe" || text == "Hello world") {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), *text, "{name}");
        }
    }
}

#[test]
fn every_vocabulary_is_in_the_lists() {
    let files = fs::read_dir(&*FOLDER).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> =
        files.filter_map(|name| Some(name.strip_prefix("ggml-vocab-")?.strip_suffix(".gguf")?.into())).collect();
    let mut listed: Vec<&str> = VOCABULARIES.iter().map(|(name, ..)| *name).chain(OTHERS).collect();
    found.sort_unstable();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
