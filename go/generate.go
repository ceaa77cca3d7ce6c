package metalcandle

// #include "callbacks.h"
import "C"

import (
	"context"
	"errors"
	"iter"
	"math"
	"time"
	"unsafe"
)

// FinishReason is why a generation ended.
type FinishReason uint32

// The reasons.
const (
	// FinishEOS says that the model ended its answer, or that its JSON schema lets nothing follow.
	FinishEOS = FinishReason(C.MC_FINISH_EOS)
	// FinishStopText says that a stop text appeared; the text ends before it.
	FinishStopText = FinishReason(C.MC_FINISH_STOP_TEXT)
	// FinishMaxTokens says that MaxTokens were generated.
	FinishMaxTokens = FinishReason(C.MC_FINISH_MAX_TOKENS)
	// FinishContextFull says that the context is full.
	FinishContextFull = FinishReason(C.MC_FINISH_CONTEXT_FULL)
	// FinishStopped says that the loop over its tokens was left, or that its progress function returned an error.
	FinishStopped = FinishReason(C.MC_FINISH_CALLBACK)
	// FinishCancelled says that the context ended it.
	FinishCancelled = FinishReason(C.MC_FINISH_CANCELLED)
)

// String is "eos", "stop text", "max tokens", "context full", "stopped" or "cancelled".
func (r FinishReason) String() string {
	return name(r, "none", "eos", "stop text", "max tokens", "context full", "stopped", "cancelled")
}

// GenerateOptions is how to generate. What is nil, and what is zero and no pointer, is as the model's generation_config.json and the
// library have it.
type GenerateOptions struct {
	// MaxTokens is the most tokens to generate; 0 = until the model stops or the context is full.
	MaxTokens int
	// Temperature divides logits: 0 or more; 0 = always the most probable token.
	Temperature *float64
	// TopK keeps the most probable tokens; 0 = all.
	TopK *int
	// TopP keeps the fewest most probable tokens whose probabilities sum to it: above 0, up to 1.
	TopP *float64
	// MinP keeps the tokens with at least this share of the probability of the most probable one: 0 to 1.
	MinP *float64
	// RepetitionPenalty divides the logits of tokens that occurred, if positive, else multiplies them: above 0; 1 = off.
	RepetitionPenalty *float64
	// RepetitionLastN is how many of the last tokens count for RepetitionPenalty; 0 = all. Without RepetitionPenalty it is an error.
	RepetitionLastN int
	// FrequencyPenalty is subtracted from a token's logit for each time it occurs in the answer.
	FrequencyPenalty float64
	// PresencePenalty is subtracted from the logit of each token that occurs in the answer.
	PresencePenalty float64
	// LogitBias is added to the logits of single tokens; minus infinity = never.
	LogitBias map[uint32]float32
	// Seed makes sampling repeat.
	Seed *uint64
	// Stop are texts that end the answer where they appear; they may span tokens.
	Stop []string
	// JSONSchema makes the answer a JSON text that conforms to this schema.
	JSONSchema string
	// IgnoreEOS goes on after the model ended its answer.
	IgnoreEOS bool
	// NoSpecialTokens leaves out the special tokens around the prompt of [Model.Generate], as for one that a chat template made.
	NoSpecialTokens bool
	// AnswerFormat is how the answer is told apart, such as "hermes" or "none"; "" = as the session's conversation says.
	AnswerFormat string
	// ToolChoice is whether the answer calls tools of the session's conversation: "auto" (or ""), "none", "required", or a tool's name. A
	// call that has to be conforms to the tool's schema, whatever the sampling.
	ToolChoice string
	// ReasoningBudget is how many tokens a thought may have; nil = as many as the model likes.
	ReasoningBudget *int
	// PrefillChunk is how many tokens of a prompt are evaluated at once: 1 to 512; 0 = 512.
	PrefillChunk int
	// Adapter is one for this generation, in place of the session's own: adapter.Scaled(1).
	Adapter ScaledAdapter
	// Adapters are several at once, in place of Adapter: their changes add up.
	Adapters []ScaledAdapter
	// PrefillProgress hears how far the evaluation of the prompt is; its error ends the generation. [Session.Begin] and [Session.Stream]
	// have none.
	PrefillProgress func(Progress) error
	// JSON is options by the names that mc_generate_options_set_json() tells; they count more than those here.
	JSON string
}

