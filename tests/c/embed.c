/* Section `embed`: texts to vectors, and the nearest of them. */
#include "check.h"

#define EMBEDDER "models/tiny-embed"

enum { DIM = 192 };

static mc_model *embedder;

static const char *const texts[] = {"How do I append an element?", "Appends an element to a vector.", "Opens a file.", ""};

static float difference(const float *a, const float *b, size_t len) {
    float most = 0;
    for (size_t i = 0; i < len; i++) most = fmaxf(most, fabsf(a[i] - b[i]));
    return most;
}

static float length(const float *row, size_t len) {
    float sum = 0;
    for (size_t i = 0; i < len; i++) sum += row[i] * row[i];
    return sqrtf(sum);
}

static void a_text_has_one_vector_alone_and_in_a_batch(void) {
    const size_t lens[] = {strlen(texts[0]), strlen(texts[1]), strlen(texts[2]), 0};
    float batch[4 * DIM], counted[4 * DIM], one[DIM];
    CHECK(mc_model_embed_dim(embedder, NULL) == DIM);
    EXPECT(MC_OK, mc_embed_batch(embedder, texts, NULL, 4, NULL, batch, 4 * DIM, &err));
    EXPECT(MC_OK, mc_embed_batch(embedder, texts, lens, 4, NULL, counted, 4 * DIM, &err));
    CHECK(memcmp(batch, counted, sizeof batch) == 0);
    for (size_t i = 0; i < 4; i++) {
        EXPECT(MC_OK, mc_embed(embedder, texts[i], lens[i], NULL, one, DIM, &err));
        CHECK(memcmp(one, batch + i * DIM, sizeof one) == 0);
        CHECK(fabsf(length(one, DIM) - 1) < 1e-5f);
    }
    EXPECT(MC_OK, mc_embed(embedder, NULL, 0, NULL, one, DIM, &err));
    CHECK(memcmp(one, batch + 3 * DIM, sizeof one) == 0);
    EXPECT(MC_OK, mc_embed_batch(embedder, texts, NULL, 0, NULL, batch, 0, &err));
}

static void options_change_the_vector(void) {
    mc_embed_options *options = mc_embed_options_new();
    float plain[DIM], other[DIM];
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, NULL, plain, DIM, &err));
    mc_embed_options_set_dimensions(options, 64);
    CHECK(mc_model_embed_dim(embedder, options) == 64);
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, options, other, 64, &err));
    CHECK(fabsf(length(other, 64) - 1) < 1e-5f);
    mc_embed_options_set_normalize(options, false);
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, options, other, 64, &err));
    CHECK(fabsf(length(other, 64) - 1) > 1e-3f);
    mc_embed_options_set_normalize(options, true);
    mc_embed_options_set_dimensions(options, 0);
    mc_embed_options_set_pooling(options, MC_POOLING_CLS);
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, options, other, DIM, &err));
    CHECK(difference(plain, other, DIM) > 1e-3f);
    mc_embed_options_set_pooling(options, MC_POOLING_DEFAULT);
    mc_embed_options_set_prefix(options, "hel");
    EXPECT(MC_OK, mc_embed(embedder, "lo", 2, options, other, DIM, &err));
    CHECK(difference(plain, other, DIM) == 0);
    mc_embed_options_set_prompt_name(options, "document");
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, options, other, DIM, &err));
    CHECK(difference(plain, other, DIM) == 0);
    mc_embed_options_set_prompt_name(options, NULL);
    mc_embed_options_set_batch_size(options, 1);
    EXPECT(MC_OK, mc_embed(embedder, "hello", 5, options, other, DIM, &err));
    CHECK(difference(plain, other, DIM) == 0);
    mc_embed_options_set_max_length(options, 3);
    EXPECT(MC_OK, mc_embed(embedder, "hello world", 11, options, other, DIM, &err));
    CHECK(difference(plain, other, DIM) == 0);
    mc_embed_options_free(options);
}

