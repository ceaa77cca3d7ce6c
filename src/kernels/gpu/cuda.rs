//! The kernels on CUDA: compiled by NVRTC when a model is loaded, so that no toolkit is needed, and launched in the order of the
//! device's one stream.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, result, sys};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, Error, Result, bail};
use half::{bf16, f16};

use super::Library;
use super::device::Launcher;
use super::library::Dialect;

/// A compiled library; unloaded with the launcher.
struct Module(sys::CUmodule);

pub struct CudaLauncher {
    stream: Arc<CudaStream>,
    /// `compute_90`.
    architecture: String,
    /// Whether a launch may begin while the one before still runs.
    early: bool,
    units: u32,
    modules: Mutex<HashMap<Library, Module>>,
}

// SAFETY: handles of modules and functions may be used by any thread that has bound their context, which every method does.
unsafe impl Send for CudaLauncher {}
// SAFETY: the same.
unsafe impl Sync for CudaLauncher {}

impl std::fmt::Debug for CudaLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaLauncher({})", self.architecture)
    }
}

impl CudaLauncher {
    /// The launcher of a device: one for all that compute there, as long as one of them lives, so that a library is compiled once.
    pub fn shared(device: &CudaDevice) -> Result<Arc<Self>> {
        static KNOWN: Mutex<Vec<(DeviceId, Weak<CudaLauncher>)>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, launcher)| launcher.strong_count() > 0);
        let own = known.iter().find(|(id, _)| *id == device.id()).and_then(|(_, launcher)| launcher.upgrade());
        if let Some(launcher) = own {
            return Ok(launcher);
        }
        let launcher = Arc::new(Self::new(device)?);
        known.push((device.id(), Arc::downgrade(&launcher)));
        Ok(launcher)
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        use sys::CUdevice_attribute as Attribute;
        let stream = device.cuda_stream();
        let attribute = |attribute| stream.context().attribute(attribute).map_err(Error::wrap);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let units = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let architecture = format!("compute_{major}{minor}");
        Ok(Self { stream, architecture, early: major >= 9, units: units.max(1) as u32, modules: Mutex::default() })
    }

    fn compile(&self, library: Library) -> Result<Module> {
        let options = CompileOptions {
            options: vec![
                format!("--gpu-architecture={}", self.architecture),
                "--device-as-default-execution-space".to_string(),
                "-w".to_string(),
            ],
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(library.text(Dialect::Cuda), options)
            .map_err(|error| Error::msg(format!("GPU kernels {:?}: {error:?}", library.name())))?;
        let image = CString::new(ptx.to_src()).map_err(Error::wrap)?;
        // SAFETY: the image is PTX that ends with a zero, and the context is bound.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map(Module).map_err(Error::wrap)
    }

    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(Error::wrap)
    }
}

impl Drop for CudaLauncher {
    fn drop(&mut self) {
        let bound = self.bind().is_ok() && self.stream.synchronize().is_ok();
        let modules = self.modules.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, module) in modules.drain().filter(|_| bound) {
            // SAFETY: it was loaded in this context, and nothing of it runs any more. What fails here is the context's end.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

impl Launcher for CudaLauncher {
    fn kernel(&self, library: Library, name: &str) -> Result<usize> {
        self.bind()?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(&library) {
            Some(module) => module.0,
            None => {
                let module = self.compile(library)?;
                modules.entry(library).or_insert(module).0
            }
        };
        let name = CString::new(name).map_err(Error::wrap)?;
        // SAFETY: the module stays loaded as long as this launcher.
        let function = unsafe { result::module::get_function(module, name) }.map_err(Error::wrap)?;
        Ok(function as usize)
    }

    unsafe fn launch(&self, kernel: usize, grid: [u32; 3], threads: u32, pointers: &[u64], params: &[u32]) -> Result<()> {
        self.bind()?;
        let mut args = [std::ptr::null_mut::<c_void>(); 16];
        for (arg, pointer) in args.iter_mut().zip(pointers) {
            *arg = std::ptr::from_ref(pointer).cast_mut().cast();
        }
        args[pointers.len()] = params.as_ptr().cast_mut().cast();
        // SAFETY: zero is a value of every attribute.
        let mut early: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        early.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        early.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream.cu_stream(),
            attrs: &mut early,
            numAttrs: u32::from(self.early),
        };
        // SAFETY: the function is of a module that is loaded; the arguments are addresses of its pointers, which the caller vouches for,
        // and of its struct's words, and the driver copies them before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, kernel as sys::CUfunction, args.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(Error::wrap)
    }

    unsafe fn upload(&self, to: u64, words: &[u32]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the address; the driver has read pageable memory when it returns.
        unsafe { result::memcpy_htod_async(to, words, self.stream.cu_stream()) }.map_err(Error::wrap)
    }

    unsafe fn download(&self, from: u64, out: &mut [f32]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the address, and what is read into is waited for here.
        unsafe { result::memcpy_dtoh_async(out, from, self.stream.cu_stream()) }.map_err(Error::wrap)?;
        self.stream.synchronize().map_err(Error::wrap)
    }

    fn units(&self) -> u32 {
        self.units
    }
}

/// Where a tensor of CUDA lies.
pub fn address(storage: &CudaStorage) -> Result<u64> {
    fn first<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
        let stream = storage.device.cuda_stream();
        Ok(storage.as_cuda_slice::<T>()?.device_ptr(&stream).0)
    }
    match storage.slice {
        CudaStorageSlice::U32(_) => first::<u32>(storage),
        CudaStorageSlice::F32(_) => first::<f32>(storage),
        CudaStorageSlice::F16(_) => first::<f16>(storage),
        CudaStorageSlice::BF16(_) => first::<bf16>(storage),
        _ => bail!("a kernel's buffer: expected U32, F32, F16 or BF16"),
    }
}
