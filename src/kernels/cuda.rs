//! Opening a CUDA device.

use candle_core::{Device, Result};

/// A device with one stream.
///
/// candle's default is a stream for each thread that asks: nothing would order the work of two threads, and `synchronize` would wait for
/// the caller's own alone. With one stream all work has one order, as on Metal.
pub fn open_cuda(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: what is turned off are events that order the uses of a buffer between streams. The context is this device's own and
        // has no other stream, so every use and every free of its buffers is in order without them. They cost a third of a small
        // model's time.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}
