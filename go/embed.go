package metalcandle

// #include "callbacks.h"
import "C"

import (
	"context"
	"iter"
	"runtime"
	"unsafe"
)

// Pooling is how the vectors of a text's tokens become one.
type Pooling uint32

// The ways of pooling.
const (
	// PoolingDefault is what the model's directory says.
	PoolingDefault     = Pooling(C.MC_POOLING_DEFAULT)
	PoolingMean        = Pooling(C.MC_POOLING_MEAN)
	PoolingCLS         = Pooling(C.MC_POOLING_CLS)
	PoolingLast        = Pooling(C.MC_POOLING_LAST)
	PoolingMax         = Pooling(C.MC_POOLING_MAX)
	PoolingMeanSqrtLen = Pooling(C.MC_POOLING_MEAN_SQRT_LEN)
	// PoolingWeightedMean is their mean, weighted with the position, 1 for the first.
	PoolingWeightedMean = Pooling(C.MC_POOLING_WEIGHTED_MEAN)
)

// Similarity is how vectors are compared; more is nearer.
type Similarity uint32

// The similarities.
const (
	SimilarityCosine = Similarity(C.MC_SIMILARITY_COSINE)
	SimilarityDot    = Similarity(C.MC_SIMILARITY_DOT)
	// SimilarityEuclidean is minus the Euclidean distance.
	SimilarityEuclidean = Similarity(C.MC_SIMILARITY_EUCLIDEAN)
	// SimilarityManhattan is minus the sum of the absolute differences.
	SimilarityManhattan = Similarity(C.MC_SIMILARITY_MANHATTAN)
)

// String is "cosine", "dot", "euclidean" or "manhattan".
func (s Similarity) String() string {
	return name(s, "none", "cosine", "dot", "euclidean", "manhattan")
}

// EmbedOptions is how to embed. What is nil or zero is as the model's directory says.
type EmbedOptions struct {
	Pooling Pooling
	// Normalize is whether vectors have length 1.
	Normalize *bool
	// Dimensions keeps the first values of each vector only (Matryoshka); 0 = all.
	Dimensions int
	// MaxLength is how much of a long text counts, in tokens; 0 = the model's own limit.
	MaxLength int
	// BatchSize is the most texts that go through the network together, on each thread; 0 = as many as are fastest. Changes no vector.
	BatchSize int
	// PromptName is the model's own prompt in front of every text: "query", "document", or what the model names.
	PromptName string
	// Prefix is a text in front of every text, in place of a prompt; a pointer to "" = nothing, not even the model's default prompt.
	Prefix *string
	// Adapter is one for the vectors: adapter.Scaled(1).
	Adapter ScaledAdapter
	// Adapters are several at once, in place of Adapter: their changes add up.
	Adapters []ScaledAdapter
	// Progress hears how many texts are done; its error stops the call.
	Progress func(Progress) error
	// JSON is options by the names that mc_embed_options_set_json() tells; they count more than those here.
	JSON string
}

func (o *EmbedOptions) build(c *call, flag *C.mc_cancel) *C.mc_embed_options {
	options := C.mc_embed_options_new()
	c.later(func() { C.mc_embed_options_free(options) })
	C.mc_embed_options_set_cancel(options, flag)
	if o == nil {
		return options
	}
	C.mc_embed_options_set_pooling(options, C.mc_pooling(o.Pooling))
	if o.Normalize != nil {
		C.mc_embed_options_set_normalize(options, C.bool(*o.Normalize))
	}
	C.mc_embed_options_set_dimensions(options, c.size("dimensions", o.Dimensions))
	C.mc_embed_options_set_max_length(options, c.size("max_length", o.MaxLength))
	C.mc_embed_options_set_batch_size(options, c.size("batch_size", o.BatchSize))
	switch {
	case o.PromptName != "" && o.Prefix != nil:
		c.fail(invalid("Prefix: expected none beside PromptName, found %q and %q", *o.Prefix, o.PromptName))
	case o.PromptName != "":
		C.mc_embed_options_set_prompt_name(options, c.cstring("prompt_name", o.PromptName))
	case o.Prefix != nil:
		C.mc_embed_options_set_prefix(options, c.cstring("prefix", *o.Prefix))
	}
	if o.Adapter.Adapter != nil {
		if lora := use(c, o.Adapter.Adapter.ref); lora != nil {
			C.mc_embed_options_set_lora(options, lora, C.float(o.Adapter.Scale))
		}
	}
	if loras, scales := arrays(c, o.Adapters); c.err == nil && len(loras) > 0 {
		C.mc_embed_options_set_loras(options, &loras[0], floats(scales), C.size_t(len(loras)))
	}
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_embed_options_set_json(options, data, n)
	}
	return options
}

// Vectors are vectors of one length, one after another: shape (Len, Dim).
type Vectors struct {
	// Dim is how many values a vector has.
	Dim int
	// Values has Dim of them for each vector.
	Values []float32
}

// Len is how many vectors there are.
func (v Vectors) Len() int {
	if v.Dim <= 0 {
		return 0
	}
	return len(v.Values) / v.Dim
}

// At is one of the vectors, sharing the memory of Values.
func (v Vectors) At(i int) []float32 { return v.Values[i*v.Dim : (i+1)*v.Dim : (i+1)*v.Dim] }

// All are the vectors in their order, sharing the memory of Values.
func (v Vectors) All() iter.Seq2[int, []float32] {
	return func(yield func(int, []float32) bool) {
		for i := range v.Len() {
			if !yield(i, v.At(i)) {
				return
			}
		}
	}
}

