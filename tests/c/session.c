/* Section `session`: a conversation's state, generated from by callback and by iteration, forked, cut, saved and loaded. */
#include "check.h"

static mc_model *model;

static mc_session *new_session(const char *prompt) {
    mc_session *session = NULL;
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    if (prompt != NULL) EXPECT(MC_OK, mc_session_append(session, prompt, strlen(prompt), NULL, &err));
    return session;
}

/* Generates by callback; the text is in `stream`. */
static void push(mc_session *session, struct stream *stream) {
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    EXPECT(MC_OK, mc_session_generate_stream(session, options, collect, stream, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), stream->text) == 0);
    CHECK(stream->whole && stream->consistent);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

static void expect_answer(mc_session *session) {
    struct stream stream = {0};
    push(session, &stream);
    CHECK(strcmp(stream.text, ANSWER) == 0);
}

static void push_pull_stateless_and_session_give_the_same_text(void) {
    mc_session *pushed = new_session(PROMPT), *pulled = new_session(PROMPT);
    expect_answer(pushed);

    struct stream stream = {0};
    mc_status status = MC_OK;
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    EXPECT(MC_OK, mc_session_begin(pulled, options, &err));
    for (;;) {
        const mc_token_event *event = NULL;
        status = mc_session_next(pulled, &event, &err);
        if (status != MC_OK) break;
        stream_add(&stream, event);
    }
    CHECK(status == MC_DONE);
    EXPECT(MC_OK, mc_session_end(pulled, &generation, &err));
    CHECK(stream.whole && stream.consistent && strcmp(stream.text, ANSWER) == 0);
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    CHECK(generation != NULL && mc_generation_finish_reason(generation) == MC_FINISH_EOS);
    mc_generation_free(generation);
    CHECK(mc_session_position(pushed) == mc_session_position(pulled));

    generation = NULL;
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
    mc_session_free(pushed);
    mc_session_free(pulled);
}

static void a_pull_may_end_early(void) {
    mc_session *session = new_session(PROMPT);
    const mc_token_event *event = NULL;
    mc_generation *generation = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_end(session, &generation, &err)); /* nothing was begun */
    EXPECT(MC_OK, mc_session_begin(session, NULL, &err));
    EXPECT(MC_OK, mc_session_next(session, &event, &err));
    CHECK(event != NULL && event->token == 32 && event->index == 0);
    EXPECT(MC_OK, mc_session_next(session, &event, &err));
    EXPECT(MC_OK, mc_session_end(session, &generation, &err));
    CHECK(generation != NULL && mc_generation_tokens_len(generation) == 2);
    mc_generation_free(generation);

    EXPECT(MC_OK, mc_session_begin(session, NULL, &err)); /* and freed in the middle */
    EXPECT(MC_OK, mc_session_next(session, &event, &err));
    mc_session_free(session);
}

static void a_conversation_evaluates_only_what_is_new(void) {
    mc_session *session = new_session(NULL);
    mc_chat *chat = mc_chat_new();
    EXPECT(MC_OK, mc_chat_add(chat, "user", QUESTION, strlen(QUESTION), &err));
    EXPECT(MC_OK, mc_session_set_chat(session, chat, NULL, &err));
    CHECK(mc_session_position(session) == 40);
    expect_answer(session);

    EXPECT(MC_OK, mc_chat_add(chat, "assistant", ANSWER, strlen(ANSWER), &err));
    EXPECT(MC_OK, mc_chat_add(chat, "user", "What does `Vec::pop` do?", 24, &err));
    EXPECT(MC_OK, mc_session_set_chat(session, chat, NULL, &err));
    struct stream second = {0}, fresh = {0};
    push(session, &second);
    mc_session *other = new_session(NULL);
    EXPECT(MC_OK, mc_session_set_chat(other, chat, NULL, &err));
    push(other, &fresh);
    CHECK(second.text_len > 0 && strcmp(second.text, fresh.text) == 0);
    mc_session_free(other);
    mc_session_free(session);
    mc_chat_free(chat);
}

static void text_and_tokens_append_alike(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    EXPECT(MC_OK, mc_model_tokenizer(model, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, PROMPT, strlen(PROMPT), false, &tokens, &err));
    mc_session *session = new_session(NULL);
    EXPECT(MC_OK, mc_session_append_tokens(session, mc_tokens_data(tokens), 25, NULL, &err));
    EXPECT(MC_OK, mc_session_append_tokens(session, mc_tokens_data(tokens) + 25, mc_tokens_len(tokens) - 25, NULL, &err));
    CHECK(mc_session_position(session) == 40);
    expect_answer(session);
    const uint32_t unknown = 4096;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_append_tokens(session, &unknown, 1, NULL, &err));
    mc_session_free(session);
    mc_tokens_free(tokens);
    mc_tokenizer_free(tokenizer);
}

