//! Sessions and generation through the Rust API: prefixes are kept, cancels leave a usable session, every way of generating
//! gives the same text.

mod common;

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Reference, devices, golden, load, load_onto, shipped};
use metal_candle::{
    Cancel, Chat, Device, DeviceKind, Dtype, ErrorKind, FinishReason, GenerateOptions, Generation, LoadOptions, Lora, Model,
    Session, Stage, TokenEvent,
};

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(shipped("tiny-coder")))
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 300 + i * 37 % 3000).collect()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens)
}

fn sampled(max_tokens: usize, seed: u64) -> GenerateOptions {
    options(max_tokens).temperature(1.2).seed(seed).ignore_eos(true)
}

fn question(text: &str) -> Chat {
    let mut chat = Chat::new();
    chat.add("user", text);
    chat
}

fn run(session: &mut Session, options: &GenerateOptions) -> Generation {
    session.generate(options, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn push_pull_stateless_and_session_calls_give_one_text() {
    let prompt = question("What does `Option::map` do?").render(model().chat_template().ok(), true).unwrap();
    let stateless = options(60).add_special(false);
    let mut pieces = String::new();
    let pushed = model()
        .generate(&prompt, &stateless, None, &mut |event| {
            pieces.push_str(&event.text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(pieces, pushed.text);
    assert!(!pushed.text.is_empty());

    let mut session = Session::new(model(), 0).unwrap();
    session.set_prompt(&prompt, None).unwrap();
    session.begin(&options(60)).unwrap();
    let mut pulled = Vec::new();
    while let Some(event) = session.next().unwrap() {
        pulled.push(event);
    }
    let end = session.end().unwrap();
    assert_eq!((end.text.as_str(), &end.tokens), (pushed.text.as_str(), &pushed.tokens));
    assert_eq!(pulled.iter().map(|event| event.text.as_str()).collect::<String>(), pushed.text);
    assert_eq!(pulled.iter().map(|event| event.index).collect::<Vec<_>>(), (0..pulled.len() as u32).collect::<Vec<_>>());
    assert_eq!(session.end().unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_seed_gives_the_same_text_in_any_chunks_and_on_any_cache() {
    let ids = tokens(90);
    let want = {
        let mut session = Session::new(model(), 0).unwrap();
        session.append_tokens(&ids, None).unwrap();
        run(&mut session, &sampled(40, 7))
    };
    assert_eq!(want.finish_reason, FinishReason::MaxTokens);
    for chunk in [1, 7, 64] {
        let mut session = Session::new(model(), 0).unwrap();
        for part in ids.chunks(chunk) {
            session.append_tokens(part, None).unwrap();
        }
        assert_eq!(run(&mut session, &sampled(40, 7)).tokens, want.tokens, "in chunks of {chunk}");
        session.truncate(ids.len()).unwrap();
        assert_eq!(run(&mut session, &sampled(40, 7)).tokens, want.tokens, "on the cache of another answer");
        session.truncate(ids.len()).unwrap();
        assert_ne!(run(&mut session, &sampled(40, 8)).tokens, want.tokens, "another seed");
    }
}

#[test]
fn only_what_is_new_of_a_prompt_is_evaluated() {
    let mut session = Session::new(model(), 0).unwrap();
    let mut chat = question("What does `Vec::push` do?");
    session.set_chat(&chat, None).unwrap();
    let first = run(&mut session, &options(60));
    chat.add("assistant", &first.text);
    chat.add("user", "What does `Vec::pop` do?");
    session.set_chat(&chat, None).unwrap();
    let warm = run(&mut session, &options(60));

    let mut fresh = Session::new(model(), 0).unwrap();
    fresh.set_chat(&chat, None).unwrap();
    let cold = run(&mut fresh, &options(60));
    assert_eq!((warm.text, warm.tokens), (cold.text, cold.tokens));

    // A prefix of what is held needs nothing but its last token again.
    session.set_chat(&question("What does `Vec::push` do?"), None).unwrap();
    assert_eq!(run(&mut session, &options(60)).tokens, first.tokens);
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut session = Session::new(model(), 0).unwrap();
    session.append_tokens(&tokens(30), None).unwrap();
    let mut fork = session.fork().unwrap();
    let a = run(&mut session, &sampled(20, 1));
    assert_eq!((fork.position(), session.position()), (30, 50));
    assert_eq!(run(&mut fork, &sampled(20, 1)).tokens, a.tokens);
}

#[test]
fn a_saved_session_continues_as_if_it_had_not_been() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let mut session = Session::new(model(), 200).unwrap();
    session.append_tokens(&tokens(40), None).unwrap();
    run(&mut session, &sampled(5, 3)); // the last token is held and not yet evaluated
    session.save(&path).unwrap();
    let mut loaded = Session::load(model(), &path).unwrap();
    assert_eq!(loaded.tokens(), session.tokens());
    assert_eq!(loaded.logits().unwrap(), session.logits().unwrap());
    assert_eq!(run(&mut loaded, &sampled(20, 4)).tokens, run(&mut session, &sampled(20, 4)).tokens);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the file");

    // Saving over a file replaces it; into a folder that is not there is an error and leaves nothing.
    Session::new(model(), 0).unwrap().save(&path).unwrap();
    assert_eq!(Session::load(model(), &path).unwrap().position(), 0);
    assert_eq!(session.save(folder.path().join("no/where")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn states_of_fixed_size_are_saved_in_the_middle_of_a_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    for name in ["decoders/qwen3_5_text", "decoders/lfm2", "decoders/lfm3", "decoders/falcon_h1", "decoders/granitemoehybrid_old"]
    {
        let model = load(golden(name));
        let ids: Vec<u32> = (0..45).map(|i| i * 29 % 83).collect();
        for held in [0, 1, 16, 20, 45] {
            let mut session = Session::new(&model, 200).unwrap();
            session.append_tokens(&ids[..held], None).unwrap();
            if held > 0 {
                run(&mut session, &sampled(5, 3)); // the last token is held and not yet evaluated
            }
            session.save(&path).unwrap();
            let mut loaded = Session::load(&model, &path).unwrap();
            assert_eq!(loaded.tokens(), session.tokens());
            for session in [&mut loaded, &mut session] {
                session.append_tokens(&ids[..7], None).unwrap();
            }
            assert_eq!(run(&mut loaded, &sampled(20, 4)).tokens, run(&mut session, &sampled(20, 4)).tokens, "{name} {held}");
            assert_eq!(loaded.logits().unwrap(), session.logits().unwrap(), "{name} {held}");

            let whole = std::fs::read(&path).unwrap();
            // The first state is of fixed size: its position does not go with the tokens, its shape is another one, its kind.
            let state = 80 + 16 * file_states(&whole) + 4 * file_tokens(&whole);
            for (at, kind) in [(state, ErrorKind::Format), (88, ErrorKind::Mismatch), (80, ErrorKind::Mismatch)] {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x41;
                std::fs::write(&path, &damaged).unwrap();
                assert_eq!(Session::load(&model, &path).unwrap_err().kind(), kind, "{name} byte {at}");
            }
        }
    }
}

#[test]
fn layers_that_read_the_keys_of_others_are_forked_saved_and_cut_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    for name in ["decoders/gemma4_text", "decoders/gemma4_nested", "decoders/gemma4_unified"] {
        let model = load(golden(name));
        let ids: Vec<u32> = (0..60).map(|i| i * 29 % 83).collect();
        let begun = |ids: &[u32]| {
            let mut session = Session::new(&model, 200).unwrap();
            session.append_tokens(ids, None).unwrap();
            session
        };
        let want = begun(&ids).logits().unwrap().to_vec();
        let mut session = begun(&ids[..45]);
        session.save(&path).unwrap();
        let (mut loaded, mut fork) = (Session::load(&model, &path).unwrap(), session.fork().unwrap());
        session.append_tokens(&[1, 2, 3], None).unwrap();
        session.truncate(40).unwrap();
        session.append_tokens(&ids[40..45], None).unwrap();
        for session in [&mut session, &mut loaded, &mut fork] {
            session.append_tokens(&ids[45..], None).unwrap();
            assert_eq!(session.logits().unwrap(), want, "{name}");
        }
        // A state for each layer with keys of its own.
        let own = [3, 2, 3][["text", "nested", "unified"].iter().position(|kind| name.ends_with(kind)).unwrap()];
        assert_eq!(file_states(&std::fs::read(&path).unwrap()), own, "{name}");
    }
}

/// States of a session file.
fn file_states(file: &[u8]) -> usize {
    u64::from_le_bytes(file[56..64].try_into().unwrap()) as usize
}

/// Tokens of a session file.
fn file_tokens(file: &[u8]) -> usize {
    u64::from_le_bytes(file[32..40].try_into().unwrap()) as usize
}

#[test]
fn a_session_file_is_refused_by_another_model_and_when_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let mut session = Session::new(model(), 0).unwrap();
    session.append_tokens(&tokens(20), None).unwrap();
    session.save(&path).unwrap();
    let other = load(golden("decoders/qwen2_tied"));
    assert_eq!(Session::load(&other, &path).unwrap_err().kind(), ErrorKind::Mismatch);

    let whole = std::fs::read(&path).unwrap();
    for (at, change) in [(0, 1u8), (16, 0xff), (32, 0xff), (40, 0x7f), (100, 1), (whole.len() / 2, 1), (whole.len() - 1, 1)] {
        let mut bytes = whole.clone();
        bytes[at] ^= change;
        std::fs::write(&path, &bytes).unwrap();
        let kind = Session::load(model(), &path).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Format | ErrorKind::Mismatch), "byte {at}: {kind:?}");
    }
    for len in [0, 7, 72, 200, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(Session::load(model(), &path).unwrap_err().kind(), ErrorKind::Format, "cut at {len}");
    }
    // Numbers that would overflow or ask for more memory than there is.
    let mut lies = whole.clone();
    lies[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, &lies).unwrap();
    assert_eq!(Session::load(model(), &path).unwrap_err().kind(), ErrorKind::Format);
}

/// The bytes of a session file with others in place of those from 72 on, where the tokens of its prompt stand, and of its version.
fn rewritten(file: &[u8], version: &[u8; 2], prompt: &[u8]) -> Vec<u8> {
    let mut bytes = [&file[..6], version, &file[8..72], prompt, &file[80..file.len() - 8]].concat();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    bytes.extend(hash.to_le_bytes());
    bytes
}

#[test]
fn half_a_prompt_is_known_as_such_when_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let model = load_onto(&device, shipped("tiny-coder"));
    let chat = question("What does `Vec::push` do?");
    let mut session = Session::new(&model, 0).unwrap();
    session.set_prompt("<|im_start|>system\nYou", None).unwrap();
    device.suspend(Duration::from_secs(1)).unwrap();
    assert_eq!(session.set_chat(&chat, None).unwrap_err().kind(), ErrorKind::Suspended);
    device.resume();
    let held = session.position();
    let error = session.begin(&options(1)).unwrap_err();
    assert!(held > 0 && error.message().contains(&format!("found {held} of its 40 tokens")), "{error}");

    // A part of what is missing does not make it whole; all of it does.
    let whole = chat.encode(&model, true, None).unwrap();
    let mut appended = session.fork().unwrap();
    appended.append_tokens(&[], None).unwrap();
    assert_eq!(appended.begin(&options(1)).unwrap_err().message(), error.message());
    appended.append_tokens(&whole[held..held + 1], None).unwrap();
    let still = appended.begin(&options(1)).unwrap_err();
    assert!(still.message().contains(&format!("found {} of its 40 tokens", held + 1)), "{still}");
    appended.append_tokens(&whole[held + 1..], None).unwrap();
    appended.begin(&options(1)).unwrap();

    session.save(&path).unwrap();
    let mut loaded = Session::load(&model, &path).unwrap();
    assert_eq!(loaded.begin(&options(1)).unwrap_err().message(), error.message());
    loaded.save(&path).unwrap();
    let mut again = Session::load(&model, &path).unwrap();
    assert_eq!(again.begin(&options(1)).unwrap_err().message(), error.message());
    for session in [&mut session, &mut loaded] {
        session.set_chat(&chat, None).unwrap();
    }
    assert_eq!(run(&mut loaded, &options(40)).text, run(&mut session, &options(40)).text);
    again.truncate(held).unwrap();
    assert_eq!(run(&mut again, &options(1)).tokens.len(), 1);

    // A prompt cannot be shorter than its beginning.
    let file = std::fs::read(&path).unwrap();
    std::fs::write(&path, rewritten(&file, b"06", &(held as u64 - 1).to_le_bytes())).unwrap();
    let error = Session::load(&model, &path).unwrap_err();
    assert!(error.kind() == ErrorKind::Format && error.message().contains("are not the beginning of"), "{error}");
    // As the version before wrote it: a state that can be cut back has no snapshots, of which it says less.
    std::fs::write(&path, rewritten(&file, b"05", &40u64.to_le_bytes())).unwrap();
    let error = Session::load(&model, &path).unwrap().begin(&options(1)).unwrap_err();
    assert!(error.message().contains("of its 40 tokens"), "{error}");
    // As the version before that wrote it, which kept no such mark.
    std::fs::write(&path, rewritten(&file, b"04", &[])).unwrap();
    let mut old = Session::load(&model, &path).unwrap();
    assert_eq!(old.position(), held);
    old.begin(&options(1)).unwrap();
    std::fs::write(&path, rewritten(&file, b"03", &[])).unwrap();
    assert_eq!(Session::load(&model, &path).unwrap_err().kind(), ErrorKind::Format);
}

#[test]
fn the_same_configuration_with_other_weights_is_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("decoders/qwen2_tied");
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut weights = std::fs::read(source.join("model.safetensors")).unwrap();
    let last = weights.len() - 2;
    weights[last] ^= 1; // the lowest bit of one weight of the final norm
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let (a, b) = (load(&source), load(folder.path()));
    let mut session = Session::new(&a, 0).unwrap();
    session.append_tokens(&[1, 2, 3], None).unwrap();
    let path = folder.path().join("session");
    session.save(&path).unwrap();
    assert!(Session::load(&a, &path).is_ok());
    assert_eq!(Session::load(&b, &path).unwrap_err().kind(), ErrorKind::Mismatch);
}

#[test]
fn cancel_during_a_prompt_keeps_the_finished_chunks() {
    let ids = tokens(600);
    let cancel = Cancel::new();
    cancel.trigger();
    let mut session = Session::new(model(), 0).unwrap();
    assert_eq!(session.append_tokens(&ids, Some(&cancel)).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(session.position(), 0);
    cancel.reset();

    // The progress of a stateless prompt says when each chunk is done; the flag is seen before the next.
    let prompt = model().tokenizer().unwrap().decode(&ids[..300], false).unwrap();
    let flagged = options(5).prefill_chunk(50).cancel(cancel.clone());
    let mut seen = Vec::new();
    let answer = model()
        .generate(
            &prompt,
            &flagged,
            Some(&mut |progress| {
                assert_eq!(progress.stage, Stage::Prefill);
                seen.push(progress.done);
                if seen.len() == 2 {
                    cancel.trigger();
                }
                ControlFlow::Continue(())
            }),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    assert_eq!((seen.as_slice(), answer.text.as_str()), ([50, 100].as_slice(), ""));
}

#[test]
fn cancel_during_an_answer_keeps_what_was_shown_and_the_session() {
    let cancel = Cancel::new();
    let mut session = Session::new(model(), 0).unwrap();
    session.append_tokens(&tokens(20), None).unwrap();
    let flagged = options(50).cancel(cancel.clone()).ignore_eos(true);
    let mut count = 0;
    let answer = session
        .generate(&flagged, None, &mut |_| {
            count += 1;
            if count == 4 {
                cancel.trigger();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((answer.finish_reason, answer.tokens.len()), (FinishReason::Cancelled, 4));
    assert_eq!(session.position(), 24);

    cancel.reset();
    let rest = run(&mut session, &options(16).ignore_eos(true));
    let mut whole = Session::new(model(), 0).unwrap();
    whole.append_tokens(&tokens(20), None).unwrap();
    let want = run(&mut whole, &options(20).ignore_eos(true));
    assert_eq!([answer.tokens, rest.tokens].concat(), want.tokens);

    cancel.trigger();
    session.begin(&flagged).unwrap();
    assert_eq!(session.next().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(session.end().unwrap().finish_reason, FinishReason::Cancelled);
}

#[test]
fn a_cancelled_append_loses_nothing_of_the_answer_before_it() {
    let mut session = Session::new(model(), 0).unwrap();
    session.append_tokens(&tokens(20), None).unwrap();
    run(&mut session, &sampled(5, 1));
    let held = session.tokens().to_vec();
    let scores = session.fork().unwrap().logits().unwrap().to_vec();
    let cancel = Cancel::new();
    cancel.trigger();
    assert_eq!(session.append_tokens(&tokens(3), Some(&cancel)).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(session.tokens(), held);
    assert_eq!(session.logits().unwrap(), scores);
}

#[test]
fn the_callback_and_the_limits_end_an_answer() {
    let mut session = Session::new(model(), 64).unwrap();
    session.append_tokens(&tokens(50), None).unwrap();
    let ignore = options(3).ignore_eos(true);
    assert_eq!(run(&mut session, &ignore).finish_reason, FinishReason::MaxTokens);
    let answer = session.generate(&options(0).ignore_eos(true), None, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((answer.finish_reason, answer.tokens.len()), (FinishReason::Callback, 1));
    let answer = run(&mut session, &options(0).ignore_eos(true));
    assert_eq!((answer.finish_reason, session.position()), (FinishReason::ContextFull, 64));
    let answer = run(&mut session, &ignore);
    assert_eq!((answer.finish_reason, answer.tokens.len()), (FinishReason::ContextFull, 0));
    let error = session.append_tokens(&[300], None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    assert!(error.message().contains("64"), "{error}");
}

#[test]
fn stop_texts_are_never_shown() {
    let mut session = Session::new(model(), 0).unwrap();
    session.set_chat(&question("What does `Vec::push` do?"), None).unwrap();
    let stopping = options(60).stop(["back of", "nowhere"]);
    let mut pieces = String::new();
    let answer = session
        .generate(&stopping, None, &mut |event| {
            pieces.push_str(&event.text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((answer.text.as_str(), answer.finish_reason), ("Appends an element to the ", FinishReason::StopText));
    assert_eq!(pieces, answer.text);
    let empty = options(1).stop([""]);
    assert_eq!(
        session.generate(&empty, None, &mut |_| ControlFlow::Continue(())).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn bad_calls_name_what_is_wrong_and_change_nothing() {
    let mut session = Session::new(model(), 0).unwrap();
    let error = session.append_tokens(&[1, 2, 4096], None).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("tokens[2]"), "{error}");
    assert_eq!(session.position(), 0);
    assert_eq!(session.logits().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.begin(&options(1)).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.truncate(1).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.append_tokens(&tokens(1025), None).unwrap_err().kind(), ErrorKind::ContextFull);
    assert_eq!(Session::new(model(), 1025).unwrap_err().kind(), ErrorKind::InvalidArgument);
    session.append_tokens(&tokens(5), None).unwrap();
    session.begin(&options(5)).unwrap();
    session.next().unwrap();
    assert_eq!(session.append_tokens(&[300], None).unwrap_err().kind(), ErrorKind::InvalidArgument, "an answer is in the making");
    session.end().unwrap();
    session.append_tokens(&[300], None).unwrap();
}

#[test]
fn without_a_tokenizer_token_calls_work_and_text_calls_say_what_is_missing() {
    let model = load(golden("decoders/qwen2_tied"));
    let mut session = Session::new(&model, 0).unwrap();
    let error = session.append("text", None).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.message().contains("tokenizer.json"), "{error}");
    session.append_tokens(&[57], None).unwrap();
    let answer = run(&mut session, &options(4).ignore_eos(true));
    assert_eq!((answer.text.as_str(), answer.tokens.as_slice()), ("", [136, 181, 181, 181].as_slice()));
}

#[test]
fn eight_threads_on_one_model_give_the_text_of_one() {
    let prompts: Vec<Vec<u32>> = (0..20).map(|i| tokens(10 + i * 3)).collect();
    let one = |ids: &[u32]| {
        let mut session = Session::new(model(), 0).unwrap();
        session.append_tokens(ids, None).unwrap();
        run(&mut session, &sampled(12, ids.len() as u64)).tokens
    };
    let want: Vec<_> = prompts.iter().map(|ids| one(ids)).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (ids, want) in prompts.iter().zip(&want) {
                    assert_eq!(&one(ids), want);
                }
            });
        }
    });
}

/// Answers of different lengths, samplings, prompts and adapters, two of which are cancelled and begun late.
fn answers(model: &Model, lora: &Lora) -> Vec<Session> {
    let begin = |i: usize| {
        let mut session = Session::new(model, 0).unwrap();
        session.append_tokens(&(0..3 + 5 * i as u32).map(|t| (t * 7 + i as u32) % 80).collect::<Vec<_>>(), None).unwrap();
        if i % 3 == 1 {
            session.set_adapters(&[(lora.clone(), 0.5)]).unwrap();
        }
        let mut options = sampled(6 + i, i as u64);
        options.adapters = (i % 4 == 2).then(|| vec![(lora.clone(), 1.0)]);
        session.begin(&options).unwrap();
        session
    };
    (0..6).map(begin).collect()
}

#[test]
fn answers_that_go_on_together_are_those_of_each_alone() {
    for device in devices() {
        let model = load_onto(&device, golden("decoders/qwen2_untied_old"));
        let lora = Lora::load(&model, golden("lora/qwen2_all7")).unwrap();
        let (mut together, mut alone) = (answers(&model, &lora), answers(&model, &lora));
        let mut tokens: Vec<Vec<TokenEvent>> = vec![Vec::new(); together.len()];
        loop {
            let next = Session::next_of(&mut together.iter_mut().collect::<Vec<_>>()).unwrap();
            let mut any = false;
            for (event, tokens) in next.into_iter().zip(&mut tokens) {
                any |= event.as_ref().unwrap().is_some();
                tokens.extend(event.unwrap());
            }
            if !any {
                break;
            }
        }
        for (i, (session, tokens)) in alone.iter_mut().zip(tokens).enumerate() {
            let want: Vec<TokenEvent> = std::iter::from_fn(|| session.next().unwrap()).collect();
            assert_eq!(want.len(), 6 + i);
            let same = |(a, b): (&TokenEvent, &TokenEvent)| a.token == b.token && (a.logprob - b.logprob).abs() < 1e-4;
            assert!(tokens.len() == want.len() && tokens.iter().zip(&want).all(same), "{}, {i}", device.name());
            // Bit for bit by our kernels.
            assert!(device.name() != "CPU" || tokens == want, "{i}");
            assert_eq!(together[i].end().unwrap().tokens, session.end().unwrap().tokens);
            assert_eq!(together[i].tokens(), session.tokens());
        }
    }
}

#[test]
fn what_is_wrong_with_one_answer_does_not_stop_the_others() {
    let (cancel, mut sessions) = (Cancel::new(), Vec::new());
    for i in 0..3 {
        let mut session = Session::new(model(), 0).unwrap();
        session.append_tokens(&tokens(9 + i), None).unwrap();
        if i < 2 {
            let mut options = sampled(5, 3);
            options.cancel = (i == 0).then(|| cancel.clone());
            session.begin(&options).unwrap();
        }
        sessions.push(session);
    }
    cancel.trigger();
    let next = Session::next_of(&mut sessions.iter_mut().collect::<Vec<_>>()).unwrap();
    assert_eq!(next[0].as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(next[1].as_ref().unwrap().is_some());
    assert_eq!(next[2].as_ref().unwrap_err().kind(), ErrorKind::InvalidArgument, "no answer was begun");

    let other = load(golden("decoders/qwen2_tied"));
    let mut stranger = Session::new(&other, 0).unwrap();
    let error = Session::next_of(&mut [&mut sessions[1], &mut stranger]).unwrap_err();
    assert!(error.kind() == ErrorKind::Mismatch && error.message().contains("sessions[1]"), "{error}");
    assert!(sessions[1].next().unwrap().is_some(), "it goes on");
    assert!(Session::next_of(&mut []).unwrap().is_empty());
}

/// The log-probability of a token by logits.
fn logprob(logits: &[f32], token: u32) -> f64 {
    let best = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - best).exp()).sum();
    f64::from(logits[token as usize] - best) - sum.ln()
}

#[test]
fn scores_are_the_log_probabilities_of_the_reference() {
    for entry in std::fs::read_dir(golden("decoders")).unwrap() {
        let path = entry.unwrap().path();
        let reference = Reference::open(&path.join("golden.safetensors"));
        let (ids, logits) = (reference.ids("prompt2.ids"), reference.floats("prompt2.logits"));
        for device in devices() {
            let options = LoadOptions::default().device(device).dtype(Dtype::F32).max_context(512);
            let model = Model::load(&path, &options, None).unwrap();
            for held in [1, 7, ids.len() - 1] {
                let mut session = Session::new(&model, 0).unwrap();
                session.append_tokens(&ids[..held], None).unwrap();
                let scores = session.score_tokens(&ids[held..], None).unwrap();
                assert_eq!(scores.len(), ids.len() - held);
                for (i, (score, row)) in scores.iter().zip(logits.chunks_exact(model.vocab_size()).skip(held - 1)).enumerate() {
                    let error = (f64::from(*score) - logprob(row, ids[held + i])).abs();
                    assert!(error < 1e-3, "{}, {held} held, token {i}: {error}", path.display());
                }
            }
        }
    }
}

#[test]
fn scoring_in_pieces_changes_no_bit_and_leaves_the_session_as_it_was() {
    let ids = tokens(700);
    let mut session = Session::new(model(), 0).unwrap();
    session.append_tokens(&ids[..30], None).unwrap();
    let (before, held) = (session.logits().unwrap().to_vec(), session.tokens().to_vec());
    let all = session.score_tokens(&ids[30..], None).unwrap();
    assert_eq!((session.logits().unwrap().to_vec(), session.tokens()), (before.clone(), held.as_slice()));
    assert_eq!(session.score_tokens(&ids[30..50], None).unwrap(), all[..20], "later tokens change nothing");
    assert!(session.score_tokens(&[], None).unwrap().is_empty());

    // What an answer says of its tokens is the same.
    let events: Vec<TokenEvent> = {
        let mut events = Vec::new();
        let mut fork = session.fork().unwrap();
        fork.generate(&sampled(12, 9), None, &mut |event| {
            events.push(event.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
        events
    };
    let chosen: Vec<u32> = events.iter().map(|event| event.token).collect();
    let scores = session.score_tokens(&chosen, None).unwrap();
    assert_eq!(scores, events.iter().map(|event| event.logprob).collect::<Vec<_>>());

    // A cancel, and what cannot be scored.
    let cancel = Cancel::new();
    cancel.trigger();
    assert_eq!(session.score_tokens(&ids, Some(&cancel)).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(session.score_tokens(&[1 << 30], None).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(session.score_tokens(&tokens(1000), None).unwrap_err().kind(), ErrorKind::ContextFull);
    assert_eq!(Session::new(model(), 0).unwrap().score_tokens(&[1], None).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!((session.logits().unwrap().to_vec(), session.tokens()), (before.clone(), held.as_slice()));
    session.begin(&options(3)).unwrap();
    assert_eq!(session.score_tokens(&[1], None).unwrap_err().kind(), ErrorKind::InvalidArgument, "an answer was begun");
}
