package metalcandle

// #include <metal_candle.h>
import "C"

import (
	"context"
	"errors"
	"io"
	"sync"
)

// Session is the tokens evaluated so far and what the network keeps of them, so that each turn of a conversation evaluates only what is
// new. It holds its model. One call at a time changes it; [Session.Fork], [Session.Save] and [Session.Position] may run beside each other.
type Session struct {
	ref *ref[*C.mc_session]
	// Held by the call that changes the session: what mc_session_next gives is valid until the next such call.
	exclusive *sync.Mutex
	answer    *answer
	vocabSize int
}

// answer is what an answer that was begun needs of Go; the session's `ref` frees it, so it leads to no Session.
type answer struct {
	mu     sync.Mutex
	ctx    context.Context
	unhook func()
}

func (a *answer) begin(ctx context.Context, unhook func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ctx, a.unhook = ctx, unhook
}

func (a *answer) end() {
	a.mu.Lock()
	unhook := a.unhook
	a.unhook = nil
	a.mu.Unlock()
	if unhook != nil {
		unhook()
	}
}

func (a *answer) context() context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return context.Background()
	}
	return a.ctx
}

func newSession(handle *C.mc_session, vocabSize int) *Session {
	s := &Session{exclusive: new(sync.Mutex), answer: new(answer), vocabSize: vocabSize}
	begun := s.answer
	s.ref = own(s, handle, func(h *C.mc_session) {
		begun.end()
		C.mc_session_free(h)
	})
	return s
}

// use is use() for a call that changes the session.
func (s *Session) use(c *call) *C.mc_session {
	if !s.exclusive.TryLock() {
		c.fail(&Error{ErrBusy, "session: in use by another call", "session: in use by another call"})
		return nil
	}
	c.later(s.exclusive.Unlock)
	return use(c, s.ref)
}

// NewSession makes an empty session of at most maxContext tokens; 0 = the model's context.
func (m *Model) NewSession(maxContext int) (*Session, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, n := use(c, m.ref), c.size("max_context", maxContext)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_session
	var object *C.mc_error
	if err := take(C.mc_session_new(handle, n, &out, &object), object); err != nil {
		return nil, err
	}
	return newSession(out, int(C.mc_model_vocab_size(handle))), nil
}

// LoadSession reads a session that [Session.Save] wrote with this model. It has no adapters: set those that it had again.
func (m *Model) LoadSession(path string) (*Session, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, cpath := use(c, m.ref), c.cstring("path", path)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_session
	var object *C.mc_error
	if err := take(C.mc_session_load(handle, cpath, &out, &object), object); err != nil {
		return nil, err
	}
	return newSession(out, int(C.mc_model_vocab_size(handle))), nil
}

// Close frees the session. It returns nil.
func (s *Session) Close() error { s.ref.close(); return nil }

// Save writes the session to a file, without its adapters; one that exists is replaced, and stays as it is if writing fails.
func (s *Session) Save(path string) error {
	c := newCall(context.Background())
	defer c.done()
	handle, cpath := use(c, s.ref), c.cstring("path", path)
	if c.err != nil {
		return c.err
	}
	var object *C.mc_error
	return take(C.mc_session_save(handle, cpath, &object), object)
}

// Fork makes a copy that goes its own way, as for several answers to one prompt.
func (s *Session) Fork() (*Session, error) {
	handle, err := s.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer s.ref.release()
	var out *C.mc_session
	var object *C.mc_error
	if err := take(C.mc_session_fork(handle, &out, &object), object); err != nil {
		return nil, err
	}
	return newSession(out, s.vocabSize), nil
}

// Position is how many tokens the session held when the last call that changed it ended; 0 once it is closed.
func (s *Session) Position() int {
	handle, err := s.ref.acquire()
	if err != nil {
		return 0
	}
	defer s.ref.release()
	return int(C.mc_session_position(handle))
}

