package metalcandle

// #include "callbacks.h"
import "C"

import (
	"context"
	"runtime"
)

// ScoreActivation is what becomes of a logit of a reranker; either way more is better.
type ScoreActivation uint32

// The activations.
const (
	// ScoreActivationDefault is what the model's files say, else the sigmoid.
	ScoreActivationDefault  = ScoreActivation(C.MC_SCORE_ACTIVATION_DEFAULT)
	ScoreActivationIdentity = ScoreActivation(C.MC_SCORE_ACTIVATION_IDENTITY)
	// ScoreActivationSigmoid gives numbers from 0 to 1.
	ScoreActivationSigmoid = ScoreActivation(C.MC_SCORE_ACTIVATION_SIGMOID)
)

// RerankOptions is how to rerank. What is nil or zero is as the model's directory says.
type RerankOptions struct {
	Activation ScoreActivation
	// MaxLength is how much of a query and a document counts, in tokens; 0 = the model's own limit.
	MaxLength int
	// BatchSize is the most pairs that go through the network together, on each thread; 0 = as many as are fastest. Changes no score.
	BatchSize int
	// PromptName is the model's own prompt in front of the query, or as the system message.
	PromptName string
	// Prompt is a text in its place; a pointer to "" = none. For a Qwen3-Reranker without a template for pairs it is the instruction.
	Prompt *string
	// JSON is options by the names that mc_rerank_options_set_json() tells; they count more than those here.
	JSON string
}

func (o *RerankOptions) build(c *call, flag *C.mc_cancel) *C.mc_rerank_options {
	options := C.mc_rerank_options_new()
	c.later(func() { C.mc_rerank_options_free(options) })
	C.mc_rerank_options_set_cancel(options, flag)
	if o == nil {
		return options
	}
	C.mc_rerank_options_set_activation(options, C.mc_score_activation(o.Activation))
	C.mc_rerank_options_set_max_length(options, c.size("max_length", o.MaxLength))
	C.mc_rerank_options_set_batch_size(options, c.size("batch_size", o.BatchSize))
	switch {
	case o.PromptName != "" && o.Prompt != nil:
		c.fail(invalid("Prompt: expected none beside PromptName, found %q and %q", *o.Prompt, o.PromptName))
	case o.PromptName != "":
		C.mc_rerank_options_set_prompt_name(options, c.cstring("prompt_name", o.PromptName))
	case o.Prompt != nil:
		C.mc_rerank_options_set_prompt(options, c.cstring("prompt", *o.Prompt))
	}
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_rerank_options_set_json(options, data, n)
	}
	return options
}

// Rerank tells how well each document answers the query, in their order: of a cross-encoder, or of a causal reranker such as
// Qwen3-Reranker. A pair has the same score alone and in any company, bit for bit on the CPU. Texts are not copied.
func (m *Model) Rerank(ctx context.Context, query string, documents []string, options *RerankOptions) ([]float32, error) {
	c := newCall(ctx)
	defer c.done()
	handle, o := use(c, m.ref), options.build(c, c.cancel())
	if c.err != nil {
		return nil, c.err
	}
	var pinner runtime.Pinner // C reads the strings through pointers that stand in Go memory
	defer pinner.Unpin()
	data, lengths := make([]*C.char, len(documents)+1), make([]C.size_t, len(documents)+1)
	for i, s := range documents {
		if s != "" {
			data[i], lengths[i] = text(s)
			pinner.Pin(data[i])
		}
	}
	scores := make([]float32, len(documents)+1)
	object := c.failure()
	var status C.mc_status
	c.run(func() {
		question, n := text(query)
		status = C.mc_rerank(handle, question, n, &data[0], &lengths[0], C.size_t(len(documents)), o, floats(scores), C.size_t(len(documents)), object)
	})
	if err := c.result(status, *object); err != nil {
		return nil, err
	}
	return scores[:len(documents)], nil
}
