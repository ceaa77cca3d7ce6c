/* Section `tokenizer`: text to ids and back. */
#include "check.h"

static mc_tokenizer *tokenizer;

static void text_survives_a_round_trip(void) {
    static const char *texts[] = {
        "fn main() {}", " leading and  double spaces", "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C",
        "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB \xF0\x9F\x87\xA9\xF0\x9F\x87\xAA", "\xC3\xA9", "\t\n\r\n", ANSWER,
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mc_tokens *tokens = NULL;
        mc_string *text = NULL;
        EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), true, &tokens, &err));
        EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, mc_tokens_data(tokens), mc_tokens_len(tokens), true, &text, &err));
        CHECK(strcmp(mc_string_data(text), texts[i]) == 0);
        mc_tokens_free(tokens);
        mc_string_free(text);
    }
}

static void text_is_normalised_as_the_tokenizer_says(void) {
    mc_tokens *tokens = NULL;
    mc_string *text = NULL;
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, "e\xCC\x81", 3, false, &tokens, &err)); /* e and a combining acute */
    EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, mc_tokens_data(tokens), mc_tokens_len(tokens), false, &text, &err));
    CHECK(strcmp(mc_string_data(text), "\xC3\xA9") == 0); /* NFC: one character */
    mc_tokens_free(tokens);
    mc_string_free(text);
}

static void the_length_counts_and_not_the_terminator(void) {
    mc_tokens *part = NULL, *whole = NULL;
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, "fn main", 2, false, &part, &err));
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, "fn", 2, false, &whole, &err));
    CHECK(mc_tokens_len(part) == mc_tokens_len(whole) && mc_tokens_data(part)[0] == mc_tokens_data(whole)[0]);
    mc_tokens_free(part);
    mc_tokens_free(whole);
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, "a\0b", 3, false, &whole, &err));
    CHECK(mc_tokens_len(whole) >= 3);
    mc_tokens_free(whole);
}

static void special_tokens_are_one_id_and_can_be_skipped(void) {
    static const uint32_t ids[] = {4094, 84, 375, 198, 4095};
    uint32_t id = 0;
    EXPECT(MC_OK, mc_tokenizer_token_id(tokenizer, "<|im_end|>", &id, &err));
    CHECK(id == 4095);
    mc_string *with = NULL, *without = NULL;
    EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, ids, 5, false, &with, &err));
    EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, ids, 5, true, &without, &err));
    CHECK(strcmp(mc_string_data(with), "<|im_start|>user\n<|im_end|>") == 0);
    CHECK(strcmp(mc_string_data(without), "user\n") == 0);
    mc_string_free(with);
    mc_string_free(without);
}

static void failures_leave_the_outs_alone(void) {
    uint32_t id = 7;
    mc_tokens *tokens = (mc_tokens *)&id;
    EXPECT(MC_ERROR_NOT_FOUND, mc_tokenizer_token_id(tokenizer, "<|no such token|>", &id, &err));
    CHECK(id == 7);
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_tokenizer_encode(tokenizer, NULL, 5, false, &tokens, &err));
    CHECK(tokens == NULL);
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "1", mc_tokenizer_encode(tokenizer, "a\x80", 2, false, &tokens, &err));
    mc_tokenizer *missing = NULL;
    EXPECT(MC_ERROR_NOT_FOUND, mc_tokenizer_load("no/such/tokenizer.json", &missing, &err));
    CHECK(missing == NULL);
}