static void the_logits_name_the_next_token(void) {
    static float logits[4096];
    mc_session *session = new_session(PROMPT);
    size_t best = 0;
    EXPECT(MC_OK, mc_session_logits(session, logits, 4096, &err));
    for (size_t i = 1; i < 4096; i++) best = logits[i] > logits[best] ? i : best;
    CHECK(best == 32);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_logits(session, logits, 4095, &err));
    mc_session_free(session);
    session = new_session(NULL);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_logits(session, logits, 4096, &err));
    mc_session_free(session);
}

static void the_most_probable_tokens_and_those_held_are_told(void) {
    mc_session *session = new_session(PROMPT);
    uint32_t ids[4096];
    float logprobs[4096];
    EXPECT(MC_OK, mc_session_top_logprobs(session, 4096, ids, logprobs, &err));
    double sum = 0;
    bool falls = true;
    for (size_t i = 0; i < 4096; i++) {
        sum += exp(logprobs[i]);
        falls = falls && (i == 0 || logprobs[i] < logprobs[i - 1] || (logprobs[i] == logprobs[i - 1] && ids[i] > ids[i - 1]));
    }
    CHECK(ids[0] == 32 && falls && fabs(sum - 1) < 1e-4);
    uint32_t few[3];
    float of_few[3];
    EXPECT(MC_OK, mc_session_top_logprobs(session, 3, few, of_few, &err));
    CHECK(memcmp(few, ids, sizeof few) == 0 && memcmp(of_few, logprobs, sizeof of_few) == 0);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "count", mc_session_top_logprobs(session, 0, few, of_few, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "4096", mc_session_top_logprobs(session, 4097, few, of_few, &err));

    mc_tokens *held = NULL, *again = NULL;
    mc_session *other = new_session(NULL);
    EXPECT(MC_OK, mc_session_tokens(session, &held, &err));
    CHECK(mc_tokens_len(held) == mc_session_position(session));
    EXPECT(MC_OK, mc_session_append_tokens(other, mc_tokens_data(held), mc_tokens_len(held), NULL, &err));
    expect_answer(other);
    EXPECT(MC_OK, mc_session_tokens(other, &again, &err));
    CHECK(mc_tokens_len(again) > mc_tokens_len(held));
    CHECK(memcmp(mc_tokens_data(again), mc_tokens_data(held), mc_tokens_len(held) * sizeof(uint32_t)) == 0);
    mc_tokens_free(held);
    mc_tokens_free(again);
    mc_session_free(other);
    mc_session_free(session);
}

static void a_fork_goes_its_own_way(void) {
    mc_session *session = new_session(PROMPT), *fork = NULL;
    EXPECT(MC_OK, mc_session_fork(session, &fork, &err));
    EXPECT(MC_OK, mc_session_append(session, "fn main() {}", 12, NULL, &err));
    CHECK(mc_session_position(fork) == 40);
    mc_session_free(session);
    expect_answer(fork);
    mc_session_free(fork);
}

static void a_truncated_session_answers_again(void) {
    mc_session *session = new_session(PROMPT);
    expect_answer(session);
    EXPECT(MC_OK, mc_session_truncate(session, 40, &err));
    CHECK(mc_session_position(session) == 40);
    expect_answer(session);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_truncate(session, 5000, &err));
    EXPECT(MC_OK, mc_session_truncate(session, 0, &err));
    EXPECT(MC_OK, mc_session_append(session, PROMPT, strlen(PROMPT), NULL, &err));
    expect_answer(session);
    mc_session_free(session);
}

static void a_saved_session_goes_on_where_it_was(void) {
    char path[] = "/tmp/mc-session-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0);
    mc_session *session = new_session(PROMPT), *loaded = NULL;
    EXPECT(MC_OK, mc_session_save(session, path, &err));
    mc_session_free(session);
    EXPECT(MC_OK, mc_session_load(model, path, &loaded, &err));
    CHECK(loaded != NULL && mc_session_position(loaded) == 40);
    if (loaded != NULL) expect_answer(loaded);
    mc_session_free(loaded);

    loaded = NULL;
    CHECK(truncate(path, 100) == 0);
    EXPECT(MC_ERROR_FORMAT, mc_session_load(model, path, &loaded, &err));
    CHECK(loaded == NULL);
    EXPECT(MC_ERROR_NOT_FOUND, mc_session_load(model, "no/such/file", &loaded, &err));
    CHECK(loaded == NULL);
    close(file);
    unlink(path);
}

