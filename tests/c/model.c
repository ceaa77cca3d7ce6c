/* Section `model`: loading, what a loaded model says of itself, references. */
#include "check.h"

static void a_loaded_model_describes_itself(void) {
    mc_model *model = load_model();
    CHECK(strcmp(mc_model_architecture(model), "qwen2") == 0);
    CHECK(mc_model_context_length(model) == 1024);
    CHECK(mc_model_vocab_size(model) == 4096);
    CHECK(mc_model_hidden_size(model) == 256);
    CHECK(mc_model_layer_count(model) == 8);
    CHECK(mc_model_parameter_count(model) > 7000000 && mc_model_parameter_count(model) < 8000000);
    CHECK(mc_model_supports(model, MC_CAPABILITY_GENERATE));
    CHECK(mc_model_supports(model, MC_CAPABILITY_CHAT_TEMPLATE));
    CHECK(!mc_model_supports(model, (mc_capability)99));

    mc_string *config = NULL;
    EXPECT(MC_OK, mc_model_config_json(model, &config, &err));
    CHECK(strstr(mc_string_data(config), "\"num_key_value_heads\"") != NULL);
    mc_string_free(config);

    mc_string *backend = NULL;
    EXPECT(MC_OK, mc_model_backend_json(model, &backend, &err));
    CHECK(strstr(mc_string_data(backend), "\"single_tokens\":\"kernels\"") != NULL);
    CHECK(strstr(mc_string_data(backend), "\"weights\":{\"") != NULL);
    mc_string_free(backend);

    mc_tokens *eos = NULL;
    mc_tokenizer *tokenizer = NULL;
    uint32_t end = 0;
    EXPECT(MC_OK, mc_model_eos_tokens(model, &eos, &err));
    EXPECT(MC_OK, mc_model_tokenizer(model, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_token_id(tokenizer, "<|im_end|>", &end, &err));
    CHECK(mc_tokens_len(eos) > 0 && mc_tokens_data(eos)[0] == end);
    mc_tokenizer_free(tokenizer);
    mc_tokens_free(eos);
    mc_model_free(model);
}

static void architectures_are_listed(void) {
    mc_string *names = NULL;
    EXPECT(MC_OK, mc_architectures_json(&names, &err));
    CHECK(mc_string_data(names)[0] == '[' && strstr(mc_string_data(names), "\"qwen2\",\"qwen3\"") != NULL);
    mc_string_free(names);
}

static void each_reference_is_freed_once(void) {
    mc_model *model = load_model();
    mc_model_retain(model);
    mc_model_free(model);
    CHECK(mc_model_layer_count(model) == 8); /* the second reference holds it */
    mc_model_free(model);
}

static void a_child_holds_its_model(void) {
    mc_model *model = load_model();
    mc_session *session = NULL;
    mc_tokenizer *tokenizer = NULL;
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_OK, mc_model_tokenizer(model, &tokenizer, &err));
    mc_model_free(model);
    EXPECT(MC_OK, mc_session_append(session, "fn main", 7, NULL, &err));
    CHECK(mc_tokenizer_vocab_size(tokenizer) == 4096);
    mc_tokenizer_free(tokenizer);
    mc_session_free(session);
}

struct progress {
    int calls;
    uint64_t done;
    uint64_t total;
    bool monotone;
    bool stop;
};

static int32_t note_progress(void *user_data, const mc_progress_event *event) {
    struct progress *progress = user_data;
    if (progress->calls++ == 0) progress->monotone = true;
    if (event->stage == MC_STAGE_READ) {
        if (event->done < progress->done || event->done > event->total) progress->monotone = false;
        progress->done = event->done;
        progress->total = event->total;
    }
    return progress->stop ? MC_STOP : MC_CONTINUE;
}

static void progress_rises_to_its_total(void) {
    struct progress progress = {0};
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_progress(options, note_progress, &progress);
    EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
    CHECK(progress.calls > 0 && progress.monotone);
    CHECK(progress.total > 0 && progress.done == progress.total);
    mc_model_free(model);
    mc_model_options_free(options);
}

static void a_callback_or_a_cancel_ends_the_load(void) {
    struct progress progress = {.stop = true};
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_progress(options, note_progress, &progress);
    EXPECT(MC_CANCELLED, mc_model_load(model_path, options, &model, &err));
    CHECK(model == NULL && progress.calls == 1);
    mc_model_options_free(options);

    options = mc_model_options_new();
    mc_cancel *cancel = mc_cancel_new();
    mc_cancel_trigger(cancel);
    mc_model_options_set_cancel(options, cancel);
    EXPECT(MC_CANCELLED, mc_model_load(model_path, options, &model, &err));
    CHECK(model == NULL);
    mc_cancel_free(cancel);
    mc_model_options_free(options);
}

