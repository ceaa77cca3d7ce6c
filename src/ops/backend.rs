//! Where a network computes, and by which of the two paths.

use candle_core::Device;

use crate::error::Result;

/// A device, and whether our kernels or candle's tensor operations compute on it.
#[derive(Clone)]
pub struct Backend {
    pub device: Device,
    /// Our kernels: on the CPU. Tensor operations run on every device, also on the CPU, where the tests hold both against each
    /// other: no Apple GPU is needed to find an error in that path's mathematics.
    pub kernels: bool,
}

impl Backend {
    /// The path that belongs to a device.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), kernels: device.is_cpu() }
    }

    /// Runs one step where its threads or its autorelease pool are.
    pub fn step<R: Send>(&self, step: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        if self.kernels { crate::kernels::install(step) } else { self.here(step) }
    }

    /// Runs work on this thread.
    pub fn here<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        // candle's Metal backend leaves autoreleased objects behind at every operation, and only a main thread has a pool of its own.
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        return objc2::rc::autoreleasepool(|_| work());
        #[cfg(not(any(target_os = "macos", target_os = "ios")))]
        work()
    }
}
