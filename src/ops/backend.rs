//! Where a network computes, and what follows from it for those who do not compute themselves.

use std::ops::Deref;

use candle_core::{Device, bail};

use super::{KvFormat, Matrix};
use crate::error::Result;
use crate::kernels::gpu::{BatchOps, Gpu};
#[cfg(feature = "selftest")]
use crate::kernels::gpu::{Comparison, Element, compare, compile};

/// Where a network computes. It makes what is computed with: [`Matrix`](super::Matrix), [`Vector`](super::Vector) …
#[derive(Debug, Clone)]
pub enum Backend {
    /// Our kernels on the CPU.
    Cpu,
    /// candle's tensor operations, on any device. Also on the CPU, where the tests hold them against the kernels: no
    /// GPU is needed to find an error in their mathematics.
    Tensors(TensorDevice),
}

/// A device with what its own kernels are compiled to, which lasts as long as somebody has the device.
#[derive(Debug, Clone)]
pub struct TensorDevice {
    device: Device,
    _gpu: Option<Gpu>,
}

impl TensorDevice {
    fn new(device: &Device) -> Self {
        let gpu = Gpu::of(device).unwrap_or_else(|error| {
            log::warn!("the device is used without kernels of its own: {error}");
            None
        });
        Self { device: device.clone(), _gpu: gpu }
    }
}

impl Deref for TensorDevice {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

/// How texts are put together that go through a network at once.
pub struct Batching {
    /// Tokens of a batch that is more than one text.
    pub tokens: usize,
    /// Whether each text of a batch counts as much as the longest.
    pub padded: bool,
    /// Batches that are on their way at a time.
    pub at_a_time: usize,
}

impl Backend {
    /// What computes best on a device.
    pub fn new(device: &Device) -> Self {
        if device.is_cpu() { Self::Cpu } else { Self::by_tensors(device) }
    }

    /// Tensor operations on a device.
    pub fn by_tensors(device: &Device) -> Self {
        Self::Tensors(TensorDevice::new(device))
    }

    /// Tensor operations on the CPU.
    #[cfg(test)]
    pub const TENSORS_ON_CPU: Self = Self::Tensors(TensorDevice { device: Device::Cpu, _gpu: None });

    /// What evaluates tokens, for people and programs: `kernels`, our own, or `tensors`, candle's products.
    pub fn evaluates_by(&self) -> &'static str {
        match self {
            Self::Cpu => "kernels",
            Self::Tensors(_) => "tensors",
        }
    }

