package metalcandle

// #include <metal_candle.h>
import "C"

import (
	"context"
	"unsafe"
)

// Tokenizer turns text into token ids and back. Immutable; goroutines share it.
type Tokenizer struct{ ref *ref[*C.mc_tokenizer] }

func newTokenizer(handle *C.mc_tokenizer) *Tokenizer {
	t := new(Tokenizer)
	t.ref = own(t, handle, func(h *C.mc_tokenizer) { C.mc_tokenizer_free(h) })
	return t
}

// Tokenizer is the model's; it outlives the model.
func (m *Model) Tokenizer() (*Tokenizer, error) {
	handle, err := m.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer m.ref.release()
	var out *C.mc_tokenizer
	var object *C.mc_error
	if err := take(C.mc_model_tokenizer(handle, &out, &object), object); err != nil {
		return nil, err
	}
	return newTokenizer(out), nil
}

// LoadTokenizer loads a tokenizer alone: a tokenizer.json, a directory with one, or a .gguf file.
func LoadTokenizer(path string) (*Tokenizer, error) {
	c := newCall(context.Background())
	defer c.done()
	cpath := c.cstring("path", path)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_tokenizer
	var object *C.mc_error
	if err := take(C.mc_tokenizer_load(cpath, &out, &object), object); err != nil {
		return nil, err
	}
	return newTokenizer(out), nil
}

// Close frees the tokenizer. It returns nil.
func (t *Tokenizer) Close() error { t.ref.close(); return nil }

// Encode turns text into token ids; special tokens written in it become their ids. addSpecial adds what the tokenizer puts around a text.
func (t *Tokenizer) Encode(s string, addSpecial bool) ([]uint32, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer t.ref.release()
	data, n := text(s)
	var out *C.mc_tokens
	var object *C.mc_error
	if err := take(C.mc_tokenizer_encode(handle, data, n, C.bool(addSpecial), &out, &object), object); err != nil {
		return nil, err
	}
	return takeTokens(out), nil
}

// Decode turns token ids into text; bytes that are not UTF-8 become U+FFFD. skipSpecial leaves special tokens out.
func (t *Tokenizer) Decode(tokens []uint32, skipSpecial bool) (string, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return "", err
	}
	defer t.ref.release()
	data, n := ids(tokens)
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_tokenizer_decode(handle, data, n, C.bool(skipSpecial), &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// TokenID is the id of one token, as the vocabulary spells it, such as "<|im_end|>".
func (t *Tokenizer) TokenID(token string) (uint32, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, spelling := use(c, t.ref), c.cstring("token", token)
	if c.err != nil {
		return 0, c.err
	}
	var out C.uint32_t
	var object *C.mc_error
	err := take(C.mc_tokenizer_token_id(handle, spelling, &out, &object), object)
	return uint32(out), err
}

// VocabSize is how many tokens the vocabulary has, added ones counted; 0 once it is closed.
func (t *Tokenizer) VocabSize() int {
	handle, err := t.ref.acquire()
	if err != nil {
		return 0
	}
	defer t.ref.release()
	return int(C.mc_tokenizer_vocab_size(handle))
}

// IsSpecial tells whether a token is markup such as "<|im_end|>", which is not part of a text.
func (t *Tokenizer) IsSpecial(token uint32) bool {
	handle, err := t.ref.acquire()
	if err != nil {
		return false
	}
	defer t.ref.release()
	return bool(C.mc_tokenizer_is_special(handle, C.uint32_t(token)))
}

// TokenBytes are the bytes that a token adds to a text in its middle: UTF-8, or a part of a character. A special token adds none.
func (t *Tokenizer) TokenBytes(token uint32) ([]byte, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer t.ref.release()
	for bytes := make([]byte, 64); ; {
		var n C.size_t
		var object *C.mc_error
		status := C.mc_tokenizer_token_bytes(handle, C.uint32_t(token), (*C.uint8_t)(&bytes[0]), C.size_t(len(bytes)), &n, &object)
		if err := take(status, object); err != nil {
			return nil, err
		}
		if int(n) <= len(bytes) {
			return bytes[:n], nil
		}
		bytes = make([]byte, n)
	}
}

// TextStream turns token ids into text as they come, as an answer's tokens show it: whole characters, and without special tokens. One call
// at a time.
type TextStream struct{ ref *ref[*C.mc_text_stream] }

// NewTextStream makes a stream at its beginning; it keeps the tokenizer alive.
func (t *Tokenizer) NewTextStream() (*TextStream, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer t.ref.release()
	var out *C.mc_text_stream
	var object *C.mc_error
	if err := take(C.mc_text_stream_new(handle, &out, &object), object); err != nil {
		return nil, err
	}
	s := new(TextStream)
	s.ref = own(s, out, func(h *C.mc_text_stream) { C.mc_text_stream_free(h) })
	return s, nil
}

// Push adds a token, and gives the text that became certain with it, which may be "".
func (s *TextStream) Push(token uint32) (string, error) {
	return s.text(func(handle *C.mc_text_stream, out **C.mc_string, object **C.mc_error) C.mc_status {
		return C.mc_text_stream_push(handle, C.uint32_t(token), out, object)
	})
}

// Finish gives what was held back; the stream is then at its beginning, for another text.
func (s *TextStream) Finish() (string, error) {
	return s.text(func(handle *C.mc_text_stream, out **C.mc_string, object **C.mc_error) C.mc_status {
		return C.mc_text_stream_finish(handle, out, object)
	})
}

func (s *TextStream) text(f func(*C.mc_text_stream, **C.mc_string, **C.mc_error) C.mc_status) (string, error) {
	handle, err := s.ref.acquire()
	if err != nil {
		return "", err
	}
	defer s.ref.release()
	var out *C.mc_string
	var object *C.mc_error
	if err := take(f(handle, &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// Close frees the stream. It returns nil.
func (s *TextStream) Close() error { s.ref.close(); return nil }

// takeTokens copies token ids of the library, and frees them.
func takeTokens(t *C.mc_tokens) []uint32 {
	defer C.mc_tokens_free(t)
	return goTokens(C.mc_tokens_data(t), C.mc_tokens_len(t))
}

func goTokens(data *C.uint32_t, n C.size_t) []uint32 {
	return append([]uint32(nil), unsafe.Slice((*uint32)(unsafe.Pointer(data)), int(n))...)
}
