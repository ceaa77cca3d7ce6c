//! Where the arithmetic runs: the CPU, an Apple GPU through Metal, or an NVIDIA GPU through CUDA.
//!
//! ```
//! use metal_candle::{Device, DeviceKind};
//! let device = Device::new(DeviceKind::Cpu, 0)?;
//! assert_eq!(device.kind(), DeviceKind::Cpu);
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{self, Backend};

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

/// A device; clones are the same device and share its gate. Metal is opened once a process, so all its handles share one gate.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kind: DeviceKind,
    name: String,
    backend: Backend,
    gate: Mutex<Gate>,
    idle: Condvar,
    /// How often work has failed that it had been given. Metal tells a failure once, to whoever waits first: all whose work was
    /// under way must learn of it, so they wait one after another.
    failures: AtomicU64,
    waiting: Mutex<()>,
    /// On Metal one thread's work after another: candle hands out buffers, keeps them resident, and orders kernels by what they write, and
    /// does so for one thread. Another one's wait, between two kernels, would make it forget what those in front have written.
    turns: Option<Turns>,
}

/// One thread at a time, as often as it likes.
#[derive(Default)]
struct Turns {
    /// Whose turn it is, and how often it has it.
    held: Mutex<Option<(ThreadId, usize)>>,
    free: Condvar,
}

/// Until dropped it is this thread's turn.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn held(&self) -> MutexGuard<'_, Option<(ThreadId, usize)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this thread's turn.
    fn take(&self) -> Turn<'_> {
        self.take_times(1);
        Turn(self)
    }

    fn take_times(&self, times: usize) {
        let (own, mut held) = (std::thread::current().id(), self.held());
        loop {
            match &mut *held {
                None => {
                    *held = Some((own, times));
                    return;
                }
                Some((thread, count)) if *thread == own => {
                    *count += times;
                    return;
                }
                Some(_) => held = self.free.wait(held).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Ends this thread's turn for as long as `work` runs, if it is its turn.
    fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        let own = std::thread::current().id();
        let times = self.held().take_if(|(thread, _)| *thread == own).map_or(0, |(_, times)| times);
        self.free.notify_one();
        let result = work();
        if times > 0 {
            self.take_times(times);
        }
        result
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut held = self.0.held();
        *held = held.take().and_then(|(thread, count)| (count > 1).then_some((thread, count - 1)));
        self.0.free.notify_one();
    }
}

/// Who may work: iOS kills an app that uses the GPU in the background.
#[derive(Default)]
struct Gate {
    suspended: bool,
    working: usize,
}

/// What a suspension waits for at most: so long that a deadline is still a time that the system can tell.
const LONGEST_WAIT: Duration = Duration::from_secs(1 << 30);

/// Leave to work on the device, until dropped.
struct Permit<'a>(&'a Inner);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.gate();
        gate.working -= 1;
        if gate.working == 0 {
            self.0.idle.notify_all();
        }
    }
}

impl Inner {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // The two fields are always consistent: a panic elsewhere in the holder changes neither.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_gate(&self) -> Result<MutexGuard<'_, Gate>> {
        let gate = self.gate();
        if gate.suspended {
            return Err(Error::new(ErrorKind::Suspended, format!("{}: suspended, resume it first", self.name)));
        }
        Ok(gate)
    }
}

impl Device {
    /// How many devices of a kind this process can open; `Auto` counts as one.
    pub fn count(kind: DeviceKind) -> usize {
        match kind {
            DeviceKind::Auto | DeviceKind::Cpu => 1,
            DeviceKind::Metal => usize::from(gpu::metal().is_ok()),
            DeviceKind::Cuda => (0..64).take_while(|&index| gpu::cuda(index).is_ok()).count(),
        }
    }