static void bad_options_are_reported_by_the_call_that_uses_them(void) {
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_dtype(options, (mc_dtype)77);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "dtype", mc_model_load(model_path, options, &model, &err));
    mc_model_options_free(options);
    CHECK(model == NULL);
}

static void f32_and_bf16_give_the_same_answer(void) {
    mc_model *model = NULL;
    mc_generation *generation = NULL;
    mc_generate_options *greedy_options = greedy(0);
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_dtype(options, MC_DTYPE_F32);
    EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
    CHECK(mc_model_dtype(model) == MC_DTYPE_F32);
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), greedy_options, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(greedy_options);
    mc_model_options_free(options);
    mc_model_free(model);
}

static void quantised_weights_take_less_and_give_the_same_answer(void) {
    mc_model *model = NULL;
    mc_generation *generation = NULL;
    uint64_t stored = 0, quantised = 0;
    mc_generate_options *greedy_options = greedy(0);
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_quantization(options, "q8_0");
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, NULL, &stored, &err));
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, options, &quantised, &err));
    CHECK(stored > quantised + 6000000); /* 7.3 M parameters of 16 bits, and of 8.5 */
    EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
    CHECK(mc_model_dtype(model) == MC_DTYPE_BF16); /* of what is not quantised */
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), greedy_options, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_model_free(model);

    mc_model_options_set_quantization(options, "q4_k_m");
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, options, &stored, &err));
    CHECK(quantised > stored + 2000000); /* 8.5 bits, and 4.6 to 6.6 */

    model = NULL;
    mc_model_options_set_quantization(options, "q4_k");
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "q8_0", mc_model_load(model_path, options, &model, &err));
    CHECK(model == NULL);
    mc_generate_options_free(greedy_options);
    mc_model_options_free(options);
}

static void quantised_weights_compute_fast_and_exactly(void) {
    float logits[2][4096] = {{0}};
    size_t i, size = 0;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_quantization(options, "q8_0");
    for (i = 0; i < 2; i++) {
        const uint32_t ids[] = {3, 1, 4, 1, 5};
        mc_model *model = NULL;
        mc_session *session = NULL;
        mc_model_options_set_exact(options, i == 1);
        EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
        EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
        EXPECT(MC_OK, mc_session_append_tokens(session, ids, 5, NULL, &err));
        size = mc_model_vocab_size(model);
        CHECK(size <= 4096);
        EXPECT(MC_OK, mc_session_logits(session, logits[i], size, &err));
        mc_session_free(session);
        mc_model_free(model);
    }
    CHECK(memcmp(logits[0], logits[1], size * sizeof(float)) != 0);
    for (i = 0; i < size; i++) CHECK(fabsf(logits[0][i] - logits[1][i]) < 0.01f);
    mc_model_options_free(options);
}

static void a_narrower_kv_cache_takes_less_and_gives_the_same_answer(void) {
    static const struct { const char *kind; uint64_t bytes; } kinds[] = {{"f32", 4 * 128}, {"f16", 2 * 128}, {"q8_0", 4 * 34}};
    uint64_t usual = 0, bytes = 0;
    size_t i;
    mc_model *model = NULL;
    mc_generate_options *greedy_options = greedy(0);
    mc_model_options *options = mc_model_options_new();
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, NULL, &usual, &err));
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        mc_generation *generation = NULL;
        mc_model_options_set_kv_cache(options, kinds[i].kind);
        EXPECT(MC_OK, mc_model_estimate_memory(model_path, options, &bytes, &err));
        /* Keys and values of 8 layers, 2 heads of 64 values, 1024 tokens. */
        CHECK(usual - bytes == 1024 * 8 * 2 * (kinds[0].bytes - kinds[i].bytes));
        model = NULL;
        EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
        EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), greedy_options, &generation, &err));
        CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
        mc_generation_free(generation);
        mc_model_free(model);
    }
    model = NULL;
    mc_model_options_set_kv_cache(options, "q4_0");
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "f32, f16, q8_0", mc_model_load(model_path, options, &model, &err));
    CHECK(model == NULL);
    mc_model_options_set_kv_cache(options, NULL);
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, options, &bytes, &err));
    CHECK(bytes == usual);
    mc_generate_options_free(greedy_options);
    mc_model_options_free(options);
}

