package metalcandle

// #include "callbacks.h"
import "C"

import (
	"context"
	"encoding/json"
)

// DType is the type that weights are kept in.
type DType uint32

// The types of weights.
const (
	// DTypeDefault is as stored in the file.
	DTypeDefault = DType(C.MC_DTYPE_DEFAULT)
	DTypeF32     = DType(C.MC_DTYPE_F32)
	DTypeF16     = DType(C.MC_DTYPE_F16)
	DTypeBF16    = DType(C.MC_DTYPE_BF16)
)

// String is "default", "f32", "f16" or "bf16".
func (d DType) String() string { return name(d, "default", "f32", "f16", "bf16") }

// Stage is the part of a long call that is running, and with it what [Progress] counts.
type Stage uint32

// The stages.
const (
	StageDownload = Stage(C.MC_STAGE_DOWNLOAD) // downloading files; bytes
	StageRead     = Stage(C.MC_STAGE_READ)     // reading weights; bytes
	StageQuantize = Stage(C.MC_STAGE_QUANTIZE) // reading weights and quantising them; bytes that are read
	StageCompile  = Stage(C.MC_STAGE_COMPILE)  // compiling the device's kernels; kernels
	StagePrefill  = Stage(C.MC_STAGE_PREFILL)  // evaluating the prompt; tokens
	StageEmbed    = Stage(C.MC_STAGE_EMBED)    // embedding; texts
	StageWrite    = Stage(C.MC_STAGE_WRITE)    // writing a model; bytes
)

// String is "download", "read", "quantize", "compile", "prefill", "embed" or "write".
func (s Stage) String() string {
	return name(s, "unknown", "download", "read", "quantize", "compile", "prefill", "embed", "write")
}

// Progress is how far a long call is, in the unit of its stage.
type Progress struct {
	Stage Stage
	Done  uint64
	// Total is 0 where it is not known.
	Total uint64
}

// Fraction is Done / Total, 0 to 1; 0 where the total is not known.
func (p Progress) Fraction() float64 {
	if p.Total == 0 {
		return 0
	}
	return float64(p.Done) / float64(p.Total)
}

// Capability is what a model can be asked for.
type Capability uint32

// The capabilities.
const (
	CapabilityGenerate = Capability(C.MC_CAPABILITY_GENERATE)
	CapabilityEmbed    = Capability(C.MC_CAPABILITY_EMBED)
	CapabilityLoRA     = Capability(C.MC_CAPABILITY_LORA)
	CapabilityTrain    = Capability(C.MC_CAPABILITY_TRAIN)
	// CapabilityChatTemplate says that the model's files have a chat template.
	CapabilityChatTemplate = Capability(C.MC_CAPABILITY_CHAT_TEMPLATE)
	// CapabilityRerank says that documents have scores: [Model.Rerank].
	CapabilityRerank = Capability(C.MC_CAPABILITY_RERANK)
)

// LoadOptions is how to load a model.
type LoadOptions struct {
	// Device is where the model runs; nil = the best there is.
	Device *Device
	// DType is the type to keep weights in. Quantised weights of a GGUF file are widened to it.
	DType DType
	// Quantization of weights while loading: "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl" or "mlx4".
	Quantization string
	// Exact computes in F32 with quantised weights on the CPU.
	Exact bool
	// KVCache is the type of keys and values in sessions: "f32" (the default), "f16", or on the CPU "q8_0".
	KVCache string
	// MaxContext is the longest context of sessions, in tokens; 0 = as the model's configuration says.
	MaxContext int
	// TokenizerPath is another tokenizer than the model's: a tokenizer.json, a directory with one, or a .gguf file.
	TokenizerPath string
	// File is the name of the GGUF file of a directory or repository that has several.
	File string
	// HubCacheDir is where downloads are kept; "" = Hugging Face's own cache.
	HubCacheDir string
	// HubRevision is a branch, tag or commit; "" = "main".
	HubRevision string
	// HubToken is the access token for private and gated repositories.
	HubToken string
	// Offline does with what was downloaded before.
	Offline bool
	// Progress hears how far loading is; its error stops it.
	Progress func(Progress) error
	// JSON is options by the names that mc_model_options_set_json() tells; they count more than those here.
	JSON string
}