    /// Opens a device; `index` is 0 for all but CUDA.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if this build or machine has no such device. `Auto` never fails for lack of a GPU.
    pub fn new(kind: DeviceKind, index: usize) -> Result<Self> {
        if index > 0 && kind != DeviceKind::Cuda {
            return Err(Error::new(ErrorKind::NotFound, format!("device index: expected 0 for {kind:?}, found {index}")));
        }
        match kind {
            DeviceKind::Cpu => Ok(Self::open(DeviceKind::Cpu, "CPU".to_string(), candle_core::Device::Cpu)),
            DeviceKind::Metal => gpu::metal(),
            DeviceKind::Cuda => Ok(Self::open(DeviceKind::Cuda, format!("CUDA {index}"), gpu::cuda(index)?)),
            DeviceKind::Auto => {
                for kind in [DeviceKind::Metal, DeviceKind::Cuda] {
                    match Self::new(kind, 0) {
                        Ok(device) => return Ok(device),
                        Err(error) => log::debug!("{error}"),
                    }
                }
                Self::new(DeviceKind::Cpu, 0)
            }
        }
    }

    fn open(kind: DeviceKind, name: String, candle: candle_core::Device) -> Self {
        Self::with_backend(kind, name, Backend::new(&candle))
    }

    /// The processor by the tensor operations of GPUs: what no GPU is needed to find is found here.
    #[cfg(feature = "selftest")]
    #[doc(hidden)]
    pub fn cpu_by_tensors() -> Self {
        let backend = Backend::by_tensors(&candle_core::Device::Cpu);
        Self::with_backend(DeviceKind::Cpu, "CPU by tensor operations".to_string(), backend)
    }

    fn with_backend(kind: DeviceKind, name: String, backend: Backend) -> Self {
        Self(Arc::new(Inner {
            kind,
            name,
            backend,
            gate: Mutex::default(),
            idle: Condvar::new(),
            failures: AtomicU64::new(0),
            waiting: Mutex::default(),
            turns: (kind == DeviceKind::Metal).then(Turns::default),
        }))
    }

    /// What was opened; never `Auto`.
    pub fn kind(&self) -> DeviceKind {
        self.0.kind
    }

    /// A name for people.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes in use by this process, and bytes there are: of the machine's memory, which an Apple GPU shares.
    ///
    /// # Errors
    /// `ErrorKind::Unsupported` where the system does not tell.
    pub fn memory(&self) -> Result<(u64, u64)> {
        if let Some(memory) = self.0.backend.memory()? {
            return Ok(memory);
        }
        match (ops::resident_bytes(), ops::physical_bytes()) {
            (Some(used), Some(total)) => Ok((used, total)),
            _ => Err(Error::unsupported("device memory: this system does not tell how much there is")),
        }
    }

