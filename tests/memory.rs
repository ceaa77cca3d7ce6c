//! The estimate against what the process really takes. Alone in its file: other tests would count as well.

mod common;

use common::shipped;
use metal_candle::{Device, DeviceKind, Dtype, EmbedOptions, LoadOptions, Model, Session, estimate_memory};

#[test]
fn what_loading_and_work_take_was_estimated() {
    long_texts();
    a_full_context(LoadOptions::default().dtype(Dtype::F32));
}

fn a_full_context(options: LoadOptions) {
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let options = options.device(device.clone());
    let resident = || device.memory().unwrap().0 as f64;
    // Thread stacks, the tokenizer and the allocator's own are there before, so that the difference is model and session.
    let warm = Model::load(shipped("tiny-coder"), &options, None).unwrap();
    Session::new(&warm, 0).unwrap().append_tokens(&[300; 4], None).unwrap();
    let estimate = estimate_memory(shipped("tiny-coder"), &options).unwrap() as f64;
    let mut kept = Vec::new();
    let taken = || {
        let before = resident();
        let model = Model::load(shipped("tiny-coder"), &options, None).unwrap();
        let mut session = Session::new(&model, 0).unwrap();
        let ids: Vec<u32> = (0..1024).map(|i| 256 + i % 3000).collect();
        session.append_tokens(&ids, None).unwrap();
        kept.push((model, session));
        resident() - before
    };
    // Whose free memory a buffer is taken from is chance: the middle one of three.
    let mut taken: Vec<f64> = std::iter::repeat_with(taken).take(3).collect();
    taken.sort_by(f64::total_cmp);
    let taken = taken[1];
    assert!(taken < 1.15 * estimate && taken > 0.7 * estimate, "took {taken:.0} bytes, the estimate was {estimate:.0}");
    drop(warm);
}

fn long_texts() {
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let options = LoadOptions::default().device(device.clone()).dtype(Dtype::F32);
    let resident = || device.memory().unwrap().0 as f64;
    let warm = Model::load(shipped("tiny-embed"), &options, None).unwrap();
    warm.embed(&["text"], &EmbedOptions::default(), None).unwrap();
    let before = resident();

    let estimate = estimate_memory(shipped("tiny-embed"), &options).unwrap() as f64;
    let model = Model::load(shipped("tiny-embed"), &options, None).unwrap();
    let loaded = resident() - before;
    let text = "append an element to the vector ".repeat(60);
    model.embed(&vec![text.as_str(); 64], &EmbedOptions::default(), None).unwrap();
    // Freed buffers may have gone back: what is left is at least the weights.
    let taken = (resident() - before).max(loaded);
    assert!(taken < 1.15 * estimate && taken > 0.4 * estimate, "took {taken:.0} bytes, the estimate was {estimate:.0}");
    drop((model, warm));
}
