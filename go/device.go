package metalcandle

// #include <metal_candle.h>
import "C"

import (
	"context"
	"time"
)

// DeviceKind is a kind of device.
type DeviceKind uint32

// The kinds of device.
const (
	// DeviceAuto is the best there is: Metal or CUDA where this build and this machine have it, else the CPU.
	DeviceAuto  = DeviceKind(C.MC_DEVICE_AUTO)
	DeviceCPU   = DeviceKind(C.MC_DEVICE_CPU)
	DeviceMetal = DeviceKind(C.MC_DEVICE_METAL)
	DeviceCUDA  = DeviceKind(C.MC_DEVICE_CUDA)
)

// String is "auto", "cpu", "metal" or "cuda".
func (k DeviceKind) String() string { return name(k, "auto", "cpu", "metal", "cuda") }

func name[T ~uint32](value T, names ...string) string {
	if int(value) < len(names) {
		return names[value]
	}
	return "unknown"
}

// DeviceCount is how many devices of a kind this process can open.
func DeviceCount(kind DeviceKind) int { return int(C.mc_device_count(C.mc_device_kind(kind))) }

// Device is where arithmetic runs. Models keep theirs alive; goroutines share it.
type Device struct{ ref *ref[*C.mc_device] }

// OpenDevice opens a device: of a kind, the one with an index from 0 to [DeviceCount] - 1.
func OpenDevice(kind DeviceKind, index int) (*Device, error) {
	c := newCall(context.Background())
	defer c.done()
	n := c.size("index", index)
	if c.err != nil {
		return nil, c.err
	}
	var handle *C.mc_device
	var object *C.mc_error
	if err := take(C.mc_device_new(C.mc_device_kind(kind), n, &handle, &object), object); err != nil {
		return nil, err
	}
	d := new(Device)
	d.ref = own(d, handle, func(h *C.mc_device) { C.mc_device_free(h) })
	return d, nil
}

// Close frees the device; models on it go on. It returns nil.
func (d *Device) Close() error { d.ref.close(); return nil }

// Kind is the kind of device that was opened, never [DeviceAuto] but for one that is closed.
func (d *Device) Kind() DeviceKind {
	handle, err := d.ref.acquire()
	if err != nil {
		return DeviceAuto
	}
	defer d.ref.release()
	return DeviceKind(C.mc_device_kind_of(handle))
}

// Name is what the system calls the device; "" once it is closed.
func (d *Device) Name() string {
	handle, err := d.ref.acquire()
	if err != nil {
		return ""
	}
	defer d.ref.release()
	return C.GoString(C.mc_device_name(handle))
}

// Memory is how many bytes of the device's memory are in use, and how many there are.
func (d *Device) Memory() (used, total uint64, err error) {
	handle, err := d.ref.acquire()
	if err != nil {
		return 0, 0, err
	}
	defer d.ref.release()
	var u, t C.uint64_t
	var object *C.mc_error
	err = take(C.mc_device_memory(handle, &u, &t, &object), object)
	return uint64(u), uint64(t), err
}

// Synchronize waits until the device has finished what it was given.
func (d *Device) Synchronize() error {
	handle, err := d.ref.acquire()
	if err != nil {
		return err
	}
	defer d.ref.release()
	var object *C.mc_error
	return take(C.mc_device_synchronize(handle, &object), object)
}

// Suspend closes the device for new work, and waits up to timeout, of whole milliseconds, for what it was given; [ErrBusy] says that it
// is not idle yet, suspended it is all the same. Calls that run end with [ErrSuspended].
func (d *Device) Suspend(timeout time.Duration) error {
	handle, err := d.ref.acquire()
	if err != nil {
		return err
	}
	defer d.ref.release()
	if timeout < 0 || timeout.Milliseconds() > 1<<32-1 {
		return invalid("timeout: expected 0 to 4294967295 ms, found %v", timeout)
	}
	var object *C.mc_error
	return take(C.mc_device_suspend(handle, C.uint32_t(timeout.Milliseconds()), &object), object)
}

// Resume opens the device again after [Device.Suspend].
func (d *Device) Resume() {
	handle, err := d.ref.acquire()
	if err != nil {
		return
	}
	defer d.ref.release()
	C.mc_device_resume(handle)
}
