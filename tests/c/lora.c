/* Section `lora`: adapters attached to sessions and calls, several at once, removed, merged, saved. Tiny random models of the tests. */
#include "check.h"

#define VOCAB 211
#define BASE "tests/golden/decoders/qwen2_untied_old"
#define ADAPTERS "tests/golden/lora/"

static const uint32_t prompt[] = {110, 158, 47, 188, 30, 172, 9, 2, 131};
#define PROMPT_LEN (sizeof prompt / sizeof *prompt)

static mc_model *model;

static mc_lora *load(const char *name) {
    char path[256];
    mc_lora *lora = NULL;
    snprintf(path, sizeof path, ADAPTERS "%s", name);
    EXPECT(MC_OK, mc_lora_load(model, path, &lora, &err));
    return lora;
}

static mc_session *new_session(const mc_model *of) {
    mc_session *session = NULL;
    EXPECT(MC_OK, mc_session_new(of, 0, &session, &err));
    EXPECT(MC_OK, mc_session_append_tokens(session, prompt, PROMPT_LEN, NULL, &err));
    return session;
}

static float largest_difference(const mc_session *session, const float *expected) {
    static float found[VOCAB];
    float most = 0;
    EXPECT(MC_OK, mc_session_logits(session, found, VOCAB, &err));
    for (int i = 0; i < VOCAB; i++) {
        float difference = found[i] > expected[i] ? found[i] - expected[i] : expected[i] - found[i];
        if (!(difference <= most)) most = difference;
    }
    return most;
}

static void an_adapter_says_what_it_is(void) {
    mc_lora *lora = load("qwen2_all7");
    mc_string *config = NULL;
    CHECK(mc_model_supports(model, MC_CAPABILITY_LORA) && mc_model_supports(model, MC_CAPABILITY_TRAIN));
    CHECK(mc_lora_rank(lora) == 8 && mc_lora_alpha(lora) == 16.0f && mc_lora_parameter_count(lora) > 0);
    EXPECT(MC_OK, mc_lora_config_json(lora, &config, &err));
    CHECK(config != NULL && strstr(mc_string_data(config), "\"target_modules\"") != NULL);
    mc_string_free(config);
    mc_lora_free(lora);
}

static void a_removed_adapter_leaves_no_bit_behind(void) {
    static float plain[VOCAB], changed[VOCAB];
    mc_session *session = new_session(model);
    mc_lora *lora = load("qwen2_dora");
    EXPECT(MC_OK, mc_session_logits(session, plain, VOCAB, &err));
    EXPECT(MC_OK, mc_session_set_lora(session, lora, 1.0f, &err));
    mc_lora_free(lora); /* the session keeps what it needs */
    CHECK(mc_session_position(session) == PROMPT_LEN);
    EXPECT(MC_OK, mc_session_logits(session, changed, VOCAB, &err));
    CHECK(largest_difference(session, plain) > 0.1f);
    EXPECT(MC_OK, mc_session_set_lora(session, NULL, 1.0f, &err));
    CHECK(largest_difference(session, plain) == 0.0f);
    mc_session_free(session);
}

static void several_adapters_add_up_in_any_order(void) {
    static float both[VOCAB];
    mc_session *session = new_session(model);
    mc_lora *one = load("qwen2_all7"), *other = load("qwen2_rslora");
    const mc_lora *loras[2] = {one, other}, *swapped[2] = {other, one};
    const float scales[2] = {0.5f, 0.25f}, swapped_scales[2] = {0.25f, 0.5f};
    EXPECT(MC_OK, mc_session_set_loras(session, loras, scales, 2, &err));
    EXPECT(MC_OK, mc_session_logits(session, both, VOCAB, &err));
    EXPECT(MC_OK, mc_session_set_loras(session, swapped, swapped_scales, 2, &err));
    CHECK(largest_difference(session, both) < 1e-4f);
    EXPECT(MC_OK, mc_session_set_loras(session, loras, NULL, 2, &err)); /* 1 for each */
    CHECK(largest_difference(session, both) > 0.1f);

    loras[1] = NULL;
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loras[1]", mc_session_set_loras(session, loras, NULL, 2, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loras", mc_session_set_loras(session, null(), NULL, 2, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "scale", mc_session_set_lora(session, one, (float)INFINITY, &err));
    CHECK(largest_difference(session, both) > 0.1f); /* nothing was changed */
    EXPECT(MC_OK, mc_session_set_loras(session, NULL, NULL, 0, &err));
    mc_lora_free(one);
    mc_lora_free(other);
    mc_session_free(session);
}

/* The first tokens of an answer, one base 256 digit each. */
static uint64_t answer(mc_session *session, const mc_generate_options *options) {
    mc_generation *generation = NULL;
    uint64_t digits = 0;
    EXPECT(MC_OK, mc_session_generate_stream(session, options, NULL, NULL, &generation, &err));
    for (size_t i = 0; generation != NULL && i < mc_generation_tokens_len(generation); i++)
        digits = digits * 256 + mc_generation_tokens(generation)[i];
    mc_generation_free(generation);
    EXPECT(MC_OK, mc_session_truncate(session, PROMPT_LEN, &err));
    return digits;
}

