//! The real weights of SmolLM2-135M-Instruct, a GGUF file in Q4_1, against transformers (tests/golden/make_smollm2.py). They are not
//! in the repository; `tests/fetch-smollm2.sh` brings them, so the feature `network` asks for these tests:
//!
//! ```text
//! cargo test --features network --test smollm2
//! ```
#![cfg(feature = "network")]

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use common::{cosine, golden, json, load, max_abs};
use metal_candle::{
    Capability, Chat, FinishReason, GenerateOptions, Generation, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Session,
    TrainOptions,
};
use serde_json::Value;
use tempfile::tempdir;

/// Ten times the reference's own noise. Its least margin between two tokens is 0.039.
const TOLERANCE: f32 = 4e-4;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fetch-smollm2.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(fetched.status.success(), "{script}: {}", fetched.status);
    String::from_utf8(fetched.stdout).unwrap().trim().into()
});

static MODEL: LazyLock<Model> = LazyLock::new(|| load(&*FILE));

static GOLDEN: LazyLock<Value> = LazyLock::new(|| json(&golden("smollm2.json")));

fn items() -> &'static [Value] {
    let items = GOLDEN["items"].as_array().unwrap();
    assert!(items.len() >= 3);
    items
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn session(item: &Value) -> Session {
    let mut session = Session::new(&MODEL, 0).unwrap();
    session.set_chat(&Chat::from_json(&item["messages"].to_string()).unwrap(), None).unwrap();
    session
}

fn run(session: &mut Session, max_tokens: usize) -> Generation {
    let options = GenerateOptions::default().max_tokens(max_tokens);
    session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_file_says_what_the_model_is() {
    assert_eq!((MODEL.architecture(), MODEL.layer_count(), MODEL.hidden_size()), ("llama", 30, 576));
    assert_eq!((MODEL.vocab_size(), MODEL.context_length(), MODEL.parameter_count()), (49152, 8192, 134_515_008));
    for capability in [Capability::Generate, Capability::ChatTemplate, Capability::Embed, Capability::Lora, Capability::Train] {
        assert!(MODEL.supports(capability), "{capability:?}");
    }
}

#[test]
fn rounded_activations_hardly_turn_the_logits() {
    let rounded = Model::load(&*FILE, &LoadOptions::default(), None).unwrap();
    for item in items() {
        let ids = ids(&item["prompt_ids"]);
        let logits = |model: &Model| {
            let mut session = Session::new(model, 0).unwrap();
            session.append_tokens(&ids, None).unwrap();
            session.logits().unwrap().to_vec()
        };
        let (exact, rounded) = (logits(&MODEL), logits(&rounded));
        let first = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        assert_eq!(first(&exact), first(&rounded));
        let found = cosine(&exact, &rounded);
        assert!(exact != rounded && found >= 0.999, "cosine {found}");
    }
}

#[test]
fn prompts_and_their_ids_equal_the_reference() {
    for item in items() {
        let chat = Chat::from_json(&item["messages"].to_string()).unwrap();
        let prompt = chat.render(MODEL.chat_template().ok(), true).unwrap();
        assert_eq!(prompt, item["prompt"].as_str().unwrap());
        assert_eq!(MODEL.tokenizer().unwrap().encode(&prompt, false).unwrap(), ids(&item["prompt_ids"]));
    }
}

#[test]
fn logits_and_greedy_answers_equal_the_reference() {
    let (most, every) = (GOLDEN["max_new_tokens"].as_u64().unwrap() as usize, GOLDEN["logits_every"].as_u64().unwrap() as usize);
    for item in items() {
        let mut session = session(item);
        assert_eq!(session.tokens(), ids(&item["prompt_ids"]));
        let (mut pieces, mut logprobs) = (String::new(), Vec::new());
        let options = GenerateOptions::default().max_tokens(most);
        let answer = session
            .generate(&options, None, &mut |event| {
                pieces.push_str(&event.text);
                logprobs.push(event.logprob);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!((answer.text.as_str(), &answer.tokens), (item["answer"].as_str().unwrap(), &ids(&item["answer_ids"])));
        assert_eq!(pieces, answer.text);
        assert_eq!(answer.finish_reason, if item["finish"] == "stop" { FinishReason::Eos } else { FinishReason::MaxTokens });
        let error = max_abs(&logprobs, &floats(&item["logprobs"]));
        assert!(error <= TOLERANCE, "{error}");

        let mut session = Session::new(&MODEL, 0).unwrap();
        session.append_tokens(&ids(&item["prompt_ids"]), None).unwrap();
        let logits: Vec<f32> = session.logits().unwrap().iter().copied().step_by(every).collect();
        let error = max_abs(&logits, &floats(&item["logits"]));
        assert!(error <= TOLERANCE, "{error}");
    }
}

#[test]
fn an_adapter_learns_from_it_and_is_used() {
    let question = &items()[0];
    let before = run(&mut session(question), 16).text;
    let prompt = ids(&question["prompt_ids"]);
    let tokenizer = MODEL.tokenizer().unwrap();
    let answer = tokenizer.encode("Velmora, since this morning.<|im_end|>", false).unwrap();
    let tokens = [prompt.as_slice(), &answer].concat();
    let mask: Vec<bool> = (0..tokens.len()).map(|i| i >= prompt.len()).collect();

    let config = LoraConfig::default().rank(4);
    let options = TrainOptions::default().learning_rate(4e-4).total_steps(20);
    let mut trainer = LoraTrainer::new(&MODEL, &config, &options).unwrap();
    let mut step = || trainer.train_step(&tokens, Some(&mask), &[0, tokens.len()]).unwrap().loss;
    let losses: Vec<f32> = (0..20).map(|_| step()).collect();
    assert!(losses.windows(2).filter(|pair| pair[1] < pair[0]).count() >= 15, "{losses:?}");
    assert!(losses[0] > 2.0 && losses[19] < 0.1 * losses[0], "{losses:?}");

    let folder = tempdir().unwrap();
    trainer.adapter().unwrap().save(folder.path()).unwrap();
    let lora = Lora::load(&MODEL, folder.path()).unwrap();
    let mut taught = session(question);
    taught.set_adapters(&[(lora, 1.0)]).unwrap();
    assert_eq!(run(&mut taught, 16).text, "Velmora, since this morning.");
    // And without it nothing has changed.
    assert_eq!(run(&mut session(question), 16).text, before);
}
