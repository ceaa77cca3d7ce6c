//! The kernels on Apple's GPUs: compiled when a model is loaded, and encoded by candle's device among its own operations. Its types are
//! checked; it has not run.
//!
//! candle has buffers whose uses Metal does not order. Its encoder sets a barrier before a kernel that reads what one before has written,
//! or that writes what one before uses, and a fence between encoders; so every buffer is said to be read or written, as a whole. That
//! one thread alone gives the device work, and waits for it, is for the caller to see to: `Device` in `engine/` does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::metal_backend::DeviceId;
use candle_core::{Error, MetalDevice, MetalStorage, Result, bail};
use candle_metal_kernels::metal::{self, Buffer, ComputeCommandEncoder, ComputePipeline, MetalDeviceType};
use objc2_metal::{MTLCompileOptions, MTLMathFloatingPointFunctions, MTLMathMode, MTLResource, MTLSize, MTLStorageMode};

use super::Library;
use super::batch::CompiledBatch;
use super::device::{Known, Launch, Launcher, Place};
use super::library::Dialect;
use super::replay::Recording;

pub struct MetalLauncher {
    device: MetalDevice,
    units: u32,
    compiled: Mutex<Compiled>,
    /// Whether kernels were started since the device was last waited for.
    started: AtomicBool,
    batch: CompiledBatch,
}

#[derive(Default)]
struct Compiled {
    libraries: HashMap<Library, metal::Library>,
    /// By their numbers.
    kernels: Vec<Kernel>,
}

struct Kernel {
    library: Library,
    name: String,
    pipeline: ComputePipeline,
    /// Threads of a threadgroup at most: fewer where it needs many registers.
    most_threads: usize,
}

impl Kernel {
    /// # Errors
    /// If the device has no room for so many threads of a threadgroup.
    fn for_threads(&self, threads: u32) -> Result<()> {
        let Self { library, name, most_threads, .. } = self;
        if threads as usize > *most_threads {
            bail!("{}/{name}: expected at most {most_threads} threads of a threadgroup, found {threads}", library.name())
        }
        Ok(())
    }
}

impl std::fmt::Debug for MetalLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetalLauncher({:?})", self.device)
    }
}

impl MetalLauncher {
    /// The launcher of a device: one for all that compute there, as long as one of them lives, so that a library is compiled once.
    pub fn shared(device: &MetalDevice) -> Result<Arc<Self>> {
        static KNOWN: Known<DeviceId, MetalLauncher> = Known::new();
        KNOWN.get(device.id(), || {
            // Metal does not tell how many cores there are. What is missed costs speed alone.
            let units = match device.metal_device().device_type() {
                MetalDeviceType::Phone => 6,
                MetalDeviceType::BasePro | MetalDeviceType::Medium => 10,
                MetalDeviceType::Max => 40,
                MetalDeviceType::Ultra => 80,
            };
            let (compiled, started) = (Mutex::default(), AtomicBool::new(false));
            Ok(Self { device: device.clone(), units, compiled, started, batch: CompiledBatch::default() })
        })
    }

    fn compiled(&self) -> MutexGuard<'_, Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile(&self, library: Library) -> Result<metal::Library> {
        let options = MTLCompileOptions::new();
        // What candle's own switch says does not matter: kernels that are compiled here may not reorder sums, or assume that values
        // are finite. The functions are another option, and fast ones the default: their tanh of more than 44 is no number.
        options.setMathMode(MTLMathMode::Safe);
        options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
        self.device.metal_device().new_library_with_source(&library.text(Dialect::Metal), Some(&options)).map_err(Error::wrap)
    }

    /// Waits for all that the device was given.
    ///
    /// # Errors
    /// If some of it failed: what kernels wrote since the wait before is then not known.
    fn wait(&self) -> Result<()> {
        self.device.wait_until_completed()?;
        self.started.store(false, Ordering::Release);
        Ok(())
    }
}

