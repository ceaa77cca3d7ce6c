// Package metalcandle lets a Go program carry its own language model, over the C ABI of metal-candle.
//
// From nothing to the first token:
//
//	model, err := metalcandle.Load(ctx, "models/tiny-coder", nil)
//	if err != nil {
//		return err
//	}
//	chat, err := model.NewConversation(nil)
//	if err != nil {
//		return err
//	}
//	for piece, err := range chat.Ask(ctx, "What does `Vec::push` do?", nil).Text() {
//		if err != nil {
//			return err
//		}
//		fmt.Print(piece)
//	}
//
// These rules hold for every function and are not repeated there.
//
//   - A failure of the library is an *[Error] with a [Status]: errors.Is(err, ErrNotFound) asks for the kind, errors.As gives the
//     message and its causes. A cancelled call returns [context.Cause] of its context.
//   - A context stops its call at the next check: a download's chunk, a tensor, a prefill chunk, a token, a layer of a training pass.
//     What the call worked on stays usable.
//   - Handles are closed in any order, by any goroutine, any number of times; Close never waits: what is in use is freed when the last
//     call on it returns, and the calls after it return [ErrClosed]. What nobody closes, the garbage collector frees. Handles that hold
//     others, such as a session its model, keep them alive.
//   - Goroutines share a [Model], [Tokenizer], [Adapter] and [Device]. A [Session], [Chat], [Dataset] and [Trainer] take one call at a
//     time: a second one returns [ErrBusy], does not wait and changes nothing.
//   - Callbacks and the bodies of loops run on the goroutine of the call, with no frame of the library below them: they may panic, leave
//     by return, break or runtime.Goexit, and the call ends before the goroutine goes on. An error that a callback returns ends the call,
//     which returns it.
//   - Options are plain structs, read when a call begins. Nil and zero leave the library's or the model's own default; a field whose zero
//     means something else than its default is a pointer, for which there is [Ptr].
//   - Text is UTF-8; anything else is [ErrInvalidUTF8].
//
// The manual of what each call computes, with units, ranges and every status, is include/metal_candle.h.
package metalcandle

// Ptr returns a pointer to value, for the fields of options that have one.
func Ptr[T any](value T) *T { return &value }