func (o *LoadOptions) build(c *call) *C.mc_model_options {
	options := C.mc_model_options_new()
	c.later(func() { C.mc_model_options_free(options) })
	C.mc_model_options_set_cancel(options, c.cancel())
	if o == nil {
		return options
	}
	if o.Device != nil {
		if device := use(c, o.Device.ref); device != nil {
			C.mc_model_options_set_device(options, device)
		}
	}
	C.mc_model_options_set_dtype(options, C.mc_dtype(o.DType))
	C.mc_model_options_set_quantization(options, c.optional("quantization", o.Quantization))
	C.mc_model_options_set_exact(options, C.bool(o.Exact))
	C.mc_model_options_set_kv_cache(options, c.optional("kv_cache", o.KVCache))
	C.mc_model_options_set_max_context(options, c.size("max_context", o.MaxContext))
	C.mc_model_options_set_tokenizer_path(options, c.optional("tokenizer_path", o.TokenizerPath))
	C.mc_model_options_set_file(options, c.optional("file", o.File))
	C.mc_model_options_set_hub_cache_dir(options, c.optional("hub_cache_dir", o.HubCacheDir))
	C.mc_model_options_set_hub_revision(options, c.optional("hub_revision", o.HubRevision))
	C.mc_model_options_set_hub_token(options, c.optional("hub_token", o.HubToken))
	C.mc_model_options_set_offline(options, C.bool(o.Offline))
	if userData := callback(c, o.Progress); userData != 0 {
		C.mcgo_model_options_set_progress(options, userData)
	}
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_model_options_set_json(options, data, n)
	}
	return options
}

// Model is a loaded model: its network, tokenizer, chat template and generation defaults. Immutable; goroutines share it.
type Model struct{ ref *ref[*C.mc_model] }

func newModel(handle *C.mc_model) *Model {
	m := new(Model)
	m.ref = own(m, handle, func(h *C.mc_model) { C.mc_model_free(h) })
	return m
}

// Load loads a model from this machine: a directory with config.json, safetensors and tokenizer.json, a .gguf file, or a directory with
// one. It takes seconds.
func Load(ctx context.Context, path string, options *LoadOptions) (*Model, error) {
	return load(ctx, "path", path, options, func(path *C.char, options *C.mc_model_options, out **C.mc_model, object **C.mc_error) C.mc_status {
		return C.mc_model_load(path, options, out, object)
	})
}

// LoadHub loads a model from Hugging Face by the name of its repository, "owner/name": it downloads what is not in the cache.
func LoadHub(ctx context.Context, repository string, options *LoadOptions) (*Model, error) {
	return load(ctx, "repo_id", repository, options, func(path *C.char, options *C.mc_model_options, out **C.mc_model, object **C.mc_error) C.mc_status {
		return C.mc_model_load_hub(path, options, out, object)
	})
}

func load(ctx context.Context, field, path string, o *LoadOptions,
	f func(*C.char, *C.mc_model_options, **C.mc_model, **C.mc_error) C.mc_status) (*Model, error) {
	c := newCall(ctx)
	defer c.done()
	cpath, options := c.cstring(field, path), o.build(c)
	if c.err != nil {
		return nil, c.err
	}
	out, object := new(*C.mc_model), c.failure()
	c.later(func() { C.mc_model_free(*out) }) // of a load that was over when its callback returned an error or panicked
	var status C.mc_status
	c.run(func() { status = f(cpath, options, out, object) })
	if err := c.result(status, *object); err != nil {
		return nil, err
	}
	model := newModel(*out)
	*out = nil
	return model, nil
}

// EstimateMemory is how many bytes a model would take with these options: weights, the KV cache of the whole context, the workspace.
func EstimateMemory(path string, o *LoadOptions) (uint64, error) {
	c := newCall(context.Background())
	defer c.done()
	cpath, options := c.cstring("path", path), o.build(c)
	if c.err != nil {
		return 0, c.err
	}
	var bytes C.uint64_t
	var object *C.mc_error
	err := take(C.mc_model_estimate_memory(cpath, options, &bytes, &object), object)
	return uint64(bytes), err
}

// Close drops the model; sessions keep what they need of it. It returns nil.
func (m *Model) Close() error { m.ref.close(); return nil }

// Info is what a model is.
type Info struct {
	// Architecture is `model_type` of config.json, such as "qwen2".
	Architecture string
	// ContextLength is the longest context of a session, in tokens.
	ContextLength int
	// VocabSize is the number of logits.
	VocabSize int
	// HiddenSize is the width of the network, in numbers a token.
	HiddenSize int
	LayerCount int
	// ParameterCount is how many weights there are; shared ones count once.
	ParameterCount uint64
	// DType is the type of the weights that are not quantised.
	DType DType
}