static void bad_input_is_named(void) {
    static const char *const bad[] = {"good", "also good", "b\xff"};
    static const char *const missing[] = {"good", NULL};
    float out[3 * DIM];
    out[0] = 7;
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "texts[2]: expected UTF-8, found byte 0xff at offset 1",
                 mc_embed_batch(embedder, bad, NULL, 3, NULL, out, 3 * DIM, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "texts[1]: expected text, found NULL",
                 mc_embed_batch(embedder, missing, NULL, 2, NULL, out, 2 * DIM, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_UTF8, "text", mc_embed(embedder, "a\xc3", 2, NULL, out, DIM, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "out_len: expected 1 vectors of 192 values, found 191 values",
                 mc_embed(embedder, "a", 1, NULL, out, DIM - 1, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "out_len", mc_embed_batch(embedder, texts, NULL, 4, NULL, out, 3 * DIM, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "out_len",
                 mc_embed_batch(embedder, texts, NULL, 1, NULL, out, SIZE_MAX, &err));

    mc_embed_options *options = mc_embed_options_new();
    mc_embed_options_set_prompt_name(options, "passage");
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "prompt_name: expected one of the model's (query, document), found \"passage\"",
                 mc_embed(embedder, "a", 1, options, out, DIM, &err));
    mc_embed_options_set_prompt_name(options, "query");
    mc_embed_options_set_dimensions(options, DIM + 1);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "dimensions: expected 1 to 192, found 193",
                 mc_embed(embedder, "a", 1, options, out, DIM, &err));
    CHECK(mc_model_embed_dim(embedder, options) == 0);
    mc_embed_options_set_pooling(options, (mc_pooling)77);
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "pooling: expected a value of mc_pooling, found 77",
                 mc_embed(embedder, "a", 1, options, out, DIM, &err));
    mc_embed_options_free(options);
    CHECK(out[0] == 7);
    CHECK(mc_model_embed_dim(null(), NULL) == 0);
}

static int32_t count_progress(void *user_data, const mc_progress_event *event) {
    size_t *seen = user_data;
    CHECK(event->stage == MC_STAGE_EMBED);
    CHECK(event->total == 100);
    CHECK(event->done > *seen);
    *seen = (size_t)event->done;
    return MC_CONTINUE;
}

static int32_t stop(void *user_data, const mc_progress_event *event) {
    (void)event;
    mc_embed_options_free(user_data); /* it frees the options in use */
    return MC_STOP;
}

static void progress_and_cancel(void) {
    const char *many[100];
    float *out = malloc(100 * DIM * sizeof *out);
    size_t seen = 0;
    mc_cancel *cancel = mc_cancel_new();
    mc_embed_options *options = mc_embed_options_new();
    for (size_t i = 0; i < 100; i++) many[i] = texts[i % 4];
    mc_embed_options_set_batch_size(options, 8);
    mc_embed_options_set_cancel(options, cancel);
    mc_embed_options_set_progress(options, count_progress, &seen);
    EXPECT(MC_OK, mc_embed_batch(embedder, many, NULL, 100, options, out, 100 * DIM, &err));
    CHECK(seen == 100);
    out[0] = 7;
    mc_cancel_trigger(cancel);
    EXPECT(MC_CANCELLED, mc_embed_batch(embedder, many, NULL, 100, options, out, 100 * DIM, &err));
    mc_cancel_free(cancel);
    mc_embed_options_set_cancel(options, NULL);
    mc_embed_options_set_progress(options, stop, options);
    EXPECT(MC_CANCELLED, mc_embed_batch(embedder, many, NULL, 100, options, out, 100 * DIM, &err));
    CHECK(out[0] == 7);
    free(out);
}

static void *embed_often(void *want) {
    float out[4 * DIM];
    for (int i = 0; i < (quick ? 1 : 10); i++) {
        if (mc_embed_batch(embedder, texts, NULL, 4, NULL, out, 4 * DIM, NULL) != MC_OK) return want;
        if (memcmp(out, want, sizeof out) != 0) return want;
    }
    return NULL;
}

static void threads_share_one_model(void) {
    float want[4 * DIM];
    pthread_t threads[4];
    EXPECT(MC_OK, mc_embed_batch(embedder, texts, NULL, 4, NULL, want, 4 * DIM, &err));
    for (size_t i = 0; i < 4; i++) pthread_create(&threads[i], NULL, embed_often, want);
    for (size_t i = 0; i < 4; i++) {
        void *failed_with = want;
        pthread_join(threads[i], &failed_with);
        CHECK(failed_with == NULL);
    }
}

static void the_nearest_are_found(void) {
    const float documents[] = {1, 0, 0, 2, 3, 3, 0, 0};
    const float queries[] = {0, 1, 5, 0};
    size_t found[4];
    float scores[4];
    EXPECT(MC_OK, mc_similarity_top_k(MC_SIMILARITY_COSINE, queries, 2, documents, 4, 2, 2, found, scores, &err));
    CHECK(found[0] == 1 && found[1] == 2 && found[2] == 0 && found[3] == 2);
    CHECK(scores[0] == 1 && fabsf(scores[1] - 0.70710678f) < 1e-6f);
    EXPECT(MC_OK, mc_similarity_top_k(MC_SIMILARITY_EUCLIDEAN, queries, 1, documents, 4, 2, 1, found, scores, &err));
    CHECK(scores[0] == -1 && found[0] == 1);
    found[0] = 99;
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "k: expected at most the 4 documents, found 5",
                 mc_similarity_top_k(MC_SIMILARITY_DOT, queries, 2, documents, 4, 2, 5, found, scores, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "similarity",
                 mc_similarity_top_k(MC_SIMILARITY_NONE, queries, 2, documents, 4, 2, 1, found, scores, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "documents",
                 mc_similarity_top_k(MC_SIMILARITY_DOT, queries, 1, documents, SIZE_MAX, 2, 1, found, scores, &err));
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "dim",
                 mc_similarity_top_k(MC_SIMILARITY_DOT, queries, 1, documents, 4, 0, 1, found, scores, &err));
    CHECK(found[0] == 99);
    CHECK(mc_model_similarity(embedder) == MC_SIMILARITY_COSINE);
}

static void an_encoder_does_not_generate_and_a_decoder_embeds(void) {
    mc_model *decoder = load_model();
    mc_generation *generation = NULL;
    CHECK(mc_model_supports(embedder, MC_CAPABILITY_EMBED) && !mc_model_supports(embedder, MC_CAPABILITY_GENERATE));
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "only embeds", mc_generate(embedder, "a", 1, NULL, &generation, &err));
    float out[256];
    CHECK(mc_model_embed_dim(decoder, NULL) == 256);
    EXPECT(MC_OK, mc_embed(decoder, "fn main", 7, NULL, out, 256, &err));
    EXPECT(MC_OK, mc_embed(decoder, "", 0, NULL, out, 256, &err)); /* not one token: zeros */
    CHECK(length(out, 256) == 0);
    mc_model_free(decoder);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    EXPECT(MC_OK, mc_model_load(EMBEDDER, NULL, &embedder, &err));
    RUN(a_text_has_one_vector_alone_and_in_a_batch);
    RUN(options_change_the_vector);
    RUN(bad_input_is_named);
    RUN(progress_and_cancel);
    RUN(threads_share_one_model);
    RUN(the_nearest_are_found);
    RUN(an_encoder_does_not_generate_and_a_decoder_embeds);
    mc_model_free(embedder);
    return end();
}
