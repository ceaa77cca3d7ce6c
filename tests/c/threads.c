/* Threads and processes: how many compute, where the system gives none, and what a fork of a process that has them may do. */
#ifdef __linux__
#define _GNU_SOURCE /* setrlimit of the address space */
#endif
#include "check.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

static mc_model *model;

/* Runs a test in a child process, which has what this one has. */
static void in_a_child(void (*test)(void)) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        test();
        _exit(failing);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void use_a_fork(void) {
    mc_model *other = NULL;
    mc_generation *generation = NULL;
    CHECK(mc_threads() == 0);
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "forked", mc_set_threads(2, &err));
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "forked", mc_generate(model, "fn", 2, NULL, &generation, &err));
    EXPECT_ERROR(MC_ERROR_UNSUPPORTED, "forked", mc_model_load(model_path, NULL, &other, &err));
    CHECK(generation == NULL && other == NULL);
    CHECK(mc_model_vocab_size(model) == 4096); /* getters go on */
    mc_model_free(model);
}

static void a_fork_of_a_process_with_threads_is_told_so(void) {
    mc_generation *generation = NULL;
    mc_generate_options *options = greedy(4);
    in_a_child(use_a_fork);
    EXPECT(MC_OK, mc_generate(model, "fn", 2, options, &generation, &err)); /* the parent is as it was */
    mc_generate_options_free(options);
    mc_generation_free(generation);
}

static void load_in_a_fork(void) {
    mc_model *own = NULL;
    EXPECT(MC_OK, mc_model_load(model_path, NULL, &own, &err));
    mc_model_free(own);
}

static void a_fork_before_the_first_use_has_its_own_threads(void) {
    in_a_child(load_in_a_fork);
    in_a_child(load_in_a_fork);
}

#ifdef __linux__
/* Gives this process so many more bytes of addresses than it has. */
static void limit(size_t more) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%lu", &pages) == 1);
    if (file != NULL) fclose(file);
    rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + more;
    struct rlimit limits = {bytes, RLIM_INFINITY};
    CHECK(getrlimit(RLIMIT_AS, &limits) == 0);
    limits.rlim_cur = bytes;
    CHECK(setrlimit(RLIMIT_AS, &limits) == 0);
}

/* As often as it takes for threads that were given up to be gone. */
static void expect_threads(uint32_t count) {
    mc_status status = MC_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < 5000 && status == MC_ERROR_OUT_OF_MEMORY; i++) {
        status = mc_set_threads(count, NULL);
        if (status != MC_OK) nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    CHECK(status == MC_OK && mc_threads() == count);
}

static void ask_for_threads_without_room(void) {
    mc_error *error = NULL;
    mc_string *string = NULL;
    EXPECT(MC_OK, mc_architectures_json(&string, &err)); /* the library is used, and has its reserve */
    mc_string_free(string);
    limit((size_t)128 << 20); /* for the stacks of a few threads: each has 8 MiB */
    for (int i = 0; i < 3; i++) {
        CHECK(mc_set_threads(512, &error) == MC_ERROR_OUT_OF_MEMORY);
        CHECK(error != NULL && strstr(mc_error_message(error), "threads: ") != NULL);
        mc_error_free(error);
    }
    expect_threads(2);
    EXPECT(MC_ERROR_OUT_OF_MEMORY, mc_set_threads(512, &err));
    CHECK(mc_threads() == 2);
    expect_threads(3);
}

static void threads_that_the_system_does_not_give_are_an_error_that_does_not_stay(void) {
    in_a_child(ask_for_threads_without_room);
}
#endif

#define VOCAB 4096

struct results {
    float logits[VOCAB], vector[256], loss, rank;
};

static struct results compute(void) {
    static const uint32_t tokens[] = {5, 6, 7, 1, 2, 3, 4, 8, 9};
    static const size_t offsets[] = {0, 3, 9};
    struct results results;
    mc_session *session = NULL;
    mc_lora_trainer *trainer = NULL;
    memset(&results, 0, sizeof results);
    EXPECT(MC_OK, mc_session_new(model, 0, &session, &err));
    EXPECT(MC_OK, mc_session_append(session, PROMPT, strlen(PROMPT), NULL, &err));
    EXPECT(MC_OK, mc_session_logits(session, results.logits, VOCAB, &err));
    mc_session_free(session);
    EXPECT(MC_OK, mc_embed(model, PROMPT, strlen(PROMPT), NULL, results.vector, mc_model_embed_dim(model, NULL), &err));
    EXPECT(MC_OK, mc_lora_trainer_new(model, NULL, NULL, &trainer, &err));
    for (int i = 0; i < 2; i++) EXPECT(MC_OK, mc_lora_trainer_train_step(trainer, tokens, NULL, offsets, 2, &results.loss, &err));
    mc_lora_trainer_free(trainer);
    return results;
}

static void any_number_gives_the_same_bits(void) {
    static const uint32_t counts[] = {1, 2, 3, 64, 0};
    static struct results first, next;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        EXPECT(MC_OK, mc_set_threads(counts[i], &err));
        CHECK(counts[i] == 0 ? mc_threads() >= 1 : mc_threads() == counts[i]);
        if (i == 0) first = compute();
        next = compute();
        CHECK(memcmp(&first, &next, sizeof first) == 0);
    }
    CHECK(first.loss > 0 && first.logits[0] != 0 && first.vector[0] != 0);
}

static void a_number_out_of_range_is_named(void) {
    uint32_t before = mc_threads();
    EXPECT_ERROR(MC_ERROR_INVALID_ARGUMENT, "threads: expected 0 to 1024, found 1025", mc_set_threads(1025, &err));
    EXPECT(MC_ERROR_INVALID_ARGUMENT, mc_set_threads(UINT32_MAX, &err));
    CHECK(mc_threads() == before);
}

static void *answer_often(void *unused) {
    mc_generate_options *options = greedy(0);
    size_t right = 0;
    for (int i = 0; i < 4; i++) {
        mc_generation *generation = NULL;
        mc_error *error = NULL;
        if (mc_generate(model, PROMPT, strlen(PROMPT), options, &generation, &error) == MC_OK)
            right += strcmp(mc_generation_text(generation), ANSWER) == 0;
        mc_generation_free(generation);
        mc_error_free(error);
    }
    mc_generate_options_free(options);
    (void)unused;
    return (void *)right;
}

static void work_that_runs_does_not_notice_a_change(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, answer_often, NULL) == 0);
    for (uint32_t i = 0; i < 40; i++) EXPECT(MC_OK, mc_set_threads(1 + i % 4, &err));
    for (int i = 0; i < 2; i++) {
        void *right = NULL;
        pthread_join(threads[i], &right);
        CHECK((size_t)right == 4);
    }
    EXPECT(MC_OK, mc_set_threads(0, &err));
}

int main(int argc, char **argv) {
    begin(argc, argv);
    RUN(a_fork_before_the_first_use_has_its_own_threads);
#ifdef __linux__
    RUN(threads_that_the_system_does_not_give_are_an_error_that_does_not_stay);
#endif
    model = load_model();
    RUN(a_number_out_of_range_is_named);
    RUN(any_number_gives_the_same_bits);
    RUN(work_that_runs_does_not_notice_a_change);
    RUN(a_fork_of_a_process_with_threads_is_told_so);
    mc_model_free(model);
    return end();
}
