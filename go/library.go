package metalcandle

// #include <stdlib.h>
// #include "callbacks.h"
import "C"

import (
	"context"
	"log/slog"
	"math"
	"runtime/cgo"
	"unsafe"
)

// Version is that of the library that is running, such as "0.1.0".
func Version() string { return C.GoString(C.mc_version_string()) }

// VersionNumber is that of the library that is running: major * 1000000 + minor * 1000 + patch.
func VersionNumber() int { return int(C.mc_version_number()) }

// ABIVersion is the binary interface of the library that is running; this package was compiled for [HeaderABIVersion].
func ABIVersion() int { return int(C.mc_abi_version()) }

// HeaderABIVersion is the binary interface of the header that this package was compiled with.
const HeaderABIVersion = int(C.MC_ABI_VERSION)

// HasFeature tells whether the library was built with a feature: "metal", "cuda", "hub" or "fault-injection".
func HasFeature(name string) bool {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	return bool(C.mc_has_feature(s))
}

// LiveObjects is how many handles of the library exist in the process; 0 when everything was closed. For leak tests.
func LiveObjects() int { return int(C.mc_live_objects()) }

// SetThreads computes with so many threads of the processor from now on, with the same results: 1 to 1024, or 0 for as many as there are
// processors. Where the system gives no so many, those there were stay in use, and the error is [ErrOutOfMemory].
func SetThreads(count int) error {
	if count < 0 || count > math.MaxUint32 {
		return invalid("threads: expected 0 to 1024, found %d", count)
	}
	var object *C.mc_error
	return take(C.mc_set_threads(C.uint32_t(count), &object), object)
}

// Threads is how many threads of the processor compute; 0 if the system gives none.
func Threads() int { return int(C.mc_threads()) }

// TrimMemory gives memory that the library keeps for reuse back to the system; keepBytes of it may stay.
func TrimMemory(keepBytes uint64) error {
	var object *C.mc_error
	return take(C.mc_trim_memory(C.uint64_t(keepBytes), &object), object)
}

// LogLevel is how important a log message is; a level contains those before it.
type LogLevel uint32

// The log levels.
const (
	LogOff   = LogLevel(C.MC_LOG_OFF)
	LogError = LogLevel(C.MC_LOG_ERROR)
	LogWarn  = LogLevel(C.MC_LOG_WARN)
	LogInfo  = LogLevel(C.MC_LOG_INFO)
	LogDebug = LogLevel(C.MC_LOG_DEBUG)
	LogTrace = LogLevel(C.MC_LOG_TRACE)
)

// LogRecord is one message of the library.
type LogRecord struct {
	Level LogLevel
	// Target is the part of the library, such as "metal_candle::load".
	Target  string
	Message string
}

// SetLog sets, replaces or, with nil, removes the function that receives the process's log messages up to a level. Without one nothing is
// logged.
//
// Unlike other callbacks it is called on the library's threads, on several at a time. It must not call SetLog, which is [ErrBusy]; if it
// panics or ends its goroutine, the program ends with that panic. When SetLog returns, the function before is no longer running.
func SetLog(level LogLevel, write func(LogRecord)) error {
	var handle cgo.Handle
	if write != nil {
		handle = cgo.NewHandle(write)
	}
	var object *C.mc_error
	err := take(C.mcgo_log_set(C.uintptr_t(handle), C.mc_log_level(level), &object), object)
	if err != nil && handle != 0 {
		handle.Delete() // on success the library owns it
	}
	return err
}

// SetLogger sends the log messages up to a level to logger, with the attribute "target"; [LogTrace] arrives as slog.LevelDebug - 4.
func SetLogger(level LogLevel, logger *slog.Logger) error {
	levels := map[LogLevel]slog.Level{LogError: slog.LevelError, LogWarn: slog.LevelWarn, LogInfo: slog.LevelInfo, LogDebug: slog.LevelDebug,
		LogTrace: slog.LevelDebug - 4}
	return SetLog(level, func(record LogRecord) {
		logger.LogAttrs(context.Background(), levels[record.Level], record.Message, slog.String("target", record.Target))
	})
}
