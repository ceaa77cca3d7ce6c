//! What keys and values take. Alone in its file: other tests would count as well, also by the memory that they leave to be used again.

mod common;

use common::shipped;
use metal_candle::{Device, DeviceKind, LoadOptions, Model, Session};

#[test]
fn narrower_keys_and_values_take_less() {
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let resident = || device.memory().unwrap().0 as f64;
    let load = |kv_cache: &str| {
        let options = LoadOptions { kv_cache: Some(kv_cache.to_string()), ..LoadOptions::default() };
        Model::load(shipped("tiny-coder"), &options, None).unwrap()
    };
    let full = |model: &Model| {
        let mut session = Session::new(model, 0).unwrap();
        let ids: Vec<u32> = (0..1024).map(|i| 256 + i % 3000).collect();
        session.append_tokens(&ids, None).unwrap();
        session
    };
    let models = ["q8_0", "f16", "f32"].map(load);
    // Kept, so that none has the memory of another; the first ones bring what threads need.
    let mut kept: Vec<Session> = models.iter().map(full).collect();
    let taken = models.each_ref().map(|model| {
        let before = resident();
        kept.extend((0..4).map(|_| full(model)));
        (resident() - before) / 4.0
    });
    // Of 8 layers 2 heads of 64 keys and 64 values: in 34 bytes for 32, in two and in four each.
    let values = (1024 * 8 * 2 * 2 * 64) as f64;
    for (taken, bytes) in taken.into_iter().zip([34.0 / 32.0, 2.0, 4.0]) {
        let expected = values * bytes;
        assert!((taken - expected).abs() < 0.2 * expected, "expected {expected:.0} bytes, found {taken:.0}");
    }
}