static void a_saved_session_is_for_its_kind_of_kv_cache(void) {
    char path[] = "/tmp/mc-session-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0);
    mc_model *narrow = NULL;
    mc_session *session = NULL, *loaded = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model_options_set_kv_cache(options, "q8_0");
    EXPECT(MC_OK, mc_model_load(model_path, options, &narrow, &err));
    EXPECT(MC_OK, mc_session_new(narrow, 0, &session, &err));
    EXPECT(MC_OK, mc_session_append(session, PROMPT, strlen(PROMPT), NULL, &err));
    EXPECT(MC_OK, mc_session_save(session, path, &err));
    mc_session_free(session);
    EXPECT(MC_OK, mc_session_load(narrow, path, &loaded, &err));
    if (loaded != NULL) expect_answer(loaded);
    mc_session_free(loaded);
    loaded = NULL;
    EXPECT_ERROR(MC_ERROR_MISMATCH, "q8_0", mc_session_load(model, path, &loaded, &err));
    CHECK(loaded == NULL);
    mc_model_free(narrow);
    mc_model_options_free(options);
    close(file);
    unlink(path);
}

static void a_full_context_is_an_error_and_ends_an_answer(void) {
    mc_session *session = NULL;
    EXPECT(MC_OK, mc_session_new(model, 48, &session, &err));
    EXPECT(MC_OK, mc_session_append(session, PROMPT, strlen(PROMPT), NULL, &err));
    EXPECT(MC_ERROR_CONTEXT_FULL, mc_session_append(session, PROMPT, strlen(PROMPT), NULL, &err));
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    EXPECT(MC_OK, mc_session_generate_stream(session, options, NULL, NULL, &generation, &err));
    CHECK(generation != NULL && mc_generation_finish_reason(generation) == MC_FINISH_CONTEXT_FULL);
    CHECK(generation != NULL && strncmp(ANSWER, mc_generation_text(generation), mc_generation_text_len(generation)) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
    mc_session_free(session);
}

/* What a callback, or another thread during it, sees of the session that is at work. */
static mc_session *busy_session;

static void *use_busy_session(void *unused) {
    (void)unused;
    mc_session *fork = NULL;
    mc_generation *generation = NULL;
    const mc_token_event *event = NULL;
    int busy = 0;
    busy += mc_session_append(busy_session, "a", 1, NULL, NULL) == MC_ERROR_BUSY;
    busy += mc_session_truncate(busy_session, 1, NULL) == MC_ERROR_BUSY;
    busy += mc_session_fork(busy_session, &fork, NULL) == MC_ERROR_BUSY && fork == NULL;
    busy += mc_session_begin(busy_session, NULL, NULL) == MC_ERROR_BUSY;
    busy += mc_session_next(busy_session, &event, NULL) == MC_ERROR_BUSY;
    busy += mc_session_generate_stream(busy_session, NULL, NULL, NULL, &generation, NULL) == MC_ERROR_BUSY && generation == NULL;
    return busy == 6 ? busy_session : NULL;
}

static int32_t be_busy(void *user_data, const mc_token_event *event) {
    bool *busy = user_data;
    if (event->index > 0) return MC_CONTINUE;
    void *result = NULL;
    pthread_t thread;
    *busy = use_busy_session(NULL) == busy_session;
    if (pthread_create(&thread, NULL, use_busy_session, NULL) != 0) return MC_STOP;
    pthread_join(thread, &result);
    *busy = *busy && result == busy_session;
    return MC_CONTINUE;
}

static void a_session_at_work_is_busy_and_comes_to_no_harm(void) {
    bool busy = false;
    mc_generation *generation = NULL;
    busy_session = new_session(PROMPT);
    EXPECT(MC_OK, mc_session_generate_stream(busy_session, NULL, be_busy, &busy, &generation, &err));
    CHECK(busy);
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    EXPECT(MC_OK, mc_session_append(busy_session, "a", 1, NULL, &err));
    mc_session_free(busy_session);
}

static int32_t free_own_session(void *user_data, const mc_token_event *event) {
    stream_add(user_data, event);
    mc_session_free(busy_session);
    busy_session = NULL;
    return MC_CONTINUE;
}

static void a_callback_may_free_its_session(void) {
    size_t before = mc_live_objects();
    struct stream stream = {0};
    busy_session = new_session(PROMPT);
    EXPECT(MC_OK, mc_session_generate_stream(busy_session, NULL, free_own_session, &stream, NULL, &err));
    CHECK(strcmp(stream.text, ANSWER) == 0);
    CHECK(busy_session == NULL && mc_live_objects() == before);
}

static void *converse(void *unused) {
    (void)unused;
    struct stream stream = {0};
    mc_session *session = NULL;
    bool same = mc_session_new(model, 0, &session, NULL) == MC_OK &&
                mc_session_append(session, PROMPT, strlen(PROMPT), NULL, NULL) == MC_OK &&
                mc_session_generate_stream(session, NULL, collect, &stream, NULL, NULL) == MC_OK && strcmp(stream.text, ANSWER) == 0;
    mc_session_free(session);
    return same ? model : NULL;
}

static void sessions_of_one_model_run_side_by_side(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        if (pthread_create(&threads[i], NULL, converse, NULL) != 0) exit(1);
    }
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        CHECK(result == model);
    }
}

