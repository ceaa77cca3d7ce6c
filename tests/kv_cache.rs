//! The KV cache in F16 and in Q8_0: near the logits of F32 for every family, the same bits in any chunks and company, exact in
//! session files, and as much smaller as it says.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{Reference, cosine, decoders, devices, golden, has_experts, json, looks_at_length, max_abs, median, shipped};
use metal_candle::{
    Device, DeviceKind, Dtype, EmbedOptions, ErrorKind, GenerateOptions, LoadOptions, Model, Session, TokenEvent, estimate_memory,
};

/// The largest error over the largest logit, in the mean of all prompts and of any: the models of the reference results are random, and
/// some have such large scores that a rounding of 2^-11 moves a weight by percents.
const F16: (f32, f32) = (1e-3, 6e-3);
/// The least cosine with the logits of F32, likewise.
const Q8_0: (f64, f64) = (0.999, 0.997);
/// Of a trained model, behind any token.
const TRAINED_F16: f32 = 2e-3;
const TRAINED_Q8_0: f64 = 0.999;
const TEXT: &str = "What does `Vec::push` do? It appends an element to the back of a collection. What does `Option::map` do? It \
    applies a function to the contained value, if there is one, and gives what the function returned. fn main() { let mut numbers = \
    Vec::new(); numbers.push(1); }";
const NARROW: [&str; 2] = ["f16", "q8_0"];

fn options(kv_cache: &str) -> LoadOptions {
    LoadOptions::default().kv_cache(kv_cache).max_context(512)
}

