//! The GPU of this machine against its CPU: every family, encoder and adapter of the reference results, in each type that arithmetic
//! may have there. Ignored, as few machines have one: `cargo test --features cuda --test gpu -- --ignored --nocapture`, on Apple
//! systems without the feature.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Reference, cosine, golden, has_experts, json, max_abs, median, shipped};
use metal_candle::{
    Capability, Chat, Device, DeviceKind, Dtype, EmbedOptions, ErrorKind, GenerateOptions, LoadOptions, Lora, LoraConfig,
    LoraTrainer, Model, Prompt, Session, TrainOptions,
};

/// Both compute in F32, in another order. The reduced precision that GPUs offer for it would be seen.
const F32_TOLERANCE: f32 = 2e-3;
/// The least cosine of both results where arithmetic has 16 bits on the GPU: the models are random, with large weights.
const F16_COSINE: f64 = 0.999;
const BF16_COSINE: f64 = 0.97;
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

fn gpu() -> Device {
    let device = Device::new(DeviceKind::Auto, 0).unwrap();
    assert_ne!(device.kind(), DeviceKind::Cpu, "these tests need a GPU, and a build that knows it");
    device
}

fn cpu() -> Device {
    Device::new(DeviceKind::Cpu, 0).unwrap()
}

fn open(path: &Path, device: &Device, dtype: Option<Dtype>, max_context: Option<usize>) -> Model {
    let mut options = LoadOptions::default().device(device.clone());
    options.dtype = dtype;
    options.max_context = max_context;
    Model::load(path, &options, None).unwrap_or_else(|e| panic!("{}: {}", path.display(), e.details()))
}

fn models(folders: &[&str]) -> Vec<PathBuf> {
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(golden(folder)).unwrap());
    let found = entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("golden.json").exists());
    let mut found: Vec<PathBuf> = found.collect();
    found.sort();
    assert!(found.len() >= 25, "the reference results are there");
    found
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Many comparisons.
#[derive(Default)]
struct Comparisons {
    /// The largest error.
    error: f32,
    /// Of each; NaN is the worst.
    cosines: Vec<f64>,
    /// Whether the median is what counts, and not the worst: of rounded numbers, where experts are chosen by them.
    has_experts: bool,
}

impl Comparisons {
    fn of(path: &Path) -> Self {
        Self { has_experts: path.join("config.json").exists() && has_experts(path), ..Self::default() }
    }

    fn add(&mut self, got: &[f32], want: &[f32]) {
        self.error = self.error.max(max_abs(got, want));
        let cosine = cosine(got, want);
        self.cosines.push(if cosine.is_nan() { f64::NEG_INFINITY } else { cosine });
    }

    fn add_all(&mut self, got: &[Vec<f32>], want: &[Vec<f32>]) {
        got.iter().zip(want).for_each(|(got, want)| self.add(got, want));
    }

    fn cosine(&self) -> f64 {
        if self.has_experts { median(self.cosines.clone()) } else { self.cosines.iter().copied().fold(1.0, f64::min) }
    }

    fn fails(&self, dtype: Dtype) -> bool {
        let fine = match dtype {
            Dtype::F32 => self.error <= F32_TOLERANCE,
            Dtype::F16 => self.error.is_finite() && self.cosine() >= F16_COSINE,
            Dtype::BF16 => self.error.is_finite() && self.cosine() >= BF16_COSINE,
        };
        !fine
    }
}

/// One line for each model, and all that fail at the end.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn line(&mut self, name: &str, dtype: Dtype, what: &str, found: &Comparisons) {
        let line = format!("{name:32} {dtype:?} {what:12} max {:.2e} cosine {:.6}", found.error, found.cosine());
        println!("{line}");
        if found.fails(dtype) {
            self.0.push(line);
        }
    }

    fn finish(self) {
        assert!(self.0.is_empty(), "{} differ too much:\n{}", self.0.len(), self.0.join("\n"));
    }
}

fn logits(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    session.append_tokens(ids, None).unwrap();
    session.logits().unwrap().to_vec()
}

/// The logits after the whole prompt.
fn at_once(model: &Model, ids: &[u32]) -> Vec<f32> {
    logits(&mut Session::new(model, 0).unwrap(), ids)
}

