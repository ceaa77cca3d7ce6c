/* Section `generate`: stateless generation, streamed or not. */
#include "check.h"

static mc_model *model;

/* Streams, and checks what must hold of every stream: the pieces are whole UTF-8 and joined they are the text. */
static mc_generation *stream_text(const char *prompt, const mc_generate_options *options, struct stream *stream) {
    mc_generation *generation = NULL;
    EXPECT(MC_OK, mc_generate_stream(model, prompt, strlen(prompt), options, collect, stream, &generation, &err));
    if (generation == NULL) exit(end());
    CHECK(stream->count == 0 || (stream->whole && stream->consistent));
    CHECK(mc_generation_text_len(generation) == stream->text_len);
    CHECK(strcmp(mc_generation_text(generation), stream->text) == 0);
    CHECK(mc_generation_tokens_len(generation) == stream->count);
    return generation;
}

static void the_golden_answer_is_streamed(void) {
    struct stream stream = {0};
    mc_generation *generation = stream_text(PROMPT, NULL, &stream); /* this model's default is greedy */
    CHECK(strcmp(stream.text, ANSWER) == 0);
    CHECK(mc_generation_finish_reason(generation) == MC_FINISH_EOS);
    CHECK(mc_generation_prompt_tokens(generation) == 40);
    CHECK(mc_generation_tokens_len(generation) == 13); /* with <|im_end|> */
    CHECK(mc_generation_tokens(generation)[0] == 32 && mc_generation_tokens(generation)[12] == 4095);
    CHECK(mc_generation_prefill_seconds(generation) > 0 && mc_generation_decode_seconds(generation) > 0);
    mc_generation_free(generation);
}

