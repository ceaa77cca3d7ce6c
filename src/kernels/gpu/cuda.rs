//! The kernels on CUDA: compiled by NVRTC when a model is loaded, without headers or a compiler of a toolkit, and launched in the order of
//! the device's one stream. NVRTC is a library that candle links with, as cuBLAS and cuRAND are: they have to be installed.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, result, sys};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, Error, Result, bail};
use half::{bf16, f16};

use super::Library;
use super::batch::CompiledBatch;
use super::device::{Known, Launch, Launcher, Place};
use super::library::Dialect;
use super::replay::Recording;

/// A compiled library; unloaded with the launcher.
struct Module(sys::CUmodule);

/// A list of launches as a graph, whose kernels may begin early as they do one by one.
struct Graph {
    executable: sys::CUgraphExec,
    launcher: Arc<CudaLauncher>,
}

// SAFETY: a graph may be launched by any thread that has bound its context, one at a time.
unsafe impl Send for Graph {}

impl Recording for Graph {
    unsafe fn start(&self) -> Result<()> {
        self.launcher.bind()?;
        // SAFETY: the graph was instantiated in this context; the caller vouches for what its kernels reach.
        unsafe { result::graph::launch(self.executable, self.launcher.stream.cu_stream()) }.map_err(Error::wrap)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.launcher.bind().is_ok() {
            // SAFETY: it was instantiated in this context, and goes when it no longer runs. What fails here is the context's end.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// A stream that kernels are recorded in: in the device's own, other threads' work would become part of a graph.
struct RecordingStream(sys::CUstream);

impl RecordingStream {
    /// In the bound context.
    fn new() -> Result<Self> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Self).map_err(Error::wrap)
    }

    /// What is started in this stream while `start` runs.
    fn record(&self, start: impl FnOnce(sys::CUstream) -> Result<()>) -> Result<RecordedGraph> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives, and nothing else uses it.
        unsafe { sys::cuStreamBeginCapture_v2(self.0, mode) }.result().map_err(Error::wrap)?;
        let started = start(self.0);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the recording was begun above, by this thread.
        let ended = unsafe { sys::cuStreamEndCapture(self.0, &mut graph) }.result().map_err(Error::wrap);
        let graph = RecordedGraph(graph);
        started?;
        ended.map(|()| graph)
    }
}

impl Drop for RecordingStream {
    fn drop(&mut self) {
        // SAFETY: it was made here, and records no longer.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// What was recorded; null if that failed.
struct RecordedGraph(sys::CUgraph);

impl RecordedGraph {
    fn nodes(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the graph lives; without room for nodes their number is told.
        unsafe { sys::cuGraphGetNodes(self.0, std::ptr::null_mut(), &mut count) }.result().map_err(Error::wrap)?;
        Ok(count)
    }

    fn instantiate(&self) -> Result<sys::CUgraphExec> {
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph lives.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, self.0, 0) }.result().map_err(Error::wrap)?;
        Ok(executable)
    }
}

impl Drop for RecordedGraph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it was recorded here.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}

/// Memory of the host that the device writes by itself; other memory it is given in pieces, each with a wait. Freed with the launcher.
struct Pinned {
    memory: *mut f32,
    len: usize,
}

impl Pinned {
    /// Room for so many values, in the bound context; `None` if the system has none.
    fn room(&mut self, len: usize) -> Option<&mut [f32]> {
        if len > self.len {
            self.free();
            // SAFETY: what is returned is memory of so many bytes, or an error.
            let memory = unsafe { result::malloc_host(len.checked_mul(size_of::<f32>())?, 0) }.ok()?.cast::<f32>();
            // SAFETY: the same; zeros are values.
            unsafe { memory.write_bytes(0, len) };
            *self = Self { memory, len };
        }
        // SAFETY: as many values begin there; the launcher's lock lends them once.
        (len > 0).then(|| unsafe { std::slice::from_raw_parts_mut(self.memory, len) })
    }

    /// In the bound context, when nothing is written there.
    fn free(&mut self) {
        if self.len > 0 {
            // SAFETY: it was given out by the same allocator, and goes once. What fails here is the context's end.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
        *self = Self { memory: std::ptr::null_mut(), len: 0 };
    }
}

pub struct CudaLauncher {
    stream: Arc<CudaStream>,
    /// `compute_90`.
    architecture: String,
    /// Whether a launch may begin while the one before still runs.
    early: bool,
    units: u32,
    modules: Mutex<HashMap<Library, Module>>,
    /// Where results come to.
    pinned: Mutex<Pinned>,
    batch: CompiledBatch,
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
        static KNOWN: Known<DeviceId, CudaLauncher> = Known::new();
        KNOWN.get(device.id(), || Self::new(device))
    }

