package metalcandle

// #include <stdlib.h>
// #include "callbacks.h"
import "C"

import (
	"context"
	"errors"
	"runtime"
	"runtime/cgo"
	"strings"
	"sync"
	"unsafe"
)

// ref is a handle of the library that may be closed while calls use it: it is freed by the last of them.
type ref[P comparable] struct {
	mu     sync.Mutex
	handle P
	calls  int
	closed bool
	free   func(P)
}

func (r *ref[P]) acquire() (handle P, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return handle, ErrClosed
	}
	r.calls++
	return r.handle, nil
}

func (r *ref[P]) release() {
	r.mu.Lock()
	r.calls--
	last := r.closed && r.calls == 0
	r.mu.Unlock()
	if last {
		r.free(r.handle)
	}
}

func (r *ref[P]) close() {
	r.mu.Lock()
	last := !r.closed && r.calls == 0
	r.closed = true
	r.mu.Unlock()
	if last {
		r.free(r.handle)
	}
}

// own ties a handle to its Go object: it is freed by Close, or when the object is garbage. `ref` is reached from the object and never
// leads back to it.
func own[T any, P comparable](object *T, handle P, free func(P)) *ref[P] {
	r := &ref[P]{handle: handle, free: free}
	runtime.AddCleanup(object, func(r *ref[P]) { r.close() }, r)
	return r
}

// call is one call of the library: what it borrows is given back by done, in reverse. The first error among its arguments stays in err.
type call struct {
	ctx  context.Context
	err  error
	undo []func()
	// What the library calls back arrives here, see run.
	events  chan func() error
	replies chan bool
	stopped error
}

func newCall(ctx context.Context) *call { return &call{ctx: ctx} }

func (c *call) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *call) later(f func()) { c.undo = append(c.undo, f) }

func (c *call) done() {
	for i := len(c.undo) - 1; i >= 0; i-- {
		c.undo[i]()
	}
}

// use keeps a handle for the length of the call.
func use[P comparable](c *call, r *ref[P]) (handle P) {
	handle, err := r.acquire()
	if err != nil {
		c.fail(err)
		return
	}
	c.later(r.release)
	return
}

// cstring is a copy of text with a NUL behind it; one within it would cut the text in silence.
func (c *call) cstring(field, text string) *C.char {
	if i := strings.IndexByte(text, 0); i >= 0 {
		c.fail(invalid("%s: expected text without a NUL, found one at byte %d", field, i))
		return nil
	}
	s := C.CString(text)
	c.later(func() { C.free(unsafe.Pointer(s)) })
	return s
}

// optional is NULL for the empty text.
func (c *call) optional(field, text string) *C.char {
	if text == "" {
		return nil
	}
	return c.cstring(field, text)
}

// size refuses the negative numbers that C would take for huge ones.
func (c *call) size(field string, n int) C.size_t {
	if n < 0 {
		c.fail(invalid("%s: expected at least 0, found %d", field, n))
		return 0
	}
	return C.size_t(n)
}

// text is the memory of a Go string as C takes it: no copy, no NUL, for the length of one call.
func text(s string) (*C.char, C.size_t) {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s))
}

// ids is the memory of token ids, for the length of one call.
func ids(tokens []uint32) (*C.uint32_t, C.size_t) {
	return (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(tokens))), C.size_t(len(tokens))
}

func floats(values []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(values))) }

// cancel is a flag that the context triggers until done; NULL for a context that never ends.
func (c *call) cancel() *C.mc_cancel {
	if c.ctx.Done() == nil {
		return nil
	}
	flag := C.mc_cancel_new()
	c.later(func() { C.mc_cancel_free(flag) })
	c.trigger(c.ctx, flag)
	return flag
}

// trigger hooks a flag to a context until done, which waits for a trigger that has begun: the flag may then be freed or reset.
func (c *call) trigger(ctx context.Context, flag *C.mc_cancel) { c.later(hook(ctx, flag)) }

func hook(ctx context.Context, flag *C.mc_cancel) (unhook func()) {
	if ctx.Err() != nil { // at once: AfterFunc's goroutine may be late for a short call
		C.mc_cancel_trigger(flag)
		return func() {}
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { C.mc_cancel_trigger(flag); close(over) })
	return func() {
		if !stop() {
			<-over
		}
	}
}

// callback is what the library hands to a callback of this call; 0, and no callback, if there is nobody to report to.
func callback[E any](c *call, report func(E) error) C.uintptr_t {
	if report == nil {
		return 0
	}
	if c.events == nil {
		c.events, c.replies = make(chan func() error), make(chan bool)
	}
	handle := cgo.NewHandle(func(event E) C.int32_t { return c.deliver(func() error { return report(event) }) })
	c.later(handle.Delete)
	return C.uintptr_t(handle)
}

// run runs a function of the library. One that calls back runs on a goroutine of its own, and its callbacks here, between two
// receives: a callback that panics or ends its goroutine unwinds Go's frames alone, and the library's call is over before that goes on.
func (c *call) run(f func()) {
	if c.events == nil {
		f()
		return
	}
	over := make(chan struct{})
	go func() { defer close(over); f() }()
	pending := false
	defer func() {
		if pending {
			c.replies <- false
		}
		for {
			select {
			case <-c.events:
				c.replies <- false
			case <-over:
				return
			}
		}
	}()
	for {
		select {
		case event := <-c.events:
			pending = true
			err := event()
			pending = false
			if err != nil && c.stopped == nil {
				c.stopped = err
			}
			c.replies <- err == nil
		case <-over:
			return
		}
	}
}

// deliver hands an event of the library's thread to the goroutine that made the call, and waits for its word.
func (c *call) deliver(event func() error) C.int32_t {
	c.events <- event
	if <-c.replies {
		return C.MC_CONTINUE
	}
	return C.MC_STOP
}

// failure is where run's function puts an error object; it is freed even if a callback panics.
func (c *call) failure() **C.mc_error {
	object := new(*C.mc_error)
	c.later(func() { C.mc_error_free(*object) })
	return object
}

// result is the error of a call that ended with a status: of the library, of a callback, or of the context.
func (c *call) result(status C.mc_status, object *C.mc_error) error {
	err := describe(status, object)
	switch {
	case err != nil && c.stopped != nil:
		return errors.Join(c.stopped, err)
	case err != nil:
		return err
	case c.stopped != nil:
		return c.stopped
	case status == C.MC_CANCELLED:
		return cancelled(c.ctx)
	}
	return nil
}

// errBreak ends a call because the loop over its events was left; no caller sees it.
var errBreak = errors.New("the loop was left")

// takeString copies a string of the library, and frees it.
func takeString(s *C.mc_string) string {
	defer C.mc_string_free(s)
	return goText(C.mc_string_data(s), C.mc_string_len(s))
}

// goText copies text; C.GoStringN would take its length for an int.
func goText(data *C.char, n C.size_t) string {
	return string(unsafe.Slice((*byte)(unsafe.Pointer(data)), int(n)))
}