fn open(path: &Path, kv_cache: &str) -> Model {
    Model::load(path, &options(kv_cache), None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

fn begun(model: &Model, ids: &[u32], chunk: usize) -> Session {
    let mut session = Session::new(model, 0).unwrap();
    ids.chunks(chunk).for_each(|ids| session.append_tokens(ids, None).unwrap());
    session
}

fn logits(model: &Model, ids: &[u32], chunk: usize) -> Vec<f32> {
    begun(model, ids, chunk).logits().unwrap().to_vec()
}

/// The largest difference, of the largest value that is wanted.
fn relative(got: &[f32], want: &[f32]) -> f32 {
    max_abs(got, want) / want.iter().fold(0f32, |most, x| most.max(x.abs()))
}

/// The logits behind each token.
fn stepwise(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut session = Session::new(model, 0).unwrap();
    let next = |&id: &u32| {
        session.append_tokens(&[id], None).unwrap();
        session.logits().unwrap().to_vec()
    };
    ids.iter().map(next).collect()
}

fn answer(session: &mut Session, tokens: usize) -> Vec<u32> {
    let options = GenerateOptions::default().max_tokens(tokens).ignore_eos(true).temperature(1.2).seed(7);
    session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

#[test]
fn every_family_is_near_the_logits_of_f32_and_has_the_same_bits_in_any_chunks() {
    let (mut shapes, mut windows) = (std::collections::BTreeSet::new(), 0);
    let (mut errors, mut cosines, mut prompts) = (0f32, 0f64, 0);
    for path in decoders() {
        let reference = Reference::open(&path.join("golden.safetensors"));
        let config = json(&path.join("config.json"));
        let config = config.get("text_config").unwrap_or(&config);
        let number = |key: &str| config.get(key).and_then(|x| x.as_u64());
        let heads = number("num_attention_heads").unwrap();
        let dim = number("head_dim").unwrap_or_else(|| number("hidden_size").unwrap() / heads);
        shapes.insert((heads, number("num_key_value_heads").unwrap_or(heads), dim));
        windows += usize::from(number("sliding_window").is_some());
        let models = ["f32", "f16", "q8_0"].map(|kv_cache| open(&path, kv_cache));
        let (has_experts, mut tokens) = (has_experts(&path), [vec![], vec![]]);
        for prompt in 0..4 {
            let ids = reference.ids(&format!("prompt{prompt}.ids"));
            let [whole, half, bytes] = models.each_ref().map(|model| logits(model, &ids, ids.len()));
            let at = format!("{} prompt {prompt}", path.display());
            if has_experts {
                let [whole, half, bytes] = models.each_ref().map(|model| stepwise(model, &ids));
                for ((whole, half), bytes) in whole.iter().zip(&half).zip(&bytes) {
                    tokens[0].push(f64::from(relative(half, whole)));
                    tokens[1].push(cosine(bytes, whole));
                }
            } else {
                let error = relative(&half, &whole);
                let near = cosine(&bytes, &whole);
                assert!(error <= F16.1, "{at}: f16 is {error} from f32");
                assert!(near >= Q8_0.1, "{at}: q8_0 has the cosine {near} with f32");
                (errors, cosines) = (errors + error, cosines + near);
                prompts += 1;
            }
            assert!(half != whole && bytes != whole, "{at}: something is rounded");
            if !looks_at_length(&path) {
                for (model, want) in models[1..].iter().zip([&half, &bytes]) {
                    for chunk in [1, 7] {
                        assert_eq!(&logits(model, &ids, chunk), want, "{at}: in chunks of {chunk}");
                    }
                }
            }
        }
        if has_experts {
            let (error, near) = (median(tokens[0].clone()), median(tokens[1].clone()));
            let at = path.display();
            assert!(error <= f64::from(F16.0) && near >= Q8_0.0, "{at}: f16 is {error} from f32, q8_0 has the cosine {near}");
        }
    }
    let (error, near) = (errors / prompts as f32, cosines / f64::from(prompts));
    assert!(error <= F16.0 && near >= Q8_0.0, "f16 is {error} from f32, q8_0 has the cosine {near}, in the mean");
    let groups = |group: fn((u64, u64)) -> bool| shapes.iter().any(|&(heads, kv, _)| group((heads, kv)));
    assert!(groups(|(heads, kv)| heads == kv) && groups(|(heads, kv)| kv > 1 && kv < heads) && groups(|(_, kv)| kv == 1));
    assert!(windows >= 10 && [16, 20, 24, 32, 40].iter().all(|&dim| shapes.iter().any(|&(.., of)| of == dim)), "{shapes:?}");
}

#[test]
fn a_trained_model_is_nearer_at_every_position() {
    let ids = open(&shipped("tiny-coder"), "f32").tokenizer().unwrap().encode(TEXT, true).unwrap();
    let all = ["f32", "f16", "q8_0"].map(|kv_cache| stepwise(&open(&shipped("tiny-coder"), kv_cache), &ids));
    let [whole, half, bytes] = &all;
    assert!(whole.len() > 60 && half != whole && bytes != whole);
    for (i, want) in whole.iter().enumerate() {
        let (error, near) = (relative(&half[i], want), cosine(&bytes[i], want));
        assert!(
            error <= TRAINED_F16 && near >= TRAINED_Q8_0,
            "position {i}: f16 is {error} from f32, q8_0 has the cosine {near}"
        );
    }
}

#[test]
fn forks_and_what_was_truncated_go_on_as_if_nothing_else_had_been() {
    let ids: Vec<u32> = (0..120).map(|i| 300 + i * 37 % 3000).collect();
    for kv_cache in NARROW {
        let model = open(&shipped("tiny-coder"), kv_cache);
        let mut session = begun(&model, &ids[..90], 50);
        let mut fork = session.fork().unwrap();
        let want = answer(&mut session, 30);
        assert_eq!(answer(&mut fork, 30), want, "{kv_cache}");
        session.truncate(70).unwrap();
        session.append_tokens(&ids[70..], None).unwrap();
        assert_eq!(session.logits().unwrap(), logits(&model, &ids, ids.len()), "{kv_cache}");
    }
}

#[test]
fn sessions_that_go_on_together_have_the_bits_that_each_has_alone() {
    for name in ["decoders/mistral_window", "decoders/gemma3_text_old", "decoders/llama_plain_old"] {
        for kv_cache in NARROW {
            let model = open(&golden(name), kv_cache);
            let begin = |i: usize| {
                let mut session = begun(&model, &[5, 9, 70, 11, 3, 8, 21, 2][..2 + i], 8);
                let options = GenerateOptions::default().max_tokens(20 + i).ignore_eos(true);
                session.begin(&options).unwrap();
                session
            };
            let (mut together, mut alone): (Vec<_>, Vec<_>) = (0..5).map(|i| (begin(i), begin(i))).unzip();
            let mut events: Vec<Vec<TokenEvent>> = vec![Vec::new(); together.len()];
            loop {
                let next = Session::next_of(&mut together.iter_mut().collect::<Vec<_>>()).unwrap();
                let next: Vec<Option<TokenEvent>> = next.into_iter().map(|event| event.unwrap()).collect();
                if next.iter().all(Option::is_none) {
                    break;
                }
                events.iter_mut().zip(next).for_each(|(events, event)| events.extend(event));
            }
            for (i, session) in alone.iter_mut().enumerate() {
                let want: Vec<TokenEvent> = std::iter::from_fn(|| session.next().unwrap()).collect();
                assert_eq!((want.len(), &events[i]), (20 + i, &want), "{name} {kv_cache}");
            }
        }
    }
}

#[test]
fn a_saved_session_goes_on_to_the_bit_and_is_for_its_own_type() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..100).map(|i| 300 + i * 37 % 3000).collect();
    // Of 8 layers 2 heads of 64 keys and 64 values, of 104 evaluated tokens.
    let bytes = |row: u64| 104 * 8 * 2 * 2 * row;
    let kinds = [("f32", bytes(256)), ("f16", bytes(128)), ("q8_0", bytes(68))];
    let models = kinds.map(|(kv_cache, _)| open(&shipped("tiny-coder"), kv_cache));
    let paths = kinds.map(|(kv_cache, _)| folder.path().join(kv_cache));
    for ((model, path), (kv_cache, bytes)) in models.iter().zip(&paths).zip(kinds) {
        let mut session = begun(model, &ids, 100);
        answer(&mut session, 5); // the last token is held and not yet evaluated
        session.save(path).unwrap();
        let size = std::fs::metadata(path).unwrap().len();
        // Magic, nine fields and a checksum, two for each layer, and 105 ids.
        assert_eq!(size, bytes + 8 + 9 * 8 + 8 + 8 * 16 + 105 * 4, "{kv_cache}");
        let mut loaded = Session::load(model, path).unwrap();
        assert_eq!(loaded.tokens(), session.tokens());
        assert_eq!(loaded.logits().unwrap(), session.logits().unwrap(), "{kv_cache}");
        assert_eq!(answer(&mut loaded, 20), answer(&mut session, 20), "{kv_cache}");
    }
    for ((model, path), (i, j)) in
        models.iter().flat_map(|m| paths.iter().map(move |p| (m, p))).zip((0..9).map(|n| (n / 3, n % 3)))
    {
        match Session::load(model, path) {
            Ok(_) => assert_eq!(i, j),
            Err(error) => {
                let named = [kinds[i].0, kinds[j].0].iter().all(|name| error.message().contains(name));
                assert!(i != j && error.kind() == ErrorKind::Mismatch && named, "{error}");
            }
        }
    }
    // Neither a kind that there is not, nor a length that is not the kind's.
    let whole = std::fs::read(&paths[2]).unwrap();
    for (at, kind) in [(80, ErrorKind::Mismatch), (88, ErrorKind::Mismatch), (40, ErrorKind::Format), (300, ErrorKind::Format)] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&paths[2], &damaged).unwrap();
        assert_eq!(Session::load(&models[2], &paths[2]).unwrap_err().kind(), kind, "byte {at}");
    }
}

