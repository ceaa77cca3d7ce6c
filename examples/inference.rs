//! Below conversations: tokens, logits, a sampler of one's own, a fork: cargo run --release --example inference

use metal_candle::{LoadOptions, Model, Sampler, Sampling, Session};

fn main() -> metal_candle::Result<()> {
    let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
    let tokenizer = model.tokenizer()?;
    let mut session = Session::new(&model, 0)?;
    session.append_tokens(&tokenizer.encode("fn main() {\n    let", true)?, None)?;

    for (token, logprob) in session.top_logprobs(3)? {
        println!("{:>8.4}  {:?}", logprob.exp(), tokenizer.decode(&[token], false)?);
    }

    // Two ways to go on from the same prompt, which is evaluated once.
    let prompt = session.position();
    for (seed, mut session) in [(1, session.fork()?), (2, session)] {
        let sampling = Sampling::default().temperature(0.8).top_k(20).seed(seed);
        let mut sampler = Sampler::new(sampling, model.vocab_size())?;
        for _ in 0..16 {
            let (context, answer) = session.tokens().split_at(prompt);
            let (context, answer) = (context.to_vec(), answer.to_vec());
            let (token, _) = sampler.sample(session.logits()?, &context, &answer)?;
            if model.eos_tokens().contains(&token) {
                break;
            }
            session.append_tokens(&[token], None)?;
        }
        println!("{}", tokenizer.decode(session.tokens(), false)?);
    }
    Ok(())
}