// build sets the options for a call; that call's context stops them through `flag`, which may be NULL.
func (o *GenerateOptions) build(c *call, flag *C.mc_cancel) *C.mc_generate_options {
	options := C.mc_generate_options_new()
	c.later(func() { C.mc_generate_options_free(options) })
	C.mc_generate_options_set_cancel(options, flag)
	if o == nil {
		return options
	}
	C.mc_generate_options_set_max_tokens(options, c.size("max_tokens", o.MaxTokens))
	if o.Temperature != nil {
		C.mc_generate_options_set_temperature(options, C.double(*o.Temperature))
	}
	if o.TopK != nil {
		C.mc_generate_options_set_top_k(options, c.size("top_k", *o.TopK))
	}
	if o.TopP != nil {
		C.mc_generate_options_set_top_p(options, C.double(*o.TopP))
	}
	if o.MinP != nil {
		C.mc_generate_options_set_min_p(options, C.double(*o.MinP))
	}
	if o.RepetitionPenalty != nil {
		C.mc_generate_options_set_repetition_penalty(options, C.double(*o.RepetitionPenalty), c.size("repetition_last_n", o.RepetitionLastN))
	} else if o.RepetitionLastN != 0 {
		c.fail(invalid("RepetitionLastN: expected a RepetitionPenalty beside it, found none"))
	}
	if o.FrequencyPenalty != 0 {
		C.mc_generate_options_set_frequency_penalty(options, C.double(o.FrequencyPenalty))
	}
	if o.PresencePenalty != 0 {
		C.mc_generate_options_set_presence_penalty(options, C.double(o.PresencePenalty))
	}
	for token, bias := range o.LogitBias {
		C.mc_generate_options_add_logit_bias(options, C.uint32_t(token), C.float(bias))
	}
	if o.Seed != nil {
		C.mc_generate_options_set_seed(options, C.uint64_t(*o.Seed))
	}
	for _, stop := range o.Stop {
		if stop == "" {
			c.fail(invalid("stop: expected text, found none"))
			break
		}
		data, n := text(stop)
		C.mc_generate_options_add_stop(options, data, n)
	}
	if o.JSONSchema != "" {
		data, n := text(o.JSONSchema)
		C.mc_generate_options_set_json_schema(options, data, n)
	}
	if o.AnswerFormat != "" {
		C.mc_generate_options_set_answer_format(options, c.cstring("answer_format", o.AnswerFormat))
	}
	if o.ToolChoice != "" {
		C.mc_generate_options_set_tool_choice(options, c.cstring("tool_choice", o.ToolChoice))
	}
	if o.ReasoningBudget != nil {
		C.mc_generate_options_set_reasoning_budget(options, c.size("reasoning_budget", *o.ReasoningBudget))
	}
	C.mc_generate_options_set_ignore_eos(options, C.bool(o.IgnoreEOS))
	C.mc_generate_options_set_add_special(options, C.bool(!o.NoSpecialTokens))
	if o.PrefillChunk != 0 {
		C.mc_generate_options_set_prefill_chunk(options, c.size("prefill_chunk", o.PrefillChunk))
	}
	if o.Adapter.Adapter != nil {
		if lora := use(c, o.Adapter.Adapter.ref); lora != nil {
			C.mc_generate_options_set_lora(options, lora, C.float(o.Adapter.Scale))
		}
	}
	if loras, scales := arrays(c, o.Adapters); c.err == nil && len(loras) > 0 {
		C.mc_generate_options_set_loras(options, &loras[0], floats(scales), C.size_t(len(loras)))
	}
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_generate_options_set_json(options, data, n)
	}
	return options
}