#[test]
fn the_estimate_counts_what_the_type_takes() {
    let of = |kv_cache: Option<&str>| {
        let mut options = LoadOptions::default().device(Device::new(DeviceKind::Cpu, 0).unwrap());
        options.kv_cache = kv_cache.map(str::to_string);
        estimate_memory(shipped("tiny-coder"), &options).unwrap()
    };
    // 1024 positions of 8 layers, 2 heads of 64 keys and 64 values; of Q8_0 34 bytes for 32.
    let values = 1024 * 8 * 2 * 2 * 64;
    assert_eq!(of(None), of(Some("f32")));
    assert_eq!(of(Some("f32")) - of(Some("f16")), values * 2);
    assert_eq!(of(Some("f32")) - of(Some("q8_0")), values * 4 - values * 34 / 32);
}

#[test]
fn embeddings_keep_nothing_and_do_not_change() {
    let embed = |kv_cache| {
        let texts = ["fn main() {}", "append an element"];
        open(&shipped("tiny-coder"), kv_cache).embed(&texts, &EmbedOptions::default(), None).unwrap()
    };
    let want = embed("f32");
    for kv_cache in NARROW {
        assert_eq!(format!("{:?}", embed(kv_cache)), format!("{want:?}"), "{kv_cache}");
    }
    assert!(Model::load(shipped("tiny-embed"), &LoadOptions::default().kv_cache("f32"), None).is_ok());
    for kv_cache in NARROW {
        let options = LoadOptions::default().kv_cache(kv_cache);
        let loaded = Model::load(shipped("tiny-embed"), &options, None).map(drop);
        for error in [loaded.unwrap_err(), estimate_memory(shipped("tiny-embed"), &options).unwrap_err()] {
            let named = ["kv_cache", kv_cache, "bert"].iter().all(|name| error.message().contains(name));
            assert!(error.kind() == ErrorKind::Unsupported && named, "{error}");
        }
    }
}

