//! Holds the kernels and every operation of a device against the CPU, then what the shipped models say against the reference results:
//!
//!     make selftest DEVICE=metal
//!
//! `--device cpu` runs the tensor operations of GPUs on the CPU: the same table, and what it does not find is the GPU's own.
//! Ends with status 1 if something failed, 2 if there is no such device.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use metal_candle::selftest::{Row, gpu_kernels, operations};
use metal_candle::{Chat, Device, DeviceKind, Dtype, EmbedOptions, GenerateOptions, LoadOptions, Model, Session};
use serde_json::Value;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let kind = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => "auto",
        ["--device", kind @ ("cpu" | "metal" | "cuda")] => kind,
        _ => {
            eprintln!("usage: metal_selftest [--device cpu|metal|cuda]");
            return ExitCode::from(2);
        }
    };
    let device = match open(kind) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("metal_selftest: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{}, metal-candle {}\n", device.name(), env!("CARGO_PKG_VERSION"));
    println!("{:<44} {:<5} {:<9} {:>9} {:>9}", "operation", "type", "inputs", "error", "allowed");
    let mut rows = gpu_kernels(&device);
    rows.extend(operations(&device));
    rows.iter().for_each(show);
    for model in models(&device) {
        show(&model);
        rows.push(model);
    }
    for (dtype, quantization) in [(Dtype::F32, None), (Dtype::F16, None), (Dtype::F16, Some("q8_0")), (Dtype::F16, Some("q4_0"))]
    {
        match speed(&device, dtype, quantization) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("tiny-coder, {dtype:?}, {}: {error}", quantization.unwrap_or("as stored")),
        }
    }
    let failed = rows.iter().filter(|row| !row.passed()).count();
    println!("\n{}: {} passed, {failed} failed", device.name(), rows.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn open(kind: &str) -> Result<Device, metal_candle::Error> {
    match kind {
        "cpu" => Ok(Device::cpu_by_tensors()),
        "metal" => Device::new(DeviceKind::Metal, 0),
        "cuda" => Device::new(DeviceKind::Cuda, 0),
        _ => Device::new(DeviceKind::Metal, 0).or_else(|_| Device::new(DeviceKind::Cuda, 0)),
    }
}

fn show(row: &Row) {
    let Row { operation, dtype, layout, tolerance, .. } = row;
    let start = format!("{operation:<44} {:<5} {layout:<9}", format!("{dtype:?}"));
    let end = if row.passed() { "ok" } else { "FAILED" };
    match &row.error {
        Ok(error) => println!("{start} {error:>9.1e} {tolerance:>9.0e}  {end}"),
        Err(error) => println!("{start} {:>9} {tolerance:>9.0e}  {end}: {error}", "-"),
    }
}

/// The shipped models in each type. Their weights lie far from where 16 bits end, so what is lost is what the roundings take.
fn models(device: &Device) -> impl Iterator<Item = Row> {
    let answers = [(Dtype::F32, 5e-4), (Dtype::F16, 0.1), (Dtype::BF16, 0.5)];
    let vectors = [(Dtype::F32, 2e-5), (Dtype::F16, 2e-3), (Dtype::BF16, 2e-2)];
    let row = |operation: &str, dtype, tolerance, error: Result<f32, Box<dyn Error>>| {
        let error = error.map_err(|e| e.to_string());
        Row { operation: operation.to_string(), dtype, error, layout: "", tolerance }
    };
    let answers = answers
        .into_iter()
        .map(move |(dtype, tolerance)| row("tiny-coder, log-probabilities", dtype, tolerance, answers_error(device, dtype)));
    let vectors = vectors
        .into_iter()
        .map(move |(dtype, tolerance)| row("tiny-embed, vectors", dtype, tolerance, vectors_error(device, dtype)));
    answers.chain(vectors)
}

/// The largest error of a log-probability, as far as an answer is the reference's; it may end being so where two tokens are nearly as
/// likely.
fn answers_error(device: &Device, dtype: Dtype) -> Result<f32, Box<dyn Error>> {
    let (model, reference) = (load("models/tiny-coder", device, dtype)?, golden("tiny_coder.json")?);
    let max_tokens = serde_json::from_value(reference["max_new_tokens"].clone())?;
    let least_margin = if dtype == Dtype::F32 { 0.0 } else { 0.5 };
    let mut largest = 0f32;
    for item in reference["items"].as_array().ok_or("no items")? {
        let mut session = Session::new(&model, 0)?;
        session.set_chat(&Chat::from_json(&item["messages"].to_string())?, None)?;
        let mut found = Vec::new();
        session.generate(&GenerateOptions::default().max_tokens(max_tokens), None, &mut |event| {
            found.push((event.token, event.logprob));
            ControlFlow::Continue(())
        })?;
        let ids: Vec<u32> = serde_json::from_value(item["answer_ids"].clone())?;
        let logprobs: Vec<f32> = serde_json::from_value(item["logprobs"].clone())?;
        let same = found.iter().zip(&ids).take_while(|((token, _), id)| token == *id).count();
        if same < ids.len() && item["smallest_margin"].as_f64() >= Some(least_margin) {
            return Err(format!("another answer than {}", item["answer"]).into());
        }
        let errors = found[..same].iter().zip(&logprobs).map(|((_, logprob), want)| (logprob - want).abs());
        largest = errors.fold(largest, |max, e| if e.is_nan() { f32::INFINITY } else { e.max(max) });
    }
    Ok(largest)
}

/// The largest error of a value of a vector of length 1.
fn vectors_error(device: &Device, dtype: Dtype) -> Result<f32, Box<dyn Error>> {
    let (model, reference) = (load("models/tiny-embed", device, dtype)?, golden("tiny_embed.json")?);
    let texts: Vec<String> = serde_json::from_value(reference["texts"].clone())?;
    let want: Vec<Vec<f32>> = serde_json::from_value(reference["embeddings"].clone())?;
    let found = model.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>(), &EmbedOptions::default(), None)?;
    let errors = found.iter().zip(want.iter().flatten()).map(|(x, y)| (x - y).abs());
    Ok(errors.fold(0.0, |max, e| if e.is_nan() { f32::INFINITY } else { e.max(max) }))
}

