//! What a model is, what it will need, and loading it with its progress: cargo run --release --example load_model [-- MODEL]

use std::ops::ControlFlow;

use metal_candle::{Capability, LoadOptions, Model, estimate_memory};

fn main() -> metal_candle::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/tiny-coder".to_owned());
    // With .quantization("q4_k_m") weights have four bits; without, they are as in the files.
    let options = LoadOptions::default();
    println!("needs about {} MB", estimate_memory(&path, &options)? / 1_000_000);
    let model = Model::load(
        &path,
        &options,
        Some(&mut |event| {
            eprintln!("{:?}: {} of {}", event.stage, event.done, event.total);
            // Break would stop it.
            ControlFlow::Continue(())
        }),
    )?;
    println!("{}, {} parameters, {} layers", model.architecture(), model.parameter_count(), model.layer_count());
    println!("{} tokens of context, a vocabulary of {}", model.context_length(), model.vocab_size());
    for (what, capability) in [("generates", Capability::Generate), ("embeds", Capability::Embed), ("trains", Capability::Train)]
    {
        println!("{what}: {}", model.supports(capability));
    }
    println!("computed by: {}", model.backend_json());
    Ok(())
}
