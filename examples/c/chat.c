/* A conversation in the terminal. The answer appears as it is made, Ctrl-C stops the answer and not the program, and
 * end of input (Ctrl-D) ends the program.
 *
 *   chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [-p QUESTION]
 *
 * MODEL is a directory, models/tiny-coder if left out. With -p one question is answered, without a prompt.
 */
#define _POSIX_C_SOURCE 200809L /* sigaction, getline, isatty */

#include <metal_candle.h>

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct arguments {
    const char *model;
    const char *system;
    const char *question;
    const char *max_tokens;
    const char *temperature;
};

static mc_error *error;   /* of the last call that failed */
static mc_cancel *cancel; /* what Ctrl-C triggers */

static void usage(void) {
    fprintf(stderr, "usage: chat [MODEL] [--system TEXT] [--max-tokens N] [--temperature X] [-p QUESTION]\n");
    exit(2);
}

/* Ends the program on anything but success; every call that can fail goes through here. */
static void check(mc_status status) {
    if (status == MC_OK) return;
    fprintf(stderr, "chat: %s: %s\n", mc_status_name(status), error ? mc_error_details(error) : "");
    mc_error_free(error);
    exit(1);
}

static struct arguments parse(int argc, char **argv) {
    struct arguments arguments = {.model = "models/tiny-coder"};
    for (int i = 1; i < argc; i++) {
        const char **value = strcmp(argv[i], "--system") == 0        ? &arguments.system
                             : strcmp(argv[i], "--max-tokens") == 0  ? &arguments.max_tokens
                             : strcmp(argv[i], "--temperature") == 0 ? &arguments.temperature
                             : strcmp(argv[i], "-p") == 0            ? &arguments.question
                                                                     : NULL;
        if (value == NULL && argv[i][0] != '-') {
            arguments.model = argv[i];
        } else if (value != NULL && i + 1 < argc) {
            *value = argv[++i];
        } else {
            usage();
        }
    }
    return arguments;
}

static double number(const char *text) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || value < 0) usage();
    return value;
}

/* The library's defaults are those of the model; only what was asked for is set. */
static mc_generate_options *generate_options(const struct arguments *arguments) {
    mc_generate_options *options = mc_generate_options_new();
    mc_generate_options_set_cancel(options, cancel);
    if (arguments->max_tokens) mc_generate_options_set_max_tokens(options, (size_t)number(arguments->max_tokens));
    if (arguments->temperature) mc_generate_options_set_temperature(options, number(arguments->temperature));
    return options;
}

/* [stop] */
static void stop_answer(int signal_number) {
    (void)signal_number;
    mc_cancel_trigger(cancel); /* one atomic store: allowed in a signal handler */
}
/* [stop] */

static int32_t print_piece(void *user_data, const mc_token_event *event) {
    (void)user_data;
    fwrite(event->text, 1, event->text_len, stdout);
    fflush(stdout);
    return ferror(stdout) ? MC_STOP : MC_CONTINUE;
}

/* [turn] */
/* One turn: the question joins the conversation, and so does the answer, whole or as far as it came, but not its thoughts. */
static void answer(mc_session *session, mc_chat *chat, const mc_generate_options *options, const char *question, size_t len) {
    mc_cancel_reset(cancel);
    check(mc_chat_add(chat, "user", question, len, &error));

    /* Only what the session does not hold yet is evaluated: the last answer's end and the new question. */
    mc_generation *generation = NULL;
    mc_status status = mc_session_set_chat(session, chat, cancel, &error);
    if (status == MC_OK) status = mc_session_generate_stream(session, options, print_piece, NULL, &generation, &error);
    if (status == MC_CANCELLED) {
        mc_error_free(error);
        error = NULL;
        printf(" [stopped]");
    } else {
        check(status);
    }
    printf("\n");

    const char *text = generation ? mc_generation_content(generation) : "";
    size_t text_len = generation ? mc_generation_content_len(generation) : 0;
    check(mc_chat_add(chat, "assistant", text, text_len, &error));
    mc_generation_free(generation);
}
/* [turn] */

static void converse(mc_session *session, mc_chat *chat, const mc_generate_options *options) {
    bool terminal = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t capacity = 0;
    if (terminal) printf("Ctrl-C stops an answer, Ctrl-D ends.\n");
    for (;;) {
        if (terminal) printf("> ");
        fflush(stdout);
        ssize_t len = getline(&line, &capacity, stdin);
        if (len < 0) break;
        if (line[len - 1] == '\n') len--;
        if (len > 0) answer(session, chat, options, line, (size_t)len);
    }
    free(line);
}

int main(int argc, char **argv) {
    struct arguments arguments = parse(argc, argv);
    cancel = mc_cancel_new();
    sigaction(SIGINT, &(struct sigaction){.sa_handler = stop_answer, .sa_flags = SA_RESTART}, NULL);

    mc_model *model = NULL;
    mc_session *session = NULL;
    mc_chat *chat = mc_chat_new();
    mc_generate_options *options = generate_options(&arguments);
    check(mc_model_load(arguments.model, NULL, &model, &error));
    check(mc_session_new(model, 0, &session, &error)); /* 0: the model's whole context */
    if (arguments.system) check(mc_chat_add(chat, "system", arguments.system, strlen(arguments.system), &error));

    if (arguments.question) {
        answer(session, chat, options, arguments.question, strlen(arguments.question));
    } else {
        converse(session, chat, options);
    }

    mc_generate_options_free(options);
    mc_chat_free(chat);
    mc_session_free(session);
    mc_model_free(model);
    mc_cancel_free(cancel);
    if (mc_live_objects() != 0) return fprintf(stderr, "chat: %zu objects were not freed\n", mc_live_objects()), 1;
    return 0;
}