/// The logits after a first part in chunks, and after each of the last tokens.
fn in_parts(model: &Model, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut session = Session::new(model, 0).unwrap();
    let (first, steps) = ids.split_at(ids.len().saturating_sub(5));
    for part in first.chunks(chunk) {
        session.append_tokens(part, None).unwrap();
    }
    steps.chunks(1).map(|id| logits(&mut session, id)).collect()
}

fn answer(session: &mut Session, max_tokens: usize) -> Vec<u32> {
    let options = GenerateOptions::default().max_tokens(max_tokens).ignore_eos(true).temperature(0.0);
    session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

#[test]
#[ignore = "needs a GPU"]
fn decoders_give_the_scores_of_the_cpu() {
    let (gpu, cpu, mut table) = (gpu(), cpu(), Table::default());
    for path in models(&["decoders", "families"]) {
        let reference = Reference::open(&path.join("golden.safetensors"));
        for dtype in DTYPES {
            let [model, want] = [&gpu, &cpu].map(|device| open(&path, device, Some(dtype), Some(512)));
            let (mut whole, mut parts) = (Comparisons::of(&path), Comparisons::of(&path));
            for prompt in 0..4 {
                let ids = reference.ids(&format!("prompt{prompt}.ids"));
                whole.add(&at_once(&model, &ids), &at_once(&want, &ids));
                parts.add_all(&in_parts(&model, &ids, 7), &in_parts(&want, &ids, 7));
                if dtype == Dtype::F32 {
                    let greedy = [&model, &want].map(|model| {
                        let mut session = Session::new(model, 0).unwrap();
                        session.append_tokens(&ids, None).unwrap();
                        answer(&mut session, 24)
                    });
                    assert_eq!(greedy[0], greedy[1], "{} prompt {prompt}", name(&path));
                }
            }
            table.line(&name(&path), dtype, "whole", &whole);
            table.line(&name(&path), dtype, "parts", &parts);
        }
    }
    table.finish();
}

/// Beyond one prefill step, and beyond the room that a cache has at first.
#[test]
#[ignore = "needs a GPU"]
fn long_prompts_give_the_scores_of_the_cpu() {
    let (gpu, cpu, mut table) = (gpu(), cpu(), Table::default());
    for path in models(&["decoders", "families"]) {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let [model, want] = [&gpu, &cpu].map(|device| open(&path, device, Some(dtype), Some(1024)));
            let vocabulary = model.vocab_size().min(199) as u32;
            let ids: Vec<u32> = (0..600u32).map(|i| (i * i + 37 * i + 11) % vocabulary).collect();
            let (mut whole, mut parts) = (Comparisons::of(&path), Comparisons::of(&path));
            whole.add(&at_once(&model, &ids), &at_once(&want, &ids));
            parts.add_all(&in_parts(&model, &ids[..260], 100), &in_parts(&want, &ids[..260], 100));
            table.line(&name(&path), dtype, "long", &whole);
            table.line(&name(&path), dtype, "long parts", &parts);
        }
    }
    table.finish();
}

/// How many weights a model keeps as numbers, and as codes.
fn kept(model: &Model) -> (u64, u64) {
    let backend: serde_json::Value = serde_json::from_str(&model.backend_json()).unwrap();
    let weights = backend["weights"].as_object().unwrap();
    weights.iter().fold((0, 0), |(numbers, codes), (format, count)| {
        let count = count.as_u64().unwrap();
        if ["F32", "F16", "BF16"].contains(&format.as_str()) { (numbers + count, codes) } else { (numbers, codes + count) }
    })
}