static void tokens_are_bytes_and_some_are_special(void) {
    mc_tokens *ids = NULL;
    const char *text = "na\xC3\xAFve \xF0\x9F\x9A\x80";
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &err));
    uint8_t bytes[64];
    size_t total = 0;
    for (size_t i = 0; i < mc_tokens_len(ids); i++) {
        size_t len = 0;
        EXPECT(MC_OK, mc_tokenizer_token_bytes(tokenizer, mc_tokens_data(ids)[i], bytes + total, sizeof bytes - total, &len, &err));
        CHECK(len > 0 && !mc_tokenizer_is_special(tokenizer, mc_tokens_data(ids)[i]));
        total += len;
    }
    CHECK(total == strlen(text) && memcmp(bytes, text, total) == 0);
    mc_tokens_free(ids);

    uint32_t id;
    size_t len = 7;
    EXPECT(MC_OK, mc_tokenizer_token_id(tokenizer, "<|im_end|>", &id, &err));
    EXPECT(MC_OK, mc_tokenizer_token_bytes(tokenizer, id, bytes, sizeof bytes, &len, &err));
    CHECK(len == 0 && mc_tokenizer_is_special(tokenizer, id));
    EXPECT(MC_OK, mc_tokenizer_token_id(tokenizer, "fn", &id, &err));
    bytes[0] = bytes[1] = 0;
    EXPECT(MC_OK, mc_tokenizer_token_bytes(tokenizer, id, bytes, 1, &len, &err));
    CHECK(len == 2 && bytes[0] == 'f' && bytes[1] == 0);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "4294967295", mc_tokenizer_token_bytes(tokenizer, UINT32_MAX, bytes, 1, &len, &err));
    CHECK(!mc_tokenizer_is_special(tokenizer, UINT32_MAX));
}

/* What a stream shows of tokens, one after another, appended to `text`; the pieces must be whole characters. */
static void stream_tokens(mc_text_stream *stream, const mc_tokens *ids, char *text) {
    for (size_t i = 0; i <= mc_tokens_len(ids); i++) {
        mc_string *piece = NULL;
        if (i < mc_tokens_len(ids)) EXPECT(MC_OK, mc_text_stream_push(stream, mc_tokens_data(ids)[i], &piece, &err));
        else EXPECT(MC_OK, mc_text_stream_finish(stream, &piece, &err));
        CHECK(is_utf8(mc_string_data(piece), mc_string_len(piece)));
        strcat(text, mc_string_data(piece));
        mc_string_free(piece);
    }
}

static void a_stream_shows_whole_characters(void) {
    mc_text_stream *stream = NULL;
    mc_tokenizer *gone = NULL;
    EXPECT(MC_OK, mc_tokenizer_load(model_path, &gone, &err));
    EXPECT(MC_OK, mc_text_stream_new(gone, &stream, &err));
    mc_tokenizer_free(gone);
    const char *text = "one<|im_start|> two na\xC3\xAFve \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80";
    mc_tokens *ids = NULL;
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &err));
    char shown[256] = "";
    stream_tokens(stream, ids, shown);
    stream_tokens(stream, ids, shown); /* finished: the next text begins */
    CHECK(strcmp(shown, "one two na\xC3\xAFve \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80"
                        "one two na\xC3\xAFve \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80") == 0);
    mc_tokens_free(ids);
    mc_text_stream_free(stream);
}

static void the_models_tokenizer_is_the_same(void) {
    mc_model *model = load_model();
    mc_tokenizer *own = NULL;
    EXPECT(MC_OK, mc_model_tokenizer(model, &own, &err));
    mc_model_free(model);
    mc_tokens *a = NULL, *b = NULL;
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, PROMPT, strlen(PROMPT), true, &a, &err));
    EXPECT(MC_OK, mc_tokenizer_encode(own, PROMPT, strlen(PROMPT), true, &b, &err));
    CHECK(mc_tokens_len(a) == 40 && mc_tokens_len(b) == 40);
    CHECK(memcmp(mc_tokens_data(a), mc_tokens_data(b), 40 * sizeof(uint32_t)) == 0);
    mc_tokens_free(a);
    mc_tokens_free(b);
    mc_tokenizer_free(own);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    EXPECT(MC_OK, mc_tokenizer_load(model_path, &tokenizer, &err));
    RUN(text_survives_a_round_trip);
    RUN(text_is_normalised_as_the_tokenizer_says);
    RUN(the_length_counts_and_not_the_terminator);
    RUN(special_tokens_are_one_id_and_can_be_skipped);
    RUN(failures_leave_the_outs_alone);
    RUN(tokens_are_bytes_and_some_are_special);
    RUN(a_stream_shows_whole_characters);
    RUN(the_models_tokenizer_is_the_same);
    mc_tokenizer_free(tokenizer);
    return end();
}
