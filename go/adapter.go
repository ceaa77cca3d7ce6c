package metalcandle

// #include <metal_candle.h>
import "C"

import "context"

// Adapter is a LoRA adapter of one model, loaded or trained. Immutable; goroutines share it.
type Adapter struct{ ref *ref[*C.mc_lora] }

// ScaledAdapter is an adapter with a factor for its changes; see [Adapter.Scaled]. The zero value is none.
type ScaledAdapter struct {
	Adapter *Adapter
	// Scale is a finite number: 1 = as trained, 0 = the model alone.
	Scale float32
}

func newAdapter(handle *C.mc_lora) *Adapter {
	a := new(Adapter)
	a.ref = own(a, handle, func(h *C.mc_lora) { C.mc_lora_free(h) })
	return a
}

// LoadAdapter loads an adapter of the model from a directory of PEFT.
func (m *Model) LoadAdapter(directory string) (*Adapter, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, path := use(c, m.ref), c.cstring("peft_dir", directory)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_lora
	var object *C.mc_error
	if err := take(C.mc_lora_load(handle, path, &out, &object), object); err != nil {
		return nil, err
	}
	return newAdapter(out), nil
}

// Close drops the adapter; sessions and merged models keep what they need of it. It returns nil.
func (a *Adapter) Close() error { a.ref.close(); return nil }

// Scaled is the adapter with a factor for its changes: 1 = as trained.
func (a *Adapter) Scaled(scale float32) ScaledAdapter { return ScaledAdapter{a, scale} }

// Save writes the adapter in the format of PEFT, with its values in F32.
func (a *Adapter) Save(directory string) error {
	c := newCall(context.Background())
	defer c.done()
	handle, path := use(c, a.ref), c.cstring("peft_dir", directory)
	if c.err != nil {
		return c.err
	}
	var object *C.mc_error
	return take(C.mc_lora_save(handle, path, &object), object)
}

// AdapterInfo is what an adapter's configuration gives.
type AdapterInfo struct {
	// Rank is that of modules which rank_pattern does not name.
	Rank int
	// Alpha is lora_alpha: a change counts Alpha / Rank times, or Alpha / sqrt(Rank) times with rsLoRA.
	Alpha float32
	// ParameterCount is how many values the adapter has, those of replaced matrices and biases too.
	ParameterCount uint64
}

// Info says what the adapter is; the zero AdapterInfo once it is closed.
func (a *Adapter) Info() AdapterInfo {
	handle, err := a.ref.acquire()
	if err != nil {
		return AdapterInfo{}
	}
	defer a.ref.release()
	return AdapterInfo{int(C.mc_lora_rank(handle)), float32(C.mc_lora_alpha(handle)), uint64(C.mc_lora_parameter_count(handle))}
}

// ConfigJSON is adapter_config.json as it was read.
func (a *Adapter) ConfigJSON() (string, error) {
	handle, err := a.ref.acquire()
	if err != nil {
		return "", err
	}
	defer a.ref.release()
	var out *C.mc_string
	var object *C.mc_error
	if err := take(C.mc_lora_config_json(handle, &out, &object), object); err != nil {
		return "", err
	}
	return takeString(out), nil
}

// arrays is adapters and their factors as C takes them.
func arrays(c *call, adapters []ScaledAdapter) ([]*C.mc_lora, []float32) {
	loras, scales := make([]*C.mc_lora, len(adapters)), make([]float32, len(adapters))
	for i, adapter := range adapters {
		if adapter.Adapter == nil {
			c.fail(invalid("adapters: expected an adapter at %d, found nil", i))
		} else {
			loras[i], scales[i] = use(c, adapter.Adapter.ref), adapter.Scale
		}
	}
	return loras, scales
}
