package metalcandle

// #include <metal_candle.h>
import "C"

import (
	"context"
	"errors"
	"fmt"
)

// Status says what kind of failure an [Error] is. It is an error itself, for errors.Is.
type Status uint32

// The kinds of failure.
const (
	// ErrInvalidArgument is an argument or option outside its range.
	ErrInvalidArgument = Status(C.MC_ERROR_INVALID_ARGUMENT)
	// ErrInvalidUTF8 is text that is not UTF-8; the message has the offset of the first bad byte.
	ErrInvalidUTF8 = Status(C.MC_ERROR_INVALID_UTF8)
	// ErrNotFound is a file, directory, token, device or chat template that does not exist.
	ErrNotFound = Status(C.MC_ERROR_NOT_FOUND)
	// ErrIO is a failure to read or write a file.
	ErrIO = Status(C.MC_ERROR_IO)
	// ErrNetwork is a failed download.
	ErrNetwork = Status(C.MC_ERROR_NETWORK)
	// ErrFormat is content that contradicts its format.
	ErrFormat = Status(C.MC_ERROR_FORMAT)
	// ErrUnsupported is input that is well formed and that this build of the library does not implement.
	ErrUnsupported = Status(C.MC_ERROR_UNSUPPORTED)
	// ErrContextFull is more tokens than the context holds.
	ErrContextFull = Status(C.MC_ERROR_CONTEXT_FULL)
	// ErrOutOfMemory is memory that ran out, or a size beyond what can be allocated.
	ErrOutOfMemory = Status(C.MC_ERROR_OUT_OF_MEMORY)
	// ErrDevice is a failure of the compute device.
	ErrDevice = Status(C.MC_ERROR_DEVICE)
	// ErrSuspended is a device that [Device.Suspend] closed; call [Device.Resume] first.
	ErrSuspended = Status(C.MC_ERROR_SUSPENDED)
	// ErrBusy is an object in use by another call; nothing was changed.
	ErrBusy = Status(C.MC_ERROR_BUSY)
	// ErrMismatch is two things that must belong together and do not, such as a session file and the model.
	ErrMismatch = Status(C.MC_ERROR_MISMATCH)
	// ErrPoisoned is an object that an earlier ErrPanic left in an unknown state; it can only be closed.
	ErrPoisoned = Status(C.MC_ERROR_POISONED)
	// ErrTemplate is a chat template that failed, or refused the conversation.
	ErrTemplate = Status(C.MC_ERROR_TEMPLATE)
	// ErrPanic is a defect of the library.
	ErrPanic = Status(C.MC_ERROR_PANIC)
)

// ErrClosed is returned by calls on a handle after its Close.
var ErrClosed = errors.New("metalcandle: use of a closed handle")

// Error is the name of the status, such as "MC_ERROR_BUSY".
func (s Status) Error() string { return C.GoString(C.mc_status_name(C.mc_status(s))) }

// Error is a failure of the library.
type Error struct {
	// Status is the kind of failure; errors.Is compares it.
	Status Status
	// Message is one line: subject, what was expected, what was found.
	Message string
	// Details is the message and every cause below it, one a line.
	Details string
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap makes errors.Is(err, ErrNotFound) hold for an error of that status.
func (e *Error) Unwrap() error { return e.Status }

// invalid is what the library would say if it could see the value.
func invalid(format string, arguments ...any) error {
	message := fmt.Sprintf(format, arguments...)
	return &Error{ErrInvalidArgument, message, message}
}

// describe makes a Go error of an error object, which stays the caller's. Outcomes other than MC_OK are the callers' to tell.
func describe(status C.mc_status, object *C.mc_error) error {
	if status < 16 {
		return nil
	}
	if object == nil {
		return Status(status)
	}
	return &Error{Status(C.mc_error_code(object)), C.GoString(C.mc_error_message(object)), C.GoString(C.mc_error_details(object))}
}

// take makes a Go error of an error object, and frees it.
func take(status C.mc_status, object *C.mc_error) error {
	defer C.mc_error_free(object)
	return describe(status, object)
}

// cancelled is why a context ended a call.
func cancelled(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return context.Canceled
}