    fn new(device: &CudaDevice) -> Result<Self> {
        use sys::CUdevice_attribute as Attribute;
        let stream = device.cuda_stream();
        let attribute = |attribute| stream.context().attribute(attribute).map_err(Error::wrap);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let units = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let pinned = Mutex::new(Pinned { memory: std::ptr::null_mut(), len: 0 });
        let architecture = format!("compute_{major}{minor}");
        Ok(Self {
            stream,
            architecture,
            early: major >= 9,
            units: units.max(1) as u32,
            modules: Mutex::default(),
            pinned,
            batch: CompiledBatch::default(),
        })
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

    /// Starts a kernel in a stream of the bound context.
    ///
    /// # Safety
    /// As [`Launcher::start`].
    unsafe fn launch(&self, launch: &Launch, stream: sys::CUstream) -> Result<()> {
        let mut args = [std::ptr::null_mut::<c_void>(); 16];
        for (arg, place) in args.iter_mut().zip(launch.buffers()) {
            *arg = std::ptr::from_ref(&place.offset).cast_mut().cast();
        }
        args[launch.buffers().len()] = launch.words().as_ptr().cast_mut().cast();
        // SAFETY: zero is a value of every attribute.
        let mut early: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        early.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        early.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: &mut early,
            numAttrs: u32::from(self.early),
        };
        let kernel = launch.kernel() as sys::CUfunction;
        // SAFETY: the function is of a module that is loaded; the arguments are addresses of its pointers, which the caller vouches for,
        // and of its struct's words, and the driver copies them before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, kernel, args.as_mut_ptr(), std::ptr::null_mut()) }.result().map_err(Error::wrap)
    }
}

impl Drop for CudaLauncher {
    fn drop(&mut self) {
        let bound = self.bind().is_ok() && self.stream.synchronize().is_ok();
        if bound {
            self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner).free();
        }
        let modules = self.modules.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, module) in modules.drain().filter(|_| bound) {
            // SAFETY: it was loaded in this context, and nothing of it runs any more. What fails here is the context's end.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

impl Launcher for CudaLauncher {
    /// Each has room in registers for the threads that its `__launch_bounds__` name.
    fn kernel(&self, library: Library, name: &str, _: u32) -> Result<usize> {
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

    unsafe fn start(&self, launches: &[Launch]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the places.
        launches.iter().try_for_each(|launch| unsafe { self.launch(launch, self.stream.cu_stream()) })
    }

    fn record(self: Arc<Self>, launches: &[Launch]) -> Result<Option<Box<dyn Recording>>> {
        self.bind()?;
        let stream = RecordingStream::new()?;
        // SAFETY: what is started there is recorded, and does not run.
        let graph = stream.record(|stream| launches.iter().try_for_each(|launch| unsafe { self.launch(launch, stream) }))?;
        let nodes = graph.nodes()?;
        if nodes != launches.len() {
            bail!("a graph: expected {} kernels, found {nodes}", launches.len())
        }
        let executable = graph.instantiate()?;
        Ok(Some(Box::new(Graph { executable, launcher: self })))
    }

    unsafe fn upload(&self, to: Place, words: &[u32]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller vouches for the address; the driver has read pageable memory when it returns.
        unsafe { result::memcpy_htod_async(to.offset, words, self.stream.cu_stream()) }.map_err(Error::wrap)
    }

    unsafe fn download(&self, from: Place, out: &mut [f32]) -> Result<()> {
        self.bind()?;
        let read = |into: &mut [f32]| {
            // SAFETY: the caller vouches for the address, and what is read into is waited for here.
            unsafe { result::memcpy_dtoh_async(into, from.offset, self.stream.cu_stream()) }.map_err(Error::wrap)?;
            self.stream.synchronize().map_err(Error::wrap)
        };
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        match pinned.room(out.len()) {
            Some(values) => {
                read(values)?;
                out.copy_from_slice(values);
                Ok(())
            }
            None => read(out),
        }
    }

    fn units(&self) -> u32 {
        self.units
    }

    fn batch(&self) -> &CompiledBatch {
        &self.batch
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
