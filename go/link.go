//go:build !metalcandle_flags

package metalcandle

// The library is found by pkg-config, as `make install` leaves it. With the build tag metalcandle_flags it is not asked for: CGO_CFLAGS
// and CGO_LDFLAGS then say where the header and the library are.

// #cgo pkg-config: metal-candle
import "C"
