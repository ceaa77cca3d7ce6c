//! The gate of a device: what meets it closed says so, what runs is awaited, and everything goes on to the result that it would have had.

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{devices, golden, load_onto, shipped};
use metal_candle::{
    Device, DeviceKind, EmbedOptions, Error, ErrorKind, GenerateOptions, Generation, LoadOptions, Lora, LoraConfig, LoraTrainer,
    Model, Progress, Session, TrainOptions,
};

const LONG: Duration = Duration::from_secs(600);

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 300 + i * 37 % 3000).collect()
}

/// With a state that a second beginning would not have: of random numbers, and of characters and stop texts that are not yet whole.
fn options() -> GenerateOptions {
    GenerateOptions::default().max_tokens(40).ignore_eos(true).temperature(1.2).seed(11).stop(["never in it"])
}

fn session(model: &Model) -> Session {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&tokens(30), None).unwrap();
    session
}

fn uninterrupted(model: &Model) -> Generation {
    session(model).generate(&options(), None, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn is_suspended(error: &Error) -> bool {
    error.kind() == ErrorKind::Suspended
}

/// Closes the gate from another thread, as an app's main thread does.
fn suspend_elsewhere(device: &Device) {
    std::thread::scope(|scope| scope.spawn(|| device.suspend(LONG)).join().unwrap()).unwrap();
}

type Call<'a> = &'a dyn Fn() -> Result<(), Error>;

#[test]
fn all_work_says_that_the_device_is_suspended_and_runs_once_it_is_not() {
    for device in devices() {
        let (coder, embed) = (load_onto(&device, shipped("tiny-coder")), load_onto(&device, shipped("tiny-embed")));
        let path = golden("lora/qwen2_all7");
        let base = load_onto(&device, golden("decoders/qwen2_untied_old"));
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let lora = Lora::load(&base, &path).unwrap();
        session(&coder).save(&first).unwrap();
        let held = session(&coder);
        let onto = LoadOptions::default().device(device.clone());
        let load = || Model::load(shipped("tiny-embed"), &onto, None).map(drop);
        let append = || held.fork()?.append_tokens(&tokens(3), None);
        let trainer = LoraTrainer::new(&base, &LoraConfig::default(), &TrainOptions::default()).unwrap();
        let [checkpoint, new] = ["checkpoint", "new"].map(|name| folder.path().join(name));
        trainer.save(&checkpoint).unwrap();
        let calls: [(&str, Call<'_>); 13] = [
            ("load", &load),
            ("generate", &|| coder.generate("fn", &options(), None, &mut |_| ControlFlow::Continue(())).map(drop)),
            ("fork and append", &append),
            ("save a session", &|| held.save(&second)),
            ("load a session", &|| Session::load(&coder, &first).map(drop)),
            ("embed", &|| embed.embed(&["a", "b"], &EmbedOptions::default(), None).map(drop)),
            ("load an adapter", &|| Lora::load(&base, &path).map(drop)),
            ("attach an adapter", &|| Session::new(&base, 0)?.set_adapters(&[(lora.clone(), 1.0)])),
            ("merge an adapter", &|| base.merge(&lora, 1.0).map(drop)),
            ("begin a training", &|| LoraTrainer::new(&base, &LoraConfig::default(), &TrainOptions::default()).map(drop)),
            ("resume a training", &|| LoraTrainer::resume(&base, &checkpoint, None).map(drop)),
            ("train", &|| trainer.eval_step(&[3, 4, 5], None, &[0, 3]).map(drop)),
            ("read what was trained", &|| trainer.adapter().map(drop)),
        ];
        suspend_elsewhere(&device);
        for (name, call) in calls {
            assert!(call().is_err_and(|error| is_suspended(&error)), "{name}, {}", device.name());
        }
        assert!(!second.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 2, "nothing was written");
        // A training is saved all the same, unless its values are on the device.
        match trainer.save(&new) {
            Ok(()) => assert_eq!(device.name(), "CPU"),
            Err(error) => assert!(is_suspended(&error) && device.name() != "CPU"),
        }
        device.resume();
        for (name, call) in calls {
            assert!(call().is_ok(), "{name}, {}", device.name());
        }
    }
}

#[test]
fn scores_of_a_session_are_its_own_while_an_answer_with_an_adapter_is_paused() {
    for device in devices() {
        let model = load_onto(&device, golden("decoders/qwen2_untied_old"));
        let lora = Lora::load(&model, golden("lora/qwen2_all7")).unwrap();
        let mut options = options().max_tokens(6).adapters([(lora, 1.0)]);
        options.stop.clear();
        let mut session = Session::new(&model, 0).unwrap();
        session.append_tokens(&[5, 9, 40, 41, 7], None).unwrap();
        let want = session.fork().unwrap().generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens;
        let mut count = 0;
        let error = session.generate(&options, None, &mut |_| {
            count += 1;
            if count == 3 {
                suspend_elsewhere(&device);
            }
            ControlFlow::Continue(())
        });
        assert!(is_suspended(&error.unwrap_err()));
        device.resume();
        let mut plain = Session::new(&model, 0).unwrap();
        plain.append_tokens(&[&[5, 9, 40, 41, 7], &want[..3]].concat(), None).unwrap();
        assert_eq!(session.logits().unwrap(), plain.logits().unwrap());
        while session.next().unwrap().is_some() {}
        assert_eq!(session.end().unwrap().tokens, want);
    }
}

#[test]
fn an_answer_that_is_pulled_pauses_between_two_tokens() {
    for device in devices() {
        let model = load_onto(&device, shipped("tiny-coder"));
        let mut session = session(&model);
        session.begin(&options()).unwrap();
        let mut events = Vec::new();
        for pause in [1, 2, 20] {
            while events.len() < pause {
                events.push(session.next().unwrap().unwrap());
            }
            suspend_elsewhere(&device);
            for _ in 0..2 {
                assert!(is_suspended(&session.next().unwrap_err()));
            }
            device.resume();
        }
        while let Some(event) = session.next().unwrap() {
            events.push(event);
        }
        let (answer, want) = (session.end().unwrap(), uninterrupted(&model));
        assert_eq!((answer.text, &answer.tokens, answer.finish_reason), (want.text, &want.tokens, want.finish_reason));
        assert!(events.iter().map(|event| event.token).eq(want.tokens), "{}", device.name());
    }
}

#[test]
fn an_answer_that_is_pushed_pauses_between_two_tokens_and_is_pulled_to_its_end() {
    for device in devices() {
        let model = load_onto(&device, shipped("tiny-coder"));
        let want = uninterrupted(&model);
        let mut session = session(&model);
        let mut text = String::new();
        let error = session
            .generate(&options(), None, &mut |event| {
                text.push_str(&event.text);
                if event.index == 9 {
                    suspend_elsewhere(&device);
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert!(is_suspended(&error) && session.tokens()[30..] == want.tokens[..10]);
        device.resume();
        while let Some(event) = session.next().unwrap() {
            text.push_str(&event.text);
        }
        let answer = session.end().unwrap();
        assert_eq!((&text, &answer.text, &answer.tokens), (&want.text, &want.text, &want.tokens));
    }
}

#[test]
fn an_answer_that_was_pushed_and_failed_is_in_nobodys_way() {
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let model = load_onto(&device, shipped("tiny-coder"));
    let interrupted = || {
        let mut session = session(&model);
        let suspend = &mut |_: &_| {
            suspend_elsewhere(&device);
            ControlFlow::Continue(())
        };
        assert!(is_suspended(&session.generate(&options(), None, suspend).unwrap_err()));
        device.resume();
        assert_eq!(session.position(), 31);
        session
    };
    assert_eq!(interrupted().end().unwrap().tokens.len(), 1);
    interrupted().append_tokens(&tokens(2), None).unwrap();
    let mut session = interrupted();
    session.truncate(30).unwrap();
    assert_eq!(session.next().unwrap_err().kind(), ErrorKind::InvalidArgument, "it was given up");
    let again = session.generate(&options(), None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(again.tokens, uninterrupted(&model).tokens);
}

#[test]
fn a_prompt_pauses_between_two_chunks() {
    for device in devices() {
        let model = load_onto(&device, golden("decoders/qwen2_untied_old"));
        // Adapters of the answer's own make it evaluate the prompt itself.
        let lora = Lora::load(&model, golden("lora/qwen2_all7")).unwrap();
        let mut options = options().prefill_chunk(10).adapters([(lora, 1.0)]);
        options.stop.clear();
        let session = || {
            let mut session = Session::new(&model, 0).unwrap();
            session.append_tokens(&(3..33).collect::<Vec<u32>>(), None).unwrap();
            session
        };
        let want = session().generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens;
        let (mut session, mut told) = (session(), Vec::new());
        let mut progress = |progress: Progress| {
            told.push(progress.done);
            suspend_elsewhere(&device);
            ControlFlow::Continue(())
        };
        let result = session.generate(&options, Some(&mut progress), &mut |_| ControlFlow::Continue(()));
        assert!(is_suspended(&result.unwrap_err()) && told == [10]);
        device.resume();
        while session.next().unwrap().is_some() {}
        assert_eq!(session.end().unwrap().tokens, want, "{}", device.name());
    }
}

#[test]
fn texts_that_were_interrupted_have_the_same_vectors_when_they_are_embedded_again() {
    for device in devices() {
        let model = load_onto(&device, shipped("tiny-embed"));
        // More batches than go through the network between two looks at progress.
        let texts = vec!["a text"; 20 * std::thread::available_parallelism().unwrap().get()];
        let single = EmbedOptions::default().batch_size(1);
        let want = model.embed(&texts, &single, None).unwrap();
        let mut told = Vec::new();
        let mut progress = |progress: Progress| {
            told.push(progress.done);
            suspend_elsewhere(&device);
            ControlFlow::Continue(())
        };
        assert!(is_suspended(&model.embed(&texts, &single, Some(&mut progress)).unwrap_err()));
        assert!(told.len() == 1 && told[0] < texts.len() as u64, "{told:?}");
        device.resume();
        assert_eq!(model.embed(&texts, &single, None).unwrap(), want, "{}", device.name());
    }
}

#[test]
fn a_suspension_waits_for_work_under_way_and_a_file_is_read_no_further() {
    for device in devices() {
        let held = session(&load_onto(&device, shipped("tiny-coder")));
        let onto = LoadOptions::default().device(device.clone());
        let left = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut suspension = None;
            let mut progress = |_: Progress| {
                if suspension.is_none() {
                    suspension = Some(scope.spawn(|| device.suspend(LONG).map(|()| left.load(Ordering::SeqCst))));
                    while held.fork().is_ok() {
                        std::thread::yield_now();
                    }
                }
                left.store(true, Ordering::SeqCst);
                ControlFlow::Continue(())
            };
            let result = Model::load(shipped("tiny-coder"), &onto, Some(&mut progress));
            assert!(is_suspended(&result.err().unwrap()));
            assert!(suspension.unwrap().join().unwrap().unwrap(), "it ended before the work did");
        });
    }
}

#[test]
fn a_gate_that_opens_and_closes_all_the_time_changes_no_answer() {
    for device in devices() {
        let model = load_onto(&device, shipped("tiny-coder"));
        let want = uninterrupted(&model).tokens;
        let sessions = [session(&model), session(&model)].map(|mut session| {
            session.begin(&options()).unwrap();
            session
        });
        let (made, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    device.suspend(LONG).unwrap();
                    let before = made.load(Ordering::Relaxed);
                    device.resume();
                    while made.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                }
            });
            let answer = |mut session: Session| {
                while retried(|| session.next()).is_some() {
                    made.fetch_add(1, Ordering::Relaxed);
                }
                session.end().unwrap().tokens
            };
            let answers = sessions.map(|session| scope.spawn(move || answer(session))).map(|answer| answer.join().unwrap());
            done.store(true, Ordering::Relaxed);
            assert!(answers.iter().all(|answer| *answer == want), "{}", device.name());
        });
    }
}

fn retried<R>(mut call: impl FnMut() -> Result<R, Error>) -> R {
    loop {
        match call() {
            Err(error) if is_suspended(&error) => std::thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}
