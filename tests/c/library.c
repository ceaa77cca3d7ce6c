/* Section `library`: versions, features, log, live objects, memory. */
#include "check.h"

static void versions_of_header_and_library_agree(void) {
    CHECK(mc_abi_version() == MC_ABI_VERSION);
    CHECK(mc_version_number() == MC_VERSION_NUMBER);
    CHECK(strcmp(mc_version_string(), MC_VERSION_STRING) == 0);
    unsigned major = 0, minor = 0, patch = 0;
    CHECK(sscanf(mc_version_string(), "%u.%u.%u", &major, &minor, &patch) == 3);
    CHECK(major * 1000000 + minor * 1000 + patch == MC_VERSION_NUMBER);
}

static void unknown_features_are_absent(void) {
    CHECK(!mc_has_feature("warp-drive"));
    CHECK(!mc_has_feature(null()));
    CHECK(!mc_has_feature(""));
}

static void live_objects_counts_handles(void) {
    size_t before = mc_live_objects();
    mc_cancel *cancel = mc_cancel_new();
    mc_chat *chat = mc_chat_new();
    CHECK(mc_live_objects() == before + 2);
    mc_chat_free(chat);
    mc_cancel_free(cancel);
    CHECK(mc_live_objects() == before);
}

static void freeing_null_does_nothing(void) {
    mc_error_free(NULL);
    mc_string_free(NULL);
    mc_tokens_free(NULL);
    mc_cancel_free(NULL);
    mc_device_free(NULL);
    mc_model_options_free(NULL);
    mc_model_free(NULL);
    mc_tokenizer_free(NULL);
    mc_chat_free(NULL);
    mc_generate_options_free(NULL);
    mc_generation_free(NULL);
    mc_session_free(NULL);
}

static void memory_can_be_trimmed_at_any_time(void) {
    EXPECT(MC_OK, mc_trim_memory(0, &err));
    EXPECT(MC_OK, mc_trim_memory(UINT64_MAX, NULL));
}

struct log {
    int messages;
    int freed;
    bool well_formed;
};

static void note(void *user_data, mc_log_level level, const char *target, const char *message, size_t message_len) {
    struct log *log = user_data;
    log->messages++;
    log->well_formed = level >= MC_LOG_ERROR && level <= MC_LOG_TRACE && target[0] != '\0' && strlen(message) == message_len &&
                       is_utf8(message, message_len);
}

static void forget(void *user_data) {
    ((struct log *)user_data)->freed++;
}

static void the_log_reaches_the_callback_until_it_is_replaced(void) {
    struct log first = {0}, second = {0};
    EXPECT(MC_OK, mc_log_set(note, &first, forget, MC_LOG_TRACE, &err));
    mc_model *model = load_model();
    mc_model_free(model);
    CHECK(first.messages == 0 || first.well_formed);
    CHECK(first.freed == 0);

    EXPECT(MC_OK, mc_log_set(note, &second, forget, MC_LOG_OFF, &err));
    CHECK(first.freed == 1);
    int messages = first.messages;
    model = load_model();
    mc_model_free(model);
    CHECK(first.messages == messages && second.messages == 0);

    EXPECT(MC_OK, mc_log_set(NULL, NULL, NULL, MC_LOG_OFF, &err));
    CHECK(second.freed == 1);
}

static void an_unknown_log_level_is_refused_and_changes_nothing(void) {
    struct log log = {0};
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "max_level", mc_log_set(note, &log, forget, (mc_log_level)99, &err));
    CHECK(log.freed == 0);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(versions_of_header_and_library_agree);
    RUN(unknown_features_are_absent);
    RUN(live_objects_counts_handles);
    RUN(freeing_null_does_nothing);
    RUN(memory_can_be_trimmed_at_any_time);
    RUN(the_log_reaches_the_callback_until_it_is_replaced);
    RUN(an_unknown_log_level_is_refused_and_changes_nothing);
    return end();
}
