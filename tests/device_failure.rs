//! A device that fails in the middle of a step: the next call gives what it would have given. A file of its own, as the failure is one of
//! the whole process.
#![cfg(feature = "fault-injection")]

mod common;

use std::ops::ControlFlow;

use common::{devices, golden, load_onto, max_abs, shipped};
use metal_candle::{
    EmbedOptions, Error, ErrorKind, GenerateOptions, LoadOptions, LoraConfig, LoraTrainer, Model, Progress, Session, TokenEvent,
    TrainOptions, inject_device_failure,
};

/// More than one step.
const PROMPT: usize = 520;
/// A prompt in other steps adds in another order, but not by our kernels.
const TOLERANCE: f32 = 1e-4;

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + i * 37 % 200).collect()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_eos(true).temperature(0.7).seed(3)
}

fn session(model: &Model, tokens: &[u32]) -> Session {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(tokens, None).unwrap();
    session
}

fn goes_on(_: &TokenEvent) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Runs `attempt` with a failure at its first product, its second and so on, until it ends before one; says how many failed.
fn each_failure(mut attempt: impl FnMut() -> Result<(), Error>) -> usize {
    let fails = |after: &usize| {
        inject_device_failure(*after);
        let result = attempt();
        inject_device_failure(usize::MAX - 1);
        let Err(error) = result else { return false };
        assert!(error.kind() == ErrorKind::Device && error.message().contains("injected"), "{error}");
        true
    };
    (0..).take_while(fails).count()
}

#[test]
fn a_device_that_fails_in_mid_step_changes_no_result() {
    for device in devices() {
        let name = device.name();
        let onto = LoadOptions::default().device(device.clone()).max_context(1024);
        let model = Model::load(golden("decoders/qwen2_tied"), &onto, None).unwrap();
        let products = model.layer_count() * 4 + 1;
        let prompt = tokens(PROMPT);
        let whole = session(&model, &prompt);
        let scores = whole.fork().unwrap().logits().unwrap().to_vec();
        let check = |session: &mut Session| {
            let error = max_abs(session.logits().unwrap(), &scores);
            assert!(error <= TOLERANCE, "{name}: {error}");
        };

        // A prompt behind tokens that were evaluated before: they are held on, the prompt is not.
        let mut held = session(&model, &prompt[..4]);
        let failures = each_failure(|| {
            let result = held.append_tokens(&prompt[4..], None);
            assert_eq!(held.position(), if result.is_ok() { PROMPT } else { 4 });
            result
        });
        // A step without scores, and one with them; more products where the CPU has the prompt's rows in blocks.
        assert!(failures >= 2 * products - 1, "{name}: {failures}");
        check(&mut held);

        // One token more: nothing is trusted of what was computed before.
        let failures = each_failure(|| {
            held.truncate(PROMPT - 1)?;
            let result = held.append_tokens(&prompt[PROMPT - 1..], None);
            if result.is_err() {
                let mut evaluated = 0;
                let mut progress = |progress: Progress| {
                    evaluated = progress.total;
                    ControlFlow::Continue(())
                };
                held.generate(&options(1), Some(&mut progress), &mut goes_on)?;
                assert_eq!(evaluated, PROMPT as u64 - 1, "{name}");
            }
            result
        });
        assert_eq!(failures, products);
        check(&mut held);

        // An answer, which is then pulled to its end.
        let want = whole.fork().unwrap().generate(&options(4), None, &mut goes_on).unwrap().tokens;
        let failures = each_failure(|| {
            let mut session = whole.fork()?;
            let result = session.generate(&options(4), None, &mut goes_on).map(drop);
            if result.is_err() {
                while session.next()?.is_some() {}
                assert_eq!(session.end()?.tokens, want, "{name}");
            }
            result
        });
        assert_eq!(failures, 3 * products, "{name}: the first token's scores were known");

        // A step of training: the trainer is as it was, and goes on.
        let trainer = || LoraTrainer::new(&model, &LoraConfig::default(), &TrainOptions::default()).unwrap();
        let step = |trainer: &mut LoraTrainer| trainer.train_step(&prompt[..12], None, &[0, 5, 12]);
        let (mut undisturbed, mut failing) = (trainer(), trainer());
        let want = [step(&mut undisturbed).unwrap(), step(&mut undisturbed).unwrap()];
        let failures = each_failure(|| step(&mut failing).map(|found| assert_eq!(found, want[0], "{name}")));
        assert!(failures >= products, "{name}: {failures}");
        assert_eq!(step(&mut failing).unwrap(), want[1], "{name}");

        let model = load_onto(&device, shipped("tiny-embed"));
        let embed = || model.embed(&["a text", "another", ""], &EmbedOptions::default(), None);
        let want = embed().unwrap();
        let failures = each_failure(|| {
            let result = embed().map(drop);
            assert_eq!(embed()?, want, "{name}");
            result
        });
        assert!(failures > model.layer_count(), "{name}");
    }
}
