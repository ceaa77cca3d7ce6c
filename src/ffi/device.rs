//! Devices: where the arithmetic runs, the CPU, an Apple GPU through Metal or an NVIDIA GPU through CUDA.
//!
//! A model loads onto the best device by itself; make a device to choose one, or to stop work while an app is in the
//! background: mc_device_suspend() closes it for all models that were loaded onto it, and mc_device_resume() lets them go on.
//!
//! @snippet inspect.c device
//! @see @ref model, @ref library
//!
//! Threads: any, concurrently.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::time::Duration;

use super::boundary::{Enumeration, checked, guard, guard_or};
use super::error::{mc_error, mc_status};
use super::handle::{Given, Object, Out, OutHandle, free};
use super::text::{Text, empty};
use crate::{Device, DeviceKind};

/// The kinds of device.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mc_device_kind {
    /// The best there is: Metal or CUDA where this build and this machine have it, else the CPU.
    MC_DEVICE_AUTO = 0,
    /// The processor.
    MC_DEVICE_CPU = 1,
    /// An Apple GPU.
    MC_DEVICE_METAL = 2,
    /// An NVIDIA GPU.
    MC_DEVICE_CUDA = 3,
    /// Not a value: makes the enum 32 bits wide.
    MC_DEVICE_KIND_FORCE32 = 0x7fff_ffff,
}

/// A device. Models keep theirs alive.
pub struct mc_device {
    _opaque: [u8; 0],
}

pub(super) struct DeviceState {
    pub(super) device: Device,
    name: Text,
}

impl Object for mc_device {
    const NAME: &'static str = "mc_device";
    type Inner = DeviceState;
}

impl Enumeration for mc_device_kind {
    const NAME: &'static str = "mc_device_kind";
    type Meaning = DeviceKind;
    const TABLE: &'static [(Self, Self::Meaning)] = &[
        (Self::MC_DEVICE_AUTO, DeviceKind::Auto),
        (Self::MC_DEVICE_CPU, DeviceKind::Cpu),
        (Self::MC_DEVICE_METAL, DeviceKind::Metal),
        (Self::MC_DEVICE_CUDA, DeviceKind::Cuda),
    ];
}

impl From<DeviceKind> for mc_device_kind {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Auto => Self::MC_DEVICE_AUTO,
            DeviceKind::Cpu => Self::MC_DEVICE_CPU,
            DeviceKind::Metal => Self::MC_DEVICE_METAL,
            DeviceKind::Cuda => Self::MC_DEVICE_CUDA,
        }
    }
}

/// How many devices of a kind this process can open.
///
/// @param kind  a kind; MC_DEVICE_AUTO and MC_DEVICE_CPU count one.
/// @return 0 for a kind that this build or machine lacks, and for a number that is no kind.
#[unsafe(no_mangle)]
pub extern "C" fn mc_device_count(kind: MaybeUninit<mc_device_kind>) -> usize {
    guard_or(0, || Ok(Device::count(checked(kind, "kind")?)))
}

/// Opens a device.
///
/// @param kind   which kind.
/// @param index  which of them, from 0 to mc_device_count() - 1; 0 for MC_DEVICE_AUTO and MC_DEVICE_CPU.
/// @param out    receives one reference; free it with mc_device_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_NOT_FOUND if this build or machine has no such device.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_device_new(
    kind: MaybeUninit<mc_device_kind>,
    index: usize,
    out: MaybeUninit<&mut *mut mc_device>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let device = Device::new(checked(kind, "kind")?, index)?;
        out.set(DeviceState { name: Text::line(device.name()), device });
        Ok(mc_status::MC_OK)
    })
}

/// The kind of device that was opened. (In C a function cannot have the name of the type that it returns.)
///
/// @param device  the device.
/// @return never MC_DEVICE_AUTO, except for a wrong handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_device_kind_of(device: MaybeUninit<&mc_device>) -> mc_device_kind {
    guard_or(mc_device_kind::MC_DEVICE_AUTO, || Ok(device.lend("device")?.device.kind().into()))
}

/// What the system calls the device.
///
/// @param device  the device.
/// @return UTF-8, NUL-terminated, valid until the device is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_device_name(device: MaybeUninit<&mc_device>) -> MaybeUninit<&c_char> {
    guard_or(empty(), || Ok(device.lend("device")?.name.pointer()))
}

/// How much of the device's memory is in use.
///
/// @param device       the device.
/// @param used_bytes   receives what is in use by this process; on CUDA by all.
/// @param total_bytes  receives what there is; on Metal what the system recommends to use at most.
/// @param err          NULL, or receives the error.
/// @return MC_OK; MC_ERROR_DEVICE; MC_ERROR_UNSUPPORTED where the system does not tell.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_device_memory(
    device: MaybeUninit<&mc_device>,
    used_bytes: MaybeUninit<&mut u64>,
    total_bytes: MaybeUninit<&mut u64>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let (used_bytes, total_bytes) = (Out::new(used_bytes, "used_bytes")?, Out::new(total_bytes, "total_bytes")?);
        let (used, total) = device.get("device")?.device.memory()?;
        used_bytes.set(used);
        total_bytes.set(total);
        Ok(mc_status::MC_OK)
    })
}

/// Waits until the device has finished what it was given.
///
/// @param device  the device.
/// @param err     NULL, or receives the error.
/// @return MC_OK; MC_ERROR_DEVICE if some of it failed.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_device_synchronize(device: MaybeUninit<&mc_device>, err: *mut *mut mc_error) -> mc_status {
    guard(err, || {
        device.get("device")?.device.synchronize()?;
        Ok(mc_status::MC_OK)
    })
}

/// Closes a device for new work, as iOS demands before an app goes to the background, and waits for the work that it was given.
///
/// A call that runs ends with MC_ERROR_SUSPENDED behind its step: a prefill chunk, a token, a batch of texts, a piece of a file.
/// A call that begins ends so at once. None waits: the thread that must call mc_device_resume() may be its own.
///
/// After mc_device_resume() everything goes on to the result that it would have had: a session's answer with
/// mc_session_next(), also one that mc_session_generate_stream() began; other calls when they are made again. Sessions keep
/// what was evaluated.
///
/// @param device      the device that the models were loaded onto with mc_model_options_set_device(). Another mc_device of
///                    the same kind does not stop them.
/// @param timeout_ms  how long to wait, in milliseconds; 0 = do not wait.
/// @param err         NULL, or receives the error.
/// @return MC_OK when the device is idle; MC_ERROR_BUSY if it is not after the timeout (suspended it is all the same);
///         MC_ERROR_DEVICE if work failed that nobody waited for.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_device_suspend(
    device: MaybeUninit<&mc_device>,
    timeout_ms: u32,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        device.get("device")?.device.suspend(Duration::from_millis(timeout_ms.into()))?;
        Ok(mc_status::MC_OK)
    })
}

/// Opens a device again after mc_device_suspend().
///
/// @param device  the device; one that is not suspended stays as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_device_resume(device: MaybeUninit<&mc_device>) {
    guard_or((), || {
        device.get("device")?.device.resume();
        Ok(())
    });
}

/// Frees a device; models on it go on.
///
/// @param device  the device, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_device_free(device: *mut mc_device) {
    guard_or((), || free(device, "device"));
}