    /// Waits until all work that was given to the device is done.
    ///
    /// # Errors
    /// `ErrorKind::Device` if some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        let _turn = self.0.turns.as_ref().map(Turns::take);
        let _waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.0.backend.synchronize();
        self.0.failures.fetch_add(u64::from(done.is_err()), Ordering::Relaxed);
        done
    }

    /// Closes the device for new work, then waits until what runs has reached the end of its step: a prefill chunk, a token, a batch of
    /// texts, a piece of a file.
    ///
    /// Work that meets the closed gate ends with `ErrorKind::Suspended`; it does not wait, as the thread that would resume the device
    /// may be its own. Once the device is resumed everything goes on to the result that it would have had: an answer by
    /// [`Session::next`](super::Session::next), other calls when they are made again.
    ///
    /// # Errors
    /// `ErrorKind::Busy` if something still runs after `timeout`; the gate stays closed.
    pub fn suspend(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout.min(LONGEST_WAIT);
        let mut gate = self.0.gate();
        gate.suspended = true;
        while gate.working > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Err(Error::new(ErrorKind::Busy, format!("suspend: work still runs after {} ms", timeout.as_millis())));
            };
            gate = self.0.idle.wait_timeout(gate, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(gate);
        self.synchronize()
    }

    /// Opens the device again.
    pub fn resume(&self) {
        self.0.gate().suspended = false;
    }

    /// Runs work on the threads that compute: a chunk, a token, a batch. All work that networks do goes through here or through
    /// [`work`](Self::work), and so through the gate and an autorelease pool. When it returns, the device has done what it was given.
    ///
    /// # Errors
    /// `ErrorKind::Suspended` while the device is suspended; `ErrorKind::Device` also if what failed was given to it by another thread
    /// meanwhile. What the work wrote is then not known.
    pub(crate) fn compute<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.let_in(|backend| backend.compute(work))
    }

    /// The same on the calling thread: uploads, read-backs, what calls its caller back.
    ///
    /// # Errors
    /// As [`compute`](Self::compute).
    pub(crate) fn work<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.let_in(|backend| backend.here(work))
    }

    fn let_in<R>(&self, run: impl FnOnce(&Backend) -> Result<R>) -> Result<R> {
        // First: who waits for a turn does not hold a suspension up.
        let _turn = self.0.turns.as_ref().map(Turns::take);
        let _permit = self.permit()?;
        let before = self.0.failures.load(Ordering::Relaxed);
        let result = run(&self.0.backend);
        if !self.0.backend.is_asynchronous() {
            return result;
        }
        // Also after an error: what else failed must not be told to the next step.
        let done = self.synchronize();
        let result = result?;
        done?;
        if self.0.failures.load(Ordering::Relaxed) != before {
            return Err(Error::new(ErrorKind::Device, format!("{}: work failed that was under way", self.0.name)));
        }
        Ok(result)
    }

    /// Lets other threads work meanwhile, where one works at a time: for what work calls its caller back with.
    pub(crate) fn aside<R>(&self, call: impl FnOnce() -> R) -> R {
        match &self.0.turns {
            Some(turns) => turns.aside(call),
            None => call(),
        }
    }

    fn permit(&self) -> Result<Permit<'_>> {
        self.0.open_gate()?.working += 1;
        Ok(Permit(&self.0))
    }

    /// # Errors
    /// `ErrorKind::Suspended` while the device is suspended: what takes long ends early.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.open_gate().map(drop)
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Gives memory that is kept for reuse back to the system, down to `keep_bytes`.
    pub fn trim_memory(keep_bytes: u64) -> Result<()> {
        ops::trim(usize::try_from(keep_bytes).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// Opening GPUs through candle.
mod gpu {
    use super::{Error, ErrorKind, Result};
    use candle_core::Device;

    /// The one Metal device of this process: each has its own buffers and command queue, so a second one could not share
    /// weights, and a suspended app must stop all work of the GPU at one gate.
    #[cfg(any(feature = "metal", target_os = "macos", target_os = "ios"))]
    pub fn metal() -> Result<super::Device> {
        use std::sync::OnceLock;
        static METAL: OnceLock<std::result::Result<super::Device, String>> = OnceLock::new();
        METAL
            .get_or_init(|| {
                // candle panics where there is no GPU session, and before macOS 15.
                match std::panic::catch_unwind(|| Device::new_metal(0)) {
                    Ok(Ok(device)) => Ok(super::Device::open(super::DeviceKind::Metal, "Metal".to_string(), device)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("the system refused a GPU session (macOS 15 or iOS 18 is needed)".to_string()),
                }
            })
            .clone()
            .map_err(|message| Error::new(ErrorKind::NotFound, format!("Metal: {message}")))
    }

    #[cfg(not(any(feature = "metal", target_os = "macos", target_os = "ios")))]
    pub fn metal() -> Result<super::Device> {
        Err(Error::new(ErrorKind::NotFound, "Metal: this build has no Metal"))
    }

    #[cfg(feature = "cuda")]
    pub fn cuda(index: usize) -> Result<Device> {
        let device = crate::ops::open_cuda(index);
        device.map_err(|e| Error::new(ErrorKind::NotFound, format!("CUDA {index}: {e}")).with_source(e))
    }

    #[cfg(not(feature = "cuda"))]
    pub fn cuda(index: usize) -> Result<Device> {
        Err(Error::new(ErrorKind::NotFound, format!("CUDA {index}: this build has no CUDA")))
    }
}

/// Makes the threads that work is shared by, unless they are there.
///
/// # Errors
/// `OutOfMemory` if the system gives no thread; the next call tries again.
pub(super) fn check_threads() -> Result<()> {
    ops::start_threads().map_err(no_threads)
}

fn no_threads(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("threads: {e}")).with_source(e)
}

/// More than any processor has, and few enough that a typing error does not exhaust the system.
const MOST_THREADS: usize = 1024;

/// Computes with so many threads from now on: whatever begins behind this call, on every model of the process. What runs keeps those that
/// it has until it ends. Results on the CPU have the same bits with any number.
///
/// `count`: up to 1024; 0 (the default) = as many as `RAYON_NUM_THREADS` says, or as there are processors.
///
/// # Errors
/// `InvalidArgument` for more; `OutOfMemory` if the system gives no so many threads, and those there are stay in use; `Unsupported` in a
/// process that was forked from one whose threads were made.
pub fn set_threads(count: usize) -> Result<()> {
    if count > MOST_THREADS {
        return Err(Error::argument(format!("threads: expected 0 to {MOST_THREADS}, found {count}")));
    }
    check_process()?;
    ops::set_threads(count).map_err(no_threads)
}

/// How many threads compute; made, unless they are there.
///
/// # Errors
/// `OutOfMemory` if the system gives no thread; `Unsupported` in a process that was forked from one whose threads were made.
pub fn threads() -> Result<usize> {
    check_process()?;
    ops::thread_count().map_err(no_threads)
}

/// # Errors
/// `Unsupported` in a process that was forked from one whose threads were made: it has none of them.
pub(crate) fn check_process() -> Result<()> {
    if ops::is_forked() {
        return Err(Error::unsupported(
            "the process was forked after the library had made its threads, which only its parent has",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspended_device_refuses_work_until_it_resumes() {
        let device = Device::new(DeviceKind::Cpu, 0).unwrap();
        let error = device.compute(|| device.suspend(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        device.suspend(Duration::MAX).unwrap();
        let nothing = || -> Result<()> { panic!("work on a suspended device") };
        assert_eq!(device.compute(nothing).unwrap_err().kind(), ErrorKind::Suspended);
        assert_eq!(device.work(nothing).unwrap_err().kind(), ErrorKind::Suspended);
        device.clone().resume();
        assert_eq!(device.compute(|| Ok(1)).unwrap() + device.work(|| Ok(2)).unwrap(), 3);
    }

    #[test]
    fn a_failure_that_another_thread_is_told_of_is_one_of_all_steps_under_way() {
        let backend = Backend::by_tensors(&candle_core::Device::Cpu);
        let device = Device::with_backend(DeviceKind::Cpu, "CPU".to_string(), backend);
        let told = || Ok(device.0.failures.fetch_add(1, Ordering::Relaxed));
        assert_eq!(device.compute(told).unwrap_err().kind(), ErrorKind::Device);
        device.compute(|| Ok(())).unwrap();
    }

    #[test]
    fn on_metal_threads_work_one_after_another_but_in_what_they_call_back() {
        let backend = Backend::by_tensors(&candle_core::Device::Cpu);
        let device = Device::with_backend(DeviceKind::Metal, "Metal".to_string(), backend);
        let working = AtomicU64::new(0);
        let alone = || {
            assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
            std::thread::sleep(Duration::from_micros(200));
            working.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        // Within its own turn a thread goes on, and waits for the device.
                        device.work(|| device.compute(alone).and_then(|()| device.synchronize())).unwrap();
                    }
                });
            }
        });
        // A caller that is called back may wait for another thread's work.
        let other = || std::thread::scope(|scope| scope.spawn(|| device.compute(alone)).join().unwrap());
        device.work(|| device.work(|| device.aside(other)).and_then(|()| alone())).unwrap();
        device.aside(other).unwrap();
        assert!(device.0.turns.as_ref().unwrap().held().is_none());
    }

    #[test]
    fn the_cpu_is_always_there() {
        let device = Device::new(DeviceKind::Auto, 0).unwrap();
        assert_ne!(device.kind(), DeviceKind::Auto);
        match Device::new(DeviceKind::Cpu, 0).unwrap().memory() {
            Ok((used, total)) => assert!(used > 0 && used < total),
            Err(error) => assert!(cfg!(windows) && error.kind() == ErrorKind::Unsupported, "{error}"),
        }
        assert_eq!(Device::new(DeviceKind::Cpu, 1).err().unwrap().kind(), ErrorKind::NotFound);
    }
}
