//! The real weights of all-MiniLM-L6-v2 against sentence-transformers (tests/golden/make_minilm.py). They are not in the
//! repository; `tests/fetch-minilm.sh` brings them, so the feature `network` asks for these tests:
//!
//! ```text
//! cargo test --features network --test minilm
//! ```
#![cfg(feature = "network")]

mod common;

use std::process::{Command, Stdio};
use std::sync::LazyLock;

use common::{Reference, golden, json, load, max_abs};
use metal_candle::{EmbedOptions, Model};
use serde_json::Value;

const DIM: usize = 384;

/// 30 times the reference's own noise, and 70 times less than what the smallest of its `mistakes` moves.
const TOLERANCE: f32 = 5e-6;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fetch-minilm.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(fetched.status.success(), "{script}: {}", fetched.status);
    load(String::from_utf8(fetched.stdout).unwrap().trim())
});

static GOLDEN: LazyLock<Value> = LazyLock::new(|| json(&golden("minilm/golden.json")));

/// The texts, and their embeddings by sentence-transformers: (texts, DIM).
fn reference() -> (Vec<&'static str>, Vec<f32>) {
    let texts = GOLDEN["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    (texts, Reference::open(&golden("minilm/golden.safetensors")).floats("embeddings"))
}

fn embed(texts: &[&str]) -> Vec<f32> {
    MODEL.embed(texts, &EmbedOptions::default(), None).unwrap_or_else(|e| panic!("{}", e.details()))
}

#[test]
fn tokens_equal_the_reference() {
    let tokenizer = MODEL.tokenizer().unwrap();
    for (text, want) in reference().0.iter().zip(GOLDEN["ids"].as_array().unwrap()) {
        let want: Vec<u32> = serde_json::from_value(want.clone()).unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        // What the embedding cuts off is the tokenizer's to keep: without the last one, [SEP], the reference's are the first.
        assert_eq!(ids[..want.len() - 1], want[..want.len() - 1], "{text:?}");
        assert!(ids.len() == want.len() || want.len() == 256, "{text:?}");
    }
}

#[test]
fn a_batch_equals_the_reference() {
    let (texts, want) = reference();
    let found = embed(&texts);
    assert_eq!(found.len(), texts.len() * DIM);
    for ((text, found), want) in texts.iter().zip(found.chunks(DIM)).zip(want.chunks(DIM)) {
        let error = max_abs(found, want);
        assert!(error <= TOLERANCE, "{error}: {text:?}");
    }
}

#[test]
fn each_text_alone_equals_the_reference() {
    let (texts, want) = reference();
    for (text, want) in texts.iter().zip(want.chunks(DIM)) {
        let error = max_abs(&embed(&[text]), want);
        assert!(error <= TOLERANCE, "{error}: {text:?}");
    }
}

#[test]
fn documents_rank_as_in_the_reference() {
    let count = |name: &str| GOLDEN[name].as_u64().unwrap() as usize;
    let (texts, _) = reference();
    let found = embed(&texts[..count("queries") + count("documents")]);
    let (queries, documents) = found.split_at(count("queries") * DIM);
    for (query, want) in queries.chunks(DIM).zip(GOLDEN["ranking"].as_array().unwrap()) {
        let similarity = |document: &[f32]| -> f32 { query.iter().zip(document).map(|(a, b)| a * b).sum() };
        let similarities: Vec<f32> = documents.chunks(DIM).map(similarity).collect();
        let mut ranking: Vec<usize> = (0..similarities.len()).collect();
        ranking.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]));
        assert_eq!(serde_json::json!(ranking), *want);
    }
}

#[test]
fn the_tolerance_would_show_a_mistake() {
    let noise = GOLDEN["noise"].as_f64().unwrap() as f32;
    let mistakes = GOLDEN["mistakes"].as_object().unwrap().values().map(|moved| moved.as_f64().unwrap() as f32);
    assert!(5.0 * noise < TOLERANCE && mistakes.fold(f32::INFINITY, f32::min) > 20.0 * TOLERANCE);
}