/// Files that are quantised, and models that are quantised while they are loaded: on a GPU by the kernels' formats, whose scales and mins
/// are F16, against exact arithmetic on the CPU.
#[test]
#[ignore = "needs a GPU"]
fn quantised_models_give_the_scores_of_the_cpu() {
    let (gpu, cpu) = (gpu(), cpu());
    let load = |path: &Path, device: &Device, quantization: Option<&str>, dtype| {
        let mut options = LoadOptions::default().device(device.clone()).exact(true);
        (options.quantization, options.dtype) = (quantization.map(str::to_owned), dtype);
        Model::load(path, &options, None)
    };
    let mut cases: Vec<(PathBuf, Option<&str>)> = Vec::new();
    let files = |folder: &str| std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path());
    let is_model =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf") || path.join("config.json").exists();
    cases.extend(files("gguf").chain(files("quantized")).filter(is_model).map(|path| (path, None)));
    for (i, path) in models(&["decoders", "families"]).into_iter().enumerate() {
        cases.push((path, Some(["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "mlx4"][i % 7])));
    }
    cases.extend(["q8_0", "q4_k_m", "mlx4"].map(|mix| (shipped("tiny-coder"), Some(mix))));
    let (mut compared, mut wrong) = (0, Vec::new());
    for (path, quantization) in cases {
        // Numbers stay what they are on the CPU, and become F32 on the GPU.
        let (model, want) =
            (load(&path, &gpu, quantization, Some(Dtype::F32)).unwrap(), load(&path, &cpu, quantization, None).unwrap());
        // Where a GPU widens what the CPU does not, the two are not one model.
        if kept(&model) != kept(&want) || kept(&model).1 == 0 || !want.supports(Capability::Generate) {
            continue;
        }
        let vocabulary = want.vocab_size() as u32;
        let ids: Vec<u32> = (0..40u32).map(|i| (i * i + 37 * i + 11) % vocabulary).collect();
        let (mut got_rows, mut want_rows) = (vec![at_once(&model, &ids)], vec![at_once(&want, &ids)]);
        got_rows.extend(in_parts(&model, &ids, 7));
        want_rows.extend(in_parts(&want, &ids, 7));
        let largest = want_rows.iter().flatten().fold(1f32, |largest, x| largest.max(x.abs()));
        let error = got_rows.iter().zip(&want_rows).map(|(got, want)| max_abs(got, want)).fold(0.0, f32::max) / largest;
        // The greedy token is the same, but where two are nearer than the error.
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let others =
            want_rows.iter().zip(&got_rows).filter(|(want, got)| want[best(want)] - want[best(got)] > 5e-3 * largest).count();
        let line = format!("{:32} {:8} of the largest {error:.1e}", name(&path), quantization.unwrap_or("stored"));
        println!("{line} {}", model.backend_json());
        compared += 1;
        if error.is_nan() || error > 5e-3 || others > 0 {
            wrong.push(line.clone());
        }
        // By 16 bits: the codes are the same, what is computed with is not.
        if compared % 4 == 0 {
            let half = load(&path, &gpu, quantization, Some(Dtype::BF16)).unwrap();
            let found = cosine(&at_once(&half, &ids), &want_rows[0]);
            assert!(found >= BF16_COSINE || (path.is_dir() && has_experts(&path)), "{line} in BF16: cosine {found}");
        }
    }
    assert!(compared >= 30 && wrong.is_empty(), "{compared} compared, wrong:\n{}", wrong.join("\n"));
}

/// Several sessions at once, with adapters and without, by the same kernels as one.
#[test]
#[ignore = "needs a GPU"]
fn sessions_that_go_on_together_answer_as_alone() {
    let gpu = gpu();
    for quantization in [None, Some("q8_0".to_string())] {
        let mut options = LoadOptions::default().device(gpu.clone()).dtype(Dtype::F32);
        options.quantization = quantization;
        let model = Model::load(shipped("tiny-coder"), &options, None).unwrap();
        let prompts: Vec<Vec<u32>> =
            (0..7u32).map(|p| (0..3 + p * 9).map(|i| 300 + (i * 37 + p * 11) % 3000).collect()).collect();
        let options = GenerateOptions::default().max_tokens(24).ignore_eos(true).temperature(0.0);
        let mut sessions: Vec<Session> = prompts
            .iter()
            .map(|ids| {
                let mut session = Session::new(&model, 0).unwrap();
                session.append_tokens(ids, None).unwrap();
                session.begin(&options).unwrap();
                session
            })
            .collect();
        for _ in 0..24 {
            let mut all: Vec<&mut Session> = sessions.iter_mut().collect();
            Session::next_of(&mut all).unwrap().into_iter().for_each(|event| assert!(event.unwrap().is_some()));
        }
        for (session, ids) in sessions.iter_mut().zip(&prompts) {
            let mut alone = Session::new(&model, 0).unwrap();
            alone.append_tokens(ids, None).unwrap();
            assert_eq!(session.end().unwrap().tokens, answer(&mut alone, 24));
        }
    }
}

/// Numbers of a fixed generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// One session on the GPU, and the same on the CPU.
struct Both {
    gpu: Session,
    cpu: Session,
    /// Whether they hold tokens.
    is_begun: bool,
}

fn begun(sessions: &mut [Both]) -> impl Iterator<Item = &mut Both> {
    sessions.iter_mut().filter(|both| both.is_begun)
}

impl Both {
    /// The error of the scores behind the last token, of the largest of them.
    fn error(&mut self) -> f32 {
        let want = self.cpu.logits().unwrap();
        let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
        max_abs(self.gpu.logits().unwrap(), want) / largest
    }

    fn append(&mut self, ids: &[u32]) {
        self.gpu.append_tokens(ids, None).unwrap();
        self.cpu.append_tokens(ids, None).unwrap();
        self.is_begun = true;
    }
}

/// Sessions that answer side by side, and what each says.
fn answers_together(mut sessions: Vec<&mut Session>, max_tokens: usize) -> Vec<Vec<u32>> {
    let options = GenerateOptions::default().max_tokens(max_tokens).ignore_eos(true).temperature(0.0);
    sessions.iter_mut().for_each(|session| session.begin(&options).unwrap());
    for _ in 0..max_tokens {
        Session::next_of(&mut sessions).unwrap().into_iter().for_each(|event| assert!(event.unwrap().is_some()));
    }
    sessions.into_iter().map(|session| session.end().unwrap().tokens).collect()
}

/// Sessions in any order of calls: tokens are appended, taken back, chosen alone and side by side, sessions are forked and dropped. What
/// is kept of the steps before is never another step's.
#[test]
#[ignore = "needs a GPU"]
fn a_thousand_sequences_of_calls_give_what_the_cpu_gives() {
    const SESSIONS: usize = 5;
    let (gpu, cpu) = (gpu(), cpu());
    let mut known = Vec::new();
    for path in models(&["decoders"]).into_iter().chain([shipped("tiny-coder")]) {
        let model = open(&path, &gpu, Some(Dtype::F32), Some(512));
        let backend: serde_json::Value = serde_json::from_str(&model.backend_json()).unwrap();
        if backend["single_tokens"] == "kernels" {
            known.push((name(&path), model, open(&path, &cpu, Some(Dtype::F32), Some(512))));
        }
    }
    assert!(known.len() >= 5, "{} decoders by kernels", known.len());
    let (mut random, mut compared, mut answered) = (Random(15), 0, 0);
    for sequence in 0..1000 {
        let (name, on_gpu, on_cpu) = &known[sequence % known.len()];
        let vocabulary = on_cpu.vocab_size().min(199);
        let new = || Both { gpu: Session::new(on_gpu, 0).unwrap(), cpu: Session::new(on_cpu, 0).unwrap(), is_begun: false };
        let mut sessions = vec![new()];
        for call in 0..12 {
            let (which, count) = (random.below(sessions.len()), sessions.len());
            let session = &mut sessions[which];
            let at = session.cpu.position();
            match random.below(10) {
                0..4 => {
                    let ids: Vec<u32> = (0..1 + random.below(12)).map(|_| random.below(vocabulary) as u32).collect();
                    session.append(&ids);
                }
                4 if at > 1 => {
                    let keep = 1 + random.below(at - 1);
                    for session in [&mut session.gpu, &mut session.cpu] {
                        session.truncate(keep).unwrap();
                    }
                    session.append(&[random.below(vocabulary) as u32]);
                }
                5 if count < SESSIONS => {
                    let (gpu, cpu) = (session.gpu.fork().unwrap(), session.cpu.fork().unwrap());
                    let is_begun = session.is_begun;
                    sessions.push(Both { gpu, cpu, is_begun });
                    continue;
                }
                6 if count < SESSIONS => {
                    sessions.push(new());
                    continue;
                }
                7 if count > 1 => {
                    sessions.swap_remove(which);
                    continue;
                }
                // All that hold tokens go on side by side, as each would alone.
                _ => {
                    let ready: Vec<usize> = (0..sessions.len()).filter(|i| sessions[*i].is_begun).collect();
                    if ready.is_empty() {
                        continue;
                    }
                    let tokens = 1 + random.below(4);
                    let got = answers_together(begun(&mut sessions).map(|both| &mut both.gpu).collect(), tokens);
                    let want = answers_together(begun(&mut sessions).map(|both| &mut both.cpu).collect(), tokens);
                    for (i, (got, want)) in ready.iter().zip(got.iter().zip(&want)) {
                        answered += 1;
                        if got != want {
                            // Where two tokens are as likely as each other the answers part, and the sessions with them.
                            let both = &mut sessions[*i];
                            let same = got.iter().zip(want).take_while(|(a, b)| a == b).count();
                            let last = both.cpu.position() - tokens + same - 1;
                            let token = both.cpu.tokens()[last];
                            for session in [&mut both.gpu, &mut both.cpu] {
                                session.truncate(last).unwrap();
                            }
                            both.append(&[token]);
                            let scores = both.cpu.logits().unwrap().to_vec();
                            let (a, b) = (scores[got[same] as usize], scores[want[same] as usize]);
                            let largest = scores.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                            assert!((a - b).abs() <= F32_TOLERANCE * largest, "{name} {sequence} {call}: {got:?}, not {want:?}");
                        }
                    }
                    for i in ready {
                        let error = sessions[i].error();
                        assert!(error <= F32_TOLERANCE, "{name} {sequence} {call} session {i}: {error:.1e}");
                        compared += 1;
                    }
                    continue;
                }
            }
            let error = sessions[which].error();
            assert!(error <= F32_TOLERANCE, "{name} {sequence} {call}: {error:.1e} of {at} tokens");
            compared += 1;
        }
    }
    println!("{compared} rows of scores, {answered} answers");
    assert!(compared > 8000 && answered > 3000, "{compared} rows of scores, {answered} answers");
}

#[test]
#[ignore = "needs a GPU"]
fn encoders_give_the_vectors_of_the_cpu() {
    let (gpu, cpu, mut table) = (gpu(), cpu(), Table::default());
    for path in models(&["encoders", "embedders"]).into_iter().chain([shipped("tiny-embed")]) {
        let notes = if path == shipped("tiny-embed") { golden("tiny_embed.json") } else { path.join("golden.json") };
        let notes = json(&notes);
        let texts: Vec<&str> = notes["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        for dtype in DTYPES {
            let [model, want] = [&gpu, &cpu].map(|device| open(&path, device, Some(dtype), None));
            let (mut batch, mut single) = (Comparisons::of(&path), Comparisons::of(&path));
            let none = vec![serde_json::json!("none")];
            for prompt in notes["embeddings"].as_array().filter(|names| names[0].is_string()).unwrap_or(&none) {
                let prompt = match prompt.as_str().unwrap() {
                    "none" => Prompt::Text(String::new()),
                    name => Prompt::Name(name.to_string()),
                };
                let options = EmbedOptions::default().prompt(prompt);
                let alone = options.clone().batch_size(1);
                let dim = want.embedding_dim(&options).unwrap();
                let want = want.embed(&texts, &options, None).unwrap();
                for (options, worst) in [(&options, &mut batch), (&alone, &mut single)] {
                    let got = model.embed(&texts, options, None).unwrap();
                    got.chunks(dim).zip(want.chunks(dim)).for_each(|(got, want)| worst.add(got, want));
                }
            }
            table.line(&name(&path), dtype, "batch", &batch);
            table.line(&name(&path), dtype, "single", &single);
        }
    }
    table.finish();
}

#[test]
#[ignore = "needs a GPU"]
fn adapters_change_what_they_change_on_the_cpu() {
    let (gpu, cpu, mut table) = (gpu(), cpu(), Table::default());
    for path in models(&["lora", "adapters"]) {
        let notes = json(&path.join("golden.json"));
        let base = golden(notes["base"].as_str().unwrap());
        for dtype in [Dtype::F32, Dtype::BF16] {
            let models = [&gpu, &cpu].map(|device| open(&base, device, Some(dtype), None));
            let loras = models.each_ref().map(|model| Lora::load(model, &path));
            let [Ok(lora), Ok(cpu_lora)] = &loras else {
                assert!(loras.iter().all(|lora| lora.as_ref().is_err_and(|e| e.kind() == ErrorKind::Unsupported)));
                continue;
            };
            let pairs = [(&models[0], lora.clone()), (&models[1], cpu_lora.clone())];
            let [[attached, merged], [want, want_merged]] = pairs.map(|(model, lora)| {
                let merged = model.merge(&lora, 1.0).unwrap();
                if !model.supports(Capability::Generate) {
                    let texts = ["hello", "How do I sort a list of numbers?"];
                    let options = EmbedOptions::default().adapters([(lora, 1.0)]);
                    return [(model, options), (&merged, EmbedOptions::default())]
                        .map(|(model, options)| model.embed(&texts, &options, None).unwrap());
                }
                let ids = Reference::open(&path.join("golden.safetensors")).ids("prompt0.ids");
                [(model, vec![(lora, 1.0)]), (&merged, Vec::new())].map(|(model, adapters)| {
                    let mut session = Session::new(model, 0).unwrap();
                    session.set_adapters(&adapters).unwrap();
                    let mut out = logits(&mut session, &ids[..ids.len() - 1]);
                    out.extend(logits(&mut session, &ids[ids.len() - 1..]));
                    out
                })
            });
            let (mut first, mut second) = (Comparisons::of(&path), Comparisons::of(&path));
            first.add(&attached, &want);
            second.add(&merged, &want_merged);
            table.line(&name(&path), dtype, "attached", &first);
            table.line(&name(&path), dtype, "merged", &second);
        }
    }
    table.finish();
}

#[test]
#[ignore = "needs a GPU"]
fn training_follows_that_of_the_cpu() {
    let (gpu, cpu, mut table) = (gpu(), cpu(), Table::default());
    let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 80).collect();
    for path in models(&["decoders", "families"]) {
        for dtype in [Dtype::F32, Dtype::BF16] {
            for (gradient_checkpointing, dropout) in [(true, 0.1), (false, 0.0)] {
                let options = TrainOptions::default().learning_rate(1e-3).gradient_checkpointing(gradient_checkpointing);
                let config = LoraConfig::default().dropout(dropout);
                let losses = [&gpu, &cpu].map(|device| {
                    let model = open(&path, device, Some(dtype), None);
                    let mut trainer = LoraTrainer::new(&model, &config, &options).unwrap();
                    let steps = (0..5).map(|_| trainer.train_step(&ids, None, &[0, 11, 12, 35]).unwrap());
                    // The logarithm: of a length, the share that differs counts.
                    steps.flat_map(|step| [step.loss, step.update.unwrap().grad_norm.ln()]).collect::<Vec<f32>>()
                });
                let mut worst = Comparisons::of(&path);
                worst.add(&losses[0], &losses[1]);
                table.line(&name(&path), dtype, if gradient_checkpointing { "checkpointed" } else { "kept" }, &worst);
            }
        }
    }
    table.finish();
}

#[test]
#[ignore = "needs a GPU"]
fn the_shipped_model_gives_its_answers() {
    let (gpu, reference) = (gpu(), json(&golden("tiny_coder.json")));
    let max_tokens = reference["max_new_tokens"].as_u64().unwrap() as usize;
    for dtype in DTYPES {
        let model = open(&shipped("tiny-coder"), &gpu, Some(dtype), None);
        // With 16 bits another token may be chosen where two are nearly as likely.
        let least_margin = if dtype == Dtype::F32 { 0.0 } else { 0.5 };
        let mut wrong = Vec::new();
        for item in reference["items"].as_array().unwrap() {
            let mut session = Session::new(&model, 0).unwrap();
            session.set_chat(&Chat::from_json(&item["messages"].to_string()).unwrap(), None).unwrap();
            let options = GenerateOptions::default().max_tokens(max_tokens);
            let answer = session.generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap();
            if answer.text != item["answer"].as_str().unwrap() && item["smallest_margin"].as_f64().unwrap() >= least_margin {
                wrong.push(format!("{dtype:?}: {:?} instead of {}", answer.text, item["answer"]));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn sessions_fork_and_go_back_and_are_saved() {
    let gpu = gpu();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("session");
    for dtype in DTYPES {
        let model = open(&shipped("tiny-coder"), &gpu, Some(dtype), None);
        let ids: Vec<u32> = (0..300).map(|i| 300 + i * 37 % 3000).collect();
        let mut session = Session::new(&model, 0).unwrap();
        session.append_tokens(&ids, None).unwrap();
        let want = answer(&mut session.fork().unwrap(), 20);
        session.save(&file).unwrap();
        assert_eq!(answer(&mut Session::load(&model, &file).unwrap(), 20), want, "{dtype:?} saved");
        assert_eq!(answer(&mut session, 20), want, "{dtype:?} after a fork");
        session.truncate(100).unwrap();
        session.append_tokens(&ids[100..], None).unwrap();
        assert_eq!(answer(&mut session, 20), want, "{dtype:?} after going back");
        Session::new(&model, 0).unwrap().save(&file).unwrap();
        let mut empty = Session::load(&model, &file).unwrap();
        empty.append_tokens(&ids, None).unwrap();
        assert_eq!(answer(&mut empty, 20), want, "{dtype:?} saved empty");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_suspended_gpu_stops_between_tokens_and_the_session_goes_on() {
    let gpu = gpu();
    let model = open(&shipped("tiny-coder"), &gpu, None, None);
    let ids: Vec<u32> = (0..10).map(|i| 300 + i * 37).collect();
    let options = GenerateOptions::default().max_tokens(8).ignore_eos(true).temperature(0.0);
    let mut session = Session::new(&model, 0).unwrap();
    session.append_tokens(&ids, None).unwrap();
    gpu.suspend(Duration::from_secs(5)).unwrap();
    session.begin(&options).unwrap();
    assert!(session.next().unwrap().is_some(), "the scores were known before");
    assert_eq!(session.next().unwrap_err().kind(), ErrorKind::Suspended);
    let options = LoadOptions::default().device(gpu.clone());
    assert_eq!(Model::load(shipped("tiny-coder"), &options, None).err().unwrap().kind(), ErrorKind::Suspended);
    gpu.resume();
    while session.next().unwrap().is_some() {}
    let mut other = Session::new(&model, 0).unwrap();
    other.append_tokens(&ids, None).unwrap();
    assert_eq!(session.end().unwrap().tokens, answer(&mut other, 8));
}

/// A session may be used on one thread after another, and a model on many at once.
#[test]
#[ignore = "needs a GPU"]
fn threads_see_what_others_computed() {
    let gpu = gpu();
    let model = open(&shipped("tiny-coder"), &gpu, None, None);
    let prompts: Vec<Vec<u32>> = (0..16u32).map(|p| (0..30 + p * 40).map(|i| 300 + (i * 37 + p * 11) % 3000).collect()).collect();
    let want: Vec<Vec<f32>> = prompts.iter().map(|ids| at_once(&model, ids)).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| prompts.iter().zip(&want).for_each(|(ids, want)| assert_eq!(&at_once(&model, ids), want)));
        }
    });
    let model = open(&shipped("tiny-coder"), &gpu, Some(Dtype::F32), None);
    let (ids, want) = (&prompts[15], at_once(&model, &prompts[15]));
    for round in 0..20 {
        let mut session = Session::new(&model, 0).unwrap();
        session.append_tokens(&ids[..512], None).unwrap();
        let mut fork = std::thread::scope(|scope| scope.spawn(|| session.fork().unwrap()).join().unwrap());
        drop(session);
        let got = std::thread::scope(|scope| scope.spawn(|| logits(&mut fork, &ids[512..])).join().unwrap());
        assert!(max_abs(&got, &want) <= F32_TOLERANCE, "round {round}: {}", max_abs(&got, &want));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_gpu_tells_its_memory_on_every_thread() {
    let gpu = gpu();
    assert!(Device::count(gpu.kind()) >= 1);
    let memory = || {
        let (used, total) = gpu.memory().unwrap();
        assert!(used < total, "{used} of {total}");
    };
    memory();
    std::thread::scope(|scope| scope.spawn(memory).join().unwrap());
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU"]
fn a_full_cuda_device_is_out_of_memory() {
    let device = candle_core::Device::new_cuda_with_stream(0).unwrap();
    let error = candle_core::Tensor::zeros(1 << 40, candle_core::DType::F32, &device).unwrap_err();
    assert_eq!(metal_candle::Error::from(error).kind(), ErrorKind::OutOfMemory);
}
