//! Lines of examples to train on.

use crate::{put, scratch, told};
use metal_candle::Dataset;

pub fn run(input: &[u8]) {
    let path = scratch().join("examples.jsonl");
    put(&path, input);
    if let Some(dataset) = told(Dataset::load_jsonl(&path)) {
        assert!(dataset.len() <= input.len());
    }
}
