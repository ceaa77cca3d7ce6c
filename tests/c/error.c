/* Section `error`: codes have names, errors own their text, and a failed call leaves its outs as documented. */
#include "check.h"

static void every_status_has_a_name(void) {
    const mc_status statuses[] = {
        MC_OK, MC_DONE, MC_CANCELLED, MC_ERROR_INVALID_ARGUMENT, MC_ERROR_INVALID_UTF8, MC_ERROR_NOT_FOUND, MC_ERROR_IO,
        MC_ERROR_NETWORK, MC_ERROR_FORMAT, MC_ERROR_UNSUPPORTED, MC_ERROR_CONTEXT_FULL, MC_ERROR_OUT_OF_MEMORY, MC_ERROR_DEVICE,
        MC_ERROR_SUSPENDED, MC_ERROR_BUSY, MC_ERROR_MISMATCH, MC_ERROR_POISONED, MC_ERROR_TEMPLATE, MC_ERROR_PANIC,
    };
    size_t count = sizeof statuses / sizeof *statuses;
    for (size_t i = 0; i < count; i++) {
        CHECK(strlen(mc_status_name(statuses[i])) > 1);
        for (size_t j = 0; j < i; j++) CHECK(strcmp(mc_status_name(statuses[i]), mc_status_name(statuses[j])) != 0);
    }
    CHECK(mc_status_name((mc_status)12345)[0] != '\0');
}

static void a_missing_model_is_named(void) {
    mc_model *model = (mc_model *)&model; /* not NULL: the call must make it so */
    EXPECT_ERROR(MC_ERROR_NOT_FOUND, "no/such/model", mc_model_load("no/such/model", NULL, &model, &err));
    CHECK(model == NULL);
    CHECK(err != NULL && mc_error_code(err) == MC_ERROR_NOT_FOUND);
    if (err == NULL) return;
    CHECK(strchr(mc_error_message(err), '\n') == NULL);
    CHECK(strncmp(mc_error_details(err), mc_error_message(err), strlen(mc_error_message(err))) == 0);
    CHECK(is_utf8(mc_error_details(err), strlen(mc_error_details(err))));
}

static void the_error_may_be_left_out(void) {
    mc_model *model = NULL;
    EXPECT(MC_ERROR_NOT_FOUND, mc_model_load("no/such/model", NULL, &model, NULL));
    CHECK(model == NULL && err == NULL);
}

static void success_clears_the_error(void) {
    mc_chat *chat = mc_chat_new();
    mc_error *error = (mc_error *)chat; /* what a caller may have left there */
    CHECK(mc_chat_add(chat, "user", "hello", 5, &error) == MC_OK);
    CHECK(error == NULL);
    mc_chat_free(chat);
}

static void *read_and_free(void *error) {
    bool same = mc_error_code(error) == MC_ERROR_NOT_FOUND && strstr(mc_error_message(error), "no/such/model") != NULL;
    mc_error_free(error);
    return same ? error : NULL;
}

static void an_error_may_be_read_and_freed_on_another_thread(void) {
    mc_model *model = NULL;
    mc_error *error = NULL;
    CHECK(mc_model_load("no/such/model", NULL, &model, &error) == MC_ERROR_NOT_FOUND);
    pthread_t thread;
    void *result = NULL;
    CHECK(pthread_create(&thread, NULL, read_and_free, error) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(result != NULL);
}

static void null_where_a_handle_is_needed_is_an_argument_error(void) {
    mc_model *model = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_model_load(null(), NULL, &model, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_model_load(model_path, NULL, null(), &err));
    mc_session *session = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_new(null(), 0, &session, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_chat_add(null(), "user", "hello", 5, &err));
    mc_generation *generation = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_generate(null(), "a", 1, NULL, &generation, &err));
    CHECK(model == NULL && session == NULL && generation == NULL);
}

static void a_handle_of_another_type_is_an_argument_error(void) {
    mc_chat *chat = mc_chat_new();
    void *wrong = chat;
    mc_session *session = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_new(wrong, 0, &session, &err));
    CHECK(session == NULL);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_session_append(wrong, "a", 1, NULL, &err));
    mc_tokens *tokens = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_tokenizer_encode(wrong, "a", 1, false, &tokens, &err));
    mc_model *model = NULL;
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_model_load(model_path, wrong, &model, &err));
    CHECK(tokens == NULL && model == NULL);
    EXPECT(MC_OK, mc_chat_add(chat, "user", "still a chat", 12, &err));
    mc_chat_free(chat);
}

static void invalid_utf8_is_refused_with_its_offset(void) {
    mc_chat *chat = mc_chat_new();
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "3", mc_chat_add(chat, "user", "abc\xFF", 4, &err));
    EXPECT(MC_ERROR_INVALID_UTF8, mc_chat_add(chat, "us\xC0", "abc", 3, &err));
    mc_model *model = NULL;
    EXPECT(MC_ERROR_INVALID_UTF8, mc_model_load("models/\xFF", NULL, &model, &err));
    mc_chat_free(chat);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(every_status_has_a_name);
    RUN(a_missing_model_is_named);
    RUN(the_error_may_be_left_out);
    RUN(success_clears_the_error);
    RUN(an_error_may_be_read_and_freed_on_another_thread);
    RUN(null_where_a_handle_is_needed_is_an_argument_error);
    RUN(a_handle_of_another_type_is_an_argument_error);
    RUN(invalid_utf8_is_refused_with_its_offset);
    return end();
}