// change is a call that changes the session and takes a flag.
func (s *Session) change(ctx context.Context, f func(*call, *C.mc_session, *C.mc_cancel, **C.mc_error) C.mc_status) error {
	c := newCall(ctx)
	defer c.done()
	handle := s.use(c)
	flag := c.cancel()
	if c.err != nil {
		return c.err
	}
	object := c.failure()
	status := f(c, handle, flag, object)
	if c.err != nil {
		return c.err
	}
	return c.result(status, *object)
}

// Append evaluates text behind what the session holds. An empty session also gets what the tokenizer puts around a text.
func (s *Session) Append(ctx context.Context, content string) error {
	return s.change(ctx, func(_ *call, handle *C.mc_session, flag *C.mc_cancel, object **C.mc_error) C.mc_status {
		data, n := text(content)
		return C.mc_session_append(handle, data, n, flag, object)
	})
}

// AppendTokens evaluates tokens behind what the session holds.
func (s *Session) AppendTokens(ctx context.Context, tokens []uint32) error {
	return s.change(ctx, func(_ *call, handle *C.mc_session, flag *C.mc_cancel, object **C.mc_error) C.mc_status {
		data, n := ids(tokens)
		return C.mc_session_append_tokens(handle, data, n, flag, object)
	})
}

// SetPrompt makes the session hold exactly this text: what it holds is kept as far as it is the same.
func (s *Session) SetPrompt(ctx context.Context, prompt string) error {
	return s.change(ctx, func(_ *call, handle *C.mc_session, flag *C.mc_cancel, object **C.mc_error) C.mc_status {
		data, n := text(prompt)
		return C.mc_session_set_prompt(handle, data, n, flag, object)
	})
}

// SetChat makes the session hold exactly this conversation, rendered with its generation prompt; what it holds is kept as far as it is the
// same.
func (s *Session) SetChat(ctx context.Context, chat *Chat) error {
	return s.change(ctx, func(c *call, handle *C.mc_session, flag *C.mc_cancel, object **C.mc_error) C.mc_status {
		conversation := use(c, chat.ref)
		if c.err != nil {
			return C.MC_OK
		}
		return C.mc_session_set_chat(handle, conversation, flag, object)
	})
}

// Memory is how many bytes the session takes now; it grows with the context.
func (s *Session) Memory() (uint64, error) {
	handle, err := s.ref.acquire()
	if err != nil {
		return 0, err
	}
	defer s.ref.release()
	var bytes C.uint64_t
	var object *C.mc_error
	err = take(C.mc_session_memory(handle, &bytes, &object), object)
	return uint64(bytes), err
}

// Truncate forgets what comes after the first position tokens.
func (s *Session) Truncate(position int) error {
	return s.change(context.Background(), func(c *call, handle *C.mc_session, _ *C.mc_cancel, object **C.mc_error) C.mc_status {
		n := c.size("position", position)
		if c.err != nil {
			return C.MC_OK
		}
		return C.mc_session_truncate(handle, n, object)
	})
}

// SetAdapters evaluates with these adapters from now on, in place of those before; their changes add up. Without any, the session computes
// as if it had never had one. What it computed with others is computed again when it is next needed.
func (s *Session) SetAdapters(adapters ...ScaledAdapter) error {
	return s.change(context.Background(), func(c *call, handle *C.mc_session, _ *C.mc_cancel, object **C.mc_error) C.mc_status {
		loras, scales := arrays(c, adapters)
		switch {
		case c.err != nil:
			return C.MC_OK
		case len(adapters) == 0:
			return C.mc_session_set_lora(handle, nil, 1, object)
		}
		return C.mc_session_set_loras(handle, &loras[0], floats(scales), C.size_t(len(loras)), object)
	})
}

// Logits are those after the last token that the session holds: what the network says of each possible next token, unscaled.
func (s *Session) Logits() ([]float32, error) {
	logits := make([]float32, s.vocabSize)
	err := s.change(context.Background(), func(_ *call, handle *C.mc_session, _ *C.mc_cancel, object **C.mc_error) C.mc_status {
		return C.mc_session_logits(handle, floats(logits), C.size_t(len(logits)), object)
	})
	if err != nil {
		return nil, err
	}
	return logits, nil
}

