//! Where the GPU's kernels run: a device's compiler, its launches, and the memory that they are given.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;
#[cfg(any(feature = "cuda", target_os = "macos", target_os = "ios"))]
use std::sync::{Mutex, PoisonError, Weak};

use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use super::Library;
use super::batch::CompiledBatch;
use super::library::buffers_written;
use super::replay::{Recording, Replays};

/// Buffers that a kernel is given at most, and words of its struct.
const MOST_BUFFERS: usize = 11;
const MOST_WORDS: usize = 11;

/// Where memory of a device begins: a buffer's number, and bytes from its beginning on. Where memory has addresses the bytes are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Place {
    pub buffer: usize,
    pub offset: u64,
}

/// A compiled kernel, by the number that its launcher knows it by, and how many of its last buffers it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GpuKernel {
    number: usize,
    /// Threads of a threadgroup that it was compiled for, at most.
    threads: u32,
    #[cfg_attr(not(any(target_os = "macos", target_os = "ios")), allow(dead_code))]
    writes: u32,
}

/// A kernel with all that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Launch {
    kernel: GpuKernel,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    counts: [u32; 2],
    buffers: [Place; MOST_BUFFERS],
    words: [u32; MOST_WORDS],
}

// The tests' executor has them too; other builds have no device.
#[cfg(any(test, feature = "cuda", target_os = "macos", target_os = "ios"))]
impl Launch {
    /// The launcher's number of the kernel.
    pub(super) fn kernel(&self) -> usize {
        self.kernel.number
    }

    /// Its buffers in order.
    pub(super) fn buffers(&self) -> &[Place] {
        &self.buffers[..self.counts[0] as usize]
    }

    /// The first of those that it writes.
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    pub(super) fn first_written(&self) -> usize {
        self.buffers().len().saturating_sub(self.kernel.writes as usize)
    }

    /// The words of its struct.
    pub(super) fn words(&self) -> &[u32] {
        &self.words[..self.counts[1] as usize]
    }
}

#[cfg(test)]
impl Launch {
    /// A kernel with these words and no buffers.
    pub(super) fn with_words(words: [u32; 2]) -> Self {
        let mut own = [0; MOST_WORDS];
        own[..2].copy_from_slice(&words);
        let kernel = GpuKernel { number: 0, threads: 32, writes: 0 };
        Self { kernel, grid: [1; 3], threads: 32, counts: [0, 2], buffers: [Place::default(); MOST_BUFFERS], words: own }
    }
}

/// What a device does for the kernels.
pub(super) trait Launcher: Debug + Send + Sync {
    /// A kernel of a library, compiled when one of the library is first asked for; a number that the launcher knows it by.
    ///
    /// # Errors
    /// If it does not compile, or not for threadgroups of so many threads.
    fn kernel(&self, library: Library, name: &str, threads: u32) -> Result<usize>;

    /// Starts kernels, each behind those before it and behind all that was started before.
    ///
    /// # Safety
    /// The places are of memory on the device that the kernels stay within, and that lives until they have ended.
    unsafe fn start(&self, launches: &[Launch]) -> Result<()>;

    /// Records kernels, so that all of them can be started at once, and starts none; `None` where the device does nothing of the kind.
    fn record(self: Arc<Self>, launches: &[Launch]) -> Result<Option<Box<dyn Recording>>>;

    /// Writes words behind all kernels that were started before; nothing else reads or writes there.
    ///
    /// # Safety
    /// As many words of the device's memory begin at the place.
    unsafe fn upload(&self, to: Place, words: &[u32]) -> Result<()>;

    /// Waits for all that was started, and reads what kernels have written.
    ///
    /// # Safety
    /// As many values of the device's memory begin at the place.
    unsafe fn download(&self, from: Place, out: &mut [f32]) -> Result<()>;

    /// Multiprocessors, or cores.
    fn units(&self) -> u32;

    /// The kernels between the products of batches, as they are compiled.
    fn batch(&self) -> &CompiledBatch;
}

/// Launchers by their devices, each as long as somebody has it.
#[cfg(any(feature = "cuda", target_os = "macos", target_os = "ios"))]
pub(super) struct Known<I, L>(Mutex<Vec<(I, Weak<L>)>>);

#[cfg(any(feature = "cuda", target_os = "macos", target_os = "ios"))]
impl<I: PartialEq, L> Known<I, L> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// That of a device, made if there is none.
    pub fn get(&self, id: I, new: impl FnOnce() -> Result<L>) -> Result<Arc<L>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, launcher)| launcher.strong_count() > 0);
        if let Some(launcher) = known.iter().find(|(own, _)| *own == id).and_then(|(_, launcher)| launcher.upgrade()) {
            return Ok(launcher);
        }
        let launcher = Arc::new(new()?);
        known.push((id, Arc::downgrade(&launcher)));
        Ok(launcher)
    }
}

