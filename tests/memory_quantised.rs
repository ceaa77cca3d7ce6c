//! What quantised weights take. Alone in its file: other tests would count as well, also by the memory that they leave to be used again.

mod common;

use common::{q8_0, shipped};
use metal_candle::{Device, DeviceKind, Dtype, LoadOptions, Model, estimate_memory};

#[test]
fn quantised_weights_take_a_quarter() {
    let device = Device::new(DeviceKind::Cpu, 0).unwrap();
    let resident = || device.memory().unwrap().0 as f64;
    let dense = LoadOptions::default().dtype(Dtype::F32).device(device.clone());
    let quantised = q8_0().device(device.clone());
    let load = |options| Model::load(shipped("tiny-coder"), options, None).unwrap();
    let warm = load(&quantised);
    // Kept, so that none has the memory of another.
    let mut kept = Vec::new();
    let mut taken = |options| {
        let before = resident();
        kept.extend((0..4).map(|_| load(options)));
        (resident() - before) / 4.0
    };
    // 7.3 million weights in 34 bytes for 32, and no longer in 4 bytes each.
    let less = 7.3e6 * (4.0 - 34.0 / 32.0);
    let found = taken(&dense) - taken(&quantised);
    assert!((found - less).abs() < 0.1 * less, "expected {less:.0} bytes less, found {found:.0}");
    let estimate = |options| estimate_memory(shipped("tiny-coder"), options).unwrap() as f64;
    let estimated = estimate(&dense) - estimate(&quantised);
    assert!((estimated - less).abs() < 0.02 * less, "expected {less:.0} bytes less, estimated {estimated:.0}");
    drop(warm);
}