// EmbedDim is how many values a vector has with these options; 0 for options that [Model.Embed] would refuse.
func (m *Model) EmbedDim(options *EmbedOptions) int {
	c := newCall(context.Background())
	defer c.done()
	handle, o := use(c, m.ref), options.build(c, nil)
	if c.err != nil {
		return 0
	}
	return int(C.mc_model_embed_dim(handle, o))
}

// Similarity is how the model's vectors are meant to be compared.
func (m *Model) Similarity() Similarity {
	handle, err := m.ref.acquire()
	if err != nil {
		return Similarity(C.MC_SIMILARITY_NONE)
	}
	defer m.ref.release()
	return Similarity(C.mc_model_similarity(handle))
}

// Embed turns a text into a vector of length [Model.EmbedDim].
func (m *Model) Embed(ctx context.Context, s string, options *EmbedOptions) ([]float32, error) {
	vectors, err := m.embed(ctx, options, 1, func(_ *call, handle *C.mc_model, o *C.mc_embed_options, out []float32, object **C.mc_error) C.mc_status {
		data, n := text(s)
		return C.mc_embed(handle, data, n, o, floats(out), C.size_t(len(out)), object)
	})
	return vectors.Values, err
}

// EmbedAll turns texts into vectors, in their order: faster than one by one, and with the same vectors. Texts are not copied.
func (m *Model) EmbedAll(ctx context.Context, texts []string, options *EmbedOptions) (Vectors, error) {
	return m.embed(ctx, options, len(texts), func(c *call, handle *C.mc_model, o *C.mc_embed_options, out []float32, object **C.mc_error) C.mc_status {
		var pinner runtime.Pinner // C reads the strings through pointers that stand in Go memory
		defer pinner.Unpin()
		data, lengths := make([]*C.char, len(texts)+1), make([]C.size_t, len(texts)+1)
		for i, s := range texts {
			if s != "" {
				data[i], lengths[i] = text(s)
				pinner.Pin(data[i])
			}
		}
		if len(out) == 0 {
			out = make([]float32, 1)[:0]
		}
		return C.mc_embed_batch(handle, &data[0], &lengths[0], C.size_t(len(texts)), o, floats(out), C.size_t(len(out)), object)
	})
}

func (m *Model) embed(ctx context.Context, options *EmbedOptions, n int,
	f func(*call, *C.mc_model, *C.mc_embed_options, []float32, **C.mc_error) C.mc_status) (Vectors, error) {
	c := newCall(ctx)
	defer c.done()
	handle, o := use(c, m.ref), options.build(c, c.cancel())
	if options != nil {
		if userData := callback(c, options.Progress); userData != 0 {
			C.mcgo_embed_options_set_progress(o, userData)
		}
	}
	if c.err != nil {
		return Vectors{}, c.err
	}
	// One value where the options are wrong, for which there is no length: the call then says what is wrong.
	dim := max(int(C.mc_model_embed_dim(handle, o)), 1)
	vectors := Vectors{dim, make([]float32, n*dim)}
	object := c.failure()
	var status C.mc_status
	c.run(func() { status = f(c, handle, o, vectors.Values, object) })
	if err := c.result(status, *object); err != nil {
		return Vectors{}, err
	}
	return vectors, nil
}

// Hit is a document and how near it is.
type Hit struct {
	// Index is the document's, from 0.
	Index int
	Score float32
}

// TopK are for each query the k nearest documents, the nearest first; of equally near ones the earlier. Every document is compared.
func (s Similarity) TopK(queries, documents Vectors, k int) ([][]Hit, error) {
	for _, v := range []struct {
		name string
		Vectors
	}{{"queries", queries}, {"documents", documents}} {
		if v.Dim < 1 || v.Dim != queries.Dim || len(v.Values)%v.Dim != 0 {
			return nil, invalid("%s: expected whole vectors of %d values, found %d values of vectors of %d", v.name, queries.Dim, len(v.Values), v.Dim)
		}
	}
	if k < 1 || k > documents.Len() {
		return nil, invalid("k: expected 1 to %d, the number of documents, found %d", documents.Len(), k)
	}
	if queries.Len() == 0 {
		return nil, nil
	}
	indices, scores := make([]C.size_t, queries.Len()*k), make([]float32, queries.Len()*k)
	var object *C.mc_error
	status := C.mc_similarity_top_k(C.mc_similarity(s), floats(queries.Values), C.size_t(queries.Len()), floats(documents.Values),
		C.size_t(documents.Len()), C.size_t(queries.Dim), C.size_t(k), (*C.size_t)(unsafe.SliceData(indices)), floats(scores), &object)
	if err := take(status, object); err != nil {
		return nil, err
	}
	hits := make([][]Hit, queries.Len())
	for i := range hits {
		hits[i] = make([]Hit, k)
		for j := range hits[i] {
			hits[i][j] = Hit{int(indices[i*k+j]), scores[i*k+j]}
		}
	}
	return hits, nil
}

// Rank orders texts by how near they are in meaning to a query, the nearest first.
func (m *Model) Rank(ctx context.Context, query string, texts []string) ([]Hit, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	q, err := m.Embed(ctx, query, nil)
	if err != nil {
		return nil, err
	}
	documents, err := m.EmbedAll(ctx, texts, nil)
	if err != nil {
		return nil, err
	}
	hits, err := m.Similarity().TopK(Vectors{len(q), q}, documents, len(texts))
	if err != nil {
		return nil, err
	}
	return hits[0], nil
}
