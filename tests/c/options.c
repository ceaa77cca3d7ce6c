/* Options as JSON: the same fields, ranges and errors as the setters have. */
#include "check.h"

static mc_model *model;

#define SET(kind, options, text) mc_##kind##_set_json((options), (text), strlen(text))

/* What the first call that uses options of this JSON says. */
static void expect_generate(const char *json, const char *fragment) {
    mc_generate_options *options = mc_generate_options_new();
    mc_generation *generation = NULL;
    SET(generate_options, options, json);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, fragment, mc_generate(model, "fn", 2, options, &generation, &err));
    mc_generate_options_free(options);
}

static void the_text_is_that_of_the_setters(void) {
    mc_generation *generation[2] = {NULL, NULL};
    mc_generate_options *options[2] = {mc_generate_options_new(), greedy(8)};
    SET(generate_options, options[0],
        " {\"temperature\" : 0,\n\"max_tokens\":8, \"stop\": [\"}\", \"\\n\\n\"], \"logit_bias\": {\"13\": -2.5, \"14\": false}} ");
    mc_generate_options_add_stop(options[1], "}", 1);
    mc_generate_options_add_stop(options[1], "\n\n", 2);
    mc_generate_options_add_logit_bias(options[1], 13, -2.5f);
    mc_generate_options_add_logit_bias(options[1], 14, -INFINITY);
    for (int i = 0; i < 2; i++) EXPECT(MC_OK, mc_generate(model, "fn main", 7, options[i], &generation[i], &err));
    CHECK(strcmp(mc_generation_text(generation[0]), mc_generation_text(generation[1])) == 0);
    CHECK(mc_generation_tokens_len(generation[0]) == mc_generation_tokens_len(generation[1]));
    for (int i = 0; i < 2; i++) {
        mc_generation_free(generation[i]);
        mc_generate_options_free(options[i]);
    }
}

static void null_is_the_default(void) {
    mc_generate_options *options = greedy(3);
    mc_generation *generation = NULL;
    SET(generate_options, options, "{\"max_tokens\": null, \"temperature\": 0, \"stop\": [\"x\"], \"tool_choice\": \"required\"}");
    mc_generate_options_set_json(options, NULL, 0);
    SET(generate_options, options, "{\"max_tokens\": 5}");
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
    CHECK(mc_generation_tokens_len(generation) == 5);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

static void a_schema_is_json_within_json(void) {
    mc_generate_options *options = mc_generate_options_new();
    mc_generation *generation = NULL;
    SET(generate_options, options, "{\"json_schema\": {\"enum\": [true]}, \"max_tokens\": 8}");
    EXPECT(MC_OK, mc_generate(model, "{", 1, options, &generation, &err));
    CHECK(strcmp(mc_generation_text(generation), "true") == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

static void bad_json_is_remembered_with_the_field(void) {
    expect_generate("{\"temperature\": -1}", "options: temperature: expected 0 or more, found -1");
    expect_generate("{\"temperature\": \"hot\"}", "options: temperature: expected 0 or more, found \"hot\"");
    expect_generate("{\"temprature\": 1}", "options: json: \"temprature\" is no option of mc_generate_options (max_tokens, ");
    expect_generate("{\"top_k\": 1, \"top_k\": 2}", "expected each name once, found \"top_k\" twice");
    expect_generate("{\"top_p\": 1e999}", "number out of range");
    expect_generate("{\"top_p\": NaN}", "options: json: ");
    expect_generate("[]", "expected an object, found a list");
    expect_generate("", "options: json: ");
    expect_generate("{\"stop\": [\"\xff\"]}", "json: expected UTF-8, found byte 0xff at offset 11");
    /* The first bad value is the one. */
    mc_generate_options *options = mc_generate_options_new();
    mc_generation *generation = NULL;
    mc_generate_options_set_top_p(options, 7.0);
    SET(generate_options, options, "{\"top_p\": 0.5}");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "top_p: expected above 0, up to 1, found 7",
                 mc_generate(model, "fn", 2, options, &generation, &err));
    mc_generate_options_free(options);
    /* A depth that would end a thread with a small stack, if it were followed. */
    char *deep = malloc(200000);
    memset(deep, '[', 100000);
    memset(deep + 100000, ']', 100000);
    options = mc_generate_options_new();
    mc_generate_options_set_json(options, deep, 200000);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "recursion limit", mc_generate(model, "fn", 2, options, &generation, &err));
    mc_generate_options_free(options);
    free(deep);
}

static void models_take_json(void) {
    mc_model_options *options = mc_model_options_new();
    mc_model *other = NULL;
    SET(model_options, options, "{\"dtype\": \"f32\", \"max_context\": 64, \"exact\": true, \"kv_cache\": \"f16\"}");
    EXPECT(MC_OK, mc_model_load(model_path, options, &other, &err));
    CHECK(mc_model_context_length(other) == 64);
    mc_model_free(other);
    SET(model_options, options, "{\"dtype\": \"f8\"}");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "dtype: expected one of f32, f16, bf16, found \"f8\"",
                 mc_model_load(model_path, options, &other, &err));
    mc_model_options_free(options);
}