static void without_a_callback_the_text_is_the_same(void) {
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

static void the_result_may_be_left_out(void) {
    struct stream stream = {0};
    mc_generate_options *options = greedy(0);
    EXPECT(MC_OK, mc_generate_stream(model, PROMPT, strlen(PROMPT), options, collect, &stream, NULL, &err));
    CHECK(strcmp(stream.text, ANSWER) == 0);
    mc_generate_options_free(options);
}

static void max_tokens_ends_the_answer(void) {
    struct stream stream = {0};
    mc_generate_options *options = greedy(5);
    mc_generation *generation = stream_text(PROMPT, options, &stream);
    CHECK(mc_generation_finish_reason(generation) == MC_FINISH_MAX_TOKENS);
    CHECK(stream.count == 5 && strncmp(ANSWER, stream.text, stream.text_len) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

static void a_callback_ends_the_answer(void) {
    struct stream stream = {.stop_after = 3};
    mc_generation *generation = stream_text(PROMPT, NULL, &stream);
    CHECK(mc_generation_finish_reason(generation) == MC_FINISH_CALLBACK);
    CHECK(stream.count == 3);
    mc_generation_free(generation);
}

static void a_stop_string_is_cut_out_wherever_tokens_split_it(void) {
    static const struct { const char *stop, *text; } cases[] = {
        {"element", "Appends an "}, {"o the b", "Appends an element t"}, {"Appends", ""}, {".", "Appends an element to the back of a collection"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stream stream = {0};
        mc_generate_options *options = greedy(0);
        mc_generate_options_add_stop(options, "never said", 10);
        mc_generate_options_add_stop(options, cases[i].stop, strlen(cases[i].stop));
        mc_generation *generation = stream_text(PROMPT, options, &stream);
        CHECK(strcmp(stream.text, cases[i].text) == 0);
        CHECK(mc_generation_finish_reason(generation) == MC_FINISH_STOP_TEXT);
        mc_generation_free(generation);
        mc_generate_options_free(options);
    }
}

static void a_stop_string_that_is_only_begun_is_text(void) {
    struct stream stream = {0};
    mc_generate_options *options = greedy(0);
    mc_generate_options_add_stop(options, "collection.!", 12);
    mc_generation *generation = stream_text(PROMPT, options, &stream);
    CHECK(strcmp(stream.text, ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

struct parts {
    char arguments[256], name[16];
    int ended;
};

static int32_t take_parts(void *user_data, const mc_token_event *event) {
    struct parts *parts = user_data;
    const char *bytes = (const char *)event->parts;
    for (size_t i = 0; i < event->parts_len; i++) {
        const mc_part *part = (const mc_part *)(bytes + i * event->parts[0].struct_size);
        CHECK(part->index == 0 && strlen(part->text) == part->text_len);
        if (part->kind == MC_PART_TOOL_CALL) {
            strncat(parts->name, part->text, sizeof parts->name - 1);
        } else if (part->kind == MC_PART_ARGUMENTS) {
            strncat(parts->arguments, part->text, sizeof parts->arguments - strlen(parts->arguments) - 1);
        } else {
            CHECK(part->kind == MC_PART_TOOL_CALL_END);
            parts->ended++;
        }
    }
    return MC_CONTINUE;
}

static void a_call_of_a_tool_is_told_while_it_comes(void) {
    static const char *schema = "{\"type\": \"object\", \"required\": [\"name\", \"parameters\"], \"additionalProperties\": false,"
        "\"properties\": {\"name\": {\"const\": \"f\"}, \"parameters\": {\"type\": \"object\", \"required\": [\"a\"],"
        "\"additionalProperties\": false, \"properties\": {\"a\": {\"enum\": [1, 2]}}}}}";
    struct parts parts = {{0}, {0}, 0};
    mc_generate_options *options = greedy(0);
    mc_generation *generation = NULL;
    mc_generate_options_set_json_schema(options, schema, strlen(schema));
    mc_generate_options_set_answer_format(options, "llama3");
    EXPECT(MC_OK, mc_generate_stream(model, PROMPT, strlen(PROMPT), options, take_parts, &parts, &generation, &err));
    CHECK(strcmp(parts.name, "f") == 0 && parts.ended == 1);
    CHECK(strstr(parts.arguments, "\"a\"") != NULL);
    CHECK(mc_generation_content_len(generation) == 0 && mc_generation_reasoning_len(generation) == 0);
    CHECK(strstr(mc_generation_tool_calls_json(generation), "\"name\":\"f\"") != NULL);
    CHECK(mc_generation_text_len(generation) > 20);
    mc_generation_free(generation);
    mc_generate_options_set_answer_format(options, "nobody");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "answer_format", mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
    mc_generate_options_free(options);
}

static mc_generation *sampled(uint64_t seed, struct stream *stream) {
    mc_generate_options *options = greedy(24);
    mc_generate_options_set_temperature(options, 1.5);
    mc_generate_options_set_top_k(options, 200);
    mc_generate_options_set_top_p(options, 0.98);
    mc_generate_options_set_min_p(options, 0.001);
    mc_generate_options_set_seed(options, seed);
    mc_generation *generation = stream_text("fn main() {", options, stream);
    mc_generate_options_free(options);
    return generation;
}

static void a_seed_repeats_its_text_and_another_gives_another(void) {
    struct stream first = {0}, again = {0}, other = {0};
    mc_generation_free(sampled(7, &first));
    mc_generation_free(sampled(7, &again));
    mc_generation_free(sampled(8, &other));
    CHECK(strcmp(first.text, again.text) == 0);
    CHECK(strcmp(first.text, other.text) != 0);
}

static void characters_are_never_split(void) {
    static const char *prompts[] = {
        "\xF0\x9F\x98\x80\xF0\x9F\x98\x81\xF0\x9F\x98\x80\xF0\x9F\x98\x81\xF0\x9F\x98\x80", /* emoji */
        "\xE4\xBD\xA0\xE5\xA5\xBD\xE4\xBD\xA0\xE5\xA5\xBD\xE4\xBD\xA0\xE5\xA5\xBD", /* CJK */
        "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB", /* joined by ZWJ */
        "let s = \"\xC3\xA9\xC3\xA8 \xF0\x9F\x87\xA9\xF0\x9F\x87\xAA\";",
    };
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        for (uint64_t seed = 0; seed < (quick ? 1 : 6); seed++) {
            struct stream stream = {0};
            mc_generate_options *options = greedy(quick ? 8 : 48);
            mc_generate_options_set_ignore_eos(options, true);
            if (seed > 0) mc_generate_options_set_temperature(options, (float)seed); /* hot: bytes that make no character */
            mc_generate_options_set_seed(options, seed);
            mc_generation_free(stream_text(prompts[i], options, &stream));
            CHECK(is_utf8(stream.text, stream.text_len));
            mc_generate_options_free(options);
        }
    }
}

static void penalties_and_biases_change_the_answer(void) {
    struct stream stream = {0};
    mc_generate_options *options = greedy(8);
    mc_generate_options_add_logit_bias(options, 32, -1000.0f); /* the golden answer's first token */
    mc_generation *generation = stream_text(PROMPT, options, &stream);
    CHECK(mc_generation_tokens_len(generation) > 0 && mc_generation_tokens(generation)[0] != 32);
    mc_generation_free(generation);
    mc_generate_options_free(options);

    struct stream plain = {0}, penalised = {0};
    options = greedy(32);
    mc_generate_options_set_ignore_eos(options, true);
    mc_generation_free(stream_text("1, 1, 1, 1,", options, &plain));
    mc_generate_options_set_repetition_penalty(options, 1.8, 64);
    mc_generate_options_set_frequency_penalty(options, 1.0);
    mc_generate_options_set_presence_penalty(options, 1.0);
    mc_generation_free(stream_text("1, 1, 1, 1,", options, &penalised));
    CHECK(strcmp(plain.text, penalised.text) != 0);
    mc_generate_options_free(options);
}

static void a_schema_shapes_the_answer(void) {
    static const char schema[] = "{\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"kind\"],"
                                 " \"properties\": {\"kind\": {\"enum\": [\"method\", \"type\"]}}}";
    for (uint64_t seed = 0; seed < (quick ? 2 : 8); seed++) {
        struct stream stream = {0};
        char kind[8] = "";
        int end = 0;
        mc_generate_options *options = greedy(0);
        mc_generate_options_set_json_schema(options, schema, strlen(schema));
        mc_generate_options_set_temperature(options, (float)seed / 2);
        mc_generate_options_set_seed(options, seed);
        mc_generation *generation = stream_text(PROMPT, options, &stream);
        CHECK(mc_generation_finish_reason(generation) == MC_FINISH_EOS);
        CHECK(sscanf(stream.text, " { \"kind\" : \"%7[a-z]\" }%n", kind, &end) == 1 && (size_t)end == stream.text_len);
        CHECK(strcmp(kind, "method") == 0 || strcmp(kind, "type") == 0);
        mc_generation_free(generation);

        struct stream again = {0};
        mc_generate_options_set_json_schema(options, NULL, 0); /* off */
        mc_generate_options_set_temperature(options, 0);
        mc_generation_free(stream_text(PROMPT, options, &again));
        CHECK(strcmp(again.text, ANSWER) == 0);
        mc_generate_options_free(options);
    }
}

static void a_schema_that_is_none_is_named(void) {
    static const struct { const char *schema, *message; } cases[] = {
        {"", "json_schema: not JSON: EOF"},
        {"{\"type\": \"string\"", "json_schema: not JSON: EOF"},
        {"7", "json_schema: expected an object or a boolean, found a number"},
        {"{\"not\": {}}", "json_schema: unimplemented keys: [\"not\"]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_generation *generation = NULL;
        mc_generate_options *options = greedy(8);
        mc_generate_options_set_json_schema(options, cases[i].schema, strlen(cases[i].schema));
        EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, cases[i].message,
                     mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
        CHECK(generation == NULL);
        mc_generate_options_free(options);
    }
}

static void the_context_is_a_limit(void) {
    char text[9000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = i % 3 == 2 ? ' ' : (char)('a' + i % 23);
    mc_generation *generation = NULL;
    EXPECT(MC_ERROR_CONTEXT_FULL, mc_generate(model, text, sizeof text, NULL, &generation, &err));
    CHECK(generation == NULL);
}

static void chunks_do_not_change_the_answer(void) {
    for (size_t chunk = 1; chunk <= 16; chunk *= 4) {
        struct stream stream = {0};
        mc_generate_options *options = greedy(0);
        mc_generate_options_set_prefill_chunk(options, chunk);
        mc_generation_free(stream_text(PROMPT, options, &stream));
        CHECK(strcmp(stream.text, ANSWER) == 0);
        mc_generate_options_free(options);
    }
}

static void a_bad_option_is_named(void) {
    static const struct { const char *name; float value; } cases[] = {{"temperature", -1.0f}, {"top_p", 1.5f}, {"min_p", NAN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_generation *generation = NULL;
        mc_generate_options *options = mc_generate_options_new();
        if (i == 0) mc_generate_options_set_temperature(options, cases[i].value);
        if (i == 1) mc_generate_options_set_top_p(options, cases[i].value);
        if (i == 2) mc_generate_options_set_min_p(options, cases[i].value);
        EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, cases[i].name, mc_generate(model, "fn", 2, options, &generation, &err));
        CHECK(generation == NULL);
        mc_generate_options_free(options);
    }
}

/* A callback may free the handles of its own call; the call ends as if they were still there. */
static mc_model *second_reference;

static int32_t free_own_model(void *user_data, const mc_token_event *event) {
    stream_add(user_data, event);
    mc_model_free(second_reference);
    second_reference = NULL;
    return MC_CONTINUE;
}

static void a_callback_may_free_its_model(void) {
    struct stream stream = {0};
    mc_generation *generation = NULL;
    second_reference = load_model();
    EXPECT(MC_OK, mc_generate_stream(second_reference, PROMPT, strlen(PROMPT), NULL, free_own_model, &stream, &generation, &err));
    CHECK(strcmp(stream.text, ANSWER) == 0);
    mc_generation_free(generation);
}

static int32_t generate_inside(void *user_data, const mc_token_event *event) {
    mc_generation **inner = user_data;
    if (event->index == 0 && mc_generate(model, PROMPT, strlen(PROMPT), NULL, inner, NULL) != MC_OK) return MC_STOP;
    return MC_CONTINUE;
}

static void a_callback_may_use_other_handles(void) {
    mc_generation *inner = NULL, *outer = NULL;
    EXPECT(MC_OK, mc_generate_stream(model, PROMPT, strlen(PROMPT), NULL, generate_inside, &inner, &outer, &err));
    CHECK(outer != NULL && strcmp(mc_generation_text(outer), ANSWER) == 0);
    CHECK(inner != NULL && strcmp(mc_generation_text(inner), ANSWER) == 0);
    mc_generation_free(inner);
    mc_generation_free(outer);
}

static const char *thread_prompts[] = {PROMPT, "fn main() {", "impl<T> Vec<T> {", "\xE4\xBD\xA0\xE5\xA5\xBD"};
#define PROMPTS (sizeof thread_prompts / sizeof *thread_prompts)
static char thread_texts[PROMPTS][8192];

static void *generate_many(void *user_data) {
    mc_generate_options *options = greedy(16);
    size_t same = 0, count = quick ? 2 : 20, offset = *(size_t *)user_data;
    for (size_t i = 0; i < count; i++) {
        size_t which = (i + offset) % PROMPTS;
        mc_generation *generation = NULL;
        if (mc_generate(model, thread_prompts[which], strlen(thread_prompts[which]), options, &generation, NULL) == MC_OK)
            same += strcmp(mc_generation_text(generation), thread_texts[which]) == 0;
        mc_generation_free(generation);
    }
    mc_generate_options_free(options);
    return same == count ? user_data : NULL;
}

static void eight_threads_on_one_model_get_the_single_threaded_texts(void) {
    pthread_t threads[8];
    size_t offsets[8];
    mc_generate_options *options = greedy(16);
    for (size_t i = 0; i < PROMPTS; i++) {
        struct stream stream = {0};
        mc_generation_free(stream_text(thread_prompts[i], options, &stream));
        snprintf(thread_texts[i], sizeof thread_texts[i], "%s", stream.text);
    }
    mc_generate_options_free(options);

    size_t count = quick ? 2 : 8;
    for (size_t i = 0; i < count; i++) {
        offsets[i] = i;
        if (pthread_create(&threads[i], NULL, generate_many, &offsets[i]) != 0) exit(1);
    }
    for (size_t i = 0; i < count; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        CHECK(result == &offsets[i]);
    }
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    RUN(the_golden_answer_is_streamed);
    RUN(without_a_callback_the_text_is_the_same);
    RUN(the_result_may_be_left_out);
    RUN(max_tokens_ends_the_answer);
    RUN(a_callback_ends_the_answer);
    RUN(a_stop_string_is_cut_out_wherever_tokens_split_it);
    RUN(a_stop_string_that_is_only_begun_is_text);
    RUN(a_seed_repeats_its_text_and_another_gives_another);
    RUN(characters_are_never_split);
    RUN(penalties_and_biases_change_the_answer);
    RUN(a_schema_shapes_the_answer);
    RUN(a_schema_that_is_none_is_named);
    RUN(the_context_is_a_limit);
    RUN(chunks_do_not_change_the_answer);
    RUN(a_bad_option_is_named);
    RUN(a_call_of_a_tool_is_told_while_it_comes);
    RUN(a_callback_may_free_its_model);
    RUN(a_callback_may_use_other_handles);
    RUN(eight_threads_on_one_model_get_the_single_threaded_texts);
    mc_model_free(model);
    return end();
}
