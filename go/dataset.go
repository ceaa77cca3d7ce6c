package metalcandle

// #include <metal_candle.h>
import "C"

import "context"

// Dataset is examples to train on, in their order: texts, completions of prompts, and conversations. It knows no model; one call at a time
// changes it.
type Dataset struct{ ref *ref[*C.mc_dataset] }

func newDataset(handle *C.mc_dataset) *Dataset {
	d := new(Dataset)
	d.ref = own(d, handle, func(h *C.mc_dataset) { C.mc_dataset_free(h) })
	return d
}

// NewDataset makes an empty dataset.
func NewDataset() *Dataset { return newDataset(C.mc_dataset_new()) }

// LoadDataset reads a file of JSON lines, one example a line: `messages` and optionally `tools`, `prompt` and `completion`, or `text`.
func LoadDataset(path string) (*Dataset, error) {
	c := newCall(context.Background())
	defer c.done()
	cpath := c.cstring("path", path)
	if c.err != nil {
		return nil, c.err
	}
	var out *C.mc_dataset
	var object *C.mc_error
	if err := take(C.mc_dataset_load_jsonl(cpath, &out, &object), object); err != nil {
		return nil, err
	}
	return newDataset(out), nil
}

// Close frees the dataset. It returns nil.
func (d *Dataset) Close() error { d.ref.close(); return nil }

// AddText adds a text, all of which is trained on.
func (d *Dataset) AddText(s string) error {
	handle, err := d.ref.acquire()
	if err != nil {
		return err
	}
	defer d.ref.release()
	data, n := text(s)
	var object *C.mc_error
	return take(C.mc_dataset_add_text(handle, data, n, &object), object)
}

// AddCompletion adds a prompt and the text that is to follow it. The two are joined as they are.
func (d *Dataset) AddCompletion(prompt, completion string) error {
	handle, err := d.ref.acquire()
	if err != nil {
		return err
	}
	defer d.ref.release()
	p, pn := text(prompt)
	t, tn := text(completion)
	var object *C.mc_error
	return take(C.mc_dataset_add_completion(handle, p, pn, t, tn, &object), object)
}

// AddChat adds a conversation, as it is now.
func (d *Dataset) AddChat(chat *Chat) error {
	c := newCall(context.Background())
	defer c.done()
	handle, conversation := use(c, d.ref), use(c, chat.ref)
	if c.err != nil {
		return c.err
	}
	var object *C.mc_error
	return take(C.mc_dataset_add_chat(handle, conversation, &object), object)
}

// Len is how many examples there are; 0 while another call changes it and once it is closed.
func (d *Dataset) Len() int {
	handle, err := d.ref.acquire()
	if err != nil {
		return 0
	}
	defer d.ref.release()
	return int(C.mc_dataset_len(handle))
}