static void training_takes_json(void) {
    mc_train_options *options = mc_train_options_new();
    mc_lora_config *config = mc_lora_config_new();
    mc_lora_trainer *trainer = NULL;
    mc_lora *lora = NULL;
    SET(lora_config, config, "{\"rank\": 3, \"alpha\": 6, \"targets\": [\"v_proj\"]}");
    SET(train_options, options, "{\"learning_rate\": 1e-3, \"beta2\": 0.99, \"schedule\": \"cosine\", \"total_steps\": 4}");
    EXPECT(MC_OK, mc_lora_trainer_new(model, config, options, &trainer, &err));
    EXPECT(MC_OK, mc_lora_trainer_adapter(trainer, &lora, &err));
    CHECK(mc_lora_rank(lora) == 3 && mc_lora_alpha(lora) == 6);
    mc_lora_free(lora);
    mc_lora_trainer_free(trainer);
    SET(train_options, options, "{\"max_length\": 1}");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "max_length: expected 0 or at least 2, found 1",
                 mc_lora_trainer_new(model, config, options, &trainer, &err));
    SET(lora_config, config, "{\"targets\": [\"\"]}");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "targets: expected text, found an empty one",
                 mc_lora_trainer_new(model, config, NULL, &trainer, &err));
    mc_train_options_free(options);
    mc_lora_config_free(config);
}

static void embeddings_and_scores_take_json(void) {
    mc_embed_options *options = mc_embed_options_new();
    mc_rerank_options *ranking = mc_rerank_options_new();
    float score;
    const char *texts[] = {"fn"};
    SET(embed_options, options, "{\"dimensions\": 5, \"pooling\": \"mean\", \"normalize\": true, \"prefix\": \"\"}");
    CHECK(mc_model_embed_dim(model, options) == 5);
    SET(embed_options, options, "{\"dimensions\": null}");
    CHECK(mc_model_embed_dim(model, options) == mc_model_hidden_size(model));
    SET(rerank_options, ranking, "{\"activation\": \"softmax\"}");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "activation: expected one of identity, sigmoid, found \"softmax\"",
                 mc_rerank(model, "fn", 2, texts, NULL, 1, ranking, &score, 1, &err));
    mc_embed_options_free(options);
    mc_rerank_options_free(ranking);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    RUN(the_text_is_that_of_the_setters);
    RUN(null_is_the_default);
    RUN(a_schema_is_json_within_json);
    RUN(bad_json_is_remembered_with_the_field);
    RUN(models_take_json);
    RUN(training_takes_json);
    RUN(embeddings_and_scores_take_json);
    mc_model_free(model);
    return end();
}
