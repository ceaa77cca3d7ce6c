package metalcandle

import (
	"context"
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// Message is one of a conversation.
type Message struct {
	// Role is "system", "user", "assistant", "tool", or what else the chat template knows.
	Role string
	// Content is what was said; of an answer, without its thoughts and calls of tools.
	Content string
	// Reasoning is the thoughts of an answer.
	Reasoning string
	// ToolCalls are the calls of tools of an answer, a JSON array as [Generation] has it.
	ToolCalls string
	// ToolCallID is the call that a result of a tool belongs to, where calls have ids.
	ToolCallID string
	// Name is the tool that a result is of.
	Name string
}

// asJSON is the messages as chat APIs have them.
func asJSON(messages []Message) (string, error) {
	type message struct {
		Role       string          `json:"role"`
		Content    string          `json:"content"`
		Reasoning  string          `json:"reasoning_content,omitempty"`
		ToolCalls  json.RawMessage `json:"tool_calls,omitempty"`
		ToolCallID string          `json:"tool_call_id,omitempty"`
		Name       string          `json:"name,omitempty"`
	}
	said := make([]message, 0, len(messages))
	for i, m := range messages {
		for _, text := range []string{m.Role, m.Content, m.Reasoning, m.ToolCallID, m.Name} {
			if !utf8.ValidString(text) { // which would be written otherwise
				return "", invalid("messages[%d]: expected UTF-8, found %q", i, text)
			}
		}
		said = append(said, message{m.Role, m.Content, m.Reasoning, json.RawMessage(m.ToolCalls), m.ToolCallID, m.Name})
	}
	written, err := json.Marshal(said)
	if err != nil {
		return "", invalid("messages: %v", err)
	}
	return string(written), nil
}

// ConversationOptions is how a conversation begins.
type ConversationOptions struct {
	// System is the system message; "" = none.
	System string
	// Messages are what was said before.
	Messages []Message
	// MaxContext is the most tokens of the session; 0 = the model's context.
	MaxContext int
	// Tools are those that the model may call: a JSON array of definitions, for templates that know tools.
	Tools string
	// Template is a Jinja template in place of the model's.
	Template string
	// Variables of the template, each a JSON value.
	Variables map[string]string
	// Adapters are attached to the session.
	Adapters []ScaledAdapter
}

// Conversation is questions and answers with a model: a [Session], and the messages that it holds. One goroutine at a time.
type Conversation struct {
	options  ConversationOptions
	messages []Message
	session  *Session
}

// NewConversation begins a conversation; nil options are an empty one.
func (m *Model) NewConversation(options *ConversationOptions) (*Conversation, error) {
	session, err := m.NewSession(options.maxContext())
	if err != nil {
		return nil, err
	}
	c := &Conversation{session: session}
	if options != nil {
		c.options = *options
		if options.System != "" {
			c.messages = append(c.messages, Message{Role: "system", Content: options.System})
		}
		c.messages = append(c.messages, options.Messages...)
		if len(options.Adapters) > 0 {
			if err := session.SetAdapters(options.Adapters...); err != nil {
				session.Close()
				return nil, err
			}
		}
	}
	return c, nil
}

func (o *ConversationOptions) maxContext() int {
	if o == nil {
		return 0
	}
	return o.MaxContext
}

// Close frees the session. It returns nil.
func (c *Conversation) Close() error { return c.session.Close() }

// Session is what the conversation evaluates with: to save it, to ask for its position, to change its adapters.
func (c *Conversation) Session() *Session { return c.session }

// Messages are a copy of what was said.
func (c *Conversation) Messages() []Message { return slices.Clone(c.messages) }

// SetMessages replaces what was said, as to edit a question or to ask it again: what the session holds is kept as far as it is the same.
func (c *Conversation) SetMessages(messages []Message) { c.messages = slices.Clone(messages) }

// Ask streams the answer to a question. The question and what was said of the answer join the conversation, also if it was stopped; if it
// ends before the first token, neither does.
func (c *Conversation) Ask(ctx context.Context, question string, options *GenerateOptions) *Stream {
	return c.Send(ctx, options, Message{Role: "user", Content: question})
}

// Send is [Conversation.Ask] for messages of any role, such as results of tools; without messages the model answers what was said last.
func (c *Conversation) Send(ctx context.Context, options *GenerateOptions, messages ...Message) *Stream {
	return &Stream{generate: func(yield func(Token) bool) (answer *Generation, err error) {
		said := append(slices.Clone(c.messages), messages...)
		chat, err := c.chat(said)
		if err != nil {
			return nil, err
		}
		defer chat.Close()
		if err := c.session.SetChat(ctx, chat); err != nil {
			return nil, err
		}
		answer, err = c.session.Stream(ctx, options).generate(yield)
		if answer != nil && len(answer.Tokens) > 0 {
			message := Message{Role: "assistant", Content: answer.Content, Reasoning: answer.Reasoning}
			if answer.ToolCalls != "[]" {
				message.ToolCalls = answer.ToolCalls
			}
			c.messages = append(said, message)
		}
		return answer, err
	}}
}

func (c *Conversation) chat(messages []Message) (*Chat, error) {
	var chat *Chat
	if len(messages) == 0 {
		chat = NewChat()
	} else {
		said, err := asJSON(messages)
		if err != nil {
			return nil, err
		}
		if chat, err = ChatFromJSON(said); err != nil {
			return nil, err
		}
	}
	err := func() error {
		if c.options.Tools != "" {
			if err := chat.SetTools(c.options.Tools); err != nil {
				return err
			}
		}
		if c.options.Template != "" {
			if err := chat.SetTemplate(c.options.Template); err != nil {
				return err
			}
		}
		for name, json := range c.options.Variables {
			if err := chat.SetVariable(name, json); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		chat.Close()
		return nil, err
	}
	return chat, nil
}
