//! Every encoder and every way of pooling against sentence-transformers, and the equalities that need no reference: batch =
//! single, in any order, whatever the options that change no vector.

mod common;

use std::path::{Path, PathBuf};

use common::{Reference, golden, json, load, max_abs, shipped};
use metal_candle::{EmbedOptions, Model, Prompt, Similarity, similarity_top_k};
use serde_json::Value;

/// Tolerances of the reference results; each is above their own noise and below the smallest mistake seen.
const NORMALISED: f32 = 2e-5;
const PLAIN: f32 = 2e-4;
const SHIPPED: f32 = 5e-6;

/// Every directory of the reference results.
fn models() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(golden("encoders")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= 15, "the reference results are there");
    found
}

fn texts(notes: &Value) -> Vec<&str> {
    notes["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A call with the model's prompt of this name; "none" is with its default switched off.
fn with_prompt(name: &str) -> EmbedOptions {
    let prompt = if name == "none" { Prompt::Text(String::new()) } else { Prompt::Name(name.to_string()) };
    EmbedOptions { prompt, ..EmbedOptions::default() }
}

fn embed(model: &Model, texts: &[&str], options: &EmbedOptions) -> Vec<f32> {
    model.embed(texts, options, None).unwrap_or_else(|e| panic!("{}", e.details()))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt()
}

#[test]
fn every_model_prompt_and_text_equals_the_reference() {
    for path in models() {
        let (model, notes) = (load(&path), json(&path.join("golden.json")));
        let reference = Reference::open(&path.join("golden.safetensors"));
        let texts = texts(&notes);
        let tolerance = if notes["normalize"].as_bool().unwrap() { NORMALISED } else { PLAIN };
        for prompt in notes["embeddings"].as_array().unwrap() {
            let prompt = prompt.as_str().unwrap();
            let want = reference.floats(&format!("embeddings.{prompt}"));
            let got = embed(&model, &texts, &with_prompt(prompt));
            let dim = got.len() / texts.len();
            for ((text, got), want) in texts.iter().zip(got.chunks(dim)).zip(want.chunks(dim)) {
                let (error, cosine) = (max_abs(got, want), cosine(got, want));
                let name = path.file_name().unwrap().to_string_lossy();
                assert!(error <= tolerance && cosine >= 0.99999, "{name}, prompt {prompt}, {text:?}: {error}, cosine {cosine}");
            }
        }
    }
}