// hear is build's part for calls that tell of their prefill.
func (o *GenerateOptions) hear(c *call, options *C.mc_generate_options) {
	if o == nil {
		return
	}
	if userData := callback(c, o.PrefillProgress); userData != 0 {
		C.mcgo_generate_options_set_prefill_progress(options, userData)
	}
}

// Generation is a finished answer.
type Generation struct {
	Text string
	// Tokens are the answer's, with the end-of-sequence token where that ended it.
	Tokens []uint32
	// PromptTokens is how many tokens stood before the answer.
	PromptTokens int
	FinishReason FinishReason
	// Prefill is how long the evaluation of the prompt took; in a session, of what it was given since the answer before.
	Prefill time.Duration
	// Decode is how long generating the tokens took, the program's own work between them included.
	Decode time.Duration
	// Content is the text without thoughts and calls of tools, where the answer was told apart.
	Content string
	// Reasoning is the model's thoughts.
	Reasoning string
	// ToolCalls are the calls of tools, a JSON array as chat APIs have it.
	ToolCalls string
}

// generation is where a call puts its answer; it is freed even if a callback panics.
func (c *call) generation() **C.mc_generation {
	out := new(*C.mc_generation)
	c.later(func() { C.mc_generation_free(*out) })
	return out
}

// goGeneration copies a generation of the library; nil for NULL.
func goGeneration(g *C.mc_generation) *Generation {
	if g == nil {
		return nil
	}
	seconds := func(s C.double) time.Duration { return time.Duration(math.Round(float64(s) * float64(time.Second))) }
	return &Generation{goText(C.mc_generation_text(g), C.mc_generation_text_len(g)), goTokens(C.mc_generation_tokens(g), C.mc_generation_tokens_len(g)),
		int(C.mc_generation_prompt_tokens(g)), FinishReason(C.mc_generation_finish_reason(g)),
		seconds(C.mc_generation_prefill_seconds(g)), seconds(C.mc_generation_decode_seconds(g)),
		goText(C.mc_generation_content(g), C.mc_generation_content_len(g)), goText(C.mc_generation_reasoning(g), C.mc_generation_reasoning_len(g)),
		goText(C.mc_generation_tool_calls_json(g), C.mc_generation_tool_calls_json_len(g))}
}

// Token is one generated token, and the text that became certain with it.
type Token struct {
	// Text is whole characters; empty while a character or a possible stop text is incomplete.
	Text string
	ID   uint32
	// Index is its place in the answer, from 0.
	Index int
	// Logprob is the natural logarithm of the probability that the model itself gave the token.
	Logprob float32
	// Parts are those that became certain with the token; of an answer that is not told apart, its text.
	Parts []Part
}

// PartKind is what a part of an answer is.
type PartKind uint32

// The kinds of parts.
const (
	PartText      = PartKind(C.MC_PART_TEXT)
	PartReasoning = PartKind(C.MC_PART_REASONING)
	// PartToolCall is the name of a call that begins.
	PartToolCall = PartKind(C.MC_PART_TOOL_CALL)
	// PartArguments is a piece of that call's arguments, which together are a JSON object.
	PartArguments = PartKind(C.MC_PART_ARGUMENTS)
	// PartToolCallEnd is the JSON of a call that is whole, or that the answer ended within.
	PartToolCallEnd = PartKind(C.MC_PART_TOOL_CALL_END)
	// PartRejectedToolCall says that what began as a call is none: it follows as text.
	PartRejectedToolCall = PartKind(C.MC_PART_REJECTED_TOOL_CALL)
)

// String is "text", "reasoning", "tool call", "arguments", "tool call end" or "rejected tool call".
func (k PartKind) String() string {
	return name(k, "text", "reasoning", "tool call", "arguments", "tool call end", "rejected tool call")
}