/// A device that the kernels run on.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(super) launcher: Arc<dyn Launcher>,
    device: Device,
}

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
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        if let Device::Metal(metal) = device {
            let launcher = super::metal::MetalLauncher::shared(metal)?;
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
            #[cfg(any(target_os = "macos", target_os = "ios"))]
            Device::Metal(_) => true,
            #[cfg(test)]
            Device::Cpu => super::tests::in_use().is_some(),
            _ => false,
        }
    }

    /// Room for what a kernel writes whole: who asks for it starts that kernel, or drops it.
    pub fn room(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        // SAFETY: every bit pattern is a number, and nobody reads them before a kernel has written all.
        unsafe { Tensor::empty(shape, dtype, self.device()) }
    }

    /// Where tensors are made that the kernels read and write.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A kernel, compiled for threadgroups of so many threads at most.
    pub(super) fn kernel(&self, library: Library, name: &str, threads: u32) -> Result<GpuKernel> {
        Ok(GpuKernel { number: self.launcher.kernel(library, name, threads)?, threads, writes: buffers_written(name) })
    }

    /// Kernels to be started.
    pub fn list(&self) -> LaunchList<'_> {
        self.list_in(Vec::new())
    }

    /// The same, where a list was that [was started](LaunchList::start_again).
    pub fn list_in(&self, launches: Vec<Launch>) -> LaunchList<'_> {
        LaunchList { gpu: self, launches, _lent: PhantomData }
    }

    /// Starts the list that was recorded under a key, without making it; `false` if there is none, or the key is empty. Who shares
    /// `replays` makes under a key the same launches each time: on the key's views, and on what lives as long as `replays`.
    ///
    /// # Errors
    /// As [`LaunchList::start`].
    pub fn start_known(&self, replays: &mut Replays, key: &ListKey<'_>) -> Result<bool> {
        // SAFETY: as for `start`: the list was held against its buffers when it was recorded, and these are they.
        unsafe { replays.start_known(key) }
    }

    /// Writes words behind all kernels that were started before, where kernels alone read.
    pub fn upload(&self, to: &GpuSlice, words: &[u32]) -> Result<()> {
        to.view().holds(words.len(), "an upload")?;
        // SAFETY: the slice has as many words.
        unsafe { self.launcher.upload(to.place, words) }
    }

    /// Waits for all that was started, and reads values from the one of this number on.
    pub fn download(&self, from: &GpuSlice, first: usize, out: &mut [f32]) -> Result<()> {
        from.view().holds(first + out.len(), "a download")?;
        let place = Place { offset: from.place.offset + 4 * first as u64, ..from.place };
        // SAFETY: the slice has as many values behind the first.
        unsafe { self.launcher.download(place, out) }
    }
}

/// What a list depends on, where one of equal words is equal in all its launches; without words it is of no list.
#[derive(Debug, Default)]
pub struct ListKey<'a> {
    words: Vec<u64>,
    _lent: PhantomData<&'a GpuSlice>,
}

impl<'a> ListKey<'a> {
    pub fn number(&mut self, number: usize) {
        self.words.push(number as u64);
    }

    /// Where a view begins, and its size.
    pub fn view(&mut self, view: GpuView<'a>) {
        self.words.extend([view.place.buffer as u64, view.place.offset, view.bytes as u64]);
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }
}

/// Kernels in the order in which they are to be started; what they read and write is lent until then.
pub struct LaunchList<'a> {
    pub(super) gpu: &'a Gpu,
    launches: Vec<Launch>,
    _lent: PhantomData<&'a GpuSlice>,
}

impl<'a> LaunchList<'a> {
    /// The device that they are for.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Appends a kernel on views that the caller has found large enough for what it reads and writes.
    ///
    /// # Errors
    /// If there are more buffers or words than any kernel has, or more threads than this one was compiled for.
    pub(super) fn push(
        &mut self,
        kernel: GpuKernel,
        grid: [u32; 3],
        threads: u32,
        buffers: &[GpuView<'a>],
        words: &[u32],
    ) -> Result<()> {
        if threads > kernel.threads {
            bail!("a kernel: expected at most {} threads of a threadgroup, found {threads}", kernel.threads)
        }
        let counts = [buffers.len() as u32, words.len() as u32];
        let mut launch =
            Launch { kernel, grid, threads, counts, buffers: [Place::default(); MOST_BUFFERS], words: [0; MOST_WORDS] };
        let (Some(places), Some(own)) = (launch.buffers.get_mut(..buffers.len()), launch.words.get_mut(..words.len())) else {
            bail!("a kernel: expected at most {MOST_BUFFERS} buffers and {MOST_WORDS} words, found {counts:?}")
        };
        places.iter_mut().zip(buffers).for_each(|(place, view)| *place = view.place);
        own.copy_from_slice(words);
        self.launches.push(launch);
        Ok(())
    }

    /// Starts the kernels behind all that was started before.
    ///
    /// # Errors
    /// A failed device operation; some may have been started.
    pub fn start(self) -> Result<()> {
        // SAFETY: a view is a part of a tensor on the device, whose memory is given back in the order of the device's work; the methods in
        // launch.rs compare its size with what the words make a kernel touch.
        unsafe { self.gpu.launcher.start(&self.launches) }
    }

    /// The same for lists that come again: by its key [`Gpu::start_known`] finds it. Returns the list for
    /// its memory, empty.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(mut self, replays: &mut Replays, key: ListKey<'a>) -> Result<Vec<Launch>> {
        // SAFETY: as for `start`.
        unsafe { replays.start(&self.gpu.launcher, &self.launches, key.words()) }?;
        self.launches.clear();
        Ok(self.launches)
    }

