package metalcandle

// #include <metal_candle.h>
import "C"

import (
	"context"
	"time"
)

// Chat is a conversation for a chat template: messages, tools, and variables. It knows no model; one call at a time changes it.
// [Conversation] holds one together with a session.
type Chat struct{ ref *ref[*C.mc_chat] }

func newChat(handle *C.mc_chat) *Chat {
	c := new(Chat)
	c.ref = own(c, handle, func(h *C.mc_chat) { C.mc_chat_free(h) })
	return c
}

// NewChat makes an empty conversation.
func NewChat() *Chat { return newChat(C.mc_chat_new()) }

// ChatFromJSON makes a conversation from JSON as chat APIs exchange it: an array of messages, or an object with `messages` and
// optionally `tools`.
func ChatFromJSON(json string) (*Chat, error) {
	data, n := text(json)
	if n == 0 {
		return nil, invalid("json: expected an array of messages or an object, found nothing")
	}
	var out *C.mc_chat
	var object *C.mc_error
	if err := take(C.mc_chat_from_json(data, n, &out, &object), object); err != nil {
		return nil, err
	}
	return newChat(out), nil
}

// Close frees the conversation. It returns nil.
func (c *Chat) Close() error { c.ref.close(); return nil }

// Add adds a message at the end. The role is "system", "user", "assistant", or what else the template knows.
func (c *Chat) Add(role, content string) error {
	k := newCall(context.Background())
	defer k.done()
	handle, crole := use(k, c.ref), k.cstring("role", role)
	if k.err != nil {
		return k.err
	}
	data, n := text(content)
	var object *C.mc_error
	return take(C.mc_chat_add(handle, crole, data, n, &object), object)
}

// SetTools sets the tools that the model may call: a JSON array of tool definitions; "" removes them.
func (c *Chat) SetTools(json string) error {
	return c.set(json, func(handle *C.mc_chat, data *C.char, n C.size_t, object **C.mc_error) C.mc_status {
		return C.mc_chat_set_tools_json(handle, data, n, object)
	})
}

// Len is how many messages the conversation has.
func (c *Chat) Len() int {
	handle, err := c.ref.acquire()
	if err != nil {
		return 0
	}
	defer c.ref.release()
	return int(C.mc_chat_len(handle))
}

// RemoveLast removes the last message.
func (c *Chat) RemoveLast() error {
	handle, err := c.ref.acquire()
	if err != nil {
		return err
	}
	defer c.ref.release()
	var object *C.mc_error
	return take(C.mc_chat_remove_last(handle, &object), object)
}

// JSON is an object with the messages, and the tools if there are any, of which [ChatFromJSON] makes an equal conversation.
func (c *Chat) JSON() (string, error) {
	handle, err := c.ref.acquire()
	if err != nil {
		return "", err
	}
	defer c.ref.release()
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_chat_json(handle, &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// SetTemplate sets a Jinja template in place of the model's; "" = the model's.
func (c *Chat) SetTemplate(jinja string) error {
	return c.set(jinja, func(handle *C.mc_chat, data *C.char, n C.size_t, object **C.mc_error) C.mc_status {
		return C.mc_chat_set_template(handle, data, n, object)
	})
}

// SetVariable sets a variable of the template, such as "enable_thinking", to a JSON value; "" removes it.
func (c *Chat) SetVariable(name, json string) error {
	k := newCall(context.Background())
	defer k.done()
	cname := k.cstring("name", name)
	if k.err != nil {
		return k.err
	}
	return c.set(json, func(handle *C.mc_chat, data *C.char, n C.size_t, object **C.mc_error) C.mc_status {
		return C.mc_chat_set_variable_json(handle, cname, data, n, object)
	})
}

func (c *Chat) set(value string, f func(*C.mc_chat, *C.char, C.size_t, **C.mc_error) C.mc_status) error {
	handle, err := c.ref.acquire()
	if err != nil {
		return err
	}
	defer c.ref.release()
	data, n := text(value)
	if n == 0 {
		data = nil // an empty Go string may have an address
	}
	var object *C.mc_error
	return take(f(handle, data, n, &object), object)
}

// SetTime sets the clock that a template's `strftime_now` reads, for renders that must repeat.
func (c *Chat) SetTime(t time.Time) {
	handle, err := c.ref.acquire()
	if err != nil {
		return
	}
	defer c.ref.release()
	C.mc_chat_set_time(handle, C.int64_t(t.Unix()))
}

// ControlTokens is what a control token is that a message, a tool or a variable holds.
type ControlTokens uint32

const (
	// ControlTokensAreTokens takes them as if the template had written them.
	ControlTokensAreTokens = ControlTokens(C.MC_CONTROL_TOKENS)
	// ControlTokensAreText keeps whoever writes a message from ending a turn.
	ControlTokensAreText = ControlTokens(C.MC_CONTROL_TEXT)
)

// SetControlTokens sets what control tokens of messages are. Render refuses ControlTokensAreText: no text means the same.
func (c *Chat) SetControlTokens(tokens ControlTokens) error {
	handle, err := c.ref.acquire()
	if err != nil {
		return err
	}
	defer c.ref.release()
	var object *C.mc_error
	return take(C.mc_chat_set_control_tokens(handle, C.mc_control_tokens(tokens), &object), object)
}

// SetContinueFinalMessage leaves the last message open, so that the model goes on with it: a prompt then has no generation prompt.
func (c *Chat) SetContinueFinalMessage(continues bool) {
	handle, err := c.ref.acquire()
	if err != nil {
		return
	}
	defer c.ref.release()
	C.mc_chat_set_continue_final_message(handle, C.bool(continues))
}

// EncodeChat is the prompt of Render as token ids, which is how a session takes it.
func (m *Model) EncodeChat(chat *Chat, generationPrompt bool) ([]uint32, error) {
	c := newCall(context.Background())
	defer c.done()
	model, handle := use(c, m.ref), use(c, chat.ref)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_tokens
	var object *C.mc_error
	if err := take(C.mc_model_encode_chat(model, handle, C.bool(generationPrompt), &out, &object), object); err != nil {
		return nil, err
	}
	return takeTokens(out), nil
}

// Render is the prompt that a conversation becomes with the model's chat template; generationPrompt opens the assistant's turn at its end.
func (m *Model) Render(chat *Chat, generationPrompt bool) (string, error) {
	c := newCall(context.Background())
	defer c.done()
	model, handle := use(c, m.ref), use(c, chat.ref)
	if c.err != nil {
		return "", c.err
	}
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_model_render_chat(model, handle, C.bool(generationPrompt), &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}