static void answers_go_on_together_and_tokens_are_scored(void) {
    mc_session *sessions[3];
    const mc_token_event *events[3];
    mc_status statuses[3], status = MC_OK;
    struct stream streams[3];
    mc_generate_options *options = greedy(0);
    uint32_t tokens[64];
    float logprobs[64], scores[64];
    size_t count = 0, i;
    memset(streams, 0, sizeof streams);
    for (i = 0; i < 3; i++) {
        sessions[i] = new_session(PROMPT);
        EXPECT(MC_OK, mc_session_begin(sessions[i], options, &err));
    }
    for (;;) {
        status = mc_sessions_next(sessions, 3, events, statuses, &err);
        if (status != MC_OK) break;
        for (i = 0; i < 3; i++) {
            CHECK((statuses[i] == MC_OK) == (events[i] != NULL));
            if (events[i] != NULL) stream_add(&streams[i], events[i]);
        }
        if (events[0] != NULL && count < 64) {
            tokens[count] = events[0]->token;
            logprobs[count++] = events[0]->logprob;
        }
    }
    CHECK(status == MC_DONE && statuses[0] == MC_DONE && events[2] == NULL);
    for (i = 0; i < 3; i++) CHECK(strcmp(streams[i].text, ANSWER) == 0);

    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_sessions_next(sessions, 0, events, statuses, &err));
    mc_session_free(sessions[2]);
    sessions[2] = sessions[0];
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_sessions_next(sessions, 3, events, statuses, &err)); /* twice */
    CHECK(statuses[1] == MC_ERROR_INVALID_ARGUMENT);

    /* The session's answer, scored behind the prompt in another one. */
    mc_session *scored = new_session(PROMPT);
    EXPECT(MC_OK, mc_session_score_tokens(scored, tokens, count, scores, NULL, &err));
    CHECK(count > 5 && memcmp(scores, logprobs, count * sizeof scores[0]) == 0);
    expect_answer(scored);
    mc_session_free(scored);
    mc_session_free(sessions[0]);
    mc_session_free(sessions[1]);
    mc_generate_options_free(options);
}

static uint64_t memory(const mc_session *session) {
    uint64_t bytes = 0;
    EXPECT(MC_OK, mc_session_memory(session, &bytes, &err));
    return bytes;
}

static void a_session_says_what_it_takes(void) {
    mc_session *session = NULL, *fork = NULL;
    uint32_t tokens[400];
    for (uint32_t i = 0; i < 400; i++) tokens[i] = i + 5;
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    uint64_t empty = memory(session);
    EXPECT(MC_OK, mc_session_append_tokens(session, tokens, 10, NULL, &err));
    uint64_t few = memory(session);
    EXPECT(MC_OK, mc_session_append_tokens(session, tokens, 400, NULL, &err));
    uint64_t many = memory(session);
    /* Keys and values of 410 tokens are 8 layers of heads and values in F32, and room for some more. */
    CHECK(empty < few && few < many && many > 410 * 4 && many < (uint64_t)64 << 20);
    EXPECT(MC_OK, mc_session_fork(session, &fork, &err));
    CHECK(memory(fork) > few && memory(fork) <= many);
    mc_session_free(session);
    mc_session_free(fork);
}