static void a_smaller_context_is_kept_to(void) {
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_max_context(options, 64);
    EXPECT(MC_OK, mc_model_load(model_path, options, &model, &err));
    CHECK(mc_model_context_length(model) == 64);
    mc_model_options_free(options);
    mc_model_free(model);
}

static void memory_is_estimated_without_loading(void) {
    uint64_t bytes = 0;
    EXPECT(MC_OK, mc_model_estimate_memory(model_path, NULL, &bytes, &err));
    CHECK(bytes > 14000000 && bytes < 200000000); /* 7.3 M parameters of two bytes, cache and workspace */
    uint64_t untouched = 5;
    EXPECT(MC_ERROR_NOT_FOUND, mc_model_estimate_memory("no/such/model", NULL, &untouched, &err));
    CHECK(untouched == 5);
}

static void a_model_needs_no_network(void) {
    mc_model *model = NULL;
    mc_model_options *options = mc_model_options_new();
    char cache[] = "/tmp/mc-cache-XXXXXX";
    CHECK(mkdtemp(cache) != NULL);
    mc_model_options_set_offline(options, true);
    mc_model_options_set_hub_cache_dir(options, cache);
    if (mc_has_feature("hub")) {
        EXPECT_ERROR(MC_ERROR_NOT_FOUND, "nobody/nothing", mc_model_load_hub("nobody/nothing", options, &model, &err));
        EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "repo_id", mc_model_load_hub("../../etc", options, &model, &err));
    } else {
        EXPECT(MC_ERROR_UNSUPPORTED, mc_model_load_hub("nobody/nothing", options, &model, &err));
    }
    CHECK(model == NULL);
    mc_model_options_free(options);
    rmdir(cache);
}

/* The same questions to the same model, in 4 bits in one file. */
static void a_gguf_file_is_a_model(void) {
    const char *path = "tests/golden/gguf/tiny-coder-Q4_K_S.gguf";
    mc_model *model = NULL;
    mc_tokenizer *tokenizer = NULL;
    uint64_t bytes = 0;
    EXPECT(MC_OK, mc_model_estimate_memory(path, NULL, &bytes, &err));
    CHECK(bytes > 4000000 && bytes < 200000000);
    EXPECT(MC_OK, mc_model_load(path, NULL, &model, &err));
    CHECK(strcmp(mc_model_architecture(model), "qwen2") == 0);
    CHECK(mc_model_context_length(model) == 1024 && mc_model_vocab_size(model) == 4096);
    CHECK(mc_model_supports(model, MC_CAPABILITY_CHAT_TEMPLATE) && mc_model_supports(model, MC_CAPABILITY_TRAIN));
    EXPECT(MC_OK, mc_tokenizer_load(path, &tokenizer, &err));
    CHECK(mc_tokenizer_vocab_size(tokenizer) == 4096);

    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", "What does `Vec::push` do?", 25, &err));
    mc_session *session = NULL;
    mc_generation *answer = NULL;
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_OK, mc_session_set_chat(session, chat, NULL, &err));
    EXPECT(MC_OK, mc_session_generate_stream(session, NULL, NULL, NULL, &answer, &err));
    CHECK(strcmp(mc_generation_text(answer), "Appends an element to the back of a collection.") == 0);
    mc_generation_free(answer);
    mc_session_free(session);
    mc_chat_free(chat);
    mc_tokenizer_free(tokenizer);
    mc_model_free(model);

    model = NULL;
    EXPECT_ERROR(MC_ERROR_NOT_FOUND, "absent.gguf", mc_model_load("no/absent.gguf", NULL, &model, &err));
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "GGUF", mc_model_load("tests/golden/gguf/golden.json", NULL, &model, &err));
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_quantization(options, "q4_k");
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "q8_0", mc_model_load(path, options, &model, &err));
    mc_model_options_free(options);
    CHECK(model == NULL);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(a_loaded_model_describes_itself);
    RUN(architectures_are_listed);
    RUN(each_reference_is_freed_once);
    RUN(a_child_holds_its_model);
    RUN(progress_rises_to_its_total);
    RUN(a_callback_or_a_cancel_ends_the_load);
    RUN(bad_options_are_reported_by_the_call_that_uses_them);
    RUN(f32_and_bf16_give_the_same_answer);
    RUN(quantised_weights_take_less_and_give_the_same_answer);
    RUN(quantised_weights_compute_fast_and_exactly);
    RUN(a_narrower_kv_cache_takes_less_and_gives_the_same_answer);
    RUN(a_smaller_context_is_kept_to);
    RUN(memory_is_estimated_without_loading);
    RUN(a_model_needs_no_network);
    RUN(a_gguf_file_is_a_model);
    return end();
}