// Part is a part of an answer, or a piece of one.
type Part struct {
	Kind PartKind
	Text string
	// Index is which call of the answer it belongs to, from 0; 0 for text and reasoning.
	Index int
}

func goToken(event *C.mc_token_event) Token {
	token := Token{Text: goText(event.text, event.text_len), ID: uint32(event.token), Index: int(event.index), Logprob: float32(event.logprob)}
	at := unsafe.Pointer(event.parts)
	for range int(event.parts_len) {
		part := (*C.mc_part)(at)
		token.Parts = append(token.Parts, Part{PartKind(part.kind), goText(part.text, part.text_len), int(part.index)})
		at = unsafe.Add(at, int(part.struct_size)) // a later library has larger ones
	}
	return token
}

// Stream is an answer that a loop generates: ranging over [Stream.Tokens] or [Stream.Text] makes the tokens, once. Leaving the loop ends
// the answer, as the context does; an error is the loop's last value.
type Stream struct {
	generate func(yield func(Token) bool) (*Generation, error)
	answer   *Generation
}

// Tokens generates the answer, token by token.
func (s *Stream) Tokens() iter.Seq2[Token, error] {
	return func(yield func(Token, error) bool) {
		generate := s.generate
		if generate == nil {
			yield(Token{}, invalid("stream: expected one loop over its tokens, found another"))
			return
		}
		s.generate = nil
		left := false
		answer, err := generate(func(token Token) bool {
			left = !yield(token, nil)
			return !left
		})
		s.answer = answer
		if err != nil && !left {
			yield(Token{}, err)
		}
	}
}

// Text generates the answer in pieces of text; tokens that complete no character are left out.
func (s *Stream) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for token, err := range s.Tokens() {
			if (err != nil || token.Text != "") && !yield(token.Text, err) {
				return
			}
		}
	}
}

// Parts generates the answer in its parts: text, thoughts and calls of tools, as they come.
func (s *Stream) Parts() iter.Seq2[Part, error] {
	return func(yield func(Part, error) bool) {
		for token, err := range s.Tokens() {
			if err != nil {
				yield(Part{}, err)
				return
			}
			for _, part := range token.Parts {
				if !yield(part, nil) {
					return
				}
			}
		}
	}
}

// Generation is the answer, or what there is of one that was stopped; nil before the loop is over and if it failed before the first token.
func (s *Stream) Generation() *Generation { return s.answer }

// Generate generates an answer to a prompt, and forgets both. If it is cancelled the partial answer comes with the error.
func (m *Model) Generate(ctx context.Context, prompt string, options *GenerateOptions) (*Generation, error) {
	c := newCall(ctx)
	defer c.done()
	handle, o := use(c, m.ref), options.build(c, c.cancel())
	options.hear(c, o)
	if c.err != nil {
		return nil, c.err
	}
	data, n := text(prompt)
	out := c.generation()
	object := c.failure()
	var status C.mc_status
	c.run(func() { status = C.mc_generate(handle, data, n, o, out, object) })
	return goGeneration(*out), c.result(status, *object)
}

// Stream generates an answer to a prompt as a loop asks for its tokens.
func (m *Model) Stream(ctx context.Context, prompt string, options *GenerateOptions) *Stream {
	return &Stream{generate: func(yield func(Token) bool) (*Generation, error) {
		c := newCall(ctx)
		defer c.done()
		handle, o := use(c, m.ref), options.build(c, c.cancel())
		options.hear(c, o)
		userData := callback(c, func(token Token) error {
			if !yield(token) {
				return errBreak
			}
			return nil
		})
		if c.err != nil {
			return nil, c.err
		}
		data, n := text(prompt)
		out := c.generation()
		object := c.failure()
		var status C.mc_status
		c.run(func() { status = C.mcgo_generate_stream(handle, data, n, o, userData, out, object) })
		err := c.result(status, *object)
		if errors.Is(err, errBreak) {
			err = nil
		}
		return goGeneration(*out), err
	}}
}