// Info says what the model is; the zero Info once it is closed.
func (m *Model) Info() Info {
	h, err := m.ref.acquire()
	if err != nil {
		return Info{}
	}
	defer m.ref.release()
	return Info{C.GoString(C.mc_model_architecture(h)), int(C.mc_model_context_length(h)), int(C.mc_model_vocab_size(h)),
		int(C.mc_model_hidden_size(h)), int(C.mc_model_layer_count(h)), uint64(C.mc_model_parameter_count(h)), DType(C.mc_model_dtype(h))}
}

// Supports tells whether the model can be asked for something.
func (m *Model) Supports(capability Capability) bool {
	handle, err := m.ref.acquire()
	if err != nil {
		return false
	}
	defer m.ref.release()
	return bool(C.mc_model_supports(handle, C.mc_capability(capability)))
}

// ConfigJSON is config.json as it was read, or as it follows from the metadata of a GGUF file.
func (m *Model) ConfigJSON() (string, error) {
	handle, err := m.ref.acquire()
	if err != nil {
		return "", err
	}
	defer m.ref.release()
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_model_config_json(handle, &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// BackendJSON says what computes which part of the model, and how its weights are kept: see mc_model_backend_json.
func (m *Model) BackendJSON() (string, error) {
	handle, err := m.ref.acquire()
	if err != nil {
		return "", err
	}
	defer m.ref.release()
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_model_backend_json(handle, &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// EOSTokens are the tokens that end an answer, the usual one first; none if the model's files name none.
func (m *Model) EOSTokens() ([]uint32, error) {
	handle, err := m.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer m.ref.release()
	var out *C.mc_tokens
	var object *C.mc_error
	if err := take(C.mc_model_eos_tokens(handle, &out, &object), object); err != nil {
		return nil, err
	}
	return takeTokens(out), nil
}

// Architectures are those that this build of the library knows, as `model_type` of config.json has them, in alphabetical order.
func Architectures() ([]string, error) {
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_architectures_json(&out, &object), object); err != nil {
		return nil, err
	}
	var names []string
	err := json.Unmarshal([]byte(takeString(out)), &names)
	return names, err
}

// Save writes the model as a directory in the layout of the Hub, which this library and transformers load. format is the type of all
// matrices but small ones, "f32", "f16" or "bf16"; "" = the bytes of the files, F32 where adapters were merged. progress may be nil; its
// error stops the call, as the context does between two of its events.
func (m *Model) Save(ctx context.Context, directory, format string, progress func(Progress) error) error {
	return m.save(ctx, "directory", directory, format, progress, func(m *C.mc_model, path, format *C.char, userData C.uintptr_t, object **C.mc_error) C.mc_status {
		return C.mcgo_model_save(m, path, format, userData, object)
	})
}

// SaveGGUF writes a model that was loaded from a GGUF file as one. format is what matrices become that are not quantised, such as "q8_0";
// "" = as they are, F32 where adapters were merged. Else as [Model.Save].
func (m *Model) SaveGGUF(ctx context.Context, path, format string, progress func(Progress) error) error {
	return m.save(ctx, "path", path, format, progress, func(m *C.mc_model, path, format *C.char, userData C.uintptr_t, object **C.mc_error) C.mc_status {
		return C.mcgo_model_save_gguf(m, path, format, userData, object)
	})
}

func (m *Model) save(ctx context.Context, field, path, format string, progress func(Progress) error,
	f func(*C.mc_model, *C.char, *C.char, C.uintptr_t, **C.mc_error) C.mc_status) error {
	c := newCall(ctx)
	defer c.done()
	// These calls take no flag: their progress asks the context.
	report := func(p Progress) error {
		if ctx.Err() != nil {
			return cancelled(ctx)
		}
		if progress == nil {
			return nil
		}
		return progress(p)
	}
	handle, cpath, cformat, userData := use(c, m.ref), c.cstring(field, path), c.optional("format", format), callback(c, report)
	if ctx.Err() != nil {
		c.fail(cancelled(ctx))
	}
	if c.err != nil {
		return c.err
	}
	object := c.failure()
	var status C.mc_status
	c.run(func() { status = f(handle, cpath, cformat, userData, object) })
	return c.result(status, *object)
}

// Merge makes a new model with an adapter's changes in its weights, times scale. The two share the weights that do not change.
func (m *Model) Merge(adapter *Adapter, scale float32) (*Model, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, lora := use(c, m.ref), use(c, adapter.ref)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_model
	var object *C.mc_error
	if err := take(C.mc_model_merge(handle, lora, C.float(scale), &out, &object), object); err != nil {
		return nil, err
	}
	return newModel(out), nil
}