    /// Runs work where its threads or its autorelease pool are.
    pub fn compute<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        match self {
            Self::Cpu => crate::kernels::install(work),
            Self::Tensors(_) => self.here(work),
        }
    }

    /// Runs work on this thread.
    pub fn here<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        // candle's Metal backend leaves autoreleased objects behind at every operation, and only a main thread has a pool of its own.
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        return objc2::rc::autoreleasepool(|_| work());
        #[cfg(not(any(target_os = "macos", target_os = "ios")))]
        work()
    }

    /// Whether an operation may fail after it has returned; [`synchronize`](Self::synchronize) then tells.
    pub fn is_asynchronous(&self) -> bool {
        matches!(self, Self::Tensors(_))
    }

    /// Waits until all work that was given to the device is done.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Tensors(device) => self.here(|| Ok(device.synchronize()?)),
        }
    }

    /// Used and total bytes of the device, if it has memory of its own that it counts.
    pub fn memory(&self) -> Result<Option<(u64, u64)>> {
        match self {
            #[cfg(any(feature = "metal", target_os = "macos", target_os = "ios"))]
            Self::Tensors(TensorDevice { device: Device::Metal(metal), .. }) => {
                let device = metal.metal_device();
                Ok(Some((device.current_allocated_size() as u64, device.recommended_max_working_set_size() as u64)))
            }
            #[cfg(feature = "cuda")]
            Self::Tensors(TensorDevice { device: Device::Cuda(cuda), .. }) => {
                use crate::error::{Error, ErrorKind};
                // Through the context: the driver's own call asks whichever device the calling thread has used, and fails
                // if none.
                let (free, total) = cuda
                    .cuda_stream()
                    .context()
                    .mem_get_info()
                    .map_err(|e| Error::new(ErrorKind::Device, format!("CUDA memory: {e}")))?;
                Ok(Some(((total - free) as u64, total as u64)))
            }
            _ => Ok(None),
        }
    }

    /// Whether what one has made serves the other.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            (Self::Tensors(a), Self::Tensors(b)) => a.same_device(b),
            _ => false,
        }
    }

    /// Whether activations, and what is merged, are F32 whatever weights are kept as; else they have the weights' type.
    pub fn computes_in_f32(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Whether all matrices of a network must be kept as one type.
    pub fn needs_one_type(&self) -> bool {
        matches!(self, Self::Tensors(_))
    }

    /// Whether quantised matrices stay quantised: our own kernels multiply with them.
    pub fn keeps_quantised(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Tensors(device) => Gpu::is_for(device),
        }
    }

    /// Why operations between the products of several tokens are not by the device's own kernels, for activations of the type that a
    /// matrix is computed in: the compiler's message, where they do not compile. Compiles them, if nobody has.
    pub fn lacks_for(&self, matrix: &Matrix) -> Option<String> {
        let Self::Tensors(device) = self else { return None };
        BatchOps::lacks(matrix.tensors().ok()?.dtype(), device)
    }

    /// Whether keys and values can be kept in a format.
    pub fn keeps(&self, format: KvFormat) -> bool {
        match self {
            Self::Cpu => true,
            // A tensor of candle has no blocks that can be written a few at a time.
            Self::Tensors(_) => format != KvFormat::Q8_0,
        }
    }

    /// Whether operations are compiled when they are first used.
    pub fn compiles_at_first_use(&self) -> bool {
        matches!(self, Self::Tensors(_))
    }

    /// How texts are put together.
    pub fn batching(&self) -> Batching {
        match self {
            // Enough that a matrix is not read for a few rows, few enough that what lies between two products stays in
            // the caches.
            Self::Cpu => Batching { tokens: 512, padded: false, at_a_time: crate::kernels::threads() },
            // A GPU wants more work at once.
            Self::Tensors(_) => Batching { tokens: 16_384, padded: true, at_a_time: 1 },
        }
    }

    /// The GPU's own kernels on this device, compiled and then held against those of the CPU, each run twice; nothing where it has none.
    #[cfg(feature = "selftest")]
    pub fn compare_gpu_kernels(&self) -> candle_core::Result<Vec<Comparison>> {
        let Self::Tensors(device) = self else { return Ok(Vec::new()) };
        let Some(gpu) = Gpu::of(device)? else { return Ok(Vec::new()) };
        Ok([compile(&gpu), compare(&gpu, &Element::ALL)].concat())
    }

    /// A tensor that was made on the CPU, where activations are.
    #[cfg(feature = "selftest")]
    pub fn upload(&self, x: &candle_core::Tensor) -> candle_core::Result<candle_core::Tensor> {
        match self {
            Self::Cpu => Ok(x.clone()),
            Self::Tensors(device) => x.to_device(device),
        }
    }
}

/// Something to compute with, as each backend has it.
#[derive(Clone)]
pub enum On<C, T> {
    Cpu(C),
    Tensors(T),
}

impl<C, T> On<C, T> {
    /// What our kernels read.
    ///
    /// # Errors
    /// If another backend made it.
    pub(super) fn cpu(&self) -> candle_core::Result<&C> {
        match self {
            Self::Cpu(it) => Ok(it),
            Self::Tensors(_) => bail!("expected what was made for our kernels, found tensors"),
        }
    }

    /// What tensor operations read.
    ///
    /// # Errors
    /// If another backend made it.
    pub(super) fn tensors(&self) -> candle_core::Result<&T> {
        match self {
            Self::Tensors(it) => Ok(it),
            Self::Cpu(_) => bail!("expected tensors, found what was made for our kernels"),
        }
    }
}
