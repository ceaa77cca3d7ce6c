package metalcandle

// #include "callbacks.h"
import "C"

import "runtime/cgo"

// The functions that callbacks.c calls, on the library's thread. Those of a call hand their event to the goroutine that made it, so that
// nothing of the program runs, and nothing can panic, above frames of the library.

//export mcgoProgress
func mcgoProgress(userData C.uintptr_t, stage C.mc_stage, done, total C.uint64_t) C.int32_t {
	return cgo.Handle(userData).Value().(func(Progress) C.int32_t)(Progress{Stage(stage), uint64(done), uint64(total)})
}

//export mcgoToken
func mcgoToken(userData C.uintptr_t, event *C.mc_token_event) C.int32_t {
	return cgo.Handle(userData).Value().(func(Token) C.int32_t)(goToken(event))
}

//export mcgoStep
func mcgoStep(userData C.uintptr_t, event *C.mc_train_event) C.int32_t {
	return cgo.Handle(userData).Value().(func(TrainStep) C.int32_t)(goStep(event))
}

//export mcgoLog
func mcgoLog(userData C.uintptr_t, level C.mc_log_level, target, message *C.char, n C.size_t) {
	write := cgo.Handle(userData).Value().(func(LogRecord))
	record := LogRecord{LogLevel(level), C.GoString(target), goText(message, n)}
	returned := false
	defer func() {
		if returned {
			return
		}
		// No call waits for this one, and the library's frames must not be unwound: the program ends as it does on any goroutine.
		failure := recover()
		if failure == nil {
			failure = "metalcandle: runtime.Goexit in a log function"
		}
		go panic(failure)
		select {}
	}()
	write(record)
	returned = true
}

//export mcgoLogFree
func mcgoLogFree(userData C.uintptr_t) {
	if userData != 0 {
		cgo.Handle(userData).Delete()
	}
}
