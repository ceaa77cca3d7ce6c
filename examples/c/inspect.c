/* What a model is, what it needs, and what a text is to it: inspect MODEL [TEXT]
 *
 *   inspect models/tiny-coder "fn main() {"
 *
 * MODEL is a directory or a GGUF file. What the library logs appears on stderr.
 */
#include <metal_candle.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mc_error *error; /* of the last call that failed */

static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "inspect: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

/* [log] */
static void show_log(void *user_data, mc_log_level level, const char *target, const char *message, size_t message_len) {
    (void)message_len;
    fprintf(user_data, "%s%s: %s\n", level <= MC_LOG_WARN ? "warning: " : "", target, message);
}

static void begin(void) {
    if (mc_abi_version() != MC_ABI_VERSION) exit(2); /* the library is another one than the header */
    check(mc_log_set(show_log, stderr, NULL, MC_LOG_INFO, &error));
    printf("library     %s%s\n", mc_version_string(), mc_has_feature("hub") ? ", loads from the Hub" : "");
}
/* [log] */

/* [device] */
static mc_device *open_device(void) {
    mc_device *device = NULL;
    check(mc_device_new(MC_DEVICE_AUTO, 0, &device, &error));
    printf("device      %s\n", mc_device_name(device));
    uint64_t used = 0, total = 0;
    if (mc_device_memory(device, &used, &total, NULL) == MC_OK) {
        printf("memory      %.0f of %.0f MB are in use\n", (double)used / 1e6, (double)total / 1e6);
    }
    return device;
}
/* [device] */

/* [load] */
static int32_t show_progress(void *user_data, const mc_progress_event *event) {
    if (event->total > 0) fprintf(user_data, "\r%.0f %%  ", 100.0 * (double)event->done / (double)event->total);
    return MC_CONTINUE;
}

static mc_model *load(const char *path, const mc_device *device) {
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_device(options, device);
    mc_model_options_set_progress(options, show_progress, stderr);
    uint64_t bytes = 0;
    check(mc_model_estimate_memory(path, options, &bytes, &error));
    printf("needs       %.0f MB\n", (double)bytes / 1e6);
    mc_model *model = NULL;
    check(mc_model_load(path, options, &model, &error));
    mc_model_options_free(options);
    printf("is          %s, %.1f million weights, %zu tokens of context\n", mc_model_architecture(model),
           (double)mc_model_parameter_count(model) / 1e6, mc_model_context_length(model));
    return model;
}
/* [load] */

static void show_backend(const mc_model *model) {
    /* [string] */
    mc_string *backend = NULL;
    check(mc_model_backend_json(model, &backend, &error));
    printf("computed by %s\n", mc_string_data(backend));
    mc_string_free(backend);
    /* [string] */
}

/* [tokens] */
static void show_tokens(const mc_model *model, const char *text) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    check(mc_model_tokenizer(model, &tokenizer, &error));
    check(mc_tokenizer_encode(tokenizer, text, strlen(text), false, &tokens, &error));
    const uint32_t *ids = mc_tokens_data(tokens);
    for (size_t i = 0; i < mc_tokens_len(tokens); i++) {
        mc_string *piece = NULL;
        check(mc_tokenizer_decode(tokenizer, ids + i, 1, false, &piece, &error));
        printf("%11lu %s\n", (unsigned long)ids[i], mc_string_data(piece));
        mc_string_free(piece);
    }
    mc_tokens_free(tokens);
    mc_tokenizer_free(tokenizer);
}
/* [tokens] */

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) return fprintf(stderr, "usage: inspect MODEL [TEXT]\n"), 2;
    begin();
    mc_device *device = open_device();
    mc_model *model = load(argv[1], device);
    show_backend(model);
    if (argc > 2) show_tokens(model, argv[2]);
    mc_model_free(model);
    mc_device_free(device);
    if (mc_live_objects() != 0) return fprintf(stderr, "inspect: %zu objects were not freed\n", mc_live_objects()), 1;
    return 0;
}