static void an_adapter_of_one_call_replaces_that_of_the_session(void) {
    mc_session *session = new_session(model), *plain = new_session(model);
    mc_lora *one = load("qwen2_all7"), *other = load("qwen2_rslora");
    mc_generate_options *options = greedy(6), *own = greedy(6);
    mc_generate_options_set_ignore_eos(options, true);
    mc_generate_options_set_ignore_eos(own, true);
    mc_generate_options_set_lora(own, other, 1.0f);
    EXPECT(MC_OK, mc_session_set_lora(session, one, 1.0f, &err));
    uint64_t with_one = answer(session, options), with_other = answer(session, own);
    CHECK(with_one != with_other && answer(session, options) == with_one);
    CHECK(answer(plain, own) == with_other && answer(plain, options) != with_one);
    EXPECT(MC_OK, mc_session_set_lora(session, other, 1.0f, &err));
    CHECK(answer(session, options) == with_other);
    mc_generate_options_set_lora(own, one, 0.0f); /* the model alone */
    CHECK(answer(session, own) == answer(plain, options));
    mc_generate_options_set_lora(own, NULL, 0.0f); /* the session's own */
    CHECK(answer(session, own) == with_other);
    mc_generate_options_set_lora(own, one, (float)INFINITY);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "scale", mc_session_begin(session, own, &err));
    mc_generate_options_free(options);
    mc_generate_options_free(own);
    mc_lora_free(one);
    mc_lora_free(other);
    mc_session_free(session);
    mc_session_free(plain);
}

static void several_adapters_of_one_call_add_up(void) {
    mc_lora *one = load("qwen2_all7"), *other = load("qwen2_rslora");
    const mc_lora *loras[2] = {one, other};
    const float scales[2] = {0.5f, 0.25f}, bad[2] = {1.0f, NAN};
    mc_generate_options *options = mc_generate_options_new(), *plain = mc_generate_options_new();
    mc_embed_options *embedding = mc_embed_options_new();
    mc_generation *by_options = NULL, *by_session = NULL;
    mc_session *session = new_session(model), *attached = new_session(model);
    mc_generate_options_set_max_tokens(options, 12);
    mc_generate_options_set_max_tokens(plain, 12);
    mc_generate_options_set_ignore_eos(options, true);
    mc_generate_options_set_ignore_eos(plain, true);
    mc_generate_options_set_loras(options, loras, scales, 2);
    EXPECT(MC_OK, mc_session_set_loras(attached, loras, scales, 2, &err));
    EXPECT(MC_OK, mc_session_generate_stream(session, options, NULL, NULL, &by_options, &err));
    EXPECT(MC_OK, mc_session_generate_stream(attached, plain, NULL, NULL, &by_session, &err));
    CHECK(mc_generation_tokens_len(by_options) == 12 && mc_generation_tokens_len(by_session) == 12);
    CHECK(memcmp(mc_generation_tokens(by_options), mc_generation_tokens(by_session), 12 * sizeof(uint32_t)) == 0);
    mc_generation_free(by_options);
    mc_generation_free(by_session);

    mc_generate_options_set_loras(options, NULL, NULL, 0); /* none again */
    EXPECT(MC_OK, mc_session_truncate(session, PROMPT_LEN, &err));
    EXPECT(MC_OK, mc_session_generate_stream(session, options, NULL, NULL, &by_options, &err));
    mc_generation_free(by_options);
    mc_generate_options_set_loras(options, loras, bad, 2);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "scales[1]: expected a finite number, found NaN",
                 mc_session_generate_stream(session, options, NULL, NULL, NULL, &err));
    loras[1] = NULL;
    mc_embed_options_set_loras(embedding, loras, NULL, 2);
    float vector[8];
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "loras[1]: expected mc_lora, found NULL", mc_embed(model, "a", 1, embedding, vector, 8, &err));
    mc_embed_options_free(embedding);
    mc_generate_options_free(options);
    mc_generate_options_free(plain);
    mc_session_free(session);
    mc_session_free(attached);
    mc_lora_free(one);
    mc_lora_free(other);
}

