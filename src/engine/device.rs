//! Where the arithmetic runs: the CPU, an Apple GPU through Metal, or an NVIDIA GPU through CUDA.
//!
//! ```
//! use metal_candle::{Device, DeviceKind};
//! let device = Device::new(DeviceKind::Cpu, 0)?;
//! assert_eq!(device.kind(), DeviceKind::Cpu);
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::time::Duration;

use crate::error::Result;

/// The kinds of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Metal or CUDA where this build and machine have it, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// An NVIDIA GPU.
    Cuda,
}

/// A device; clones are the same device and share its gate.
#[derive(Clone)]
pub struct Device {}

impl Device {
    /// How many devices of a kind this process can open; `Auto` counts as one.
    pub fn count(kind: DeviceKind) -> usize {
        todo!("{kind:?}")
    }
    pub fn new(kind: DeviceKind, index: usize) -> Result<Self> {
        todo!("{kind:?} {index}")
    }
    /// What was opened; never `Auto`.
    pub fn kind(&self) -> DeviceKind {
        todo!()
    }
    pub fn name(&self) -> &str {
        todo!()
    }
    /// (used bytes, total bytes)
    pub fn memory(&self) -> Result<(u64, u64)> {
        todo!()
    }
    pub fn synchronize(&self) -> Result<()> {
        todo!()
    }
    pub fn suspend(&self, timeout: Duration) -> Result<()> {
        todo!("{timeout:?}")
    }
    pub fn resume(&self) {
        todo!()
    }
    /// Gives memory that is kept for reuse back to the system, down to `keep_bytes`.
    pub fn trim_memory(keep_bytes: u64) -> Result<()> {
        todo!("{keep_bytes}")
    }
}
