// The functions that the library calls: each hands its event to one that Go exports. A `user_data` of 0 stands for no callback.
#include "callbacks.h"
#include "_cgo_export.h"

static int32_t on_progress(void *user_data, const mc_progress_event *event) {
  return mcgoProgress((uintptr_t)user_data, event->stage, event->done, event->total);
}

static int32_t on_token(void *user_data, const mc_token_event *event) {
  return mcgoToken((uintptr_t)user_data, (mc_token_event *)event);
}

static int32_t on_step(void *user_data, const mc_train_event *event) {
  return mcgoStep((uintptr_t)user_data, (mc_train_event *)event);
}

static void on_log(void *user_data, mc_log_level level, const char *target, const char *message, size_t message_len) {
  mcgoLog((uintptr_t)user_data, level, (char *)target, (char *)message, message_len);
}

static void free_log(void *user_data) { mcgoLogFree((uintptr_t)user_data); }

void mcgo_model_options_set_progress(mc_model_options *options, uintptr_t user_data) {
  mc_model_options_set_progress(options, on_progress, (void *)user_data);
}

void mcgo_generate_options_set_prefill_progress(mc_generate_options *options, uintptr_t user_data) {
  mc_generate_options_set_prefill_progress(options, on_progress, (void *)user_data);
}

void mcgo_embed_options_set_progress(mc_embed_options *options, uintptr_t user_data) {
  mc_embed_options_set_progress(options, on_progress, (void *)user_data);
}

mc_status mcgo_generate_stream(const mc_model *model, const char *prompt, size_t prompt_len, const mc_generate_options *options,
                               uintptr_t user_data, mc_generation **out, mc_error **err) {
  return mc_generate_stream(model, prompt, prompt_len, options, on_token, (void *)user_data, out, err);
}

mc_status mcgo_model_save(const mc_model *model, const char *directory, const char *format, uintptr_t user_data, mc_error **err) {
  return mc_model_save(model, directory, format, user_data ? on_progress : NULL, (void *)user_data, err);
}

mc_status mcgo_model_save_gguf(const mc_model *model, const char *path, const char *format, uintptr_t user_data, mc_error **err) {
  return mc_model_save_gguf(model, path, format, user_data ? on_progress : NULL, (void *)user_data, err);
}

mc_status mcgo_lora_train(mc_lora_trainer *trainer, const mc_dataset *train, const mc_dataset *eval, uintptr_t user_data, mc_error **err) {
  return mc_lora_trainer_train(trainer, train, eval, user_data ? on_step : NULL, (void *)user_data, err);
}

mc_status mcgo_log_set(uintptr_t user_data, mc_log_level max_level, mc_error **err) {
  return mc_log_set(user_data ? on_log : NULL, (void *)user_data, free_log, max_level, err);
}