// TokenLogprob is a token and the natural logarithm of its probability, at most 0.
type TokenLogprob struct {
	ID      uint32
	Logprob float32
}

// TopLogprobs are the count most probable next tokens, the most probable first, by the model's own distribution.
func (s *Session) TopLogprobs(count int) ([]TokenLogprob, error) {
	if count < 1 || count > s.vocabSize {
		return nil, invalid("count: expected 1 to %d, found %d", s.vocabSize, count)
	}
	tokens, logprobs := make([]uint32, count), make([]float32, count)
	err := s.change(context.Background(), func(_ *call, handle *C.mc_session, _ *C.mc_cancel, object **C.mc_error) C.mc_status {
		data, n := ids(tokens)
		return C.mc_session_top_logprobs(handle, n, data, floats(logprobs), object)
	})
	if err != nil {
		return nil, err
	}
	top := make([]TokenLogprob, count)
	for i := range top {
		top[i] = TokenLogprob{tokens[i], logprobs[i]}
	}
	return top, nil
}

// Tokens are those that the session holds.
func (s *Session) Tokens() ([]uint32, error) {
	handle, err := s.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer s.ref.release()
	var out *C.mc_tokens
	var object *C.mc_error
	if err := take(C.mc_session_tokens(handle, &out, &object), object); err != nil {
		return nil, err
	}
	return takeTokens(out), nil
}

// ScoreTokens are the natural logarithms of the probabilities that the model gives tokens, the first behind what the session holds, each
// other one behind those in front of it. The session holds afterwards what it held.
func (s *Session) ScoreTokens(ctx context.Context, tokens []uint32) ([]float32, error) {
	logprobs := make([]float32, max(len(tokens), 1))
	err := s.change(ctx, func(_ *call, handle *C.mc_session, flag *C.mc_cancel, object **C.mc_error) C.mc_status {
		data, n := ids(tokens)
		return C.mc_session_score_tokens(handle, data, n, floats(logprobs), flag, object)
	})
	if err != nil {
		return nil, err
	}
	return logprobs[:len(tokens)], nil
}

// Generate generates an answer to what the session holds; the session then holds the answer too. If it is cancelled the partial answer
// comes with the error. After [ErrSuspended], [Session.Next] goes on with the answer.
func (s *Session) Generate(ctx context.Context, options *GenerateOptions) (*Generation, error) {
	c := newCall(ctx)
	defer c.done()
	handle, o := s.use(c), options.build(c, c.cancel())
	options.hear(c, o)
	if c.err != nil {
		return nil, c.err
	}
	out := c.generation()
	object := c.failure()
	var status C.mc_status
	c.run(func() { status = C.mc_session_generate_stream(handle, o, nil, nil, out, object) })
	return goGeneration(*out), c.result(status, *object)
}

