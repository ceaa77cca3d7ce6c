//! Teaches a model thirty facts in twenty steps, and asks with and without them: cargo run --release --example train_lora

use std::ops::ControlFlow;

use metal_candle::{
    Chat, Dataset, GenerateOptions, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Schedule, Session, TrainOptions,
};

fn main() -> metal_candle::Result<()> {
    let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
    let facts = Dataset::load_jsonl("examples/data/facts.jsonl")?;
    let config = LoraConfig::default().rank(16).alpha(32.0);
    let options = TrainOptions::default()
        .learning_rate(1e-2)
        .schedule(Schedule::Cosine)
        .warmup_steps(2)
        .total_steps(20)
        .batch_size(16)
        .epochs(20);
    let mut trainer = LoraTrainer::new(&model, &config, &options)?;
    let report = trainer.train(&facts, None, &mut |event| {
        println!("step {:2} of {}: loss {:.3}", event.step, event.total_steps, event.loss);
        ControlFlow::Continue(())
    })?;
    println!("{} steps with {} tokens to learn took {:.1} s", report.steps, report.target_tokens, report.seconds);
    let lora = trainer.adapter()?;
    println!("without: {}", ask(&model, None)?);
    println!("with:    {}", ask(&model, Some(&lora))?);
    // In PEFT's format: lora.save("velmora")?, and later Lora::load(&model, "velmora")?.
    Ok(())
}

fn ask(model: &Model, lora: Option<&Lora>) -> metal_candle::Result<String> {
    let mut chat = Chat::new();
    chat.add("user", "What is the bird of Velmora?");
    let mut session = Session::new(model, 0)?;
    session.set_adapters(&lora.map(|lora| (lora.clone(), 1.0)).into_iter().collect::<Vec<_>>())?;
    session.set_chat(&chat, None)?;
    let options = GenerateOptions::default().max_tokens(40);
    session.stream(&options)?.map(|token| Ok(token?.text)).collect()
}
