/* What the C tests share: a program is a list of tests, each a function whose name says what the library does.
 *
 *   static void push_appends(void) { EXPECT(MC_OK, mc_model_load(model_path, NULL, &model, &err)); CHECK(model != NULL); }
 *   int main(int argc, char **argv) { begin(argc, argv); RUN(push_appends); return end(); }
 *
 * Arguments: [MODEL], models/tiny-coder if left out. QUICK=1 in the environment makes the workloads small (valgrind).
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* mkstemp, nanosleep, pthreads under -std=c99 */
#endif

#include <metal_candle.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The golden answer of models/tiny-coder. */
#define QUESTION "What does `Vec::push` do?"
#define ANSWER "Appends an element to the back of a collection."
#define PROMPT                                                                                                      \
    "<|im_start|>system\nYou answer questions about the Rust standard library.<|im_end|>\n<|im_start|>user\n" QUESTION \
    "<|im_end|>\n<|im_start|>assistant\n"

static const char *model_path = "models/tiny-coder";
static bool quick;
static mc_error *err; /* of the last EXPECT; main thread only */
static int passed, failed;
static bool failing;

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) complain(__FILE__, __LINE__, "expected " #condition);     \
    } while (0)

/* One call and the status that it must give; its error, if any, is in `err` until the next EXPECT. */
#define EXPECT(status, call)                                                        \
    do {                                                                            \
        forget_error();                                                             \
        expect_status(__FILE__, __LINE__, #call, (status), (call));                 \
    } while (0)

/* As EXPECT, and the error's message must contain `fragment`. */
#define EXPECT_ERROR(status, fragment, call)                                        \
    do {                                                                            \
        EXPECT(status, call);                                                       \
        if (err == NULL || strstr(mc_error_message(err), (fragment)) == NULL)       \
            complain(__FILE__, __LINE__, err ? mc_error_message(err) : "no error"); \
    } while (0)

#define RUN(test) run_test(#test, test)

static inline void complain(const char *file, int line, const char *what) {
    failing = true;
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
}

static inline void forget_error(void) {
    mc_error_free(err);
    err = NULL;
}

static inline void expect_status(const char *file, int line, const char *call, mc_status expected, mc_status found) {
    if (expected == found) return;
    failing = true;
    fprintf(stderr, "%s:%d: %s: expected %s, found %s: %s\n", file, line, call, mc_status_name(expected), mc_status_name(found),
            err ? mc_error_details(err) : "no error");
}

static inline void run_test(const char *name, void (*test)(void)) {
    failing = false;
    test();
    forget_error();
    if (failing) fprintf(stderr, "failed: %s\n", name);
    *(failing ? &failed : &passed) += 1;
}

static inline void begin(int argc, char **argv) {
    if (argc > 1) model_path = argv[1];
    quick = getenv("QUICK") != NULL;
}

static inline void everything_is_freed(void) {
    CHECK(mc_live_objects() == 0);
}

static inline int end(void) {
    RUN(everything_is_freed);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/* NULL that the compiler cannot see: it would warn about a literal one where the header says nonnull. */
static inline void *null(void) {
    return NULL;
}

/* Programs that need a model call this once, and mc_model_free at the end. */
static inline mc_model *load_model(void) {
    mc_model *model = NULL;
    mc_error *error = NULL;
    if (mc_model_load(model_path, NULL, &model, &error) != MC_OK) {
        fprintf(stderr, "%s\n", mc_error_details(error));
        exit(1);
    }
    return model;
}

static inline mc_generate_options *greedy(size_t max_tokens) {
    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_temperature(options, 0.0);
    mc_generate_options_set_max_tokens(options, max_tokens);
    return options;
}

/* What a stream delivered, joined; and the rules that each event must keep. */
struct stream {
    char text[8192];
    size_t text_len;
    uint32_t count;
    bool whole;      /* each piece was valid UTF-8 */
    bool consistent; /* struct_size, index and logprob were as documented */
    uint32_t stop_after; /* MC_STOP with this many tokens; 0 = never */
};

static inline bool is_utf8(const char *text, size_t len) {
    for (size_t i = 0; i < len;) {
        unsigned char lead = (unsigned char)text[i++];
        int more = lead < 0x80 ? 0 : lead >= 0xC2 && lead < 0xE0 ? 1 : lead >= 0xE0 && lead < 0xF0 ? 2 : lead >= 0xF0 && lead < 0xF5 ? 3 : -1;
        if (more < 0) return false;
        for (; more > 0; more--) {
            if (i >= len || ((unsigned char)text[i++] & 0xC0) != 0x80) return false;
        }
    }
    return true;
}

static inline void stream_add(struct stream *stream, const mc_token_event *event) {
    if (stream->count == 0) stream->whole = stream->consistent = true;
    if (!is_utf8(event->text, event->text_len)) stream->whole = false;
    if (event->struct_size < sizeof *event || event->index != stream->count || !(event->logprob <= 1e-4f)) stream->consistent = false;
    if (stream->text_len + event->text_len < sizeof stream->text) {
        memcpy(stream->text + stream->text_len, event->text, event->text_len);
        stream->text_len += event->text_len;
        stream->text[stream->text_len] = '\0';
    }
    stream->count++;
}

static inline int32_t collect(void *user_data, const mc_token_event *event) {
    struct stream *stream = user_data;
    stream_add(stream, event);
    return stream->stop_after != 0 && stream->count >= stream->stop_after ? MC_STOP : MC_CONTINUE;
}

#endif