#[test]
fn an_unknown_type_is_refused_by_name() {
    for kv_cache in ["F16", "q4_0", ""] {
        let options = LoadOptions::default().kv_cache(kv_cache);
        let error = Model::load(golden("decoders/qwen2_tied"), &options, None).err().unwrap();
        let message = format!("kv_cache: {kv_cache:?} is not supported (f32, f16, q8_0)");
        assert_eq!((error.kind(), error.message()), (ErrorKind::Unsupported, message.as_str()));
    }
}

#[test]
fn tensors_keep_f16_and_refuse_blocks() {
    let path = golden("decoders/mistral_window");
    let ids = Reference::open(&path.join("golden.safetensors")).ids("prompt3.ids");
    for device in devices().into_iter().filter(|device| device.name() != "CPU") {
        // As stored they compute in BF16, of which F16 has every value.
        let on = |kv_cache: &str| options(kv_cache).device(device.clone()).dtype(Dtype::F32);
        let load = |kv_cache| Model::load(&path, &on(kv_cache), None);
        let (whole, half) = (load("f32").unwrap(), load("f16").unwrap());
        let (want, got) = (logits(&whole, &ids, ids.len()), logits(&half, &ids, ids.len()));
        assert!(got != want && relative(&got, &want) <= F16.1, "{}", relative(&got, &want));
        // The kernels keep the same.
        assert!(max_abs(&got, &logits(&open(&path, "f16"), &ids, ids.len())) < 5e-4);
        assert!(max_abs(&got, &logits(&half, &ids, 7)) < 5e-4);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("session");
        let session = begun(&half, &ids, 20);
        session.save(&file).unwrap();
        let (again, loaded) = (folder.path().join("again"), Session::load(&half, &file).unwrap());
        loaded.save(&again).unwrap();
        assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap());
        assert_eq!(Session::load(&whole, &file).unwrap_err().kind(), ErrorKind::Mismatch);

        let error = load("q8_0").err().unwrap();
        let named = ["kv_cache", "q8_0", "CPU", device.name()].iter().all(|name| error.message().contains(name));
        assert!(error.kind() == ErrorKind::Unsupported && named, "{error}");
    }
}
