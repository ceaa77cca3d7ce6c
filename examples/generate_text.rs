//! Streams answers of a conversation: cargo run --release --example generate_text [-- MODEL]
//!
//! MODEL is a directory, a GGUF file, or a name of the Hub such as Qwen/Qwen3-0.6B.

use std::io::Write;

use metal_candle::{Chat, GenerateOptions, LoadOptions, Model, Session};

fn main() -> metal_candle::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "models/tiny-coder".to_owned());
    let options = LoadOptions::default();
    let model = match std::path::Path::new(&name).exists() {
        true => Model::load(&name, &options, None)?,
        false => Model::load_hub(&name, &options, None)?,
    };
    let mut session = Session::new(&model, 0)?;
    let mut chat = Chat::new();
    for question in ["What does `Vec::push` do?", "What is a `HashMap`?"] {
        println!("> {question}");
        chat.add("user", question);
        // Only what is new of the conversation is evaluated.
        session.set_chat(&chat, None)?;
        let mut answer = session.stream(&GenerateOptions::default().max_tokens(200))?;
        for token in answer.by_ref() {
            print!("{}", token?.text);
            std::io::stdout().flush().ok();
        }
        chat.add("assistant", &answer.finish()?.content);
        println!("\n");
    }
    Ok(())
}
