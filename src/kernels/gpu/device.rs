//! Where the GPU's kernels run: a device's compiler, its launches, and the memory that they are given.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Device, Result, Storage, Tensor, bail};

use super::Library;

/// What a device does for the kernels, by addresses of its memory.
pub(super) trait Launcher: Debug + Send + Sync {
    /// A kernel of a library, compiled when one of the library is first asked for; a number that the launcher knows it by.
    fn kernel(&self, library: Library, name: &str) -> Result<usize>;

    /// Starts a kernel behind all that was started before. `pointers`: its buffers in order; `params`: the words of its struct.
    ///
    /// # Safety
    /// The addresses are of memory on the device that the kernel stays within, and that lives until the kernel has ended.
    unsafe fn launch(&self, kernel: usize, grid: [u32; 3], threads: u32, pointers: &[u64], params: &[u32]) -> Result<()>;

    /// Writes words behind all that was started before.
    ///
    /// # Safety
    /// As many words of the device's memory begin at the address.
    unsafe fn upload(&self, to: u64, words: &[u32]) -> Result<()>;

    /// Waits for all that was started, and reads.
    ///
    /// # Safety
    /// As many values of the device's memory begin at the address.
    unsafe fn download(&self, from: u64, out: &mut [f32]) -> Result<()>;

    /// Multiprocessors, or cores.
    fn units(&self) -> u32;
}

/// A device that the kernels run on.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(super) launcher: Arc<dyn Launcher>,
    device: Device,
}

/// A compiled kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct GpuKernel(usize);

impl Gpu {
    /// A device by its own kernels; `None` where this build has none for it.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn of(device: &Device) -> Result<Option<Self>> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let launcher = super::cuda::CudaLauncher::shared(cuda)?;
            return Ok(Some(Self { launcher, device: device.clone() }));
        }
        #[cfg(test)]
        if let (Device::Cpu, Some(executor)) = (device, super::tests::in_use()) {
            return Ok(Some(Self { launcher: executor, device: Device::Cpu }));
        }
        let _ = device;
        Ok(None)
    }

    /// Whether a device has kernels in this build; nothing is opened or compiled.
    pub fn is_for(device: &Device) -> bool {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => true,
            #[cfg(test)]
            Device::Cpu => super::tests::in_use().is_some(),
            _ => false,
        }
    }

    /// Where tensors are made that the kernels read and write.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A kernel, compiled.
    pub(super) fn kernel(&self, library: Library, name: &str) -> Result<GpuKernel> {
        self.launcher.kernel(library, name).map(GpuKernel)
    }

    /// Starts a kernel on slices that the caller has found large enough for what it reads and writes.
    pub(super) fn start(
        &self,
        kernel: GpuKernel,
        grid: [u32; 3],
        threads: u32,
        buffers: &[&GpuSlice],
        params: &[u32],
    ) -> Result<()> {
        let mut pointers = [0; 10];
        for (pointer, buffer) in pointers.iter_mut().zip(buffers) {
            *pointer = buffer.address;
        }
        // SAFETY: a slice is a part of a tensor on the device, whose memory is given back in the order of the device's work; the callers
        // in launch.rs compare its size with what the parameters make the kernel touch.
        unsafe { self.launcher.launch(kernel.0, grid, threads, &pointers[..buffers.len()], params) }
    }

    /// Writes words behind all that was started before.
    pub fn upload(&self, to: &GpuSlice, words: &[u32]) -> Result<()> {
        to.holds(words.len(), "an upload")?;
        // SAFETY: the slice has as many words.
        unsafe { self.launcher.upload(to.address, words) }
    }

    /// Waits for all that was started, and reads values from the one of this number on.
    pub fn download(&self, from: &GpuSlice, first: usize, out: &mut [f32]) -> Result<()> {
        from.holds(first + out.len(), "a download")?;
        // SAFETY: the slice has as many values behind the first.
        unsafe { self.launcher.download(from.address + 4 * first as u64, out) }
    }
}

/// A part of a tensor's memory, which lives as long as this does.
#[derive(Debug, Clone)]
pub struct GpuSlice {
    pub(super) address: u64,
    bytes: usize,
    _owner: Tensor,
}

impl GpuSlice {
    /// All of a tensor, whose values lie one after another.
    ///
    /// # Errors
    /// If they do not, or if kernels cannot reach the device's memory.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let size = tensor.dtype().size_in_bytes();
        if !layout.is_contiguous() {
            bail!("a kernel's buffer: expected contiguous values, found strides {:?}", layout.stride())
        }
        let address = address(&storage)? + (layout.start_offset() * size) as u64;
        if !address.is_multiple_of(16) {
            bail!("a kernel's buffer: expected an address that is a multiple of 16, found {address:#x}")
        }
        Ok(Self { address, bytes: tensor.elem_count() * size, _owner: tensor.clone() })
    }

    /// `words` words from word `start` on, a multiple of four.
    ///
    /// # Errors
    /// If the slice has fewer.
    pub fn words(&self, start: usize, words: usize) -> Result<Self> {
        if !start.is_multiple_of(4) || start + words > self.bytes / 4 {
            bail!("a kernel's buffer: expected a part of {} words, found {words} from {start} on", self.bytes / 4)
        }
        Ok(Self { address: self.address + 4 * start as u64, bytes: 4 * words, _owner: self._owner.clone() })
    }

    /// Words of four bytes.
    pub fn len(&self) -> usize {
        self.bytes / 4
    }

    pub(super) fn holds(&self, words: usize, what: &str) -> Result<()> {
        self.holds_bytes(4 * words, what)
    }

    pub(super) fn holds_bytes(&self, bytes: usize, what: &str) -> Result<()> {
        if self.bytes < bytes {
            bail!("{what}: expected a buffer of at least {bytes} bytes, found {}", self.bytes)
        }
        Ok(())
    }
}

/// Where a tensor's storage lies.
fn address(storage: &Storage) -> Result<u64> {
    match storage {
        #[cfg(test)]
        Storage::Cpu(storage) => super::tests::address(storage),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::cuda::address(storage),
        _ => bail!("a kernel's buffer: no memory of a device that kernels run on"),
    }
}
