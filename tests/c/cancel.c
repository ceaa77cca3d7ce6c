/* Section `cancel`: one flag stops work from a callback, from another thread and from a signal handler. */
#include "check.h"

#include <sched.h>
#include <signal.h>

static mc_model *model;
static mc_cancel *cancel;

static void a_flag_is_triggered_until_it_is_reset(void) {
    mc_cancel *flag = mc_cancel_new();
    CHECK(!mc_cancel_is_triggered(flag));
    mc_cancel_trigger(flag);
    mc_cancel_trigger(flag);
    CHECK(mc_cancel_is_triggered(flag));
    mc_cancel_reset(flag);
    CHECK(!mc_cancel_is_triggered(flag));
    mc_cancel_free(flag);
}

static void a_triggered_flag_stops_before_the_first_token(void) {
    struct stream stream = {0};
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    mc_generate_options_set_cancel(options, cancel);
    mc_cancel_trigger(cancel);
    EXPECT(MC_CANCELLED, mc_generate_stream(model, PROMPT, strlen(PROMPT), options, collect, &stream, &generation, &err));
    CHECK(stream.count == 0);
    CHECK(generation != NULL && mc_generation_finish_reason(generation) == MC_FINISH_CANCELLED);
    mc_generation_free(generation);

    mc_cancel_reset(cancel);
    generation = NULL;
    EXPECT(MC_OK, mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

/* Collects, and from the third token on waits until somebody has triggered the flag. */
struct waiting {
    struct stream stream;
    bool trigger; /* by the callback itself */
    bool raise;   /* by a signal handler */
    bool arrived; /* the third token, under `lock` */
    pthread_mutex_t lock;
    pthread_cond_t third_token;
};

static int32_t wait_for_cancel(void *user_data, const mc_token_event *event) {
    struct waiting *waiting = user_data;
    stream_add(&waiting->stream, event);
    if (waiting->stream.count < 3) return MC_CONTINUE;
    if (waiting->trigger) mc_cancel_trigger(cancel);
    if (waiting->raise) raise(SIGUSR1);
    pthread_mutex_lock(&waiting->lock);
    waiting->arrived = true;
    pthread_cond_signal(&waiting->third_token);
    pthread_mutex_unlock(&waiting->lock);
    while (!mc_cancel_is_triggered(cancel)) sched_yield();
    return MC_CONTINUE;
}

static void expect_cancel_at_the_third_token(struct waiting *waiting) {
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(0);
    mc_generate_options_set_ignore_eos(options, true);
    mc_generate_options_set_cancel(options, cancel);
    EXPECT(MC_CANCELLED, mc_generate_stream(model, PROMPT, strlen(PROMPT), options, wait_for_cancel, waiting, &generation, &err));
    CHECK(waiting->stream.count == 3);
    CHECK(generation != NULL);
    if (generation != NULL) {
        CHECK(mc_generation_finish_reason(generation) == MC_FINISH_CANCELLED);
        CHECK(mc_generation_tokens_len(generation) == 3);
        CHECK(strcmp(mc_generation_text(generation), waiting->stream.text) == 0);
        CHECK(strncmp(ANSWER, waiting->stream.text, waiting->stream.text_len) == 0);
    }
    mc_generation_free(generation);
    mc_generate_options_free(options);
    mc_cancel_reset(cancel);
}

static void a_callback_may_cancel_its_own_call(void) {
    struct waiting waiting = {.trigger = true, .lock = PTHREAD_MUTEX_INITIALIZER, .third_token = PTHREAD_COND_INITIALIZER};
    expect_cancel_at_the_third_token(&waiting);
}

static void *trigger_at_the_third_token(void *user_data) {
    struct waiting *waiting = user_data;
    pthread_mutex_lock(&waiting->lock);
    while (!waiting->arrived) pthread_cond_wait(&waiting->third_token, &waiting->lock);
    pthread_mutex_unlock(&waiting->lock);
    mc_cancel_trigger(cancel);
    return NULL;
}

static void another_thread_may_cancel(void) {
    struct waiting waiting = {.lock = PTHREAD_MUTEX_INITIALIZER, .third_token = PTHREAD_COND_INITIALIZER};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, trigger_at_the_third_token, &waiting) == 0);
    expect_cancel_at_the_third_token(&waiting);
    pthread_join(thread, NULL);
}

static void trigger(int signal_number) {
    (void)signal_number;
    mc_cancel_trigger(cancel);
}

static void a_signal_handler_may_cancel(void) {
    struct waiting waiting = {.raise = true, .lock = PTHREAD_MUTEX_INITIALIZER, .third_token = PTHREAD_COND_INITIALIZER};
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = trigger, .sa_flags = SA_RESTART}, NULL);
    expect_cancel_at_the_third_token(&waiting);
    signal(SIGUSR1, SIG_DFL);
}

static int32_t cancel_prefill(void *user_data, const mc_progress_event *event) {
    int *calls = user_data;
    *calls += event->stage == MC_STAGE_PREFILL;
    mc_cancel_trigger(cancel);
    return MC_CONTINUE;
}

static void cancel_during_prefill_keeps_the_session_usable(void) {
    int calls = 0;
    char text[1200];
    mc_session *session = NULL;
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(4);
    memset(text, 'a', sizeof text);
    for (size_t i = 2; i < sizeof text; i += 3) text[i] = ' ';
    mc_generate_options_set_cancel(options, cancel);
    mc_generate_options_set_prefill_chunk(options, 16);
    mc_generate_options_set_prefill_progress(options, cancel_prefill, &calls);
    EXPECT(MC_CANCELLED, mc_generate(model, text, sizeof text, options, &generation, &err));
    CHECK(calls == 1); /* the next chunk saw the flag */
    CHECK(generation != NULL && mc_generation_tokens_len(generation) == 0);
    mc_generation_free(generation);

    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_CANCELLED, mc_session_append(session, text, sizeof text, cancel, &err)); /* still triggered */
    mc_cancel_reset(cancel);
    EXPECT(MC_OK, mc_session_set_prompt(session, PROMPT, strlen(PROMPT), cancel, &err));
    CHECK(mc_session_position(session) == 40);
    generation = NULL;
    mc_generate_options *golden = greedy(0);
    EXPECT(MC_OK, mc_session_generate_stream(session, golden, NULL, NULL, &generation, &err));
    CHECK(generation != NULL && strcmp(mc_generation_text(generation), ANSWER) == 0);
    mc_generation_free(generation);
    mc_generate_options_free(golden);
    mc_generate_options_free(options);
    mc_session_free(session);
}

static void a_flag_may_be_freed_before_what_holds_it(void) {
    mc_cancel *flag = mc_cancel_new();
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(2);
    mc_generate_options_set_cancel(options, flag);
    mc_cancel_free(flag);
    EXPECT(MC_OK, mc_generate(model, "fn", 2, options, &generation, &err));
    mc_generation_free(generation);
    mc_generate_options_free(options);
}

int main(int argc, char **argv) {
    begin(argc, argv);
    model = load_model();
    cancel = mc_cancel_new();
    RUN(a_flag_is_triggered_until_it_is_reset);
    RUN(a_triggered_flag_stops_before_the_first_token);
    RUN(a_callback_may_cancel_its_own_call);
    RUN(another_thread_may_cancel);
    RUN(a_signal_handler_may_cancel);
    RUN(cancel_during_prefill_keeps_the_session_usable);
    RUN(a_flag_may_be_freed_before_what_holds_it);
    mc_cancel_free(cancel);
    mc_model_free(model);
    return end();
}
