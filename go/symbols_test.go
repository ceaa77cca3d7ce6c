package metalcandle_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What this package leaves out, and why.
var unbound = map[string]string{
	"mc_model_retain":         "Go shares pointers, and the garbage collector counts",
	"mc_lora_retain":          "Go shares pointers, and the garbage collector counts",
	"mc_cancel_is_triggered":  "a context is asked, never the flag that follows it",
	"mc_device_get_kind":      "the name of ABI 1 of mc_device_kind_of",
	"mc_model_get_dtype":      "the name of ABI 1 of mc_model_dtype",
	"mc_embed_dim":            "the name of ABI 1 of mc_model_embed_dim",
	"mc_embed_similarity":     "the name of ABI 1 of mc_model_similarity",
	"mc_chat_render":          "the name of ABI 1 of mc_model_render_chat",
	"mc_chat_encode":          "the name of ABI 1 of mc_model_encode_chat",
	"mc_lora_merge":           "the name of ABI 1 of mc_model_merge",
	"mc_lora_estimate_memory": "the name of ABI 1 of mc_model_estimate_training_memory",
	"mc_lora_train":           "the name of ABI 1 of mc_lora_trainer_train",
	"mc_lora_train_step":      "the name of ABI 1 of mc_lora_trainer_train_step",
	"mc_lora_eval_step":       "the name of ABI 1 of mc_lora_trainer_eval_step",
}

func TestEveryFunctionOfTheHeaderIsBoundOrLeftOutForAReason(t *testing.T) {
	list, err := os.ReadFile("../abi/symbols.txt")
	check(t, err)
	var sources strings.Builder
	for _, pattern := range []string{"*.go", "*.c"} {
		files, err := filepath.Glob(pattern)
		check(t, err)
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				source, err := os.ReadFile(file)
				check(t, err)
				sources.Write(source)
			}
		}
	}
	calls := make(map[string]bool)
	for _, call := range regexp.MustCompile(`(?:C\.| |\t)(mc_\w+)\(`).FindAllStringSubmatch(sources.String(), -1) {
		calls[call[1]] = true
	}
	symbols := strings.Fields(string(list))
	if len(symbols) < 100 {
		t.Fatalf("abi/symbols.txt has %d functions", len(symbols))
	}
	for _, symbol := range symbols {
		if reason := unbound[symbol]; calls[symbol] == (reason != "") {
			t.Errorf("%s: bound %v, left out: %q", symbol, calls[symbol], reason)
		}
		delete(unbound, symbol)
	}
	for symbol := range unbound {
		t.Errorf("%s is left out and does not exist", symbol)
	}
}
