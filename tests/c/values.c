/* Section `values`: strings and token lists, the results that a caller reads and frees. */
#include "check.h"

static void a_string_is_terminated_and_has_a_length(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_string *string = NULL;
    const uint32_t tokens[] = {32, 486, 3116};
    EXPECT(MC_OK, mc_tokenizer_load(model_path, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, tokens, 3, false, &string, &err));
    CHECK(mc_string_len(string) > 0);
    CHECK(strlen(mc_string_data(string)) == mc_string_len(string));
    CHECK(strncmp(ANSWER, mc_string_data(string), mc_string_len(string)) == 0);
    mc_string_free(string);
    mc_tokenizer_free(tokenizer);
}

static void empty_results_can_be_read(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    mc_string *string = NULL;
    EXPECT(MC_OK, mc_tokenizer_load(model_path, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, NULL, 0, false, &tokens, &err));
    CHECK(mc_tokens_len(tokens) == 0);
    CHECK(mc_tokens_data(tokens) != NULL);
    EXPECT(MC_OK, mc_tokenizer_decode(tokenizer, NULL, 0, false, &string, &err));
    CHECK(mc_string_len(string) == 0);
    CHECK(mc_string_data(string)[0] == '\0');
    mc_tokens_free(tokens);
    mc_string_free(string);
    mc_tokenizer_free(tokenizer);
}

static void results_outlive_what_made_them(void) {
    mc_tokenizer *tokenizer = NULL;
    mc_tokens *tokens = NULL;
    EXPECT(MC_OK, mc_tokenizer_load(model_path, &tokenizer, &err));
    EXPECT(MC_OK, mc_tokenizer_encode(tokenizer, ANSWER, strlen(ANSWER), false, &tokens, &err));
    mc_tokenizer_free(tokenizer);
    CHECK(mc_tokens_len(tokens) == 12);
    CHECK(mc_tokens_data(tokens)[0] == 32);
    mc_tokens_free(tokens);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(a_string_is_terminated_and_has_a_length);
    RUN(empty_results_can_be_read);
    RUN(results_outlive_what_made_them);
    return end();
}