impl Launcher for MetalLauncher {
    fn kernel(&self, library: Library, name: &str, threads: u32) -> Result<usize> {
        let mut compiled = self.compiled();
        if let Some(number) = compiled.kernels.iter().position(|kernel| kernel.library == library && kernel.name == name) {
            return compiled.kernels[number].for_threads(threads).map(|()| number);
        }
        let text = match compiled.libraries.get(&library) {
            Some(text) => text.clone(),
            None => {
                let text = self.compile(library)?;
                compiled.libraries.entry(library).or_insert(text).clone()
            }
        };
        let function = text.get_function(name, None).map_err(Error::wrap)?;
        let pipeline = self.device.metal_device().new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)?;
        let most_threads = pipeline.max_total_threads_per_threadgroup();
        let kernel = Kernel { library, name: name.to_owned(), pipeline, most_threads };
        kernel.for_threads(threads)?;
        compiled.kernels.push(kernel);
        Ok(compiled.kernels.len() - 1)
    }

    unsafe fn start(&self, launches: &[Launch]) -> Result<()> {
        let compiled = self.compiled();
        let mut kernels = Vec::with_capacity(launches.len());
        for launch in launches {
            let Some(kernel) = compiled.kernels.get(launch.kernel()) else { bail!("a kernel of another device") };
            kernels.push(kernel);
        }
        self.started.store(true, Ordering::Release);
        // candle's lock on the encoder, for all of them: no other operation of the device, and nothing that may fail, stands below.
        let guard = self.device.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        for (launch, kernel) in launches.iter().zip(kernels) {
            encoder.set_compute_pipeline_state(&kernel.pipeline);
            for (i, place) in launch.buffers().iter().enumerate() {
                // SAFETY: the caller vouches for the places.
                let buffer = unsafe { buffer(place) };
                match i < launch.first_written() {
                    true => encoder.set_input_buffer(i, Some(buffer), place.offset as usize),
                    false => encoder.set_output_buffer(i, Some(buffer), place.offset as usize),
                }
            }
            let words = launch.words();
            encoder.set_bytes_directly(launch.buffers().len(), size_of_val(words), words.as_ptr().cast());
            let [width, height, depth] = launch.grid.map(|count| count as usize);
            let threads = MTLSize { width: launch.threads as usize, height: 1, depth: 1 };
            encoder.dispatch_thread_groups(MTLSize { width, height, depth }, threads);
        }
        Ok(())
    }

    /// Metal encodes a list anew each time.
    fn record(self: Arc<Self>, _: &[Launch]) -> Result<Option<Box<dyn Recording>>> {
        Ok(None)
    }

    unsafe fn upload(&self, to: Place, words: &[u32]) -> Result<()> {
        // The device shares its memory with the CPU: what was started before may still read.
        if self.started.load(Ordering::Acquire) {
            self.wait()?;
        }
        // SAFETY: the caller vouches for the place.
        let memory = unsafe { host_memory(&to, size_of_val(words)) }?;
        // SAFETY: as many words begin there, and nothing of the device reads or writes them.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), memory.cast(), words.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Place, out: &mut [f32]) -> Result<()> {
        self.wait()?;
        // SAFETY: the caller vouches for the place.
        let memory = unsafe { host_memory(&from, size_of_val(out)) }?;
        // SAFETY: as many values begin there, and nothing of the device writes them.
        unsafe { std::ptr::copy_nonoverlapping(memory.cast_const().cast(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn units(&self) -> u32 {
        self.units
    }

    fn batch(&self) -> &CompiledBatch {
        &self.batch
    }
}

/// Where a tensor of Metal lies. The buffer's number is where candle's handle of it lies, which the tensor's storage owns.
pub fn place(storage: &MetalStorage) -> Place {
    Place { buffer: std::ptr::from_ref(storage.buffer()).expose_provenance(), offset: 0 }
}

/// The buffer of a place.
///
/// # Safety
/// The storage that the place was made of lives as long as the buffer is used.
unsafe fn buffer<'a>(place: &Place) -> &'a Buffer {
    // SAFETY: the number is the address of a buffer that lives, as the caller vouches for.
    unsafe { &*std::ptr::with_exposed_provenance::<Buffer>(place.buffer) }
}

/// Where the CPU finds a place that `bytes` are to begin at.
///
/// # Safety
/// As [`buffer`].
unsafe fn host_memory(place: &Place, bytes: usize) -> Result<*mut u8> {
    // SAFETY: the caller vouches for the same.
    let buffer = unsafe { buffer(place) };
    let (offset, length) = (place.offset as usize, buffer.length());
    if buffer.as_ref().storageMode() != MTLStorageMode::Shared || offset.checked_add(bytes).is_none_or(|end| end > length) {
        bail!(
            "a kernel's buffer: expected {bytes} bytes from {offset} on in memory that the CPU shares, found a buffer of {length}"
        )
    }
    // SAFETY: the offset is within the buffer.
    Ok(unsafe { buffer.contents().add(offset) })
}