static void half_a_prompt_is_not_answered(void) {
    mc_device *device = NULL;
    mc_model_options *options = mc_model_options_new();
    mc_model *own = NULL;
    mc_session *session = NULL, *fork = NULL;
    mc_chat *chat = mc_chat_new();
    struct stream stream = {0};
    EXPECT(MC_OK, mc_device_new(MC_DEVICE_CPU, 0, &device, &err));
    mc_model_options_set_device(options, device);
    EXPECT(MC_OK, mc_model_load(model_path, options, &own, &err));
    mc_model_options_free(options);
    EXPECT(MC_OK, mc_session_new(own, 0, &session, &err));
    EXPECT(MC_OK, mc_session_set_prompt(session, "<|im_start|>system\nYou", 22, NULL, &err));
    EXPECT(MC_OK, mc_chat_add(chat, "user", QUESTION, strlen(QUESTION), &err));
    EXPECT(MC_OK, mc_device_suspend(device, 1000, &err));
    EXPECT(MC_ERROR_SUSPENDED, mc_session_set_chat(session, chat, NULL, &err));
    mc_device_resume(device);
    size_t held = mc_session_position(session);
    CHECK(held > 0 && held < 40);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "expected a whole prompt, found", mc_session_generate_stream(session, NULL, NULL, NULL, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "of its 40 tokens", mc_session_begin(session, NULL, &err));
    EXPECT(MC_OK, mc_session_fork(session, &fork, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "whole prompt", mc_session_begin(fork, NULL, &err));
    EXPECT(MC_OK, mc_session_truncate(fork, held, &err)); /* it is meant so */
    EXPECT(MC_OK, mc_session_begin(fork, NULL, &err));
    mc_session_free(fork);
    EXPECT(MC_OK, mc_session_set_chat(session, chat, NULL, &err));
    EXPECT(MC_OK, mc_session_generate_stream(session, NULL, collect, &stream, NULL, &err));
    CHECK(strcmp(stream.text, ANSWER) == 0);
    mc_session_free(session);
    mc_chat_free(chat);
    mc_model_free(own);
    mc_device_free(device);
}

static void an_answer_that_is_begun_holds_until_it_is_ended(void) {
    mc_session *session = new_session(PROMPT), *fork = NULL;
    mc_chat *chat = mc_chat_new();
    const mc_token_event *event = NULL;
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    mc_cancel *cancel = mc_cancel_new();
    mc_generate_options_set_cancel(options, cancel);
    EXPECT(MC_OK, mc_chat_add(chat, "user", "a", 1, &err));
    EXPECT(MC_OK, mc_session_begin(session, options, &err));
    mc_generate_options_free(options); /* the answer has what it needs of them */
    mc_cancel_free(cancel);
    EXPECT(MC_OK, mc_session_next(session, &event, &err));
    size_t position = mc_session_position(session);
    static const uint32_t token = 5;
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_append(session, "a", 1, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_append_tokens(session, &token, 1, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_set_prompt(session, "a", 1, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_set_chat(session, chat, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_truncate(session, 1, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_set_lora(session, NULL, 1.0f, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_begin(session, NULL, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "end it first", mc_session_generate_stream(session, NULL, NULL, NULL, NULL, &err));
    EXPECT(MC_OK, mc_session_fork(session, &fork, &err)); /* which has no answer */
    CHECK(mc_session_position(session) == position);
    mc_session_free(fork);
    mc_status status = MC_OK;
    while (status == MC_OK) {
        status = mc_session_next(session, &event, &err);
    }
    CHECK(status == MC_DONE);
    EXPECT(MC_OK, mc_session_end(session, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    EXPECT(MC_OK, mc_session_append(session, "a", 1, NULL, &err));
    mc_session_free(session);
    mc_chat_free(chat);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    RUN(push_pull_stateless_and_session_give_the_same_text);
    RUN(a_pull_may_end_early);
    RUN(a_conversation_evaluates_only_what_is_new);
    RUN(text_and_tokens_append_alike);
    RUN(the_logits_name_the_next_token);
    RUN(the_most_probable_tokens_and_those_held_are_told);
    RUN(a_fork_goes_its_own_way);
    RUN(a_truncated_session_answers_again);
    RUN(a_saved_session_goes_on_where_it_was);
    RUN(a_saved_session_is_for_its_kind_of_kv_cache);
    RUN(a_full_context_is_an_error_and_ends_an_answer);
    RUN(a_session_at_work_is_busy_and_comes_to_no_harm);
    RUN(a_callback_may_free_its_session);
    RUN(sessions_of_one_model_run_side_by_side);
    RUN(answers_go_on_together_and_tokens_are_scored);
    RUN(a_session_says_what_it_takes);
    RUN(half_a_prompt_is_not_answered);
    RUN(an_answer_that_is_begun_holds_until_it_is_ended);
    mc_model_free(model);
    return end();
}
