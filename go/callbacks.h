// Setters and calls with a callback, for cgo: what the library hands to a callback is a number there, the cgo.Handle of a Go value.
#ifndef METAL_CANDLE_GO_CALLBACKS_H
#define METAL_CANDLE_GO_CALLBACKS_H

#include <metal_candle.h>
#include <stdint.h>

void mcgo_model_options_set_progress(mc_model_options *options, uintptr_t user_data);
void mcgo_generate_options_set_prefill_progress(mc_generate_options *options, uintptr_t user_data);
void mcgo_embed_options_set_progress(mc_embed_options *options, uintptr_t user_data);
mc_status mcgo_generate_stream(const mc_model *model, const char *prompt, size_t prompt_len, const mc_generate_options *options,
                               uintptr_t user_data, mc_generation **out, mc_error **err);
mc_status mcgo_model_save(const mc_model *model, const char *directory, const char *format, uintptr_t user_data, mc_error **err);
mc_status mcgo_model_save_gguf(const mc_model *model, const char *path, const char *format, uintptr_t user_data, mc_error **err);
mc_status mcgo_lora_train(mc_lora_trainer *trainer, const mc_dataset *train, const mc_dataset *eval, uintptr_t user_data, mc_error **err);
mc_status mcgo_log_set(uintptr_t user_data, mc_log_level max_level, mc_error **err);

#endif
