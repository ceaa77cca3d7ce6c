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
	defer C.mc_tokens_free(out)
	return goTokens(C.mc_tokens_data(out), C.mc_tokens_len(out)), nil
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

func goTokens(data *C.uint32_t, n C.size_t) []uint32 {
	return append([]uint32(nil), unsafe.Slice((*uint32)(unsafe.Pointer(data)), int(n))...)
}
