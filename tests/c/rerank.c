/* Section `rerank`: how well documents answer a query. */
#include "check.h"

#define RERANKER "tests/golden/rerankers/bert"
#define QUERY "How do I sort a list of numbers?"

static mc_model *reranker;

static const char *const documents[] = {"Sorts the numbers in place.", "", "hello"};

/* What sentence-transformers says of them: tests/golden/rerankers/bert/golden.json. */
static const float expected[] = {0.63008910f, 0.60558248f, 0.62436861f};

static void a_pair_has_one_score_alone_and_in_company(void) {
    const size_t lens[] = {strlen(documents[0]), 0, strlen(documents[2])};
    const char *const with_null[] = {documents[0], NULL, documents[2]};
    float scores[3], counted[3], one;
    CHECK(mc_model_supports(reranker, MC_CAPABILITY_RERANK));
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents, NULL, 3, NULL, scores, 3, &err));
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), with_null, lens, 3, NULL, counted, 3, &err));
    CHECK(memcmp(scores, counted, sizeof scores) == 0);
    for (size_t i = 0; i < 3; i++) {
        CHECK(fabsf(scores[i] - expected[i]) < 5e-5f);
        EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents + i, NULL, 1, NULL, &one, 1, &err));
        CHECK(one == scores[i]);
    }
    EXPECT(MC_OK, mc_rerank(reranker, NULL, 0, documents, NULL, 0, NULL, scores, 0, &err));
}

static void options_change_the_score(void) {
    mc_rerank_options *options = mc_rerank_options_new();
    float plain, other;
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents, NULL, 1, NULL, &plain, 1, &err));
    mc_rerank_options_set_activation(options, MC_SCORE_ACTIVATION_IDENTITY);
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents, NULL, 1, options, &other, 1, &err));
    CHECK(fabsf(1 / (1 + expf(-other)) - plain) < 1e-6f && other != plain);
    mc_rerank_options_set_activation(options, MC_SCORE_ACTIVATION_SIGMOID);
    mc_rerank_options_set_batch_size(options, 1);
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents, NULL, 1, options, &other, 1, &err));
    CHECK(other == plain);
    mc_rerank_options_set_prompt(options, "How do I ");
    EXPECT(MC_OK, mc_rerank(reranker, QUERY + 9, strlen(QUERY) - 9, documents, NULL, 1, options, &other, 1, &err));
    CHECK(other == plain);
    mc_rerank_options_set_prompt_name(options, "query");
    mc_rerank_options_set_max_length(options, 12);
    EXPECT(MC_OK, mc_rerank(reranker, QUERY, strlen(QUERY), documents, NULL, 1, options, &other, 1, &err));
    CHECK(other != plain);
    mc_rerank_options_free(options);
}

static void bad_input_is_named(void) {
    static const char *const bad[] = {"good", "b\xff"};
    mc_rerank_options *options = mc_rerank_options_new();
    mc_cancel *cancel = mc_cancel_new();
    float out[2] = {7, 7};
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "documents[1]: expected UTF-8, found byte 0xff at offset 1",
                 mc_rerank(reranker, "a", 1, bad, NULL, 2, NULL, out, 2, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "query", mc_rerank(reranker, "\xff", 1, bad, NULL, 1, NULL, out, 1, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "out_len: expected 1 scores, found 2",
                 mc_rerank(reranker, "a", 1, bad, NULL, 1, NULL, out, 2, &err));
    mc_rerank_options_set_prompt_name(options, "nobody");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "nobody", mc_rerank(reranker, "a", 1, bad, NULL, 1, options, out, 1, &err));
    mc_rerank_options_set_prompt_name(options, NULL);
    mc_rerank_options_set_max_length(options, 2);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "max_length", mc_rerank(reranker, "a", 1, bad, NULL, 1, options, out, 1, &err));
    mc_rerank_options_set_max_length(options, 0);
    mc_cancel_trigger(cancel);
    mc_rerank_options_set_cancel(options, cancel);
    mc_cancel_free(cancel);
    EXPECT(MC_CANCELLED, mc_rerank(reranker, "a", 1, bad, NULL, 1, options, out, 1, &err));
    mc_rerank_options_free(options);
    CHECK(out[0] == 7 && out[1] == 7);
    mc_model *decoder = load_model();
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "rerank", mc_rerank(decoder, "a", 1, bad, NULL, 1, NULL, out, 1, &err));
    CHECK(!mc_model_supports(decoder, MC_CAPABILITY_RERANK));
    mc_model_free(decoder);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    EXPECT(MC_OK, mc_model_load(RERANKER, NULL, &reranker, &err));
    RUN(a_pair_has_one_score_alone_and_in_company);
    RUN(options_change_the_score);
    RUN(bad_input_is_named);
    mc_model_free(reranker);
    return end();
}
