//! Finds the nearest texts in meaning: cargo run --release --example embeddings

use metal_candle::{EmbedOptions, LoadOptions, Model, similarity_top_k};

const TEXTS: [&str; 3] =
    ["Appends an element to the end of a vector.", "Opens a file for reading.", "Puts the current thread to sleep."];

fn main() -> metal_candle::Result<()> {
    let model = Model::load("models/tiny-embed", &LoadOptions::default(), None)?;
    let options = EmbedOptions::default();
    // Row by row, as the model means them to be compared.
    let documents = model.embed(&TEXTS, &options, None)?;
    let query = model.embed(&["How do I push something onto a Vec?"], &options, None)?;
    let (indices, scores) = similarity_top_k(model.similarity(), &query, &documents, query.len(), TEXTS.len())?;
    for (index, score) in indices.into_iter().zip(scores) {
        println!("{score:.3}  {}", TEXTS[index]);
    }
    Ok(())
}
