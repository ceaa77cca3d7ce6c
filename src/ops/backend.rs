//! Where a network computes, and by which of the two paths.

use candle_core::{Device, Result};

use crate::error;

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
    pub fn step<R: Send>(&self, step: impl FnOnce() -> Result<R> + Send) -> error::Result<R> {
        if self.kernels {
            return Ok(crate::kernels::install(step)?);
        }
        // candle's Metal backend leaves autoreleased objects behind at every operation.
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        return Ok(objc2::rc::autoreleasepool(|_| step())?);
        #[cfg(not(any(target_os = "macos", target_os = "ios")))]
        Ok(step()?)
    }
}