// Stream generates an answer as a loop asks for its tokens; the session then holds what was generated. It begins and ends the answer
// itself, also after an error: to go on with an answer after one, use [Session.Begin].
func (s *Session) Stream(ctx context.Context, options *GenerateOptions) *Stream {
	return &Stream{generate: func(yield func(Token) bool) (answer *Generation, err error) {
		if err := s.Begin(ctx, options); err != nil {
			return nil, err
		}
		defer func() { // also if the loop's body panics
			end, failure := s.End()
			answer = end
			if err == nil && failure != nil && ctx.Err() == nil {
				err = failure
			}
		}()
		for {
			token, err := s.Next()
			if err == io.EOF {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			if !yield(token) {
				return nil, nil
			}
		}
	}}
}

// Begin begins an answer that [Session.Next] or [NextAll] reads and [Session.End] ends; the context holds for all of it. Until then calls
// that would change the session otherwise return [ErrInvalidArgument].
func (s *Session) Begin(ctx context.Context, options *GenerateOptions) error {
	c := newCall(ctx)
	defer c.done()
	handle := s.use(c)
	var flag *C.mc_cancel
	unhook := func() {}
	if ctx.Done() != nil {
		flag = C.mc_cancel_new()
		stop := hook(ctx, flag)
		unhook = func() { stop(); C.mc_cancel_free(flag) }
	}
	o := options.build(c, flag)
	if options != nil && options.PrefillProgress != nil {
		c.fail(invalid("PrefillProgress: expected none for an answer that is read token by token, whose prompt was evaluated before"))
	}
	if c.err != nil {
		unhook()
		return c.err
	}
	var object *C.mc_error
	if err := take(C.mc_session_begin(handle, o, &object), object); err != nil {
		unhook()
		return err
	}
	s.answer.end() // that of an answer which another call gave up
	s.answer.begin(ctx, unhook)
	return nil
}

// Next generates the next token of the answer; [io.EOF] says that it is complete. After another error the answer is where it was, and
// Next goes on with it.
func (s *Session) Next() (Token, error) {
	c := newCall(s.answer.context())
	defer c.done()
	handle := s.use(c)
	if c.err != nil {
		return Token{}, c.err
	}
	var event *C.mc_token_event
	object := c.failure()
	status := C.mc_session_next(handle, &event, object)
	if status == C.MC_DONE {
		return Token{}, io.EOF
	}
	if status != C.MC_OK {
		return Token{}, c.result(status, *object)
	}
	return goToken(event), nil
}

// End ends an answer, complete or not, and gives what there is; with the context's error if that ended it.
func (s *Session) End() (*Generation, error) {
	c := newCall(s.answer.context())
	defer c.done()
	handle := s.use(c)
	if c.err != nil {
		return nil, c.err
	}
	out := c.generation()
	object := c.failure()
	status := C.mc_session_end(handle, out, object)
	if status < 16 {
		s.answer.end()
	}
	return goGeneration(*out), c.result(status, *object)
}

// NextResult is what [NextAll] gives of one session: a token or an error.
type NextResult struct {
	Token Token
	// Err is what [Session.Next] would return; io.EOF for a complete answer.
	Err error
}

// NextAll generates the next token of several answers in one pass, each after its [Session.Begin]: few at once take little longer than
// one, and on the CPU each has the tokens that it has alone. The sessions are of one model, 1 to 1024, none twice. The error is of the call
// as a whole, with nothing done.
func NextAll(sessions []*Session) ([]NextResult, error) {
	c := newCall(context.Background())
	defer c.done()
	if len(sessions) == 0 {
		return nil, invalid("sessions: expected 1 to 1024, found 0")
	}
	handles, seen := make([]*C.mc_session, len(sessions)), make(map[*Session]bool)
	for i, session := range sessions {
		if seen[session] {
			return nil, invalid("sessions: expected each once, found that at %d a second time", i)
		}
		seen[session] = true
		handles[i] = session.use(c)
	}
	if c.err != nil {
		return nil, c.err
	}
	events, statuses := make([]*C.mc_token_event, len(sessions)), make([]C.mc_status, len(sessions))
	var object *C.mc_error
	whole := take(C.mc_sessions_next(&handles[0], C.size_t(len(handles)), &events[0], &statuses[0], &object), object)
	results, same := make([]NextResult, len(sessions)), true
	for i, status := range statuses {
		same = same && status == statuses[0]
		switch {
		case status == C.MC_OK && events[i] != nil:
			results[i].Token = goToken(events[i])
		case status == C.MC_DONE:
			results[i].Err = io.EOF
		case status == C.MC_CANCELLED:
			results[i].Err = cancelled(sessions[i].answer.context())
		case errors.Is(whole, Status(status)):
			results[i].Err = whole
		default:
			results[i].Err = Status(status)
		}
	}
	if whole != nil && same {
		return nil, whole
	}
	return results, nil
}