/// How fast the shipped decoder answers, and by what; its loading, which compiles, apart.
fn speed(device: &Device, dtype: Dtype, quantization: Option<&str>) -> Result<String, Box<dyn Error>> {
    let mut options = LoadOptions::default().device(device.clone()).dtype(dtype);
    options.quantization = quantization.map(str::to_owned);
    let start = Instant::now();
    let model = Model::load(root().join("models/tiny-coder"), &options, None)?;
    let loaded = start.elapsed();
    let mut session = Session::new(&model, 0)?;
    session.append_tokens(&[5; 16], None)?;
    let options = GenerateOptions::default().max_tokens(200).ignore_eos(true);
    let start = Instant::now();
    let tokens = session.generate(&options, None, &mut |_| ControlFlow::Continue(()))?.tokens.len();
    let speed = tokens as f64 / start.elapsed().as_secs_f64();
    let kept = quantization.unwrap_or("as stored");
    Ok(format!("tiny-coder, {dtype:?}, {kept}: {speed:.0} tokens/s, loaded in {loaded:.1?}: {}", model.backend_json()))
}

fn load(path: &str, device: &Device, dtype: Dtype) -> Result<Model, metal_candle::Error> {
    let options = LoadOptions::default().device(device.clone()).dtype(dtype);
    Model::load(root().join(path), &options, None)
}

fn golden(name: &str) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_str(&std::fs::read_to_string(root().join("tests/golden").join(name))?)?)
}

/// The package: where cargo says that it is, else here.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default()
}