    /// The launches so far, which are not started.
    #[cfg(test)]
    pub fn into_launches(self) -> Vec<Launch> {
        self.launches
    }
}

/// A part of a tensor's memory, which lives as long as this does.
#[derive(Debug, Clone)]
pub struct GpuSlice {
    place: Place,
    bytes: usize,
    owner: Tensor,
}

/// A part of a tensor's memory, lent.
#[derive(Debug, Clone, Copy)]
pub struct GpuView<'a> {
    place: Place,
    bytes: usize,
    _owner: PhantomData<&'a Tensor>,
}

impl GpuSlice {
    /// All of a tensor, whose values lie one after another.
    ///
    /// # Errors
    /// As [`GpuView::of`].
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let GpuView { place, bytes, .. } = GpuView::of(tensor)?;
        Ok(Self { place, bytes, owner: tensor.clone() })
    }

    /// `words` words from word `start` on, a multiple of four.
    ///
    /// # Errors
    /// If the slice has fewer.
    pub fn words(&self, start: usize, words: usize) -> Result<Self> {
        let GpuView { place, bytes, .. } = self.view().words(start, words)?;
        Ok(Self { place, bytes, owner: self.owner.clone() })
    }

    /// All of it, lent.
    pub fn view(&self) -> GpuView<'_> {
        GpuView { place: self.place, bytes: self.bytes, _owner: PhantomData }
    }

    /// Words of four bytes.
    pub fn len(&self) -> usize {
        self.view().len()
    }
}

impl<'a> GpuView<'a> {
    /// All of a tensor, whose values lie one after another.
    ///
    /// # Errors
    /// If they do not, or if kernels cannot reach the device's memory.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("a kernel's buffer: expected contiguous values, found strides {:?}", tensor.stride())
        }
        Self::spanning(tensor, tensor.elem_count())
    }

    /// The `values` values from a tensor's first to its last, whatever lies between those that are its own.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(super) fn spanning(tensor: &'a Tensor, values: usize) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let size = tensor.dtype().size_in_bytes();
        let Place { buffer, offset } = place(&storage)?;
        let offset = offset + (layout.start_offset() * size) as u64;
        if !offset.is_multiple_of(16) {
            bail!("a kernel's buffer: expected an address that is a multiple of 16, found {offset:#x}")
        }
        Ok(Self { place: Place { buffer, offset }, bytes: values * size, _owner: PhantomData })
    }

    /// `words` words from word `start` on, a multiple of four.
    ///
    /// # Errors
    /// If the view has fewer.
    pub fn words(self, start: usize, words: usize) -> Result<Self> {
        if !start.is_multiple_of(4) || start + words > self.bytes / 4 {
            bail!("a kernel's buffer: expected a part of {} words, found {words} from {start} on", self.bytes / 4)
        }
        let place = Place { offset: self.place.offset + 4 * start as u64, ..self.place };
        Ok(Self { place, bytes: 4 * words, ..self })
    }

    /// Words of four bytes.
    pub fn len(self) -> usize {
        self.bytes / 4
    }

    pub(super) fn holds(self, words: usize, what: &str) -> Result<()> {
        self.holds_bytes(4 * words, what)
    }

    pub(super) fn holds_bytes(self, bytes: usize, what: &str) -> Result<()> {
        if self.bytes < bytes {
            bail!("{what}: expected a buffer of at least {bytes} bytes, found {}", self.bytes)
        }
        Ok(())
    }
}

/// Where a tensor's storage lies.
fn place(storage: &Storage) -> Result<Place> {
    match storage {
        #[cfg(test)]
        Storage::Cpu(storage) => Ok(Place { buffer: 0, offset: super::tests::address(storage)? }),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => Ok(Place { buffer: 0, offset: super::cuda::address(storage)? }),
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        Storage::Metal(storage) => Ok(super::metal::place(storage)),
        _ => bail!("a kernel's buffer: no memory of a device that kernels run on"),
    }
}
