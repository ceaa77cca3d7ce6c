//! What cannot be seen from outside: gradients, and a training that stops between two micro-batches of a step.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;
use crate::engine::{Dataset, Device, DeviceKind, Dtype, LoadOptions};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// On the CPU, with and without checkpointing of gradients; and by tensor operations with a GPU's kernels between them, where their
/// executor is.
fn on_devices(test: impl Fn(&LoadOptions, &[bool])) {
    let on = |device| LoadOptions { device: Some(device), dtype: Some(Dtype::F32), ..LoadOptions::default() };
    test(&on(Device::new(DeviceKind::Cpu, 0).unwrap()), &[false, true]);
    #[cfg(feature = "selftest")]
    crate::kernels::gpu::with_executor(|| test(&on(Device::cpu_by_tensors()), &[true]));
}

#[test]
fn first_gradients_equal_those_of_peft() {
    on_devices(first_gradients);
}

fn first_gradients(load: &LoadOptions, checkpointing: &[bool]) {
    for run in ["qwen2_main", "qwen2_hf_trainer", "llama_main"] {
        let directory = golden("lora/training").join(run);
        let notes: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap();
        let base = golden(notes["base"].as_str().unwrap());
        let model = Model::load(base, load, None).unwrap();
        let initial = Some(Lora::load(&model, directory.join("init")).unwrap());
        let weighting = if run == "qwen2_hf_trainer" { Weighting::Tokens } else { Weighting::MicroBatches };
        for &gradient_checkpointing in checkpointing {
            // One more than there are: the sum stays where it is.
            let options = TrainOptions { grad_accumulation: 3, weighting, gradient_checkpointing, ..TrainOptions::default() };
            let config = LoraConfig { initial: initial.clone(), ..LoraConfig::default() };
            let mut trainer = LoraTrainer::new(&model, &config, &options).unwrap();
            for micro in notes["log"][0]["micro_batches"].as_array().unwrap() {
                let (mut ids, mut mask, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
                for sequence in micro.as_array().unwrap() {
                    let sequence = &notes["sequences"][sequence.as_u64().unwrap() as usize];
                    ids.extend(sequence["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32));
                    mask.extend(sequence["loss_mask"].as_array().unwrap().iter().map(|bit| bit == 1));
                    offsets.push(ids.len());
                }
                assert_eq!(trainer.train_step(&ids, Some(&mask), &offsets).unwrap().update, None);
            }
            let count = match weighting {
                Weighting::MicroBatches => 2.0,
                Weighting::Tokens => trainer.progress.targets as f32,
            };
            let bytes = std::fs::read(directory.join("gradients_step1.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let floats = |tensor: safetensors::tensor::TensorView<'_>| -> Vec<f32> {
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            };
            let largest = tensors.iter().flat_map(|(_, tensor)| floats(tensor)).map(f32::abs).fold(0.0, f32::max);
            let mut worst = 0f32;
            let gradients = trainer.gradients.as_ref().unwrap().values().unwrap();
            for trained in &trainer.plan.modules {
                for (field, found) in [("lora_A", &gradients[trained.a()]), ("lora_B", &gradients[trained.b()])] {
                    let name = format!("base_model.model.model.{}.{field}.weight", trained.module.name);
                    let want = floats(tensors.tensor(&name).unwrap());
                    assert_eq!(want.len(), found.len(), "{name}");
                    let error = |(x, y): (&f32, &f32)| if x.is_nan() { f32::INFINITY } else { (x / count - y).abs() };
                    worst = found.iter().zip(&want).map(error).fold(worst, f32::max);
                }
            }
            assert_eq!(tensors.len(), 2 * trainer.plan.modules.len());
            assert!(worst <= 5e-5 * largest, "{run}: {worst} of {largest}");
        }
    }
}

#[test]
fn gradients_of_every_mixer_equal_those_of_peft() {
    on_devices(gradients_of_mixers);
}

fn gradients_of_mixers(load: &LoadOptions, checkpointing: &[bool]) {
    let mut compared = 0;
    for entry in ["lora", "adapters"].into_iter().flat_map(|folder| std::fs::read_dir(golden(folder)).unwrap()) {
        let directory = entry.unwrap().path();
        let Ok(notes) = std::fs::read(directory.join("golden.json")) else { continue };
        let notes: serde_json::Value = serde_json::from_slice(&notes).unwrap();
        let Some(ids) = notes["loss"]["ids"].as_array() else { continue };
        let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let model = Model::load(golden(notes["base"].as_str().unwrap()), load, None).unwrap();
        let initial = Some(Lora::load(&model, &directory).unwrap());
        for &gradient_checkpointing in checkpointing {
            let options = TrainOptions { grad_accumulation: 2, gradient_checkpointing, ..TrainOptions::default() };
            let config = LoraConfig { initial: initial.clone(), ..LoraConfig::default() };
            let mut trainer = LoraTrainer::new(&model, &config, &options).unwrap();
            let step = trainer.train_step(&ids, None, &[0, ids.len()]).unwrap();
            let (loss, want) = (f64::from(step.loss), notes["loss"]["mean_cross_entropy"].as_f64().unwrap());
            assert!((loss - want).abs() <= 1e-3, "{}: loss {loss} and not {want}", directory.display());
            let bytes = std::fs::read(directory.join("golden.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let floats = |name: &str| -> Vec<f32> {
                let tensor = tensors.tensor(name).unwrap();
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            };
            let wanted = || tensors.names().into_iter().filter(|name| name.starts_with("grad."));
            let largest = wanted().flat_map(floats).map(f32::abs).fold(0.0, f32::max);
            let mut worst = 0f32;
            let gradients = trainer.gradients.as_ref().unwrap().values().unwrap();
            let found = trainer.plan.tensors(&gradients).unwrap();
            for (name, (_, found)) in &found {
                let want = floats(&format!("grad.{name}"));
                assert_eq!(want.len(), found.len(), "{name}");
                let error = |(x, y): (&f32, &f32)| if x.is_nan() { f32::INFINITY } else { (x - y).abs() };
                worst = found.iter().zip(&want).map(error).fold(worst, f32::max);
            }
            assert_eq!(wanted().count(), found.len());
            assert!(worst <= 5e-5 * largest, "{}: {worst} of {largest}", directory.display());
            compared += 1;
        }
    }
    assert!(compared >= 8);
}

fn dataset() -> Dataset {
    let mut dataset = Dataset::new();
    for i in 0..11 {
        dataset.add_completion(&format!("What is {i} and {i}?"), &format!(" It is {}.{}", 2 * i, " Really.".repeat(i % 3)));
    }
    dataset
}

#[test]
fn a_training_that_stopped_within_a_step_goes_on_bit_for_bit() {
    let model = Model::load(golden("../../models/tiny-coder"), &LoadOptions::default(), None).unwrap();
    let config = LoraConfig { rank: 2, targets: vec!["v_proj".to_string()], dropout: 0.25, ..LoraConfig::default() };
    let options = TrainOptions { batch_size: 2, grad_accumulation: 4, epochs: 2, ..TrainOptions::default() };
    let new = || LoraTrainer::new(&model, &config, &options).unwrap();
    let on_step = &mut |_: &TrainEvent| std::ops::ControlFlow::Continue(());
    let state = |trainer: &LoraTrainer| {
        let directory = tempfile::tempdir().unwrap();
        trainer.save(directory.path()).unwrap();
        std::fs::read(directory.path().join(checkpoint::FILE)).unwrap()
    };
    let mut whole = new();
    whole.train(&dataset(), None, on_step).unwrap();
    // Six batches an epoch: steps of four and of two.
    assert_eq!((whole.step_count(), whole.progress.micro_steps), (4, 12));

    // The first batches of the second epoch, as `train` takes them, up to a cancel.
    let mut stopped = new();
    let first_epoch = TrainOptions { epochs: 1, ..options.clone() };
    stopped.options = first_epoch;
    stopped.train(&dataset(), None, on_step).unwrap();
    stopped.options = options.clone();
    let samples = dataset().tokenized(&model, 1024, true, None).unwrap().examples;
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.ids.len()).collect();
    let order = batches::batches(&lengths, 2, Random::stream(options.seed, ORDER | 1));
    for (i, batch) in order.iter().take(3).enumerate() {
        stopped.micro_step(&BatchSequences::of(&samples, batch).unwrap(), false).unwrap();
        stopped.progress.position = i + 1;
    }
    assert_eq!((stopped.progress.micro, stopped.progress.epoch, stopped.gradients.is_some()), (3, 1, true));
    let directory = tempfile::tempdir().unwrap();
    stopped.save(directory.path()).unwrap();
    drop(stopped);
    let mut resumed = LoraTrainer::resume(&model, directory.path(), None).unwrap();
    resumed.train(&dataset(), None, on_step).unwrap();
    assert_eq!(resumed.progress, whole.progress);
    assert!(state(&resumed) == state(&whole));
}

#[cfg(feature = "selftest")]
#[test]
fn a_training_by_the_kernels_of_a_gpu_goes_on_bit_for_bit() {
    crate::kernels::gpu::with_executor(|| {
        for quantization in [None, Some("q4_k_m")] {
            let load = LoadOptions {
                device: Some(Device::cpu_by_tensors()),
                dtype: Some(Dtype::F32),
                quantization: quantization.map(str::to_string),
                ..LoadOptions::default()
            };
            let model = Model::load(golden("decoders/qwen2_tied"), &load, None).unwrap();
            let config = LoraConfig { rank: 2, dropout: 0.25, ..LoraConfig::default() };
            let options = TrainOptions { grad_accumulation: 2, ..TrainOptions::default() };
            let step = |trainer: &mut LoraTrainer, number: u32| {
                let ids: Vec<u32> = (0..13).map(|i| 3 + (i + 5 * number) * 67 % 80).collect();
                trainer.train_step(&ids, None, &[0, 8, 13]).unwrap().loss
            };
            let state = |trainer: &LoraTrainer| {
                let directory = tempfile::tempdir().unwrap();
                trainer.save(directory.path()).unwrap();
                (std::fs::read(directory.path().join(checkpoint::FILE)).unwrap(), directory)
            };
            let mut whole = LoraTrainer::new(&model, &config, &options).unwrap();
            let losses: Vec<f32> = (0..4).map(|number| step(&mut whole, number)).collect();
            // Between two steps, and within one.
            for stop in [2, 3] {
                let mut stopped = LoraTrainer::new(&model, &config, &options).unwrap();
                (0..stop).for_each(|number| assert_eq!(step(&mut stopped, number), losses[number as usize]));
                let (_, directory) = state(&stopped);
                let mut resumed = LoraTrainer::resume(&model, directory.path(), None).unwrap();
                (stop..4).for_each(|number| assert_eq!(step(&mut resumed, number), losses[number as usize]));
                assert!(state(&resumed).0 == state(&whole).0, "{quantization:?} stopped after {stop}");
            }
        }
    });
}

#[test]
fn an_evaluation_that_was_cancelled_is_done_by_the_next_call() {
    let model = Model::load(golden("../../models/tiny-coder"), &LoadOptions::default(), None).unwrap();
    let config = LoraConfig { rank: 2, targets: vec!["v_proj".to_string()], ..LoraConfig::default() };
    let options = TrainOptions { batch_size: 16, ..TrainOptions::default() };
    let mut trainer = LoraTrainer::new(&model, &config, &options).unwrap();
    let samples = dataset().tokenized(&model, 1024, true, None).unwrap().examples;
    // The one batch of the epoch, as `train` takes it, up to a cancel in the evaluation.
    trainer.train(&dataset(), None, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let mut events = Vec::new();
    trainer.progress.pending = true;
    let mut on_step = |event: &TrainEvent| {
        events.push(*event);
        std::ops::ControlFlow::Continue(())
    };
    trainer.train(&dataset(), Some(&dataset()), &mut on_step).unwrap();
    trainer.train(&dataset(), Some(&dataset()), &mut on_step).unwrap();
    assert_eq!((events.len(), trainer.step_count(), samples.len()), (1, 1, 11));
    assert!(events[0].is_best && events[0].eval_loss.unwrap() < events[0].loss && events[0].step == 1);
}
