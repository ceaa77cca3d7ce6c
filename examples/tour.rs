//! The first token in five lines:
//!
//!     let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//!     let (mut session, mut chat) = (Session::new(&model, 0)?, Chat::new());
//!     chat.add("user", "What does `Vec::push` do?");
//!     session.set_chat(&chat, None)?;
//!     for token in session.stream(&GenerateOptions::default())? { print!("{}", token?.text); }
//!
//! And the rest: load with progress, stream, cancel, rank texts, train an adapter and ask with it: cargo run --release --example tour

use std::ops::ControlFlow;

use metal_candle::{
    Cancel, Chat, Dataset, EmbedOptions, FinishReason, GenerateOptions, Generation, LoadOptions, LoraConfig, LoraTrainer, Model,
    Schedule, Session, TrainOptions, similarity_top_k,
};

fn main() -> metal_candle::Result<()> {
    let mut progress = |event: metal_candle::Progress| {
        eprintln!("{:?}: {} of {}", event.stage, event.done, event.total);
        ControlFlow::Continue(())
    };
    let model = Model::load("models/tiny-coder", &LoadOptions::default(), Some(&mut progress))?;
    talk(&model)?;
    rank(&Model::load("models/tiny-embed", &LoadOptions::default(), None)?)?;
    train(&model)
}

fn ask(session: &mut Session, question: &str, cancel: &Cancel, stop_behind: u32) -> metal_candle::Result<Generation> {
    let mut chat = Chat::new();
    chat.add("user", question);
    session.set_chat(&chat, None)?;
    let options = GenerateOptions::default().max_tokens(100).cancel(cancel.clone());
    session.generate(&options, None, &mut |token| {
        print!("{}", token.text);
        if token.index == stop_behind {
            cancel.trigger();
        }
        ControlFlow::Continue(())
    })
}

fn talk(model: &Model) -> metal_candle::Result<()> {
    let mut session = Session::new(model, 0)?;
    ask(&mut session, "What does `Vec::push` do?", &Cancel::new(), u32::MAX)?;
    println!();
    // Any thread may trigger it.
    let answer = ask(&mut session, "What is a `HashMap`?", &Cancel::new(), 3)?;
    println!("{}", if answer.finish_reason == FinishReason::Cancelled { " … cancelled" } else { "" });
    Ok(())
}

fn rank(embedder: &Model) -> metal_candle::Result<()> {
    let texts = ["sleep for one second", "add an element to a vector", "open a file for reading"];
    let options = EmbedOptions::default();
    let query = embedder.embed(&["push onto a Vec"], &options, None)?;
    let documents = embedder.embed(&texts, &options, None)?;
    let (indices, scores) = similarity_top_k(embedder.similarity(), &query, &documents, query.len(), texts.len())?;
    for (index, score) in indices.into_iter().zip(scores) {
        println!("{score:.3}  {}", texts[index]);
    }
    Ok(())
}

fn train(model: &Model) -> metal_candle::Result<()> {
    let facts = Dataset::load_jsonl("examples/data/facts.jsonl")?;
    let config = LoraConfig::default().rank(16).alpha(32.0);
    let options = TrainOptions::default()
        .learning_rate(1e-2)
        .schedule(Schedule::Cosine)
        .warmup_steps(2)
        .total_steps(20)
        .batch_size(16)
        .epochs(20);
    let mut trainer = LoraTrainer::new(model, &config, &options)?;
    trainer.train(&facts, None, &mut |event| {
        eprintln!("step {} of {}, loss {:.3}", event.step, event.total_steps, event.loss);
        ControlFlow::Continue(())
    })?;
    let mut session = Session::new(model, 0)?;
    session.set_adapters(&[(trainer.adapter()?, 1.0)])?;
    ask(&mut session, "What is the bird of Velmora?", &Cancel::new(), u32::MAX)?;
    println!();
    Ok(())
}