static void a_merged_model_computes_what_the_adapter_does(void) {
    static float attached[VOCAB], plain[VOCAB];
    mc_model *merged = NULL;
    mc_lora *lora = load("qwen2_all7");
    mc_session *session = new_session(model);
    EXPECT(MC_OK, mc_session_logits(session, plain, VOCAB, &err));
    EXPECT(MC_OK, mc_session_set_lora(session, lora, 0.5f, &err));
    EXPECT(MC_OK, mc_session_logits(session, attached, VOCAB, &err));
    EXPECT(MC_OK, mc_model_merge(model, lora, 0.5f, &merged, &err));
    mc_session *other = new_session(merged);
    CHECK(largest_difference(other, attached) < 5e-4f);
    EXPECT(MC_ERROR_MISMATCH, mc_session_set_lora(other, lora, 1.0f, &err)); /* another model now */
    char directory[] = "/tmp/metal-candle-merged-XXXXXX", path[64];
    mc_model *kept = NULL;
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/model", directory);
    EXPECT(MC_ERROR_UNSUPPORTED, mc_model_save(merged, path, "q4_0", NULL, NULL, &err));
    EXPECT(MC_ERROR_UNSUPPORTED, mc_model_save_gguf(merged, path, NULL, NULL, NULL, &err)); /* it is from safetensors */
    EXPECT(MC_OK, mc_model_save(merged, path, NULL, NULL, NULL, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_model_save(merged, path, NULL, NULL, NULL, &err)); /* something is there */
    EXPECT(MC_OK, mc_model_load(path, NULL, &kept, &err));
    static float of_merged[VOCAB];
    EXPECT(MC_OK, mc_session_logits(other, of_merged, VOCAB, &err));
    mc_session *of_kept = new_session(kept);
    CHECK(largest_difference(of_kept, of_merged) == 0.0f);
    mc_session_free(of_kept);
    mc_model_free(kept);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK(system(command) == 0);
    mc_model_free(merged);
    mc_session_free(other);
    EXPECT(MC_OK, mc_session_set_lora(session, NULL, 0.0f, &err));
    CHECK(largest_difference(session, plain) == 0.0f); /* the model is as it was */
    mc_lora_free(lora);
    mc_session_free(session);
}

static void what_is_saved_is_what_was_loaded(void) {
    static float first[VOCAB];
    char directory[] = "/tmp/metal-candle-lora-XXXXXX", path[64];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/adapter", directory);
    mc_lora *lora = load("qwen2_qv_bf16"), *again = NULL;
    mc_session *session = new_session(model);
    EXPECT(MC_OK, mc_session_set_lora(session, lora, 1.0f, &err));
    EXPECT(MC_OK, mc_session_logits(session, first, VOCAB, &err));
    EXPECT(MC_OK, mc_lora_save(lora, path, &err));
    EXPECT(MC_OK, mc_lora_load(model, path, &again, &err));
    EXPECT(MC_OK, mc_session_set_lora(session, again, 1.0f, &err));
    CHECK(largest_difference(session, first) == 0.0f);
    mc_session_free(session);
    mc_lora_free(again);
    mc_lora_free(lora);
    char file[96];
    for (int i = 0; i < 2; i++) {
        snprintf(file, sizeof file, "%s/%s", path, i ? "adapter_config.json" : "adapter_model.safetensors");
        CHECK(remove(file) == 0);
    }
    CHECK(rmdir(path) == 0 && rmdir(directory) == 0); /* nothing else was left there */
}

static void wrong_adapters_are_refused_by_name(void) {
    mc_lora *lora = NULL;
    mc_model *other = NULL;
    EXPECT(MC_ERROR_NOT_FOUND, mc_lora_load(model, "no/such/directory", &lora, &err));
    EXPECT_ERROR(MC_ERROR_FORMAT, "expected shape", mc_lora_load(model, ADAPTERS "llama_all7", &lora, &err));
    CHECK(lora == NULL);

    EXPECT(MC_OK, mc_model_load("tests/golden/decoders/llama_plain", NULL, &other, &err));
    mc_session *session = new_session(other);
    lora = load("qwen2_all7");
    EXPECT_ERROR(MC_ERROR_MISMATCH, "of another", mc_session_set_lora(session, lora, 1.0f, &err));
    mc_model *merged = NULL;
    EXPECT(MC_ERROR_MISMATCH, mc_model_merge(other, lora, 1.0f, &merged, &err));
    CHECK(merged == NULL);
    mc_model_free(other);
    mc_session_free(session);
    mc_lora_free(lora);
}

static void a_second_reference_outlives_the_first(void) {
    mc_lora *lora = load("qwen2_all7");
    mc_lora_retain(lora);
    mc_lora_free(lora);
    CHECK(mc_lora_rank(lora) == 8);
    mc_lora_free(lora);
    mc_lora_free(NULL);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model_path = BASE;
    model = load_model();
    RUN(an_adapter_says_what_it_is);
    RUN(a_removed_adapter_leaves_no_bit_behind);
    RUN(several_adapters_add_up_in_any_order);
    RUN(an_adapter_of_one_call_replaces_that_of_the_session);
    RUN(several_adapters_of_one_call_add_up);
    RUN(a_merged_model_computes_what_the_adapter_does);
    RUN(what_is_saved_is_what_was_loaded);
    RUN(wrong_adapters_are_refused_by_name);
    RUN(a_second_reference_outlives_the_first);
    mc_model_free(model);
    return end();
}
